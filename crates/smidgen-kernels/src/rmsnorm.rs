//! Root-mean-square normalisation: y = x / sqrt(mean(x²) + eps) * weight.
//!
//! Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019. With s = 1 /
//! sqrt(mean(x²) + eps) and n columns, the gradient is
//! dx = s (dy weight) - x s³ sum(dy weight x) / n.

use crate::arch::{Kernels, MatMut, MatRef};
use crate::lanes;

impl Kernels {
    /// Normalises every row of `x` (rows x n) into `y` (rows x n).
    ///
    /// `inv_rms` (rows) takes each row's 1 / sqrt(mean(x²) + eps), which the backward needs. The
    /// sum of squares is taken in f32: its relative error is at most (n / 16 + 5) 2⁻²⁴.
    ///
    /// # Panics
    /// If a shape does not fit.
    pub fn rmsnorm(
        &self,
        x: MatRef<'_>,
        weight: &[f32],
        eps: f32,
        y: MatMut<'_>,
        inv_rms: &mut [f32],
    ) {
        assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "rmsnorm output");
        assert_eq!(weight.len(), x.cols(), "rmsnorm weight");
        assert_eq!(inv_rms.len(), x.rows(), "rmsnorm inverse root mean squares");
        self.compiled(
            #[inline(always)]
            || forward(x, weight, eps, y, inv_rms),
        );
    }

    /// The gradient `dx` (rows x n) of [`Kernels::rmsnorm`] for the output's gradient `dy`.
    ///
    /// The weight is frozen and gets none.
    ///
    /// # Panics
    /// If a shape does not fit.
    pub fn rmsnorm_backward(
        &self,
        dy: MatRef<'_>,
        x: MatRef<'_>,
        inv_rms: &[f32],
        weight: &[f32],
        dx: MatMut<'_>,
    ) {
        assert_eq!((x.rows(), x.cols()), (dy.rows(), dy.cols()), "rmsnorm dy");
        assert_eq!((x.rows(), x.cols()), (dx.rows(), dx.cols()), "rmsnorm dx");
        assert_eq!(weight.len(), x.cols(), "rmsnorm weight");
        assert_eq!(inv_rms.len(), x.rows(), "rmsnorm inverse root mean squares");
        self.compiled(
            #[inline(always)]
            || backward(dy, x, inv_rms, weight, dx),
        );
    }
}

#[inline(always)]
fn forward(x: MatRef<'_>, weight: &[f32], eps: f32, mut y: MatMut<'_>, inv_rms: &mut [f32]) {
    for (row, inv_rms) in inv_rms.iter_mut().enumerate() {
        let x = x.row(row);
        let mean_square = lanes::dot(x, x) / x.len() as f32;
        let inv = 1.0 / (mean_square + eps).sqrt();
        *inv_rms = inv;
        for ((y, x), w) in y.row_mut(row).iter_mut().zip(x).zip(weight) {
            *y = x * inv * w;
        }
    }
}

#[inline(always)]
fn backward(dy: MatRef<'_>, x: MatRef<'_>, inv_rms: &[f32], weight: &[f32], mut dx: MatMut<'_>) {
    for (row, &inv) in inv_rms.iter().enumerate() {
        let (dy, x) = (dy.row(row), x.row(row));
        let along_x = lanes::dot3(dy, weight, x) * inv * inv * inv / x.len() as f32;
        for (((dx, dy), w), x) in dx.row_mut(row).iter_mut().zip(dy).zip(weight).zip(x) {
            *dx = (dy * w).mul_add(inv, -(x * along_x));
        }
    }
}
