//! What a run asks the planner for, and plans of runs whose data is not there yet.

use std::path::Path;

use smidgen_graph::plan::{CurvePoint, Plan, Request, Traffic, curve, plan, remedies};
use smidgen_graph::{Backward, Budget, Gradients, OverBudget, Rates, Row};
use smidgen_kernels::Kernels;
use smidgen_runtime::memory::{self, RunPhase};
use smidgen_runtime::{Settings, SpoolFormat, fixed_rows};
use smidgen_text::{Dataset, Packs, Sequence};

use crate::adapter::{AdapterNote, AdapterShape, AdapterStart, InitLoraWeights};
use crate::base::Base;
use crate::error::{Error, Result};
use crate::loftq::Loftq;
use crate::method::{Method, Side};
use crate::side::{SideRun, SideShape, SideSize};
use crate::train_config::{Length, TrainConfig, check_method};

/// What of a dataset decides the memory of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataSize {
    /// Sequences, or packs of them.
    pub sequences: usize,
    /// Tokens of the longest.
    pub longest: usize,
    /// Samples of a pack, at most; 1 without packs.
    pub samples: usize,
}

impl DataSize {
    pub fn of(data: &Dataset, packs: Option<&Packs>) -> Self {
        packs.map_or(Self { sequences: data.len(), longest: data.max_len(), samples: 1 }, |p| {
            Self { sequences: p.len(), longest: p.longest(), samples: p.most_samples() }
        })
    }

    /// Rows of the longest pass.
    pub fn tokens(self, longest_evaluation: usize) -> usize {
        self.longest.max(longest_evaluation)
    }
}

/// The plan of a run whose data is not there yet: as many sequences as a step takes, each of
/// `longest` tokens; with packs as many packs, each of as many samples as have room in `longest`
/// tokens.
///
/// # Errors
/// Those of [`crate::Planned::new`].
pub fn plan_ahead(base: &Base, longest: usize, config: &TrainConfig) -> Result<Plan> {
    plan_or_remedies(base, &ahead(base, longest, config)?)
}

/// Whether the budget is enough for such a run.
///
/// # Errors
/// Those of [`curve_ahead`].
pub fn fits_ahead(base: &Base, longest: usize, config: &TrainConfig) -> Result<bool> {
    Ok(plan(base.blocks.as_ref(), &ahead(base, longest, config)?).is_ok())
}

/// The plan, or a refusal that says what would help.
pub(crate) fn plan_or_remedies(base: &Base, request: &Request) -> Result<Plan> {
    let blocks = base.blocks.as_ref();
    let planned = plan(blocks, request);
    // What was looked at and dropped.
    smidgen_weights::release_free_heap();
    Ok(planned.map_err(|over| OverBudget { remedies: remedies(blocks, request), ..over })?)
}

/// What every budget would give such a run: peak against time, from the smallest plan to the
/// fastest. The configuration's own budget is not looked at.
///
/// # Errors
/// A setting that can't be, or an adapter to start from that does not fit.
pub fn curve_ahead(base: &Base, longest: usize, config: &TrainConfig) -> Result<Vec<CurvePoint>> {
    Ok(curve(base.blocks.as_ref(), &ahead(base, longest, config)?))
}

/// How fast this machine is with `threads` threads, with scratch files in `folder`: kernels on
/// made-up numbers and the disk, never a model. Takes about a second and 10 MB, so callers do it
/// once for a machine.
///
/// # Errors
/// Threads can't be started, or the folder can't be written to.
pub fn measure_rates(threads: usize, folder: Option<&Path>) -> Result<Rates> {
    Ok(smidgen_runtime::measure_rates(Kernels::detect(), threads, folder)?)
}

fn ahead(base: &Base, longest: usize, config: &TrainConfig) -> Result<Request> {
    config.check()?;
    let process = process_row();
    check_length(base, longest)?;
    let start = adapter_start(base, config)?.0;
    check_method(base, config, start.shape())?;
    let samples = if config.pack { (longest / SHORTEST).max(1) } else { 1 };
    let size = DataSize { sequences: config.sequences(), longest, samples };
    let settings = settings(base, config, longest);
    request(base, start.shape(), config, size, 0, &settings, process)
}

/// How an engine runs in which nothing is trained.
pub(crate) fn frozen_settings(
    base: &Base,
    threads: usize,
    positions: usize,
    phase: RunPhase,
) -> Settings {
    Settings {
        kernels: Kernels::detect(),
        threads,
        positions,
        spool_folder: None,
        spool_format: SpoolFormat::F32,
        meter: base.meter().next_run(phase),
    }
}

