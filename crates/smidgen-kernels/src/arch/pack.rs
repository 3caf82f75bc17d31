//! Packing of the right-hand side by vectors.
//!
//! What runs along k in storage is turned in squares of `LANES`. Quantised weights are turned as
//! codes, four bytes at a time, and become numbers afterwards.

use super::MatRef;
use super::vector::Vector;
use crate::formats::{ByteOps, Coded, Format, MAX_GROUPS, MAX_LEN, QuantMatrix, with_coded};
use crate::gemm::{GRAIN, Matrix, Operand, Panel, PanelTile};

/// The most lanes of any instruction set.
const MAX_LANES: usize = 16;

/// See `Kernels::pack`.
///
/// # Safety
/// The processor has V's instruction set.
#[inline(always)]
pub(super) unsafe fn pack<V: Vector>(b: Operand<'_>, panel: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe {
        match b.matrix {
            Matrix::Dense(m) if b.transposed => turn_dense::<V>(m, panel),
            Matrix::Dense(m) => copy_dense::<V>(m, panel),
            Matrix::Quant(m) if b.transposed => with_coded!(
                m.format(),
                F => turn_coded::<V, F>(m, panel),
                else turn_floats::<V>(m, panel)
            ),
            Matrix::Quant(m) => with_coded!(
                m.format(),
                F => copy_coded::<V, F>(m, panel),
                else copy_floats::<V>(m, panel)
            ),
        }
    }
}

/// Rows of `m` (k x n) become rows of the panel.
///
/// # Safety
/// The processor has V's instruction set.
#[inline(always)]
unsafe fn copy_dense<V: Vector>(m: MatRef<'_>, panel: &mut [f32]) {
    let shape = Panel { k: m.rows(), n: m.cols(), lanes: V::LANES };
    for k in 0..m.rows() {
        // SAFETY: the caller's.
        unsafe { copy_row::<V>(shape, k, m.row(k), panel) }
    }
}

/// The same for the formats of one number a block, decoded first.
///
/// # Safety
/// The processor has V's instruction set.
#[inline(always)]
unsafe fn copy_floats<V: Vector>(m: QuantMatrix<'_>, panel: &mut [f32]) {
    let shape = Panel { k: m.rows(), n: m.cols(), lanes: V::LANES };
    let mut row = [0.0; GRAIN];
    for k in 0..m.rows() {
        let row = &mut row[..m.cols()];
        m.format().decode_floats(m.row_blocks(k), row);
        // SAFETY: the caller's.
        unsafe { copy_row::<V>(shape, k, row, panel) }
    }
}

/// One row of n numbers becomes row `k` of the panel.
///
/// # Safety
/// The processor has V's instruction set.
#[inline(always)]
unsafe fn copy_row<V: Vector>(shape: Panel, k: usize, row: &[f32], panel: &mut [f32]) {
    for (i, numbers) in row.chunks(V::LANES).enumerate() {
        let (start, width) = place(shape, i * V::LANES);
        let out = &mut panel[start + k * width..][..V::LANES];
        // SAFETY: there are as many numbers, and room for LANES.
        unsafe {
            let whole = numbers.len() == V::LANES;
            let from = numbers.as_ptr();
            let x = if whole { V::load(from) } else { V::load_first(from, numbers.len()) };
            x.store(out.as_mut_ptr());
        }
    }
}

/// Rows of weights (k x n, n whole blocks) become rows of the panel.
///
/// # Safety
/// The processor has V's instruction set.
#[inline(always)]
unsafe fn copy_coded<V: Vector, F: Coded>(m: QuantMatrix<'_>, panel: &mut [f32]) {
    let shape = Panel { k: m.rows(), n: m.cols(), lanes: V::LANES };
    for k in 0..m.rows() {
        for (b, block) in m.row_blocks(k).chunks_exact(F::BYTES).enumerate() {
            // SAFETY: the caller's.
            unsafe {
                decode_block::<V, F>(block, |first, numbers| {
                    let (start, width) = place(shape, b * F::LEN + first);
                    numbers.store(panel[start + k * width..][..V::LANES].as_mut_ptr());
                });
            }
        }
    }
}

/// See `Kernels::decode`.
///
/// # Safety
/// The processor has V's instruction set.
#[inline(always)]
pub(super) unsafe fn decode<V: Vector>(format: Format, blocks: &[u8], out: &mut [f32]) {
    with_coded!(
        format,
        F => for (block, out) in blocks.chunks_exact(F::BYTES).zip(out.chunks_exact_mut(F::LEN)) {
            // SAFETY: the caller's; each store is checked to lie in out.
            unsafe {
                decode_block::<V, F>(block, |first, numbers| {
                    numbers.store(out[first..][..V::LANES].as_mut_ptr());
                });
            }
        },
        else format.decode_floats(blocks, out)
    );
}

