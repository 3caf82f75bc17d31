//! Reductions in one order: element i belongs to lane i mod 16, and the lanes are added in a
//! fixed tree. Sixteen lanes fill one AVX-512 register, two of AVX2, four of NEON.

use std::array::from_fn;

/// Number of lanes of a reduction.
pub(crate) const LANES: usize = 16;

/// One partial result a lane.
pub(crate) type Lanes = [f32; LANES];

/// Sum of the lanes: halves are added until one number is left.
#[inline(always)]
pub(crate) fn tree_sum(lanes: Lanes) -> f32 {
    tree(
        lanes,
        #[inline(always)]
        |a, b| a + b,
    )
}

/// Halves of the lanes are joined until one number is left. (Each half is an array of its own:
/// then it stays in registers.)
#[inline(always)]
fn tree(lanes: Lanes, join: impl Fn(f32, f32) -> f32) -> f32 {
    let eight: [f32; 8] = from_fn(
        #[inline(always)]
        |i| join(lanes[i], lanes[i + 8]),
    );
    let four: [f32; 4] = from_fn(
        #[inline(always)]
        |i| join(eight[i], eight[i + 4]),
    );
    join(join(four[0], four[2]), join(four[1], four[3]))
}

/// The larger of two numbers; the first where they do not compare.
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// The largest element, negative infinity for none. NaNs are passed over.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    let mut all = lanes;
    for (lane, &x) in all.iter_mut().zip(tail) {
        *lane = larger(*lane, x);
    }
    tree(all, larger)
}

/// Sum of `f` over the elements, each replaced by its value of `f`.
#[inline(always)]
pub(crate) fn map_sum(x: &mut [f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, tail) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = f(chunk[lane]);
            lanes[lane] += chunk[lane];
        }
    }
    let mut all = lanes;
    for (lane, x) in all.iter_mut().zip(tail) {
        *x = f(*x);
        *lane += *x;
    }
    tree_sum(all)
}

/// Sum of the elements.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane += x;
    }
    tree_sum(lanes)
}

/// Sum of (x_i - centre)²: the difference is rounded, the rest is a fused multiply-add.
#[inline(always)]
pub(crate) fn sum_squares_about(x: &[f32], centre: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let off = chunk[lane] - centre;
            lanes[lane] = off.mul_add(off, lanes[lane]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        let off = x - centre;
        *lane = off.mul_add(off, *lane);
    }
    tree_sum(lanes)
}

/// Sum of a_i b_i by fused multiply-add.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "lengths of a dot product");
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, a_tail) = a.as_chunks::<LANES>();
    let (b_chunks, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] = a[lane].mul_add(b[lane], lanes[lane]);
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_tail).zip(b_tail) {
        *lane = a.mul_add(*b, *lane);
    }
    tree_sum(lanes)
}

/// Sum of a_i b_i c_i: a_i b_i is rounded, the rest is a fused multiply-add.
#[inline(always)]
pub(crate) fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    assert!(a.len() == b.len() && b.len() == c.len(), "lengths of a triple product");
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, a_tail) = a.as_chunks::<LANES>();
    let (b_chunks, b_tail) = b.as_chunks::<LANES>();
    let (c_chunks, c_tail) = c.as_chunks::<LANES>();
    for ((a, b), c) in a_chunks.iter().zip(b_chunks).zip(c_chunks) {
        for lane in 0..LANES {
            lanes[lane] = (a[lane] * b[lane]).mul_add(c[lane], lanes[lane]);
        }
    }
    for (((lane, a), b), c) in lanes.iter_mut().zip(a_tail).zip(b_tail).zip(c_tail) {
        *lane = (a * b).mul_add(*c, *lane);
    }
    tree_sum(lanes)
}

/// Sum of a_i b_i (c_i - centre): a_i b_i and the difference are rounded, the rest is a fused
/// multiply-add.
#[inline(always)]
pub(crate) fn dot3_about(a: &[f32], b: &[f32], c: &[f32], centre: f32) -> f32 {
    assert!(a.len() == b.len() && b.len() == c.len(), "lengths of a triple product");
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, a_tail) = a.as_chunks::<LANES>();
    let (b_chunks, b_tail) = b.as_chunks::<LANES>();
    let (c_chunks, c_tail) = c.as_chunks::<LANES>();
    for ((a, b), c) in a_chunks.iter().zip(b_chunks).zip(c_chunks) {
        for lane in 0..LANES {
            lanes[lane] = (a[lane] * b[lane]).mul_add(c[lane] - centre, lanes[lane]);
        }
    }
    for (((lane, a), b), c) in lanes.iter_mut().zip(a_tail).zip(b_tail).zip(c_tail) {
        *lane = (a * b).mul_add(c - centre, *lane);
    }
    tree_sum(lanes)
}
