//! A run: planned, started, stepped, paused, saved.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use smidgen_graph::plan::{CurvePoint, Paged, Plan, Request, curve};
use smidgen_graph::{Budget, OptimizerState, Rates};
use smidgen_runtime::memory::{self, Meter, RunPhase};
use smidgen_runtime::{Engine, Numbers, Pass, Settings, SpoolFormat};
use smidgen_text::{Dataset, Fingerprint, Order, Packs, Sequence};

use crate::adapter::{
    Adapter, AdapterNote, AdapterShape, AdapterStart, InitLoraWeights, LoraConfig,
};
use crate::base::Base;
use crate::error::{Error, Result};
use crate::evaluate::{Evaluation, evaluate};
use crate::loftq::{Loftq, LoftqReport};
use crate::method::{Method, Stepper};
use crate::mezo::{Descent, Projection};
use crate::optimizer::{Optimizer, OptimizerConfig};
use crate::planning::{
    DataSize, adapter_start, loftq_start, plan_or_remedies, process_row, request, settings,
};
use crate::replay::Beginning;
use crate::schedule::{Schedule, Shape};
use crate::state::{Record, RunSettings, RunState, StateWriter};
use crate::step::StepSettings;

/// How long a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many optimiser steps.
    Iters(u64),
    /// So many times over the data.
    Epochs(u64),
}

/// The memory that a run may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryBudget {
    /// The smaller of 1 GB and half of what the machine and the control group have free.
    Auto,
    /// So many bytes.
    Bytes(u64),
    /// As little as can be.
    Min,
    /// Whatever saves work.
    Unlimited,
}

impl MemoryBudget {
    /// As the planner takes it; looks at the machine for [`MemoryBudget::Auto`].
    pub fn resolve(self) -> Budget {
        const AUTO: u64 = 1_000_000_000;
        match self {
            Self::Auto => Budget::AtMost(memory::available().map_or(AUTO, |a| AUTO.min(a / 2))),
            Self::Bytes(bytes) => Budget::AtMost(bytes),
            Self::Min => Budget::Least,
            Self::Unlimited => Budget::Unlimited,
        }
    }
}

/// All settings of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig {
    /// How steps find their direction.
    pub method: Method,
    /// What kind of adapter.
    pub lora: LoraConfig,
    /// Starts from this PEFT folder; its rank, alpha and targets replace those of `lora`.
    pub init_adapter: Option<PathBuf>,
    /// What the numbers of a new adapter are.
    pub init_lora_weights: InitLoraWeights,
    /// How long.
    pub length: Length,
    /// Sequences a step, or packs of them, times `grad_accumulation_steps`.
    pub batch_size: usize,
    /// Multiplies the batch; the mean is over all targets of the step.
    pub grad_accumulation_steps: usize,
    /// The optimiser.
    pub optimizer: OptimizerConfig,
    /// The highest rate.
    pub learning_rate: f64,
    /// B's rate is so many times A's: LoRA+ (arXiv:2402.12354); 1 for plain LoRA.
    pub loraplus_ratio: f64,
    /// How the rate goes on after warm-up.
    pub schedule: Shape,
    /// Steps over which the rate rises from zero.
    pub warmup: u64,
    /// Gradients are scaled down to this norm; none for no clipping.
    pub clip: Option<f64>,
    /// Whether whole samples share sequences of up to [`smidgen_text::WindowSpec::longest`]
    /// tokens, see [`Packs`]; attention and positions stay within each sample. The packs are the
    /// same in every epoch.
    pub pack: bool,
    /// Whether each epoch has an order of its own.
    pub shuffle: bool,
    /// Decides the start of A, the order and the dropout masks.
    pub seed: u64,
    /// The budget.
    pub memory: MemoryBudget,
    /// Threads.
    pub threads: usize,
    /// A folder on a disk for scratch files, which a budget that is small needs: values wait there
    /// for their backward, factors and optimiser state for their layer's turn. None for no such
    /// file. Nothing is written before [`Planned::start`], and nothing is left.
    pub spool: Option<PathBuf>,
    /// The most bytes that a step may write to scratch files; none for no limit. A smaller limit
    /// leaves a budget less to choose from.
    pub spool_limit: Option<u64>,
    /// How values are written that wait there for their backward. Bf16 halves what is written and
    /// changes the result wherever the plan has values wait; factors and state are always f32.
    pub spool_format: SpoolFormat,
    /// How fast the machine is, which decides what the plan does with its budget, and never a
    /// result. [`crate::measure_rates`] finds it out.
    pub rates: Rates,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            method: Method::Exact,
            lora: LoraConfig::default(),
            init_adapter: None,
            init_lora_weights: InitLoraWeights::Uniform,
            length: Length::Epochs(1),
            batch_size: 1,
            grad_accumulation_steps: 1,
            optimizer: OptimizerConfig::adamw(0.01),
            learning_rate: 1e-4,
            loraplus_ratio: 1.0,
            schedule: Shape::Constant,
            warmup: 0,
            clip: None,
            pack: false,
            shuffle: true,
            seed: 0,
            memory: MemoryBudget::Auto,
            threads: std::thread::available_parallelism().map_or(1, Into::into),
            spool: None,
            spool_limit: None,
            spool_format: SpoolFormat::F32,
            rates: Rates::REFERENCE,
        }
    }
}

