//! The vocabulary head with cross-entropy, in one sweep over tiles of its rows.
//!
//! For a token with target t and logits l_v = x W_v: loss = log sum_v exp(l_v) - l_t and
//! dx = sum_v (softmax(l)_v - [v = t]) W_v. The head is frozen, so loss and dx come from the same
//! pass and the logits of one tile are all that is ever held.

use super::{Contribution, Emit, Op};
use crate::block::{BlockBuilder, Life, Node, ValueId, WeightId};
use crate::step::Step;

/// Rows of the vocabulary whose logits are held at a time.
pub const HEAD_TILE: usize = 1024;

#[derive(Debug)]
struct Head {
    weight: WeightId,
    tile: usize,
}

impl BlockBuilder {
    /// Scores `x` against the rows of `tensor`, `[vocabulary, cols]`; the block's loss.
    pub fn head(&mut self, x: ValueId, tensor: &str, vocabulary: usize) {
        let weight = self.weight(tensor, vocabulary, self.cols(x));
        let tile = HEAD_TILE.min(vocabulary);
        self.node(Box::new(Head { weight, tile }), vec![x], vec![]);
    }
}

impl Head {
    fn emit(&self, node: &Node, dx: Option<ValueId>, emit: &mut Emit) {
        let logits = emit.value("logits tile", self.tile, Life::Plain);
        emit.step(Step::Head { weight: self.weight, x: node.inputs[0], dx, logits });
    }
}

impl Op for Head {
    fn forward(&self, node: &Node, emit: &mut Emit) {
        self.emit(node, None, emit);
    }

    fn backward(&self, node: &Node, _: Option<ValueId>, wanted: &[bool], emit: &mut Emit) {
        let dx = wanted[0].then(|| {
            let dx = emit.value("d_head", emit.cols(node.inputs[0]), Life::Plain);
            emit.contribute(node.inputs[0], Contribution::Value(dx));
            dx
        });
        self.emit(node, dx, emit);
    }
}
