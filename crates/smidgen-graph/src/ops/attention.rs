//! Causal softmax attention in tiles, log-sum-exp kept (FlashAttention-2, arXiv 2307.08691).
//!
//! P = exp(s Q K^T - lse), O = P V. With D = rowsum(dO O): dS = P (dO V^T - D),
//! dQ = s dS K, dK = s dS^T Q, dV = P^T dO; scores are made again, never stored.

use super::{Contribution, Emit, Op};
use crate::block::{BlockBuilder, Life, Node, ValueId};
use crate::step::{AttentionShape, Step};

#[derive(Debug)]
struct Attention {
    shape: AttentionShape,
}

impl BlockBuilder {
    /// Attention of the queries `q` over the keys `k` and values `v`.
    pub fn attention(
        &mut self,
        name: &str,
        q: ValueId,
        k: ValueId,
        v: ValueId,
        shape: AttentionShape,
    ) -> ValueId {
        assert_eq!(shape.heads % shape.kv_heads, 0, "query heads in groups");
        assert_eq!(self.cols(q), shape.query_cols(), "columns of q");
        assert_eq!(self.cols(k), shape.key_cols(), "columns of k");
        assert_eq!(self.cols(v), shape.key_cols(), "columns of v");
        let o = self.value(name, shape.query_cols(), Life::Plain);
        let lse = self.value(&format!("{name}.lse"), shape.heads, Life::Saved);
        self.node(Box::new(Attention { shape }), vec![q, k, v], vec![o, lse]);
        o
    }
}

impl Op for Attention {
    fn forward(&self, node: &Node, emit: &mut Emit) {
        let (q, k, v) = (node.inputs[0], node.inputs[1], node.inputs[2]);
        let (o, lse) = (node.outputs[0], node.outputs[1]);
        emit.step(Step::Attention { q, k, v, o, lse, shape: self.shape });
    }

    fn backward(&self, node: &Node, dy: Option<ValueId>, wanted: &[bool], emit: &mut Emit) {
        let d_o = dy.expect("attention has a gradient");
        let shape = self.shape;
        let (q, k, v) = (node.inputs[0], node.inputs[1], node.inputs[2]);
        let (o, lse) = (node.outputs[0], node.outputs[1]);
        let delta = emit.value("delta", shape.heads, Life::Plain);
        emit.step(Step::AttentionDelta { o, d_o, delta, shape });
        if wanted[0] {
            let dq = emit.value("dq", shape.query_cols(), Life::Plain);
            emit.step(Step::AttentionBackwardQ { q, k, v, d_o, lse, delta, dq, shape });
            emit.contribute(q, Contribution::Value(dq));
        }
        if wanted[1] || wanted[2] {
            let dk = emit.value("dk", shape.key_cols(), Life::Plain);
            let dv = emit.value("dv", shape.key_cols(), Life::Plain);
            emit.step(Step::AttentionBackwardKv { q, k, v, d_o, lse, delta, dk, dv, shape });
            emit.contribute(k, Contribution::Value(dk));
            emit.contribute(v, Contribution::Value(dv));
        }
    }
}
