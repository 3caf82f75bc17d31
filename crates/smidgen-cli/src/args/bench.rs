//! Flags of bench.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};
use smidgen::MemoryBudget;
use smidgen::synth::Preset;

use super::{MethodName, OptimizerName, OutputArgs};

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub command: Option<BenchCommand>,
    /// The model: a GGUF file of the llama, qwen2, gemma3 or opt family
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

fn preset() -> impl TypedValueParser<Value = Preset> {
    PossibleValuesParser::new(Preset::ALL.map(Preset::name))
        .map(|name| Preset::from_name(&name).expect("it is one of the names"))
}
