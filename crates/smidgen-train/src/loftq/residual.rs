//! Products with E = W - Q, band by band.
//!
//! Work is split by outputs: rows of E for E V, columns for U E. So no sum depends on threads.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use smidgen_kernels::{Kernels, MatMut, MatRef};
use smidgen_runtime::Pool;

use crate::convert::{Stored, row_bytes};
use crate::error::Result;

/// Numbers of a band; a single row may have more.
const BAND_LEN: usize = 1 << 16;

/// Numbers of a row that a thread works on at once: whole blocks of every format.
const PIECE_LEN: usize = 4096;

/// Columns of a thread's share of U E: whole blocks of every format.
const SHARE_COLS: usize = 256;

/// The most bytes that a thread takes: room for two pieces, and what its stack grows to.
pub const THREAD_BYTES: usize = 2 * PIECE_LEN * size_of::<f32>() + (64 << 10);

/// W and Q, which have the same rows and columns.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    pub source: Stored<'a>,
    pub quantised: Stored<'a>,
}

impl Residual<'_> {
    pub fn rows(&self) -> usize {
        self.source.rows
    }

    pub fn cols(&self) -> usize {
        self.source.cols
    }
}

/// Sums of squares.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    /// Of W.
    pub weights: f64,
    /// Of E.
    pub errors: f64,
}

/// Threads and buffers, for one matrix after the other.
pub struct Products<'a> {
    kernels: Kernels,
    pool: Pool,
    cancel: &'a AtomicBool,
    /// A band of W and of Q as they are stored.
    bytes: [Vec<u8>; 2],
    /// What a band's rows give: products with each vector.
    products: Vec<f64>,
    sums: Vec<Sums>,
}

impl<'a> Products<'a> {
    pub fn new(threads: usize, cancel: &'a AtomicBool) -> Result<Self> {
        let pool = Pool::new(threads, 2 * PIECE_LEN)?;
        let (bytes, products, sums) = Default::default();
        Ok(Self { kernels: Kernels::detect(), pool, cancel, bytes, products, sums })
    }

    /// The most bytes that products of `e` and so many vectors take beside the threads.
    pub fn bytes(e: &Residual<'_>, vectors: usize) -> usize {
        let rows = band_rows(e.cols()).min(e.rows());
        let band = rows * (e.source.row_bytes() + e.quantised.row_bytes());
        let products = rows * (vectors * size_of::<f64>() + size_of::<Sums>());
        // Lists double as they grow.
        let shares = e.cols().div_ceil(SHARE_COLS) * (2 * vectors + 4) * size_of::<&mut [f32]>();
        band + products + shares
    }

    /// `left` = (E `right`ᵀ)ᵀ for vectors that are rows: `right` is `[vectors, cols]`, `left`
    /// `[vectors, rows]`.
    pub fn times(&mut self, e: &Residual<'_>, right: &[f32], left: &mut [f32]) -> Result<Sums> {
        let (kernels, rows, cols) = (self.kernels, e.rows(), e.cols());
        let vectors = left.len() / rows;
        let mut all = Sums::default();
        for band in bands(rows, cols) {
            self.read(e, band.clone())?;
            self.products.clear();
            self.products.resize(band.len() * vectors, 0.0);
            self.sums.clear();
            self.sums.resize(band.len(), Sums::default());
            let results = self.products.chunks_exact_mut(vectors).zip(&mut self.sums);
            let tasks = lines(&self.bytes, e).zip(results);
            self.pool.run(tasks, |(line, (products, sums)), scratch| {
                for at in pieces(cols, PIECE_LEN) {
                    let (numbers, squares) = line.decode(kernels, at.clone(), scratch);
                    sums.weights += squares;
                    sums.errors += kernels.sum_squares(numbers);
                    for (product, vector) in products.iter_mut().zip(right.chunks_exact(cols)) {
                        *product += kernels.dot(numbers, &vector[at.clone()]);
                    }
                }
            });
            for (row, products) in band.zip(self.products.chunks_exact(vectors)) {
                for (vector, product) in left.chunks_exact_mut(rows).zip(products) {
                    vector[row] = *product as f32;
                }
            }
            for sums in &self.sums {
                all.weights += sums.weights;
                all.errors += sums.errors;
            }
        }
        Ok(all)
    }

