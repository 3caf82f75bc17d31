//! How an output is cut into tasks for threads.

use super::{Matrix, Operand, PANEL_COLS};
use crate::arch::MatMut;

/// Columns that a tile is a multiple of: whole micro-kernel tiles of every instruction set.
const UNIT: usize = 32;

/// Columns below which copying the left-hand side begins to show.
const LEAST_COLS: usize = 64;

/// Rows below which unpacking the right-hand side once more begins to show.
const LEAST_ROWS: usize = 56;

/// A way to cut an m x n output into tiles, one task each. It has no influence on results.
///
/// Tiles are as wide as one packed panel where that leaves enough of them, and nearly equal, so
/// that threads end together. What columns alone can't share out evenly is cut into bands of
/// rows, at the price of unpacking those columns once a band.
#[derive(Clone, Copy, Debug)]
pub struct Tiling {
    /// Columns that must stay together: 1, or a block's length where n runs along the blocks.
    pub unit: usize,
    /// Threads that will take the tiles.
    pub threads: usize,
}

/// A tile with the row and the column where it begins.
pub type Task<'a> = (usize, usize, MatMut<'a>);

impl Tiling {
    /// The tiling for a product with `b`, and with all others of that sum, for `threads`.
    pub fn of<'b>(b: impl IntoIterator<Item = Operand<'b>>, threads: usize) -> Self {
        let unit = |b: Operand<'_>| match b.matrix {
            Matrix::Quant(m) if !b.transposed => m.format().block_len(),
            _ => 1,
        };
        Self { unit: b.into_iter().map(unit).max().unwrap_or(1), threads }
    }

    /// The tiles of `c`, each element in exactly one.
    pub fn tasks(self, c: MatMut<'_>) -> impl Iterator<Item = Task<'_>> + Send {
        let unit = self.unit.max(UNIT);
        let (rows, cols) = (c.rows(), c.cols());
        let units = cols.div_ceil(unit);
        let count = self.count(cols, units);
        let even = count - count % self.threads.max(1);
        let mut rest = Some(c);
        let mut first = 0;
        (0..count)
            .map(move |i| {
                let end = units * (i + 1) / count * unit;
                let all = rest.take().expect("columns left");
                let start = std::mem::replace(&mut first, end.min(cols));
                let (tile, right) = all.split_at_col(first - start);
                rest = Some(right);
                (i, start, tile)
            })
            .flat_map(move |(i, col, tile)| {
                let bands = if i < even { self.spare(even, rows) } else { self.threads };
                let bands = bands.min(rows / LEAST_ROWS).max(1);
                tile.row_tiles(rows.div_ceil(bands).max(1)).map(move |(row, t)| (row, col, t))
            })
    }

    /// Tiles side by side: a multiple of the threads where the columns suffice.
    fn count(self, cols: usize, units: usize) -> usize {
        let narrowest = units.min(cols.div_ceil(LEAST_COLS));
        let count = cols.div_ceil(PANEL_COLS);
        let even = count.next_multiple_of(self.threads.max(1));
        if even <= narrowest { even } else { count }
    }

    /// Bands of rows of the tiles that are shared out evenly: with more than two threads, which
    /// may be of unequal speed, there should be two tasks for each.
    fn spare(self, tiles: usize, rows: usize) -> usize {
        let wanted = if self.threads > 2 { 2 * self.threads } else { self.threads };
        if rows < 2 * LEAST_ROWS { 1 } else { wanted.div_ceil(tiles) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tiles of an m x n output, having checked that each element is in one.
    fn tiles(m: usize, n: usize, unit: usize, threads: usize) -> Vec<(usize, usize)> {
        let mut c = vec![0.0; m * n];
        let mut sizes = Vec::new();
        let tiling = Tiling { unit, threads };
        for (row, col, mut tile) in tiling.tasks(MatMut::new(&mut c, m, n)) {
            assert!(col % unit == 0 && tile.cols() <= PANEL_COLS.max(unit));
            sizes.push((tile.rows(), tile.cols()));
            for r in 0..tile.rows() {
                for (i, x) in tile.row_mut(r).iter_mut().enumerate() {
                    *x += ((row + r) * n + col + i) as f32 + 1.0;
                }
            }
        }
        assert!(c.iter().enumerate().all(|(i, &x)| x == i as f32 + 1.0), "{m} x {n}: {sizes:?}");
        sizes
    }

    #[test]
    fn every_element_is_in_one_tile() {
        for m in [1, 16, 56, 112, 260] {
            for n in [1, 8, 31, 64, 100, 128, 896, 2304] {
                for threads in [1, 2, 3, 8] {
                    tiles(m, n, 1, threads);
                    tiles(m, n.next_multiple_of(32), 32, threads);
                    tiles(m, n.next_multiple_of(256), 256, threads);
                }
            }
        }
    }

    #[test]
    fn two_threads_get_equal_shares() {
        assert_eq!(tiles(256, 896, 1, 2), [(256, 224); 4]);
        assert_eq!(tiles(256, 128, 32, 2), [(256, 64); 2]);
        assert_eq!(tiles(256, 16, 1, 2), [(128, 16); 2]);
        let halves = tiles(256, 4864, 256, 2);
        assert_eq!(halves.len(), 20);
        assert_eq!(halves[18..], [(128, 256); 2]);
        assert_eq!(tiles(16, 896, 1, 2).len(), 4);
        assert_eq!(tiles(256, 4864, 1, 1).len(), 19);
    }
}
