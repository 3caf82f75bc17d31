//! Attention, forward and backward, one task for each key head as the runtime cuts it.

use std::cell::LazyCell;

use criterion::{BenchmarkId, Criterion, Throughput};
use smidgen_kernels::{
    ATTENTION_SCRATCH, AttentionGradient, AttentionTile, Kernels, MatMut, MatRef,
};

use crate::random;

/// Sizes of an attention over one segment.
#[derive(Clone, Copy)]
pub struct Shape {
    pub tokens: usize,
    /// How many tokens back a token sees, itself among them.
    pub window: Option<usize>,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Shape {
    fn name(&self) -> String {
        let Self { tokens, window, heads, kv_heads, head_dim } = self;
        let window = window.map_or(String::new(), |window| format!(",window={window}"));
        format!("heads={heads}:{kv_heads},dim={head_dim},T={tokens}{window}")
    }

    /// FLOPs of one product of the visible pairs, such as Q Kᵀ.
    fn product_flops(&self) -> u64 {
        let seen = |query: usize| self.window.map_or(query + 1, |window| window.min(query + 1));
        let pairs: usize = (0..self.tokens).map(seen).sum();
        (2 * self.heads * self.head_dim * pairs) as u64
    }

    /// Query heads over one key head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Columns of the queries.
    fn cols(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of the keys.
    fn kv_cols(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// What is read: queries and the output's gradient, tokens x cols; keys and values, tokens x
/// kv_cols.
struct Inputs {
    shape: Shape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_o: Vec<f32>,
}

impl Inputs {
    fn tile(&self, kv: usize) -> AttentionTile<'_> {
        let Shape { tokens, window, head_dim, .. } = self.shape;
        let cols = kv * head_dim..(kv + 1) * head_dim;
        AttentionTile {
            q: self.queries(&self.q, kv),
            k: MatRef::new(&self.k, tokens, self.shape.kv_cols()).cols_range(cols.clone()),
            v: MatRef::new(&self.v, tokens, self.shape.kv_cols()).cols_range(cols),
            first_query: 0,
            first_key: 0,
            scale: 0.1,
            window,
        }
    }

    /// `lse` and `delta` are heads x tokens.
    fn gradient<'a>(
        &'a self,
        kv: usize,
        lse: &'a [f32],
        delta: &'a [f32],
    ) -> AttentionGradient<'a> {
        let Shape { tokens, heads, .. } = self.shape;
        let group = self.shape.group();
        let rows = kv * group..(kv + 1) * group;
        AttentionGradient {
            d_o: self.queries(&self.d_o, kv),
            lse: MatRef::new(lse, heads, tokens).rows_range(rows.clone()),
            delta: MatRef::new(delta, heads, tokens).rows_range(rows),
        }
    }

    /// The columns of the query heads over a key head.
    fn queries<'a>(&self, x: &'a [f32], kv: usize) -> MatRef<'a> {
        let width = self.shape.group() * self.shape.head_dim;
        let x = MatRef::new(x, self.shape.tokens, self.shape.cols());
        x.cols_range(kv * width..(kv + 1) * width)
    }
}

/// An attention with everything it writes.
struct Attention {
    kernels: Kernels,
    inputs: Inputs,
    o: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    lse: Vec<f32>,
    delta: Vec<f32>,
    scratch: Vec<f32>,
}

impl Attention {
    /// Ready for each pass: the forward has run, and the backward's `delta` is known.
    fn new(kernels: Kernels, shape: Shape) -> Self {
        let Shape { tokens, heads, head_dim, .. } = shape;
        let (len, kv_len) = (tokens * shape.cols(), tokens * shape.kv_cols());
        let (q, k) = (random(1, len), random(2, kv_len));
        let (v, d_o) = (random(3, kv_len), random(4, len));
        let mut attention = Self {
            kernels,
            inputs: Inputs { shape, q, k, v, d_o },
            o: vec![0.0; len],
            dq: vec![0.0; len],
            dk: vec![0.0; kv_len],
            dv: vec![0.0; kv_len],
            lse: vec![0.0; heads * tokens],
            delta: vec![0.0; heads * tokens],
            scratch: vec![0.0; ATTENTION_SCRATCH],
        };
        attention.forward();
        let Self { inputs, o, delta, .. } = &mut attention;
        for (head, delta) in delta.chunks_mut(tokens).enumerate() {
            let cols = head * head_dim..(head + 1) * head_dim;
            let o = MatRef::new(o, tokens, shape.cols()).cols_range(cols.clone());
            let d_o = MatRef::new(&inputs.d_o, tokens, shape.cols()).cols_range(cols);
            kernels.attention_delta(d_o, o, delta);
        }
        attention
    }

    fn forward(&mut self) {
        let shape = self.inputs.shape;
        let o = MatMut::new(&mut self.o, shape.tokens, shape.cols());
        let lse = MatMut::new(&mut self.lse, shape.heads, shape.tokens);
        let outputs = o.col_tiles(shape.group() * shape.head_dim).zip(lse.row_tiles(shape.group()));
        for (kv, ((_, o), (_, lse))) in outputs.enumerate() {
            self.kernels.attention(&self.inputs.tile(kv), o, lse, &mut self.scratch);
        }
    }

    fn backward_q(&mut self) {
        let shape = self.inputs.shape;
        let dq = MatMut::new(&mut self.dq, shape.tokens, shape.cols());
        for (kv, (_, dq)) in dq.col_tiles(shape.group() * shape.head_dim).enumerate() {
            let gradient = self.inputs.gradient(kv, &self.lse, &self.delta);
            let tile = self.inputs.tile(kv);
            self.kernels.attention_backward_q(&tile, &gradient, dq, &mut self.scratch);
        }
    }

    fn backward_kv(&mut self) {
        let shape = self.inputs.shape;
        let dk = MatMut::new(&mut self.dk, shape.tokens, shape.kv_cols());
        let dv = MatMut::new(&mut self.dv, shape.tokens, shape.kv_cols());
        let outputs = dk.col_tiles(shape.head_dim).zip(dv.col_tiles(shape.head_dim));
        for (kv, ((_, dk), (_, dv))) in outputs.enumerate() {
            let gradient = self.inputs.gradient(kv, &self.lse, &self.delta);
            let tile = self.inputs.tile(kv);
            self.kernels.attention_backward_kv(&tile, &gradient, dk, dv, &mut self.scratch);
        }
    }
}

/// The three passes over one shape.
pub fn bench(criterion: &mut Criterion, kernels: Kernels, shape: Shape) {
    type Pass = (&'static str, u64, fn(&mut Attention));
    let passes: [Pass; 3] = [
        ("forward", 2, Attention::forward),
        ("backward_q", 3, Attention::backward_q),
        ("backward_kv", 4, Attention::backward_kv),
    ];
    let mut group = criterion.benchmark_group(format!("{:?}/attention", kernels.isa()));
    let mut attention = LazyCell::new(|| Attention::new(kernels, shape));
    for (name, products, pass) in passes {
        group.throughput(Throughput::Elements(products * shape.product_flops()));
        group.bench_function(BenchmarkId::new(name, shape.name()), |bencher| {
            let attention = LazyCell::force_mut(&mut attention);
            bencher.iter(|| pass(attention));
        });
    }
}