impl TrainConfig {
    pub(crate) fn check(&self) -> Result<()> {
        let positive = |name: &str, n: usize| match n {
            0 => Err(Error::setting(format!("{name} 0: it is at least 1"))),
            _ => Ok(()),
        };
        positive("--batch-size", self.batch_size)?;
        positive("--grad-accumulation-steps", self.grad_accumulation_steps)?;
        positive("--threads", self.threads)?;
        if !(self.learning_rate >= 0.0 && self.learning_rate.is_finite()) {
            let rate = self.learning_rate;
            return Err(Error::setting(format!(
                "--learning-rate {rate}: it is at least 0, and finite"
            )));
        }
        if self.clip.is_some_and(|c| c.is_nan() || c <= 0.0) {
            return Err(Error::setting("--max-grad-norm: it is above 0"));
        }
        let ratio = self.loraplus_ratio;
        if !(ratio > 0.0 && ratio.is_finite()) {
            return Err(Error::setting(format!("--loraplus-ratio {ratio}: it must be above 0")));
        }
        if let (Some(folder), true) =
            (&self.init_adapter, self.init_lora_weights != InitLoraWeights::Uniform)
        {
            return Err(Error::setting(format!(
                "--init-adapter {} has numbers already; leave --init-lora-weights out",
                folder.display()
            )));
        }
        self.optimizer.check()?;
        if self.batch_size.checked_mul(self.grad_accumulation_steps).is_none_or(|n| n > 1 << 20) {
            return Err(Error::setting("more than 2^20 sequences a step"));
        }
        Ok(())
    }

    pub(crate) fn sequences(&self) -> usize {
        self.batch_size * self.grad_accumulation_steps
    }
}

/// A run whose memory is known and within the budget; nothing large was made yet.
#[derive(Debug)]
pub struct Planned {
    base: Base,
    data: Dataset,
    packs: Option<Packs>,
    config: TrainConfig,
    start: AdapterStart,
    plan: Plan,
    request: Request,
    settings: Settings,
    loftq: Option<Loftq>,
    notes: Vec<AdapterNote>,
    steps: u64,
    resumed: Option<RunState>,
}

