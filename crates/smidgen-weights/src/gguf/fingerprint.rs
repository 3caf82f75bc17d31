//! Which base model a file holds, so that an adapter is not applied to another one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Gguf;
use crate::error::Result;

/// Bytes at either end of a tensor that count.
const SAMPLE_BYTES: usize = 4096;

/// The identity of a base model: a SHA-256, written as 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Fingerprint([u8; 32]);

impl Gguf {
    /// The identity of the base model in this file.
    ///
    /// It covers `general.architecture` and every key of that architecture; each tensor's name,
    /// type and shape; and the first and last 4 KiB of each tensor's data. It leaves out names,
    /// licences, the tokenizer and where in the file things are, so a file with another chat
    /// template or alignment keeps its identity, while another quantisation of the same model has
    /// another: an exact gradient belongs to the exact weights.
    ///
    /// Data are read past the map, 8 KiB a tensor.
    ///
    /// # Errors
    /// [`MissingKey`](crate::Error::MissingKey) without `general.architecture`; those of
    /// [`Gguf::tensor`] and [`Mapped::read_at`](crate::Mapped::read_at).
    pub fn fingerprint(&self) -> Result<Fingerprint> {
        let mut hash = Sha256::new();
        hash.update(b"smidgen base 1");
        let prefix = format!("{}.", self.str("general.architecture")?);
        for (key, value) in &self.header.values {
            if key == "general.architecture" || key.starts_with(&prefix) {
                let element = value.elements.map_or("", |(element, _)| element.name());
                update(&mut hash, key.as_bytes());
                update(&mut hash, value.kind.name().as_bytes());
                update(&mut hash, element.as_bytes());
                update(&mut hash, &self.map.bytes()[value.range.clone()]);
            }
        }
        let mut sample = [0; 2 * SAMPLE_BYTES];
        for (name, info) in &self.header.tensors {
            let range = self.tensor(name)?.range;
            update(&mut hash, name.as_bytes());
            hash.update(info.ggml_type.to_le_bytes());
            hash.update((info.shape.len() as u64).to_le_bytes());
            info.shape.iter().for_each(|size| hash.update(size.to_le_bytes()));
            let sample = &mut sample[..range.len().min(2 * SAMPLE_BYTES)];
            let (first, last) = sample.split_at_mut(sample.len() / 2);
            self.map.read_at(range.start as u64, first)?;
            self.map.read_at((range.end - last.len()) as u64, last)?;
            update(&mut hash, sample);
        }
        Ok(Fingerprint(hash.finalize().into()))
    }
}

/// Hashes `bytes` with their length before them, so that neighbours can't run into each other.
fn update(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

impl Fingerprint {
    /// Its 32 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text that is no fingerprint: not 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 64 hexadecimal digits")]
pub struct NoFingerprint;

impl FromStr for Fingerprint {
    type Err = NoFingerprint;

    fn from_str(text: &str) -> std::result::Result<Self, NoFingerprint> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(NoFingerprint);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16).ok_or(NoFingerprint);
            *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
        }
        Ok(Self(bytes))
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = NoFingerprint;

    fn try_from(text: String) -> std::result::Result<Self, NoFingerprint> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        let fingerprint = Fingerprint(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        assert_eq!("00".parse::<Fingerprint>(), Err(NoFingerprint));
        assert_eq!("x".repeat(64).parse::<Fingerprint>(), Err(NoFingerprint));
        assert_eq!("é".repeat(32).parse::<Fingerprint>(), Err(NoFingerprint));
    }
}
