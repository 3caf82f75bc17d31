//! A side network that is trained in the device's own process.

use std::collections::BTreeMap;

use smidgen_train::{LinkError, SideLink, SideSample};

use crate::error::{Error, Result};
use crate::trainer::SideTrainer;

/// A link without a wire.
#[derive(Debug)]
pub struct LocalLink {
    trainer: SideTrainer,
    confirmed: u64,
    /// Samples of the steps under way, by step and place.
    samples: BTreeMap<(u64, usize), Taps>,
}

#[derive(Debug)]
struct Taps {
    rows: usize,
    bytes: Vec<u8>,
}

impl LocalLink {
    /// A link to `trainer`.
    pub fn new(trainer: SideTrainer) -> Self {
        Self { trainer, confirmed: 0, samples: BTreeMap::new() }
    }

    /// What trains the network.
    pub fn trainer(&self) -> &SideTrainer {
        &self.trainer
    }
}

impl SideLink for LocalLink {
    fn confirmed(&mut self) -> Result<u64, LinkError> {
        Ok(self.confirmed)
    }

    fn begin(&mut self, step: u64, samples: &[SideSample]) -> Result<Vec<bool>, LinkError> {
        for (place, sample) in samples.iter().enumerate() {
            let taps = Taps { rows: sample.rows, bytes: Vec::new() };
            self.samples.insert((step, place), taps);
        }
        Ok(vec![true; samples.len()])
    }

    fn taps(&mut self, step: u64, place: usize, bytes: &[u8]) -> Result<(), LinkError> {
        let taps = self.samples.get_mut(&(step, place));
        taps.ok_or(Error::NoOutput { sample: place as u64 })?.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn output(&mut self, step: u64, place: usize, output: &mut [f32]) -> Result<(), LinkError> {
        let sample = place as u64;
        let taps = self.samples.remove(&(step, place)).ok_or(Error::NoOutput { sample })?;
        let found = self.trainer.forward(sample, taps.rows, &taps.bytes)?;
        if found.len() != output.len() {
            let (found, expected) = (found.len(), output.len());
            return Err(Error::Size { what: "numbers of an output", found, expected }.into());
        }
        output.copy_from_slice(&found);
        Ok(())
    }

    fn gradient(&mut self, _: u64, place: usize, gradient: &[f32]) -> Result<(), LinkError> {
        Ok(self.trainer.backward(place as u64, gradient)?)
    }

    fn update(&mut self, step: u64, rate: f64) -> Result<(), LinkError> {
        self.trainer.update(rate)?;
        self.confirmed = step;
        Ok(())
    }

    fn confirm(&mut self, _: u64) -> Result<(), LinkError> {
        Ok(())
    }

    fn numbers(&mut self, take: &mut dyn FnMut(&[f32])) -> Result<(), LinkError> {
        take(self.trainer.network(1.0)?.numbers());
        Ok(())
    }
}
