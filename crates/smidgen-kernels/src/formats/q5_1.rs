//! Q5_1: 32 numbers of 5 bits under one half-precision scale and minimum.
//!
//! | bytes | holds |
//! |---|---|
//! | 0..2 | d, f16 |
//! | 2..4 | m, f16 |
//! | 4..8 | fifth bits, u32: bit i belongs to number i |
//! | 8..24 | low bits, nibbles: byte j has number j low and number j + 16 high |
//!
//! value = d q + m.

use super::bytes::ByteOps;
use super::coded::{Coded, Factors, bytes_at, half_at};

/// See the module.
pub(crate) struct Q5_1;

impl Coded for Q5_1 {
    const LEN: usize = 32;
    const BYTES: usize = 24;
    const GROUP: usize = 32;
    const OFFSET: bool = true;

    #[inline(always)]
    fn unpack<S: ByteOps>(set: S, block: &[u8], codes: &mut [[i8; 32]]) {
        let fifth = set.fifth_bits(*bytes_at(block, 4));
        set.store(set.or(set.nibbles(bytes_at(block, 8)), fifth), &mut codes[0]);
    }

    #[inline(always)]
    fn factors(block: &[u8]) -> Factors {
        Factors::one(half_at(block, 0), half_at(block, 2))
    }
}
