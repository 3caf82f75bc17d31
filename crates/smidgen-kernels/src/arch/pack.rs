//! Packing of the right-hand side by vectors.
//!
//! What runs along k in storage is turned in squares of `LANES`. Quantised weights are unpacked
//! to codes first, a band of rows at a time; codes are turned four bytes at a time and become
//! numbers on their way to the panel. A band fills whole rows of tiles, for a panel is larger than
//! the first cache, and runs of lines go through that at twice the speed of lines far apart.

use super::MatRef;
use super::vector::Vector;
use crate::formats::{Coded, Format, MAX_GROUPS, QuantMatrix, half_to_f32, with_coded};
use crate::gemm::{GRAIN, Matrix, Operand, Panel, PanelTile};

/// The most lanes of any instruction set.
const MAX_LANES: usize = 16;

/// Rows of storage that are packed together at most: as many as a tile has columns.
const MAX_BAND: usize = 2 * MAX_LANES;

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
    for first in (0..m.rows()).step_by(MAX_BAND) {
        let band = m.rows_range(first..m.rows().min(first + MAX_BAND));
        // SAFETY: the caller's.
        unsafe { copy_band::<V>(shape, first, band, panel) }
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
        unsafe { copy_band::<V>(shape, k, MatRef::new(row, 1, m.cols()), panel) }
    }
}

