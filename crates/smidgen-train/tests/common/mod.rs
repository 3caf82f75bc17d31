//! Models, engines and gradients for the tests of exactness.

#![allow(dead_code)] // Every test file takes what it needs.

pub mod runs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::Value;
use smidgen_graph::plan::{Plan, Request, Traffic, plan};
use smidgen_graph::{
    Architecture, Backward, Block, Budget, Factor, Gradients, LoraSpec, OverBudget, Paged, Rates,
    WeightPages,
};
use smidgen_kernels::{Kernels, Philox};
use smidgen_models::Info;
use smidgen_runtime::memory::Meter;
use smidgen_runtime::{Dropout, Engine, ModelWeights, Numbers, Pass, Settings, SpoolFormat};
use smidgen_train::{Adapter, Base, LoraConfig, Optimizer, OptimizerConfig, Sequence};
use smidgen_weights::{Gguf, gguf_rows_to_hf};

/// The families of `tests/golden`.
pub const FAMILIES: [&str; 4] = ["llama", "qwen2", "gemma3", "opt"];

/// Those whose gradient does not jump, so that differences of the loss tell it. A rectifier's does:
/// opt's gradient is held to PyTorch's (tests `golden`), and to differences where no unit is near
/// its kink (tests `toy_family`).
pub const SMOOTH: [&str; 3] = ["llama", "qwen2", "gemma3"];

/// A file of the repository, from its root.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// The tiny model of a family.
pub fn golden_model(family: &str) -> Model {
    Model::open(&repository(&format!("tests/golden/{family}.gguf")))
}

/// What PyTorch computed for a family.
pub fn golden_json(family: &str) -> Value {
    let json = std::fs::read(repository(&format!("tests/golden/{family}.json")));
    serde_json::from_slice(&json.expect("a golden file")).expect("JSON")
}

/// The two batches of a family's file.
pub fn golden_batches(json: &Value) -> Vec<Vec<Sequence>> {
    let batches = json["batches"].as_array().expect("batches").iter();
    batches
        .map(|b| b.as_array().expect("sequences").iter().map(golden_sequence).collect())
        .collect()
}

/// A sequence as the golden files have it.
pub fn golden_sequence(json: &Value) -> Sequence {
    let numbers = |key: &str| -> Vec<u32> {
        let list = json[key].as_array().expect("a list").iter();
        list.map(|n| n.as_u64().expect("a number") as u32).collect()
    };
    let targets = numbers("mask").into_iter().map(|m| m == 1).collect();
    Sequence { ids: numbers("ids"), targets }
}

/// A factor as PEFT holds it: B `[outputs, rank]` with rows in the checkpoint's order.
pub fn peft_order(info: &Info, module: &str, factor: Factor, x: &[f32], rank: usize) -> Vec<f32> {
    if factor == Factor::A {
        return x.to_vec();
    }
    let outputs = x.len() / rank;
    let rows: Vec<f32> = (0..x.len()).map(|i| x[i % rank * outputs + i / rank]).collect();
    let site = info.sites.iter().find(|s| s.module == module).expect("a known site");
    let Some(heads) = info.permutation(*site) else { return rows };
    let mut hf = vec![0.0; rows.len()];
    gguf_rows_to_hf(&rows, &mut hf, heads, rank);
    hf
}

/// A model twice: as the training crate opens it, and as what an engine takes.
#[derive(Debug)]
pub struct Model {
    pub base: Base,
    pub info: Info,
    pub blocks: Box<dyn Architecture>,
    pub weights: Arc<ModelWeights>,
}

impl Model {
    pub fn open(path: &Path) -> Self {
        let gguf = Gguf::open(path).expect("a model file");
        let model = smidgen_models::open(&gguf).expect("a known family");
        let weights = ModelWeights::bind(gguf, model.blocks.as_ref()).expect("its tensors");
        Self {
            base: Base::open(path).expect("a model"),
            info: model.info,
            blocks: model.blocks,
            weights: Arc::new(weights),
        }
    }

    /// An adapter with numbers in A and in B, so that every path has a gradient.
    pub fn adapter(&self, config: &LoraConfig) -> Adapter {
        let mut adapter = Adapter::new(&self.base, config, 7).expect("an adapter");
        random(1, 0.03, adapter.values().held_mut().expect("in memory"));
        adapter
    }

    /// How `adapter` is run over passes of `tokens` rows, with all memory and one thread.
    pub fn run(&self, adapter: &Adapter, tokens: usize) -> Run {
        Run::new(spec(adapter), first_layer(adapter), tokens)
    }

    pub fn engine(&self, run: &Run) -> Engine {
        run.engine(self.blocks.as_ref(), &self.weights)
    }

