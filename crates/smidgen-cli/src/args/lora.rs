//! Flags of the adapter.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use smidgen::TargetModules;

/// What kind of adapter. What is not given comes from --init-adapter, else from the defaults.
#[derive(Args, Debug)]
#[command(next_help_heading = "Adapter")]
pub struct LoraArgs {
    /// Rank [default: 8]
    #[arg(short = 'r', long, value_name = "R", visible_alias = "lora-r")]
    pub lora_rank: Option<usize>,
    /// The adapter is scaled by alpha / rank [default: 16]
    #[arg(long, value_name = "ALPHA", allow_negative_numbers = true)]
    pub lora_alpha: Option<f64>,
    /// Scale by alpha / sqrt(rank) instead: rank-stabilised LoRA, for high ranks
    #[arg(long)]
    pub use_rslora: bool,
    /// Probability that an input of the adapter is dropped [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub lora_dropout: Option<f64>,
    /// Projections: all-linear, or some of q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj,
    /// of opt out_proj,fc1,fc2 for the last four (GGUF's names too) [default: all-linear]
    #[arg(long, value_name = "NAMES", value_parser = target_modules)]
    pub target_modules: Option<TargetModules>,
    /// Only the last N layers [default: all]
    #[arg(long, value_name = "N")]
    pub num_layers: Option<usize>,
    /// Start from this PEFT adapter; its rank, alpha and targets hold
    #[arg(long, value_name = "DIR", visible_alias = "resume-adapter-file")]
    pub init_adapter: Option<PathBuf>,
    /// What the numbers of a new adapter are; all but loftq leave the model as it is at first
    #[arg(long, value_name = "NAME", value_enum, default_value_t = InitLora::Default)]
    pub init_lora_weights: InitLora,
    /// With --init-lora-weights loftq: the model that the base was quantised from, a GGUF file or a
    /// Hugging Face folder
    #[arg(long, value_name = "PATH")]
    pub loftq_source: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InitLora {
    /// A uniform, B zero
    Default,
    /// A normal with deviation 1 / rank, B zero
    Gaussian,
    /// B A corrects what quantisation took from the weights, as far as its rank goes
    Loftq,
}

/// Names are checked against the model's projections by the library.
fn target_modules(text: &str) -> Result<TargetModules, String> {
    if text == "all-linear" {
        return Ok(TargetModules::AllLinear);
    }
    let targets = TargetModules::Names(text.split(',').map(|n| n.trim().to_owned()).collect());
    targets.check().map(|()| targets).map_err(|error| error.to_string())
}
