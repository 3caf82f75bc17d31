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
use super::float::finite_half;

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

/// The block of 32 finite numbers: the largest magnitude becomes 127, and each number the nearest
/// code, away from 0 where two are as near (`quantize_row_q8_0_ref` of ggml). `None` where the
/// scale is beyond half precision.
#[inline(always)]
pub(super) fn encode(numbers: &[f32; 32]) -> Option<[u8; 34]> {
    let largest = numbers.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let half = finite_half(scale)?;
    let mut block = [0; 34];
    let (d, q) = block.split_at_mut(2);
    d.copy_from_slice(&half.to_le_bytes());
    for (q, x) in q.iter_mut().zip(numbers) {
        *q = ((x * inverse).round() as i8).cast_unsigned();
    }
    Some(block)
}
