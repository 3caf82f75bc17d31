//! How fast a training step is, what it is made of, and how near the machine's limit it comes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use smidgen_kernels::Philox;
use smidgen_runtime::measure::{GemmRate, Packing};
use smidgen_runtime::profile::{Phase, Profile, Work};
use smidgen_runtime::{Engine, Pass};
use smidgen_text::Sequence;

use crate::adapter::{AdapterStart, LoraConfig};
use crate::base::Base;
use crate::error::{Error, Result};
use crate::method::{Method, Stepper};
use crate::optimizer::OptimizerConfig;
use crate::planning::{
    DataSize, check_length, plan_or_remedies, process_row, request, settings as settings_of,
};
use crate::session::trainable;
use crate::step::{StepSettings, fill};
use crate::train_config::{MemoryBudget, TrainConfig, check_method};

/// One setting to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchCase {
    /// Tokens of the one sequence of a step.
    pub tokens: usize,
    /// Rank of the adapter.
    pub rank: usize,
    /// Threads.
    pub threads: usize,
    /// The budget.
    pub memory: MemoryBudget,
}

/// What all cases have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchSettings {
    /// How steps find their direction.
    pub method: Method,
    /// The adapter, but for its rank.
    pub lora: LoraConfig,
    /// The optimiser.
    pub optimizer: OptimizerConfig,
    /// Rounds that are timed, after one that is not.
    pub rounds: usize,
    /// A folder for scratch files, as [`TrainConfig::spool`].
    pub spool: Option<PathBuf>,
}

/// What was measured one after another, so that a machine that drifts slows all of it alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Round {
    /// A training step.
    pub step: Duration,
    /// Two forwards with the loss of every token, together.
    pub two_forwards: Duration,
    /// FLOP/s of f32 products of [`GemmRate::SHAPE`], the mean before and after the step.
    pub gemm_rate: f64,
}

/// What one case takes.
#[derive(Clone, Debug)]
pub struct BenchReport {
    /// The case.
    pub case: BenchCase,
    /// Bytes that the plan of a run says.
    pub planned_bytes: u64,
    /// The most memory that was counted, 0 where the system does not tell: of steps and forwards
    /// both.
    pub peak_bytes: u64,
    /// The rounds.
    pub rounds: Vec<Round>,
    /// The timed steps together.
    pub profile: Profile,
    /// What the packing of one step's weights takes by itself.
    pub packing: Packing,
    /// FLOPs of one forward's products with frozen weights, the head's among them.
    pub linear_flops: u64,
}

impl BenchReport {
    /// Median over the rounds of what `of` takes from each.
    pub fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        let mut all: Vec<f64> = self.rounds.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        let middle = all.len() / 2;
        match all.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => all[middle],
            _ => (all[middle - 1] + all[middle]) / 2.0,
        }
    }

    /// Seconds of a step.
    pub fn seconds(&self) -> f64 {
        self.median(|r| r.step.as_secs_f64())
    }

    /// Time of a step over that of two forwards.
    pub fn forwards(&self) -> f64 {
        self.median(|r| r.step.as_secs_f64() / r.two_forwards.as_secs_f64())
    }

    /// Share of the rate of f32 products that the useful products with frozen weights reach over
    /// the whole step: one forward and one backward through each, nothing made again.
    pub fn gemm_share(&self) -> f64 {
        let useful = 2.0 * self.linear_flops as f64;
        self.median(|r| useful / r.step.as_secs_f64() / r.gemm_rate)
    }

    /// Share of the steps' time that a part of them took.
    pub fn share(&self, wanted: impl Fn(Phase, Work) -> bool) -> f64 {
        let steps: f64 = self.rounds.iter().map(|r| r.step.as_secs_f64()).sum();
        self.profile.total(wanted).time.as_secs_f64() / steps
    }

    /// Share of a step that turns blocks of weights into numbers: what packing takes less what
    /// packing the same panels from f32 takes.
    pub fn dequantisation_share(&self) -> f64 {
        let extra = self.packing.weights.saturating_sub(self.packing.numbers);
        extra.as_secs_f64() / self.seconds()
    }
}

