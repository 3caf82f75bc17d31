//! Optimisers over one flat run of trainable numbers.

use std::ops::Range;
use std::path::Path;

use smidgen_kernels::{AdamW, Kernels};
use smidgen_runtime::Numbers;

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
    /// As [`OptimizerConfig::state`] names them.
    state: Vec<Numbers>,
}

impl Optimizer {
    /// An optimiser for `len` numbers, before its first step, with its state in memory.
    ///
    /// # Errors
    /// The system does not give the memory for its state.
    pub fn new(config: OptimizerConfig, len: usize) -> Result<Self> {
        Self::with(config, || Ok(Numbers::in_memory(len)?))
    }

    /// The same with its state in scratch files in `folder`, of which the memory holds what
    /// belongs to `window` numbers.
    ///
    /// # Errors
    /// The folder can't be written to or has no room.
    pub fn paged(
        config: OptimizerConfig,
        folder: &Path,
        len: usize,
        window: usize,
    ) -> Result<Self> {
        Self::with(config, || Ok(Numbers::in_file(folder, len, window)?))
    }

    fn with(config: OptimizerConfig, make: impl Fn() -> Result<Numbers>) -> Result<Self> {
        let state = config.state().iter().map(|_| make()).collect::<Result<_>>()?;
        Ok(Self { config, state })
    }

    /// Updates the numbers of `range`, given as `params`, by their gradients. `step` counts from
    /// 1 and is the same for all ranges of a step.
    ///
    /// # Errors
    /// The state's files can't be read or written.
    pub fn update(
        &mut self,
        kernels: Kernels,
        range: Range<usize>,
        params: &mut [f32],
        gradients: &[f32],
        rate: f64,
        step: u64,
    ) -> smidgen_runtime::Result<()> {
        match (self.config, self.state.as_mut_slice()) {
            (OptimizerConfig::AdamW { beta1, beta2, eps, weight_decay }, [mean, mean_square]) => {
                let settings = AdamW { lr: rate, beta1, beta2, eps, weight_decay };
                let mean = mean.piece_mut(range.clone())?;
                let mean_square = mean_square.piece_mut(range)?;
                kernels.adamw(params, gradients, mean, mean_square, settings, step);
            }
            (OptimizerConfig::AdamW { .. }, _) => unreachable!("AdamW has two states"),
            (OptimizerConfig::Sgd { weight_decay }, _) => {
                kernels.sgd(params, gradients, rate as f32, weight_decay as f32);
            }
        }
        Ok(())
    }
}
