//! The flags.

mod bench;
mod convert;
mod data;
mod lora;
mod optimizer;
mod serve;
mod side;
mod train;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use smidgen::MemoryBudget;

pub use bench::{BenchArgs, BenchCommand, MeasureArgs, PaperTable, SynthArgs};
pub use convert::{ExportArgs, ExportFormat, FuseArgs, MatrixType, QuantizeArgs};
pub use data::{DataArgs, TemplateArgs, WindowArgs};
pub use lora::{InitLora, LoraArgs};
pub use optimizer::{
    LayerOrderName, MethodArgs, MethodName, OptimizerArgs, OptimizerName, Schedule,
};
pub use serve::{LogForm, ServeArgs};
pub use side::{LossOnName, SideArgs, SideGateName};
pub use train::{CompareArgs, PlanArgs, SpoolType, TrainArgs};

/// Fine-tune a language model inside a memory budget you name.
#[derive(Debug, Parser)]
#[command(name = "smidgen", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the memory budget is too small,
130 and 143 interrupted (what was trained so far is saved).")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fine-tune a small built-in model on a small built-in set, in seconds
    Demo(DemoArgs),
    /// Show what a file will be trained on; prepare it with --out
    Data(DataArgs),
    /// Print the memory that a training run will take, buffer by buffer
    Plan(PlanArgs),
    /// Train a LoRA adapter
    Train(TrainArgs),
    /// Train by several methods from the same start on the same data, side by side
    Compare(CompareArgs),
    /// Train side networks for devices that only run forward
    Serve(ServeArgs),
    /// Measure the loss of a model, with or without an adapter
    Eval(EvalArgs),
    /// Go on with a text
    Generate(GenerateArgs),
    /// Talk with a model, with or without an adapter
    Chat(ConversationArgs),
    /// Rebuild the adapter of a MeZO run from the run's history alone
    Replay(ReplayArgs),
    /// Write an adapter in another program's form
    Export(ExportArgs),
    /// Write a model with an adapter merged into it
    Fuse(FuseArgs),
    /// Write a model with its numbers in fewer bits
    Quantize(QuantizeArgs),
    /// Measure speed, and make models to measure it on
    Bench(BenchArgs),
    /// Print a script that completes flags in a shell
    Completions(CompletionsArgs),
}

#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// The history: smidgen/mezo.jsonl in the output folder of train --method mezo
    #[arg(value_name = "FILE")]
    pub history: PathBuf,
    #[command(flatten)]
    pub model: ModelArgs,
    /// The PEFT adapter that the run started from, if it did
    #[arg(long, value_name = "DIR", visible_alias = "resume-adapter-file")]
    pub init_adapter: Option<PathBuf>,
    /// Write the adapter to this folder, in PEFT's form
    #[arg(short, long, value_name = "DIR", visible_alias = "adapter-path")]
    pub output: PathBuf,
    #[command(flatten)]
    pub out: OutputArgs,
}

/// A model file.
#[derive(Args, Debug)]
pub struct ModelArgs {
    /// The model: a GGUF file of the llama, qwen2, gemma3 or opt family
    #[arg(short, long, value_name = "FILE")]
    pub model: PathBuf,
    /// Take the tokenizer from this tokenizer.json, not from the model file
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
}

/// What the machine gives.
#[derive(Args, Debug)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// The most memory to take: 300MB (MB is 10^6), 1.5GB, 512MiB, bytes, min, unlimited, or auto:
    /// the smaller of 1 GB and half of what is free. It changes the speed, never the result
    /// [default: auto]
    #[arg(long = "memory", value_name = "BYTES")]
    pub asked_memory: Option<MemoryBudget>,
    /// Threads [default: one a core]. They change the speed, never the result
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
}

/// How results are told.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Put one JSON object on stdout, all else on stderr
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Keep the adapter, the model and the data in this folder
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub out: OutputArgs,
}

#[derive(Args, Debug)]
pub struct EvalArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The data: a .txt, .jsonl or .tokens file, or a folder with test (else valid)
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// A PEFT adapter of this model
    #[arg(long, value_name = "DIR", visible_alias = "adapter-path")]
    pub adapter: Option<PathBuf>,
    #[command(flatten)]
    pub window: WindowArgs,
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Write ids and logits of the first sequence to a safetensors file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub logits: Option<PathBuf>,
    #[command(flatten)]
    pub out: OutputArgs,
}

#[derive(Args, Debug)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text to go on with
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: String,
    /// A PEFT adapter of this model
    #[arg(long, value_name = "DIR", visible_alias = "adapter-path")]
    pub adapter: Option<PathBuf>,
    #[command(flatten)]
    pub sample: SampleArgs,
    /// Put BOS in front of the prompt [default: where the model file asks for it]
    #[arg(long, overrides_with = "no_bos")]
    pub bos: bool,
    /// Put no BOS in front of the prompt
    #[arg(long, overrides_with = "bos")]
    pub no_bos: bool,
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub out: OutputArgs,
}

/// How tokens are chosen.
#[derive(Args, Debug)]
pub struct SampleArgs {
    /// At most N new tokens; the token that ends an answer and the end of the context come before
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub max_tokens: u32,
    /// 0 takes the most likely token, more samples more freely
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        visible_alias = "temp",
        allow_negative_numbers = true
    )]
    pub temperature: f64,
    /// Sample among the most likely tokens that reach this probability together
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub top_p: f64,
    /// Decides the samples
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

impl SampleArgs {
    /// As the library takes it, for at most `room` tokens, ended by one of `stop`.
    pub fn config(&self, room: usize, stop: Vec<u32>) -> smidgen::GenerateConfig {
        smidgen::GenerateConfig {
            max_tokens: room.min(self.max_tokens as usize),
            temperature: self.temperature,
            top_p: self.top_p,
            seed: self.seed,
            stop,
        }
    }
}

#[derive(Args, Debug)]
pub struct ConversationArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A PEFT adapter of this model
    #[arg(long, value_name = "DIR", visible_alias = "adapter-path")]
    pub adapter: Option<PathBuf>,
    /// Say only this, print the answer and end [default: lines of the standard input]
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// What the model is told before
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    #[command(flatten)]
    pub template: TemplateArgs,
    /// Tokens of the longest conversation [default: 4096, or fewer if the model or the memory has no
    /// room for them]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    pub context: Option<u32>,
    #[command(flatten)]
    pub sample: SampleArgs,
    #[command(flatten)]
    pub machine: MachineArgs,
    /// With --prompt: put one JSON object on stdout, all else on stderr
    #[arg(long, requires = "prompt", help_heading = "Output")]
    pub json: bool,
}

/// Threads to start: as many as were asked for, or one a core.
pub fn threads(asked: Option<u32>) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    asked.map_or_else(cores, |n| n as usize)
}

impl MachineArgs {
    /// The budget.
    pub fn memory(&self) -> MemoryBudget {
        self.asked_memory.unwrap_or(MemoryBudget::Auto)
    }

    /// Threads to start.
    pub fn threads(&self) -> usize {
        threads(self.threads)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
