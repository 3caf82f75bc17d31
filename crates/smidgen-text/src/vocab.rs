//! A vocabulary as two flat arrays, and the tables that find things in it.
//!
//! 262,144 tokens take about 2 MB of bytes, 1 MB of ends and 1.4 MB of slots: a map from `String`
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
    /// Packs `tokens`; they are walked twice, so that nothing is allocated but what is needed.
    ///
    /// # Errors
    /// More than 2^31 - 1 tokens (an id must leave bit 31 free) or 4 GiB of spellings.
    pub(crate) fn pack<S: AsRef<str>>(
        tokens: impl ExactSizeIterator<Item = S> + Clone,
    ) -> Result<Self> {
        let too_large = || TextError::BadVocabulary("the vocabulary is larger than 4 GiB".into());
        if tokens.len() > i32::MAX as usize {
            return Err(too_large());
        }
        let total: usize = tokens.clone().map(|token| token.as_ref().len()).sum();
        u32::try_from(total).map_err(|_| too_large())?;
        let mut packed =
            Self { bytes: Vec::with_capacity(total), ends: Vec::with_capacity(tokens.len()) };
        for token in tokens {
            packed.bytes.extend_from_slice(token.as_ref().as_bytes());
            packed.ends.push(packed.bytes.len() as u32);
        }
        Ok(packed)
    }

    /// Bytes that `count` tokens with `bytes` of spelling take.
    pub(crate) fn memory(count: usize, bytes: usize) -> u64 {
        bytes as u64 + 4 * count as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The spelling of `id`, which must be below [`len`](Self::len).
    pub(crate) fn get(&self, id: u32) -> &str {
        std::str::from_utf8(self.bytes_of(id)).expect("spellings are packed from strings")
    }

    /// The first id spelled `token`, by a walk through all of them.
    pub(crate) fn position(&self, token: &str) -> Option<u32> {
        (0..self.len() as u32).find(|&id| self.get(id) == token)
    }

    fn bytes_of(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        &self.bytes[start..self.ends[id] as usize]
    }
}

/// Finds values, which are places in some array, by their keys, which stand in that array: open
/// addressing, at most three quarters full. The bits of a slot that no value needs hold bits of its
/// key's hash, so that few keys are looked at that are not the one.
struct Slots {
    slots: Vec<u32>,
    value_bits: u32,
}

impl Slots {
    /// Room for the values below `count`, which is below 2^31.
    fn new(count: usize) -> Self {
        // No value has all of these bits set, so no slot that is taken looks like a free one.
        let value_bits = usize::BITS - count.leading_zeros();
        Self { slots: vec![NONE; Self::len(count)], value_bits }
    }

    fn len(count: usize) -> usize {
        count + count / 3 + 1
    }

    /// Bytes that the table takes.
    fn memory(count: usize) -> u64 {
        4 * Self::len(count) as u64
    }

    /// The value whose key has this hash and is the one looked for.
    fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let slot = self.slots[self.place(hash, is_it)];
        (slot != NONE).then_some(slot & self.value_mask())
    }

    /// Puts `value` in place of the one with the same key, if there is one.
    fn put(&mut self, hash: u64, value: u32, is_same: impl Fn(u32) -> bool) {
        let place = self.place(hash, is_same);
        self.slots[place] = self.tag(hash) | value;
    }

    fn value_mask(&self) -> u32 {
        (1 << self.value_bits) - 1
    }

    /// The low bits of the hash, above the value's: the place comes from the high ones.
    fn tag(&self, hash: u64) -> u32 {
        (hash as u32) << self.value_bits
    }

    /// Where the key is, or where it would go.
    fn place(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> usize {
        let (tag, mask) = (self.tag(hash), self.value_mask());
        let mut place = (((hash >> 32) * self.slots.len() as u64) >> 32) as usize;
        loop {
            let slot = self.slots[place];
            if slot == NONE || (slot & !mask == tag && is_it(slot & mask)) {
                return place;
            }
            place = if place + 1 == self.slots.len() { 0 } else { place + 1 };
        }
    }
}

/// Finds a token's id by its spelling.
pub(crate) struct TokenIndex {
    slots: Slots,
}

impl TokenIndex {
    /// Indexes `strings`; of two tokens with one spelling the later wins, as in a map filled in
    /// the order of ids.
    pub(crate) fn build(strings: &TokenStrings) -> Self {
        let mut slots = Slots::new(strings.len());
        for id in 0..strings.len() as u32 {
            let token = strings.bytes_of(id);
            slots.put(hash(token, &[]), id, |other| strings.bytes_of(other) == token);
        }
        Self { slots }
    }

    /// Bytes that the index of `count` tokens takes.
    pub(crate) fn memory(count: usize) -> u64 {
        Slots::memory(count)
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
        let (left, right) = (left.as_bytes(), right.as_bytes());
        self.slots.find(hash(left, right), |id| {
            let found = strings.bytes_of(id);
            found.len() == left.len() + right.len()
                && found.starts_with(left)
                && found.ends_with(right)
        })
    }
}

/// Finds the rank of a merge by its two ids; the rank is the merge's place in the list.
pub(crate) struct PairTable {
    slots: Slots,
    /// Left id, right id and the id they become, in rank order.
    merges: Vec<[u32; 3]>,
}

impl PairTable {
    /// Indexes `merges`; of two merges of the same pair the later wins.
    pub(crate) fn build(merges: Vec<[u32; 3]>) -> Self {
        let mut slots = Slots::new(merges.len());
        for (rank, &[left, right, _]) in (0..).zip(&merges) {
            let is_same = |other: u32| merges[other as usize][..2] == [left, right];
            slots.put(pair_hash(left, right), rank, is_same);
        }
        Self { slots, merges }
    }

    /// Bytes that a list of `count` merges takes, and its table beside it.
    pub(crate) fn memory(count: usize) -> [u64; 2] {
        [12 * count as u64, Slots::memory(count)]
    }

    /// Rank and resulting id of the merge of `left` and `right`.
    pub(crate) fn find(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let is_it = |rank: u32| self.merges[rank as usize][..2] == [left, right];
        let rank = self.slots.find(pair_hash(left, right), is_it)?;
        Some((rank, self.merges[rank as usize][2]))
    }
}

fn pair_hash(left: u32, right: u32) -> u64 {
    spread(u64::from(left) << 32 | u64::from(right))
}

/// The hash of `left` followed by `right`.
fn hash(left: &[u8], right: &[u8]) -> u64 {
    spread(fnv1a(left.iter().chain(right).copied()))
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
        TokenStrings::pack(tokens.iter()).unwrap()
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

    /// As many values as the bits of one hold, one less and one more, and none.
    #[test]
    fn full_tables() {
        for count in [0, 1, 2, 3, 4, 255, 256, 257] {
            let merges: Vec<_> = (0..count).map(|id| [id, id + 1, id + 2]).collect();
            let table = PairTable::build(merges);
            for id in 0..count {
                assert_eq!(table.find(id, id + 1), Some((id, id + 2)));
                assert_eq!(table.find(id + 1, id), None);
            }
        }
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
