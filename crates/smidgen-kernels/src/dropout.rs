//! Dropout: y = x mask / (1 - p), the mask a function of the element's place.
//!
//! Source: Srivastava et al., 2014. Nothing is kept for the backward: dx is the same operation on
//! dy, and gives the same mask however the matrix is cut into tiles.

use crate::arch::{Kernels, MatMut, MatRef};
use crate::philox::{PHILOX_WORDS, Philox, unit};

/// What names a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DropoutKey {
    /// The run's seed.
    pub seed: u64,
    /// The optimiser's step.
    pub step: u64,
    /// The sequence within the step.
    pub sample: u64,
    /// The place in the model.
    pub tensor: u32,
}

/// Where a tile stands in its matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The matrix's row that is the tile's first.
    pub first_row: usize,
    /// The matrix's column that is the tile's first.
    pub first_col: usize,
    /// Columns of the matrix.
    pub total_cols: usize,
}

/// Blocks of random words that are made at a time.
const BATCH: usize = 16;

impl Kernels {
    /// Sets each element of `y` to the one of `x` (the same shape) over 1 - `p`, or with
    /// probability `p` to zero.
    ///
    /// # Panics
    /// If a shape does not fit or `p` is not in [0, 1).
    pub fn dropout(&self, key: DropoutKey, place: Place, p: f32, x: MatRef<'_>, y: MatMut<'_>) {
        assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "dropout output");
        assert!((0.0..1.0).contains(&p), "dropout probability {p}");
        assert!(place.first_col + x.cols() <= place.total_cols, "tile beyond its matrix");
        let mask = Mask::new(key);
        let scale = 1.0 / (1.0 - p);
        self.compiled(
            #[inline(always)]
            || {
                let mut y = y;
                for row in 0..x.rows() {
                    let first = (place.first_row + row) as u64 * place.total_cols as u64
                        + place.first_col as u64;
                    mask.apply(first, p, scale, x.row(row), y.row_mut(row));
                }
            },
        );
    }
}

/// Element e takes word e mod 4 of block e / 4.
struct Mask {
    philox: Philox,
    upper: u64,
}

impl Mask {
    /// One block of the seed's own function, a bijection of (step, sample), gives the mask's key
    /// and half of the rest of its counter; the tensor is the other half.
    fn new(key: DropoutKey) -> Self {
        let [a, b, c, _] = Philox::new(key.seed).block(key.step, key.sample);
        Self {
            philox: Philox::new(u64::from(a) | u64::from(b) << 32),
            upper: u64::from(key.tensor) | u64::from(c) << 32,
        }
    }

    #[inline(always)]
    fn apply(&self, first: u64, p: f32, scale: f32, x: &[f32], y: &mut [f32]) {
        let mut element = first;
        let mut done = 0;
        while done < x.len() {
            let words = self.words(element / PHILOX_WORDS as u64);
            let skip = (element % PHILOX_WORDS as u64) as usize;
            let len = (BATCH * PHILOX_WORDS - skip).min(x.len() - done);
            let (x, y) = (&x[done..done + len], &mut y[done..done + len]);
            for ((y, &x), &word) in y.iter_mut().zip(x).zip(&words.as_flattened()[skip..]) {
                *y = if unit(word) < p { 0.0 } else { x * scale };
            }
            done += len;
            element += len as u64;
        }
    }

    #[inline(always)]
    fn words(&self, first_block: u64) -> [[u32; PHILOX_WORDS]; BATCH] {
        let mut words = [[0; PHILOX_WORDS]; BATCH];
        for (block, words) in (first_block..).zip(&mut words) {
            *words = self.philox.block(block, self.upper);
        }
        words
    }
}
