//! The plan: which values are kept for the backward walk, where everything lies, what it adds up
//! to. Made once, at the longest sequence, before anything runs.

mod build;
mod classes;
mod ends;
mod search;

use std::fmt;
use std::ops::Range;

use crate::block::{Block, LoraSpec, ValueId};
use crate::cost::Rates;
use crate::layout::{ALIGN, Program};
use search::Search;

pub use search::{FORWARD_ROW_TILE, ROW_TILE};

/// A model as the planner and the runtime see it: blocks, and how many.
pub trait Architecture: fmt::Debug + Send + Sync {
    /// Layers between embedding and head.
    fn layers(&self) -> usize;

    /// Which kind of block a layer is. Layers of a kind share their programs.
    fn layer_kind(&self, layer: usize) -> usize;

    /// The block of a kind, with LoRA branches as `lora` says, its MLP in tiles of `mlp_tile`.
    fn layer_block(&self, kind: usize, lora: Option<&LoraSpec>, mlp_tile: usize) -> Block;

    /// From tokens to the first hidden state.
    fn embedding_block(&self) -> Block;

    /// From the last hidden state to the loss.
    fn head_block(&self) -> Block;

    /// Numbers a token in the hidden state.
    fn hidden(&self) -> usize;

    /// What names of a layer's tensors begin with.
    fn layer_prefix(&self, layer: usize) -> String;

    /// Tensors that are read into the architecture itself rather than by a block.
    fn other_tensors(&self) -> &[&str] {
        &[]
    }

    /// Angles a position of each rotation that blocks name: the inverse frequencies.
    fn rope_frequencies(&self) -> Vec<Vec<f32>>;
}

/// What the peak must not exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// So many bytes.
    AtMost(u64),
    /// As little as can be.
    Least,
    /// Whatever saves work.
    Unlimited,
}

/// How gradients of trainable factors are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradients {
    /// One block's at a time: each block is updated as soon as its backward is done.
    Block,
    /// All of them until the step's end: several passes a step, or clipping by the global norm.
    Whole,
}

/// How far a step walks back from the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backward {
    /// Not at all: the loss is all that is computed.
    Nothing,
    /// Through the head: to the gradient of the last hidden state.
    Head,
    /// Through the head and all layers down to the lowest with an adapter.
    Layers,
}

/// Which of the adapter's numbers live in a scratch file, one layer's at a time in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Paged {
    /// All are in memory.
    #[default]
    Nothing,
    /// The optimiser's state.
    State,
    /// The optimiser's state and the trainable factors.
    All,
}

/// Bytes to and from a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Read.
    pub read: u64,
    /// Written.
    pub written: u64,
}

/// A state of the optimiser, with something for each trainable number.
#[derive(Clone, Copy, Debug)]
pub struct OptimizerState {
    /// Its name in the table.
    pub name: &'static str,
    /// Words of 4 bytes that a layer with so many trainable numbers takes.
    pub words: fn(usize) -> usize,
}

impl OptimizerState {
    /// An f32 for each trainable number.
    pub fn f32(name: &'static str) -> Self {
        Self { name, words: |len| len }
    }
}

/// What a plan is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Rows of the longest pass.
    pub tokens: usize,
    /// What is trained.
    pub lora: LoraSpec,
    /// The lowest layer with an adapter.
    pub first_trained: usize,
    /// How gradients are held.
    pub gradients: Gradients,
    /// What the optimiser holds beside the trainable factors.
    pub optimizer_state: Vec<OptimizerState>,
    /// How far a step walks back; what lies beyond is laid out for inference only.
    pub backward: Backward,
    /// Share of the trained layers that a step walks back through: 1, or less where it passes some
    /// by. The memory does not depend on it.
    pub walked_back: f64,
    /// What the peak must not exceed.
    pub budget: Budget,
    /// Whether there may be a scratch file: for values that wait for their backward, and for
    /// factors and optimiser state of layers that are not at work.
    pub spool: bool,
    /// The most bytes that a step may write to scratch files; none for no limit. Flash wears out.
    pub spool_limit: Option<u64>,
    /// Bytes that a number takes in the scratch file where it waits for its backward: 4, or 2.
    pub spool_number: usize,
    /// What the caller reads from scratch files of its own in a step, and writes to them.
    pub own_traffic: Traffic,
    /// Passes that a step of the whole batch takes.
    pub passes: usize,
    /// How fast the machine is.
    pub rates: Rates,
    /// What lives beside the arena, known to the caller.
    pub fixed: Vec<Row>,
    /// Pages of the model file, which no budget counts.
    pub weights: WeightPages,
}

/// Bytes of the model file that may be in memory: read-only pages, the system's to drop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightPages {
    /// Those of a block at work and of the next one.
    pub window: u64,
    /// All that a step reads.
    pub all: u64,
    /// Those of the head among them, which a step reads once.
    pub head: u64,
}

