//! A run: planned, started, stepped, paused, saved.

mod batches;
mod planned;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use smidgen_graph::plan::Plan;
use smidgen_runtime::memory::{Meter, RunPhase};
use smidgen_runtime::{Engine, Pass, Settings};
use smidgen_text::{Dataset, Sequence};

use crate::adapter::Adapter;
use crate::base::Base;
use crate::error::{Error, Result};
use crate::evaluate::{Evaluation, evaluate};
use crate::loftq::LoftqReport;
use crate::method::Stepper;
use crate::mezo::{Descent, Projection};
use crate::replay::Beginning;
use crate::schedule::Schedule;
use crate::side::{SideForward, SideRun, SideSamples};
use crate::state::{Record, StateWriter};
use crate::step::StepSettings;
use crate::train_config::TrainConfig;

use batches::Batches;
pub(crate) use planned::trainable;
pub use planned::{Planned, SideStart};

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
    batches: Batches,
    config: TrainConfig,
    trained: Trained,
    plan: Arc<Plan>,
    settings: Settings,
    /// None while the memory is given back.
    engine: Option<Engine>,
    sequences: Vec<Sequence>,
    pass: Pass,
    /// What the history of a MeZO run begins with; none for other methods.
    beginning: Option<Beginning>,
    /// What is saved beside the numbers; the steps done among it.
    record: Record,
    loftq: Option<LoftqReport>,
}

/// An adapter and how it is trained.
#[derive(Debug)]
struct Lora {
    adapter: Adapter,
    stepper: Stepper,
}

/// What a run trains, and how.
#[derive(Debug)]
enum Trained {
    /// An adapter in the model.
    Lora(Box<Lora>),
    /// A network beside it.
    Side(Box<SideRun>),
}

impl SideSamples for Batches {
    fn samples(&mut self, number: u64, samples: &mut Vec<u32>) {
        Batches::samples(self, number, samples);
    }

    fn read(&mut self, sample: u32, sequence: &mut Sequence) -> Result<()> {
        Ok(self.data().read(sample as usize, sequence)?)
    }
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
        self.engine()?;
        let engine = self.engine.as_mut().expect("just made");
        let settings = StepSettings {
            number: self.record.done + 1,
            rate: learning_rate,
            clip: self.config.clip,
            seed: self.config.seed,
        };
        let (batches, sequences, pass) = (&mut self.batches, &mut self.sequences, &mut self.pass);
        let out = match &mut self.trained {
            Trained::Lora(lora) => {
                let Lora { adapter, stepper } = lora.as_mut();
                batches.read(settings.number, sequences)?;
                stepper.step(engine, adapter, sequences, &settings, pass, cancel)?
            }
            Trained::Side(run) => {
                run.step(engine, batches, &settings, self.record.steps, pass, cancel)?
            }
        };
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

    /// What the last step found along its directions, with [`crate::Method::Mezo`].
    pub fn projections(&self) -> &[Projection] {
        match &self.trained {
            Trained::Lora(lora) => lora.stepper.projections(),
            Trained::Side(_) => &[],
        }
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

    /// Scores every sequence of `data` with what is trained as it is, within the same plan.
    ///
    /// # Errors
    /// The data can't be read or is longer than planned for; the caller cancelled; the process has
    /// taken more than the budget.
    pub fn evaluate(&mut self, data: &Dataset, cancel: &AtomicBool) -> Result<Evaluation> {
        self.begin_phase(RunPhase::Evaluating)?;
        self.engine()?;
        let engine = self.engine.as_mut().expect("just made");
        let (pass, mut side) = (&mut self.pass, None);
        match &mut self.trained {
            Trained::Lora(lora) => {
                let adapter = &mut lora.adapter;
                evaluate(engine, adapter, &mut side, data, pass, cancel, &mut |_, _| {})
            }
            Trained::Side(run) => {
                side = Some(SideForward::new(run.network()?, self.plan.tokens)?);
                let mut none = Adapter::none(&self.base);
                evaluate(engine, &mut none, &mut side, data, pass, cancel, &mut |_, _| {})
            }
        }
    }

    /// Writes what is trained as it is: a PEFT folder, or that of a [`crate::SideNetwork`].
    ///
    /// # Errors
    /// A file can't be written.
    pub fn save(&mut self, folder: &Path) -> Result<()> {
        self.meter().enter(RunPhase::Saving);
        match &mut self.trained {
            Trained::Lora(lora) => lora.adapter.save(&self.base, folder)?,
            Trained::Side(run) => run.save(&self.base, folder)?,
        }
        self.meter().look();
        Ok(())
    }

    /// Writes all that the next steps depend on to the file `path`, replaced whole or not at all:
    /// see [`Planned::resume`]. Takes a few kilobytes of memory. Of a side network the trainer has
    /// the numbers.
    ///
    /// # Errors
    /// The file can't be written; an earlier one stays then.
    pub fn save_state(&mut self, path: &Path) -> Result<()> {
        self.meter().enter(RunPhase::Saving);
        let mut writer = StateWriter::create(path, &self.record)?;
        if let Trained::Lora(lora) = &mut self.trained {
            let Lora { adapter, stepper } = lora.as_mut();
            writer.numbers(adapter.values(), &self.plan.param_ranges())?;
            let optimizer = stepper.optimizer();
            let pieces = optimizer.pieces();
            for state in optimizer.states() {
                writer.numbers(state, &pieces)?;
            }
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

    /// How many numbers are trained.
    pub fn trainable(&self) -> usize {
        match &self.trained {
            Trained::Lora(lora) => lora.adapter.len(),
            Trained::Side(run) => run.shape().len(),
        }
    }

    /// The model.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Ends the run and gives the model and the adapter back; none of a run of side tuning, whose
    /// network [`Session::save`] has written.
    pub fn finish(self) -> (Base, Option<Adapter>) {
        let adapter = match self.trained {
            Trained::Lora(lora) => Some(lora.adapter),
            Trained::Side(_) => None,
        };
        (self.base, adapter)
    }

    fn schedule(&self) -> Schedule {
        Schedule {
            learning_rate: self.config.learning_rate,
            shape: self.config.schedule,
            warmup: self.config.warmup,
            total: self.record.steps,
        }
    }
}
