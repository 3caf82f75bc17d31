//! The block graph: coarse ops over values, frozen weights and trainable factors.

use std::ops::Range;

use crate::ops::Op;
use crate::step::Start;

/// A tensor of a block: one row per token, `cols` f32 numbers a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub u32);

/// A frozen tensor of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WeightId(pub u32);

/// A trainable LoRA factor of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub u32);

/// How long a value may have to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Freed after its last use; kept for the backward walk only if the plan says so.
    Plain,
    /// So small beside what it saves that every plan keeps it: LoRA's h, 1/RMS, log-sum-exp.
    Saved,
    /// One tile of a wide hidden layer: when it is made again for the sake of a value outside
    /// its tile, it does not outlive that use.
    Tile,
}

/// What is known of a value before any number is.
#[derive(Clone, Debug)]
pub struct Value {
    /// For people reading the plan.
    pub name: String,
    /// Numbers a token.
    pub cols: usize,
    /// How long it may have to live.
    pub life: Life,
}

/// A frozen tensor that a block reads, named as in the file without the layer's prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSlot {
    /// `attn_q.weight`, `attn_norm.weight`, ...
    pub tensor: String,
    /// Outputs of a projection; 1 for a vector.
    pub rows: usize,
    /// Inputs of a projection; the length of a vector.
    pub cols: usize,
}

/// Which of the two factors of a LoRA pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// A, `[rank, inputs]`.
    A,
    /// B, held transposed: `[rank, outputs]`, so that both factors take the same kernels.
    B,
}

/// A trainable factor of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSlot {
    /// Module path below the layer: `self_attn.q_proj`.
    pub module: String,
    /// A or B.
    pub factor: Factor,
    /// The rank.
    pub rows: usize,
    /// Inputs (A) or outputs (B).
    pub cols: usize,
}

impl ParamSlot {
    /// Numbers in the factor.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The trainable branch beside a frozen projection: y = W x + scale B (A drop(x)).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lora {
    /// A, `[rank, inputs]`.
    pub a: ParamId,
    /// Bᵀ, `[rank, outputs]`.
    pub b: ParamId,
    /// The rank.
    pub rank: usize,
    /// alpha / rank.
    pub scale: f32,
    /// Probability that an input element is dropped, 0 for none.
    pub dropout: f32,
    /// Number of the projection in its block, which keys the dropout mask.
    pub site: u32,
}

/// A frozen linear map with an optional bias and an optional LoRA branch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Projection {
    /// W, `[outputs, inputs]`.
    pub weight: WeightId,
    /// Added to every row.
    pub bias: Option<WeightId>,
    /// The trainable branch.
    pub lora: Option<Lora>,
    /// Numbers in.
    pub inputs: usize,
    /// Numbers out.
    pub outputs: usize,
}

impl Projection {
    /// What its outputs from `first` on start from.
    pub(crate) fn start(&self, first: usize) -> Start {
        self.bias.map_or(Start::Zero, |vector| Start::Bias { vector, first })
    }
}

/// Where in a block a projection sits, in both worlds' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Module path below the layer, as checkpoints name it: `self_attn.q_proj`.
    pub module: &'static str,
    /// GGUF's name below the layer, without `.weight`: `attn_q`.
    pub tensor: &'static str,
}

/// Which projections get a LoRA branch, and what kind.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSpec {
    /// Columns of B.
    pub rank: usize,
    /// Factor on the branch: alpha / rank.
    pub scale: f32,
    /// Dropout on the branch's input.
    pub dropout: f32,
    /// Module paths below the layer.
    pub modules: Vec<String>,
}

/// One op of a block with the values it reads and writes.
#[derive(Debug)]
pub struct Node {
    /// What it computes.
    pub op: Box<dyn Op>,
    /// What it reads.
    pub inputs: Vec<ValueId>,
    /// What it writes: the result first, then what its rule wants saved.
    pub outputs: Vec<ValueId>,
}

/// A block: straight-line ops from one hidden state to the next.
#[derive(Debug)]
pub struct Block {
    /// For people: `layer`, `head`, ...
    pub name: String,
    /// Every value, by [`ValueId`].
    pub values: Vec<Value>,
    /// Ops in the order they run.
    pub nodes: Vec<Node>,
    /// Every frozen tensor, by [`WeightId`].
    pub weights: Vec<WeightSlot>,
    /// Every trainable factor, by [`ParamId`].
    pub params: Vec<ParamSlot>,
    /// The hidden state that comes in, if one does.
    pub input: Option<ValueId>,
    /// The hidden state that goes out, if one does.
    pub output: Option<ValueId>,
}

