//! The fused GEMM on several threads, cut into tasks as smidgen-runtime's pool and GEMM steps are.

use std::ops::Range;
use std::sync::Mutex;

use smidgen_kernels::{GEMM_SCRATCH, Init, Kernels, MatMut, MatRef, Matrix, Operand, Term};

/// Columns of a task where the reduction runs along the stored rows, and where down them.
const TILE_ALONG: usize = 128;
const TILE_DOWN: usize = 256;

/// Rows of the smallest band: whole panels of the widest micro-kernel.
const BAND: usize = 56;

/// Threads that take tiles of one product, the caller's included.
pub struct Team {
    helpers: Option<rayon::ThreadPool>,
    scratch: Vec<Vec<f32>>,
}

impl Team {
    pub fn new(threads: usize) -> Self {
        let builder = rayon::ThreadPoolBuilder::new().num_threads(threads - 1);
        let helpers = (threads > 1).then(|| builder.build().expect("threads"));
        Self { helpers, scratch: vec![vec![0.0; GEMM_SCRATCH]; threads] }
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.scratch.len()
    }

    /// `c` (m x n) = `a` (m x k) times `b`.
    pub fn gemm(&mut self, kernels: Kernels, a: MatRef<'_>, b: Operand<'_>, c: MatMut<'_>) {
        let (width, height) = tile_shape(c.rows(), c.cols(), b.transposed, self.threads());
        let tiles = c
            .col_tiles(width)
            .flat_map(|(col, tile)| tile.row_tiles(height).map(move |(row, t)| (row, col, t)));
        let tiles = Mutex::new(tiles.fuse());
        let take = |scratch: &mut [f32]| {
            while let Some((row, col, tile)) = tiles.lock().ok().and_then(|mut t| t.next()) {
                let a = a.rows_range(row..row + tile.rows());
                let b = columns(b, col..col + tile.cols());
                kernels.gemm(tile, Init::Zero, 1.0, &[Term { a, b }], scratch);
            }
        };
        let Some((own, others)) = self.scratch.split_first_mut() else { return };
        let Some(helpers) = &self.helpers else { return take(own) };
        helpers.in_place_scope(|scope| {
            others.iter_mut().for_each(|scratch| scope.spawn(|_| take(scratch)));
            take(own);
        });
    }
}

fn tile_shape(rows: usize, cols: usize, along: bool, threads: usize) -> (usize, usize) {
    let width = if along { TILE_ALONG } else { TILE_DOWN };
    let across = cols.div_ceil(width);
    if threads == 1 || across >= 2 * threads {
        return (width, rows);
    }
    (width, rows.div_ceil((2 * threads).div_ceil(across)).next_multiple_of(BAND))
}

fn columns(b: Operand<'_>, n: Range<usize>) -> Operand<'_> {
    let matrix = match (b.matrix, b.transposed) {
        (Matrix::Dense(m), true) => Matrix::Dense(m.rows_range(n)),
        (Matrix::Dense(m), false) => Matrix::Dense(m.cols_range(n)),
        (Matrix::Quant(m), true) => Matrix::Quant(m.rows_range(n)),
        (Matrix::Quant(m), false) => Matrix::Quant(m.cols_range(n)),
    };
    Operand { matrix, ..b }
}
