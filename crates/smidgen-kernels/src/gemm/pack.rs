//! The packed right-hand side: narrow tiles of columns, each a run of k rows.

use std::ops::Range;

use super::{GRAIN, Matrix, Operand};

/// The layout of a packed k x n matrix.
///
/// Its columns are cut into tiles of twice `lanes`, the last one of `lanes` if that holds the
/// rest; a tile's rows follow each other; columns past n are zeros.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel {
    /// Rows.
    pub k: usize,
    /// Columns.
    pub n: usize,
    /// Numbers in a vector of the instruction set.
    pub lanes: usize,
}

/// One tile of a panel.
#[derive(Clone, Debug)]
pub(crate) struct PanelTile {
    /// Where its first row begins.
    pub start: usize,
    /// Numbers in a row, the zeros included.
    pub width: usize,
    /// Its columns of the matrix.
    pub cols: Range<usize>,
}

impl Panel {
    /// The tiles from left to right.
    #[inline(always)]
    pub fn tiles(self) -> impl Iterator<Item = PanelTile> {
        (0..self.n).step_by(2 * self.lanes).map(move |first| self.tile_of(first))
    }

    /// The tile that holds column `col`, padding included.
    #[inline(always)]
    pub fn tile_of(self, col: usize) -> PanelTile {
        let first = col - col % (2 * self.lanes);
        let left = self.n - first;
        let width = if left <= self.lanes { self.lanes } else { 2 * self.lanes };
        PanelTile { start: first * self.k, width, cols: first..first + left.min(width) }
    }
}

/// Packs `b` (k x n, both at most [`GRAIN`]) for an instruction set of `lanes`, in plain Rust.
pub(crate) fn pack_plain(lanes: usize, b: Operand<'_>, panel: &mut [f32]) {
    let (k, n) = b.shape();
    assert!(k <= GRAIN && n <= GRAIN, "panel of {k} x {n}");
    let shape = Panel { k, n, lanes };
    let mut row = [0.0; GRAIN];
    for r in 0..if b.transposed { n } else { k } {
        let row = match b.matrix {
            Matrix::Dense(m) => m.row(r),
            Matrix::Quant(m) => {
                let row = &mut row[..m.cols()];
                m.format().decode(m.row_blocks(r), row);
                row
            }
        };
        if b.transposed { put_col(shape, r, row, panel) } else { put_row(shape, r, row, panel) }
    }
    if b.transposed {
        for col in n..n.next_multiple_of(lanes) {
            put_col(shape, col, &[0.0; GRAIN][..k], panel);
        }
    }
}

/// Writes one row of n numbers.
fn put_row(shape: Panel, row: usize, numbers: &[f32], panel: &mut [f32]) {
    for tile in shape.tiles() {
        let out = &mut panel[tile.start + row * tile.width..][..tile.width];
        let (out, zeros) = out.split_at_mut(tile.cols.len());
        out.copy_from_slice(&numbers[tile.cols]);
        zeros.fill(0.0);
    }
}

/// Writes one column of k numbers.
fn put_col(shape: Panel, col: usize, numbers: &[f32], panel: &mut [f32]) {
    let tile = shape.tile_of(col);
    for (k, &x) in numbers.iter().enumerate() {
        panel[tile.start + k * tile.width + col - tile.cols.start] = x;
    }
}