impl Planned {
    /// Plans a run of `base` on `data`. `longest_evaluation` is the longest sequence that
    /// [`Session::evaluate`] will be given, 0 for none.
    ///
    /// # Errors
    /// The budget is too small, a setting can't be, the adapter to start from does not fit, or the
    /// data has nothing to pack.
    pub fn new(
        base: Base,
        data: Dataset,
        longest_evaluation: usize,
        config: TrainConfig,
    ) -> Result<Self> {
        config.check()?;
        let longest = data.spec().longest();
        let packs = config.pack.then(|| Packs::new(&data, longest)).transpose()?;
        let process = process_row();
        check_vocabulary(&base, &data)?;
        let (start, notes) = adapter_start(&base, &config)?;
        check_method(&base, &config, start.shape())?;
        let size = DataSize::of(&data, packs.as_ref());
        let settings = settings(&base, &config, size.tokens(longest_evaluation));
        let held = process.bytes;
        let request =
            request(&base, start.shape(), &config, size, longest_evaluation, &settings, process);
        let plan = plan_or_remedies(&base, &request)?;
        let numbers = match plan.paged {
            Paged::All => plan.largest_params(),
            Paged::State | Paged::Nothing => start.shape().len(),
        };
        let held = held + (numbers * size_of::<f32>()) as u64;
        let loftq = loftq_start(&base, &config, start.shape(), held)?;
        let steps_per_epoch = size.sequences.div_ceil(config.sequences()) as u64;
        let steps = match config.length {
            Length::Iters(n) => n,
            Length::Epochs(n) => n.saturating_mul(steps_per_epoch),
        };
        let resumed = None;
        Ok(Self {
            base,
            data,
            packs,
            config,
            start,
            plan,
            request,
            settings,
            loftq,
            notes,
            steps,
            resumed,
        })
    }

    /// The run that goes on where `state` was saved, in place of one that begins: its steps are
    /// those that the run which saved it would have taken, bit for bit. `force` lets data, model
    /// and settings differ, where the numbers still fit.
    ///
    /// # Errors
    /// [`Error::OtherRun`] names what differs. The state is past this run's end, or its numbers
    /// are those of another kind of adapter or optimiser.
    pub fn resume(mut self, state: RunState, force: bool) -> Result<Self> {
        state.check(&self.record()?, force)?;
        self.resumed = Some(state);
        Ok(self)
    }

    /// What is saved of the run beside its numbers, before its first step.
    fn record(&self) -> Result<Record> {
        let runs = self.plan.param_ranges();
        let words = |s: &OptimizerState| runs.iter().map(|run| (s.words)(run.len()) as u64).sum();
        Ok(Record {
            done: 0,
            steps: self.steps,
            numbers: self.start.shape().len() as u64,
            states: self.config.optimizer.state().iter().map(words).collect(),
            settings: self.run_settings()?,
        })
    }

    /// All that decides what the run's steps do.
    fn run_settings(&self) -> Result<RunSettings> {
        let (config, data, shape) = (&self.config, self.data.file().header(), self.start.shape());
        let (lora, window) = (shape.config(), self.data.spec());
        // Enough to tell two apart by.
        let short = |hex: String| hex[..16].to_owned();
        let source = Fingerprint(data.source_sha256[..16].try_into().expect("16 bytes"));
        let or_none = |x: Option<String>| x.unwrap_or_else(|| "none".to_owned());
        let mut all = RunSettings::new();
        let mut set = |name: &str, value: String| all.insert(name.to_owned(), value);
        set("the model", short(self.base.record()?.fingerprint.to_string()));
        set("the data", short(source.to_string()));
        set("the tokenizer", short(data.fingerprint.to_string()));
        set("--chat-template", or_none(data.chat_template.map(|f| short(f.to_string()))));
        set("the keys of its lines", or_none(data.features.map(|f| short(f.to_string()))));
        set("--mask-prompt", data.mask_prompt.to_string());
        set("--max-seq-length", window.max_seq_length.to_string());
        set("--chunks", or_none(window.chunks.map(|n| n.to_string())));
        set("--bos", window.bos.to_string());
        set("--method", config.method.to_string());
        set("the number of sequences a step", config.sequences().to_string());
        set("--pack", config.pack.to_string());
        set("--no-shuffle", (!config.shuffle).to_string());
        set("--seed", config.seed.to_string());
        set("--lora-rank", lora.rank.to_string());
        set("--lora-alpha", lora.alpha.to_string());
        set("--use-rslora", lora.use_rslora.to_string());
        set("--init-lora-weights", config.init_lora_weights.name().to_owned());
        set("--lora-dropout", lora.dropout.to_string());
        set("--target-modules", shape.spec().modules.join(","));
        set("--num-layers", (self.base.info.layers - shape.first_layer()).to_string());
        set("--optimizer", config.optimizer.to_string());
        set("--weight-decay", config.optimizer.weight_decay().to_string());
        set("--learning-rate", config.learning_rate.to_string());
        set("--loraplus-ratio", config.loraplus_ratio.to_string());
        set("--warmup", config.warmup.to_string());
        set("--max-grad-norm", or_none(config.clip.map(|c| c.to_string())));
        set("--spool-type", format!("{:?}", config.spool_format).to_lowercase());
        let falls = config.schedule != Shape::Constant;
        set("--lr-schedule", format!("{:?}", config.schedule).to_lowercase());
        // A run at a constant rate may be made longer or shorter.
        set("--iters", or_none(falls.then(|| self.steps.to_string())));
        Ok(all)
    }

