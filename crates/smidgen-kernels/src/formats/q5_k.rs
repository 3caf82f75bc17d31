//! Q5_K: 256 numbers of 5 bits in 8 groups of 32, each group with a 6-bit scale and minimum.
//!
//! | bytes | holds |
//! |---|---|
//! | 0..2 | d, f16 |
//! | 2..4 | dmin, f16 |
//! | 4..16 | 8 scales s and 8 minima m of 6 bits, see [`six_bit_factors`] |
//! | 16..48 | fifth bits: bit g of byte j belongs to number j of group g |
//! | 48..176 | low bits, nibbles: 32 bytes have one group low and the next high |
//!
//! value = (d s) q - (dmin m).

use super::bytes::ByteOps;
use super::coded::{Coded, Factors, bytes_at, six_bit_factors};

/// See the module.
pub(crate) struct Q5K;

impl Coded for Q5K {
    const LEN: usize = 256;
    const BYTES: usize = 176;
    const GROUP: usize = 32;
    const OFFSET: bool = true;

    #[inline(always)]
    fn unpack<S: ByteOps>(set: S, block: &[u8], codes: &mut [[i8; 32]]) {
        let fifths = set.load(bytes_at(block, 16));
        for (p, [low, high]) in codes.as_chunks_mut().0.iter_mut().take(4).enumerate() {
            let bytes = set.load(bytes_at(block, 48 + 32 * p));
            let left = 4 - 2 * p as i32;
            let fifth = set.shift_and(fifths, left, 16);
            set.store(set.or(set.shift_and(bytes, 0, 15), fifth), low);
            let fifth = set.shift_and(fifths, left - 1, 16);
            set.store(set.or(set.shift_and(bytes, -4, 15), fifth), high);
        }
    }

    #[inline(always)]
    fn factors(block: &[u8]) -> Factors {
        six_bit_factors(block)
    }
}
