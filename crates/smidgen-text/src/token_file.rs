//! Token files: text as token ids on disk, so that training needs neither the text nor the
//! tokenizer in memory.
//!
//! All numbers are little-endian. A header of 168 bytes:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `SMDGTOK` and a zero byte |
//! | 8 | 4 | version, 2 |
//! | 12 | 4 | kind: 0 one long text, 1 samples |
//! | 16 | 4 | vocabulary size V; every id is below it |
//! | 20 | 4 | id of BOS, 2^32 - 1 for none |
//! | 24 | 4 | id of EOS, 2^32 - 1 for none |
//! | 28 | 4 | 1 where prompts are no loss targets, else 0 |
//! | 32 | 16 | fingerprint of the tokenizer |
//! | 48 | 32 | SHA-256 of the source file |
//! | 80 | 8 | tokens N |
//! | 88 | 8 | tokens that are loss targets |
//! | 96 | 8 | samples S; 0 for one long text |
//! | 104 | 16 | fingerprint of the chat template, zeros where no sample is a chat |
//! | 120 | 16 | fingerprint of the names of keys, zeros for the usual ones |
//! | 136 | 32 | SHA-256 of what follows the header, then of bytes 0 to 136 |
//!
//! Then N ids of 4 bytes, bit 31 set where the token is a loss target. For samples, then S + 1
//! offsets of 8 bytes: sample i is the tokens from offset i up to offset i + 1; the first is 0, they
//! rise strictly, and the last is N.

mod offsets;
mod reader;
mod writer;

use std::fmt;

pub use reader::TokenFile;
pub use writer::TokenFileWriter;

use crate::vocab::NONE;

const MAGIC: [u8; 8] = *b"SMDGTOK\0";
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 168;
/// Where the checksum stands; it covers the header up to here.
const CHECKSUM_AT: usize = 136;
/// Marks a loss target in an id.
pub(crate) const TARGET_BIT: u32 = 1 << 31;

/// What a token file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFileKind {
    /// One long text, to be read in windows of any length.
    Text,
    /// Samples, each with its own beginning, end and mask.
    Samples,
}

/// Names a vocabulary, a template or a setting; shown as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The header of a token file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFileHeader {
    /// What the file holds.
    pub kind: TokenFileKind,
    /// All ids are below this.
    pub vocab_size: u32,
    /// The tokenizer's BOS.
    pub bos: Option<u32>,
    /// The tokenizer's EOS.
    pub eos: Option<u32>,
    /// Whether prompts were left out of the loss targets.
    pub mask_prompt: bool,
    /// The tokenizer that made the ids.
    pub fingerprint: Fingerprint,
    /// SHA-256 of the file the tokens were made from.
    pub source_sha256: [u8; 32],
    /// Number of tokens.
    pub tokens: u64,
    /// Number of tokens that are loss targets.
    pub targets: u64,
    /// Number of samples; 0 for one long text.
    pub samples: u64,
    /// The chat template that wrote the samples' texts; none where none is a chat.
    pub chat_template: Option<Fingerprint>,
    /// The names of the source's keys; none for the usual ones.
    pub features: Option<Fingerprint>,
}

impl TokenFileHeader {
    /// Bytes 0 to 136.
    fn to_bytes(&self) -> [u8; CHECKSUM_AT] {
        let mut bytes = Vec::with_capacity(CHECKSUM_AT);
        bytes.extend_from_slice(&MAGIC);
        let kind = match self.kind {
            TokenFileKind::Text => 0,
            TokenFileKind::Samples => 1,
        };
        let (bos, eos) = (self.bos.unwrap_or(NONE), self.eos.unwrap_or(NONE));
        for word in [VERSION, kind, self.vocab_size, bos, eos, self.mask_prompt.into()] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.fingerprint.0);
        bytes.extend_from_slice(&self.source_sha256);
        for count in [self.tokens, self.targets, self.samples] {
            bytes.extend_from_slice(&count.to_le_bytes());
        }
        for name in [self.chat_template, self.features] {
            bytes.extend_from_slice(&name.map_or([0; 16], |name| name.0));
        }
        bytes.try_into().expect("the fields fill it")
    }

    /// The header in `bytes`, or what is wrong with it.
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, String> {
        if bytes[..8] != MAGIC {
            return Err("it does not begin with SMDGTOK".into());
        }
        let word = |at: usize| u32::from_le_bytes(array(bytes, at));
        let long = |at: usize| u64::from_le_bytes(array(bytes, at));
        if word(8) != VERSION {
            let version = word(8);
            return Err(format!(
                "version {version} is not {VERSION}, the only one known; prepare the text again"
            ));
        }
        let kind = match word(12) {
            0 => TokenFileKind::Text,
            1 => TokenFileKind::Samples,
            kind => return Err(format!("the kind {kind} is unknown")),
        };
        let mask_prompt = match word(28) {
            0 => false,
            1 => true,
            flag => return Err(format!("the flag for masked prompts is {flag}")),
        };
        let some_id = |at: usize| Some(word(at)).filter(|&id| id != NONE);
        let some_name = |at: usize| Some(array(bytes, at)).filter(|name| *name != [0; 16]);
        let header = Self {
            kind,
            vocab_size: word(16),
            bos: some_id(20),
            eos: some_id(24),
            mask_prompt,
            fingerprint: Fingerprint(array(bytes, 32)),
            source_sha256: array(bytes, 48),
            tokens: long(80),
            targets: long(88),
            samples: long(96),
            chat_template: some_name(104).map(Fingerprint),
            features: some_name(120).map(Fingerprint),
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), String> {
        if self.vocab_size == 0 || self.vocab_size >= TARGET_BIT {
            return Err(format!("the vocabulary size is {}", self.vocab_size));
        }
        if let Some(id) = self.bos.iter().chain(&self.eos).find(|&&id| id >= self.vocab_size) {
            return Err(format!("the id {id} is outside the {} tokens", self.vocab_size));
        }
        if self.targets > self.tokens {
            return Err(format!("{} targets among {} tokens", self.targets, self.tokens));
        }
        let samples_fit = match self.kind {
            TokenFileKind::Text => self.samples == 0,
            TokenFileKind::Samples => self.samples <= self.tokens,
        };
        if !samples_fit {
            return Err(format!("{} samples in {} tokens", self.samples, self.tokens));
        }
        Ok(())
    }

    /// Bytes of the whole file; none if that is no number of bytes.
    fn file_bytes(&self) -> Option<u64> {
        let offsets = match self.kind {
            TokenFileKind::Text => 0,
            TokenFileKind::Samples => self.samples.checked_add(1)?.checked_mul(8)?,
        };
        self.tokens.checked_mul(4)?.checked_add(offsets)?.checked_add(HEADER_BYTES as u64)
    }
}

fn array<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("within the header")
}

#[cfg(test)]
mod tests;
