//! The plan: which values are kept for the backward walk, where everything lies, what it adds up
//! to. Made once, at the longest sequence, before anything runs.

use std::collections::BTreeMap;
use std::fmt;

use crate::autodiff::{Differentiated, differentiate};
use crate::block::{Block, LoraSpec, ValueId};
use crate::layout::{ALIGN, Pins, Place, Program, lay_out};
use crate::schedule::{self, Kept};
use crate::table;

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
    /// Names of the optimiser's f32 states, each as large as the trainable factors.
    pub optimizer_state: Vec<&'static str>,
    /// Whether there is a backward walk; without one only what inference needs is laid out.
    pub backward: bool,
    /// What the peak must not exceed.
    pub budget: Budget,
    /// Whether blocks' inputs may wait in a scratch file for their backward.
    pub spool: bool,
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
    /// The kept values, in the order of [`Place::Kept`], with the numbers a token of each.
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
    /// Whether its input waits in the scratch file: written once the forward has run, read back
    /// into the same place before the backward.
    pub spooled: bool,
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
    /// Distinct layer programs.
    pub programs: Vec<LayerPrograms>,
    /// Every layer.
    pub layers: Vec<LayerPlan>,
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
     Shorten --max-seq-length, lower --lora-rank, train fewer --target-modules or layers, \
     take --optimizer sgd, or give at least {}",
    megabytes(*.needed), megabytes(*.budget), .largest.join(", "), megabytes(*.needed)
)]
pub struct OverBudget {
    /// Bytes of the smallest plan.
    pub needed: u64,
    /// Bytes that were allowed.
    pub budget: u64,
    /// The largest lines of the smallest plan.
    pub largest: Vec<String>,
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes.div_ceil(100_000) as f64 / 10.0)
}

/// Bytes of the buffer through which values of `numbers` go to the scratch file and come back.
pub fn spool_buffer(numbers: usize) -> usize {
    const MOST: usize = 64 * 1024;
    MOST.min(4 * numbers)
}

/// Widths of an MLP tile, the best first: wide tiles share work among threads better.
const MLP_TILES: [usize; 3] = [1024, 512, 256];

/// Makes the plan that recomputes least within the budget.
///
/// # Errors
/// [`OverBudget`] if even the smallest plan does not fit.
pub fn plan(model: &dyn Architecture, request: &Request) -> Result<Plan, OverBudget> {
    let mut plan = plan_arena(model, request)?;
    let WeightPages { window, all } = request.weights;
    plan.weights_stay = match request.budget {
        Budget::AtMost(bytes) => plan.peak_bytes.saturating_add(all) <= bytes,
        Budget::Least => false,
        Budget::Unlimited => true,
    };
    plan.weight_bytes = if plan.weights_stay { all } else { window };
    Ok(plan)
}

fn plan_arena(model: &dyn Architecture, request: &Request) -> Result<Plan, OverBudget> {
    let mut smallest: Option<Plan> = None;
    // The scratch file is used where memory alone does not do.
    for spool in [false, true] {
        for tile in MLP_TILES {
            let planner = Planner::new(model, request, tile);
            let most = if spool { planner.most_spooled() } else { 0 };
            if spool && most == 0 {
                break;
            }
            let least = planner.least(most);
            let room = match request.budget {
                Budget::AtMost(bytes) => bytes.checked_sub(least.peak_bytes),
                Budget::Unlimited => Some(u64::MAX),
                Budget::Least => None,
            };
            if let Some(room) = room {
                return Ok(planner.fewest_spooled(least, most, room));
            }
            if smallest.as_ref().is_none_or(|s| least.peak_bytes < s.peak_bytes) {
                smallest = Some(least);
            }
        }
    }
    let smallest = smallest.expect("there is a tile");
    let Budget::AtMost(budget) = request.budget else { return Ok(smallest) };
    let mut rows: Vec<&Row> = smallest.rows.iter().collect();
    rows.sort_by_key(|r| std::cmp::Reverse(r.bytes));
    let largest = rows.iter().take(3).map(|r| format!("{} {}", r.name, megabytes(r.bytes)));
    Err(OverBudget { needed: smallest.peak_bytes, budget, largest: largest.collect() })
}

/// FLOPs that keeping a number must save: below this, making it again is as fast as writing it
/// and reading it back.
const LEAST_SAVED: u64 = 64;

/// Layers that share a differentiated block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    kind: usize,
    trained: bool,
    input_wanted: bool,
}

