//! Flags of data: how it is cut into sequences, and how chats are written.

use std::path::PathBuf;

use clap::Args;
use smidgen::MemoryBudget;

use super::{ModelArgs, OutputArgs};

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
    /// Count only the first token of each answer, and read nothing behind it: for a classification
    /// whose labels begin with different tokens
    #[arg(long, conflicts_with = "no_mask_prompt")]
    pub single_token: bool,
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
            single_token: self.single_token,
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
