//! The flags.

mod convert;
mod lora;

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use smidgen::MemoryBudget;
use smidgen::synth::Preset;

use crate::memory_trace::TraceFile;

pub use convert::{ExportArgs, ExportFormat, FuseArgs, FusedType, QuantizeArgs};
pub use lora::{InitLora, LoraArgs};

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
    /// The model: a GGUF file of the llama, qwen2 or gemma3 family
    #[arg(short, long, value_name = "FILE")]
    pub model: PathBuf,
    /// Take the tokenizer from this tokenizer.json, not from the model file
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
}

/// How data is cut into sequences.
#[derive(Args, Debug)]
#[command(next_help_heading = "Data")]
pub struct WindowArgs {
    /// Tokens of the longest sequence: samples are cut to it, text is read in windows of it
    #[arg(long, value_name = "L", default_value_t = 256)]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    pub max_seq_length: u32,
    /// Only the first N windows or samples; valid data is read whole
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub chunks: Option<u32>,
    /// Put BOS in front of every sequence that does not begin with it
    #[arg(long)]
    pub bos: bool,
    /// Leave prompts, and all of a chat but the assistant's turns, out of the loss (the default)
    #[arg(long, overrides_with = "no_mask_prompt")]
    pub mask_prompt: bool,
    /// Train on prompts too, and on all turns of a chat
    #[arg(long, overrides_with = "mask_prompt")]
    pub no_mask_prompt: bool,
    #[command(flatten)]
    pub chat: ChatArgs,
}

/// How a chat is written.
#[derive(Args, Debug)]
pub struct TemplateArgs {
    /// Write chats with this template: a chat_template.jinja or tokenizer_config.json [default: those
    /// beside --tokenizer, else the model file's own]
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
}

impl TemplateArgs {
    /// The model with the template of `--chat-template`.
    pub fn apply(&self, base: smidgen::Base) -> smidgen::Base {
        match &self.chat_template {
            Some(template) => base.with_chat_template(template),
            None => base,
        }
    }
}

/// What the lines of a .jsonl file are, and how a chat is written.
#[derive(Args, Debug)]
#[command(next_help_heading = "Data")]
pub struct ChatArgs {
    #[command(flatten)]
    pub template: TemplateArgs,
    /// The key of a text, all of which is learned
    #[arg(long, value_name = "KEY", default_value = "text")]
    pub text_feature: String,
    /// The key of a prompt: a text or a list of messages
    #[arg(long, value_name = "KEY", default_value = "prompt")]
    pub prompt_feature: String,
    /// The key of a completion, likewise
    #[arg(long, value_name = "KEY", default_value = "completion")]
    pub completion_feature: String,
    /// The key of a chat's messages [default: messages, or conversations]
    #[arg(long, value_name = "KEY")]
    pub chat_feature: Option<String>,
    /// Keys that may stand there and are not read
    #[arg(long, value_name = "KEYS", value_delimiter = ',')]
    pub ignore_features: Vec<String>,
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
pub struct DataArgs {
    /// The data: a .txt, .jsonl or .tokens file, or a folder with a train file
    #[arg(value_name = "FILE")]
    pub data: PathBuf,
    #[command(flatten)]
    pub model: ModelArgs,
    /// Write the token file, which train and eval take in place of the text
    #[arg(long, value_name = "FILE.tokens")]
    pub out: Option<PathBuf>,
    /// Show the first N sequences
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub show: usize,
    /// The most memory that preparing may take: 30MB (MB is 10^6), bytes, min, unlimited, or auto:
    /// the smaller of 1 GB and half of what is free
    #[arg(long, value_name = "BYTES", default_value = "auto")]
    pub memory: MemoryBudget,
    #[command(flatten)]
    pub window: WindowArgs,
    /// Say how samples fit into packs, sequences of up to --max-seq-length tokens that several share
    #[arg(long, help_heading = "Data")]
    pub pack: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

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
    /// --learning-rate 1e-6"; may be given more than once
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

/// How the adapter is updated.
#[derive(Args, Debug)]
#[command(next_help_heading = "Optimisation")]
pub struct OptimizerArgs {
    /// The highest learning rate
    #[arg(
        long,
        value_name = "RATE",
        default_value_t = 1e-4,
        visible_alias = "lr",
        allow_negative_numbers = true
    )]
    pub learning_rate: f64,
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

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub command: Option<BenchCommand>,
    /// The model: a GGUF file of the llama, qwen2 or gemma3 family
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Tokens of a step: one sequence of random tokens
    #[arg(long, value_name = "L,...", value_delimiter = ',', default_value = "256")]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    pub max_seq_length: Vec<u32>,
    /// Ranks of the adapter
    #[arg(short = 'r', long, value_name = "R,...", value_delimiter = ',', default_value = "16")]
    pub lora_rank: Vec<usize>,
    /// Threads [default: one a core]
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Vec<u32>,
    /// Budgets, as train takes them
    #[arg(long, value_name = "BYTES,...", value_delimiter = ',', default_value = "min,unlimited")]
    pub memory: Vec<MemoryBudget>,
    /// The optimiser [default: adamw; sgd for mezo]
    #[arg(long, value_name = "NAME", value_enum)]
    pub optimizer: Option<OptimizerName>,
    /// Rounds that are timed, each a step, two forwards and two f32 products
    #[arg(long, value_name = "N", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// How a step finds its direction; lcsb walks back through half of the layers
    #[arg(long, value_name = "NAME", value_enum, default_value_t = MethodName::Exact)]
    pub method: MethodName,
    #[command(flatten)]
    pub table: TableArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// A paper's table, measured here.
#[derive(Args, Debug)]
#[command(next_help_heading = "A paper's table")]
pub struct TableArgs {
    /// Measure the shapes of a paper's table and print it beside what they take here
    #[arg(long, value_name = "NAME", value_enum, conflicts_with = "model")]
    pub table: Option<PaperTable>,
    /// With --table: a folder for models of these shapes with random weights, which are made there
    /// where they are missing
    #[arg(long, value_name = "DIR")]
    pub models: Option<PathBuf>,
    /// With --table: only these shapes
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = preset())]
    pub presets: Vec<Preset>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PaperTable {
    /// MeBP, arXiv 2510.03425
    Mebp,
    /// MeSP, arXiv 2602.13069
    Mesp,
    /// LCSB, arXiv 2602.13073
    Lcsb,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Write a model of a published model's shapes, with random Q4_0 weights
    Synth(SynthArgs),
    /// Measure this machine anew, remember it for plans, and print it as JSON
    Rates(MeasureArgs),
}

