//! Q5_0: 32 numbers of 5 bits under one half-precision scale.
//!
//! | bytes | holds |
//! |---|---|
//! | 0..2 | d, f16 |
//! | 2..6 | fifth bits, u32: bit i belongs to number i |
//! | 6..22 | low bits, nibbles: byte j has number j low and number j + 16 high |
//!
//! value = d (q - 16).

use super::bytes::ByteOps;
use super::coded::{Coded, Factors, bytes_at, half_at};

/// See the module.
pub(crate) struct Q5_0;

impl Coded for Q5_0 {
    const LEN: usize = 32;
    const BYTES: usize = 22;
    const GROUP: usize = 32;
    const OFFSET: bool = false;

    #[inline(always)]
    fn unpack<S: ByteOps>(set: S, block: &[u8], codes: &mut [[i8; 32]]) {
        let fifth = set.fifth_bits(*bytes_at(block, 2));
        let q = set.or(set.nibbles(bytes_at(block, 6)), fifth);
        set.store(set.sub(q, 16), &mut codes[0]);
    }

    #[inline(always)]
    fn factors(block: &[u8]) -> Factors {
        Factors::one(half_at(block, 0), 0)
    }
}
