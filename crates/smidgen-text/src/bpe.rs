//! Byte-pair encoding of one word: the adjacent pair of lowest rank is merged, the leftmost first
//! among equals, until no pair has a rank (Sennrich et al. 2016, "Neural machine translation of
//! rare words with subword units").

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::vocab::{NONE, TokenStrings};

/// Which pairs merge, and in what order.
pub(crate) trait Merges {
    /// Rank (lower merges first) and resulting id of the pair, if it merges.
    fn merge(&self, left: u32, right: u32) -> Option<(u64, u32)>;
}

/// A vocabulary with the rules that cut and merge a text into its tokens.
pub(crate) trait BpeModel: Send + Sync {
    /// Appends the ids of `text`, which holds no special token. `word` is empty before and after.
    fn encode(&self, text: &str, word: &mut Word, ids: &mut Vec<u32>);

    /// Appends the bytes that `id` stands for; `special` says that it is a token recognised in the
    /// text itself.
    fn decode(&self, id: u32, special: bool, bytes: &mut Vec<u8>);

    /// The tokens as the vocabulary spells them.
    fn strings(&self) -> &TokenStrings;
}

/// One live piece of the word; `prev` and `next` are places in the list, [`NONE`] at the ends.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    prev: u32,
    next: u32,
}

/// A merge that was possible when it was queued. The order of the fields is the order of merging.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u64,
    place: u32,
    left: u32,
    right: u32,
    merged: u32,
}

/// One word's symbols and queue, kept from word to word so that their memory is reused.
#[derive(Default)]
pub(crate) struct Word {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

impl Word {
    /// Adds an id at the word's end.
    pub(crate) fn push(&mut self, id: u32) {
        let place = self.symbols.len() as u32;
        if let Some(last) = self.symbols.last_mut() {
            last.next = place;
        }
        self.symbols.push(Symbol { id, prev: place.wrapping_sub(1), next: NONE });
    }

    /// Merges the word, appends its ids to `ids` and leaves it empty.
    pub(crate) fn merge_into(&mut self, merges: &impl Merges, ids: &mut Vec<u32>) {
        for place in 0..self.symbols.len() as u32 {
            self.queue_pair(merges, place);
        }
        while let Some(Reverse(candidate)) = self.queue.pop() {
            self.apply(merges, &candidate);
        }
        let mut place = if self.symbols.is_empty() { NONE } else { 0 };
        while place != NONE {
            let symbol = self.symbols[place as usize];
            ids.push(symbol.id);
            place = symbol.next;
        }
        self.symbols.clear();
    }

    fn queue_pair(&mut self, merges: &impl Merges, place: u32) {
        let left = self.symbols[place as usize];
        if left.next == NONE {
            return;
        }
        let right = self.symbols[left.next as usize];
        if let Some((rank, merged)) = merges.merge(left.id, right.id) {
            let (left, right) = (left.id, right.id);
            self.queue.push(Reverse(Candidate { rank, place, left, right, merged }));
        }
    }

    /// Merges the pair, unless one of its two symbols has been merged since it was queued.
    fn apply(&mut self, merges: &impl Merges, candidate: &Candidate) {
        let place = candidate.place as usize;
        let left = self.symbols[place];
        if left.id != candidate.left || left.next == NONE {
            return;
        }
        let right_place = left.next as usize;
        let right = self.symbols[right_place];
        if right.id != candidate.right {
            return;
        }
        self.symbols[place] = Symbol { id: candidate.merged, next: right.next, ..left };
        // A merged-away symbol keeps no id, so what was queued for it no longer applies.
        self.symbols[right_place].id = NONE;
        if right.next != NONE {
            self.symbols[right.next as usize].prev = candidate.place;
        }
        if left.prev != NONE {
            self.queue_pair(merges, left.prev);
        }
        self.queue_pair(merges, candidate.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::PairTable;

    impl Merges for PairTable {
        fn merge(&self, left: u32, right: u32) -> Option<(u64, u32)> {
            self.find(left, right).map(|(rank, id)| (u64::from(rank), id))
        }
    }

    /// The definition, done naively: look for the best pair, merge it, start again.
    fn naive(merges: &impl Merges, mut ids: Vec<u32>) -> Vec<u32> {
        loop {
            let best = (1..ids.len())
                .filter_map(|i| merges.merge(ids[i - 1], ids[i]).map(|(rank, id)| (rank, i, id)))
                .min();
            let Some((_, i, id)) = best else { return ids };
            ids[i - 1] = id;
            ids.remove(i);
        }
    }

    #[test]
    fn agrees_with_the_definition() {
        // Ids 0, 1, 2 are letters; every merge makes a new id from two existing ones.
        let mut state = 7u64;
        let mut random = move |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        for _ in 0..200 {
            let mut list = Vec::new();
            for id in 3..3 + random(12) as u32 {
                list.push([random(id.into()) as u32, random(id.into()) as u32, id]);
            }
            let table = PairTable::build(list);
            let ids: Vec<u32> = (0..random(40)).map(|_| random(3) as u32).collect();
            let (mut word, mut merged) = (Word::default(), Vec::new());
            ids.iter().for_each(|&id| word.push(id));
            word.merge_into(&table, &mut merged);
            assert_eq!(merged, naive(&table, ids));
        }
    }
}
