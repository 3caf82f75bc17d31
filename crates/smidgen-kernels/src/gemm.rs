//! C = A1 B1 + A2 B2 + ...: one output, an ordered list of products.
//!
//! Each product is cut along k into grains of [`GRAIN`]. An element of C is the sum over the
//! terms in order, and within a term over its grains in order, of the grain's partial sum; a
//! partial sum starts at zero and takes its products in the order of k by fused multiply-add.
//! Neither the tile of C, nor the micro-kernel, nor the thread changes that order.

mod pack;
mod tiling;

use std::ops::Range;

use crate::arch::{Kernels, MatMut, MatRef};
use crate::formats::QuantMatrix;

pub(crate) use pack::{Panel, PanelTile, pack_plain};
pub use tiling::{Task, Tiling};

/// Length of a grain of the reduction.
pub const GRAIN: usize = 256;

/// Numbers that a call needs as scratch.
pub const GEMM_SCRATCH: usize = GRAIN * PANEL_COLS + 16;

/// The right-hand matrix of a product.
#[derive(Clone, Copy, Debug)]
pub enum Matrix<'a> {
    /// Numbers in memory.
    Dense(MatRef<'a>),
    /// Weights in a file's block format.
    Quant(QuantMatrix<'a>),
}

/// A right-hand matrix and which way round it is used.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// The stored matrix.
    pub matrix: Matrix<'a>,
    /// Whether the product is A Bᵀ (k runs along the rows of storage: a projection's forward)
    /// rather than A B (k runs down the columns: its backward).
    pub transposed: bool,
}

/// One product of the list.
#[derive(Clone, Copy, Debug)]
pub struct Term<'a> {
    /// Left-hand side, m x k.
    pub a: MatRef<'a>,
    /// Right-hand side, k x n once turned.
    pub b: Operand<'a>,
}

impl Term<'_> {
    /// What the rows `m` and the columns `n` of the output take of this product.
    pub fn part(&self, m: Range<usize>, n: Range<usize>) -> Self {
        Self { a: self.a.rows_range(m), b: self.b.part(0..self.a.cols(), n) }
    }
}

/// What C holds before the first term is added.
#[derive(Clone, Copy, Debug)]
pub enum Init<'a> {
    /// Zeros.
    Zero,
    /// What is there already.
    Keep,
    /// The same row of n numbers in every row.
    Bias(&'a [f32]),
}

impl Operand<'_> {
    /// Rows (k) and columns (n) of the operand as it is used.
    pub fn shape(&self) -> (usize, usize) {
        let (rows, cols) = match self.matrix {
            Matrix::Dense(m) => (m.rows(), m.cols()),
            Matrix::Quant(m) => (m.rows(), m.cols()),
        };
        if self.transposed { (cols, rows) } else { (rows, cols) }
    }

    /// The part with rows `k` and columns `n`, as they are used.
    pub fn part(&self, k: Range<usize>, n: Range<usize>) -> Self {
        let (rows, cols) = if self.transposed { (n, k) } else { (k, n) };
        let matrix = match self.matrix {
            Matrix::Dense(m) => Matrix::Dense(m.rows_range(rows).cols_range(cols)),
            Matrix::Quant(m) => Matrix::Quant(m.rows_range(rows).cols_range(cols)),
        };
        Self { matrix, ..*self }
    }
}

/// What becomes of the partial sums of a grain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Store {
    /// Whether they are added to what C holds.
    pub add: bool,
    /// What C is multiplied by after that; 1 leaves its bits alone.
    pub scale: f32,
}