/// Hands the numbers of a block on, `LANES` at a time, each time with the index of the first.
///
/// # Safety
/// The processor has V's instruction set.
#[inline(always)]
unsafe fn decode_block<V: Vector, F: Coded>(block: &[u8], mut put: impl FnMut(usize, V)) {
    let mut codes = [[0; 32]; MAX_LEN / 32];
    // SAFETY: the caller's; there are LANES codes in each chunk.
    unsafe {
        let scales = F::unpack(V::bytes(), block, &mut codes);
        let codes = &codes.as_flattened()[..F::LEN];
        for (i, codes) in codes.chunks_exact(V::LANES).enumerate() {
            let group = i * V::LANES / F::GROUP;
            let product = V::load_codes(codes.as_ptr()).mul(V::splat(scales.scale[group]));
            let offset = V::splat(scales.offset[group]);
            put(i * V::LANES, if F::OFFSET { product.add(offset) } else { product });
        }
    }
}

/// Where the group of `LANES` columns that begins at `first` goes: its first number, the row's width.
#[inline(always)]
fn place(shape: Panel, first: usize) -> (usize, usize) {
    let PanelTile { start, width, cols } = shape.tile_of(first);
    (start + first - cols.start, width)
}

/// Rows of `m` (n x k) become columns of the panel.
///
/// # Safety
/// The processor has V's instruction set.
#[inline(always)]
unsafe fn turn_dense<V: Vector>(m: MatRef<'_>, panel: &mut [f32]) {
    let (n, k) = (m.rows(), m.cols());
    let shape = Panel { k, n, lanes: V::LANES };
    let whole = n - n % V::LANES;
    for first in (0..whole).step_by(V::LANES) {
        // SAFETY: the view has LANES rows from the first on.
        unsafe { turn::<V>(m.row(first).as_ptr(), m.stride(), shape, first, panel) }
    }
    if whole < n {
        let mut rows = [0.0; MAX_LANES * GRAIN];
        for (copy, row) in rows.chunks_exact_mut(GRAIN).zip(whole..n) {
            copy[..k].copy_from_slice(m.row(row));
        }
        // SAFETY: the copy has LANES rows, of zeros where the view has none.
        unsafe { turn::<V>(rows.as_ptr(), GRAIN, shape, whole, panel) }
    }
}

/// The same for the formats of one number a block, decoded first.
///
/// # Safety
/// The processor has V's instruction set.
#[inline(always)]
unsafe fn turn_floats<V: Vector>(m: QuantMatrix<'_>, panel: &mut [f32]) {
    let (n, k) = (m.rows(), m.cols());
    let shape = Panel { k, n, lanes: V::LANES };
    let mut rows = [0.0; MAX_LANES * GRAIN];
    for first in (0..n).step_by(V::LANES) {
        let count = V::LANES.min(n - first);
        for (r, row) in rows.chunks_exact_mut(GRAIN).take(V::LANES).enumerate() {
            if r < count {
                m.format().decode_floats(m.row_blocks(first + r), &mut row[..k]);
            } else {
                row.fill(0.0);
            }
        }
        // SAFETY: there are LANES rows of GRAIN numbers.
        unsafe { turn::<V>(rows.as_ptr(), GRAIN, shape, first, panel) }
    }
}

/// `LANES` rows of k numbers become columns `first..` of the panel.
///
/// # Safety
/// The processor has V's instruction set; `from` points to those rows, `stride` apart.
#[inline(always)]
unsafe fn turn<V: Vector>(
    from: *const f32,
    stride: usize,
    shape: Panel,
    first: usize,
    panel: &mut [f32],
) {
    let (start, width) = place(shape, first);
    let panel = &mut panel[start..][..(shape.k - 1) * width + V::LANES];
    let whole = shape.k - shape.k % 4;
    for k in (0..whole).step_by(4) {
        // SAFETY: four numbers from k on are in each of the LANES rows, and LANES numbers from
        // (k + 3) * width on in the panel.
        unsafe {
            let rows = std::array::from_fn(|j| V::load_quads(from.add(j * stride + k), 4 * stride));
            for (i, x) in V::turn_quads(rows).into_iter().enumerate() {
                x.store(panel.as_mut_ptr().add((k + i) * width));
            }
        }
    }
    for k in whole..shape.k {
        for row in 0..V::LANES {
            // SAFETY: k is in each of the LANES rows.
            panel[k * width + row] = unsafe { *from.add(row * stride + k) };
        }
    }
}

