//! What the quantised formats share: small integer codes under a scale and perhaps an offset.

use super::bytes::{ByteOps, Plain};
use super::float::half_to_f32;

/// Numbers in the largest block.
const MAX_LEN: usize = 256;

/// Groups in the largest block.
pub(crate) const MAX_GROUPS: usize = 16;

/// The factors of one block as it stores them.
///
/// Where a block is one group, the halves are its scale and its offset. Where it has more, a
/// group's scale and offset are the halves times multipliers of the group's own.
#[derive(Clone, Copy)]
pub(crate) struct Factors {
    /// Bits of the half-precision scale.
    pub scale: u16,
    /// Bits of the half-precision offset, where the format has offsets.
    pub offset: u16,
    /// One for each group's scale, then one for each group's offset.
    pub multipliers: [i8; MAX_GROUPS],
}

impl Factors {
    /// Those of a block of one group.
    #[inline(always)]
    pub(super) fn one(scale: u16, offset: u16) -> Self {
        Self { scale, offset, multipliers: [0; MAX_GROUPS] }
    }

    /// Scale and offset of a group of a block with `groups` groups.
    #[inline(always)]
    fn of_group(&self, group: usize, groups: usize) -> (f32, f32) {
        let (scale, offset) = (half_to_f32(self.scale), half_to_f32(self.offset));
        if groups == 1 {
            return (scale, offset);
        }
        let multiplier = |i: usize| f32::from(self.multipliers[i % MAX_GROUPS]);
        (scale * multiplier(group), offset * multiplier(groups + group))
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

    /// Groups in a block.
    const GROUPS: usize = Self::LEN / Self::GROUP;

    /// Writes the codes of a block of `BYTES` bytes to `codes`, which has room for `LEN`.
    fn unpack<S: ByteOps>(set: S, block: &[u8], codes: &mut [[i8; 32]]);

    /// The factors of a block of `BYTES` bytes.
    fn factors(block: &[u8]) -> Factors;

    /// Decodes whole blocks in plain Rust.
    fn decode(blocks: &[u8], out: &mut [f32]) {
        let mut codes = [[0; 32]; MAX_LEN / 32];
        for (block, out) in blocks.chunks_exact(Self::BYTES).zip(out.chunks_exact_mut(Self::LEN)) {
            Self::unpack(Plain, block, &mut codes);
            let factors = Self::factors(block);
            let groups = out.chunks_exact_mut(Self::GROUP);
            let codes = codes.as_flattened().chunks_exact(Self::GROUP);
            for (g, (out, codes)) in groups.zip(codes).enumerate() {
                let (scale, offset) = factors.of_group(g, Self::GROUPS);
                for (x, &code) in out.iter_mut().zip(codes) {
                    let product = scale * f32::from(code);
                    *x = if Self::OFFSET { product + offset } else { product };
                }
            }
        }
    }
}

/// `N` bytes of a block.
#[inline(always)]
pub(super) fn bytes_at<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..at + N].as_array().expect("a slice of N bytes")
}

/// The bits of the half-precision number at `at`.
#[inline(always)]
pub(super) fn half_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*bytes_at(block, at))
}

/// The scales and minima at the head of a Q4_K or Q5_K block, 8 groups.
///
/// The 12 bytes are three words a, b, c of four bytes. Groups 0-3 have the low 6 bits of a's
/// bytes as scale and of b's as minimum. Groups 4-7 have c's low (scale) and high (minimum)
/// nibbles, and the top 2 bits of a's and b's bytes above them. A minimum is taken away, so the
/// sign of the offset's half is turned.
#[inline(always)]
pub(super) fn six_bit_factors(block: &[u8]) -> Factors {
    let [a, b, c] = [4, 8, 12].map(|at| u32::from_le_bytes(*bytes_at(block, at)));
    let top = |word: u32| (word >> 2) & 0x3030_3030;
    let words = [
        a & 0x3f3f_3f3f,
        c & 0x0f0f_0f0f | top(a),
        b & 0x3f3f_3f3f,
        (c >> 4) & 0x0f0f_0f0f | top(b),
    ];
    let mut multipliers = [0; MAX_GROUPS];
    for (four, word) in multipliers.as_chunks_mut().0.iter_mut().zip(words) {
        *four = word.to_le_bytes().map(|byte| byte as i8);
    }
    Factors { scale: half_at(block, 0), offset: half_at(block, 2) ^ 0x8000, multipliers }
}