    pub fn plan(&self, run: &Run) -> Result<Plan, OverBudget> {
        run.plan(self.blocks.as_ref())
    }
}

/// The numbers of an adapter that is in memory.
pub fn numbers(adapter: &Adapter) -> &[f32] {
    adapter.held().expect("in memory")
}

/// All numbers, wherever they are.
pub fn all_numbers(adapter: &mut Adapter, engine: &Engine) -> Vec<f32> {
    let ranges = engine.plan().param_ranges();
    let piece = |range| adapter.values().piece(range).expect("numbers").to_vec();
    ranges.into_iter().flat_map(piece).collect()
}

impl Run {
    /// A copy of `adapter`, and an optimiser for it, each where the engine's plan says.
    pub fn trainee(&self, adapter: &Adapter, engine: &Engine) -> (Adapter, Optimizer) {
        let (plan, len) = (engine.plan(), adapter.len());
        let (runs, window) = (plan.param_ranges(), plan.largest_params());
        let folder = self.spool.as_deref().unwrap_or(Path::new("no folder"));
        let values = match plan.paged {
            Paged::All => {
                let mut values = Numbers::in_file(folder, len, window).expect("a file");
                for range in plan.param_ranges() {
                    let piece = values.piece_mut(range.clone()).expect("a piece");
                    piece.copy_from_slice(&numbers(adapter)[range]);
                }
                values
            }
            Paged::State | Paged::Nothing => numbers(adapter).to_vec().into(),
        };
        let optimizer = match plan.paged {
            Paged::Nothing => Optimizer::new(self.optimizer, &runs),
            _ => Optimizer::paged(self.optimizer, &runs, folder),
        };
        (adapter.shape().clone().adapter(values), optimizer.expect("a state"))
    }
}

/// What the planner takes of an adapter.
pub fn spec(adapter: &Adapter) -> LoraSpec {
    let mut modules: Vec<String> = Vec::new();
    for (_, module, _, _) in adapter.shape().factors() {
        if modules.iter().all(|m| m != module) {
            modules.push(module.to_owned());
        }
    }
    LoraSpec { modules, ..adapter.shape().spec().clone() }
}

/// The lowest layer that an adapter covers.
pub fn first_layer(adapter: &Adapter) -> usize {
    adapter.shape().factors().next().expect("an adapter has factors").0
}

/// How an engine is made: nothing here may change a number.
#[derive(Clone, Debug)]
pub struct Run {
    pub lora: LoraSpec,
    pub first_trained: usize,
    pub tokens: usize,
    pub gradients: Gradients,
    pub budget: Budget,
    pub kernels: Kernels,
    pub threads: usize,
    /// A width of MLP tiles instead of the planner's.
    pub mlp_tile: Option<usize>,
    /// A folder for a scratch file.
    pub spool: Option<std::path::PathBuf>,
    /// What is trained with; it does change numbers.
    pub optimizer: OptimizerConfig,
    /// How far a step walks back.
    pub backward: Backward,
}

impl Run {
    pub fn new(lora: LoraSpec, first_trained: usize, tokens: usize) -> Self {
        Self {
            lora,
            first_trained,
            tokens,
            gradients: Gradients::Whole,
            budget: Budget::Unlimited,
            kernels: Kernels::detect(),
            threads: 1,
            mlp_tile: None,
            spool: None,
            optimizer: OptimizerConfig::adamw(0.01),
            backward: Backward::Layers,
        }
    }

    pub fn plan(&self, blocks: &dyn Architecture) -> Result<Plan, OverBudget> {
        let request = Request {
            tokens: self.tokens,
            lora: self.lora.clone(),
            first_trained: self.first_trained,
            gradients: self.gradients,
            optimizer_state: self.optimizer.state(),
            backward: self.backward,
            walked_back: 1.0,
            budget: self.budget,
            spool: self.spool.is_some(),
            spool_limit: None,
            spool_number: 4,
            own_traffic: Traffic::default(),
            passes: 1,
            rates: Rates::REFERENCE,
            fixed: vec![],
            weights: WeightPages::default(),
        };
        match self.mlp_tile {
            Some(width) => plan(&Tiled { blocks, width }, &request),
            None => plan(blocks, &request),
        }
    }

    pub fn engine(&self, blocks: &dyn Architecture, weights: &Arc<ModelWeights>) -> Engine {
        let plan = Arc::new(self.plan(blocks).expect("a budget that suffices"));
        let (kernels, threads, positions) = (self.kernels, self.threads, self.tokens);
        let spool_folder = self.spool.clone();
        let (spool_format, meter) = (SpoolFormat::F32, Meter::default());
        let settings = Settings { kernels, threads, positions, spool_folder, spool_format, meter };
        Engine::new(blocks, Arc::clone(weights), plan, &settings).expect("an engine")
    }

