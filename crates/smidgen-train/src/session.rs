//! A run: planned, started, stepped, paused, saved.

mod planned;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use smidgen_graph::plan::Plan;
use smidgen_runtime::memory::{Meter, RunPhase};
use smidgen_runtime::{Engine, Pass, Settings};
use smidgen_text::{Dataset, Order, Packs, Sequence};

use crate::adapter::Adapter;
use crate::base::Base;
use crate::error::{Error, Result};
use crate::evaluate::{Evaluation, evaluate};
use crate::loftq::LoftqReport;
use crate::method::Stepper;
use crate::mezo::{Descent, Projection};
use crate::replay::Beginning;
use crate::schedule::Schedule;
use crate::state::{Record, StateWriter};
use crate::step::StepSettings;
use crate::train_config::TrainConfig;

pub use planned::Planned;
pub(crate) use planned::trainable;

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
        evaluate(engine, &mut self.adapter, &mut None, data, &mut self.pass, cancel, &mut |_, _| {})
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
