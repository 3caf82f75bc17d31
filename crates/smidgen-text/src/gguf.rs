//! A tokenizer from the metadata of a GGUF file.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use crate::bpe::BpeModel;
use crate::byte_level::ByteLevel;
use crate::cut::CutRule;
use crate::error::{Result, TextError};
use crate::pretokenize::PreTokenizer;
use crate::sentence_piece::{SPACE, SentencePiece};
use crate::special::AddedTokens;
use crate::token_file::Fingerprint;
use crate::tokenizer::{Engine, Tokenizer};
use crate::vocab::{PairTable, TokenIndex, TokenStrings};

mod packed;

pub use packed::{PackedStrings, PackedStringsIter};

/// What a GGUF file says of its tokenizer, the keys `tokenizer.ggml.*`; V tokens. The lists stay
/// where they lie in the file, numbers in four little-endian bytes each.
#[derive(Clone, Copy, Debug, Default)]
pub struct GgufTokenizer<'a> {
    /// `model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: &'a str,
    /// `pre`: how byte-level BPE cuts words.
    pub pre: Option<&'a str>,
    /// `tokens`, `[V]`.
    pub tokens: PackedStrings<'a>,
    /// `scores`, `[V]` of f32; only `llama` has them.
    pub scores: &'a [[u8; 4]],
    /// `token_type`, `[V]` of i32: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: &'a [[u8; 4]],
    /// `merges`, each `left right`, best first; only `gpt2` has them.
    pub merges: PackedStrings<'a>,
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

/// The type of each token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenTypes<'a>(&'a [[u8; 4]]);

impl<'a> TokenTypes<'a> {
    pub(crate) fn parse(words: &'a [[u8; 4]]) -> Result<Self> {
        for (id, &word) in words.iter().enumerate() {
            let value = i32::from_le_bytes(word);
            if TokenType::parse(value).is_none() {
                let what = format!("token {id} has the unknown type {value}");
                return Err(TextError::BadVocabulary(what));
            }
        }
        Ok(Self(words))
    }

    pub(crate) fn of(self, id: u32) -> TokenType {
        TokenType::parse(i32::from_le_bytes(self.0[id as usize])).expect("all are parsed")
    }
}

impl<'a> GgufTokenizer<'a> {
    pub(crate) fn build(&self) -> Result<Tokenizer> {
        let kind = Kind::of(self)?;
        let types = self.check()?;
        let fingerprint = self.hash();
        let strings = TokenStrings::pack(self.spellings(kind, types))?;
        let added = AddedTokens::build(
            (0..strings.len() as u32)
                .map(|id| (id, strings.get(id), types.of(id) == TokenType::Control))
                .filter(|&(id, token, _)| types.of(id).is_added() && !token.is_empty()),
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
                Box::new(SentencePiece::new(strings, self.scores, types, glue)?)
            }
        };
        let engine = Engine::Bpe { model, added, cuts };
        let adds_bos = self.add_bos.unwrap_or(false);
        Ok(Tokenizer { engine, vocab_size, bos: self.bos, eos: self.eos, adds_bos, fingerprint })
    }

    /// The most bytes that [`Tokenizer::from_gguf`] takes while it builds, from the lists' lengths
    /// and a walk through the tokens' types.
    ///
    /// # Errors
    /// A kind that is not known, or lists and ids that don't fit each other.
    pub fn memory(&self) -> Result<u64> {
        let kind = Kind::of(self)?;
        let types = self.check()?;
        let (count, merges) = (self.tokens.len(), self.merges.len());
        let added = (0..)
            .zip(self.tokens.iter())
            .filter_map(|(id, token)| types.of(id).is_added().then_some(token));
        let building = AddedTokens::memory(added);
        let index = TokenIndex::memory(count);
        let model = match kind {
            Kind::ByteLevel(_) => {
                let [list, table] = PairTable::memory(merges);
                list + index.max(table)
            }
            Kind::SentencePiece => SentencePiece::memory(count),
        };
        // Spaces are spelled with three bytes in some tokens of white space.
        let strings = TokenStrings::memory(count, self.tokens.spelled_bytes()) + SPELLING_BYTES;
        // What the automaton's building frees stays with the heap, in pieces too small for the rest.
        Ok(strings + building + model)
    }

    /// The fingerprint of the tokenizer that this makes, without making it.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint(self.hash())
    }

    /// The tokens as the vocabulary spells them.
    fn spellings(
        &self,
        kind: Kind,
        types: TokenTypes<'a>,
    ) -> impl ExactSizeIterator<Item = Cow<'a, str>> + Clone {
        self.tokens.iter().enumerate().map(move |(id, token)| {
            let respelled = kind == Kind::SentencePiece
                && types.of(id as u32) == TokenType::UserDefined
                && token.bytes().all(|byte| byte == b' ');
            // GGUF spells user-defined runs of spaces as spaces.
            match respelled {
                true => token.replace(' ', SPACE.encode_utf8(&mut [0; 4])).into(),
                false => token.into(),
            }
        })
    }

    /// Checks that the arrays and ids fit each other.
    fn check(&self) -> Result<TokenTypes<'a>> {
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
        TokenTypes::parse(self.token_types)
    }

    /// The first 16 bytes of a SHA-256 over all that decides the ids of a text.
    fn hash(&self) -> [u8; 16] {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(self.model.as_bytes());
        field(self.pre.unwrap_or_default().as_bytes());
        for list in [self.tokens, self.merges] {
            field(&(list.len() as u64).to_le_bytes());
            list.iter().for_each(|item| field(item.as_bytes()));
        }
        self.scores.iter().chain(self.token_types).for_each(|word| field(word));
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

/// Bytes by which tokens of spaces may grow, and small lists: glue, Unicode's classes.
const SPELLING_BYTES: u64 = 16 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    ByteLevel(PreTokenizer),
    SentencePiece,
}

impl Kind {
    fn of(file: &GgufTokenizer<'_>) -> Result<Self> {
        let unknown = |key, found: &str, known| {
            Err(TextError::UnknownTokenizer { key, found: found.to_owned(), known })
        };
        match file.model {
            "gpt2" => {
                let pre = file.pre.unwrap_or_default();
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

#[cfg(test)]
pub(crate) mod tests;
