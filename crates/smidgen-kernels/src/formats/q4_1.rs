//! Q4_1: 32 nibbles under one half-precision scale and minimum.
//!
//! | bytes | holds |
//! |---|---|
//! | 0..2 | d, f16 |
//! | 2..4 | m, f16 |
//! | 4..20 | q, nibbles: byte j has number j low and number j + 16 high |
//!
//! value = d q + m.

use super::bytes::ByteOps;
use super::coded::{Coded, Factors, bytes_at, half_at};

/// See the module.
pub(crate) struct Q4_1;

impl Coded for Q4_1 {
    const LEN: usize = 32;
    const BYTES: usize = 20;
    const GROUP: usize = 32;
    const OFFSET: bool = true;

    #[inline(always)]
    fn unpack<S: ByteOps>(set: S, block: &[u8], codes: &mut [[i8; 32]]) {
        set.store(set.nibbles(bytes_at(block, 4)), &mut codes[0]);
    }

    #[inline(always)]
    fn factors(block: &[u8]) -> Factors {
        Factors::one(half_at(block, 0), half_at(block, 2))
    }
}