/// Values kept together: all tiles of a wide value, or one value.
#[derive(Clone, Debug)]
struct Choice {
    values: Vec<ValueId>,
    cols: usize,
    flops_saved: u64,
}

struct Planner<'a> {
    model: &'a dyn Architecture,
    request: &'a Request,
    mlp_tile: usize,
    classes: BTreeMap<Class, (Differentiated, Vec<Choice>)>,
}

impl<'a> Planner<'a> {
    fn new(model: &'a dyn Architecture, request: &'a Request, mlp_tile: usize) -> Self {
        let mut planner = Self { model, request, mlp_tile, classes: BTreeMap::new() };
        for layer in 0..model.layers() {
            let class = planner.class(layer);
            if !planner.classes.contains_key(&class) {
                let block = differentiate(&planner.block(class), class.input_wanted);
                let choices = choices(&block, request.tokens);
                planner.classes.insert(class, (block, choices));
            }
        }
        planner
    }

    fn class(&self, layer: usize) -> Class {
        Class {
            kind: self.model.layer_kind(layer),
            trained: layer >= self.request.first_trained,
            input_wanted: layer > self.request.first_trained,
        }
    }

    fn block(&self, class: Class) -> Block {
        let lora = class.trained.then_some(&self.request.lora);
        self.model.layer_block(class.kind, lora, self.mlp_tile)
    }

    /// How many layers' inputs can wait in the scratch file.
    fn most_spooled(&self) -> usize {
        let allowed = self.request.spool && self.request.backward;
        if allowed { self.model.layers().saturating_sub(self.request.first_trained) } else { 0 }
    }

    /// The plan that keeps nothing but what every plan keeps, with the inputs of the first
    /// `spooled` trained layers in the scratch file.
    fn least(&self, spooled: usize) -> Plan {
        self.build(&vec![0; self.model.layers()], spooled)
    }

    /// The plan with as few of at most `most` inputs in the scratch file as fit within `room`
    /// bytes more than `least` takes, which has them all there; the rest of the room is spent.
    fn fewest_spooled(&self, least: Plan, most: usize, room: u64) -> Plan {
        let limit = least.peak_bytes.saturating_add(room);
        let (mut fewest, mut enough, mut best) = (0, most, least);
        while fewest < enough {
            let middle = (fewest + enough) / 2;
            let plan = self.least(middle);
            if plan.peak_bytes <= limit {
                (enough, best) = (middle, plan);
            } else {
                fewest = middle + 1;
            }
        }
        let room = limit - best.peak_bytes;
        self.spend(best, room, enough)
    }

    /// The plan that keeps what saves most within `room` bytes more than `least` takes. Kept
    /// values leave the scratch region: where that makes it smaller, what it frees is spent too.
    fn spend(&self, least: Plan, room: u64, spooled: usize) -> Plan {
        let limit = least.peak_bytes.saturating_add(room);
        // The region is as large as its fullest layer needs, so it may shrink with the last one.
        let all = self.build(&self.choose(u64::MAX).0, spooled);
        if all.peak_bytes <= limit {
            return all;
        }
        // More kinds of layer also mean longer lists of steps, so what was chosen may not fit.
        const TRIES: usize = 8;
        let (mut best, mut room) = (least, room);
        for _ in 0..TRIES {
            let (depth, left) = self.choose(room);
            let next = self.build(&depth, spooled);
            if let Some(over) = next.peak_bytes.checked_sub(limit).filter(|over| *over > 0) {
                room = room.saturating_sub(over);
                continue;
            }
            if next.flops >= best.flops {
                return best;
            }
            room = (room - left).saturating_add(limit - next.peak_bytes);
            best = next;
        }
        best
    }