/// What such an engine asks for, with whatever memory is fastest and nothing beside the arena.
pub(crate) fn frozen_request(
    base: &Base,
    adapter: &AdapterShape,
    tokens: usize,
    backward: Backward,
) -> Request {
    Request {
        tokens,
        lora: adapter.spec().clone(),
        first_trained: adapter.first_layer(),
        gradients: Gradients::Block,
        optimizer_state: vec![],
        backward,
        walked_back: 1.0,
        budget: Budget::Unlimited,
        spool: false,
        spool_limit: None,
        spool_number: SpoolFormat::F32.bytes(),
        own_traffic: Traffic::default(),
        passes: 1,
        rates: Rates::REFERENCE,
        fixed: vec![],
        weights: base.weights.pages(),
    }
}

/// Refuses sequences that are longer than the model has positions.
pub(crate) fn check_length(base: &Base, tokens: usize) -> Result<()> {
    match base.info.positions.filter(|&positions| tokens > positions) {
        Some(positions) => Err(Error::setting(format!(
            "texts of {tokens} tokens are longer than the {positions} positions that the model has \
             learned; shorten them, as with --max-seq-length {positions}"
        ))),
        None => Ok(()),
    }
}

/// What a run starts from, and what is worth telling about it.
pub(crate) fn adapter_start(
    base: &Base,
    config: &TrainConfig,
) -> Result<(AdapterStart, Vec<AdapterNote>)> {
    if let Method::Side(side) = config.method {
        // Said before what the adapter would have to say.
        side.check(config)?;
        return Ok((AdapterStart::none(base), vec![]));
    }
    let new = match (&config.init_adapter, &config.init_lora_weights) {
        (Some(folder), _) => return AdapterStart::folder(base, folder),
        (None, InitLoraWeights::Gaussian) => AdapterStart::gaussian,
        (None, InitLoraWeights::Uniform | InitLoraWeights::Loftq { .. }) => AdapterStart::random,
    };
    Ok((new(base, &config.lora, config.seed)?, vec![]))
}

/// LoftQ, where the run starts with it; the process and the adapter's numbers take `held` bytes.
pub(crate) fn loftq_start(
    base: &Base,
    config: &TrainConfig,
    shape: &AdapterShape,
    held: u64,
) -> Result<Option<Loftq>> {
    match &config.init_lora_weights {
        InitLoraWeights::Loftq { source } => {
            let (threads, memory) = (config.threads, config.memory);
            Ok(Some(Loftq::open(base, shape, source, threads, held, memory)?))
        }
        _ => Ok(None),
    }
}

/// How passes of up to `tokens` rows are run. The meter watches the budget from here on.
pub(crate) fn settings(base: &Base, config: &TrainConfig, tokens: usize) -> Settings {
    Settings {
        kernels: Kernels::detect(),
        threads: config.threads,
        positions: tokens,
        spool_folder: config.spool.clone(),
        spool_format: config.spool_format,
        meter: base.meter().next_run(RunPhase::Starting),
    }
}