/// Measures one case on random tokens. No file is written and no adapter is kept.
///
/// # Errors
/// A setting that can't be, a budget that is too small, or those of a step; see
/// [`Engine::train`] for what `cancel` does.
pub fn bench(
    base: &Base,
    case: BenchCase,
    settings: &BenchSettings,
    cancel: &AtomicBool,
) -> Result<BenchReport> {
    if case.tokens < 2 || settings.rounds == 0 {
        return Err(Error::setting("a bench takes at least 2 tokens and 1 round"));
    }
    let config = TrainConfig {
        method: settings.method,
        lora: LoraConfig { rank: case.rank, ..settings.lora.clone() },
        optimizer: settings.optimizer,
        memory: case.memory,
        threads: case.threads,
        spool: settings.spool.clone(),
        ..TrainConfig::default()
    };
    config.check()?;
    check_length(base, case.tokens)?;
    let process = process_row();
    let start = AdapterStart::random(base, &config.lora, config.seed)?;
    check_method(base, &config, start.shape())?;
    let size = DataSize { sequences: 1, longest: case.tokens, samples: 1 };
    let run = settings_of(base, &config, case.tokens);
    let request = request(base, start.shape(), &config, size, 0, &run, process)?;
    let plan = plan_or_remedies(base, &request)?;
    let planned_bytes = plan.peak_bytes;
    let weights = Arc::clone(&base.weights);
    let folder = config.spool.as_deref();
    let (mut adapter, optimizer) = trainable(base, start, &plan, &config, folder, true)?;
    let mut engine = Engine::new(base.blocks.as_ref(), weights, Arc::new(plan), &run)?;
    let mut stepper = Stepper::new(config.method, optimizer, &adapter)?;
    let mut rate = GemmRate::new(engine.kernels(), case.threads)?;
    let sequences = [random_tokens(case.tokens, base.info().vocabulary)];
    let mut pass = Pass::default();
    let mut rounds = Vec::new();
    for number in 0..=settings.rounds as u64 {
        if number == 1 {
            *engine.profile() = Profile::default();
        }
        let before = rate.measure();
        let settings = StepSettings { number: number + 1, rate: 1e-5, clip: None, seed: 0 };
        let begin = Instant::now();
        stepper.step(&mut engine, &mut adapter, &sequences, &settings, &mut pass, cancel)?;
        let step = begin.elapsed();
        let gemm_rate = (before + rate.measure()) / 2.0;
        let profile = *engine.profile();
        let begin = Instant::now();
        for _ in 0..2 {
            fill(&mut pass, &sequences, 0, case.tokens);
            engine.evaluate(&pass, &mut adapter.values, None)?;
        }
        let two_forwards = begin.elapsed();
        *engine.profile() = profile;
        if number > 0 {
            rounds.push(Round { step, two_forwards, gemm_rate });
        }
    }
    let profile = *engine.profile();
    let packing = engine.packing()?;
    let linear_flops = 2 * case.tokens as u64 * base.weights.linear_numbers() as u64;
    let peak_bytes = engine.meter().peak();
    Ok(BenchReport { case, planned_bytes, peak_bytes, rounds, profile, packing, linear_flops })
}

/// A sequence whose tokens are drawn evenly from the vocabulary.
fn random_tokens(tokens: usize, vocabulary: usize) -> Sequence {
    let philox = Philox::new(0);
    let ids: Vec<u32> = (0..tokens)
        .map(|i| ((u64::from(philox.block(i as u64, 0)[0]) * vocabulary as u64) >> 32) as u32)
        .collect();
    let targets = (0..tokens).map(|i| i > 0).collect();
    Sequence { ids, targets }
}
