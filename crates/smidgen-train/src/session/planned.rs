//! A run before it starts: planned, and perhaps resumed.

use std::mem;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use smidgen_graph::OptimizerState;
use smidgen_graph::plan::{CurvePoint, Paged, Plan, Request, curve};
use smidgen_runtime::{Numbers, Pass, Settings};
use smidgen_text::{Dataset, Fingerprint, Order, Packs};

use super::batches::Batches;
use super::{Lora, Session, Trained};
use crate::adapter::{Adapter, AdapterNote, AdapterShape, AdapterStart};
use crate::base::Base;
use crate::error::{Error, Result};
use crate::loftq::{Loftq, LoftqReport};
use crate::method::{Method, Stepper};
use crate::optimizer::Optimizer;
use crate::planning::{
    DataSize, adapter_start, check_length, loftq_start, plan_or_remedies, process_row, request,
    settings, side_of, side_traffic,
};
use crate::replay::Beginning;
use crate::schedule::Shape;
use crate::side::{DeviceSecret, LossOn, SideLink, SideRun, SideShape};
use crate::state::{Record, RunSettings, RunState};
use crate::train_config::{Length, TrainConfig, check_method};

/// A run whose memory is known and within the budget; nothing large was made yet.
#[derive(Debug)]
pub struct Planned {
    base: Base,
    data: Dataset,
    packs: Option<Packs>,
    config: TrainConfig,
    start: AdapterStart,
    plan: Arc<Plan>,
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
        check_length(&base, data.max_len().max(longest_evaluation))?;
        let (start, notes) = adapter_start(&base, &config)?;
        check_method(&base, &config, start.shape())?;
        let size = DataSize::of(&data, packs.as_ref());
        let settings = settings(&base, &config, size.tokens(longest_evaluation));
        let held = process.bytes;
        let request =
            request(&base, start.shape(), &config, size, longest_evaluation, &settings, process)?;
        let plan = Arc::new(plan_or_remedies(&base, &request)?);
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
        set("--single-token", window.single_token.to_string());
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

    /// The network of a run of side tuning, with what decides how it is trained; none for other
    /// methods.
    ///
    /// # Errors
    /// The model file can't be read any more.
    pub fn side(&self) -> Result<Option<SideStart>> {
        let Method::Side(side) = self.config.method else { return Ok(None) };
        let info = self.base.info();
        Ok(Some(SideStart {
            shape: SideShape::new(side.network, info.layers, info.hidden)?,
            fingerprint: self.base.record()?.fingerprint.as_bytes().to_vec(),
            seed: self.config.seed,
            weight_decay: self.config.optimizer.weight_decay(),
            loss: side.loss,
        }))
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
    /// another model's, or the caller cancelled. [`Method::Side`] has [`Planned::start_side`].
    pub fn start_watched(
        mut self,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Session> {
        let mut record = self.record()?;
        let folder = self.settings.spool_folder.as_deref();
        let make = self.resumed.is_none();
        let start = mem::replace(&mut self.start, AdapterStart::none(&self.base));
        let (mut adapter, mut optimizer) =
            trainable(&self.base, start, &self.plan, &self.config, folder, make)?;
        let runs = self.plan.param_ranges();
        let loftq = match self.loftq.take().filter(|_| make) {
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
            Method::Exact | Method::Lcsb(_) | Method::Side(_) => None,
        };
        let stepper = Stepper::new(self.config.method, optimizer, &adapter)?;
        self.session(Trained::Lora(Box::new(Lora { adapter, stepper })), record, beginning, loftq)
    }

    /// The same for [`Method::Side`]: the network is trained behind `link`, which says how many steps
    /// are done already.
    ///
    /// # Errors
    /// The scratch file or the threads can't be made; those of the link; it is past this run's end.
    pub fn start_side(self, link: Box<dyn SideLink>, secret: DeviceSecret) -> Result<Session> {
        let Method::Side(side) = self.config.method else {
            return Err(Error::setting("a link is for --method side"));
        };
        let size = DataSize::of(&self.data, self.packs.as_ref());
        let (shape, size) = side_of(&self.base, side, &self.config, size)?;
        let in_file = side_traffic(&shape, &side, size, &self.config).written > 0;
        let folder = self.settings.spool_folder.as_deref().filter(|_| in_file);
        let keys = (secret, self.config.seed);
        let mut run = SideRun::new(shape, link, keys, &side, size, folder)?;
        let done = run.confirmed()?;
        if done > self.steps {
            return Err(Error::setting(format!(
                "the server is {done} steps into this run, which has {}; give a larger --iters",
                self.steps
            )));
        }
        let record = Record { done, ..self.record()? };
        self.session(Trained::Side(Box::new(run)), record, None, None)
    }

    fn session(
        self,
        trained: Trained,
        record: Record,
        beginning: Option<Beginning>,
        loftq: Option<LoftqReport>,
    ) -> Result<Session> {
        let order = match self.config.shuffle {
            true => Order::Shuffled { seed: self.config.seed },
            false => Order::File,
        };
        let batches = Batches::new(self.data, self.packs, self.config.sequences(), order);
        let mut session = Session {
            trained,
            batches,
            base: self.base,
            config: self.config,
            plan: self.plan,
            settings: self.settings,
            engine: None,
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

/// How a side network begins, for who trains it.
#[derive(Debug)]
pub struct SideStart {
    /// Its tensors.
    pub shape: SideShape,
    /// Which model it is beside.
    pub fingerprint: Vec<u8>,
    /// Its numbers at the start are [`SideShape::start`] of this.
    pub seed: u64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Who computes the loss.
    pub loss: LossOn,
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
