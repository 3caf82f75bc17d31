//! Steps under way of one session: what came of them, what is to be done next, and what is refused.
//! Nothing here waits or computes.

use std::collections::VecDeque;

use smidgen_train::{LossOn, SampleKey, SideLabel, SideShape};
use tonic::Status;

use super::cache::Pinned;
use super::limits::Limits;
use super::shape::tap_bytes;
use crate::proto::{
    Ask, Begin, Gradient, Hash, LABEL_BYTES, Labels, Output, PART_BYTES, PART_BYTES_MAX, StepHash,
    Taps, Update, read_labels, read_numbers,
};

/// Outputs that are computed before the gradient of the first of them came.
const AHEAD: usize = 2;

/// Steps that were begun and not confirmed, the one at work first.
#[derive(Debug)]
pub(super) struct Steps {
    confirmed: u64,
    steps: VecDeque<Step>,
    /// Taps and labels of these steps that came and wait, or are yet to come.
    tap_bytes: u64,
    limits: Limits,
    loss: LossOn,
}

#[derive(Debug)]
struct Step {
    number: u64,
    hash: StepHash,
    samples: Vec<Sample>,
    /// Places whose output was handed to a worker.
    forwarded: usize,
    /// Outputs that were computed and not sent, from place `sent` on.
    outputs: VecDeque<Vec<u8>>,
    asked: usize,
    sent: usize,
    /// Bytes of the gradient of place `differentiated` + `gradients`.
    gradient: Vec<u8>,
    /// Gradients that wait for a worker, from place `differentiated` on.
    gradients: VecDeque<Vec<f32>>,
    /// Places whose gradient, or whose labels, were handed to a worker.
    differentiated: usize,
    /// c, and bytes so far, of the labels of place `differentiated` + `labels`.
    label: (f32, Vec<u8>),
    /// c and labels that wait for a worker, from place `differentiated` on.
    labels: VecDeque<(f32, Vec<SideLabel>)>,
    /// Sum of the losses of those that were learned from.
    loss: f64,
    update: Option<(f64, Hash)>,
}

/// A sample of a step.
#[derive(Debug)]
pub(super) struct Sample {
    pub key: SampleKey,
    pub rows: usize,
    taps: Source,
}

/// Where a sample's taps are.
#[derive(Debug)]
pub(super) enum Source {
    /// So far.
    Sent(Vec<u8>),
    Cached(Pinned),
    Used,
}

/// What a worker can do now.
#[derive(Debug)]
pub(super) enum Job {
    /// Compute the output from taps that came.
    Forward { place: usize, key: SampleKey, rows: usize, taps: Vec<u8> },
    /// From taps that came before.
    Again { place: usize, rows: usize, taps: Pinned },
    /// Add a gradient.
    Backward { place: usize, gradient: Vec<f32> },
    /// All of it for a sample whose labels are told.
    Learn {
        place: usize,
        key: SampleKey,
        taps: Source,
        labels: Vec<SideLabel>,
        factors: (f32, f32),
    },
    /// End the step, whose losses are computed here or not.
    Commit { step: u64, rate: f64, hash: Hash, loss: Option<f64> },
}

impl Steps {
    pub fn new(confirmed: u64, limits: Limits, loss: LossOn) -> Self {
        Self { confirmed, steps: VecDeque::new(), tap_bytes: 0, limits, loss }
    }

    /// Refuses what belongs to the other way of computing the loss.
    fn expect(&self, loss: LossOn, what: &str) -> Result<(), Status> {
        match (self.loss == loss, loss) {
            (true, _) => Ok(()),
            (_, LossOn::Device) => {
                Err(Status::invalid_argument(format!("{what} with the loss on the server")))
            }
            (_, LossOn::Trainer) => {
                Err(Status::invalid_argument(format!("{what} with the loss on the device")))
            }
        }
    }

    pub fn confirmed(&self) -> u64 {
        self.confirmed
    }

    fn find(&mut self, number: u64) -> Result<&mut Step, Status> {
        let due = self.confirmed + self.steps.len() as u64;
        self.steps.iter_mut().find(|step| step.number == number).ok_or_else(|| {
            Status::invalid_argument(format!("step {number} is not under way: {due} is the last"))
        })
    }

