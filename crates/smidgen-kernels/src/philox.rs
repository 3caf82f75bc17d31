//! Random numbers by counting: Philox4x32 with ten rounds.
//!
//! Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011. A block of four
//! words is a function of a 64-bit key and a 128-bit counter, so any number of a stream can be
//! computed anywhere, in any order, without state.

/// Words of a block.
pub const PHILOX_WORDS: usize = 4;

/// The function from counters to blocks that a key chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The function of a seed.
    pub fn new(seed: u64) -> Self {
        Self { key: words(seed) }
    }

    /// The block of a 128-bit counter, given as two halves.
    #[inline(always)]
    pub fn block(&self, lower: u64, upper: u64) -> [u32; PHILOX_WORDS] {
        let [[a, b], [c, d]] = [words(lower), words(upper)];
        let mut counter = [a, b, c, d];
        let mut key = self.key;
        for _ in 0..9 {
            counter = round(counter, key);
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        round(counter, key)
    }

    /// Numbers `first`.. of a stream of uniform numbers in [0, 1), each a multiple of 2⁻²⁴.
    pub fn uniform(&self, stream: u64, first: u64, out: &mut [f32]) {
        let words = PHILOX_WORDS as u64;
        let mut block = [0; PHILOX_WORDS];
        for (at, out) in (first..).zip(out) {
            if at == first || at % words == 0 {
                block = self.block(at / words, stream);
            }
            *out = unit(block[(at % words) as usize]);
        }
    }
}

/// A word as a number in [0, 1): its upper 24 bits, which an f32 holds exactly.
#[inline(always)]
pub(crate) fn unit(word: u32) -> f32 {
    const STEP: f32 = 1.0 / (1 << 24) as f32;
    (word >> 8) as f32 * STEP
}

#[inline(always)]
fn round([a, b, c, d]: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [low_a, high_a] = words(u64::from(a) * 0xD251_1F53);
    let [low_c, high_c] = words(u64::from(c) * 0xCD9E_8D57);
    [high_c ^ b ^ key[0], low_c, high_a ^ d ^ key[1], low_a]
}

/// The lower and the upper half.
#[inline(always)]
fn words(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that Random123 publishes for philox4x32-10.
    #[test]
    fn known_answers() {
        let block = |key, lower, upper| Philox::new(key).block(lower, upper);
        assert_eq!(block(0, 0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            block(u64::MAX, u64::MAX, u64::MAX),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            block(0x299f_31d0_a409_3822, 0x85a3_08d3_243f_6a88, 0x0370_7344_1319_8a2e),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniform_numbers_do_not_depend_on_where_one_starts() {
        let philox = Philox::new(7);
        let mut whole = [0.0; 1000];
        philox.uniform(3, 0, &mut whole);
        let mut part = [0.0; 500];
        philox.uniform(3, 333, &mut part);
        assert_eq!(whole[333..833], part);
        assert!(whole.iter().all(|x| (0.0..1.0).contains(x)));
        let mean = whole.iter().sum::<f32>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.03, "mean {mean}");
    }
}
