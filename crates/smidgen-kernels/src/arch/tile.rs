//! The micro-kernel and the loops around it.
//!
//! A tile of C stays in registers for a whole grain: `ROWS` x two vectors, or one vector for the
//! last columns. Per step of k it takes one row of the panel and one number from each row of A.
//! The rows of A are first copied next to each other, because at some distances (a multiple of
//! 4 KiB is the worst) they would push each other out of the cache.

use std::mem::MaybeUninit;

use super::vector::Vector;
use super::{MatMut, MatRef};
use crate::gemm::{GRAIN, Panel, Store};

/// The most rows of a tile in any instruction set.
const MAX_ROWS: usize = 14;

/// Distance of two copied rows of A: not a multiple of a cache's page, and whole cache lines.
const A_STRIDE: usize = GRAIN + 16;

/// Copied rows of A, on cache lines.
#[repr(align(64))]
struct Strip([MaybeUninit<f32>; MAX_ROWS * A_STRIDE]);

/// The widest tile of any instruction set.
const MAX_WIDTH: usize = 32;

/// The partial sums of a tile, on cache lines.
#[repr(align(64))]
struct Sums([f32; MAX_ROWS * MAX_WIDTH]);

/// See `Kernels::multiply`.
///
/// # Safety
/// The processor has V's instruction set.
#[inline(always)]
pub(super) unsafe fn multiply<V: Vector>(
    mut c: MatMut<'_>,
    a: MatRef<'_>,
    panel: &[f32],
    store: Store,
) {
    let (m, n, k) = (c.rows(), c.cols(), a.cols());
    assert!(a.rows() == m && k <= GRAIN, "A of {} x {k} for {m} rows", a.rows());
    assert!(panel.len() >= k * n.next_multiple_of(V::LANES), "panel");
    let shape = Panel { k, n, lanes: V::LANES };
    let mut strip = Strip([MaybeUninit::uninit(); MAX_ROWS * A_STRIDE]);
    let strip = strip.0.as_mut_ptr().cast::<f32>();
    let blocks = m.div_ceil(V::ROWS);
    for block in 0..blocks {
        // Blocks of nearly equal height, so that none is a sliver.
        let rows = m * block / blocks..m * (block + 1) / blocks;
        for (r, row) in rows.clone().enumerate() {
            // SAFETY: the strip has room for V::ROWS rows, and A_STRIDE is more than k.
            unsafe { copy::<V>(a.row(row), strip.add(r * A_STRIDE)) }
        }
        for (t, tile) in shape.tiles().enumerate() {
            let job = Job {
                a: strip,
                b: &panel[tile.start..][..k * tile.width],
                c: c.row_mut(rows.start)[tile.cols.clone()].as_mut_ptr(),
                c_stride: c.stride(),
                cols: tile.cols.len(),
                store,
                ahead: a.as_ptr().wrapping_add((rows.end + t * AHEAD_ROWS) * a.stride()),
                ahead_stride: a.stride(),
            };
            // SAFETY: the strip has `rows` rows of k numbers, b is k x width, and C has the
            // `rows` rows and `cols` columns that begin at c.
            unsafe {
                if tile.width == V::LANES {
                    run::<V, 1>(rows.len(), job);
                } else {
                    run::<V, 2>(rows.len(), job);
                }
            }
        }
    }
}

/// Copies a row. (A copy of a length that is not known calls a function, which for a short row
/// takes as long as the copying.)
///
/// # Safety
/// The processor has V's instruction set; there is room at `to`.
#[inline(always)]
unsafe fn copy<V: Vector>(row: &[f32], to: *mut f32) {
    let whole = row.len() - row.len() % V::LANES;
    // SAFETY: each vector, or its first lanes, lies in the row, and there is room for it.
    unsafe {
        for i in (0..whole).step_by(V::LANES) {
            V::load(row.as_ptr().add(i)).store(to.add(i));
        }
        if whole < row.len() {
            let count = row.len() - whole;
            V::load_first(row.as_ptr().add(whole), count).store_first(to.add(whole), count);
        }
    }
}

/// The operands of one tile.
#[derive(Clone, Copy)]
struct Job<'a> {
    /// Rows of k numbers, [`A_STRIDE`] apart.
    a: *const f32,
    /// k rows, one or two vectors wide.
    b: &'a [f32],
    /// First number of the tile in C.
    c: *mut f32,
    c_stride: usize,
    /// Columns that C has; the others are padding of the panel.
    cols: usize,
    store: Store,
    /// Rows of A that the next block needs; this tile asks for [`AHEAD_ROWS`] of them.
    ahead: *const f32,
    ahead_stride: usize,
}

/// The tile of `rows` rows and `W` vectors.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn run<V: Vector, const W: usize>(rows: usize, job: Job<'_>) {
    // SAFETY: the caller's.
    unsafe {
        match rows {
            1 => tile::<V, 1, W>(job),
            2 => tile::<V, 2, W>(job),
            3 => tile::<V, 3, W>(job),
            4 => tile::<V, 4, W>(job),
            5 => tile::<V, 5, W>(job),
            6 => tile::<V, 6, W>(job),
            7 => tile::<V, 7, W>(job),
            8 => tile::<V, 8, W>(job),
            9 => tile::<V, 9, W>(job),
            10 => tile::<V, 10, W>(job),
            11 => tile::<V, 11, W>(job),
            12 => tile::<V, 12, W>(job),
            13 => tile::<V, 13, W>(job),
            14 => tile::<V, 14, W>(job),
            _ => unreachable!("a tile of {rows} rows"),
        }
    }
}