    /// The plan: its table sums to its peak.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What every budget would give: see [`smidgen_graph::plan::curve`].
    pub fn curve(&self) -> Vec<CurvePoint> {
        curve(self.base.blocks.as_ref(), &self.request)
    }

    /// The sequences that are trained on.
    pub fn data(&self) -> &Dataset {
        &self.data
    }

    /// The packs that they are in, if they are.
    pub fn packs(&self) -> Option<&Packs> {
        self.packs.as_ref()
    }

    /// What is worth telling about the adapter that the run starts from.
    pub fn notes(&self) -> &[AdapterNote] {
        &self.notes
    }

    /// What kind of adapter the run trains.
    pub fn adapter(&self) -> &AdapterShape {
        self.start.shape()
    }

    /// The model.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Optimiser steps of the whole run.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Makes all that the plan lists.
    ///
    /// # Errors
    /// Those of [`Planned::start_watched`].
    pub fn start(self) -> Result<Session> {
        self.start_watched(&AtomicBool::new(false), &mut |_, _| ())
    }

    /// The same where making the adapter takes its time, with LoftQ: `progress` hears of how many
    /// projections it is done with, and of how many in all.
    ///
    /// # Errors
    /// Threads can't be started, the scratch files can't be made, or a state that the run goes on
    /// from can't be read any more. The weights from before quantisation can't be read or are
    /// another model's, or the caller cancelled.
    pub fn start_watched(
        self,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Session> {
        let mut record = self.record()?;
        let plan = Arc::new(self.plan);
        let folder = self.settings.spool_folder.as_deref();
        let make = self.resumed.is_none();
        let (mut adapter, mut optimizer) =
            trainable(&self.base, self.start, &plan, &self.config, folder, make)?;
        let runs = plan.param_ranges();
        let loftq = match self.loftq.filter(|_| self.resumed.is_none()) {
            Some(loftq) => Some(loftq.fill(&self.base, &mut adapter, cancel, progress)?),
            None => None,
        };
        if let Some(state) = &self.resumed {
            let pieces = optimizer.pieces();
            state.load(adapter.values(), &runs, optimizer.states(), &pieces)?;
            record.done = state.steps_done();
        }
        let beginning = match self.config.method {
            Method::Mezo(_) => {
                let (folder, seed) = (self.config.init_adapter.as_deref(), self.config.seed);
                let init = &self.config.init_lora_weights;
                Some(Beginning::new(&self.base, adapter.shape(), folder, (init, seed))?)
            }
            Method::Exact | Method::Lcsb(_) => None,
        };
        let stepper = Stepper::new(self.config.method, optimizer, &adapter)?;
        let order = match self.config.shuffle {
            true => Order::Shuffled { seed: self.config.seed },
            false => Order::File,
        };
        let mut session = Session {
            stepper,
            order,
            base: self.base,
            data: self.data,
            packs: self.packs,
            config: self.config,
            adapter,
            plan,
            settings: self.settings,
            engine: None,
            epoch: Vec::new(),
            sequences: Vec::new(),
            pass: Pass::default(),
            beginning,
            record,
            loftq,
        };
        session.engine()?;
        session.meter().look();
        Ok(session)
    }
}

/// What the caller wants after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The next step.
    Continue,
    /// Return; go on with another call of [`Session::run`].
    Pause,
    /// Give all memory but the adapter and the optimiser's state back to the system, and return.
    /// The next step makes it anew: what to answer when the system is short of memory.
    Release,
}

