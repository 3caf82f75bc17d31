//! What `--json` reports.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Serialize, Serializer};
use smidgen::memory::{self, Meter};
use smidgen::{Base, CurvePoint, Evaluation, Plan, PrepareReport, Row};

/// The report of train, eval, plan and demo. A figure that does not apply, or that the system does
/// not tell, is null.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub model: String,
    pub adapter_path: Option<String>,
    /// Of eval: over all targets. Of train: of the last step, before its update.
    #[serde(serialize_with = "nine_digits")]
    pub loss: Option<f64>,
    #[serde(serialize_with = "nine_digits")]
    pub perplexity: Option<f64>,
    #[serde(serialize_with = "nine_digits")]
    pub accuracy: Option<f64>,
    /// Tokens that went through the model.
    pub tokens: Option<u64>,
    /// Tokens whose prediction counts.
    pub targets: Option<u64>,
    /// Of train: all of the run's, those before it was resumed too.
    pub steps: Option<u64>,
    /// Of train --resume: steps done before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed_steps: Option<u64>,
    /// The median.
    pub seconds_per_step: Option<f64>,
    pub seconds: Option<f64>,
    /// Of train: each step's since it began or was resumed, before its update.
    #[serde(serialize_with = "all_nine_digits")]
    pub losses: Option<Vec<f64>>,
    /// Of eval: each sequence's.
    #[serde(serialize_with = "all_nine_digits")]
    pub window_losses: Option<Vec<f64>>,
    pub valid: Vec<Valid>,
    pub planned_peak_bytes: u64,
    pub peak_memory_bytes: Option<u64>,
    /// Of train: the most that was counted in each phase since the run was planned.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub phase_peak_bytes: BTreeMap<&'static str, u64>,
    pub weight_window_bytes: u64,
    /// Seconds of a step at full length, as the machine's rates say.
    pub predicted_seconds_per_step: Option<f64>,
    /// Bytes of a step at full length to the scratch file, and from it.
    pub spool_written_bytes: u64,
    pub spool_read_bytes: u64,
    pub peak_rss_bytes: Option<u64>,
    /// The most that making a token file may take, told before it is made; null where the data was
    /// one. Of plan without data: what it would be.
    pub prepare_planned_bytes: Option<u64>,
    /// The most that making a token file took; null where the data was one.
    pub prepare_peak_bytes: Option<u64>,
    /// Of plan.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<PlanRow>,
    /// Of plan --curve.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub curve: Vec<CurveRow>,
    /// Of demo, and of train with valid data that has prompts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<Answer>,
    /// Of train with LoftQ: how far the base is from what it was quantised from, relative to the
    /// weights' norm, without the adapter and with it as it starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loftq_relative_errors: Option<[f64; 2]>,
    pub notes: Vec<String>,
}

/// The valid data's loss after some steps.
#[derive(Debug, Serialize)]
pub struct Valid {
    pub step: u64,
    #[serde(serialize_with = "nine_digits_of")]
    pub loss: f64,
    #[serde(serialize_with = "nine_digits_of")]
    pub perplexity: f64,
    #[serde(serialize_with = "nine_digits_of")]
    pub accuracy: f64,
}

/// A line of the plan.
#[derive(Debug, Serialize)]
pub struct PlanRow {
    pub name: String,
    pub shape: String,
    pub bytes: u64,
    pub life: String,
    pub why: String,
}

/// What a budget gives.
#[derive(Debug, Serialize)]
pub struct CurveRow {
    pub peak_bytes: u64,
    pub predicted_seconds_per_step: f64,
    pub spool_written_bytes: u64,
    pub spool_read_bytes: u64,
}

/// What the model says before and after its training.
#[derive(Debug, Serialize)]
pub struct Answer {
    pub prompt: String,
    /// What the data says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    pub before: String,
    pub after: String,
}

impl Report {
    /// A report on `base` under `plan`.
    pub fn new(base: &Base, plan: &Plan) -> Self {
        Self {
            planned_peak_bytes: plan.peak_bytes,
            weight_window_bytes: plan.weight_bytes,
            predicted_seconds_per_step: Some(plan.seconds),
            spool_written_bytes: plan.scratch_traffic.written,
            spool_read_bytes: plan.scratch_traffic.read,
            ..Self::of(base)
        }
    }

    /// A report on `base`.
    pub fn of(base: &Base) -> Self {
        Self { model: path_text(base.path()), ..Self::default() }
    }

    /// Puts in what preparing the data took, if it was prepared.
    pub fn prepared(&mut self, prepared: Option<&PrepareReport>) {
        self.prepare_planned_bytes = prepared.map(|p| p.planned_bytes);
        self.prepare_peak_bytes = prepared.map(|p| p.peak_bytes);
    }

    /// Puts in what was measured up to now; `peak` is 0 where the system does not tell.
    pub fn measure(&mut self, peak: u64) {
        self.peak_memory_bytes = Some(peak).filter(|&bytes| bytes > 0);
        self.peak_rss_bytes = memory::usage().map(|u| u.resident_peak);
    }

    /// Puts in the peak of each phase of a run.
    pub fn phases(&mut self, meter: &Meter) {
        let peaks = meter.peaks().into_iter();
        self.phase_peak_bytes = peaks.map(|(phase, bytes)| (phase.name(), bytes)).collect();
    }

    /// Puts in what an evaluation gave.
    pub fn scored(&mut self, scored: Evaluation) {
        self.perplexity = Some(scored.perplexity());
        self.loss = Some(scored.loss);
        self.accuracy = Some(scored.accuracy);
        self.tokens = Some(scored.tokens as u64);
        self.targets = Some(scored.targets as u64);
        self.window_losses = Some(scored.window_losses);
    }
}

impl From<&CurvePoint> for CurveRow {
    fn from(point: &CurvePoint) -> Self {
        Self {
            peak_bytes: point.peak_bytes,
            predicted_seconds_per_step: point.seconds,
            spool_written_bytes: point.scratch_traffic.written,
            spool_read_bytes: point.scratch_traffic.read,
        }
    }
}

impl From<&Row> for PlanRow {
    fn from(row: &Row) -> Self {
        let Row { name, shape, bytes, life, why } = row.clone();
        Self { name, shape, bytes, life, why }
    }
}

/// A path as JSON can hold it.
pub fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The middle of some durations, the upper one of two.
pub fn median(seconds: &[f64]) -> Option<f64> {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// `x` rounded to nine significant digits.
fn rounded(x: f64) -> f64 {
    format!("{x:.8e}").parse().unwrap_or(x)
}

fn nine_digits_of<S: Serializer>(x: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    rounded(*x).serialize(serializer)
}

fn nine_digits<S: Serializer>(x: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    x.map(rounded).serialize(serializer)
}

fn all_nine_digits<S: Serializer>(x: &Option<Vec<f64>>, serializer: S) -> Result<S::Ok, S::Error> {
    match x {
        Some(x) => serializer.collect_seq(x.iter().map(|&x| rounded(x))),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_significant_digits() {
        assert_eq!(rounded(2.123_456_789_12), 2.123_456_79);
        assert_eq!(rounded(1.234_567_891_2e-7), 1.234_567_89e-7);
        assert_eq!(rounded(0.0), 0.0);
        assert!(rounded(f64::NAN).is_nan());
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
    }
}