    /// A step begins. Returns the bits of the wanted samples; `cached` looks for one's taps.
    pub fn begin(
        &mut self,
        begin: Begin,
        shape: &SideShape,
        mut cached: impl FnMut(&SampleKey, u64) -> Option<Pinned>,
    ) -> Result<Vec<u8>, Status> {
        let due = self.confirmed + self.steps.len() as u64 + 1;
        let Begin { step, samples } = begin;
        if step != due {
            return Err(Status::invalid_argument(format!("step {step} begins where {due} is due")));
        }
        let Limits { rows: rows_max, samples: samples_max, steps: steps_max, .. } = self.limits;
        let too_much = |what: String, most: u64| {
            Err(Status::resource_exhausted(format!("{what}: the server allows {most}")))
        };
        if self.steps.len() as u64 >= steps_max {
            return too_much(format!("{} steps under way", self.steps.len() + 1), steps_max);
        }
        if samples.len() as u64 > samples_max {
            return too_much(format!("{} samples of a step", samples.len()), samples_max);
        }
        let mut hash = StepHash::new(step);
        let mut bits = vec![0; samples.len().div_ceil(8)];
        let (mut taken, mut wanted) = (Vec::with_capacity(samples.len()), 0u64);
        for (place, sample) in samples.iter().enumerate() {
            let Ok(key) = SampleKey::try_from(sample.key.as_slice()) else {
                let what = format!("a sample's key of {} bytes: it has 16", sample.key.len());
                return Err(Status::invalid_argument(what));
            };
            if sample.rows == 0 {
                return Err(Status::invalid_argument("a sample without rows"));
            }
            if u64::from(sample.rows) > rows_max {
                return too_much(format!("{} rows of a sample", sample.rows), rows_max);
            }
            hash.sample(&key, sample.rows);
            let rows = sample.rows as usize;
            let bytes = tap_bytes(shape, rows);
            wanted = wanted.saturating_add(label_bytes(self.loss, rows));
            let taps = match cached(&key, bytes) {
                Some(pinned) => Source::Cached(pinned),
                None => {
                    bits[place / 8] |= 1 << (place % 8);
                    wanted = wanted.saturating_add(bytes);
                    Source::Sent(Vec::new())
                }
            };
            taken.push(Sample { key, rows, taps });
        }
        // A wait for room could be for ever: the device reads outputs once all its steps have begun.
        let all = self.tap_bytes.saturating_add(wanted);
        if all > self.limits.tap_bytes {
            let what = format!("{all} bytes of taps and labels under way");
            return too_much(what, self.limits.tap_bytes);
        }
        self.tap_bytes = all;
        self.steps.push_back(Step {
            number: step,
            hash,
            samples: taken,
            forwarded: 0,
            outputs: VecDeque::new(),
            asked: 0,
            sent: 0,
            gradient: Vec::new(),
            gradients: VecDeque::new(),
            differentiated: 0,
            label: (0.0, Vec::new()),
            labels: VecDeque::new(),
            loss: 0.0,
            update: None,
        });
        Ok(bits)
    }

    pub fn taps(&mut self, taps: &Taps, shape: &SideShape) -> Result<(), Status> {
        let step = self.find(taps.step)?;
        let place = taps.place as usize;
        let sample = step.samples.get_mut(place).ok_or_else(|| no_place(taps.step, taps.place))?;
        let due = tap_bytes(shape, sample.rows);
        let Source::Sent(held) = &mut sample.taps else {
            let what = format!("taps of place {place} of step {}, which are not wanted", taps.step);
            return Err(Status::invalid_argument(what));
        };
        append(held, taps.offset, &taps.bytes, due, "taps")
    }

    /// The device will read an output.
    pub fn ask(&mut self, ask: &Ask) -> Result<(), Status> {
        self.expect(LossOn::Device, "an output is asked for")?;
        let earlier = self.steps.iter().take_while(|step| step.number < ask.step);
        let is_early = earlier.into_iter().any(|step| step.asked < step.samples.len());
        let step = self.find(ask.step)?;
        if ask.place as usize >= step.samples.len() {
            return Err(no_place(ask.step, ask.place));
        }
        if is_early || ask.place as usize != step.asked {
            return Err(Status::invalid_argument(format!(
                "the output of place {} of step {} is not the next",
                ask.place, ask.step
            )));
        }
        step.asked += 1;
        Ok(())
    }

