//! Text on its way to training: tokenizers, chat templates, token files and datasets.
//!
//! ```text
//! .txt, .jsonl ── prepare(tokenizer, chat template) ──▶ token file ── Dataset ──▶ Sequence { ids, targets }
//! ```
//!
//! Text is streamed once into a token file ([`prepare`]); after that the tokenizer can be dropped,
//! and a [`Dataset`] reads sequences from the file with `pread`, so neither the text nor the ids
//! ever lie in memory as a whole.

#![forbid(unsafe_code)]

mod bpe;
mod byte_level;
mod chat;
mod cut;
mod data_files;
mod dataset;
mod decode;
mod error;
mod gguf;
mod json;
mod jsonl;
mod order;
mod packs;
mod prepare;
mod pretokenize;
mod sentence_piece;
mod special;
mod token_file;
mod tokenizer;
mod vocab;

pub use chat::{ChatTemplate, ChatTemplateSource, Message};
pub use data_files::DataFiles;
pub use dataset::{Dataset, Sequence, Summary, WindowSpec};
pub use decode::StreamDecoder;
pub use error::{Result, TextError};
pub use gguf::{GgufTokenizer, PackedStrings, PackedStringsIter};
pub use jsonl::FeatureNames;
pub use order::Order;
pub use packs::Packs;
pub use prepare::{
    MAX_PIECE_BYTES, PREPARE_BYTES, PrepareOptions, Progress, SHORT_PIECE_BYTES, prepare,
};
pub use token_file::{Fingerprint, TokenFile, TokenFileHeader, TokenFileKind, TokenFileWriter};
pub use tokenizer::Tokenizer;
