//! Steps: what a program is made of. One step is one call of a kernel over whole values.

use std::ops::Range;

use crate::block::{ParamId, ValueId, WeightId};

/// The matrix on the right of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A frozen tensor in its file format.
    Weight(WeightId),
    /// A LoRA factor.
    Param(ParamId),
}

/// One product of a GEMM step: `a[.., a_cols] · B[rows, cols]`, or `· B[rows, cols]ᵀ`.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// Left-hand side.
    pub a: ValueId,
    /// Columns of `a` that take part.
    pub a_cols: Range<usize>,
    /// Right-hand side.
    pub b: Source,
    /// Rows of the stored matrix that take part.
    pub rows: Range<usize>,
    /// Columns of the stored matrix that take part.
    pub cols: Range<usize>,
    /// Whether the reduction runs along the stored rows.
    pub transposed: bool,
}

impl Term {
    /// Length of the reduction.
    pub fn depth(&self) -> usize {
        self.a_cols.len()
    }

    /// Columns of the product.
    pub fn width(&self) -> usize {
        if self.transposed { self.rows.len() } else { self.cols.len() }
    }
}

/// What a GEMM's output starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Zeros.
    Zero,
    /// A vector's numbers from `first` on in every row.
    Bias {
        /// The vector.
        vector: WeightId,
        /// That of the output's first column.
        first: usize,
    },
    /// Another value, whose memory the output takes over where that value ends here.
    Value(ValueId),
}

/// The shape of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Numbers a head.
    pub head_dim: usize,
    /// Keys that a query sees, itself included; none for all earlier ones.
    pub window: Option<usize>,
    /// Factor on the scores.
    pub scale: f32,
}

/// How the two numbers of a rotated pair lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Elements 2i and 2i + 1.
    Interleaved,
    /// Elements i and i + half.
    Halves,
}

/// Which rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeShape {
    /// Number of the model's table of angles.
    pub table: usize,
    /// Numbers a head.
    pub head_dim: usize,
    /// How pairs lie.
    pub style: RopeStyle,
}

/// The gate's activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x sigmoid(x).
    Silu,
    /// The tanh form of GELU.
    GeluTanh,
}

/// One kernel call. Values are `[tokens, cols]` unless said otherwise.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // Operands carry the kernels' own names.
pub enum Step {
    /// `out = scale * (start + sum of terms)`.
    Gemm {
        out: ValueId,
        start: Start,
        scale: f32,
        terms: Vec<Term>,
    },
    /// `y = x * inv_rms * weight` over groups of `width` columns; writes `inv_rms` a group.
    RmsNorm {
        x: ValueId,
        weight: WeightId,
        width: usize,
        eps: f32,
        y: ValueId,
        inv_rms: ValueId,
    },
    RmsNormBackward {
        dy: ValueId,
        x: ValueId,
        inv_rms: ValueId,
        weight: WeightId,
        width: usize,
        dx: ValueId,
    },
    /// `y = (x - mean) * inv_std * weight + bias` over rows; writes `mean` and `inv_std` a row.
    LayerNorm {
        x: ValueId,
        weight: WeightId,
        bias: WeightId,
        eps: f32,
        y: ValueId,
        mean: ValueId,
        inv_std: ValueId,
    },
    LayerNormBackward {
        dy: ValueId,
        x: ValueId,
        mean: ValueId,
        inv_std: ValueId,
        weight: WeightId,
        dx: ValueId,
    },
    /// Rotates `x` into `y`; backwards with `inverse`.
    Rope {
        x: ValueId,
        y: ValueId,
        shape: RopeShape,
        inverse: bool,
    },
    Attention {
        q: ValueId,
        k: ValueId,
        v: ValueId,
        o: ValueId,
        lse: ValueId,
        shape: AttentionShape,
    },
    /// `delta` = sum of `o * d_o` a head.
    AttentionDelta {
        o: ValueId,
        d_o: ValueId,
        delta: ValueId,
        shape: AttentionShape,
    },
    AttentionBackwardQ {
        q: ValueId,
        k: ValueId,
        v: ValueId,
        d_o: ValueId,
        lse: ValueId,
        delta: ValueId,
        dq: ValueId,
        shape: AttentionShape,
    },
    AttentionBackwardKv {
        q: ValueId,
        k: ValueId,
        v: ValueId,
        d_o: ValueId,
        lse: ValueId,
        delta: ValueId,
        dk: ValueId,
        dv: ValueId,
        shape: AttentionShape,
    },
    /// `a = act(g) * u`.
    Gate {
        g: ValueId,
        u: ValueId,
        a: ValueId,
        activation: Activation,
    },
    GateBackward {
        g: ValueId,
        u: ValueId,
        da: ValueId,
        dg: ValueId,
        du: ValueId,
        activation: Activation,
    },
    /// `out = max(x, 0)`.
    Relu {
        x: ValueId,
        out: ValueId,
    },
    /// `dx = da` where `a`, the output of [`Step::Relu`], is above zero, else 0.
    ReluBackward {
        a: ValueId,
        da: ValueId,
        dx: ValueId,
    },
    Add {
        x: ValueId,
        y: ValueId,
        out: ValueId,
    },
    Scale {
        x: ValueId,
        out: ValueId,
        factor: f32,
    },
    Copy {
        x: ValueId,
        out: ValueId,
    },
    /// Inverted dropout; `first_col` of `total_cols` places the tile in the whole tensor.
    Dropout {
        x: ValueId,
        out: ValueId,
        site: u32,
        first_col: usize,
        total_cols: usize,
        probability: f32,
    },
    /// `gradient(param)[.., cols] += leftᵀ right`.
    ParamGradient {
        param: ParamId,
        cols: Range<usize>,
        left: ValueId,
        right: ValueId,
    },
    /// Rows of the embedding, one a token.
    Embedding {
        weight: WeightId,
        out: ValueId,
    },
    /// `out = x` + rows of a table, one a token: row `first` + its position in its sequence.
    Positions {
        x: ValueId,
        weight: WeightId,
        first: usize,
        out: ValueId,
    },
    /// Cross-entropy over the vocabulary in one sweep; `logits` is its workspace. With
    /// `dx`, also the gradient with respect to `x`. `x` is overwritten: it ends here.
    Head {
        weight: WeightId,
        x: ValueId,
        dx: Option<ValueId>,
        logits: ValueId,
    },
}

