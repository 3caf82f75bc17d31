//! Flags of what writes models and adapters as other files.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use smidgen::Format;

use super::OutputArgs;

#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The model that the adapter was trained on, a GGUF file
    #[arg(short, long, value_name = "FILE")]
    pub model: PathBuf,
    /// The adapter: a PEFT folder of this model
    #[arg(long, value_name = "DIR", visible_alias = "adapter-path")]
    pub adapter: PathBuf,
    /// The form: gguf is a LoRA that llama.cpp takes beside the model's file
    #[arg(long, value_name = "FORM", value_enum, default_value_t = ExportFormat::Gguf)]
    pub format: ExportFormat,
    /// Write this file, in place of a GGUF adapter at most
    #[arg(short, long, value_name = "FILE.gguf")]
    pub output: PathBuf,
    #[command(flatten)]
    pub out: OutputArgs,
}

#[derive(Args, Debug)]
pub struct FuseArgs {
    /// The model that the adapter was trained on, a GGUF file
    #[arg(short, long, value_name = "FILE")]
    pub model: PathBuf,
    /// The adapter: a PEFT folder of this model
    #[arg(long, value_name = "DIR", visible_alias = "adapter-path")]
    pub adapter: PathBuf,
    /// Write this file: FILE.gguf, in place of a GGUF model at most, or FILE.safetensors, which is
    /// what model.safetensors is in the base's checkpoint
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// How matrices are stored [default: those without adapter as they are, the others as before
    /// where that format can be written, else as q8_0; in safetensors all as f16]
    #[arg(long = "type", value_name = "TYPE", value_enum)]
    pub format: Option<MatrixType>,
    /// Threads [default: one a core]. They change the speed, never the result
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    #[command(flatten)]
    pub out: OutputArgs,
}

#[derive(Args, Debug)]
pub struct QuantizeArgs {
    /// The model: a GGUF file, or a folder with config.json, safetensors and tokenizer.json, of the
    /// llama, qwen2, gemma3 or opt family
    #[arg(value_name = "MODEL")]
    pub input: PathBuf,
    /// Write this file, in place of a GGUF model at most
    #[arg(short, long, value_name = "FILE.gguf")]
    pub output: PathBuf,
    /// How matrices are stored, the embedding included; vectors are f32
    #[arg(long = "type", value_name = "TYPE", value_enum, default_value_t = MatrixType::Q4_0)]
    pub format: MatrixType,
    /// Threads [default: one a core]. They change the speed, never the result
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    #[command(flatten)]
    pub out: OutputArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    Gguf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MatrixType {
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "q8_0")]
    Q8_0,
    F16,
    /// Nothing is lost, and the file is eight times as large as with q4_0
    F32,
}

impl MatrixType {
    /// As the library takes it.
    pub fn format(self) -> Format {
        match self {
            Self::Q4_0 => Format::Q4_0,
            Self::Q8_0 => Format::Q8_0,
            Self::F16 => Format::F16,
            Self::F32 => Format::F32,
        }
    }
}