    /// How many of its class's choices each layer takes: by FLOPs saved a byte, and among equals
    /// the last layers first, while they fit into `room` bytes. Also the bytes that are left.
    fn choose(&self, mut room: u64) -> (Vec<usize>, u64) {
        let mut offers = Vec::new();
        for layer in self.request.first_trained..self.model.layers() {
            let class = &self.classes[&self.class(layer)];
            let choices = if self.request.backward { class.1.as_slice() } else { &[] };
            let mut worst = f64::INFINITY;
            for (rank, choice) in choices.iter().enumerate() {
                worst = worst.min(choice.flops_saved as f64 / choice.cols as f64);
                offers.push((worst, layer, rank, choice));
            }
        }
        offers.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(a.2.cmp(&b.2)));
        let mut depth = vec![0; self.model.layers()];
        for (_, layer, rank, choice) in offers {
            let bytes: u64 = choice.values.iter().map(|v| self.value_bytes(layer, *v)).sum();
            if depth[layer] == rank && bytes <= room {
                depth[layer] += 1;
                room -= bytes;
            }
        }
        (depth, room)
    }

    fn value_bytes(&self, layer: usize, v: ValueId) -> u64 {
        let cols = self.classes[&self.class(layer)].0.values[v.0 as usize].cols;
        4 * padded(cols * self.request.tokens) as u64
    }

    /// The plan in which layer i takes the first `depth[i]` choices of its class, and the inputs of
    /// the first `spooled` trained layers wait in the scratch file.
    fn build(&self, depth: &[usize], spooled: usize) -> Plan {
        let tokens = self.request.tokens;
        let mut programs = Vec::new();
        let mut made: BTreeMap<(Class, usize), usize> = BTreeMap::new();
        let mut layers = Vec::new();
        let mut params = 0;
        for (layer, &depth) in depth.iter().enumerate() {
            let class = self.class(layer);
            let at = *made.entry((class, depth)).or_insert_with(|| {
                programs.push(self.layer_programs(class, depth));
                programs.len() - 1
            });
            let trained = class.trained && self.request.backward;
            layers.push(LayerPlan {
                programs: at,
                input: 0,
                output: 0,
                kept: vec![],
                trained,
                spooled: trained && layer < self.request.first_trained + spooled,
                params,
            });
            params += programs[at].block.param_len();
        }
        let embedding = self.embedding_program();
        let head = self.head_programs();
        let layer_programs = programs.iter().flat_map(|p: &LayerPrograms| {
            [p.forward.as_ref(), p.backward.as_ref(), Some(&p.infer)].into_iter().flatten()
        });
        let scratch = layer_programs
            .chain([&embedding.1, &head.2])
            .chain(self.request.backward.then_some(&head.1))
            .map(|p| p.scratch_len)
            .max()
            .expect("there are programs");
        let stream = scratch;
        let mut end = stream + padded(self.model.hidden() * tokens);
        let mut input = stream;
        // Where an input was that is in the scratch file by now.
        let mut free = None;
        for layer in &mut layers {
            layer.input = input;
            layer.output = input;
            if layer.trained {
                for (_, cols) in &programs[layer.programs].kept {
                    layer.kept.push(end);
                    end += padded(cols * tokens);
                }
                layer.output = free.take().unwrap_or_else(|| {
                    let new = end;
                    end += padded(self.model.hidden() * tokens);
                    new
                });
                input = layer.output;
                free = layer.spooled.then_some(layer.input);
            }
        }
        let gradient_len = match self.request.gradients {
            _ if !self.request.backward => 0,
            Gradients::Whole => params,
            Gradients::Block => programs.iter().map(|p| p.block.param_len()).max().unwrap_or(0),
        };
        let mut plan = Plan {
            tokens,
            mlp_tile: self.mlp_tile,
            programs,
            layers,
            embedding,
            head,
            stream,
            last: input,
            arena_len: end,
            param_len: params,
            gradient_len,
            gradients: self.request.gradients,
            rows: Vec::new(),
            peak_bytes: 0,
            flops: 0,
            weights_stay: false,
            weight_bytes: 0,
        };
        plan.rows = table::rows(&plan, self.request, self.model.hidden());
        plan.peak_bytes = plan.rows.iter().map(|r| r.bytes).sum();
        plan.flops = plan.count_flops(self.model.hidden());
        plan
    }

    fn layer_programs(&self, class: Class, depth: usize) -> LayerPrograms {
        let tokens = self.request.tokens;
        let (graph, choices) = &self.classes[&class];
        let input = graph.input.expect("a layer has an input");
        let output = graph.output.expect("a layer has an output");
        let infer_pins =
            Pins { pins: vec![(input, Place::Input, true)], result: Some((output, Place::Input)) };
        let infer = lay_out(schedule::forward(graph), &infer_pins, tokens);
        let block = self.block(class);
        if !class.trained || !self.request.backward {
            return LayerPrograms { block, forward: None, backward: None, infer, kept: vec![] };
        }
        let mut kept = schedule::always_kept(graph);
        kept.extend(choices[..depth].iter().flat_map(|c| c.values.iter().copied()));
        let kept_pins = |with: Vec<(ValueId, Place, bool)>| {
            let places = kept.iter().enumerate().map(|(i, v)| (*v, Place::Kept(i), false));
            with.into_iter().chain(places).collect::<Vec<_>>()
        };
        let ends = vec![(input, Place::Input, false), (output, Place::Output, false)];
        let forward = lay_out(
            schedule::forward(graph),
            &Pins { pins: kept_pins(ends), result: None },
            tokens,
        );
        let cotangent = graph.d_output.expect("a trained layer has a gradient");
        let ends = vec![(input, Place::Input, false), (cotangent, Place::Scratch(0), true)];
        let result = graph.d_input.map(|d| (d, Place::Scratch(0)));
        let pins = Pins { pins: kept_pins(ends), result };
        let backward = lay_out(schedule::backward(graph, &kept), &pins, tokens);
        let kept = kept.iter().map(|v| (*v, graph.values[v.0 as usize].cols)).collect();
        LayerPrograms { block, forward: Some(forward), backward: Some(backward), infer, kept }
    }

    fn embedding_program(&self) -> (Block, Program) {
        let block = self.model.embedding_block();
        let graph = differentiate(&block, false);
        let output = graph.output.expect("an embedding has an output");
        let pins = Pins { pins: vec![], result: Some((output, Place::Output)) };
        let program = lay_out(schedule::forward(&graph), &pins, self.request.tokens);
        (block, program)
    }

    fn head_programs(&self) -> (Block, Program, Program) {
        let block = self.model.head_block();
        let graph = differentiate(&block, true);
        let input = graph.input.expect("a head has an input");
        let d_input = graph.d_input.expect("a head has a gradient");
        let mut pins = Pins { pins: vec![(input, Place::Input, false)], result: None };
        let infer = lay_out(schedule::forward(&graph), &pins, self.request.tokens);
        pins.result = Some((d_input, Place::Scratch(0)));
        let train = lay_out(schedule::backward(&graph, &Kept::new()), &pins, self.request.tokens);
        (block, train, infer)
    }
}