/// A grain of `LANES` rows, unpacked.
#[repr(align(64))]
struct Unpacked {
    codes: [[[i8; 32]; GRAIN / 32]; MAX_LANES],
    /// Of each group, one for each row.
    scale: [[f32; MAX_LANES]; MAX_GROUPS],
    offset: [[f32; MAX_LANES]; MAX_GROUPS],
}

impl Unpacked {
    const ZEROS: Self = Self {
        codes: [[[0; 32]; GRAIN / 32]; MAX_LANES],
        scale: [[0.0; MAX_LANES]; MAX_GROUPS],
        offset: [[0.0; MAX_LANES]; MAX_GROUPS],
    };

    /// Unpacks the blocks of one row.
    #[inline(always)]
    fn fill_row<F: Coded, S: ByteOps>(&mut self, set: S, row: usize, blocks: &[u8]) {
        let groups = F::LEN / F::GROUP;
        let codes = self.codes[row].chunks_exact_mut(F::LEN / 32);
        for (b, (block, codes)) in blocks.chunks_exact(F::BYTES).zip(codes).enumerate() {
            let scales = F::unpack(set, block, codes);
            for g in 0..groups {
                self.scale[b * groups + g][row] = scales.scale[g];
                if F::OFFSET {
                    self.offset[b * groups + g][row] = scales.offset[g];
                }
            }
        }
    }
}

/// Rows of weights (n x k, k whole blocks) become columns of the panel.
///
/// # Safety
/// The processor has V's instruction set.
#[inline(always)]
unsafe fn turn_coded<V: Vector, F: Coded>(m: QuantMatrix<'_>, panel: &mut [f32]) {
    let (n, k) = (m.rows(), m.cols());
    assert!(k <= GRAIN, "{k} columns of weights");
    let shape = Panel { k, n, lanes: V::LANES };
    // SAFETY: the caller's.
    let set = unsafe { V::bytes() };
    let mut unpacked = Unpacked::ZEROS;
    for first in (0..n).step_by(V::LANES) {
        let count = V::LANES.min(n - first);
        if count < V::LANES {
            unpacked = Unpacked::ZEROS;
        }
        for row in 0..count {
            unpacked.fill_row::<F, _>(set, row, m.row_blocks(first + row));
        }
        let (start, width) = place(shape, first);
        let panel = &mut panel[start..][..(k - 1) * width + V::LANES];
        for (chunk, panel) in panel.chunks_mut(16 * width).enumerate() {
            // SAFETY: the panel has LANES numbers from the last of the 16 rows on.
            unsafe { put_chunk::<V, F>(&unpacked, chunk, panel, width) }
        }
    }
}

/// Sixteen steps of k, a part of one group: `LANES` codes each, turned, then made numbers.
///
/// # Safety
/// The processor has V's instruction set.
#[inline(always)]
unsafe fn put_chunk<V: Vector, F: Coded>(
    unpacked: &Unpacked,
    chunk: usize,
    panel: &mut [f32],
    width: usize,
) {
    assert!(panel.len() >= 15 * width + V::LANES);
    let group = chunk * 16 / F::GROUP;
    let codes = &unpacked.codes.as_flattened().as_flattened()[chunk * 16..];
    assert!(codes.len() >= (V::LANES - 1) * GRAIN + 16);
    // SAFETY: codes hold 16 bytes at each of LANES rows, GRAIN bytes (a quarter as many f32s)
    // apart, scale and offset MAX_LANES numbers, the panel LANES from its row 15 on.
    unsafe {
        let from = codes.as_ptr().cast::<f32>();
        const STRIDE: usize = GRAIN / 4;
        let rows = std::array::from_fn(|j| V::load_quads(from.add(j * STRIDE), 4 * STRIDE));
        let scale = V::load(unpacked.scale[group].as_ptr());
        let offset = V::load(unpacked.offset[group].as_ptr());
        for (i, four) in V::turn_quads(rows).into_iter().enumerate() {
            let codes = [four.code::<0>(), four.code::<1>(), four.code::<2>(), four.code::<3>()];
            for (j, code) in codes.into_iter().enumerate() {
                let product = code.mul(scale);
                let number = if F::OFFSET { product.add(offset) } else { product };
                number.store(panel.as_mut_ptr().add((4 * i + j) * width));
            }
        }
    }
}
