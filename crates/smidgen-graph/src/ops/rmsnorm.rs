//! RMSNorm (arXiv 1910.07467): y = w x r with r = 1 / sqrt(mean(x^2) + eps), over groups of
//! columns (a whole row, or a head).
//!
//! With g = w dy and x' = x r: dx = r (g - x' mean(g x')). The weight is frozen.

use super::{Contribution, Emit, Op};
use crate::block::{BlockBuilder, Life, Node, ValueId, WeightId};
use crate::step::Step;

#[derive(Debug)]
struct RmsNorm {
    weight: WeightId,
    width: usize,
    eps: f32,
}

impl BlockBuilder {
    /// Normalises every group of `width` columns of `x` and multiplies by the vector `tensor`.
    pub fn rms_norm(
        &mut self,
        name: &str,
        x: ValueId,
        tensor: &str,
        width: usize,
        eps: f32,
    ) -> ValueId {
        let cols = self.cols(x);
        assert!(width > 0 && cols.is_multiple_of(width), "{cols} columns in groups of {width}");
        let weight = self.vector(tensor, width);
        let y = self.value(name, cols, Life::Plain);
        let inv_rms = self.value(&format!("{name}.inv_rms"), cols / width, Life::Saved);
        self.node(Box::new(RmsNorm { weight, width, eps }), vec![x], vec![y, inv_rms]);
        y
    }
}

impl Op for RmsNorm {
    fn forward(&self, node: &Node, emit: &mut Emit) {
        emit.step(Step::RmsNorm {
            x: node.inputs[0],
            weight: self.weight,
            width: self.width,
            eps: self.eps,
            y: node.outputs[0],
            inv_rms: node.outputs[1],
        });
    }

    fn backward(&self, node: &Node, dy: Option<ValueId>, wanted: &[bool], emit: &mut Emit) {
        if !wanted[0] {
            return;
        }
        let dy = dy.expect("a norm has a gradient");
        let x = node.inputs[0];
        let dx = emit.value("d_norm", emit.cols(x), Life::Plain);
        let (inv_rms, weight, width) = (node.outputs[1], self.weight, self.width);
        emit.step(Step::RmsNormBackward { dy, x, inv_rms, weight, width, dx });
        emit.contribute(x, Contribution::Value(dx));
    }
}