    /// `right` = `left` E: `left` is `[vectors, rows]`, `right` `[vectors, cols]`.
    pub fn transposed_times(
        &mut self,
        e: &Residual<'_>,
        left: &[f32],
        right: &mut [f32],
    ) -> Result<()> {
        let (kernels, rows, cols) = (self.kernels, e.rows(), e.cols());
        right.fill(0.0);
        for band in bands(rows, cols) {
            self.read(e, band.clone())?;
            let mut shares: Vec<Vec<&mut [f32]>> =
                pieces(cols, SHARE_COLS).map(|_| vec![]).collect();
            for vector in right.chunks_exact_mut(cols) {
                for (share, part) in shares.iter_mut().zip(vector.chunks_mut(SHARE_COLS)) {
                    share.push(part);
                }
            }
            let bytes = &self.bytes;
            let tasks = pieces(cols, SHARE_COLS).zip(shares);
            self.pool.run(tasks, |(at, mut share), scratch| {
                for (row, line) in band.clone().zip(lines(bytes, e)) {
                    let (numbers, _) = line.decode(kernels, at.clone(), scratch);
                    let numbers = MatRef::new(numbers, 1, at.len());
                    for (vector, part) in left.chunks_exact(rows).zip(&mut share) {
                        kernels.axpy(vector[row], numbers, MatMut::new(part, 1, at.len()));
                    }
                }
            });
        }
        Ok(())
    }

    /// Reads rows of both.
    fn read(&mut self, e: &Residual<'_>, rows: Range<usize>) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(smidgen_models::Error::Cancelled.into());
        }
        for (bytes, stored) in self.bytes.iter_mut().zip([e.source, e.quantised]) {
            bytes.resize(rows.len() * stored.row_bytes(), 0);
            stored.read(rows.clone(), bytes)?;
        }
        Ok(())
    }
}

/// A row of W and of Q.
struct Line<'a> {
    e: &'a Residual<'a>,
    source: &'a [u8],
    quantised: &'a [u8],
}

impl Line<'_> {
    /// Columns of the row of E, and the sum of squares of W there. `scratch` holds two pieces.
    fn decode<'s>(
        &self,
        kernels: Kernels,
        cols: Range<usize>,
        scratch: &'s mut [f32],
    ) -> (&'s [f32], f64) {
        let (numbers, room) = scratch.split_at_mut(PIECE_LEN);
        let (numbers, room) = (&mut numbers[..cols.len()], &mut room[..cols.len()]);
        for (stored, bytes, out) in [
            (&self.e.source, self.source, &mut *numbers),
            (&self.e.quantised, self.quantised, &mut *room),
        ] {
            let at = row_bytes(stored.format, cols.start)..row_bytes(stored.format, cols.end);
            kernels.decode_row(stored.format, &bytes[at], out);
        }
        let squares = kernels.sum_squares(numbers);
        let len = cols.len();
        kernels.axpy(-1.0, MatRef::new(room, 1, len), MatMut::new(numbers, 1, len));
        (numbers, squares)
    }
}

fn lines<'a>(
    [source, quantised]: &'a [Vec<u8>; 2],
    e: &'a Residual<'a>,
) -> impl Iterator<Item = Line<'a>> {
    let source = source.chunks_exact(e.source.row_bytes());
    let quantised = quantised.chunks_exact(e.quantised.row_bytes());
    source.zip(quantised).map(|(source, quantised)| Line { e, source, quantised })
}

fn bands(rows: usize, cols: usize) -> impl Iterator<Item = Range<usize>> {
    pieces(rows, band_rows(cols))
}

fn band_rows(cols: usize) -> usize {
    (BAND_LEN / cols).max(1)
}

/// `0..len` in pieces.
fn pieces(len: usize, piece: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(piece).map(move |start| start..len.min(start + piece))
}
