//! What the quantised formats share: small integer codes under a scale and perhaps an offset.

use super::bytes::{ByteOps, Plain};
use super::float::half_at;

/// Numbers in the largest block.
pub(crate) const MAX_LEN: usize = 256;

/// Groups in the largest block.
pub(crate) const MAX_GROUPS: usize = 16;

/// The factors of one block, a pair for each of its groups; the rest is unused.
#[derive(Clone, Copy)]
pub(crate) struct Scales {
    /// What a code is multiplied by.
    pub scale: [f32; MAX_GROUPS],
    /// What is then added, where the format has offsets.
    pub offset: [f32; MAX_GROUPS],
}

impl Scales {
    /// Those of a block of one group.
    #[inline(always)]
    pub(super) fn one(scale: f32, offset: f32) -> Self {
        Self { scale: [scale; MAX_GROUPS], offset: [offset; MAX_GROUPS] }
    }
}

/// A format whose numbers are `scale * code` or `scale * code + offset`, rounded after each
/// operation, with codes that fit an i8.
pub(crate) trait Coded {
    /// Numbers in a block, a multiple of 32.
    const LEN: usize;
    /// Bytes in a block.
    const BYTES: usize;
    /// Numbers under one scale, 16 or 32.
    const GROUP: usize;
    /// Whether an offset is added.
    const OFFSET: bool;

    /// Writes the codes of a block of `BYTES` bytes to `codes`, which has room for `LEN`.
    fn unpack<S: ByteOps>(set: S, block: &[u8], codes: &mut [[i8; 32]]) -> Scales;

    /// Decodes whole blocks in plain Rust.
    fn decode(blocks: &[u8], out: &mut [f32]) {
        let mut codes = [[0; 32]; MAX_LEN / 32];
        for (block, out) in blocks.chunks_exact(Self::BYTES).zip(out.chunks_exact_mut(Self::LEN)) {
            let scales = Self::unpack(Plain, block, &mut codes);
            for (i, (x, &code)) in out.iter_mut().zip(codes.as_flattened()).enumerate() {
                let (scale, offset) =
                    (scales.scale[i / Self::GROUP], scales.offset[i / Self::GROUP]);
                let product = scale * f32::from(code);
                *x = if Self::OFFSET { product + offset } else { product };
            }
        }
    }
}

/// `N` bytes of a block.
#[inline(always)]
pub(super) fn bytes_at<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..at + N].as_array().expect("a slice of N bytes")
}

/// The scales and minima at the head of a Q4_K or Q5_K block, 8 groups.
///
/// The 12 bytes are three words a, b, c of four bytes. Groups 0-3 have the low 6 bits of a's
/// bytes as scale and of b's as minimum. Groups 4-7 have c's low (scale) and high (minimum)
/// nibbles, and the top 2 bits of a's and b's bytes above them.
#[inline(always)]
pub(super) fn six_bit_scales(block: &[u8]) -> Scales {
    let word = |at| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (a, b, c) = (word(4), word(8), word(12));
    let top = |word: u32| (word >> 2) & 0x3030_3030;
    let eight = |low: u32, high: u32| (u64::from(low) | u64::from(high) << 32).to_le_bytes();
    let scale = eight(a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | top(a));
    let minimum = eight(b & 0x3f3f_3f3f, (c >> 4) & 0x0f0f_0f0f | top(b));

    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let mut scales = Scales::one(0.0, 0.0);
    for g in 0..8 {
        scales.scale[g] = d * f32::from(scale[g]);
        scales.offset[g] = -(dmin * f32::from(minimum[g]));
    }
    scales
}
