//! Byte-level BPE as GPT-2 introduced it: words are bytes, bytes are spelled as printable
//! characters, and merges are listed by rank (Radford et al. 2019, "Language models are
//! unsupervised multitask learners", section 2.2).

use std::borrow::Cow;

use unicode_normalization_alignments::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use crate::bpe::{BpeModel, Merges, Word};
use crate::error::{Result, TextError};
use crate::gguf::PackedStrings;
use crate::pretokenize::{PreTokenizer, WordScanner};
use crate::vocab::{NONE, PairTable, TokenIndex, TokenStrings};

pub(crate) struct ByteLevel {
    strings: TokenStrings,
    /// The id of each byte, [`NONE`] where the vocabulary has none.
    byte_ids: [u32; 256],
    pairs: PairTable,
    scanner: WordScanner,
}

impl Merges for ByteLevel {
    fn merge(&self, left: u32, right: u32) -> Option<(u64, u32)> {
        self.pairs.find(left, right).map(|(rank, id)| (u64::from(rank), id))
    }
}

impl ByteLevel {
    /// `merges` are `left right`, best first.
    ///
    /// # Errors
    /// No merges, a merge that isn't two tokens, or one whose parts or result the vocabulary lacks.
    pub(crate) fn new(
        strings: TokenStrings,
        merges: PackedStrings<'_>,
        pre: PreTokenizer,
    ) -> Result<Self> {
        let index = TokenIndex::build(&strings);
        let mut byte_ids = [NONE; 256];
        let mut buffer = [0; 4];
        for byte in 0..=255u8 {
            let spelling = byte_to_char(byte).encode_utf8(&mut buffer);
            byte_ids[usize::from(byte)] = index.find(&strings, spelling).unwrap_or(NONE);
        }
        if merges.is_empty() {
            return Err(TextError::BadVocabulary("the list of merges is missing or empty".into()));
        }
        let mut list = Vec::with_capacity(merges.len());
        for merge in merges.iter() {
            list.push(resolve_merge(&index, &strings, merge)?);
        }
        // Its place is taken by the merges' table.
        drop(index);
        let pairs = PairTable::build(list);
        Ok(Self { strings, byte_ids, pairs, scanner: WordScanner::new(pre) })
    }

    fn normalize<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let as_is = self.scanner.kind() != PreTokenizer::Qwen2
            || text.is_ascii()
            || is_nfc_quick(text.chars()) == IsNormalized::Yes;
        if as_is {
            return text.into();
        }
        text.nfc().map(|(c, _)| c).collect::<String>().into()
    }
}

impl BpeModel for ByteLevel {
    /// A byte the vocabulary has no token for is left out, as the reference implementation does
    /// when there is no unknown token.
    fn encode(&self, text: &str, word: &mut Word, ids: &mut Vec<u32>) {
        self.scanner.words(&self.normalize(text), |bytes| {
            for byte in bytes.bytes() {
                let id = self.byte_ids[usize::from(byte)];
                if id != NONE {
                    word.push(id);
                }
            }
            word.merge_into(self, ids);
        });
    }

    fn decode(&self, id: u32, special: bool, bytes: &mut Vec<u8>) {
        let spelling = self.strings.get(id);
        if special {
            return bytes.extend_from_slice(spelling.as_bytes());
        }
        let mut buffer = [0; 4];
        for c in spelling.chars() {
            match char_to_byte(c) {
                Some(byte) => bytes.push(byte),
                None => bytes.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes()),
            }
        }
    }

    fn strings(&self) -> &TokenStrings {
        &self.strings
    }
}

fn resolve_merge(index: &TokenIndex, strings: &TokenStrings, merge: &str) -> Result<[u32; 3]> {
    let bad = |what: &str| TextError::BadVocabulary(format!("merge {merge:?} {what}"));
    let (left, right) = merge.split_once(' ').ok_or_else(|| bad("is not two tokens"))?;
    let find = |id: Option<u32>| id.ok_or_else(|| bad("names a token the vocabulary lacks"));
    Ok([
        find(index.find(strings, left))?,
        find(index.find(strings, right))?,
        find(index.find_joined(strings, left, right))?,
    ])
}

/// GPT-2's spelling of a byte: itself where it is printable Latin-1, else the next free character
/// from U+0100 on.
fn byte_to_char(byte: u8) -> char {
    match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        0..=0x20 => offset_char(byte, 0),
        0x7f..=0xa0 => offset_char(byte - 0x7f, 0x21),
        0xad => offset_char(0, 0x43),
    }
}

fn offset_char(byte: u8, offset: u32) -> char {
    char::from_u32(0x100 + offset + u32::from(byte)).expect("below U+0144")
}

fn char_to_byte(c: char) -> Option<u8> {
    let code = u32::from(c);
    Some(match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code as u8,
        0x100..=0x120 => (code - 0x100) as u8,
        0x121..=0x142 => (code - 0x121) as u8 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_spelling() {
        let mut spellings: Vec<char> = (0..=255).map(byte_to_char).collect();
        for (byte, &c) in (0..=255u8).zip(&spellings) {
            assert_eq!(char_to_byte(c), Some(byte));
        }
        assert_eq!((byte_to_char(b' '), byte_to_char(b'\n')), ('Ġ', 'Ċ'));
        spellings.sort_unstable();
        spellings.dedup();
        assert_eq!(spellings.len(), 256);
    }
}
