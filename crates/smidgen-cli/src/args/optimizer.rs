//! Flags of how the adapter is updated.

use clap::{Args, ValueEnum};

/// How the adapter is updated.
#[derive(Args, Debug)]
#[command(next_help_heading = "Optimisation")]
pub struct OptimizerArgs {
    /// The highest learning rate [default: 5e-4; 0.1 (1 - momentum) for sgd, 3e-5 for mezo, 1e-3
    /// for side]
    #[arg(long, value_name = "RATE", visible_alias = "lr", allow_negative_numbers = true)]
    pub learning_rate: Option<f64>,
    /// How the rate goes on after warm-up
    #[arg(long, value_name = "SHAPE", value_enum, default_value_t = Schedule::Constant)]
    pub lr_schedule: Schedule,
    /// Steps over which the rate rises from zero
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub warmup: u64,
    /// B's learning rate is RATIO times A's: LoRA+, whose paper takes 16 [default: 1]
    #[arg(long, value_name = "RATIO", allow_negative_numbers = true)]
    pub loraplus_ratio: Option<f64>,
    /// The optimiser [default: adamw; sgd for mezo]
    #[arg(long, value_name = "NAME", value_enum)]
    pub optimizer: Option<OptimizerName>,
    /// How much of the step before is in a step of sgd, 0.9 say [default: 0]
    #[arg(long, value_name = "M", allow_negative_numbers = true)]
    pub momentum: Option<f64>,
    /// Weight decay [default: 0.01 for adamw and adamw8bit, 0 for sgd]
    #[arg(long, value_name = "W", allow_negative_numbers = true)]
    pub weight_decay: Option<f64>,
    /// Scale gradients down to this norm
    #[arg(long, value_name = "NORM", allow_negative_numbers = true)]
    pub max_grad_norm: Option<f64>,
    /// Decides the start of the adapter, the order of the data and dropout
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub method: MethodArgs,
}

/// How a step finds its direction.
#[derive(Args, Debug)]
pub struct MethodArgs {
    /// How a step finds its direction
    #[arg(long, value_name = "NAME", value_enum, default_value_t = MethodName::Exact)]
    pub method: MethodName,
    /// lcsb: layers that a step walks back through [default: half]
    #[arg(long, value_name = "K")]
    pub layers_per_step: Option<usize>,
    /// lcsb: which ones
    #[arg(long, value_name = "ORDER", value_enum)]
    pub layer_order: Option<LayerOrderName>,
    /// mezo: how far a perturbation goes [default: 0.001]
    #[arg(long, value_name = "EPS", allow_negative_numbers = true)]
    pub zo_eps: Option<f64>,
    /// mezo: directions a step, whose mean it takes [default: 1]
    #[arg(long, value_name = "N")]
    pub zo_samples: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Schedule {
    Constant,
    Linear,
    Cosine,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OptimizerName {
    Adamw,
    /// AdamW with its state in 8 bits a number: a quarter of its memory, other numbers
    Adamw8bit,
    Sgd,
}

impl OptimizerName {
    /// As the flag takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Adamw => "adamw",
            Self::Adamw8bit => "adamw8bit",
            Self::Sgd => "sgd",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MethodName {
    /// The gradient of all layers; keeps or recomputes, as the memory allows
    #[value(alias = "mebp")]
    Exact,
    /// The same with --memory min, which it stands for
    Mesp,
    /// The gradient of some layers a step, the others being passed by: not the exact gradient
    Lcsb,
    /// Two forward passes and no gradient
    Mezo,
    /// A network beside the model, which a server trains while this machine only runs forward
    #[value(alias = "mobillm")]
    Side,
}

/// Which layers have their turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LayerOrderName {
    /// Those behind the ones of the step before
    Cyclic,
    /// Drawn anew each step
    Random,
}