/// What the planner is asked for.
pub(crate) fn request(
    base: &Base,
    adapter: &AdapterShape,
    config: &TrainConfig,
    data: DataSize,
    longest_evaluation: usize,
    settings: &Settings,
    process: Row,
) -> Result<Request> {
    let tokens = data.tokens(longest_evaluation);
    let mut fixed = fixed_rows(base.blocks.as_ref(), &base.weights, settings, tokens);
    let held = config.sequences().min(data.sequences);
    // Side tuning reads a step's sequences one at a time.
    let read = if matches!(config.method, Method::Side(_)) { 1 } else { held };
    let packed = (data.samples - 1) * (SEQUENCE + PLACES);
    fixed.push(Row::new(
        "sequences",
        format!("{read} x {} tokens", data.longest),
        (read * (data.longest * 5 + SEQUENCE + packed) + tokens * 34 + data.sequences * 4) as u64,
        "whole run",
        "ids, masks and the order of an epoch",
    ));
    let mut own_traffic = Traffic::default();
    if let Method::Side(side) = config.method {
        let (shape, size) = side_of(base, side, config, data)?;
        own_traffic = side_traffic(&shape, &side, size, config);
        let (file, evaluates) = (own_traffic.written > 0, longest_evaluation > 0);
        fixed.extend(SideRun::plan_rows(&shape, (&side, size), tokens, file, evaluates));
    }
    let permutes = base.info.sites.iter().any(|site| base.info.permutation(*site).is_some());
    let copies = if permutes { 2 } else { 1 };
    let (turned, factors) = (copies * adapter.largest_b(), adapter.factors().count());
    fixed.push(Row::new(
        "saving",
        format!("{turned} and {factors} names"),
        (4 * turned + factors * FACTOR) as u64,
        "saving",
        "one B in the checkpoint's order of rows; the adapter's list of tensors",
    ));
    fixed.push(process);
    let backward = config.method.backward();
    let layers = base.info.layers - adapter.first_layer();
    if backward == Backward::Nothing {
        let largest = adapter.largest_layer();
        let why = "those of the block at work, as a direction moves them";
        fixed.push(Row::new(
            "perturbed factors",
            format!("{largest}"),
            4 * largest as u64,
            "whole run",
            why,
        ));
    }
    // One pass a step without clipping: each block can be updated as soon as it is done. A pack is
    // no longer than a pass.
    let gradients = match (held, config.clip) {
        (1, None) => Gradients::Block,
        _ => Gradients::Whole,
    };
    let budget = config.memory.resolve();
    if let Budget::AtMost(bytes) = budget {
        settings.meter.set_budget(Some(bytes));
    }
    Ok(Request {
        tokens,
        lora: adapter.spec().clone(),
        first_trained: adapter.first_layer(),
        gradients,
        optimizer_state: config.optimizer.state(),
        backward,
        walked_back: config.method.walked_back(layers),
        budget,
        spool: config.spool.is_some(),
        spool_limit: config.spool_limit,
        spool_number: config.spool_format.bytes(),
        own_traffic,
        passes: config.method.passes() * held.div_ceil((tokens / data.longest.max(1)).max(1)),
        rates: config.rates,
        fixed,
        weights: base.weights.pages(),
    })
}

/// A side network's tensors, and how much a run of it takes in at once.
pub(crate) fn side_of(
    base: &Base,
    side: Side,
    config: &TrainConfig,
    data: DataSize,
) -> Result<(SideShape, SideSize)> {
    let shape = SideShape::new(side.network, base.info.layers, base.info.hidden)?;
    let held = config.sequences().min(data.sequences);
    // A run of one epoch sees no sample twice.
    let comes_again = match config.length {
        Length::Epochs(epochs) => epochs > 1,
        Length::Iters(steps) => steps > data.sequences.div_ceil(config.sequences()) as u64,
    };
    let samples = if comes_again { data.sequences * data.samples } else { 0 };
    Ok((shape, SideSize { tokens: data.longest, step_tokens: held * data.longest, samples }))
}

/// What a step of side tuning writes to its scratch file, where rows wait for the network, and reads
/// from it; nothing where there is none, or where that would be more than may be written.
pub(crate) fn side_traffic(
    shape: &SideShape,
    side: &Side,
    size: SideSize,
    config: &TrainConfig,
) -> Traffic {
    let bytes = SideRun::waiting_bytes(shape, side, size);
    let may = config.spool.is_some() && config.spool_limit.is_none_or(|limit| bytes <= limit);
    let bytes = if may { bytes } else { 0 };
    Traffic { read: bytes, written: bytes }
}

/// Bytes of a sequence that is held beside its ids and its mask: two vectors and their blocks'
/// headers.
const SEQUENCE: usize = size_of::<Sequence>() + 48;

/// Bytes of a pack's further sample in the lists of a pass: its segment, its part of a band, its
/// blocks of queries and keys.
const PLACES: usize = 320;

/// Tokens of the shortest sample that has a target.
const SHORTEST: usize = 2;

/// Bytes of a LoRA factor in the lists that an adapter and its file's header are kept and written
/// from.
const FACTOR: usize = 320;

/// What threads' stacks, small buffers and the allocator's slack add once a run has started.
const GROWTH: u64 = 80_000;

/// The plan's line for what the process holds before the run makes anything.
pub(crate) fn process_row() -> Row {
    /// Where the system does not tell: a guess on the safe side.
    const UNKNOWN: u64 = 6_000_000;
    smidgen_weights::release_free_heap();
    let now = memory::usage().map_or(UNKNOWN, |u| u.counted);
    let why = "data, heap, stacks before the run, and a little for its start";
    // In steps, so that the same run has the same plan another time.
    let now = now.next_multiple_of(64 * 1024);
    Row::new("process", "bytes".into(), now + GROWTH, "whole run", why)
}
