//! Layer normalisation: y = (x - mean) / sqrt(variance + eps) * weight + bias over a row.
//!
//! Source: Ba, Kiros and Hinton, "Layer Normalization", 2016 (arXiv 1607.06450). With s = 1 /
//! sqrt(variance + eps), x' = (x - mean) s, g = dy weight and n columns, the gradient is
//! dx = s (g - sum(g) / n - x' sum(g x') / n).

use crate::arch::{Kernels, MatMut, MatRef};
use crate::lanes;

impl Kernels {
    /// Normalises every row of `x` (rows x n) into `y` (rows x n).
    ///
    /// `mean` and `inv_std` (rows each) take what the backward needs of each row: its mean and 1 /
    /// sqrt(variance + eps). The variance is summed about the mean, in f32, so rows far from zero
    /// lose nothing by that.
    ///
    /// # Panics
    /// If a shape does not fit.
    pub fn layernorm(
        &self,
        x: MatRef<'_>,
        [weight, bias]: [&[f32]; 2],
        eps: f32,
        y: MatMut<'_>,
        mean: &mut [f32],
        inv_std: &mut [f32],
    ) {
        assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "layernorm output");
        assert_eq!((weight.len(), bias.len()), (x.cols(), x.cols()), "layernorm weight and bias");
        assert_eq!((mean.len(), inv_std.len()), (x.rows(), x.rows()), "layernorm statistics");
        self.compiled(
            #[inline(always)]
            || forward(x, weight, bias, eps, y, mean, inv_std),
        );
    }

    /// The gradient `dx` (rows x n) of [`Kernels::layernorm`] for the output's gradient `dy`.
    ///
    /// Weight and bias are frozen and get none.
    ///
    /// # Panics
    /// If a shape does not fit.
    pub fn layernorm_backward(
        &self,
        dy: MatRef<'_>,
        x: MatRef<'_>,
        mean: &[f32],
        inv_std: &[f32],
        weight: &[f32],
        dx: MatMut<'_>,
    ) {
        assert_eq!((x.rows(), x.cols()), (dy.rows(), dy.cols()), "layernorm dy");
        assert_eq!((x.rows(), x.cols()), (dx.rows(), dx.cols()), "layernorm dx");
        assert_eq!(weight.len(), x.cols(), "layernorm weight");
        assert_eq!((mean.len(), inv_std.len()), (x.rows(), x.rows()), "layernorm statistics");
        self.compiled(
            #[inline(always)]
            || backward(dy, x, mean, inv_std, weight, dx),
        );
    }
}

#[inline(always)]
fn forward(
    x: MatRef<'_>,
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    mut y: MatMut<'_>,
    mean: &mut [f32],
    inv_std: &mut [f32],
) {
    for (row, (mean, inv_std)) in mean.iter_mut().zip(inv_std).enumerate() {
        let x = x.row(row);
        let n = x.len() as f32;
        let centre = lanes::sum(x) / n;
        let inv = 1.0 / (lanes::sum_squares_about(x, centre) / n + eps).sqrt();
        (*mean, *inv_std) = (centre, inv);
        for (((y, x), w), b) in y.row_mut(row).iter_mut().zip(x).zip(weight).zip(bias) {
            *y = ((x - centre) * inv).mul_add(*w, *b);
        }
    }
}

#[inline(always)]
fn backward(
    dy: MatRef<'_>,
    x: MatRef<'_>,
    mean: &[f32],
    inv_std: &[f32],
    weight: &[f32],
    mut dx: MatMut<'_>,
) {
    for (row, (&mean, &inv)) in mean.iter().zip(inv_std).enumerate() {
        let (dy, x) = (dy.row(row), x.row(row));
        let n = x.len() as f32;
        let along_ones = lanes::dot(dy, weight) / n;
        let along_x = lanes::dot3_about(dy, weight, x, mean) * inv * inv / n;
        for (((dx, dy), w), x) in dx.row_mut(row).iter_mut().zip(dy).zip(weight).zip(x) {
            let across = dy.mul_add(*w, -along_ones);
            *dx = inv * (x - mean).mul_add(-along_x, across);
        }
    }
}
