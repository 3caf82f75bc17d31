//! BPE over characters as SentencePiece trains it, without a list of merges: a pair merges where
//! its joint spelling is a token, the best-scored token first, and characters without a token are
//! spelled in bytes (Kudo and Richardson 2018, "SentencePiece").
//!
//! Among the pairs that make the same token the one with the lower left id goes first. That is the
//! order of the merge list in a converted `tokenizer.json`; with it the ids are those of that file.

use crate::bpe::{BpeModel, Merges, Word};
use crate::error::{Result, TextError};
use crate::gguf::{TokenType, TokenTypes};
use crate::vocab::{NONE, TokenIndex, TokenStrings};

/// What a space is spelled as.
pub(crate) const SPACE: char = '▁';

pub(crate) struct SentencePiece {
    strings: TokenStrings,
    index: TokenIndex,
    /// By id: the token's place in the order of merging.
    order: Vec<u32>,
    byte_ids: [u32; 256],
    /// The same, the other way round: id and byte, ids ascending.
    byte_of: Vec<(u32, u8)>,
    /// Characters that some token has just before a space; a word may begin at a space after any
    /// other character. Sorted.
    glue: Vec<char>,
}

impl Merges for SentencePiece {
    fn merge(&self, left: u32, right: u32) -> Option<(u64, u32)> {
        let (l, r) = (self.strings.get(left), self.strings.get(right));
        let merged = self.index.find_joined(&self.strings, l, r)?;
        Some((u64::from(self.order[merged as usize]) << 32 | u64::from(left), merged))
    }
}

impl SentencePiece {
    /// `scores` (f32 as they lie in the file) and `types` are by id and as long as `strings`; `glue`
    /// is sorted.
    ///
    /// # Errors
    /// A score that is not a number, or a missing byte token.
    pub(crate) fn new(
        strings: TokenStrings,
        scores: &[[u8; 4]],
        types: TokenTypes<'_>,
        glue: Vec<char>,
    ) -> Result<Self> {
        let order = merge_order(scores, types)?;
        let index = TokenIndex::build(&strings);
        let mut byte_ids = [NONE; 256];
        for byte in 0..=255u8 {
            let spelling = format!("<0x{byte:02X}>");
            byte_ids[usize::from(byte)] = index.find(&strings, &spelling).ok_or_else(|| {
                TextError::BadVocabulary(format!("the byte token {spelling} is missing"))
            })?;
        }
        let mut byte_of: Vec<(u32, u8)> = byte_ids.iter().copied().zip(0..=255).collect();
        byte_of.sort_unstable();
        Ok(Self { strings, index, order, byte_ids, byte_of, glue })
    }

    /// Bytes that `count` tokens take at most while this is built, their spellings left out.
    pub(crate) fn memory(count: usize) -> u64 {
        let order = 4 * count as u64;
        order + order.max(TokenIndex::memory(count)) + 4096
    }

    fn push_char(&self, c: char, word: &mut Word) {
        let mut buffer = [0; 4];
        let spelling = c.encode_utf8(&mut buffer);
        match self.index.find(&self.strings, spelling) {
            Some(id) => word.push(id),
            None => spelling.bytes().for_each(|byte| word.push(self.byte_ids[usize::from(byte)])),
        }
    }
}

impl BpeModel for SentencePiece {
    fn encode(&self, text: &str, word: &mut Word, ids: &mut Vec<u32>) {
        let mut before = None;
        for c in text.chars().map(|c| if c == ' ' { SPACE } else { c }) {
            // No token spans such a place, so no merge does: what lies on its two sides is
            // merged on its own, which keeps the queue short.
            if c == SPACE && before.is_some_and(|b| self.glue.binary_search(&b).is_err()) {
                word.merge_into(self, ids);
            }
            self.push_char(c, word);
            before = Some(c);
        }
        word.merge_into(self, ids);
    }

    fn decode(&self, id: u32, _special: bool, bytes: &mut Vec<u8>) {
        if let Ok(place) = self.byte_of.binary_search_by_key(&id, |&(id, _)| id) {
            bytes.push(self.byte_of[place].1);
            return;
        }
        let mut parts = self.strings.get(id).split(SPACE);
        bytes.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
        for part in parts {
            bytes.push(b' ');
            bytes.extend_from_slice(part.as_bytes());
        }
    }

    fn strings(&self) -> &TokenStrings {
        &self.strings
    }
}

/// The place of each token in the order of merging: user-defined tokens first, as their score is
/// the highest there is (GGUF files hold a placeholder for it), then by falling score, then by id.
fn merge_order(scores: &[[u8; 4]], types: TokenTypes<'_>) -> Result<Vec<u32>> {
    let score = |id: u32| f32::from_le_bytes(scores[id as usize]);
    let ids = 0..scores.len() as u32;
    if let Some(id) = ids.clone().find(|&id| score(id).is_nan()) {
        return Err(TextError::BadVocabulary(format!("the score of token {id} is not a number")));
    }
    let key = |id: u32| (types.of(id) != TokenType::UserDefined, -score(id), id);
    let mut by_rank: Vec<u32> = ids.collect();
    // The id is part of the key: a sort that keeps equal ones in order would need room for a copy.
    by_rank.sort_unstable_by(|&a, &b| key(a).partial_cmp(&key(b)).expect("no score is NaN"));
    let mut order = vec![0; scores.len()];
    for (rank, &id) in (0..).zip(&by_rank) {
        order[id as usize] = rank;
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_merging() {
        let types = [1, 1, 4, 1, 4, 1].map(i32::to_le_bytes);
        let types = TokenTypes::parse(&types).unwrap();
        let scores = [-3.0, -1.0, -1000.0, 0.0, -1000.0, -0.0].map(f32::to_le_bytes);
        assert_eq!(merge_order(&scores, types).unwrap(), [5, 4, 0, 2, 1, 3]);
        assert!(merge_order(&[f32::NAN.to_le_bytes(); 6], types).is_err());
    }
}
