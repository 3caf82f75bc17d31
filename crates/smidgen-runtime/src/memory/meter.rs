//! The meter that watches what a run takes.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{MemorySource, Process, Trace};

/// What a run is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunPhase {
    /// Making tokens of text.
    Preparing,
    /// Planning, and making all that the plan lists.
    Starting,
    /// Steps of training.
    Training,
    /// Scoring data, or generating.
    Evaluating,
    /// Writing the adapter.
    Saving,
}

impl RunPhase {
    /// All of them, in the order in which a run comes to them.
    pub const ALL: [Self; 5] =
        [Self::Preparing, Self::Starting, Self::Training, Self::Evaluating, Self::Saving];

    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Starting => "starting",
            Self::Training => "training",
            Self::Evaluating => "evaluating",
            Self::Saving => "saving",
        }
    }
}

impl fmt::Display for RunPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A look counted more than the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the run was stopped while {phase}: it would cross its budget, with {counted} bytes counted and \
     {budget} allowed; give a larger --memory, or let the rest of the process take less"
)]
pub struct BudgetCrossed {
    /// What the run was at.
    pub phase: RunPhase,
    /// Bytes counted.
    pub counted: u64,
    /// Bytes allowed.
    pub budget: u64,
}

/// Watches what a run takes: its peak in each phase, whether it keeps its budget, and a [`Trace`] if
/// one is wanted. Clones watch the same run; [`Meter::next_run`] gives the meter of another.
#[derive(Clone)]
pub struct Meter {
    process: Arc<Mutex<Watched>>,
    run: Arc<Mutex<Run>>,
}

/// What all runs of a process share.
struct Watched {
    source: Box<dyn MemorySource>,
    trace: Option<Trace>,
}

/// What was seen of a run.
#[derive(Debug)]
struct Run {
    phase: RunPhase,
    step: u64,
    /// By phase; none for one that was not looked at.
    peaks: [Option<u64>; RunPhase::ALL.len()],
    budget: Option<u64>,
    crossed: Option<BudgetCrossed>,
}

impl Run {
    fn new(phase: RunPhase) -> Self {
        Self { phase, step: 0, peaks: Default::default(), budget: None, crossed: None }
    }

    fn count(&mut self, counted: u64) {
        let peak = &mut self.peaks[self.phase as usize];
        *peak = Some(peak.map_or(counted, |peak| peak.max(counted)));
        if let Some(budget) = self.budget.filter(|&budget| counted > budget) {
            let phase = self.phase;
            self.crossed.get_or_insert(BudgetCrossed { phase, counted, budget });
        }
    }
}

impl Default for Meter {
    /// Watches this process, which is preparing.
    fn default() -> Self {
        Self::new(Process)
    }
}

impl Meter {
    /// Watches what `source` tells, from a run that is preparing.
    pub fn new(source: impl MemorySource + 'static) -> Self {
        let watched = Watched { source: Box::new(source), trace: None };
        Self {
            process: Arc::new(Mutex::new(watched)),
            run: Arc::new(Mutex::new(Run::new(RunPhase::Preparing))),
        }
    }

    /// A meter of another run in the same process, which begins with `phase`: the source and the
    /// trace are shared, all else is new.
    pub fn next_run(&self, phase: RunPhase) -> Self {
        Self { process: Arc::clone(&self.process), run: Arc::new(Mutex::new(Run::new(phase))) }
    }

    /// Looks now; returns the bytes counted now, if the system tells.
    pub fn look(&self) -> Option<u64> {
        let mut process = locked(&self.process);
        let counted = process.source.counted()?;
        let mut run = locked(&self.run);
        run.count(counted);
        if let Some(trace) = &mut process.trace {
            trace.look(run.step, run.phase, counted);
        }
        Some(counted)
    }

    /// Looks, if the run comes to another phase: what is counted on the way belongs to both.
    pub fn enter(&self, phase: RunPhase) {
        if locked(&self.run).phase == phase {
            return;
        }
        let counted = self.look();
        let mut run = locked(&self.run);
        run.phase = phase;
        if let Some(counted) = counted {
            run.count(counted);
        }
    }

    /// Says which step begins, from 1; for the trace.
    pub fn begin_step(&self, step: u64) {
        locked(&self.run).step = step;
    }

    /// Sets the bytes that the run may take from now on, or none for no limit.
    pub fn set_budget(&self, budget: Option<u64>) {
        let mut run = locked(&self.run);
        (run.budget, run.crossed) = (budget, None);
    }

    /// The bytes that the run may take, if there is a limit.
    pub fn budget(&self) -> Option<u64> {
        locked(&self.run).budget
    }