pub(crate) fn padded(len: usize) -> usize {
    len.next_multiple_of(ALIGN)
}

/// What a block could keep beside what it always keeps, the best first: most FLOPs saved a byte,
/// given those before it.
fn choices(block: &Differentiated, tokens: usize) -> Vec<Choice> {
    let mut kept = schedule::always_kept(block);
    let mut chosen: Vec<Choice> = Vec::new();
    if block.backward.is_empty() {
        return chosen;
    }
    loop {
        let mut groups: BTreeMap<String, Vec<ValueId>> = BTreeMap::new();
        for (v, _, _) in schedule::keepable(block, &kept, tokens) {
            groups.entry(stem(&block.values[v.0 as usize].name)).or_default().push(v);
        }
        let base = schedule::recompute_flops(block, &kept, tokens);
        let best = groups
            .into_values()
            .map(|values| {
                let mut more = kept.clone();
                more.extend(values.iter().copied());
                let flops_saved =
                    base.saturating_sub(schedule::recompute_flops(block, &more, tokens));
                let cols = values.iter().map(|v| block.values[v.0 as usize].cols).sum();
                Choice { values, cols, flops_saved }
            })
            .filter(|c| c.flops_saved >= LEAST_SAVED * (c.cols * tokens) as u64)
            .max_by(|a, b| {
                let ratio = |c: &Choice| c.flops_saved as f64 / c.cols as f64;
                ratio(a).total_cmp(&ratio(b)).then(b.values.cmp(&a.values))
            });
        let Some(best) = best else { return chosen };
        kept.extend(best.values.iter().copied());
        chosen.push(best);
    }
}

/// A value's name without its tile.
pub(crate) fn stem(name: &str) -> String {
    name.split('[').next().unwrap_or(name).to_owned()
}

impl Plan {
    /// Bytes of the scratch file: each is written and read back once a pass.
    pub fn spool_bytes(&self, hidden: usize) -> u64 {
        let spooled = self.layers.iter().filter(|l| l.spooled).count();
        4 * (spooled * self.tokens * hidden) as u64
    }

    fn count_flops(&self, hidden: usize) -> u64 {
        let program = |p: &Program| -> u64 {
            p.steps
                .iter()
                .map(|s| s.flops(self.tokens, |v| p.values[v.0 as usize].cols))
                .sum::<u64>()
        };
        let layers: u64 = self
            .layers
            .iter()
            .map(|l| {
                let p = &self.programs[l.programs];
                match (&p.forward, &p.backward) {
                    (Some(f), Some(b)) => program(f) + program(b),
                    _ => program(&p.infer),
                }
            })
            .sum();
        let vocabulary = self.head.0.weights.iter().map(|w| w.rows).max().unwrap_or(0);
        layers + 4 * (self.tokens * hidden * vocabulary) as u64
    }
}
