//! Q6_K: 256 numbers of 6 bits in 16 groups of 16, each group with a signed 8-bit scale.
//!
//! | bytes | holds |
//! |---|---|
//! | 0..128 | low 4 bits: of each half of 128 numbers, 64 bytes |
//! | 128..192 | high 2 bits: of each half, 32 bytes |
//! | 192..208 | s, i8 |
//! | 208..210 | d, f16 |
//!
//! In a half, quarter 0 and 2 (of 32 numbers) are the low and high nibbles of the first 32
//! bytes, quarter 1 and 3 those of the next; quarter i has bits 2i and 2i + 1 of the high bytes.
//! value = (d s) (q - 32).

use super::bytes::ByteOps;
use super::coded::{Coded, Factors, bytes_at, half_at};

/// See the module.
pub(crate) struct Q6K;

impl Coded for Q6K {
    const LEN: usize = 256;
    const BYTES: usize = 210;
    const GROUP: usize = 16;
    const OFFSET: bool = false;

    #[inline(always)]
    fn unpack<S: ByteOps>(set: S, block: &[u8], codes: &mut [[i8; 32]]) {
        for (h, quarters) in codes.as_chunks_mut::<4>().0.iter_mut().take(2).enumerate() {
            let even = set.load(bytes_at(block, 64 * h));
            let odd = set.load(bytes_at(block, 64 * h + 32));
            let high = set.load(bytes_at(block, 128 + 32 * h));
            let lows = [(even, 0), (odd, 0), (even, -4), (odd, -4)];
            for (i, (codes, (low, shift))) in quarters.iter_mut().zip(lows).enumerate() {
                let top = set.shift_and(high, 4 - 2 * i as i32, 48);
                let q = set.or(set.shift_and(low, shift, 15), top);
                set.store(set.sub(q, 32), codes);
            }
        }
    }

    #[inline(always)]
    fn factors(block: &[u8]) -> Factors {
        let multipliers = bytes_at::<16>(block, 192).map(|byte| byte as i8);
        Factors { scale: half_at(block, 208), offset: 0, multipliers }
    }
}
