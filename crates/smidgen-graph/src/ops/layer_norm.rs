//! Layer normalisation (arXiv 1607.06450): y = w x' + b with x' = (x - mean) s and s = 1 /
//! sqrt(variance + eps), over a whole row.
//!
//! With g = w dy: dx = s (g - mean(g) - x' mean(g x')). Weight and bias are frozen.

use super::{Contribution, Emit, Op};
use crate::block::{BlockBuilder, Life, Node, ValueId, WeightId};
use crate::step::Step;

#[derive(Debug)]
struct LayerNorm {
    weight: WeightId,
    bias: WeightId,
    eps: f32,
}

impl BlockBuilder {
    /// Normalises every row of `x`, multiplies by the vector `tensor`.weight and adds `tensor`.bias.
    pub fn layer_norm(&mut self, name: &str, x: ValueId, tensor: &str, eps: f32) -> ValueId {
        let cols = self.cols(x);
        let weight = self.vector(&format!("{tensor}.weight"), cols);
        let bias = self.vector(&format!("{tensor}.bias"), cols);
        let y = self.value(name, cols, Life::Plain);
        let mean = self.value(&format!("{name}.mean"), 1, Life::Saved);
        let inv_std = self.value(&format!("{name}.inv_std"), 1, Life::Saved);
        self.node(Box::new(LayerNorm { weight, bias, eps }), vec![x], vec![y, mean, inv_std]);
        y
    }
}

impl Op for LayerNorm {
    fn forward(&self, node: &Node, emit: &mut Emit) {
        emit.step(Step::LayerNorm {
            x: node.inputs[0],
            weight: self.weight,
            bias: self.bias,
            eps: self.eps,
            y: node.outputs[0],
            mean: node.outputs[1],
            inv_std: node.outputs[2],
        });
    }

    fn backward(&self, node: &Node, dy: Option<ValueId>, wanted: &[bool], emit: &mut Emit) {
        if !wanted[0] {
            return;
        }
        let dy = dy.expect("a norm has a gradient");
        let x = node.inputs[0];
        let dx = emit.value("d_norm", emit.cols(x), Life::Plain);
        let (mean, inv_std, weight) = (node.outputs[1], node.outputs[2], self.weight);
        emit.step(Step::LayerNormBackward { dy, x, mean, inv_std, weight, dx });
        emit.contribute(x, Contribution::Value(dx));
    }
}
