//! Operands packed once for many products, of which a product may take a part.

use std::ops::Range;

use super::UNIT;
use crate::arch::{Kernels, MatMut, MatRef};
use crate::gemm::{GRAIN, Matrix, Operand, Panel, Store};

/// A packed right-hand side, k x n.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    k: usize,
    n: usize,
    numbers: &'a [f32],
}

impl Kernels {
    /// Packs the transpose of `m` (n x k), n at most [`GRAIN`]: the panels of k's grains.
    pub(super) fn pack_turned<'a>(&self, m: MatRef<'_>, panel: &'a mut [f32]) -> Packed<'a> {
        let (n, k) = (m.rows(), m.cols());
        let width = n.next_multiple_of(self.lanes());
        for first in (0..k).step_by(GRAIN) {
            let m = m.cols_range(first..k.min(first + GRAIN));
            let operand = Operand { matrix: Matrix::Dense(m), transposed: true };
            self.pack(operand, &mut panel[first * width..]);
        }
        Packed { k, n, numbers: panel }
    }

    /// Packs `m` (k x n), k at most [`GRAIN`]: one panel.
    pub(super) fn pack_straight<'a>(&self, m: MatRef<'_>, panel: &'a mut [f32]) -> Packed<'a> {
        let (k, n) = (m.rows(), m.cols());
        // GRAIN columns are whole tiles, so what is packed a few at a time is one panel.
        for first in (0..n).step_by(GRAIN) {
            let m = m.cols_range(first..n.min(first + GRAIN));
            let operand = Operand { matrix: Matrix::Dense(m), transposed: false };
            self.pack(operand, &mut panel[first * k..]);
        }
        Packed { k, n, numbers: panel }
    }

    /// c = a b over the columns `cols` of a turned `b`: whole units, or up to the last.
    pub(super) fn product(&self, c: MatMut<'_>, a: MatRef<'_>, b: Packed<'_>, cols: Range<usize>) {
        assert!(cols.start.is_multiple_of(UNIT), "columns {cols:?}");
        assert!(cols.end.is_multiple_of(UNIT) || cols.end == b.n, "columns {cols:?} of {}", b.n);
        let (mut c, width) = (c, b.n.next_multiple_of(self.lanes()));
        for first in (0..b.k).step_by(GRAIN) {
            let k = first..b.k.min(first + GRAIN);
            let panel = &b.numbers[first * width + cols.start * k.len()..];
            let store = Store { add: first > 0, scale: 1.0 };
            self.multiply(c.reborrow(), a.cols_range(k), panel, store);
        }
    }

    /// c = a b over the rows `rows` of a straight `b`, or c += a b where `add`.
    pub(super) fn add_product(
        &self,
        (c, add): (MatMut<'_>, bool),
        a: MatRef<'_>,
        b: Packed<'_>,
        rows: Range<usize>,
    ) {
        let store = Store { add, scale: 1.0 };
        // A part of the rows is no panel of its own, but within one tile it is.
        let shape = Panel { k: b.k, n: b.n, lanes: self.lanes() };
        let whole = rows == (0..b.k);
        let cols = if whole { GRAIN } else { 2 * shape.lanes };
        for (first, c) in c.col_tiles(cols) {
            let tile = shape.tile_of(first);
            self.multiply(c, a, &b.numbers[tile.start + rows.start * tile.width..], store);
        }
    }
}
