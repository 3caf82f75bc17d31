//! Random weights, for models whose speed and memory are measured and whose answers do not matter.

use half::f16;
use smidgen_kernels::{Format, Philox};

/// Variance of [`nibbles`] less 8: (2 (1² + … + 7²)) / 16.
const NIBBLE_VARIANCE: f32 = 17.5;

/// Random numbers for the tensors of a file. Any number of any tensor is a function of the seed,
/// the tensor's number and the place alone (Philox4x32-10), so the order of asking is free.
#[derive(Clone, Copy, Debug)]
pub struct RandomTensors {
    philox: Philox,
}

impl RandomTensors {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self { philox: Philox::new(seed) }
    }

    /// Q4_0 blocks `first_block`.. of a tensor, of numbers with mean 0 and this standard deviation.
    ///
    /// Block i of tensor t has the 32 nibbles of the Philox block (i, t), with 8 (which stands for
    /// the number 0) in the place of 0, so that there are as many negative numbers as positive.
    ///
    /// # Panics
    /// If `blocks` is no whole number of blocks.
    pub fn q4_0(&self, tensor: u64, first_block: u64, deviation: f32, blocks: &mut [u8]) {
        let block_bytes = Format::Q4_0.block_bytes();
        assert_eq!(blocks.len() % block_bytes, 0, "bytes of Q4_0");
        let scale = f16::from_f32(deviation / NIBBLE_VARIANCE.sqrt()).to_le_bytes();
        for (i, block) in (first_block..).zip(blocks.chunks_exact_mut(block_bytes)) {
            let (d, q) = block.split_at_mut(scale.len());
            d.copy_from_slice(&scale);
            for (bytes, word) in q.chunks_exact_mut(4).zip(self.philox.block(i, tensor)) {
                bytes.copy_from_slice(&nibbles(word).to_le_bytes());
            }
        }
    }

    /// Numbers `first`.. of a tensor, uniform in [-`bound`, `bound`).
    pub fn uniform(&self, tensor: u64, first: u64, bound: f32, numbers: &mut [f32]) {
        self.philox.uniform(tensor, first, numbers);
        numbers.iter_mut().for_each(|x| *x = (2.0 * *x - 1.0) * bound);
    }
}

/// The eight nibbles of a word, 8 in the place of 0.
fn nibbles(word: u32) -> u32 {
    const LOWEST: u32 = 0x1111_1111;
    let nonzero = (word | word >> 1 | word >> 2 | word >> 3) & LOWEST;
    word | (nonzero ^ LOWEST) << 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_nibbles_become_eight() {
        assert_eq!(nibbles(0x0123_4567), 0x8123_4567);
        assert_eq!(nibbles(0x80f0_0a01), 0x88f8_8a81);
        assert_eq!(nibbles(0), 0x8888_8888);
    }

    #[test]
    fn mean_and_deviation() {
        let random = RandomTensors::new(3);
        let mut blocks = vec![0; 1000 * Format::Q4_0.block_bytes()];
        random.q4_0(5, 0, 0.02, &mut blocks);
        let mut numbers = vec![0.0; 32_000];
        Format::Q4_0.decode(&blocks, &mut numbers);
        let mean = |f: fn(f32) -> f32| numbers.iter().map(|&x| f(x)).sum::<f32>() / 32_000.0;
        assert!(mean(|x| x).abs() < 5e-4, "{}", mean(|x| x));
        assert!((mean(|x| x * x).sqrt() - 0.02).abs() < 5e-4, "{}", mean(|x| x * x).sqrt());
    }

    #[test]
    fn blocks_do_not_depend_on_where_one_starts() {
        let random = RandomTensors::new(9);
        let mut whole = [0; 10 * 18];
        random.q4_0(1, 0, 1.0, &mut whole);
        let mut part = [0; 4 * 18];
        random.q4_0(1, 6, 1.0, &mut part);
        assert_eq!(whole[6 * 18..], part);
        random.q4_0(2, 6, 1.0, &mut part);
        assert_ne!(whole[6 * 18..], part);
    }

    #[test]
    fn uniform_numbers_are_within_their_bound() {
        let mut numbers = [0.0; 1000];
        RandomTensors::new(1).uniform(0, 0, 0.5, &mut numbers);
        assert!(numbers.iter().all(|x| (-0.5..0.5).contains(x)));
        assert!(numbers.iter().sum::<f32>().abs() < 30.0);
    }
}