/// Why [`Session::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// The caller asked for it, or the time was up.
    Paused,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Number of the step, from 1.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Mean cross-entropy of the step's targets before the update, in nats.
    pub loss: f64,
    /// Number of targets.
    pub targets: usize,
    /// Number of tokens.
    pub tokens: usize,
    /// Rate of this step.
    pub learning_rate: f64,
    /// Wall time of this step.
    pub seconds: f64,
    /// Memory counted now, if the system tells.
    pub memory_bytes: Option<u64>,
}

/// A run that trains.
#[derive(Debug)]
pub struct Session {
    base: Base,
    data: Dataset,
    packs: Option<Packs>,
    config: TrainConfig,
    adapter: Adapter,
    stepper: Stepper,
    order: Order,
    plan: Arc<Plan>,
    settings: Settings,
    /// None while the memory is given back.
    engine: Option<Engine>,
    /// The current epoch's order.
    epoch: Vec<u32>,
    sequences: Vec<Sequence>,
    pass: Pass,
    /// What the history of a MeZO run begins with; none for other methods.
    beginning: Option<Beginning>,
    /// What is saved beside the numbers; the steps done among it.
    record: Record,
    loftq: Option<LoftqReport>,
}

impl Session {
    fn engine(&mut self) -> Result<&mut Engine> {
        if self.engine.is_none() {
            let (plan, weights) = (Arc::clone(&self.plan), Arc::clone(&self.base.weights));
            let engine = Engine::new(self.base.blocks.as_ref(), weights, plan, &self.settings)?;
            self.engine = Some(engine);
        }
        Ok(self.engine.as_mut().expect("just made"))
    }

    /// What LoftQ did, if the run began with it.
    pub fn loftq(&self) -> Option<&LoftqReport> {
        self.loftq.as_ref()
    }

    /// Runs the next step. Setting `cancel` stops it before anything is changed, or lets it
    /// finish once its backward has begun.
    ///
    /// # Errors
    /// The data can't be read, the loss is not finite, the step was cancelled, or no step is
    /// left. [`Error::BudgetCrossed`], before anything of the step was done, if the process has
    /// taken more than the budget since the run was planned: the adapter is that of the last step
    /// and can be saved.
    pub fn step(&mut self, cancel: &AtomicBool) -> Result<StepReport> {
        if self.is_finished() {
            return Err(Error::setting("all steps of the run are done"));
        }
        self.begin_phase(RunPhase::Training)?;
        self.meter().begin_step(self.record.done + 1);
        let begin = Instant::now();
        let learning_rate = self.schedule().rate(self.record.done);
        self.read_sequences()?;
        self.engine()?;
        let engine = self.engine.as_mut().expect("just made");
        let settings = StepSettings {
            number: self.record.done + 1,
            rate: learning_rate,
            clip: self.config.clip,
            seed: self.config.seed,
        };
        let (adapter, sequences, pass) = (&mut self.adapter, &self.sequences, &mut self.pass);
        let out = self.stepper.step(engine, adapter, sequences, &settings, pass, cancel)?;
        let memory_bytes = self.meter().look();
        self.record.done += 1;
        Ok(StepReport {
            step: self.record.done,
            steps: self.record.steps,
            loss: out.loss,
            targets: out.targets,
            tokens: out.tokens,
            learning_rate,
            seconds: begin.elapsed().as_secs_f64(),
            memory_bytes,
        })
    }

    /// What the last step of a MeZO run found, at the rate that it had.
    pub(crate) fn mezo_step(&self, rate: f64) -> Option<(&Beginning, Descent, &[Projection])> {
        let weight_decay = self.config.optimizer.weight_decay();
        let descent = Descent { rate, weight_decay };
        self.beginning.as_ref().map(|beginning| (beginning, descent, self.projections()))
    }