    pub fn gradient(&mut self, gradient: &Gradient, shape: &SideShape) -> Result<(), Status> {
        self.expect(LossOn::Device, "a gradient")?;
        let step = self.find(gradient.step)?;
        let next = step.differentiated + step.gradients.len();
        if gradient.place as usize != next || next >= step.sent {
            return Err(Status::invalid_argument(format!(
                "a gradient of place {} of step {}: that of place {next} is due, after its output",
                gradient.place, gradient.step
            )));
        }
        let numbers = step.samples[next].rows.saturating_mul(shape.hidden());
        let due = 4 * numbers as u64;
        append(&mut step.gradient, gradient.offset, &gradient.bytes, due, "a gradient")?;
        step.hash.bytes(&gradient.bytes);
        if step.gradient.len() as u64 == due {
            let mut whole = vec![0.0; numbers];
            read_numbers(&step.gradient, &mut whole);
            step.gradient = Vec::new();
            step.gradients.push_back(whole);
        }
        Ok(())
    }

    pub fn labels(&mut self, labels: &Labels) -> Result<(), Status> {
        self.expect(LossOn::Trainer, "labels")?;
        let step = self.find(labels.step)?;
        let next = step.differentiated + step.labels.len();
        if labels.place as usize != next || next >= step.samples.len() {
            return Err(Status::invalid_argument(format!(
                "labels of place {} of step {}, which has {} and where place {next} is due",
                labels.place,
                labels.step,
                step.samples.len()
            )));
        }
        if !labels.scale.is_finite() || !labels.bytes.len().is_multiple_of(LABEL_BYTES) {
            return Err(Status::invalid_argument(format!(
                "{} bytes of labels, a label having {LABEL_BYTES}, and a scale of {}",
                labels.bytes.len(),
                labels.scale
            )));
        }
        let due = label_bytes(LossOn::Trainer, step.samples[next].rows);
        append(&mut step.label.1, labels.offset, &labels.bytes, due, "labels")?;
        if labels.offset == 0 {
            step.label.0 = labels.scale;
            step.hash.scale(labels.scale);
        } else if labels.scale != step.label.0 {
            let what = format!("a scale of {} within a sample that has another", labels.scale);
            return Err(Status::invalid_argument(what));
        }
        step.hash.bytes(&labels.bytes);
        if step.label.1.len() as u64 == due {
            let (scale, bytes) = std::mem::take(&mut step.label);
            step.labels.push_back((scale, read_labels(&bytes)));
        }
        Ok(())
    }

    /// A step ends. Returns whether it is the confirmed one: then `confirmed` is its hash.
    pub fn update(&mut self, update: &Update, confirmed: &Hash) -> Result<bool, Status> {
        let Update { step: number, rate, ref hash } = *update;
        let Ok(hash) = Hash::try_from(hash.as_slice()) else {
            return Err(Status::invalid_argument("an update's hash has 32 bytes"));
        };
        if number == self.confirmed && number > 0 {
            return match hash == *confirmed {
                true => Ok(true),
                false => Err(Status::already_exists(format!(
                    "step {number} is confirmed with other contents: another device trains this \
                     session, or this one went back and did not do the same again"
                ))),
            };
        }
        if !rate.is_finite() || rate < 0.0 {
            return Err(Status::invalid_argument(format!("a learning rate of {rate}")));
        }
        let step = self.find(number)?;
        let given = step.differentiated + step.gradients.len() + step.labels.len();
        if given < step.samples.len() || step.update.is_some() {
            return Err(Status::invalid_argument(format!(
                "an update of step {number} after {given} of {} gradients or labels",
                step.samples.len()
            )));
        }
        if step.hash.clone().end(rate) != hash {
            return Err(Status::invalid_argument(format!(
                "step {number} came with another hash than what came of it"
            )));
        }
        step.update = Some((rate, hash));
        Ok(false)
    }