/// A line of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The buffer.
    pub name: String,
    /// Its shape, in numbers unless said otherwise.
    pub shape: String,
    /// Its size.
    pub bytes: u64,
    /// When it lives.
    pub life: String,
    /// What it is for.
    pub why: String,
}

impl Row {
    /// A line.
    pub fn new(name: &str, shape: String, bytes: u64, life: &str, why: &str) -> Self {
        Self { name: name.into(), shape, bytes, life: life.into(), why: why.into() }
    }
}

/// The programs of one kind of layer under one choice of what to keep.
#[derive(Debug)]
pub struct LayerPrograms {
    /// The block that they were made from: its weights and factors.
    pub block: Block,
    /// Forward, keeping what the backward starts from; none for an untrained layer.
    pub forward: Option<Program>,
    /// Backward; none for an untrained layer.
    pub backward: Option<Program>,
    /// Forward in place, keeping nothing.
    pub infer: Program,
    /// The kept values, in the order of [`crate::layout::Place::Kept`], with the numbers a token of
    /// each.
    pub kept: Vec<(ValueId, usize)>,
}

/// One layer of the plan: its programs and where its lasting values lie in the arena.
#[derive(Clone, Debug)]
pub struct LayerPlan {
    /// Index into [`Plan::programs`].
    pub programs: usize,
    /// Offset of the block's input.
    pub input: usize,
    /// Offset of the block's output.
    pub output: usize,
    /// Offsets of kept values.
    pub kept: Vec<usize>,
    /// Whether the layer has an adapter.
    pub trained: bool,
    /// Where in the scratch file, in numbers, its input and then its kept values wait: written
    /// once the forward has run, read back into the same places before the backward. None for a
    /// layer whose values stay in memory.
    pub spooled: Option<usize>,
    /// Start of the layer's factors among all trainable numbers.
    pub params: usize,
}

/// What runs where, and what it takes.
#[derive(Debug)]
pub struct Plan {
    /// Rows of the longest pass.
    pub tokens: usize,
    /// Hidden columns of an MLP worked on at a time.
    pub mlp_tile: usize,
    /// Rows worked on at a time; none for all at once.
    pub row_tile: Option<usize>,
    /// Rows of the longest pass through the head with its gradient. Fewer than `tokens` where rows
    /// are in bands and the step's backward ends there.
    pub head_rows: usize,
    /// Distinct layer programs.
    pub programs: Vec<LayerPrograms>,
    /// Every layer.
    pub layers: Vec<LayerPlan>,
    /// Trained layers, in runs that are at work together. The forward keeps only the input of
    /// each run but the last, and runs its layers again when their backward comes.
    pub segments: Vec<Range<usize>>,
    /// Where kept values lie that layers have in turn.
    pub shared: Range<usize>,
    /// Which numbers of the adapter live in a scratch file.
    pub paged: Paged,
    /// Numbers in the scratch file of values that wait for their backward.
    pub spool_len: usize,
    /// The embedding block and its program, whose output goes to `stream`.
    pub embedding: (Block, Program),
    /// The head block, its program for training and the one for evaluation.
    pub head: (Block, Program, Program),
    /// Offset of the hidden state that enters the first trained layer; evaluation and the layers
    /// below work on it in place.
    pub stream: usize,
    /// Offset of the last hidden state.
    pub last: usize,
    /// Numbers in the arena.
    pub arena_len: usize,
    /// Trainable numbers.
    pub param_len: usize,
    /// Numbers in the gradient buffer.
    pub gradient_len: usize,
    /// How gradients are held.
    pub gradients: Gradients,
    /// The table; its bytes sum to `peak_bytes`.
    pub rows: Vec<Row>,
    /// Bytes at the peak.
    pub peak_bytes: u64,
    /// FLOPs of one pass over `tokens` rows, forward and backward with what is made again.
    pub flops: u64,
    /// Seconds of a step of the whole batch at full length, as the rates say.
    pub seconds: f64,
    /// Bytes that a step of the whole batch reads from the scratch file, and writes to it.
    pub scratch_traffic: Traffic,
    /// Whether the model file's pages stay in memory between blocks. They do where the budget has
    /// room for all of them beside the peak.
    pub weights_stay: bool,
    /// Bytes of the model file in memory at a time.
    pub weight_bytes: u64,
}

/// The budget is too small for any plan.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "the smallest plan needs {} and the budget is {}; the largest parts are {}. \
     Give at least {}, shorten --max-seq-length, lower --lora-rank, train fewer --target-modules \
     or layers, or take --optimizer sgd{}",
    megabytes(*.needed), megabytes(*.budget), .largest.join(", "), megabytes(*.needed),
    .remedies.iter().map(Remedy::to_string).collect::<String>()
)]
pub struct OverBudget {
    /// Bytes of the smallest plan.
    pub needed: u64,
    /// Bytes that were allowed.
    pub budget: u64,
    /// The largest lines of the smallest plan.
    pub largest: Vec<String>,
    /// What changes of settings would bring, where that was asked for: see [`remedies`].
    pub remedies: Vec<Remedy>,
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes.div_ceil(100_000) as f64 / 10.0)
}

