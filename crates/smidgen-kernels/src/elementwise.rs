//! Addition and scaling of matrices, and sums over slices.

use crate::arch::{Kernels, MatMut, MatRef};
use crate::lanes::LANES;

impl Kernels {
    /// `y += x`, both of one shape.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn add(&self, x: MatRef<'_>, y: MatMut<'_>) {
        self.compiled(
            #[inline(always)]
            || zip(x, y, |x, y| y + x),
        );
    }

    /// `y += factor * x`, both of one shape, by fused multiply-add.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn axpy(&self, factor: f32, x: MatRef<'_>, y: MatMut<'_>) {
        self.compiled(
            #[inline(always)]
            || zip(x, y, |x, y| x.mul_add(factor, y)),
        );
    }

    /// `y = factor * x`, both of one shape.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn scale(&self, factor: f32, x: MatRef<'_>, y: MatMut<'_>) {
        self.compiled(
            #[inline(always)]
            || zip(x, y, |x, _| x * factor),
        );
    }

    /// `x *= factor`.
    pub fn scale_in_place(&self, factor: f32, mut x: MatMut<'_>) {
        self.compiled(
            #[inline(always)]
            || {
                for row in 0..x.rows() {
                    x.row_mut(row).iter_mut().for_each(|x| *x *= factor);
                }
            },
        );
    }

    /// `y = x`, both of one shape.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn copy(&self, x: MatRef<'_>, mut y: MatMut<'_>) {
        assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "shapes of a copy");
        for row in 0..x.rows() {
            y.row_mut(row).copy_from_slice(x.row(row));
        }
    }

    /// Sum of a_i b_i in f64.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn dot(&self, a: &[f32], b: &[f32]) -> f64 {
        assert_eq!(a.len(), b.len(), "lengths of a dot product");
        self.compiled(
            #[inline(always)]
            || dot(a, b),
        )
    }

    /// Sum of x_i² in f64.
    pub fn sum_squares(&self, x: &[f32]) -> f64 {
        self.dot(x, x)
    }
}

#[inline(always)]
fn zip(x: MatRef<'_>, mut y: MatMut<'_>, f: impl Fn(f32, f32) -> f32) {
    assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "shapes of two matrices");
    for row in 0..x.rows() {
        for (y, &x) in y.row_mut(row).iter_mut().zip(x.row(row)) {
            *y = f(x, *y);
        }
    }
}

/// Products of f32s are exact in f64; element i is added to lane i mod 16, the lanes in order.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (a_chunks, a_tail) = a.as_chunks::<LANES>();
    let (b_chunks, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(a_tail).zip(b_tail) {
        *lane += f64::from(a) * f64::from(b);
    }
    lanes.iter().sum()
}
