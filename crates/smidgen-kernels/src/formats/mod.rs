//! Block formats of GGUF tensors: how many bytes a block takes and what numbers it stands for.

mod bytes;
mod coded;
mod encode;
mod float;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;

use std::ops::Range;

use crate::arch::Kernels;

pub(crate) use bytes::ByteOps;
pub(crate) use coded::{Coded, MAX_GROUPS};
pub use encode::Unencodable;
use float::{decode_bf16, decode_f16, decode_f32};
pub(crate) use float::{f32_to_half, half_to_f32};
pub(crate) use q4_0::Q4_0;
pub(crate) use q4_1::Q4_1;
pub(crate) use q4_k::Q4K;
pub(crate) use q5_0::Q5_0;
pub(crate) use q5_1::Q5_1;
pub(crate) use q5_k::Q5K;
pub(crate) use q6_k::Q6K;
pub(crate) use q8_0::Q8_0;

/// Evaluates one expression with `$coded` as the [`Coded`] type of a quantised format, another
/// for the formats of one number a block.
macro_rules! with_coded {
    ($format:expr, $coded:ident => $quantised:expr, else $float:expr) => {
        with_coded!(@ $format, $coded, $quantised, $float, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4K, Q5K, Q6K)
    };
    (@ $format:expr, $coded:ident, $quantised:expr, $float:expr, $($name:ident),*) => {
        match $format {
            $($crate::formats::Format::$name => {
                type $coded = $crate::formats::$name;
                $quantised
            })*
            $crate::formats::Format::F32
            | $crate::formats::Format::F16
            | $crate::formats::Format::Bf16 => $float,
        }
    };
}
pub(crate) use with_coded;

/// A storage format. Quantised formats hold blocks of consecutive numbers of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names are GGUF's own.
pub enum Format {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4K,
    Q5K,
    Q6K,
}

impl Format {
    /// Numbers in a block.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes in a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Its name in GGUF: `Q4_0`, `BF16`, ...
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// The numbers that whole blocks stand for, in plain Rust for the target's baseline.
    ///
    /// # Panics
    /// If `blocks` and `out` are not the same whole number of blocks.
    pub fn decode(self, blocks: &[u8], out: &mut [f32]) {
        self.check_lengths(blocks, out);
        with_coded!(self, F => F::decode(blocks, out), else self.decode_floats(blocks, out))
    }

    /// Holds `blocks` and `out` to the same whole number of blocks.
    fn check_lengths(self, blocks: &[u8], out: &[f32]) {
        assert_eq!(blocks.len() % self.block_bytes(), 0, "bytes of {self:?}");
        let count = blocks.len() / self.block_bytes();
        assert_eq!(out.len(), count * self.block_len(), "numbers of {count} blocks of {self:?}");
    }

    /// [`Format::decode`] for the formats of one number a block, to be compiled for an
    /// instruction set.
    #[inline(always)]
    pub(crate) fn decode_floats(self, blocks: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => decode_f32(blocks, out),
            Self::F16 => decode_f16(blocks, out),
            _ => decode_bf16(blocks, out),
        }
    }
}

/// A view of a weight matrix in its file format: `rows` x `cols`, each row whole blocks.
///
/// A projection's rows are its outputs and its columns its inputs.
#[derive(Clone, Copy, Debug)]
pub struct QuantMatrix<'a> {
    format: Format,
    bytes: &'a [u8],
    rows: usize,
    cols: usize,
    row_bytes: usize,
}

impl<'a> QuantMatrix<'a> {
    /// A whole matrix over exactly its bytes.
    ///
    /// # Panics
    /// If `cols` is no whole number of blocks or `bytes` has another length.
    pub fn new(format: Format, bytes: &'a [u8], rows: usize, cols: usize) -> Self {
        assert_eq!(cols % format.block_len(), 0, "{cols} columns of {format:?}");
        let row_bytes = cols / format.block_len() * format.block_bytes();
        assert_eq!(Some(bytes.len()), row_bytes.checked_mul(rows), "bytes of the matrix");
        Self { format, bytes, rows, cols, row_bytes }
    }

    /// The storage format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Number of rows (outputs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (inputs).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The blocks of one row of the view.
    pub fn row_blocks(&self, row: usize) -> &'a [u8] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let len = self.cols / self.format.block_len() * self.format.block_bytes();
        &self.bytes[row * self.row_bytes..][..len]
    }

    /// Bytes from a row of the view to the next.
    pub(crate) fn row_stride(&self) -> usize {
        self.row_bytes
    }

    /// [`QuantMatrix::row_blocks`] of the rows of `range`, for a format known when compiling.
    #[inline(always)]
    pub(crate) fn coded_rows<F: Coded>(
        self,
        range: Range<usize>,
    ) -> impl Iterator<Item = &'a [u8]> {
        assert!(range.end <= self.rows, "rows {range:?}");
        let len = self.cols / F::LEN * F::BYTES;
        range.map(move |row| &self.bytes[row * self.row_bytes..][..len])
    }

    /// The rows of `range`.
    pub fn rows_range(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?}");
        let bytes =
            if range.is_empty() { &[] } else { &self.bytes[range.start * self.row_bytes..] };
        Self { bytes, rows: range.len(), ..self }
    }

    /// The columns of `range`, which begins and ends between blocks.
    pub fn cols_range(self, range: Range<usize>) -> Self {
        let block = self.format.block_len();
        assert!(range.start <= range.end && range.end <= self.cols, "columns {range:?}");
        assert!(
            range.start.is_multiple_of(block) && range.end.is_multiple_of(block),
            "columns {range:?} cut a block"
        );
        let skip = range.start / block * self.format.block_bytes();
        let bytes = if range.is_empty() || self.rows == 0 { &[] } else { &self.bytes[skip..] };
        Self { bytes, cols: range.len(), ..self }
    }
}

impl Kernels {
    /// The numbers that whole blocks stand for: [`Format::decode`] for this instruction set, with
    /// the same bits.
    ///
    /// # Panics
    /// If `blocks` and `out` are not the same whole number of blocks.
    pub fn decode_row(&self, format: Format, blocks: &[u8], out: &mut [f32]) {
        format.check_lengths(blocks, out);
        self.decode(format, blocks, out);
    }
}