    /// What a worker can do now, which is then taken to be done.
    pub fn next_job(&mut self, shape: &SideShape) -> Option<Job> {
        let loss = self.loss;
        let step = self.steps.front_mut()?;
        if let Some(gradient) = step.gradients.pop_front() {
            step.differentiated += 1;
            return Some(Job::Backward { place: step.differentiated - 1, gradient });
        }
        if let (Some((rate, hash)), true) = (step.update, step.differentiated == step.samples.len())
        {
            let loss = (loss == LossOn::Trainer).then_some(step.loss);
            return Some(Job::Commit { step: step.number, rate, hash, loss });
        }
        let place = step.forwarded;
        let is_due = match loss {
            LossOn::Device => place < step.differentiated + AHEAD,
            LossOn::Trainer => !step.labels.is_empty(),
        };
        if !is_due {
            return None;
        }
        let targets: usize = step.samples.iter().map(|sample| sample.rows).sum();
        let sample = step.samples.get_mut(place)?;
        let (key, rows) = (sample.key, sample.rows);
        let due = tap_bytes(shape, rows);
        let held = match &sample.taps {
            Source::Sent(held) if (held.len() as u64) < due => return None,
            Source::Sent(_) => due,
            Source::Cached(_) | Source::Used => 0,
        };
        step.forwarded += 1;
        self.tap_bytes -= held + label_bytes(loss, rows);
        let taps = std::mem::replace(&mut sample.taps, Source::Used);
        if let Some((scale, labels)) = step.labels.pop_front() {
            step.differentiated += 1;
            let factors = (scale, 1.0 / targets.max(1) as f32);
            return Some(Job::Learn { place, key, taps, labels, factors });
        }
        match taps {
            Source::Sent(taps) => Some(Job::Forward { place, key, rows, taps }),
            Source::Cached(taps) => Some(Job::Again { place, rows, taps }),
            Source::Used => None,
        }
    }

    /// A sample of the step at work was learned from.
    pub fn learned(&mut self, loss: f64) {
        if let Some(step) = self.steps.front_mut() {
            step.loss += loss;
        }
    }

    /// An output of the step at work was computed.
    pub fn computed(&mut self, output: Vec<u8>) {
        if let Some(step) = self.steps.front_mut() {
            step.outputs.push_back(output);
        }
    }

    /// The messages of the next output that was asked for.
    pub fn next_output(&mut self) -> Option<Vec<Output>> {
        let step = self.steps.front_mut()?;
        if step.sent >= step.asked {
            return None;
        }
        let output = step.outputs.pop_front()?;
        let (number, place) = (step.number, step.sent as u32);
        step.sent += 1;
        let parts = output.chunks(PART_BYTES).enumerate();
        let parts = parts.map(|(at, bytes)| Output {
            step: number,
            place,
            offset: (at * PART_BYTES) as u64,
            bytes: bytes.to_vec(),
        });
        Some(parts.collect())
    }

    /// The step at work is on the disk.
    pub fn confirm(&mut self) {
        if self.steps.pop_front().is_some() {
            self.confirmed += 1;
        }
    }
}

/// Bytes of a sample's labels, if there are any.
fn label_bytes(loss: LossOn, rows: usize) -> u64 {
    match loss {
        LossOn::Device => 0,
        LossOn::Trainer => (rows as u64).saturating_mul(LABEL_BYTES as u64),
    }
}

fn no_place(step: u64, place: u32) -> Status {
    Status::invalid_argument(format!("step {step} has no place {place}"))
}

/// Appends the next bytes of something that is `due` bytes long.
fn append(
    held: &mut Vec<u8>,
    offset: u64,
    bytes: &[u8],
    due: u64,
    what: &str,
) -> Result<(), Status> {
    let (before, more) = (held.len() as u64, bytes.len());
    if more == 0 || more > PART_BYTES_MAX || offset != before || before + more as u64 > due {
        return Err(Status::invalid_argument(format!(
            "{more} bytes of {what} at {offset}: {before} of {due} came before, and 1 to \
             {PART_BYTES_MAX} go into a message"
        )));
    }
    if held.is_empty() {
        // `due` lies within what was allowed when the step began.
        held.reserve_exact(due as usize);
    }
    held.extend_from_slice(bytes);
    Ok(())
}
