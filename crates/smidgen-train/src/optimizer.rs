//! Optimisers over one flat run of trainable numbers.

use std::ops::Range;

use smidgen_kernels::{AdamW, Kernels};
use smidgen_runtime::sealed;

use crate::error::Result;

/// Which optimiser, and its settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OptimizerConfig {
    /// Decoupled weight decay, as torch.optim.AdamW.
    AdamW {
        /// Decay of the mean of gradients.
        beta1: f64,
        /// Decay of the mean of squared gradients.
        beta2: f64,
        /// Added to the root of the mean square.
        eps: f64,
        /// Decoupled weight decay.
        weight_decay: f64,
    },
    /// Plain gradient descent, as torch.optim.SGD without momentum.
    Sgd {
        /// Added to the gradient as weight_decay times the weight.
        weight_decay: f64,
    },
}

impl OptimizerConfig {
    /// AdamW with its usual constants.
    pub fn adamw(weight_decay: f64) -> Self {
        Self::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay }
    }

    /// The weight decay.
    pub fn weight_decay(&self) -> f64 {
        match *self {
            Self::AdamW { weight_decay, .. } | Self::Sgd { weight_decay } => weight_decay,
        }
    }

    /// Names of the states that are as large as the trainable numbers.
    pub fn state(&self) -> Vec<&'static str> {
        match self {
            Self::AdamW { .. } => vec!["AdamW mean", "AdamW mean square"],
            Self::Sgd { .. } => vec![],
        }
    }
}

/// An optimiser with its state.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    mean: Vec<f32>,
    mean_square: Vec<f32>,
}

impl Optimizer {
    /// An optimiser for `len` numbers, before its first step.
    ///
    /// # Errors
    /// The system does not give the memory for its state.
    pub fn new(config: OptimizerConfig, len: usize) -> Result<Self> {
        let len = if config.state().is_empty() { 0 } else { len };
        let (mean, mean_square) = (sealed(len)?, sealed(len)?);
        Ok(Self { config, mean, mean_square })
    }

    /// Updates the numbers of `range`, given as `params`, by their gradients. `step` counts from
    /// 1 and is the same for all ranges of a step.
    pub fn update(
        &mut self,
        kernels: Kernels,
        range: Range<usize>,
        params: &mut [f32],
        gradients: &[f32],
        rate: f64,
        step: u64,
    ) {
        match self.config {
            OptimizerConfig::AdamW { beta1, beta2, eps, weight_decay } => {
                let settings = AdamW { lr: rate, beta1, beta2, eps, weight_decay };
                let mean = &mut self.mean[range.clone()];
                let mean_square = &mut self.mean_square[range];
                kernels.adamw(params, gradients, mean, mean_square, settings, step);
            }
            OptimizerConfig::Sgd { weight_decay } => {
                kernels.sgd(params, gradients, rate as f32, weight_decay as f32);
            }
        }
    }
}