/// One tile: `R` rows, `W` vectors.
///
/// # Safety
/// The processor has V's instruction set; `a`, `b` and `c` have what [`Job`] says, for R rows.
#[inline(always)]
unsafe fn tile<V: Vector, const R: usize, const W: usize>(job: Job<'_>) {
    if R > V::ROWS {
        unreachable!("more rows than the instruction set has registers for");
    }
    // SAFETY: k rows of b are W vectors each, and a has R rows of k numbers.
    unsafe {
        let mut sums = [[V::splat(0.0); W]; R];
        let (mut a, mut b) = (job.a, job.b.as_ptr());
        let steps = job.b.len() / (W * V::LANES);
        let end = a.add(steps);
        let unrolled = a.add(steps - steps % UNROLL);
        let (mut ahead, mut line) = (job.ahead, 0);
        while a != unrolled {
            V::prefetch(ahead.wrapping_add(line));
            line += LINE;
            if line >= steps {
                (ahead, line) = (ahead.wrapping_add(job.ahead_stride), 0);
            }
            for i in 0..UNROLL {
                step(&mut sums, a.add(i), b.add(i * W * V::LANES));
            }
            (a, b) = (a.add(UNROLL), b.add(UNROLL * W * V::LANES));
        }
        while a != end {
            step(&mut sums, a, b);
            (a, b) = (a.add(1), b.add(W * V::LANES));
        }
        let Store { add, scale } = job.store;
        if job.cols == W * V::LANES && scale == 1.0 {
            put_whole(&sums, add, job);
            return;
        }
        // By way of memory: the loop over the sums in `put` is not unrolled, and an array that is
        // indexed by a variable would live in memory during the loops above too.
        let mut partial = Sums([0.0; MAX_ROWS * MAX_WIDTH]);
        for (r, sums) in sums.iter().enumerate() {
            for (w, sum) in sums.iter().enumerate() {
                sum.store(partial.0.as_mut_ptr().add((r * W + w) * V::LANES));
            }
        }
        put::<V, W>(&partial, R, job);
    }
}

/// Brings the sums of a tile as wide as its vectors to C, straight from the registers.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn put_whole<V: Vector, const R: usize, const W: usize>(
    sums: &[[V; W]; R],
    add: bool,
    job: Job<'_>,
) {
    for (r, sums) in sums.iter().enumerate() {
        for (w, &sum) in sums.iter().enumerate() {
            // SAFETY: C has R rows of W vectors.
            unsafe {
                let c = job.c.add(r * job.c_stride + w * V::LANES);
                let sum = if add { V::load(c).add(sum) } else { sum };
                sum.store(c);
            }
        }
    }
}

/// Steps of k between two tests for the end.
const UNROLL: usize = 4;

/// Numbers in a cache line.
const LINE: usize = 16;

/// Rows that a tile asks for when it asks for one line every [`UNROLL`] steps of a grain.
const AHEAD_ROWS: usize = LINE / UNROLL;

/// Adds the products of one step of k.
///
/// # Safety
/// `a` points to a column of R numbers [`A_STRIDE`] apart, `b` to W vectors.
#[inline(always)]
unsafe fn step<V: Vector, const R: usize, const W: usize>(
    sums: &mut [[V; W]; R],
    a: *const f32,
    b: *const f32,
) {
    // SAFETY: the caller's.
    unsafe {
        let b: [V; W] = std::array::from_fn(|w| V::load(b.add(w * V::LANES)));
        for (r, sums) in sums.iter_mut().enumerate() {
            let a = V::splat(*a.add(r * A_STRIDE));
            for (sum, &b) in sums.iter_mut().zip(&b) {
                *sum = a.mul_add(b, *sum);
            }
        }
    }
}

/// Brings the sums of a tile of `rows` rows to C.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn put<V: Vector, const W: usize>(sums: &Sums, rows: usize, job: Job<'_>) {
    let Store { add, scale } = job.store;
    for (r, sums) in sums.0.chunks_exact(W * V::LANES).take(rows).enumerate() {
        for (w, sum) in sums.chunks_exact(V::LANES).enumerate() {
            let count = job.cols - w * V::LANES;
            let whole = count >= V::LANES;
            // SAFETY: C has `rows` rows of `cols` columns; only those are touched.
            unsafe {
                let c = job.c.add(r * job.c_stride + w * V::LANES);
                let mut sum = V::load(sum.as_ptr());
                if add {
                    let old = if whole { V::load(c) } else { V::load_first(c, count) };
                    sum = old.add(sum);
                }
                if scale != 1.0 {
                    sum = sum.mul(V::splat(scale));
                }
                if whole { sum.store(c) } else { sum.store_first(c, count) }
            }
        }
    }
}
