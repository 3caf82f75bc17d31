//! A vocabulary as two flat arrays, and the tables that find things in it.
//!
//! 262,144 tokens take about 2 MB of bytes, 1 MB of ends and 2 MB of slots: a map from `String`
//! to id takes twenty times that.

use crate::error::{Result, TextError};

/// Marks a free slot, and a byte or token that has no id.
pub(crate) const NONE: u32 = u32::MAX;

/// The tokens' spellings, one after the other; `ends[id]` is where the spelling of `id` stops.
pub(crate) struct TokenStrings {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl TokenStrings {
    /// Packs `tokens`, freeing each as it goes.
    ///
    /// # Errors
    /// More than 2^31 - 1 tokens (an id must leave bit 31 free) or 4 GiB of spellings.
    pub(crate) fn pack(tokens: Vec<String>) -> Result<Self> {
        let too_large = || TextError::BadVocabulary("the vocabulary is larger than 4 GiB".into());
        if tokens.len() > i32::MAX as usize {
            return Err(too_large());
        }
        let total: usize = tokens.iter().map(String::len).sum();
        u32::try_from(total).map_err(|_| too_large())?;
        let mut packed =
            Self { bytes: Vec::with_capacity(total), ends: Vec::with_capacity(tokens.len()) };
        for token in tokens {
            packed.bytes.extend_from_slice(token.as_bytes());
            packed.ends.push(packed.bytes.len() as u32);
        }
        Ok(packed)
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The spelling of `id`, which must be below [`len`](Self::len).
    pub(crate) fn get(&self, id: u32) -> &str {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        let bytes = &self.bytes[start..self.ends[id] as usize];
        std::str::from_utf8(bytes).expect("spellings are packed from strings")
    }

    /// The first id spelled `token`, by a walk through all of them.
    pub(crate) fn position(&self, token: &str) -> Option<u32> {
        (0..self.len() as u32).find(|&id| self.get(id) == token)
    }
}

/// Finds a token's id by its spelling: open addressing, at most half full.
pub(crate) struct TokenIndex {
    slots: Vec<u32>,
}

impl TokenIndex {
    /// Indexes `strings`; of two tokens with one spelling the later wins, as in a map filled in
    /// the order of ids.
    pub(crate) fn build(strings: &TokenStrings) -> Self {
        let mut index = Self { slots: vec![NONE; (strings.len() * 2).next_power_of_two().max(2)] };
        for id in 0..strings.len() as u32 {
            let slot = index.slot(strings, strings.get(id).as_bytes(), &[]);
            index.slots[slot] = id;
        }
        index
    }

    pub(crate) fn find(&self, strings: &TokenStrings, token: &str) -> Option<u32> {
        self.find_joined(strings, token, "")
    }

    /// The id of the token spelled `left` followed by `right`.
    pub(crate) fn find_joined(
        &self,
        strings: &TokenStrings,
        left: &str,
        right: &str,
    ) -> Option<u32> {
        let id = self.slots[self.slot(strings, left.as_bytes(), right.as_bytes())];
        (id != NONE).then_some(id)
    }

    /// The slot of `left` + `right`: where it is, or where it would go.
    fn slot(&self, strings: &TokenStrings, left: &[u8], right: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = spread(fnv1a(left.iter().chain(right).copied())) as usize & mask;
        loop {
            let id = self.slots[slot];
            if id == NONE {
                return slot;
            }
            let found = strings.get(id).as_bytes();
            if found.len() == left.len() + right.len()
                && found.starts_with(left)
                && found.ends_with(right)
            {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }
}

/// Finds the rank of a merge by its two ids; the rank is the merge's place in the list.
pub(crate) struct PairTable {
    slots: Vec<u32>,
    /// Left id, right id and the id they become, in rank order.
    merges: Vec<[u32; 3]>,
}

impl PairTable {
    /// Indexes `merges`; of two merges of the same pair the later wins.
    pub(crate) fn build(merges: Vec<[u32; 3]>) -> Self {
        let slots = vec![NONE; (merges.len() * 2).next_power_of_two().max(2)];
        let mut table = Self { slots, merges };
        for rank in 0..table.merges.len() {
            let [left, right, _] = table.merges[rank];
            let slot = table.slot(left, right);
            table.slots[slot] = rank as u32;
        }
        table
    }

    /// Rank and resulting id of the merge of `left` and `right`.
    pub(crate) fn find(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let rank = self.slots[self.slot(left, right)];
        (rank != NONE).then(|| (rank, self.merges[rank as usize][2]))
    }

    fn slot(&self, left: u32, right: u32) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = spread(u64::from(left) << 32 | u64::from(right)) as usize & mask;
        loop {
            let rank = self.slots[slot];
            if rank == NONE || self.merges[rank as usize][..2] == [left, right] {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }
}

/// FNV-1a, 64 bits: a fixed function, so the tables are the same on every run.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The finishing step of SplitMix64: every bit of the input reaches every bit of the result.
pub(crate) fn spread(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(tokens: &[&str]) -> TokenStrings {
        TokenStrings::pack(tokens.iter().map(|t| t.to_string()).collect()).unwrap()
    }

    #[test]
    fn finds_every_token_and_every_joint() {
        let strings = strings(&["", "a", "ab", "abc", "c", "b", "▁"]);
        let index = TokenIndex::build(&strings);
        for id in 0..strings.len() as u32 {
            assert_eq!(index.find(&strings, strings.get(id)), Some(id));
        }
        assert_eq!(index.find_joined(&strings, "ab", "c"), Some(3));
        assert_eq!(index.find_joined(&strings, "a", "bc"), Some(3));
        assert_eq!(index.find(&strings, "zz"), None);
        assert_eq!(strings.position("abc"), Some(3));
    }

    #[test]
    fn later_spelling_wins() {
        let strings = strings(&["x", "y", "x"]);
        assert_eq!(TokenIndex::build(&strings).find(&strings, "x"), Some(2));
    }

    #[test]
    fn pairs_by_rank() {
        let table = PairTable::build(vec![[1, 2, 3], [3, 4, 5], [1, 2, 9]]);
        assert_eq!(table.find(1, 2), Some((2, 9)));
        assert_eq!(table.find(3, 4), Some((1, 5)));
        assert_eq!(table.find(2, 1), None);
        assert_eq!(PairTable::build(vec![]).find(0, 0), None);
    }
}
