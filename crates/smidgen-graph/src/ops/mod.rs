//! Ops: each one's forward steps and its vector-Jacobian rule, one file an op.

mod add;
mod attention;
mod embedding;
mod gated_mlp;
mod head;
mod layer_norm;
mod linear;
mod lora;
mod mlp_tiles;
mod plain_mlp;
mod positions;
mod rmsnorm;
mod rope;
mod scale;

pub use gated_mlp::Mlp;
pub use head::HEAD_TILE;

use std::fmt::Debug;

use crate::block::{Life, Node, Value, ValueId};
use crate::step::{Step, Term};

/// An operation of a block.
///
/// An op knows two things: the steps that compute its outputs, and the steps that turn the
/// gradient of its result into gradients of its inputs and of its trainable factors. What the
/// steps cost is read off the steps.
pub trait Op: Debug + Send + Sync {
    /// Emits the steps that compute the node's outputs from its inputs.
    fn forward(&self, node: &Node, emit: &mut Emit);

    /// Emits the rule. `dy` is the gradient of the first output (none for an op without one),
    /// `wanted` says which inputs need a gradient; each such gradient is handed to
    /// [`Emit::contribute`].
    fn backward(&self, node: &Node, dy: Option<ValueId>, wanted: &[bool], emit: &mut Emit);

    /// Whether the op holds trainable factors.
    fn has_params(&self) -> bool {
        false
    }
}

/// A share of the gradient of a value, from one of its readers.
#[derive(Clone, Debug)]
pub enum Contribution {
    /// Already computed.
    Value(ValueId),
    /// Products that are left to one GEMM over all readers: frozen weights first, in the order
    /// of the readers, then LoRA, in the same order.
    Products {
        /// Through frozen weights.
        frozen: Vec<Term>,
        /// Through LoRA's A.
        lora: Vec<Term>,
    },
}

/// Where ops put their steps.
#[derive(Debug)]
pub struct Emit {
    pub(crate) values: Vec<Value>,
    pub(crate) steps: Vec<Step>,
    pub(crate) contributions: Vec<(ValueId, Contribution)>,
}

impl Emit {
    /// Continues the numbering of `values`.
    pub fn new(values: Vec<Value>) -> Self {
        Self { values, steps: Vec::new(), contributions: Vec::new() }
    }

    /// Appends a step.
    pub fn step(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// A new value.
    pub fn value(&mut self, name: &str, cols: usize, life: Life) -> ValueId {
        self.values.push(Value { name: name.to_owned(), cols, life });
        ValueId(self.values.len() as u32 - 1)
    }

    /// Numbers a token in `value`.
    pub fn cols(&self, value: ValueId) -> usize {
        self.values[value.0 as usize].cols
    }

    /// Hands over a share of the gradient of `value`.
    pub fn contribute(&mut self, value: ValueId, share: Contribution) {
        self.contributions.push((value, share));
    }
}
