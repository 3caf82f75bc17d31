//! Rotary position embedding (arXiv 2104.09864): each pair of a head is turned by position times
//! its frequency. The rule turns the gradient back by the same angle.

use super::{Contribution, Emit, Op};
use crate::block::{BlockBuilder, Life, Node, ValueId};
use crate::step::{RopeShape, Step};

#[derive(Debug)]
struct Rope {
    shape: RopeShape,
}

impl BlockBuilder {
    /// Rotates the heads of `x`.
    pub fn rope(&mut self, name: &str, x: ValueId, shape: RopeShape) -> ValueId {
        let y = self.value(name, self.cols(x), Life::Plain);
        self.node(Box::new(Rope { shape }), vec![x], vec![y]);
        y
    }
}

impl Op for Rope {
    fn forward(&self, node: &Node, emit: &mut Emit) {
        let (x, y) = (node.inputs[0], node.outputs[0]);
        emit.step(Step::Rope { x, y, shape: self.shape, inverse: false });
    }

    fn backward(&self, node: &Node, dy: Option<ValueId>, wanted: &[bool], emit: &mut Emit) {
        if !wanted[0] {
            return;
        }
        let x = dy.expect("a rotation has a gradient");
        let y = emit.value("d_rope", emit.cols(x), Life::Plain);
        emit.step(Step::Rope { x, y, shape: self.shape, inverse: true });
        emit.contribute(node.inputs[0], Contribution::Value(y));
    }
}
