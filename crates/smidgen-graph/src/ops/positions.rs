//! Learned positions (arXiv 1706.03762, section 3.5): y = x + P[position of the token in its
//! sequence]. The table is frozen, so dx = dy.

use super::{Contribution, Emit, Op};
use crate::block::{BlockBuilder, Life, Node, ValueId, WeightId};
use crate::step::Step;

#[derive(Debug)]
struct Positions {
    weight: WeightId,
    first: usize,
}

impl BlockBuilder {
    /// `x` with a row of `tensor`, `[first + count, cols]`, added to each token's: that of position
    /// p is row `first` + p, for `count` positions.
    pub fn positions(
        &mut self,
        name: &str,
        x: ValueId,
        tensor: &str,
        first: usize,
        count: usize,
    ) -> ValueId {
        let cols = self.cols(x);
        let weight = self.weight(tensor, first + count, cols);
        let out = self.value(name, cols, Life::Plain);
        self.node(Box::new(Positions { weight, first }), vec![x], vec![out]);
        out
    }
}

impl Op for Positions {
    fn forward(&self, node: &Node, emit: &mut Emit) {
        let (x, out) = (node.inputs[0], node.outputs[0]);
        emit.step(Step::Positions { x, weight: self.weight, first: self.first, out });
    }

    fn backward(&self, node: &Node, dy: Option<ValueId>, wanted: &[bool], emit: &mut Emit) {
        if wanted[0] {
            let dy = dy.expect("a sum has a gradient");
            emit.contribute(node.inputs[0], Contribution::Value(dy));
        }
    }
}
