//! The oracle: plain Rust for the target's baseline.

use super::{MatMut, MatRef};
use crate::formats::Format;
use crate::gemm::{Operand, Panel, Store, pack_plain};

/// Numbers that are summed side by side.
const LANES: usize = 8;

/// See `Kernels::lanes`.
pub(super) fn lanes() -> usize {
    LANES
}

/// See `Kernels::decode`.
pub(super) fn decode(format: Format, blocks: &[u8], out: &mut [f32]) {
    format.decode(blocks, out);
}

/// See `Kernels::pack`.
pub(super) fn pack(b: Operand<'_>, panel: &mut [f32]) {
    pack_plain(LANES, b, panel);
}

/// See `Kernels::multiply`.
pub(super) fn multiply(mut c: MatMut<'_>, a: MatRef<'_>, panel: &[f32], store: Store) {
    let shape = Panel { k: a.cols(), n: c.cols(), lanes: LANES };
    for tile in shape.tiles() {
        let b = &panel[tile.start..][..a.cols() * tile.width];
        for row in 0..c.rows() {
            let mut sums = [0.0f32; 2 * LANES];
            for (b, &a) in b.chunks_exact(tile.width).zip(a.row(row)) {
                for (sum, &b) in sums.iter_mut().zip(b) {
                    *sum = a.mul_add(b, *sum);
                }
            }
            for (c, sum) in c.row_mut(row)[tile.cols.clone()].iter_mut().zip(sums) {
                let sum = if store.add { *c + sum } else { sum };
                *c = if store.scale == 1.0 { sum } else { sum * store.scale };
            }
        }
    }
}
