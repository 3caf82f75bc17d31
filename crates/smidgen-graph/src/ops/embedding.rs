//! Rows of the embedding table, one a token. The table is frozen: there is no rule.

use super::{Emit, Op};
use crate::block::{BlockBuilder, Life, Node, ValueId, WeightId};
use crate::step::Step;

#[derive(Debug)]
struct Embedding {
    weight: WeightId,
}

impl BlockBuilder {
    /// The rows of `tensor`, `[vocabulary, cols]`, that the tokens name.
    pub fn embedding(&mut self, tensor: &str, vocabulary: usize, cols: usize) -> ValueId {
        let weight = self.weight(tensor, vocabulary, cols);
        let out = self.value("embedding", cols, Life::Plain);
        self.node(Box::new(Embedding { weight }), vec![], vec![out]);
        out
    }
}

impl Op for Embedding {
    fn forward(&self, node: &Node, emit: &mut Emit) {
        emit.step(Step::Embedding { weight: self.weight, out: node.outputs[0] });
    }

    fn backward(&self, _: &Node, _: Option<ValueId>, _: &[bool], _: &mut Emit) {}
}