impl Kernels {
    /// `c = scale * (init + sum of terms)`.
    ///
    /// `c` is m x n, each term's `a` m x k and its operand k x n once turned (k may differ from
    /// term to term). `scratch` has at least [`GEMM_SCRATCH`] numbers; what it holds is lost.
    ///
    /// # Panics
    /// If a shape does not fit, or if `n` of a quantised operand that is not transposed is cut
    /// within a block.
    pub fn gemm(
        &self,
        c: MatMut<'_>,
        init: Init<'_>,
        scale: f32,
        terms: &[Term<'_>],
        scratch: &mut [f32],
    ) {
        for (i, term) in terms.iter().enumerate() {
            let (k, n) = term.b.shape();
            assert_eq!((c.rows(), c.cols()), (term.a.rows(), n), "term {i}: m x n");
            assert_eq!(term.a.cols(), k, "term {i}: k");
        }
        if let Init::Bias(bias) = init {
            assert_eq!(bias.len(), c.cols(), "bias");
        }
        let panel = aligned(scratch);
        let grains: usize = terms.iter().map(|term| term.a.cols().div_ceil(GRAIN)).sum();
        for (first, mut c) in c.col_tiles(PANEL_COLS) {
            let cols = first..first + c.cols();
            let mut add = start(&mut c, init, cols.clone());
            if grains == 0 {
                finish_empty(c, add, scale);
                continue;
            }
            let all =
                terms.iter().flat_map(|term| grains_of(term.a.cols()).map(move |k| (term, k)));
            for (i, (term, k)) in all.enumerate() {
                let scale = if i + 1 == grains { scale } else { 1.0 };
                let b = term.b.part(k.clone(), cols.clone());
                self.pack(b, panel);
                self.multiply(c.reborrow(), term.a.cols_range(k), panel, Store { add, scale });
                add = true;
            }
        }
    }

    /// Packs a part of an operand, at most [`GRAIN`] both ways, as [`Kernels::gemm`] does before
    /// it multiplies: to measure what that takes. `scratch` is as there.
    ///
    /// # Panics
    /// If the part is larger.
    pub fn pack_panel(&self, part: Operand<'_>, scratch: &mut [f32]) {
        let (k, n) = part.shape();
        assert!(k <= GRAIN && n <= PANEL_COLS, "panel of {k} x {n}");
        self.pack(part, aligned(scratch));
    }

    /// `c = lᵀ r`, or `c += lᵀ r` if `keep`.
    ///
    /// `c` is m x n, `l` T x m, `r` T x n. The sum over T has the order of [`Kernels::gemm`]: by
    /// grains of [`GRAIN`] rows. `scratch` has at least [`GEMM_SCRATCH`] numbers.
    ///
    /// # Panics
    /// If a shape does not fit.
    pub fn gemm_tn(
        &self,
        c: MatMut<'_>,
        keep: bool,
        l: MatRef<'_>,
        r: MatRef<'_>,
        scratch: &mut [f32],
    ) {
        assert_eq!((c.rows(), c.cols()), (l.cols(), r.cols()), "m x n");
        assert_eq!(l.rows(), r.rows(), "T");
        let (turned, panel) = aligned(scratch).split_at_mut(TURNED_ROWS * GRAIN);
        for (first_col, c) in c.col_tiles(NARROW_PANEL_COLS) {
            let cols = first_col..first_col + c.cols();
            let mut c = c;
            if l.rows() == 0 {
                finish_empty(c, keep, 1.0);
                continue;
            }
            for t in grains_of(l.rows()) {
                let r = r.rows_range(t.clone()).cols_range(cols.clone());
                self.pack(Operand { matrix: Matrix::Dense(r), transposed: false }, panel);
                let store = Store { add: keep || t.start > 0, scale: 1.0 };
                for (first, c) in c.reborrow().row_tiles(TURNED_ROWS) {
                    let l = l.rows_range(t.clone()).cols_range(first..first + c.rows());
                    let turned = turn(l, turned);
                    self.multiply(c, turned, panel, store);
                }
            }
        }
    }
}

/// Columns of C that one packed panel serves.
const PANEL_COLS: usize = 256;

/// The same for [`Kernels::gemm_tn`], whose scratch also holds the turned left-hand side.
const NARROW_PANEL_COLS: usize = 192;

/// Rows of C for which the left-hand side is turned at a time.
const TURNED_ROWS: usize = 64;

/// The first [`PANEL_COLS`] * [`GRAIN`] numbers of `scratch` that begin a cache line.
fn aligned(scratch: &mut [f32]) -> &mut [f32] {
    assert!(scratch.len() >= GEMM_SCRATCH, "scratch of {} numbers", scratch.len());
    let skip = scratch.as_ptr().align_offset(64).min(GEMM_SCRATCH - PANEL_COLS * GRAIN);
    &mut scratch[skip..][..PANEL_COLS * GRAIN]
}

/// The grains of a reduction of length `len`.
fn grains_of(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(GRAIN).map(move |first| first..len.min(first + GRAIN))
}

/// Puts the start value into C where it is a bias; returns whether C holds a start value.
fn start(c: &mut MatMut<'_>, init: Init<'_>, cols: Range<usize>) -> bool {
    if let Init::Bias(bias) = init {
        for row in 0..c.rows() {
            c.row_mut(row).copy_from_slice(&bias[cols.clone()]);
        }
    }
    !matches!(init, Init::Zero)
}

/// The result of no products at all.
fn finish_empty(mut c: MatMut<'_>, add: bool, scale: f32) {
    for row in 0..c.rows() {
        for x in c.row_mut(row) {
            let sum = if add { *x } else { 0.0 };
            *x = if scale == 1.0 { sum } else { sum * scale };
        }
    }
}

/// The transpose of `l` (t x m), m x t, in `turned`.
fn turn<'a>(l: MatRef<'_>, turned: &'a mut [f32]) -> MatRef<'a> {
    let (t, m) = (l.rows(), l.cols());
    for row in 0..t {
        for (col, &x) in l.row(row).iter().enumerate() {
            turned[col * t + row] = x;
        }
    }
    MatRef::new(turned, m, t)
}
