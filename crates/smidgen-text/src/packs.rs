//! Packs: short samples that share the room of one long sequence, each a sequence of its own.
//!
//! Best-fit decreasing: from the longest sample to the shortest, each goes into the fullest pack
//! that has room for it, or into a new one. It needs at most 11/9 of the fewest possible packs, and
//! a constant more (Johnson 1974). Nothing is cut, and the same samples give the same packs.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::dataset::Dataset;
use crate::error::{Result, TextError};
use crate::token_file::TokenFileKind;

/// The samples of a dataset in packs: each sample in one pack, in the file's order within it.
/// Packs are in the order of their first samples. Takes 4 bytes a sample and 4 a pack.
#[derive(Clone, Debug)]
pub struct Packs {
    /// Indices of samples, pack after pack.
    samples: Vec<u32>,
    /// Where each pack ends among them.
    ends: Vec<u32>,
    capacity: usize,
    tokens: u64,
    longest: usize,
    most_samples: usize,
}

impl Packs {
    /// Packs of at most `capacity` tokens, which is no less than the dataset's longest sample, BOS
    /// included: [`WindowSpec::longest`](crate::WindowSpec::longest). Takes 8 bytes a sample and
    /// some 40 a pack while it is at work.
    ///
    /// # Errors
    /// The dataset is one long text, whose windows have no room to share; the capacity is 2^32
    /// tokens or more; the file can't be read.
    ///
    /// # Panics
    /// If a sample is longer than `capacity`.
    pub fn new(data: &Dataset, capacity: usize) -> Result<Self> {
        assert!(data.max_len() <= capacity, "{} tokens in {capacity}", data.max_len());
        let refuse = |what: String| Err(TextError::data(data.file().path(), what));
        if data.file().header().kind == TokenFileKind::Text {
            let what = "one long text has nothing to pack: its windows are full already";
            return refuse(format!("{what}; leave --pack out"));
        }
        let Some(room) = u32::try_from(capacity).ok().filter(|&room| room < u32::MAX) else {
            return refuse(format!("packs of {capacity} tokens; give a --max-seq-length"));
        };
        let lengths = data.lengths()?;
        let tokens = lengths.iter().map(|&length| u64::from(length)).sum();
        let (pack_of, order, longest) = best_fit(lengths, room);
        let (samples, ends) = by_pack(pack_of, order);
        let mut packs =
            Self { samples, ends, capacity, tokens, longest: longest as usize, most_samples: 0 };
        packs.most_samples = (0..packs.len()).map(|i| packs.get(i).len()).max().unwrap_or(0);
        Ok(packs)
    }

    /// Number of packs; at least 1.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The samples of pack `index`, as [`Dataset::read`] counts them.
    ///
    /// # Panics
    /// If there is no such pack.
    pub fn get(&self, index: usize) -> &[u32] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.samples[start as usize..self.ends[index] as usize]
    }

    /// Tokens that a pack has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens of all samples, BOS included.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Tokens of the fullest pack.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Samples of the pack that has the most of them.
    pub fn most_samples(&self) -> usize {
        self.most_samples
    }

    /// The share of all packs' room that tokens fill, 0 to 1.
    pub fn filled(&self) -> f64 {
        self.tokens as f64 / (self.len() as f64 * self.capacity as f64)
    }
}