    /// Budgets from the least to all, with plans that differ.
    pub fn budgets(&self, blocks: &dyn Architecture, steps: u64) -> Vec<Budget> {
        let peak = |budget| {
            let run = Self { budget, ..self.clone() };
            run.plan(blocks).expect("a plan without a limit").peak_bytes
        };
        let (least, most) = (peak(Budget::Least), peak(Budget::Unlimited));
        let between = (0..=steps).map(|i| Budget::AtMost(least + (most - least) * i / steps));
        [Budget::Least].into_iter().chain(between).chain([Budget::Unlimited]).collect()
    }
}

/// A model whose MLP works on tiles of a given width, whatever the planner would like.
#[derive(Debug)]
struct Tiled<'a> {
    blocks: &'a dyn Architecture,
    width: usize,
}

impl Architecture for Tiled<'_> {
    fn layers(&self) -> usize {
        self.blocks.layers()
    }

    fn layer_kind(&self, layer: usize) -> usize {
        self.blocks.layer_kind(layer)
    }

    fn layer_block(&self, kind: usize, lora: Option<&LoraSpec>, _: usize) -> Block {
        self.blocks.layer_block(kind, lora, self.width)
    }

    fn embedding_block(&self) -> Block {
        self.blocks.embedding_block()
    }

    fn head_block(&self) -> Block {
        self.blocks.head_block()
    }

    fn hidden(&self) -> usize {
        self.blocks.hidden()
    }

    fn layer_prefix(&self, layer: usize) -> String {
        self.blocks.layer_prefix(layer)
    }

    fn other_tensors(&self) -> &[&str] {
        self.blocks.other_tensors()
    }

    fn rope_frequencies(&self) -> Vec<Vec<f32>> {
        self.blocks.rope_frequencies()
    }
}

/// Calls `work` with each pass that `sequences` fill, as many a pass as the plan has room for.
fn passes(
    engine: &mut Engine,
    sequences: &[Sequence],
    dropout: Option<Dropout>,
    mut work: impl FnMut(&mut Engine, &Pass),
) {
    let targets: usize = sequences.iter().map(Sequence::target_count).sum();
    let weight = 1.0 / targets as f32;
    let rows = engine.plan().tokens;
    let mut pass = Pass { weight, dropout, ..Pass::default() };
    for (sample, sequence) in sequences.iter().enumerate() {
        if pass.rows() > 0 && pass.rows() + sequence.ids.len() > rows {
            work(engine, &pass);
            pass.clear();
        }
        pass.push(&sequence.ids, &sequence.targets, sample as u64);
    }
    work(engine, &pass);
}

fn targets(sequences: &[Sequence]) -> f64 {
    sequences.iter().map(Sequence::target_count).sum::<usize>() as f64
}

/// The mean loss of all targets, and its gradient for every factor.
pub fn gradient(
    engine: &mut Engine,
    params: &[f32],
    sequences: &[Sequence],
    dropout: Option<Dropout>,
) -> (f64, Vec<f32>) {
    let mut params = Numbers::from(params.to_vec());
    let mut found = vec![0.0; params.len()];
    let whole = engine.plan().gradients == Gradients::Whole;
    engine.gradients().fill(0.0);
    let mut sum = 0.0;
    passes(engine, sequences, dropout, |engine, pass| {
        let never = AtomicBool::new(false);
        let losses = engine.train(pass, &mut params, &never, &mut |range, _, gradients| {
            found[range].iter_mut().zip(gradients).for_each(|(sum, g)| *sum += *g);
            Ok(())
        });
        sum = losses.expect("losses").iter().fold(sum, |sum, loss| sum + loss.sum);
    });
    if whole {
        found.copy_from_slice(engine.gradients());
    }
    (sum / targets(sequences), found)
}

/// The gradient of the mean loss of all targets, of which `pass` says what is passed by; the engine
/// holds gradients whole.
pub fn pass_gradient(
    engine: &mut Engine,
    params: &[f32],
    sequences: &[Sequence],
    pass: &mut Pass,
) -> Vec<f32> {
    let mut params = Numbers::from(params.to_vec());
    let never = AtomicBool::new(false);
    engine.gradients().fill(0.0);
    pass.weight = 1.0 / targets(sequences) as f32;
    for (sample, sequence) in sequences.iter().enumerate() {
        pass.clear();
        pass.push(&sequence.ids, &sequence.targets, sample as u64);
        engine.train(pass, &mut params, &never, &mut |_, _, _| Ok(())).expect("losses");
    }
    engine.gradients().to_vec()
}

