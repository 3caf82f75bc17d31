//! What a step takes: the planner's model of time.
//!
//! A program's time is the sum over its steps of floating-point operations, or numbers, over the
//! rate at which the machine does that kind of work, and what it takes to hand a step to the
//! threads. Rates are measured on kernels and on the disk, never on a model's own steps.

use crate::step::{Source, Step};

/// How fast a machine is, all threads together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// FLOP/s of products with frozen weights, unpacking included.
    pub products: f64,
    /// FLOP/s of products with LoRA's factors, and of their gradients.
    pub lora: f64,
    /// FLOP/s of attention over the pairs that the causal order shows.
    pub attention: f64,
    /// Numbers a second of steps that work row by row: norms, rotations, gates, sums.
    pub rowwise: f64,
    /// Logits a second through the head's softmax.
    pub softmax: f64,
    /// Trainable numbers a second through AdamW.
    pub optimizer: f64,
    /// Seconds that handing a step to the threads takes.
    pub call: f64,
    /// Bytes a second of the model file brought into memory from the system's file cache and
    /// dropped again.
    pub weights: f64,
    /// Bytes a second written to the scratch file.
    pub write: f64,
    /// Bytes a second read from the scratch file.
    pub read: f64,
}

impl Rates {
    /// Two AVX-512 cores at 2.5 GHz and a disk of 1 GB/s: for plans that must be the same on
    /// every machine.
    pub const REFERENCE: Self = Self {
        products: 180e9,
        lora: 60e9,
        attention: 60e9,
        rowwise: 1e9,
        softmax: 1e9,
        optimizer: 0.5e9,
        call: 5e-6,
        weights: 8e9,
        write: 1e9,
        read: 1e9,
    };

    /// Every rate under its name: what a file of rates holds. `call` is in seconds, all others in
    /// units a second.
    pub fn named(&mut self) -> [(&'static str, &mut f64); 10] {
        [
            ("products", &mut self.products),
            ("lora", &mut self.lora),
            ("attention", &mut self.attention),
            ("rowwise", &mut self.rowwise),
            ("softmax", &mut self.softmax),
            ("optimizer", &mut self.optimizer),
            ("call", &mut self.call),
            ("weights", &mut self.weights),
            ("write", &mut self.write),
            ("read", &mut self.read),
        ]
    }

    /// Seconds of a step over `tokens` rows; `cols` tells how wide a value is. A head's sweep is
    /// left out: see [`Rates::head`].
    pub fn step(&self, step: &Step, tokens: usize, cols: impl Fn(crate::ValueId) -> usize) -> f64 {
        let flops = |rate: f64| step.flops(tokens, &cols) as f64 / rate;
        let rows = |numbers: usize| (tokens * numbers) as f64 / self.rowwise;
        let work = match step {
            Step::Gemm { terms, .. } => terms
                .iter()
                .map(|t| {
                    let flops = 2.0 * (tokens * t.depth()) as f64 * t.width() as f64;
                    match t.b {
                        Source::Weight(_) => flops / self.products,
                        Source::Param(_) => flops / self.lora,
                    }
                })
                .sum(),
            Step::ParamGradient { .. } => flops(self.lora),
            Step::Attention { .. }
            | Step::AttentionBackwardQ { .. }
            | Step::AttentionBackwardKv { .. } => flops(self.attention),
            Step::Head { .. } => return 0.0,
            Step::AttentionDelta { o: x, .. }
            | Step::RmsNorm { x, .. }
            | Step::RmsNormBackward { x, .. }
            | Step::LayerNorm { x, .. }
            | Step::LayerNormBackward { x, .. }
            | Step::Rope { x, .. }
            | Step::Gate { g: x, .. }
            | Step::GateBackward { g: x, .. }
            | Step::Relu { x, .. }
            | Step::ReluBackward { a: x, .. }
            | Step::Add { x, .. }
            | Step::Scale { x, .. }
            | Step::Copy { x, .. }
            | Step::Dropout { x, .. }
            | Step::Positions { x, .. }
            | Step::Embedding { out: x, .. } => rows(cols(*x)),
        };
        work + self.call
    }

    /// Seconds of the head's sweep: logits and softmax, and with `backward` the gradient.
    pub fn head(&self, tokens: usize, hidden: usize, vocabulary: usize, backward: bool) -> f64 {
        let logits = (tokens * vocabulary) as f64;
        let products = if backward { 4.0 } else { 2.0 };
        products * logits * hidden as f64 / self.products + logits / self.softmax
    }
}