    /// Whether every look since the budget was set has kept it. To be asked where the run can stop:
    /// before a step, not within one.
    ///
    /// # Errors
    /// The first look that has not.
    pub fn check(&self) -> Result<(), BudgetCrossed> {
        locked(&self.run).crossed.map_or(Ok(()), Err)
    }

    /// The most bytes counted at any look of this run, 0 where the system does not tell.
    pub fn peak(&self) -> u64 {
        locked(&self.run).peaks.iter().flatten().copied().max().unwrap_or(0)
    }

    /// The most bytes counted in each phase that was looked at.
    pub fn peaks(&self) -> Vec<(RunPhase, u64)> {
        let run = locked(&self.run);
        let peaks = RunPhase::ALL.into_iter().zip(run.peaks);
        peaks.filter_map(|(phase, peak)| Some((phase, peak?))).collect()
    }

    /// Begins to record every look of this run and of those that share its process.
    pub fn begin_trace(&self) {
        locked(&self.process).trace = Some(Trace::begin());
    }

    /// What was recorded, if a trace was begun, and ends it.
    pub fn take_trace(&self) -> Option<Trace> {
        locked(&self.process).trace.take()
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").field("run", &*locked(&self.run)).finish_non_exhaustive()
    }
}

/// A lock whose value is whole even if a thread has panicked that held it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A meter that sees these readings, one a look, then nothing.
    fn replay<const N: usize>(readings: [u64; N]) -> Meter {
        let mut readings = readings.into_iter();
        Meter::new(move || readings.next())
    }

    #[test]
    fn peaks_by_phase() {
        let meter = replay([5, 9, 7, 12, 30, 20, 31]);
        assert_eq!(meter.peaks(), []);
        assert_eq!([meter.look(), meter.look()], [Some(5), Some(9)]);
        meter.enter(RunPhase::Starting);
        meter.enter(RunPhase::Training);
        meter.look();
        // No look: it is there already.
        meter.enter(RunPhase::Training);
        meter.look();
        meter.enter(RunPhase::Saving);
        let expected = [
            (RunPhase::Preparing, 9),
            (RunPhase::Starting, 12),
            (RunPhase::Training, 31),
            (RunPhase::Saving, 31),
        ];
        assert_eq!(meter.peaks(), expected);
        assert_eq!(meter.peak(), 31);
        assert_eq!(meter.look(), None);
        assert_eq!(meter.peak(), 31);
    }

    #[test]
    fn the_first_look_above_the_budget_is_told() {
        let meter = replay([900, 100, 100, 101, 500, 3]);
        meter.look();
        meter.set_budget(Some(100));
        assert_eq!((meter.check(), meter.budget()), (Ok(()), Some(100)));
        meter.look();
        meter.enter(RunPhase::Training);
        assert_eq!(meter.check(), Ok(()));
        meter.look();
        meter.enter(RunPhase::Saving);
        meter.look();
        let crossed = BudgetCrossed { phase: RunPhase::Training, counted: 101, budget: 100 };
        assert_eq!(meter.check(), Err(crossed));
        assert!(crossed.to_string().contains("while training: it would cross its budget"));
        meter.set_budget(None);
        assert_eq!(meter.check(), Ok(()));
    }

    #[test]
    fn what_a_phase_leaves_behind_is_its_own_crossing() {
        let meter = replay([101]);
        meter.set_budget(Some(100));
        meter.enter(RunPhase::Evaluating);
        assert_eq!(meter.check().unwrap_err().phase, RunPhase::Preparing);
    }

    #[test]
    fn runs_share_the_process_and_its_trace_alone() {
        let meter = replay([50, 10, 20]);
        meter.begin_trace();
        meter.look();
        let run = meter.next_run(RunPhase::Starting);
        run.look();
        run.enter(RunPhase::Training);
        run.begin_step(1);
        assert_eq!((meter.peak(), run.peak()), (50, 20));
        let clone = run.clone();
        assert_eq!(clone.peak(), 20);
        let trace = clone.take_trace().unwrap();
        let seen: Vec<_> = trace.samples().iter().map(|s| (s.phase, s.counted)).collect();
        use RunPhase::{Preparing, Starting};
        assert_eq!(seen, [(Preparing, 50), (Starting, 10), (Starting, 20)]);
        assert!(meter.take_trace().is_none());
    }

    #[test]
    fn a_system_that_does_not_tell_stops_nobody() {
        let meter = Meter::new(|| None);
        meter.set_budget(Some(0));
        meter.look();
        meter.enter(RunPhase::Training);
        assert_eq!((meter.check(), meter.peak()), (Ok(()), 0));
        assert_eq!(meter.peaks(), []);
    }
}
