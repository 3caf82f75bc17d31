//! y = c x; dx = c dy.

use super::{Contribution, Emit, Op};
use crate::block::{BlockBuilder, Life, Node, ValueId};
use crate::step::Step;

#[derive(Debug)]
struct Scale {
    factor: f32,
}

impl BlockBuilder {
    /// `factor * x`.
    pub fn scale(&mut self, name: &str, x: ValueId, factor: f32) -> ValueId {
        let out = self.value(name, self.cols(x), Life::Plain);
        self.node(Box::new(Scale { factor }), vec![x], vec![out]);
        out
    }
}

impl Op for Scale {
    fn forward(&self, node: &Node, emit: &mut Emit) {
        let (x, out) = (node.inputs[0], node.outputs[0]);
        emit.step(Step::Scale { x, out, factor: self.factor });
    }

    fn backward(&self, node: &Node, dy: Option<ValueId>, wanted: &[bool], emit: &mut Emit) {
        if !wanted[0] {
            return;
        }
        let x = dy.expect("a product has a gradient");
        let out = emit.value("d_scale", emit.cols(x), Life::Plain);
        emit.step(Step::Scale { x, out, factor: self.factor });
        emit.contribute(node.inputs[0], Contribution::Value(out));
    }
}