/// Each sample's pack, packs being numbered as they are opened; the samples, sorted; and the tokens
/// of the fullest pack. O(n log n).
fn best_fit(lengths: Vec<u32>, capacity: u32) -> (Vec<u32>, Vec<u32>, u32) {
    let mut order: Vec<u32> = (0..lengths.len() as u32).collect();
    order.sort_unstable_by_key(|&sample| (Reverse(lengths[sample as usize]), sample));
    let shortest = order.last().map_or(0, |&sample| lengths[sample as usize]);
    // A length is read once, when its sample's pack takes its place.
    let mut pack_of = lengths;
    let (mut packs, mut longest) = (0, 0);
    // Room left and pack of those that have room for some sample: the first that is large enough
    // is the fullest, and of equally full ones the oldest.
    let mut open: BTreeSet<(u32, u32)> = BTreeSet::new();
    for &sample in &order {
        let length = std::mem::replace(&mut pack_of[sample as usize], packs);
        let mut room = capacity;
        match open.range((length, 0)..).next().copied() {
            Some(fullest) => {
                open.remove(&fullest);
                (room, pack_of[sample as usize]) = fullest;
            }
            None => packs += 1,
        }
        room -= length;
        longest = longest.max(capacity - room);
        if room >= shortest {
            open.insert((room, pack_of[sample as usize]));
        }
    }
    (pack_of, order, longest)
}

