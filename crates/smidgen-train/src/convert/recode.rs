//! One tensor from its format to another, in bands of rows.

use std::ops::Range;

use smidgen_kernels::{Format, Kernels, Unencodable};
use smidgen_runtime::Pool;
use smidgen_weights::{Error, Gguf, Mapped, gguf_row, hf_row};

use crate::error::Result;

/// Numbers of a band; a single row may have more.
const BAND_LEN: usize = 1 << 18;

/// Numbers of a row that a thread works on at once: whole blocks of every format.
const PIECE_LEN: usize = 4096;

/// A matrix in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored<'a> {
    pub file: &'a Mapped,
    pub format: Format,
    /// Its first byte in the file.
    pub start: u64,
    pub rows: usize,
    pub cols: usize,
    pub order: RowOrder,
}

/// In which order rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    AsStored,
    /// From a checkpoint's order of so many heads into GGUF's.
    IntoGguf(usize),
    /// From GGUF's order of so many heads into a checkpoint's.
    IntoCheckpoint(usize),
}

impl<'a> Stored<'a> {
    /// The tensor of that name.
    ///
    /// # Errors
    /// The file has none of that name, or its format is not known.
    pub fn of(gguf: &'a Gguf, name: &str) -> Result<Self> {
        let tensor = gguf.tensor(name)?;
        Ok(Self {
            file: gguf.map(),
            format: tensor.format,
            start: tensor.range.start as u64,
            rows: tensor.rows,
            cols: tensor.cols,
            order: RowOrder::AsStored,
        })
    }
}

impl Stored<'_> {
    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        row_bytes(self.format, self.cols)
    }

    /// Bytes of the matrix.
    pub fn byte_len(&self) -> usize {
        self.rows * self.row_bytes()
    }

    /// The row of the file that is the one to be written as `row`.
    fn stored_row(&self, row: usize) -> usize {
        match self.order {
            RowOrder::AsStored => row,
            RowOrder::IntoGguf(heads) => hf_row(row, self.rows / heads),
            RowOrder::IntoCheckpoint(heads) => gguf_row(row, self.rows / heads),
        }
    }

    /// Reads rows as they are to be written, past the map.
    pub fn read(&self, rows: Range<usize>, bytes: &mut [u8]) -> Result<()> {
        let place = |row: usize| self.start + (row * self.row_bytes()) as u64;
        if self.order == RowOrder::AsStored {
            return Ok(self.file.read_at(place(rows.start), bytes)?);
        }
        for (row, bytes) in rows.zip(bytes.chunks_exact_mut(self.row_bytes())) {
            self.file.read_at(place(self.stored_row(row)), bytes)?;
        }
        Ok(())
    }
}

/// Bytes of so many numbers, which are whole blocks.
pub(crate) fn row_bytes(format: Format, cols: usize) -> usize {
    cols / format.block_len() * format.block_bytes()
}

/// Changes part of a row: the row of the file, its columns, their numbers, and room for as many.
pub(super) type Edit<'a> = &'a (dyn Fn(usize, Range<usize>, &mut [f32], &mut [f32]) + Sync);

/// Takes the bytes of a tensor, band after band.
pub(super) type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

/// Threads and buffers, for one tensor after the other.
#[derive(Debug)]
pub(super) struct Recoder {
    kernels: Kernels,
    pool: Pool,
    input: Vec<u8>,
    output: Vec<u8>,
    sums: Vec<Sums>,
}

/// What became of some numbers.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    /// Sum of squares.
    squares: f64,
    /// Sum of squared differences to what was written.
    errors: f64,
    refused: Option<Unencodable>,
}

/// A part of a row on its way.
struct Piece<'a> {
    row: usize,
    cols: Range<usize>,
    input: &'a [u8],
    output: &'a mut [u8],
    sums: &'a mut Sums,
}