    /// What the last step found along its directions, with [`Method::Mezo`].
    pub fn projections(&self) -> &[Projection] {
        self.stepper.projections()
    }

    /// Runs steps until all are done, `after_step` asks for a pause or `slice` has passed; a step
    /// is never cut short by the time.
    ///
    /// # Errors
    /// Those of [`Session::step`].
    pub fn run(
        &mut self,
        slice: Option<Duration>,
        cancel: &AtomicBool,
        after_step: &mut dyn FnMut(&mut Self, &StepReport) -> Result<Flow>,
    ) -> Result<Outcome> {
        let begin = Instant::now();
        while !self.is_finished() {
            let report = self.step(cancel)?;
            match after_step(self, &report)? {
                Flow::Continue => {}
                Flow::Pause => return Ok(Outcome::Paused),
                Flow::Release => {
                    self.release();
                    return Ok(Outcome::Paused);
                }
            }
            if slice.is_some_and(|slice| begin.elapsed() >= slice) && !self.is_finished() {
                return Ok(Outcome::Paused);
            }
        }
        self.meter().check()?;
        Ok(Outcome::Finished)
    }

    /// Gives all memory but the adapter and the optimiser's state back to the system. The next
    /// step makes it anew.
    pub fn release(&mut self) {
        self.engine = None;
        smidgen_weights::release_free_heap();
    }

    /// Scores every sequence of `data` with the adapter as it is, within the same plan.
    ///
    /// # Errors
    /// The data can't be read or is longer than planned for; the caller cancelled; the process has
    /// taken more than the budget.
    pub fn evaluate(&mut self, data: &Dataset, cancel: &AtomicBool) -> Result<Evaluation> {
        self.begin_phase(RunPhase::Evaluating)?;
        self.engine()?;
        let engine = self.engine.as_mut().expect("just made");
        evaluate(engine, &mut self.adapter, data, &mut self.pass, cancel, &mut |_, _| {})
    }

    /// Writes the adapter as it is to a PEFT folder.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn save(&mut self, folder: &Path) -> Result<()> {
        self.meter().enter(RunPhase::Saving);
        self.adapter.save(&self.base, folder)?;
        self.meter().look();
        Ok(())
    }

    /// Writes all that the next steps depend on to the file `path`, replaced whole or not at all:
    /// see [`Planned::resume`]. Takes a few kilobytes of memory.
    ///
    /// # Errors
    /// The file can't be written; an earlier one stays then.
    pub fn save_state(&mut self, path: &Path) -> Result<()> {
        self.meter().enter(RunPhase::Saving);
        let mut writer = StateWriter::create(path, &self.record)?;
        writer.numbers(self.adapter.values(), &self.plan.param_ranges())?;
        let optimizer = self.stepper.optimizer();
        let pieces = optimizer.pieces();
        for state in optimizer.states() {
            writer.numbers(state, &pieces)?;
        }
        writer.finish()?;
        self.meter().look();
        Ok(())
    }

    /// Whether all steps are done.
    pub fn is_finished(&self) -> bool {
        self.record.done >= self.record.steps
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> u64 {
        self.record.steps
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.record.done
    }

    /// The plan that the run keeps to.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The most memory that was counted, 0 where the system does not tell.
    pub fn peak_bytes(&self) -> u64 {
        self.meter().peak()
    }

    /// What watches the run since it was planned.
    pub fn meter(&self) -> &Meter {
        &self.settings.meter
    }

    /// Comes to a phase, unless what was counted so far has crossed the budget.
    fn begin_phase(&self, phase: RunPhase) -> Result<()> {
        self.meter().enter(phase);
        Ok(self.meter().check()?)
    }

    /// The adapter as it is.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// The model.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Ends the run and gives the model and the adapter back.
    pub fn finish(self) -> (Base, Adapter) {
        (self.base, self.adapter)
    }

    fn schedule(&self) -> Schedule {
        Schedule {
            learning_rate: self.config.learning_rate,
            shape: self.config.schedule,
            warmup: self.config.warmup,
            total: self.record.steps,
        }
    }

    /// Reads the next step's sequences, those of its packs one after another. A step never reaches
    /// over the end of an epoch: the last one may have fewer.
    fn read_sequences(&mut self) -> Result<()> {
        let size = self.config.sequences();
        let count = self.packs.as_ref().map_or(self.data.len(), Packs::len);
        let per_epoch = count.div_ceil(size) as u64;
        let done = self.record.done;
        let (epoch, at) = (done / per_epoch, (done % per_epoch) as usize);
        if at == 0 || self.epoch.is_empty() {
            // The old order goes before the new one comes.
            self.epoch = Vec::new();
            self.epoch = self.order.epoch(count as u32, epoch);
        }
        let chosen = &self.epoch[at * size..((at + 1) * size).min(self.epoch.len())];
        if let Some(packs) = &self.packs {
            let samples = chosen.iter().flat_map(|&pack| packs.get(pack as usize));
            return read_samples(&self.data, samples, &mut self.sequences);
        }
        self.sequences.resize_with(chosen.len(), Sequence::default);
        let longest = self.data.max_len();
        for (&index, sequence) in chosen.iter().zip(&mut self.sequences) {
            sequence.ids.reserve_exact(longest.saturating_sub(sequence.ids.len()));
            sequence.targets.reserve_exact(longest.saturating_sub(sequence.targets.len()));
            self.data.read(index as usize, sequence)?;
        }
        Ok(())
    }
}