/// The mean loss of all targets.
pub fn loss(
    engine: &mut Engine,
    params: &[f32],
    sequences: &[Sequence],
    dropout: Option<Dropout>,
) -> f64 {
    let mut params = Numbers::from(params.to_vec());
    let mut sum = 0.0;
    passes(engine, sequences, dropout, |engine, pass| {
        let losses = engine.evaluate(pass, &mut params, None).expect("losses");
        sum = losses.iter().fold(sum, |sum, loss| sum + loss.sum);
    });
    sum / targets(sequences)
}

/// How far `gradient` is from differences of the loss, for each of `ranges` along `directions`
/// random directions u: the worst |difference - gradient . u| over |gradient|, the size that
/// gradient . u has on average.
///
/// The stencil (8 (L(h) - L(-h)) - (L(2h) - L(-2h))) / 12h leaves an error of order h^4; what the
/// loss's f32 rounding adds is of order 1 / h.
pub fn worst_difference(
    params: &[f32],
    gradient: &[f32],
    ranges: &[std::ops::Range<usize>],
    directions: u64,
    h: f64,
    mut loss: impl FnMut(&[f32]) -> f64,
) -> f64 {
    let mut worst: f64 = 0.0;
    for (i, range) in ranges.iter().enumerate() {
        for direction in 0..directions {
            let mut u = vec![0.0; range.len()];
            random(1000 + 100 * i as u64 + direction, 3f32.sqrt(), &mut u);
            let mut moved_loss = |step: f64| {
                let mut moved = params.to_vec();
                let numbers = moved[range.clone()].iter_mut().zip(&u);
                numbers.for_each(|(p, u)| *p = (f64::from(*p) + step * f64::from(*u)) as f32);
                loss(&moved)
            };
            let mut pair = |step: f64| moved_loss(step) - moved_loss(-step);
            let difference = (8.0 * pair(h) - pair(2.0 * h)) / (12.0 * h);
            let part = &gradient[range.clone()];
            let expected: f64 = part.iter().zip(&u).map(|(g, u)| f64::from(g * u)).sum();
            worst = worst.max((difference - expected).abs() / norm(part));
        }
    }
    worst
}

/// The Euclidean norm.
pub fn norm(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// |x - y| / |y|.
pub fn relative(x: &[f32], y: &[f32]) -> f64 {
    assert_eq!(x.len(), y.len(), "numbers to compare");
    let off: Vec<f32> = x.iter().zip(y).map(|(x, y)| x - y).collect();
    norm(&off) / norm(y)
}

/// The bits of numbers.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Numbers uniform in (-bound, bound), the same on every machine.
pub fn random(stream: u64, bound: f32, out: &mut [f32]) {
    Philox::new(99).uniform(stream, 0, out);
    out.iter_mut().for_each(|x| *x = bound * (2.0 * *x - 1.0));
}

/// Sequences of random tokens; of each, about every third token is no target.
pub fn sequences(vocabulary: usize, lengths: &[usize]) -> Vec<Sequence> {
    let sequence = |(i, &len): (usize, &usize)| {
        let mut numbers = vec![0.0; 2 * len];
        random(50 + i as u64, 0.5, &mut numbers);
        let (ids, masks) = numbers.split_at(len);
        let ids = ids.iter().map(|x| ((x + 0.5) * (vocabulary - 1) as f32) as u32);
        let targets = masks.iter().enumerate().map(|(t, x)| t > 0 && (t == 1 || *x > -0.17));
        Sequence { ids: ids.collect(), targets: targets.collect() }
    };
    lengths.iter().enumerate().map(sequence).collect()
}

/// Tensors of a safetensors file, all f32.
pub fn safetensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).expect("a safetensors file");
    let (length, rest) = bytes.split_first_chunk::<8>().expect("a header");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(header).expect("JSON");
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    let numbers = |(name, entry): (String, serde_json::Value)| {
        assert_eq!(entry["dtype"], "F32", "{name}");
        let at = |i: usize| entry["data_offsets"][i].as_u64().expect("an offset") as usize;
        let numbers = data[at(0)..at(1)].as_chunks::<4>().0.iter();
        (name, numbers.map(|b| f32::from_le_bytes(*b)).collect())
    };
    tensors.map(numbers).collect()
}

/// PEFT's name of a factor.
pub fn peft_name(info: &Info, layer: usize, module: &str, factor: Factor) -> String {
    let side = if factor == Factor::A { "A" } else { "B" };
    format!("base_model.model.{}.{layer}.{module}.lora_{side}.weight", info.layers_path)
}
