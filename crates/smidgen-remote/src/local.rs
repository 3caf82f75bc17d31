//! A side network that is trained in the device's own process.

use std::collections::BTreeMap;

use smidgen_train::{LinkError, SideHead, SideLabel, SideLink, SideSample};

use crate::error::{Error, Result};
use crate::trainer::SideTrainer;

/// A link without a wire.
#[derive(Debug)]
pub struct LocalLink {
    trainer: SideTrainer,
    /// Where the trainer computes losses, if it does.
    head: Option<SideHead>,
    confirmed: u64,
    /// The last step whose samples were learned from.
    learned: u64,
    /// Of its losses.
    loss: Option<f64>,
    /// Samples of the steps under way, by step and place.
    samples: BTreeMap<(u64, usize), Sample>,
    /// What is left of the output that is being taken.
    output: Vec<f32>,
    /// The gradient that is being given.
    gradient: Vec<f32>,
}

#[derive(Debug)]
struct Sample {
    rows: usize,
    taps: Vec<u8>,
    scale: f32,
    labels: Vec<SideLabel>,
}

impl LocalLink {
    /// A link to `trainer`.
    pub fn new(trainer: SideTrainer) -> Self {
        Self {
            trainer,
            head: None,
            confirmed: 0,
            learned: 0,
            loss: None,
            samples: BTreeMap::new(),
            output: Vec::new(),
            gradient: Vec::new(),
        }
    }

    /// The same where the trainer computes losses, through `head`.
    pub fn with_head(trainer: SideTrainer, head: SideHead) -> Self {
        Self { head: Some(head), ..Self::new(trainer) }
    }

    /// What trains the network.
    pub fn trainer(&self) -> &SideTrainer {
        &self.trainer
    }

    fn sample(&mut self, step: u64, place: usize) -> Result<&mut Sample> {
        let sample = self.samples.get_mut(&(step, place));
        sample.ok_or(Error::NoOutput { sample: place as u64 })
    }

    /// Learns from the samples of a step whose labels were told: what the step's update begins with,
    /// unless it was done before.
    ///
    /// # Errors
    /// Those of [`SideTrainer::learn`].
    pub fn learn(&mut self, step: u64) -> Result<()> {
        let Some(head) = self.head.as_mut().filter(|_| self.learned < step) else { return Ok(()) };
        self.learned = step;
        let later = self.samples.split_off(&(step + 1, 0));
        let samples = std::mem::replace(&mut self.samples, later);
        let targets: usize = samples.values().map(|sample| sample.rows).sum();
        let weight = 1.0 / targets.max(1) as f32;
        let mut sum = 0.0;
        for ((_, place), Sample { taps, scale, labels, .. }) in &samples {
            let sample = (*place as u64, taps.as_slice());
            sum += self.trainer.learn(head, sample, labels, (*scale, weight))?;
        }
        self.loss = Some(sum);
        Ok(())
    }
}

impl SideLink for LocalLink {
    fn confirmed(&mut self) -> Result<u64, LinkError> {
        Ok(self.confirmed)
    }

    fn begin(&mut self, step: u64, samples: &[SideSample]) -> Result<Vec<bool>, LinkError> {
        for (place, sample) in samples.iter().enumerate() {
            let (taps, labels) = (Vec::new(), Vec::new());
            let sample = Sample { rows: sample.rows, taps, scale: 1.0, labels };
            self.samples.insert((step, place), sample);
        }
        Ok(vec![true; samples.len()])
    }

    fn taps(&mut self, step: u64, place: usize, bytes: &[u8]) -> Result<(), LinkError> {
        self.sample(step, place)?.taps.extend_from_slice(bytes);
        Ok(())
    }

    fn labels(
        &mut self,
        step: u64,
        place: usize,
        scale: f32,
        labels: &[SideLabel],
    ) -> Result<(), LinkError> {
        if self.head.is_none() {
            return Err(Error::NoHead.into());
        }
        let sample = self.sample(step, place)?;
        (sample.scale, sample.labels) = (scale, labels.to_vec());
        Ok(())
    }

    fn output(&mut self, step: u64, place: usize, output: &mut [f32]) -> Result<(), LinkError> {
        if self.output.is_empty() {
            let sample = place as u64;
            let Sample { rows, taps, .. } =
                self.samples.remove(&(step, place)).ok_or(Error::NoOutput { sample })?;
            self.output = self.trainer.forward(sample, rows, &taps)?;
            self.gradient.reserve(self.output.len());
        }
        let (found, expected) = (self.output.len(), output.len());
        if found < expected {
            return Err(Error::Size { what: "numbers of an output", found, expected }.into());
        }
        let rest = self.output.split_off(expected);
        output.copy_from_slice(&std::mem::replace(&mut self.output, rest));
        Ok(())
    }

    fn gradient(&mut self, _: u64, place: usize, gradient: &[f32]) -> Result<(), LinkError> {
        self.gradient.extend_from_slice(gradient);
        if self.output.is_empty() {
            self.trainer.backward(place as u64, &std::mem::take(&mut self.gradient))?;
        }
        Ok(())
    }

    fn update(&mut self, step: u64, rate: f64) -> Result<(), LinkError> {
        self.learn(step)?;
        self.trainer.update(rate)?;
        self.confirmed = step;
        Ok(())
    }

    fn confirm(&mut self, _: u64) -> Result<Option<f64>, LinkError> {
        Ok(self.loss)
    }

    fn numbers(&mut self, take: &mut dyn FnMut(&[f32])) -> Result<(), LinkError> {
        take(self.trainer.network(1.0)?.numbers());
        Ok(())
    }
}
