//! Q8_0: 32 signed bytes under one half-precision scale.
//!
//! | bytes | holds |
//! |---|---|
//! | 0..2 | d, f16 |
//! | 2..34 | q, i8 |
//!
//! value = d q.

use super::bytes::ByteOps;
use super::coded::{Coded, Factors, bytes_at, half_at};

/// See the module.
pub(crate) struct Q8_0;

impl Coded for Q8_0 {
    const LEN: usize = 32;
    const BYTES: usize = 34;
    const GROUP: usize = 32;
    const OFFSET: bool = false;

    #[inline(always)]
    fn unpack<S: ByteOps>(set: S, block: &[u8], codes: &mut [[i8; 32]]) {
        set.store(set.load(bytes_at(block, 2)), &mut codes[0]);
    }

    #[inline(always)]
    fn factors(block: &[u8]) -> Factors {
        Factors::one(half_at(block, 0), 0)
    }
}
