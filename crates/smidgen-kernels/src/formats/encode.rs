//! Encoding: numbers to blocks that stand for them, in the formats that are written.

use super::Format;
use super::float::{encode_bf16, encode_f16, encode_f32};
use super::{q4_0, q8_0};
use crate::arch::Kernels;

/// A number that a format can't stand for: it is infinite, no number, or too large for the format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unencodable {
    /// Its place among the numbers that were to be encoded.
    pub index: usize,
    /// The number.
    pub number: f32,
}

impl Format {
    /// Whether [`Format::encode`] writes this format: F32, F16, BF16, Q8_0 and Q4_0.
    pub fn has_encoder(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16 | Self::Q8_0 | Self::Q4_0)
    }

    /// Encodes whole blocks, in plain Rust for the target's baseline.
    ///
    /// | format | rule |
    /// |---|---|
    /// | F32, F16, BF16 | the nearest number, the even one of two |
    /// | Q8_0 | the scale brings the largest magnitude to 127; the nearest codes, as ggml has it |
    /// | Q4_0 | scale and codes of least weighted squared error among many; plainly never worse than ggml's |
    ///
    /// # Errors
    /// The first block with a number that the format can't stand for.
    ///
    /// # Panics
    /// If the format has no encoder, or `numbers` and `blocks` are not the same whole number of
    /// blocks.
    pub fn encode(self, numbers: &[f32], blocks: &mut [u8]) -> Result<(), Unencodable> {
        self.check_lengths(blocks, numbers);
        self.encode_checked(numbers, blocks)
    }

    /// [`Format::encode`], to be compiled for an instruction set.
    #[inline(always)]
    fn encode_checked(self, numbers: &[f32], blocks: &mut [u8]) -> Result<(), Unencodable> {
        match self {
            Self::F32 => each_block(numbers, blocks, encode_f32),
            Self::F16 => each_block(numbers, blocks, encode_f16),
            Self::Bf16 => each_block(numbers, blocks, encode_bf16),
            Self::Q8_0 => each_block(numbers, blocks, q8_0::encode),
            Self::Q4_0 => each_block(numbers, blocks, q4_0::encode),
            _ => panic!("{self:?} has no encoder"),
        }
    }
}

/// Encodes blocks of `N` numbers to `BYTES` bytes; `encode` gets finite numbers only, and gives
/// `None` where they are too large.
#[inline(always)]
fn each_block<const N: usize, const BYTES: usize>(
    numbers: &[f32],
    blocks: &mut [u8],
    encode: impl Fn(&[f32; N]) -> Option<[u8; BYTES]>,
) -> Result<(), Unencodable> {
    let pairs = numbers.as_chunks::<N>().0.iter().zip(blocks.as_chunks_mut::<BYTES>().0);
    for (i, (numbers, block)) in pairs.enumerate() {
        let is_finite = numbers.iter().fold(true, |all, x| all & x.is_finite());
        match if is_finite { encode(numbers) } else { None } {
            Some(encoded) => *block = encoded,
            None => return Err(culprit(i * N, numbers)),
        }
    }
    Ok(())
}

/// The first number of a block that is not finite, else its largest.
#[cold]
fn culprit(start: usize, numbers: &[f32]) -> Unencodable {
    let found = numbers.iter().position(|x| !x.is_finite());
    let largest =
        || (0..numbers.len()).max_by(|&a, &b| numbers[a].abs().total_cmp(&numbers[b].abs()));
    let i = found.or_else(largest).unwrap_or(0);
    Unencodable { index: start + i, number: numbers[i] }
}

impl Kernels {
    /// [`Format::encode`] for this instruction set, with the same bytes.
    ///
    /// # Errors
    /// As [`Format::encode`].
    ///
    /// # Panics
    /// As [`Format::encode`].
    pub fn encode_row(
        &self,
        format: Format,
        numbers: &[f32],
        blocks: &mut [u8],
    ) -> Result<(), Unencodable> {
        format.check_lengths(blocks, numbers);
        self.compiled(
            #[inline(always)]
            || format.encode_checked(numbers, blocks),
        )
    }
}