/// Rows of n numbers become rows `first..` of the panel.
///
/// # Safety
/// The processor has V's instruction set.
#[inline(always)]
unsafe fn copy_band<V: Vector>(shape: Panel, first: usize, band: MatRef<'_>, panel: &mut [f32]) {
    for tile in shape.tiles() {
        let out = &mut panel[tile.start + first * tile.width..][..band.rows() * tile.width];
        for (row, out) in out.chunks_exact_mut(tile.width).enumerate() {
            let numbers = band.row(row)[tile.cols.clone()].chunks(V::LANES);
            for (numbers, out) in numbers.zip(out.chunks_exact_mut(V::LANES)) {
                let from = numbers.as_ptr();
                let whole = numbers.len() == V::LANES;
                // SAFETY: there are as many numbers, and room for LANES.
                unsafe {
                    let x = if whole { V::load(from) } else { V::load_first(from, numbers.len()) };
                    x.store(out.as_mut_ptr());
                }
            }
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
            let rows = load_squares::<V>(from.add(k), stride);
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

/// Four numbers from each of 4 `LANES` / 4 rows, `stride` apart: vector j has rows j, 4 + j, ...
///
/// # Safety
/// The processor has V's instruction set; `from` points to those rows.
#[inline(always)]
unsafe fn load_squares<V: Vector>(from: *const f32, stride: usize) -> [V; 4] {
    // SAFETY: the caller's.
    unsafe {
        [
            V::load_quads(from, 4 * stride),
            V::load_quads(from.add(stride), 4 * stride),
            V::load_quads(from.add(2 * stride), 4 * stride),
            V::load_quads(from.add(3 * stride), 4 * stride),
        ]
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
    let mut unpacked = Unpacked::ZEROS;
    for tile in (Panel { k, n, lanes: V::LANES }).tiles() {
        if tile.cols.len() < tile.width {
            unpacked = Unpacked::ZEROS;
        }
        // SAFETY: the caller's.
        unsafe { unpacked.fill::<V, F>(m.coded_rows::<F>(tile.cols), m.row_stride()) }
        let panel = &mut panel[tile.start..][..k * tile.width];
        for (part, panel) in panel.chunks_exact_mut(16 * tile.width).enumerate() {
            for first in (0..tile.width).step_by(V::LANES) {
                // SAFETY: the caller's.
                unsafe { unpacked.turn::<V, F>(part, first, panel, tile.width) }
            }
        }
    }
}

/// Rows of weights (k x n, n whole blocks) become rows of the panel.
///
/// # Safety
/// The processor has V's instruction set.
#[inline(always)]
unsafe fn copy_coded<V: Vector, F: Coded>(m: QuantMatrix<'_>, panel: &mut [f32]) {
    let (k, n) = (m.rows(), m.cols());
    assert!(n <= GRAIN, "{n} columns of weights");
    let mut unpacked = Unpacked::ZEROS;
    for first in (0..k).step_by(2 * V::LANES) {
        let rows = first..k.min(first + 2 * V::LANES);
        // SAFETY: the caller's.
        unsafe { unpacked.fill::<V, F>(m.coded_rows::<F>(rows.clone()), m.row_stride()) }
        for tile in (Panel { k, n, lanes: V::LANES }).tiles() {
            // As n is whole blocks, every tile is of two vectors.
            let out = &mut panel[tile.start..][rows.start * tile.width..rows.end * tile.width];
            for (row, out) in out.chunks_exact_mut(2 * V::LANES).enumerate() {
                for (i, out) in out.chunks_exact_mut(V::LANES).enumerate() {
                    let col = tile.cols.start + i * V::LANES;
                    // SAFETY: the caller's; there is room for LANES numbers.
                    unsafe { unpacked.numbers::<V, F>(row, col).store(out.as_mut_ptr()) }
                }
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
        // SAFETY: the caller's.
        F => unsafe { decode_coded::<V, F>(blocks, out) },
        else format.decode_floats(blocks, out)
    );
}

/// The same for a format of codes: each grain of the numbers is unpacked as a row.
///
/// # Safety
/// The processor has V's instruction set.
#[inline(always)]
unsafe fn decode_coded<V: Vector, F: Coded>(blocks: &[u8], out: &mut [f32]) {
    let row_bytes = GRAIN / F::LEN * F::BYTES;
    let mut unpacked = Unpacked::ZEROS;
    let bands = out.chunks_mut(2 * V::LANES * GRAIN);
    for (blocks, out) in blocks.chunks(2 * V::LANES * row_bytes).zip(bands) {
        // SAFETY: the caller's.
        unsafe {
            unpacked.fill::<V, F>(blocks.chunks(row_bytes), row_bytes);
            for (row, out) in out.chunks_mut(GRAIN).enumerate() {
                for (i, out) in out.chunks_exact_mut(V::LANES).enumerate() {
                    unpacked.numbers::<V, F>(row, i * V::LANES).store(out.as_mut_ptr());
                }
            }
        }
    }
}

/// Rows of weights between the one that is unpacked and the one that is asked for. A row of a
/// panel is but a few cache lines of a row of the matrix, too short for the processor to guess on.
const AHEAD: usize = 16;

/// A band of rows of at most a grain of weights, unpacked.
#[repr(align(64))]
struct Unpacked {
    codes: [[[i8; 32]; GRAIN / 32]; MAX_BAND],
    /// Of each group, one for each row.
    scale: [[f32; MAX_BAND]; MAX_GROUPS],
    offset: [[f32; MAX_BAND]; MAX_GROUPS],
    /// Bits of the blocks' scales and offsets: of each block, one for each row.
    halves: [[[u16; MAX_BAND]; GRAIN / 32]; 2],
    /// The groups' multipliers, for each row; a block of several groups is a grain long.
    multipliers: [[i8; MAX_GROUPS]; MAX_BAND],
}

impl Unpacked {
    const ZEROS: Self = Self {
        codes: [[[0; 32]; GRAIN / 32]; MAX_BAND],
        scale: [[0.0; MAX_BAND]; MAX_GROUPS],
        offset: [[0.0; MAX_BAND]; MAX_GROUPS],
        halves: [[[0; MAX_BAND]; GRAIN / 32]; 2],
        multipliers: [[0; MAX_GROUPS]; MAX_BAND],
    };

    /// Unpacks rows of whole blocks, at most 2 `LANES` of them, which are `stride` bytes apart.
    ///
    /// # Safety
    /// The processor has V's instruction set.
    #[inline(always)]
    unsafe fn fill<'a, V: Vector, F: Coded>(
        &mut self,
        rows: impl Iterator<Item = &'a [u8]>,
        stride: usize,
    ) {
        const LINE: usize = 64;
        const { assert!(F::GROUPS == 1 || F::LEN == GRAIN) }
        // SAFETY: the caller's.
        let set = unsafe { V::bytes() };
        for (row, blocks) in rows.enumerate() {
            for at in (0..blocks.len()).step_by(LINE) {
                // SAFETY: the caller's; any address can be asked for.
                unsafe { V::prefetch(blocks.as_ptr().wrapping_add(AHEAD * stride + at).cast()) }
            }
            let codes = self.codes[row].chunks_exact_mut(F::LEN / 32);
            for (b, (block, codes)) in blocks.chunks_exact(F::BYTES).zip(codes).enumerate() {
                F::unpack(set, block, codes);
                let factors = F::factors(block);
                self.halves[0][b][row] = factors.scale;
                if F::OFFSET {
                    self.halves[1][b][row] = factors.offset;
                }
                if F::GROUPS > 1 {
                    self.multipliers[row] = factors.multipliers;
                }
            }
        }
        // SAFETY: the caller's.
        unsafe { self.make_factors::<V, F>() }
    }

    /// Makes numbers of the blocks' factors, those of all rows side by side.
    ///
    /// # Safety
    /// The processor has V's instruction set.
    #[inline(always)]
    unsafe fn make_factors<V: Vector, F: Coded>(&mut self) {
        widen::<V, F>(&self.halves[0], &mut self.scale);
        if F::OFFSET {
            widen::<V, F>(&self.halves[1], &mut self.offset);
        }
        if F::GROUPS == 1 {
            return;
        }
        for first in [0, V::LANES] {
            // SAFETY: the caller's; from `first` on there are LANES rows of multipliers, and
            // LANES numbers of each group.
            unsafe {
                let scale = V::load(self.scale[0][first..].as_ptr());
                let offset = V::load(self.offset[0][first..].as_ptr());
                let multipliers = self.multipliers[first..].as_ptr().cast();
                turn_codes::<V>(
                    multipliers,
                    MAX_GROUPS,
                    #[inline(always)]
                    |i, multiplier| {
                        if i < F::GROUPS {
                            multiplier.mul(scale).store(self.scale[i][first..].as_mut_ptr());
                        } else if F::OFFSET {
                            let to = &mut self.offset[i - F::GROUPS][first..];
                            multiplier.mul(offset).store(to.as_mut_ptr());
                        }
                    },
                );
            }
        }
    }

    /// Sixteen codes of each of `LANES` rows, a part of one group, become sixteen rows of `LANES`
    /// numbers: columns `first..` of a tile `width` wide.
    ///
    /// # Safety
    /// The processor has V's instruction set.
    #[inline(always)]
    unsafe fn turn<V: Vector, F: Coded>(
        &self,
        part: usize,
        first: usize,
        tile: &mut [f32],
        width: usize,
    ) {
        let group = part * 16 / F::GROUP;
        let codes = &self.codes[first..][..V::LANES].as_flattened().as_flattened()[part * 16..];
        assert!(codes.len() >= (V::LANES - 1) * GRAIN + 16);
        let out = &mut tile[first..];
        assert!(out.len() >= 15 * width + V::LANES);
        // SAFETY: the caller's; codes hold 16 bytes at each of LANES rows, GRAIN apart, scale and
        // offset LANES numbers from `first` on, as they do rows of codes, out LANES from its
        // row 15 on.
        unsafe {
            let scale = V::load(self.scale[group][first..].as_ptr());
            let offset = V::load(self.offset[group][first..].as_ptr());
            turn_codes::<V>(
                codes.as_ptr(),
                GRAIN,
                #[inline(always)]
                |i, code| {
                    let number = number::<V, F>(code, scale, offset);
                    number.store(out.as_mut_ptr().add(i * width));
                },
            );
        }
    }

    /// `LANES` codes of a row, from `col` on, as numbers.
    ///
    /// # Safety
    /// The processor has V's instruction set.
    #[inline(always)]
    unsafe fn numbers<V: Vector, F: Coded>(&self, row: usize, col: usize) -> V {
        let codes = &self.codes[row].as_flattened()[col..][..V::LANES];
        let group = col / F::GROUP;
        // SAFETY: the caller's; there are LANES codes.
        unsafe {
            let scale = V::splat(self.scale[group][row]);
            let offset = V::splat(self.offset[group][row]);
            number::<V, F>(V::load_codes(codes.as_ptr()), scale, offset)
        }
    }
}

/// The numbers that halves stand for, 2 `LANES` of them of each block of a grain.
#[inline(always)]
fn widen<V: Vector, F: Coded>(halves: &[[u16; MAX_BAND]], numbers: &mut [[f32; MAX_BAND]]) {
    for (numbers, halves) in numbers.iter_mut().zip(halves).take(GRAIN / F::LEN) {
        for (x, &half) in numbers.iter_mut().zip(halves).take(2 * V::LANES) {
            *x = half_to_f32(half);
        }
    }
}

/// The numbers that codes stand for.
///
/// # Safety
/// The processor has V's instruction set.
#[inline(always)]
unsafe fn number<V: Vector, F: Coded>(code: V, scale: V, offset: V) -> V {
    // SAFETY: the caller's.
    unsafe { if F::OFFSET { code.mul(scale).add(offset) } else { code.mul(scale) } }
}

/// Hands sixteen codes of each of `LANES` rows on, turned: sixteen times one code of every row,
/// each time with its index. Rows are `stride` bytes apart.
///
/// # Safety
/// The processor has V's instruction set; `from` points to those rows.
#[inline(always)]
unsafe fn turn_codes<V: Vector>(from: *const i8, stride: usize, mut put: impl FnMut(usize, V)) {
    // SAFETY: the caller's; sixteen bytes are taken as four f32s.
    unsafe {
        let rows = load_squares::<V>(from.cast(), stride / 4);
        for (i, four) in V::turn_quads(rows).into_iter().enumerate() {
            put(4 * i, four.code::<0>());
            put(4 * i + 1, four.code::<1>());
            put(4 * i + 2, four.code::<2>());
            put(4 * i + 3, four.code::<3>());
        }
    }
}
