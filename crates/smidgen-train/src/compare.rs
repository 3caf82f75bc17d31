//! Runs side by side: what each one's losses were after so many steps and so many seconds.

use std::sync::atomic::AtomicBool;

use smidgen_text::Dataset;

use crate::error::{Kind, Result};
use crate::run::RunFolder;
use crate::session::{Flow, Session, StepReport};

/// How a run went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve {
    /// The held-out data's loss before the first step, every so many steps, and after the last.
    pub evaluations: Vec<CurveEvaluation>,
    /// Each step's loss before its update.
    pub losses: Vec<f64>,
    /// Each step's wall time.
    pub seconds: Vec<f64>,
    /// The step that the run ended at because a loss was not finite, if it did.
    pub diverged: Option<u64>,
}

/// A point of a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CurveEvaluation {
    /// Steps done.
    pub step: u64,
    /// Wall time of those steps; evaluations are not counted.
    pub seconds: f64,
    /// Mean cross-entropy of the held-out targets, in nats.
    pub loss: f64,
    /// Share of them that had the largest logit.
    pub accuracy: f64,
}

impl Curve {
    /// Takes all steps of a run, with its metrics in `folder`, and looks at `held_out` every
    /// `every` steps. A run whose losses don't stay finite ends there, which is no error.
    ///
    /// # Errors
    /// Those of [`Session::step`] and [`Session::evaluate`]; a file can't be written.
    pub fn of(
        session: &mut Session,
        folder: &mut RunFolder,
        held_out: &Dataset,
        every: u64,
        cancel: &AtomicBool,
        look: &mut dyn FnMut(&Self, &StepReport),
    ) -> Result<Self> {
        let mut curve = Self::default();
        curve.evaluate(session, folder, held_out, cancel)?;
        let ended = session.run(None, cancel, &mut |session, report| {
            folder.step(session, report)?;
            curve.losses.push(report.loss);
            curve.seconds.push(report.seconds);
            if report.step.is_multiple_of(every) || report.step == report.steps {
                curve.evaluate(session, folder, held_out, cancel)?;
            }
            look(&curve, report);
            Ok(Flow::Continue)
        });
        match ended {
            Ok(_) => {}
            Err(error) if error.kind() == Kind::Diverged => {
                curve.diverged = Some(session.steps_done() + 1);
            }
            Err(error) => return Err(error),
        }
        Ok(curve)
    }

    fn evaluate(
        &mut self,
        session: &mut Session,
        folder: &mut RunFolder,
        held_out: &Dataset,
        cancel: &AtomicBool,
    ) -> Result<()> {
        let scored = session.evaluate(held_out, cancel)?;
        let step = session.steps_done();
        folder.evaluation(step, "valid", &scored)?;
        let (seconds, loss, accuracy) = (self.total_seconds(), scored.loss, scored.accuracy);
        self.evaluations.push(CurveEvaluation { step, seconds, loss, accuracy });
        Ok(())
    }

    /// Wall time of all steps.
    pub fn total_seconds(&self) -> f64 {
        self.seconds.iter().sum()
    }

    /// The held-out loss after so many seconds of steps, on straight lines between evaluations;
    /// none after the last one.
    pub fn loss_at(&self, seconds: f64) -> Option<f64> {
        let behind = self.evaluations.iter().position(|e| e.seconds >= seconds)?;
        let to = self.evaluations[behind];
        let Some(from) = behind.checked_sub(1).map(|i| self.evaluations[i]) else {
            return Some(to.loss);
        };
        let share = (seconds - from.seconds) / (to.seconds - from.seconds).max(f64::MIN_POSITIVE);
        Some(from.loss + share * (to.loss - from.loss))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_lie_on_straight_lines() {
        let at = |seconds, loss| CurveEvaluation { step: 0, seconds, loss, accuracy: 0.0 };
        let evaluations = vec![at(0.0, 5.0), at(2.0, 3.0), at(4.0, 2.0)];
        let curve = Curve { evaluations, ..Curve::default() };
        let found = [0.0, 1.0, 2.0, 3.0, 4.0, 4.1].map(|seconds| curve.loss_at(seconds));
        assert_eq!(found, [Some(5.0), Some(4.0), Some(3.0), Some(2.5), Some(2.0), None]);
    }
}
