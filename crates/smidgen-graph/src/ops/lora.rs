//! The LoRA branch of a projection (arXiv 2106.09685): y += h B with h = s drop(x) Aᵀ.
//!
//! Here A is `[rank, inputs]` and B is held transposed, `[rank, outputs]`. With s folded into h:
//! dB = hᵀ dy, dh = s dy Bᵀ, dA = dhᵀ drop(x), dx = drop(dh A).

use crate::block::{BlockBuilder, Life, Lora, ParamId, ValueId};
use crate::ops::Emit;
use crate::step::{Source, Start, Step, Term};

/// A branch over an input that is whole: h and, with dropout, the dropped input.
#[derive(Clone, Copy, Debug)]
pub(super) struct Branch {
    pub lora: Lora,
    pub h: ValueId,
    dropped: Option<ValueId>,
    inputs: usize,
}

impl Branch {
    pub fn new(builder: &mut BlockBuilder, name: &str, lora: Lora, inputs: usize) -> Self {
        let h = builder.value(&format!("{name}.h"), lora.rank, Life::Saved);
        let dropped = (lora.dropout > 0.0)
            .then(|| builder.value(&format!("{name}.dropped"), inputs, Life::Plain));
        Self { lora, h, dropped, inputs }
    }

    /// Computes h.
    pub fn forward(&self, x: ValueId, emit: &mut Emit) {
        if let Some(out) = self.dropped {
            emit.step(drop_tile(&self.lora, x, out, 0, self.inputs));
        }
        let terms = vec![down(&self.lora, self.input(x), 0..self.inputs)];
        emit.step(Step::Gemm { out: self.h, start: Start::Zero, scale: self.lora.scale, terms });
    }

    /// What A reads: the input, dropped where the branch drops.
    pub fn input(&self, x: ValueId) -> ValueId {
        self.dropped.unwrap_or(x)
    }

    /// The gradient of B from that of the output.
    pub fn gradient_b(&self, dy: ValueId, cols: std::ops::Range<usize>, emit: &mut Emit) {
        emit.step(Step::ParamGradient { param: self.lora.b, cols, left: self.h, right: dy });
    }

    /// The gradient of A, and the share of dx, from dh.
    pub fn backward(&self, x: ValueId, dh: ValueId, wanted: bool, emit: &mut Emit) -> Share {
        let cols = 0..self.inputs;
        let right = self.input(x);
        emit.step(Step::ParamGradient { param: self.lora.a, cols: cols.clone(), left: dh, right });
        if !wanted {
            return Share::None;
        }
        let term = up(self.lora.a, dh, self.lora.rank, cols);
        if self.dropped.is_none() {
            return Share::Product(term);
        }
        let whole = emit.value("d_dropped", self.inputs, Life::Plain);
        emit.step(Step::Gemm { out: whole, start: Start::Zero, scale: 1.0, terms: vec![term] });
        let out = emit.value("d_lora", self.inputs, Life::Plain);
        emit.step(drop_tile(&self.lora, whole, out, 0, self.inputs));
        Share::Value(out)
    }
}

/// A branch's share of the gradient of its input.
#[derive(Clone, Debug)]
pub(super) enum Share {
    /// Not asked for.
    None,
    /// A product left to the caller's GEMM.
    Product(Term),
    /// Already computed.
    Value(ValueId),
}

/// `x[.., cols] A[.., cols]ᵀ`, where `x` holds just those columns.
pub(super) fn down(lora: &Lora, x: ValueId, cols: std::ops::Range<usize>) -> Term {
    factor_term(lora.a, x, cols.len(), lora.rank, cols, true)
}

/// `dy[.., cols] Bᵀ[.., cols]ᵀ`, where `dy` holds just those columns.
pub(super) fn down_b(lora: &Lora, dy: ValueId, cols: std::ops::Range<usize>) -> Term {
    factor_term(lora.b, dy, cols.len(), lora.rank, cols, true)
}

/// `h F[.., cols]`: from the rank up to the columns of a factor.
pub(super) fn up(param: ParamId, h: ValueId, rank: usize, cols: std::ops::Range<usize>) -> Term {
    factor_term(param, h, rank, rank, cols, false)
}

fn factor_term(
    param: ParamId,
    a: ValueId,
    depth: usize,
    rank: usize,
    cols: std::ops::Range<usize>,
    transposed: bool,
) -> Term {
    Term { a, a_cols: 0..depth, b: Source::Param(param), rows: 0..rank, cols, transposed }
}

/// Dropout of the columns from `first_col` on of an input `total_cols` wide.
pub(super) fn drop_tile(
    lora: &Lora,
    x: ValueId,
    out: ValueId,
    first_col: usize,
    total_cols: usize,
) -> Step {
    let (site, probability) = (lora.site, lora.dropout);
    Step::Dropout { x, out, site, first_col, total_cols, probability }
}
