//! A frozen projection with its LoRA branch: y = x Wᵀ + b + h B.
//!
//! dx = dy W + (LoRA's share); the products are left to one GEMM over all readers of x.

use super::lora::{Branch, Share, down_b, up};
use super::{Contribution, Emit, Op};
use crate::block::{BlockBuilder, Life, Node, Projection, ValueId};
use crate::step::{Source, Start, Step, Term};

#[derive(Debug)]
struct Linear {
    projection: Projection,
    branch: Option<Branch>,
}

impl BlockBuilder {
    /// `x` through a projection.
    pub fn linear(&mut self, name: &str, x: ValueId, projection: Projection) -> ValueId {
        assert_eq!(self.cols(x), projection.inputs, "inputs of {name}");
        let y = self.value(name, projection.outputs, Life::Plain);
        let branch = projection.lora.map(|lora| Branch::new(self, name, lora, projection.inputs));
        let outputs = [y].into_iter().chain(branch.map(|b| b.h)).collect();
        self.node(Box::new(Linear { projection, branch }), vec![x], outputs);
        y
    }
}

/// `a W[rows, cols]ᵀ` or `a W[rows, cols]`.
pub(super) fn frozen(
    projection: &Projection,
    a: ValueId,
    rows: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
    transposed: bool,
) -> Term {
    let depth = if transposed { cols.len() } else { rows.len() };
    let b = Source::Weight(projection.weight);
    Term { a, a_cols: 0..depth, b, rows, cols, transposed }
}

impl Op for Linear {
    fn forward(&self, node: &Node, emit: &mut Emit) {
        let x = node.inputs[0];
        let p = &self.projection;
        let mut terms = vec![frozen(p, x, 0..p.outputs, 0..p.inputs, true)];
        if let Some(branch) = &self.branch {
            branch.forward(x, emit);
            terms.push(up(branch.lora.b, branch.h, branch.lora.rank, 0..p.outputs));
        }
        emit.step(Step::Gemm { out: node.outputs[0], start: p.start(0), scale: 1.0, terms });
    }

    fn backward(&self, node: &Node, dy: Option<ValueId>, wanted: &[bool], emit: &mut Emit) {
        let dy = dy.expect("a projection has a gradient");
        let x = node.inputs[0];
        let p = &self.projection;
        let mut lora = Vec::new();
        if let Some(branch) = &self.branch {
            branch.gradient_b(dy, 0..p.outputs, emit);
            let dh = emit.value("dh", branch.lora.rank, Life::Plain);
            let terms = vec![down_b(&branch.lora, dy, 0..p.outputs)];
            let scale = branch.lora.scale;
            emit.step(Step::Gemm { out: dh, start: Start::Zero, scale, terms });
            match branch.backward(x, dh, wanted[0], emit) {
                Share::None => {}
                Share::Product(term) => lora.push(term),
                Share::Value(value) => emit.contribute(x, Contribution::Value(value)),
            }
        }
        if wanted[0] {
            let frozen = vec![frozen(p, dy, 0..p.outputs, 0..p.inputs, false)];
            emit.contribute(x, Contribution::Products { frozen, lora });
        }
    }

    fn has_params(&self) -> bool {
        self.branch.is_some()
    }
}
