//! The settings of a run.

use std::path::PathBuf;

use smidgen_graph::{Budget, Rates};
use smidgen_runtime::SpoolFormat;
use smidgen_runtime::memory;

use crate::adapter::{AdapterShape, InitLoraWeights, LoraConfig};
use crate::base::Base;
use crate::error::{Error, Result};
use crate::method::Method;
use crate::optimizer::OptimizerConfig;
use crate::schedule::Shape;

/// How long a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many optimiser steps.
    Iters(u64),
    /// So many times over the data.
    Epochs(u64),
}

/// The memory that a run may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryBudget {
    /// The smaller of 1 GB and half of what the machine and the control group have free.
    Auto,
    /// So many bytes.
    Bytes(u64),
    /// As little as can be.
    Min,
    /// Whatever saves work.
    Unlimited,
}

impl MemoryBudget {
    /// As the planner takes it; looks at the machine for [`MemoryBudget::Auto`].
    pub fn resolve(self) -> Budget {
        const AUTO: u64 = 1_000_000_000;
        match self {
            Self::Auto => Budget::AtMost(memory::available().map_or(AUTO, |a| AUTO.min(a / 2))),
            Self::Bytes(bytes) => Budget::AtMost(bytes),
            Self::Min => Budget::Least,
            Self::Unlimited => Budget::Unlimited,
        }
    }
}

/// All settings of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig {
    /// How steps find their direction.
    pub method: Method,
    /// What kind of adapter.
    pub lora: LoraConfig,
    /// Starts from this PEFT folder; its rank, alpha and targets replace those of `lora`.
    pub init_adapter: Option<PathBuf>,
    /// What the numbers of a new adapter are.
    pub init_lora_weights: InitLoraWeights,
    /// How long.
    pub length: Length,
    /// Sequences a step, or packs of them, times `grad_accumulation_steps`.
    pub batch_size: usize,
    /// Multiplies the batch; the mean is over all targets of the step.
    pub grad_accumulation_steps: usize,
    /// The optimiser.
    pub optimizer: OptimizerConfig,
    /// The highest rate.
    pub learning_rate: f64,
    /// B's rate is so many times A's: LoRA+ (arXiv:2402.12354); 1 for plain LoRA.
    pub loraplus_ratio: f64,
    /// How the rate goes on after warm-up.
    pub schedule: Shape,
    /// Steps over which the rate rises from zero.
    pub warmup: u64,
    /// Gradients are scaled down to this norm; none for no clipping.
    pub clip: Option<f64>,
    /// Whether whole samples share sequences of up to [`smidgen_text::WindowSpec::longest`]
    /// tokens, see [`crate::Packs`]; attention and positions stay within each sample. The packs are the
    /// same in every epoch.
    pub pack: bool,
    /// Whether each epoch has an order of its own.
    pub shuffle: bool,
    /// Decides the start of A, the order and the dropout masks.
    pub seed: u64,
    /// The budget.
    pub memory: MemoryBudget,
    /// Threads.
    pub threads: usize,
    /// A folder on a disk for scratch files, which a budget that is small needs: values wait there
    /// for their backward, factors and optimiser state for their layer's turn. None for no such
    /// file. Nothing is written before [`crate::Planned::start`], and nothing is left.
    pub spool: Option<PathBuf>,
    /// The most bytes that a step may write to scratch files; none for no limit. A smaller limit
    /// leaves a budget less to choose from.
    pub spool_limit: Option<u64>,
    /// How values are written that wait there for their backward. Bf16 halves what is written and
    /// changes the result wherever the plan has values wait; factors and state are always f32.
    pub spool_format: SpoolFormat,
    /// How fast the machine is, which decides what the plan does with its budget, and never a
    /// result. [`crate::measure_rates`] finds it out.
    pub rates: Rates,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            method: Method::Exact,
            lora: LoraConfig::default(),
            init_adapter: None,
            init_lora_weights: InitLoraWeights::Uniform,
            length: Length::Epochs(1),
            batch_size: 1,
            grad_accumulation_steps: 1,
            optimizer: OptimizerConfig::adamw(0.01),
            learning_rate: 5e-4,
            loraplus_ratio: 1.0,
            schedule: Shape::Constant,
            warmup: 0,
            clip: None,
            pack: false,
            shuffle: true,
            seed: 0,
            memory: MemoryBudget::Auto,
            threads: std::thread::available_parallelism().map_or(1, Into::into),
            spool: None,
            spool_limit: None,
            spool_format: SpoolFormat::F32,
            rates: Rates::REFERENCE,
        }
    }
}

impl TrainConfig {
    pub(crate) fn check(&self) -> Result<()> {
        let positive = |name: &str, n: usize| match n {
            0 => Err(Error::setting(format!("{name} 0: it is at least 1"))),
            _ => Ok(()),
        };
        positive("--batch-size", self.batch_size)?;
        positive("--grad-accumulation-steps", self.grad_accumulation_steps)?;
        positive("--threads", self.threads)?;
        if !(self.learning_rate >= 0.0 && self.learning_rate.is_finite()) {
            let rate = self.learning_rate;
            return Err(Error::setting(format!(
                "--learning-rate {rate}: it is at least 0, and finite"
            )));
        }
        if self.clip.is_some_and(|c| c.is_nan() || c <= 0.0) {
            return Err(Error::setting("--max-grad-norm: it is above 0"));
        }
        let ratio = self.loraplus_ratio;
        if !(ratio > 0.0 && ratio.is_finite()) {
            return Err(Error::setting(format!("--loraplus-ratio {ratio}: it must be above 0")));
        }
        if let (Some(folder), true) =
            (&self.init_adapter, self.init_lora_weights != InitLoraWeights::Uniform)
        {
            return Err(Error::setting(format!(
                "--init-adapter {} has numbers already; leave --init-lora-weights out",
                folder.display()
            )));
        }
        self.optimizer.check()?;
        if self.batch_size.checked_mul(self.grad_accumulation_steps).is_none_or(|n| n > 1 << 20) {
            return Err(Error::setting("more than 2^20 sequences a step"));
        }
        Ok(())
    }

    pub(crate) fn sequences(&self) -> usize {
        self.batch_size * self.grad_accumulation_steps
    }
}

/// Refuses what can't go with the run's method.
pub(crate) fn check_method(base: &Base, config: &TrainConfig, shape: &AdapterShape) -> Result<()> {
    match config.method {
        Method::Exact => Ok(()),
        Method::Lcsb(lcsb) => lcsb.check(base.info.layers - shape.first_layer()),
        Method::Mezo(mezo) => mezo.check(config, shape.config().dropout),
        Method::Side(side) => side.check(config),
    }
}
