//! Flags of train, and of what takes the same: plan and compare.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use smidgen::MemoryBudget;

use super::{
    LoraArgs, MachineArgs, MethodName, ModelArgs, OptimizerArgs, OutputArgs, SideArgs, WindowArgs,
};
use crate::memory_trace::TraceFile;

#[derive(Args, Debug)]
pub struct TrainArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The data: a .txt, .jsonl or .tokens file, or a folder with train and perhaps valid
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Write the adapter to this folder, in PEFT's form
    #[arg(short, long, value_name = "DIR", visible_alias = "adapter-path")]
    pub output: Option<PathBuf>,
    /// Stop after the plan
    #[arg(long)]
    pub dry_run: bool,
    /// Read flags from a YAML file: their long names are its keys; the command line wins
    #[arg(short, long, value_name = "FILE.yaml")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub length: LengthArgs,
    #[command(flatten)]
    pub window: WindowArgs,
    /// Let whole samples share sequences of up to --max-seq-length tokens, none seeing another; a
    /// batch is then of such packs
    #[arg(long, help_heading = "Data")]
    pub pack: bool,
    /// Read the data in the file's order, every epoch
    #[arg(long, help_heading = "Data")]
    pub no_shuffle: bool,
    #[command(flatten)]
    pub lora: LoraArgs,
    #[command(flatten)]
    pub optimizer: OptimizerArgs,
    #[command(flatten)]
    pub side: SideArgs,
    #[command(flatten)]
    pub watch: WatchArgs,
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Folder on a disk for the scratch file of a budget that is small: blocks' inputs wait there
    /// for their backward. It has no name and goes with the run [default: --output]
    #[arg(long, value_name = "DIR", help_heading = "Machine")]
    pub spool_dir: Option<PathBuf>,
    /// Use no scratch file
    #[arg(long, conflicts_with = "spool_dir", help_heading = "Machine")]
    pub no_spool: bool,
    /// The most that a step may write to scratch files, as --memory takes it [default: what makes
    /// it fastest]. Flash wears out; the plan says what is written
    #[arg(long, value_name = "BYTES", conflicts_with = "no_spool", help_heading = "Machine")]
    pub spool_limit: Option<Bytes>,
    /// How values are written that wait in the scratch file. bf16 halves what is written and
    /// changes the result, by how much depends on the budget
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = SpoolType::F32)]
    #[arg(help_heading = "Machine")]
    pub spool_type: SpoolType,
    #[command(flatten)]
    pub rates: RatesArgs,
    #[command(flatten)]
    pub out: OutputArgs,
}

/// An amount that is a number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl std::str::FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<MemoryBudget>() {
            Ok(MemoryBudget::Bytes(bytes)) => Ok(Self(bytes)),
            Ok(_) => Err(format!("{text:?} is no amount; write 100MB, 1.5GB or a number of bytes")),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// What train takes, for all runs, and the runs.
#[derive(Args, Debug)]
pub struct CompareArgs {
    /// A run: its method, and flags of train that it has over those of all, as in "mezo --iters 1000
    /// --learning-rate 1e-4"; may be given more than once
    #[arg(long = "run", value_name = "METHOD FLAGS", required = true)]
    pub runs: Vec<String>,
    #[command(flatten)]
    pub train: TrainArgs,
    /// The flags as they were typed, from the first behind the command's name on.
    #[arg(skip)]
    pub typed: Vec<std::ffi::OsString>,
}

/// What train takes, and more ways to look at it.
#[derive(Args, Debug)]
pub struct PlanArgs {
    #[command(flatten)]
    pub train: TrainArgs,
    /// Show what every budget would give, as a table; with a file, as a picture too
    #[arg(long, value_name = "FILE.svg", num_args = 0..=1, help_heading = "Output")]
    pub curve: Option<Option<PathBuf>>,
}

/// How fast the machine is.
#[derive(Args, Debug)]
#[command(next_help_heading = "Machine")]
pub struct RatesArgs {
    /// Plan with the rates of this file, as `smidgen bench rates` prints them, or with those of a
    /// `reference` machine [default: measured once and remembered]
    #[arg(long, value_name = "FILE")]
    pub assume_rates: Option<PathBuf>,
}

/// How long, and how much a step.
#[derive(Args, Debug)]
#[command(next_help_heading = "Length")]
pub struct LengthArgs {
    /// Optimiser steps
    #[arg(short, long, value_name = "N", conflicts_with = "epochs")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=u64::from(u32::MAX)))]
    pub iters: Option<u64>,
    /// Times over the data [default: 1]
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=u64::from(u32::MAX)))]
    pub epochs: Option<u64>,
    /// Sequences a step, with --pack packs
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    pub batch_size: usize,
    /// Multiplies the batch; the mean is over all its targets
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub grad_accumulation_steps: usize,
}

/// What is looked at and saved on the way.
#[derive(Args, Debug)]
#[command(next_help_heading = "On the way")]
pub struct WatchArgs {
    /// Data to report the loss of [default: a data folder's valid file]
    #[arg(long, value_name = "FILE")]
    pub valid_data: Option<PathBuf>,
    /// Only the first N windows or samples of the valid data
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub valid_chunks: Option<u32>,
    /// Report the loss of the valid data every N steps; without it, at the end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub steps_per_eval: Option<u64>,
    /// Show the model's answers to the prompts of N samples of the valid data, before and after
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub sample_prompts: usize,
    /// Tokens of such an answer, at most
    #[arg(long, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub sample_tokens: u32,
    /// Save the adapter and the run's state every N steps, besides every five minutes and at the end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub save_every: Option<u64>,
    /// Go on with the run that was interrupted or killed in the output folder, as if it had not
    /// been; begin where none was saved yet
    #[arg(long)]
    pub resume: bool,
    /// With --resume, go on though data, model or settings are others; without it, begin anew over
    /// a run that is not finished
    #[arg(long)]
    pub force: bool,
    /// Write losses, rates and memory for TensorBoard too, to `smidgen/tensorboard` in the output
    /// folder
    #[arg(long)]
    pub tensorboard: bool,
    /// Write what the run took over its time: a picture to F.svg, or numbers to F.csv or F.jsonl;
    /// may be given more than once
    #[arg(long, value_name = "F")]
    pub memory_trace: Vec<TraceFile>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SpoolType {
    F32,
    Bf16,
}

impl TrainArgs {
    /// The budget that the method leaves, or that was asked for.
    pub fn memory(&self) -> MemoryBudget {
        match self.optimizer.method.method {
            MethodName::Mesp => MemoryBudget::Min,
            _ => self.machine.memory(),
        }
    }
}