#[derive(Args, Debug)]
pub struct MeasureArgs {
    /// Threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// A folder on the disk that scratch files go to
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub spool_dir: PathBuf,
}

#[derive(Args, Debug)]
pub struct SynthArgs {
    /// Whose shapes
    #[arg(long, value_name = "NAME", value_parser = preset())]
    pub preset: Preset,
    /// Write the GGUF file here, where nothing may be yet
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Decides the weights: a seed gives one file, bit for bit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SpoolType {
    F32,
    Bf16,
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
}

/// Which layers have their turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LayerOrderName {
    /// Those behind the ones of the step before
    Cyclic,
    /// Drawn anew each step
    Random,
}

fn preset() -> impl TypedValueParser<Value = Preset> {
    PossibleValuesParser::new(Preset::ALL.map(Preset::name))
        .map(|name| Preset::from_name(&name).expect("it is one of the names"))
}

impl WindowArgs {
    /// As the library takes it; preparing may take `memory`.
    pub fn options(&self, memory: MemoryBudget) -> smidgen::DataOptions {
        let mask_prompt = match (self.mask_prompt, self.no_mask_prompt) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        };
        let window = smidgen::WindowSpec {
            max_seq_length: self.max_seq_length as usize,
            chunks: self.chunks.map(|n| n as usize),
            bos: self.bos,
        };
        let features = self.chat.features();
        smidgen::DataOptions { window, mask_prompt, features, memory }
    }
}

impl ChatArgs {
    fn features(&self) -> smidgen::FeatureNames {
        smidgen::FeatureNames {
            text: self.text_feature.clone(),
            prompt: self.prompt_feature.clone(),
            completion: self.completion_feature.clone(),
            chat: self.chat_feature.clone(),
            ignored: self.ignore_features.clone(),
        }
    }
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

impl TrainArgs {
    /// The budget that the method leaves, or that was asked for.
    pub fn memory(&self) -> MemoryBudget {
        match self.optimizer.method.method {
            MethodName::Mesp => MemoryBudget::Min,
            _ => self.machine.memory(),
        }
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