/// The samples pack after pack, into the memory of `samples`, and where each pack ends.
fn by_pack(mut pack_of: Vec<u32>, mut samples: Vec<u32>) -> (Vec<u32>, Vec<u32>) {
    /// A pack none of whose samples was seen: there are fewer packs than this.
    const UNSEEN: u32 = u32::MAX;
    let packs = pack_of.iter().max().map_or(0, |&last| last as usize + 1);
    let mut number = vec![UNSEEN; packs];
    let mut ends = vec![0; packs];
    let mut seen = 0;
    for pack in &mut pack_of {
        let number = &mut number[*pack as usize];
        if *number == UNSEEN {
            *number = seen;
            seen += 1;
        }
        *pack = *number;
        ends[*pack as usize] += 1;
    }
    // From the number of a pack's samples to its start, which then moves on to its end.
    let mut start = 0;
    for end in &mut ends {
        start += std::mem::replace(end, start);
    }
    for (sample, &pack) in (0..).zip(&pack_of) {
        let place = &mut ends[pack as usize];
        samples[*place as usize] = sample;
        *place += 1;
    }
    (samples, ends)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Instant;

    use super::*;
    use crate::gguf::tests::tiny;
    use crate::{Sequence, TokenFile, TokenFileWriter, WindowSpec};

    /// Numbers below `below`, the same every time.
    fn random(count: usize, below: u64) -> Vec<u32> {
        let mut state = 1_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % below) as u32
        };
        (0..count).map(|_| next()).collect()
    }

    fn packed(lengths: &[u32], capacity: u32) -> Vec<Vec<u32>> {
        let (pack_of, order, longest) = best_fit(lengths.to_vec(), capacity);
        let (samples, ends) = by_pack(pack_of, order);
        let starts = [0].into_iter().chain(ends.iter().copied());
        let packs: Vec<Vec<u32>> = starts
            .zip(&ends)
            .map(|(start, &end)| samples[start as usize..end as usize].to_vec())
            .collect();
        let tokens = |pack: &Vec<u32>| pack.iter().map(|&s| lengths[s as usize]).sum::<u32>();
        assert_eq!(packs.iter().map(tokens).max(), Some(longest));
        packs
    }

    /// Packs of these lengths, once each of them is checked.
    fn checked(lengths: &[u32], capacity: u32) -> usize {
        let packs = packed(lengths, capacity);
        let mut all: Vec<u32> = packs.iter().flatten().copied().collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..lengths.len() as u32), "every sample once");
        for pack in &packs {
            assert!(pack.is_sorted() && !pack.is_empty());
            let tokens: u64 = pack.iter().map(|&s| u64::from(lengths[s as usize])).sum();
            assert!(tokens <= u64::from(capacity), "{tokens} tokens in {capacity}");
        }
        assert!(packs.is_sorted_by_key(|pack| pack[0]), "by the first sample");
        let total: u64 = lengths.iter().map(|&length| u64::from(length)).sum();
        let halves = lengths.iter().filter(|&&length| length > capacity / 2).count();
        let fewest = (total.div_ceil(u64::from(capacity)) as usize).max(halves);
        assert!(packs.len() * 9 <= fewest * 11 + 9, "{} packs, {fewest} at least", packs.len());
        packs.len()
    }

    #[test]
    fn small_cases() {
        // 4 joins 6, which it fills, and then 3 joins 7.
        assert_eq!(packed(&[3, 6, 4, 7], 10), [vec![0, 3], vec![1, 2]]);
        assert_eq!(packed(&[5, 5, 5, 5], 10), [[0, 1], [2, 3]]);
        assert_eq!(packed(&[8, 8, 2, 2], 10), [[0, 2], [1, 3]]);
        assert_eq!(packed(&[2, 9, 2, 2], 10), [vec![0, 2, 3], vec![1]]);
        assert_eq!(checked(&[7], 10), 1);
    }

    #[test]
    fn samples_of_any_length() {
        for (below, capacity) in [(10, 12), (400, 512), (100, 1024), (512, 512), (2, 2)] {
            for count in [2, 50, 3000] {
                let lengths: Vec<u32> = random(count, below).iter().map(|n| n + 1).collect();
                checked(&lengths, capacity);
                assert_eq!(packed(&lengths, capacity), packed(&lengths, capacity));
            }
        }
    }

    #[test]
    fn full_samples_have_a_pack_each() {
        assert_eq!(checked(&[64; 1000], 64), 1000);
        assert_eq!(checked(&[33; 1000], 64), 1000);
        assert_eq!(checked(&[32; 1000], 64), 500);
    }

    #[test]
    fn a_million_samples() {
        let lengths: Vec<u32> = random(1_000_000, 480).iter().map(|n| n + 20).collect();
        let begin = Instant::now();
        let packs = checked(&lengths, 1024);
        println!("{packs} packs in {:.2} s, checks among it", begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        checked(&vec![20; 1_000_000], 20);
        println!("a pack each in {:.2} s", begin.elapsed().as_secs_f64());
    }

    fn dataset(path: &Path, kind: TokenFileKind, lengths: &[usize], spec: &WindowSpec) -> Dataset {
        let mut writer = TokenFileWriter::create(path, kind, &tiny(), true).unwrap();
        for &length in lengths {
            let sequence = Sequence { ids: vec![1; length], targets: vec![true; length] };
            match kind {
                TokenFileKind::Samples => writer.push_sample(&sequence).unwrap(),
                TokenFileKind::Text => writer.push_text(&sequence.ids).unwrap(),
            }
        }
        writer.finish([7; 32]).unwrap();
        Dataset::open(TokenFile::open(path).unwrap(), spec).unwrap()
    }

    #[test]
    fn of_a_dataset() {
        let folder = tempfile::tempdir().unwrap();
        let spec = WindowSpec { max_seq_length: 8, chunks: None, bos: false, single_token: false };
        // The second has no target, the fifth is cut to 8 tokens.
        let lengths = [3, 1, 5, 4, 20, 2];
        let at = |name: &str| folder.path().join(name);
        let data = dataset(&at("samples"), TokenFileKind::Samples, &lengths, &spec);
        let packs = Packs::new(&data, spec.longest()).unwrap();
        assert_eq!(packs.len(), 3);
        assert_eq!(
            (packs.get(0), packs.get(1), packs.get(2)),
            (&[0, 1][..], &[2, 4][..], &[3][..])
        );
        assert_eq!((packs.tokens(), packs.longest(), packs.most_samples()), (22, 8, 2));
        assert_eq!((packs.capacity(), packs.filled()), (8, 22.0 / 24.0));
        let mut sequence = Sequence::default();
        data.read(3, &mut sequence).unwrap();
        assert_eq!(sequence.ids.len(), 8);

        let text = dataset(&at("text"), TokenFileKind::Text, &[20], &spec);
        let error = Packs::new(&text, spec.longest()).unwrap_err().to_string();
        assert!(error.contains("leave --pack out"), "{error}");
        let error = Packs::new(&data, usize::MAX).unwrap_err().to_string();
        assert!(error.contains("--max-seq-length"), "{error}");
    }
}