/// An adapter and its optimiser before the first step, in memory or in scratch files as the plan
/// says; the adapter's numbers are what it starts from, if it is to be filled.
pub(crate) fn trainable(
    base: &Base,
    start: AdapterStart,
    plan: &Plan,
    config: &TrainConfig,
    folder: Option<&Path>,
    fill: bool,
) -> Result<(Adapter, Optimizer)> {
    let folder = folder.unwrap_or(Path::new("."));
    let (len, window) = (start.shape().len(), plan.largest_params());
    let values = match plan.paged {
        Paged::All => Numbers::in_file(folder, len, window)?,
        Paged::State | Paged::Nothing => Numbers::in_memory(len)?,
    };
    let adapter = match fill {
        true => start.make(base, values)?,
        false => start.unfilled(values),
    };
    let runs = plan.param_ranges();
    let optimizer = match plan.paged {
        Paged::Nothing => Optimizer::new(config.optimizer, &runs)?,
        _ => Optimizer::paged(config.optimizer, &runs, folder)?,
    };
    let optimizer = optimizer.with_loraplus(config.loraplus_ratio, adapter.shape());
    Ok((adapter, optimizer))
}

/// Refuses what can't go with the run's method.
pub(crate) fn check_method(base: &Base, config: &TrainConfig, shape: &AdapterShape) -> Result<()> {
    match config.method {
        Method::Exact => Ok(()),
        Method::Lcsb(lcsb) => lcsb.check(base.info.layers - shape.first_layer()),
        Method::Mezo(mezo) => mezo.check(config, shape.config().dropout),
    }
}

fn check_vocabulary(base: &Base, data: &Dataset) -> Result<()> {
    let (found, model) = (data.file().header().vocab_size as usize, base.info().vocabulary);
    if found > model {
        return Err(Error::setting(format!(
            "{} was prepared for a vocabulary of {found} tokens and the model has {model}; \
             prepare it again with this model",
            data.file().path().display()
        )));
    }
    Ok(())
}

/// Reads a step's samples, each into memory of its own length: their number and lengths change from
/// step to step, and room for the longest in every place would be far more than the packs take.
fn read_samples<'a>(
    data: &Dataset,
    samples: impl Iterator<Item = &'a u32> + Clone,
    sequences: &mut Vec<Sequence>,
) -> Result<()> {
    sequences.clear();
    sequences.reserve_exact(samples.clone().count());
    for &sample in samples {
        let mut sequence = Sequence::default();
        data.read(sample as usize, &mut sequence)?;
        sequences.push(sequence);
    }
    Ok(())
}
