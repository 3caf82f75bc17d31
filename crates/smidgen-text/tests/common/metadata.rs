//! A tokenizer's metadata with lists of its own, for tests that make or change them.

use super::{GgufTokenizer, PackedStrings, Result, Tokenizer};

/// [`GgufTokenizer`] with its lists.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    pub model: String,
    pub pre: Option<String>,
    pub tokens: Vec<String>,
    pub scores: Vec<f32>,
    pub token_types: Vec<i32>,
    pub merges: Vec<String>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unk: Option<u32>,
    pub pad: Option<u32>,
    pub add_space_prefix: Option<bool>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
}

impl Metadata {
    /// Calls `f` with it as it lies in a file.
    pub fn packed<T>(&self, f: impl FnOnce(&GgufTokenizer<'_>) -> T) -> T {
        let [tokens, merges] = [&self.tokens, &self.merges].map(|list| pack(list));
        let scores: Vec<_> = self.scores.iter().map(|score| score.to_le_bytes()).collect();
        let types: Vec<_> = self.token_types.iter().map(|kind| kind.to_le_bytes()).collect();
        f(&GgufTokenizer {
            model: &self.model,
            pre: self.pre.as_deref(),
            tokens: PackedStrings::parse(&tokens).unwrap(),
            scores: &scores,
            token_types: &types,
            merges: PackedStrings::parse(&merges).unwrap(),
            bos: self.bos,
            eos: self.eos,
            unk: self.unk,
            pad: self.pad,
            add_space_prefix: self.add_space_prefix,
            add_bos: self.add_bos,
            add_eos: self.add_eos,
        })
    }

    pub fn build(&self) -> Result<Tokenizer> {
        self.packed(Tokenizer::from_gguf)
    }
}

fn pack(strings: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for string in strings {
        bytes.extend_from_slice(&(string.len() as u64).to_le_bytes());
        bytes.extend_from_slice(string.as_bytes());
    }
    bytes
}