impl Recoder {
    pub fn new(threads: usize) -> Result<Self> {
        let pool = Pool::new(threads, 2 * PIECE_LEN)?;
        let (input, output, sums) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { kernels: Kernels::detect(), pool, input, output, sums })
    }

    /// Hands the tensor to `sink` byte for byte.
    pub fn copy(&mut self, from: &Stored<'_>, sink: Sink<'_>) -> Result<()> {
        let (mut at, mut left) = (from.start, from.byte_len());
        while left > 0 {
            self.input.resize(left.min(BAND_LEN), 0);
            from.file.read_at(at, &mut self.input)?;
            sink(&self.input)?;
            at += self.input.len() as u64;
            left -= self.input.len();
        }
        Ok(())
    }

    /// Decodes the tensor, changes it with `edit` where there is one, encodes it as `to` and hands
    /// that to `sink`. Gives the error of what is stored relative to what should be.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a number that is not finite or too large for `to`.
    pub fn recode(
        &mut self,
        name: &str,
        from: &Stored<'_>,
        to: Format,
        edit: Option<Edit<'_>>,
        sink: Sink<'_>,
    ) -> Result<f64> {
        let pieces = from.cols.div_ceil(PIECE_LEN);
        let band = (BAND_LEN / from.cols).max(1);
        let (mut squares, mut errors) = (0.0, 0.0);
        for first in (0..from.rows).step_by(band) {
            let rows = first..from.rows.min(first + band);
            self.input.resize(rows.len() * from.row_bytes(), 0);
            self.output.resize(rows.len() * row_bytes(to, from.cols), 0);
            self.sums.clear();
            self.sums.resize(rows.len() * pieces, Sums::default());
            from.read(rows.clone(), &mut self.input)?;
            self.band(rows, from, to, edit);
            for (i, sums) in self.sums.iter().enumerate() {
                if let Some(refused) = sums.refused {
                    let row = from.stored_row(first + i / pieces);
                    let col = i % pieces * PIECE_LEN + refused.index;
                    let what = format!("row {row}, column {col} is {}", told(refused.number, to));
                    let path = from.file.path().to_owned();
                    return Err(Error::Tensor { path, tensor: name.to_owned(), what }.into());
                }
                squares += sums.squares;
                errors += sums.errors;
            }
            sink(&self.output)?;
        }
        Ok(if squares > 0.0 { f64::sqrt(errors / squares) } else { 0.0 })
    }

    /// Recodes the rows that `input` holds into `output`.
    fn band(&mut self, rows: Range<usize>, from: &Stored<'_>, to: Format, edit: Option<Edit<'_>>) {
        let (from, kernels, cols) = (*from, self.kernels, from.cols);
        let (row_in, row_out) = (from.row_bytes(), row_bytes(to, cols));
        let (part_in, part_out) = (row_bytes(from.format, PIECE_LEN), row_bytes(to, PIECE_LEN));
        let lines = self.input.chunks_exact(row_in).zip(self.output.chunks_exact_mut(row_out));
        let lines = rows.zip(lines.zip(self.sums.chunks_exact_mut(cols.div_ceil(PIECE_LEN))));
        let pieces = lines.flat_map(|(row, ((input, output), sums))| {
            let row = from.stored_row(row);
            let parts = input.chunks(part_in).zip(output.chunks_mut(part_out)).zip(sums);
            let starts = (0..cols).step_by(PIECE_LEN);
            starts.zip(parts).map(move |(start, ((input, output), sums))| {
                let cols = start..cols.min(start + PIECE_LEN);
                Piece { row, cols, input, output, sums }
            })
        });
        self.pool.run(pieces, |piece, scratch| {
            piece.recode(kernels, from.format, to, edit, scratch);
        });
    }
}

impl Piece<'_> {
    fn recode(
        self,
        kernels: Kernels,
        from: Format,
        to: Format,
        edit: Option<Edit<'_>>,
        scratch: &mut [f32],
    ) {
        let (numbers, room) = scratch.split_at_mut(PIECE_LEN);
        let (numbers, room) = (&mut numbers[..self.cols.len()], &mut room[..self.cols.len()]);
        kernels.decode_row(from, self.input, numbers);
        if let Some(edit) = edit {
            edit(self.row, self.cols, numbers, room);
        }
        *self.sums = match kernels.encode_row(to, numbers, self.output) {
            Err(refused) => Sums { refused: Some(refused), ..Sums::default() },
            Ok(()) => {
                kernels.decode_row(to, self.output, room);
                room.iter_mut().zip(&*numbers).for_each(|(stored, x)| *stored -= x);
                let (squares, errors) = (kernels.sum_squares(numbers), kernels.sum_squares(room));
                Sums { squares, errors, refused: None }
            }
        };
    }
}

/// A number that `to` can't hold, and why.
fn told(number: f32, to: Format) -> String {
    match number.is_finite() {
        true => format!("{number:e}, too large for {}", to.name()),
        false => format!("{number}, no finite number"),
    }
}
