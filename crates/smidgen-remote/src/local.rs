//! A side network that is trained in the device's own process.

use std::collections::BTreeMap;

use smidgen_train::{LinkError, SideLink};

use crate::error::{Error, Result};
use crate::trainer::SideTrainer;

/// A link without a wire.
#[derive(Debug)]
pub struct LocalLink {
    trainer: SideTrainer,
    outputs: BTreeMap<u64, Vec<f32>>,
}

impl LocalLink {
    /// A link to `trainer`.
    pub fn new(trainer: SideTrainer) -> Self {
        Self { trainer, outputs: BTreeMap::new() }
    }

    /// What trains the network.
    pub fn trainer(&self) -> &SideTrainer {
        &self.trainer
    }
}

impl SideLink for LocalLink {
    fn taps(&mut self, sample: u64, rows: usize, bytes: &[u8]) -> Result<(), LinkError> {
        let output = self.trainer.forward(sample, rows, bytes)?;
        self.outputs.insert(sample, output);
        Ok(())
    }

    fn output(&mut self, sample: u64, output: &mut [f32]) -> Result<(), LinkError> {
        let found = self.outputs.remove(&sample).ok_or(Error::NoOutput { sample })?;
        if found.len() != output.len() {
            let (found, expected) = (found.len(), output.len());
            return Err(Error::Size { what: "numbers of an output", found, expected }.into());
        }
        output.copy_from_slice(&found);
        Ok(())
    }

    fn gradient(&mut self, sample: u64, gradient: &[f32]) -> Result<(), LinkError> {
        Ok(self.trainer.backward(sample, gradient)?)
    }

    fn update(&mut self, _: u64, rate: f64) -> Result<(), LinkError> {
        Ok(self.trainer.update(rate)?)
    }

    fn numbers(&mut self) -> Result<Vec<f32>, LinkError> {
        Ok(self.trainer.network(1.0)?.numbers().to_vec())
    }
}