/// Makes the plan that is expected to take the least time within the budget.
///
/// All that the planner chooses among is laid out beforehand, whatever the budget: a larger budget
/// allows all that a smaller one does, so it is never planned slower.
///
/// # Errors
/// [`OverBudget`] if even the smallest plan does not fit.
pub fn plan(model: &dyn Architecture, request: &Request) -> Result<Plan, OverBudget> {
    let search = Search::new(model, request);
    let Some(chosen) = search.best(request.budget) else {
        let Budget::AtMost(budget) = request.budget else {
            unreachable!("only an amount refuses every plan")
        };
        let least = search.best(Budget::Least).expect("there is a plan");
        let least = search.build(&least);
        let mut rows: Vec<&Row> = least.rows.iter().collect();
        rows.sort_by_key(|r| std::cmp::Reverse(r.bytes));
        let largest = rows.iter().take(3).map(|r| format!("{} {}", r.name, megabytes(r.bytes)));
        return Err(OverBudget {
            needed: least.peak_bytes,
            budget,
            largest: largest.collect(),
            remedies: vec![],
        });
    };
    Ok(search.build(&chosen))
}

/// A change of settings that makes the smallest plan smaller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// What to change.
    pub change: String,
    /// Bytes of the smallest plan then, all else as it was.
    pub needed: u64,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n  with {}: {}", self.change, megabytes(self.needed))
    }
}

/// What each change of settings by itself would bring: half the tokens, half the rank, adapters on
/// queries and values only, no optimiser state, a scratch file. Changes that bring nothing are
/// left out. The caller's [`Request::fixed`] lines are taken as they are.
pub fn remedies(model: &dyn Architecture, request: &Request) -> Vec<Remedy> {
    let least = |request: &Request| {
        let search = Search::new(model, request);
        search.best(Budget::Least).map_or(u64::MAX, |(_, estimate)| estimate.peak)
    };
    let LoraSpec { rank, modules, .. } = &request.lora;
    let lora = |change: LoraSpec| Request { lora: change, ..request.clone() };
    let few: Vec<String> = modules
        .iter()
        .filter(|m| m.ends_with("q_proj") || m.ends_with("v_proj"))
        .cloned()
        .collect();
    let mut changes = vec![
        (
            format!("--max-seq-length {}", request.tokens / 2),
            Request { tokens: request.tokens / 2, ..request.clone() },
            request.tokens >= 4,
        ),
        (
            format!("--lora-rank {}", rank / 2),
            lora(LoraSpec { rank: rank / 2, ..request.lora.clone() }),
            *rank >= 2,
        ),
        (
            "--target-modules q_proj,v_proj".to_owned(),
            lora(LoraSpec { modules: few.clone(), ..request.lora.clone() }),
            !few.is_empty() && few.len() < modules.len(),
        ),
        (
            "--optimizer sgd".to_owned(),
            Request { optimizer_state: vec![], ..request.clone() },
            !request.optimizer_state.is_empty(),
        ),
        (
            "a scratch file (no --no-spool)".to_owned(),
            Request { spool: true, ..request.clone() },
            !request.spool && request.backward == Backward::Layers,
        ),
    ];
    changes.retain(|(.., applies)| *applies);
    let now = least(request);
    let changes =
        changes.into_iter().map(|(change, then, _)| Remedy { change, needed: least(&then) });
    changes.filter(|remedy| remedy.needed < now).collect()
}

/// A plan that no other one beats in both memory and time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CurvePoint {
    /// Bytes at the peak, which as a budget give this plan.
    pub peak_bytes: u64,
    /// Seconds of a step, as the rates say.
    pub seconds: f64,
    /// To and from the scratch file, a step.
    pub scratch_traffic: Traffic,
}

/// Peak against time: all plans that some budget gives, from the smallest to the fastest.
/// [`Request::budget`] is not looked at.
pub fn curve(model: &dyn Architecture, request: &Request) -> Vec<CurvePoint> {
    Search::new(model, request).front()
}

pub(crate) fn padded(len: usize) -> usize {
    len.next_multiple_of(ALIGN)
}

/// A value's name without its tile.
pub(crate) fn stem(name: &str) -> &str {
    name.split('[').next().unwrap_or(name)
}

impl Plan {
    /// Where each layer's factors lie among all trainable numbers, for layers that have some.
    pub fn param_ranges(&self) -> Vec<Range<usize>> {
        let range =
            |l: &LayerPlan| l.params..l.params + self.programs[l.programs].block.param_len();
        self.layers.iter().map(range).filter(|r| !r.is_empty()).collect()
    }

    /// Numbers in the factors of the largest layer.
    pub fn largest_params(&self) -> usize {
        self.param_ranges().iter().map(Range::len).max().unwrap_or(0)
    }
}
