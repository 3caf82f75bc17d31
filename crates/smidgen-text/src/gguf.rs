//! A tokenizer from the metadata of a GGUF file.

use sha2::{Digest, Sha256};

use crate::bpe::BpeModel;
use crate::byte_level::ByteLevel;
use crate::cut::CutRule;
use crate::error::{Result, TextError};
use crate::pretokenize::PreTokenizer;
use crate::sentence_piece::{SPACE, SentencePiece};
use crate::special::AddedTokens;
use crate::tokenizer::{Engine, Tokenizer};
use crate::vocab::TokenStrings;

/// What a GGUF file says of its tokenizer, the keys `tokenizer.ggml.*`; V tokens.
#[derive(Clone, Debug, Default)]
pub struct GgufTokenizer {
    /// `model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// `pre`: how byte-level BPE cuts words.
    pub pre: Option<String>,
    /// `tokens`, `[V]`.
    pub tokens: Vec<String>,
    /// `scores`, `[V]`; only `llama` has them.
    pub scores: Vec<f32>,
    /// `token_type`, `[V]`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// `merges`, each `left right`, best first; only `gpt2` has them.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `unknown_token_id`. Checked, but never produced: both kinds can spell any text in bytes.
    pub unk: Option<u32>,
    /// `padding_token_id`. Checked, but never produced: sequences are not padded.
    pub pad: Option<u32>,
    /// `add_space_prefix`; `llama` must say false, its absence means true.
    pub add_space_prefix: Option<bool>,
    /// `add_bos_token`: whether the model expects BOS in front of a text.
    pub add_bos: Option<bool>,
    /// `add_eos_token`. Part of the fingerprint only: training samples always end with EOS.
    pub add_eos: Option<bool>,
}

/// The meaning of a value of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenType {
    fn parse(value: i32) -> Option<Self> {
        Some(match value {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    /// Whether the token is recognised when it stands in a text.
    fn is_added(self) -> bool {
        matches!(self, Self::Unknown | Self::Control | Self::UserDefined)
    }
}

impl GgufTokenizer {
    pub(crate) fn build(mut self) -> Result<Tokenizer> {
        let kind = Kind::of(&self)?;
        let types = self.check()?;
        let fingerprint = self.fingerprint();
        if kind == Kind::SentencePiece {
            spell_spaces(&mut self.tokens, &types);
        }
        let strings = TokenStrings::pack(std::mem::take(&mut self.tokens))?;
        let added = AddedTokens::build(
            (0..strings.len() as u32)
                .map(|id| (id, strings.get(id)))
                .filter(|&(id, token)| types[id as usize].is_added() && !token.is_empty()),
        )?;
        let mut cuts = CutRule::default();
        for id in 0..strings.len() as u32 {
            if kind == Kind::SentencePiece || added.contains(id) {
                cuts.observe(strings.get(id));
            }
        }
        cuts.seal();
        let vocab_size = strings.len();
        let model: Box<dyn BpeModel> = match kind {
            Kind::ByteLevel(pre) => Box::new(ByteLevel::new(strings, self.merges, pre)?),
            Kind::SentencePiece => {
                let glue = cuts.glue().to_vec();
                Box::new(SentencePiece::new(strings, &self.scores, &types, glue)?)
            }
        };
        let engine = Engine::Bpe { model, added, cuts };
        let adds_bos = self.add_bos.unwrap_or(false);
        Ok(Tokenizer { engine, vocab_size, bos: self.bos, eos: self.eos, adds_bos, fingerprint })
    }

    /// Checks that the arrays and ids fit each other.
    fn check(&self) -> Result<Vec<TokenType>> {
        let bad = |what: String| Err(TextError::BadVocabulary(what));
        let count = self.tokens.len();
        if count == 0 {
            return bad("the list of tokens is missing or empty".into());
        }
        let scores = if self.model == "llama" { count } else { self.scores.len() };
        for (name, length, wanted) in
            [("token_type", self.token_types.len(), count), ("scores", self.scores.len(), scores)]
        {
            if length != wanted {
                return bad(format!("{name} has {length} entries for {count} tokens"));
            }
        }
        for (name, id) in
            [("bos", self.bos), ("eos", self.eos), ("unknown", self.unk), ("padding", self.pad)]
        {
            if let Some(id) = id.filter(|&id| id as usize >= count) {
                return bad(format!("the {name} id {id} is outside the {count} tokens"));
            }
        }
        let parse = |(id, &value): (usize, &i32)| {
            TokenType::parse(value).ok_or_else(|| {
                TextError::BadVocabulary(format!("token {id} has the unknown type {value}"))
            })
        };
        self.token_types.iter().enumerate().map(parse).collect()
    }

    /// The first 16 bytes of a SHA-256 over all that decides the ids of a text.
    fn fingerprint(&self) -> [u8; 16] {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(self.model.as_bytes());
        field(self.pre.as_deref().unwrap_or_default().as_bytes());
        for list in [&self.tokens, &self.merges] {
            field(&(list.len() as u64).to_le_bytes());
            list.iter().for_each(|item| field(item.as_bytes()));
        }
        self.scores.iter().for_each(|score| field(&score.to_le_bytes()));
        self.token_types.iter().for_each(|kind| field(&kind.to_le_bytes()));
        for id in [self.bos, self.eos, self.unk, self.pad] {
            field(&id.unwrap_or(u32::MAX).to_le_bytes());
        }
        for flag in [self.add_space_prefix, self.add_bos, self.add_eos] {
            field(&[flag.map_or(2, u8::from)]);
        }
        let digest: [u8; 32] = hash.finalize().into();
        *digest.first_chunk().expect("32 bytes hold 16")
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    ByteLevel(PreTokenizer),
    SentencePiece,
}

impl Kind {
    fn of(file: &GgufTokenizer) -> Result<Self> {
        let unknown = |key, found: &str, known| {
            Err(TextError::UnknownTokenizer { key, found: found.to_owned(), known })
        };
        match file.model.as_str() {
            "gpt2" => {
                let pre = file.pre.as_deref().unwrap_or_default();
                match PreTokenizer::from_name(pre) {
                    Some(pre) => Ok(Self::ByteLevel(pre)),
                    None => unknown("tokenizer.ggml.pre", pre, PreTokenizer::KNOWN),
                }
            }
            "llama" if file.add_space_prefix == Some(false) => Ok(Self::SentencePiece),
            "llama" => unknown("tokenizer.ggml.add_space_prefix", "true", "false"),
            model => unknown("tokenizer.ggml.model", model, "gpt2, llama"),
        }
    }
}

/// GGUF spells user-defined runs of spaces as spaces; in the vocabulary they are [`SPACE`]s.
fn spell_spaces(tokens: &mut [String], types: &[TokenType]) {
    for (token, kind) in tokens.iter_mut().zip(types) {
        if *kind == TokenType::UserDefined && token.bytes().all(|byte| byte == b' ') {
            *token = token.replace(' ', SPACE.encode_utf8(&mut [0; 4]));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