/// Whether a step reads or writes an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads it.
    Read,
    /// Writes all of it.
    Write,
}

impl Step {
    /// Shows every operand to `f`, which may rename it.
    pub fn visit_mut(&mut self, f: &mut dyn FnMut(Access, &mut ValueId)) {
        use Access::{Read, Write};
        match self {
            Self::Gemm { out, start, terms, .. } => {
                // The start first: a sum over tiles that is made again then ends one tile before
                // the next begins.
                if let Start::Value(v) = start {
                    f(Read, v);
                }
                terms.iter_mut().for_each(|t| f(Read, &mut t.a));
                f(Write, out);
            }
            Self::RmsNorm { x, y, inv_rms, .. } => {
                f(Read, x);
                f(Write, y);
                f(Write, inv_rms);
            }
            Self::RmsNormBackward { dy, x, inv_rms, dx, .. } => {
                [dy, x, inv_rms].into_iter().for_each(|v| f(Read, v));
                f(Write, dx);
            }
            Self::LayerNorm { x, y, mean, inv_std, .. } => {
                f(Read, x);
                [y, mean, inv_std].into_iter().for_each(|v| f(Write, v));
            }
            Self::LayerNormBackward { dy, x, mean, inv_std, dx, .. } => {
                [dy, x, mean, inv_std].into_iter().for_each(|v| f(Read, v));
                f(Write, dx);
            }
            Self::ReluBackward { a, da, dx } => {
                [a, da].into_iter().for_each(|v| f(Read, v));
                f(Write, dx);
            }
            Self::Rope { x, y: out, .. }
            | Self::Scale { x, out, .. }
            | Self::Relu { x, out }
            | Self::Positions { x, out, .. }
            | Self::Copy { x, out }
            | Self::Dropout { x, out, .. } => {
                f(Read, x);
                f(Write, out);
            }
            Self::Attention { q, k, v, o, lse, .. } => {
                [q, k, v].into_iter().for_each(|v| f(Read, v));
                [o, lse].into_iter().for_each(|v| f(Write, v));
            }
            Self::AttentionDelta { o, d_o, delta, .. } => {
                [o, d_o].into_iter().for_each(|v| f(Read, v));
                f(Write, delta);
            }
            Self::AttentionBackwardQ { q, k, v, d_o, lse, delta, dq, .. } => {
                [q, k, v, d_o, lse, delta].into_iter().for_each(|v| f(Read, v));
                f(Write, dq);
            }
            Self::AttentionBackwardKv { q, k, v, d_o, lse, delta, dk, dv, .. } => {
                [q, k, v, d_o, lse, delta].into_iter().for_each(|v| f(Read, v));
                [dk, dv].into_iter().for_each(|v| f(Write, v));
            }
            Self::Gate { g, u, a, .. } => {
                [g, u].into_iter().for_each(|v| f(Read, v));
                f(Write, a);
            }
            Self::GateBackward { g, u, da, dg, du, .. } => {
                [g, u, da].into_iter().for_each(|v| f(Read, v));
                [dg, du].into_iter().for_each(|v| f(Write, v));
            }
            Self::Add { x, y, out } => {
                [x, y].into_iter().for_each(|v| f(Read, v));
                f(Write, out);
            }
            Self::ParamGradient { left, right, .. } => {
                [left, right].into_iter().for_each(|v| f(Read, v));
            }
            Self::Embedding { out, .. } => f(Write, out),
            Self::Head { x, dx, logits, .. } => {
                f(Read, x);
                dx.iter_mut().for_each(|v| f(Write, v));
                f(Write, logits);
            }
        }
    }

