//! z = x + y; dx = dz, dy = dz.

use super::{Contribution, Emit, Op};
use crate::block::{BlockBuilder, Life, Node, ValueId};
use crate::step::Step;

#[derive(Debug)]
struct Add;

impl BlockBuilder {
    /// `x + y`.
    pub fn add(&mut self, name: &str, x: ValueId, y: ValueId) -> ValueId {
        let cols = self.cols(x);
        assert_eq!(cols, self.cols(y), "sum of unlike values");
        let out = self.value(name, cols, Life::Plain);
        self.node(Box::new(Add), vec![x, y], vec![out]);
        out
    }
}

impl Op for Add {
    fn forward(&self, node: &Node, emit: &mut Emit) {
        emit.step(Step::Add { x: node.inputs[0], y: node.inputs[1], out: node.outputs[0] });
    }

    fn backward(&self, node: &Node, dy: Option<ValueId>, wanted: &[bool], emit: &mut Emit) {
        let dy = dy.expect("a sum has a gradient");
        for (&input, _) in node.inputs.iter().zip(wanted).filter(|(_, w)| **w) {
            emit.contribute(input, Contribution::Value(dy));
        }
    }
}