impl Block {
    /// Numbers in all trainable factors together.
    pub fn param_len(&self) -> usize {
        self.params.iter().map(ParamSlot::len).sum()
    }

    /// Where a factor lies in the block's run of trainable numbers.
    pub fn param_range(&self, param: ParamId) -> Range<usize> {
        let at = param.0 as usize;
        let start = self.params[..at].iter().map(ParamSlot::len).sum();
        start..start + self.params[at].len()
    }
}

/// Builds a block op by op; each op's file adds its own method.
#[derive(Debug)]
pub struct BlockBuilder {
    pub(crate) block: Block,
    lora: Option<LoraSpec>,
    /// Hidden columns of an MLP worked on at a time.
    pub(crate) mlp_tile: usize,
    sites: u32,
}

impl BlockBuilder {
    /// An empty block whose projections get a LoRA branch as `lora` says, and whose MLP works
    /// on `mlp_tile` hidden columns at a time (a multiple of the GEMM's grain).
    pub fn new(name: &str, lora: Option<&LoraSpec>, mlp_tile: usize) -> Self {
        assert!(mlp_tile > 0 && mlp_tile.is_multiple_of(crate::GRAIN), "MLP tile of {mlp_tile}");
        let block = Block {
            name: name.to_owned(),
            values: Vec::new(),
            nodes: Vec::new(),
            weights: Vec::new(),
            params: Vec::new(),
            input: None,
            output: None,
        };
        Self { block, lora: lora.cloned(), mlp_tile, sites: 0 }
    }

    /// The hidden state that comes in.
    pub fn input(&mut self, cols: usize) -> ValueId {
        let id = self.value("input", cols, Life::Plain);
        self.block.input = Some(id);
        id
    }

    /// The finished block, whose output is `output`.
    pub fn finish(mut self, output: Option<ValueId>) -> Block {
        self.block.output = output;
        self.block
    }

    /// A frozen vector.
    pub fn vector(&mut self, tensor: &str, cols: usize) -> WeightId {
        self.weight(tensor, 1, cols)
    }

    /// A frozen matrix.
    pub fn weight(&mut self, tensor: &str, rows: usize, cols: usize) -> WeightId {
        self.block.weights.push(WeightSlot { tensor: tensor.to_owned(), rows, cols });
        WeightId(self.block.weights.len() as u32 - 1)
    }

    /// A projection, with the LoRA branch that the specification gives its site.
    pub fn projection(
        &mut self,
        site: Site,
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) -> Projection {
        let weight = self.weight(&format!("{}.weight", site.tensor), outputs, inputs);
        let bias = bias.then(|| self.vector(&format!("{}.bias", site.tensor), outputs));
        let number = self.sites;
        self.sites += 1;
        let spec = self.lora.as_ref().filter(|l| l.modules.iter().any(|m| m == site.module));
        let lora = spec.cloned().map(|spec| {
            let mut param = |factor, cols| {
                let module = site.module.to_owned();
                self.block.params.push(ParamSlot { module, factor, rows: spec.rank, cols });
                ParamId(self.block.params.len() as u32 - 1)
            };
            Lora {
                a: param(Factor::A, inputs),
                b: param(Factor::B, outputs),
                rank: spec.rank,
                scale: spec.scale,
                dropout: spec.dropout,
                site: number,
            }
        });
        Projection { weight, bias, lora, inputs, outputs }
    }

    /// A new value.
    pub fn value(&mut self, name: &str, cols: usize, life: Life) -> ValueId {
        self.block.values.push(Value { name: name.to_owned(), cols, life });
        ValueId(self.block.values.len() as u32 - 1)
    }

    /// Numbers a token in `value`.
    pub fn cols(&self, value: ValueId) -> usize {
        self.block.values[value.0 as usize].cols
    }

    /// Adds an op and returns its first output.
    pub fn node(
        &mut self,
        op: Box<dyn Op>,
        inputs: Vec<ValueId>,
        outputs: Vec<ValueId>,
    ) -> Option<ValueId> {
        let first = outputs.first().copied();
        self.block.nodes.push(Node { op, inputs, outputs });
        first
    }
}