    /// The operands that `access` names, in order.
    pub fn operands(&self, access: Access) -> Vec<ValueId> {
        let mut found = Vec::new();
        self.clone().visit_mut(&mut |kind, id| {
            if kind == access {
                found.push(*id);
            }
        });
        found
    }

    /// An output and the inputs whose memory it may take over, the best first. An input that the
    /// step reads a second time is none of them.
    pub fn in_place(&self) -> Option<(ValueId, Vec<ValueId>)> {
        match self {
            Self::Gemm { out, start: Start::Value(v), terms, .. } => {
                terms.iter().all(|t| t.a != *v).then(|| (*out, vec![*v]))
            }
            Self::Rope { x, y, .. } => Some((*y, vec![*x])),
            Self::Scale { x, out, .. }
            | Self::Copy { x, out }
            | Self::Relu { x, out }
            | Self::Positions { x, out, .. } => Some((*out, vec![*x])),
            Self::ReluBackward { a, da, dx } if a != da => Some((*dx, vec![*da])),
            Self::Add { x, y, out } if x != y => Some((*out, vec![*x, *y])),
            _ => None,
        }
    }

    /// Operands of which the step also reads, or adds to, rows of earlier positions than those that
    /// it works on. All else is row by row.
    pub fn across_rows(&self) -> Vec<ValueId> {
        match self {
            Self::Attention { k, v, .. } | Self::AttentionBackwardQ { k, v, .. } => vec![*k, *v],
            Self::AttentionBackwardKv { k, v, dk, dv, .. } => vec![*k, *v, *dk, *dv],
            _ => vec![],
        }
    }

    /// Floating-point operations over `tokens` rows; a fused multiply-add counts two.
    /// `cols` tells how wide a value is. Causal attention counts the half that is computed.
    pub fn flops(&self, tokens: usize, cols: impl Fn(ValueId) -> usize) -> u64 {
        let t = tokens as u64;
        match self {
            Self::Gemm { terms, .. } => {
                terms.iter().map(|m| 2 * t * m.depth() as u64 * m.width() as u64).sum()
            }
            Self::ParamGradient { left, right, .. } => {
                2 * t * cols(*left) as u64 * cols(*right) as u64
            }
            Self::Attention { shape, .. } => shape.pair_flops(tokens, 2),
            Self::AttentionBackwardQ { shape, .. } => shape.pair_flops(tokens, 3),
            Self::AttentionBackwardKv { shape, .. } => shape.pair_flops(tokens, 4),
            Self::RmsNorm { x, .. } | Self::RmsNormBackward { x, .. } => 4 * t * cols(*x) as u64,
            Self::LayerNorm { x, .. } => 7 * t * cols(*x) as u64,
            Self::LayerNormBackward { x, .. } => 11 * t * cols(*x) as u64,
            Self::Rope { x, .. } => 3 * t * cols(*x) as u64,
            Self::Gate { g, .. } | Self::GateBackward { g, .. } => 12 * t * cols(*g) as u64,
            Self::Add { x, .. }
            | Self::Scale { x, .. }
            | Self::Dropout { x, .. }
            | Self::Relu { x, .. }
            | Self::ReluBackward { a: x, .. }
            | Self::Positions { x, .. } => t * cols(*x) as u64,
            Self::AttentionDelta { o, .. } => 2 * t * cols(*o) as u64,
            Self::Copy { .. } | Self::Embedding { .. } | Self::Head { .. } => 0,
        }
    }
}

impl AttentionShape {
    /// Columns of the queries, and of the output.
    pub fn query_cols(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of the keys, and of the values.
    pub fn key_cols(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// FLOPs of `products` products over the visible (query, key) pairs.
    fn pair_flops(&self, tokens: usize, products: u64) -> u64 {
        let window = self.window.unwrap_or(tokens).min(tokens);
        let pairs = (window * (window + 1) / 2 + (tokens - window) * window) as u64;
        2 * products * pairs * self.query_cols() as u64
    }
}
