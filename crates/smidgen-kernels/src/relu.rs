//! The rectifier: a = max(x, 0).
//!
//! Source: Nair and Hinton, "Rectified Linear Units Improve Restricted Boltzmann Machines", 2010.
//! The gradient passes where a is above zero, so the backward needs the output alone. What is not a
//! number stays so both ways, as in PyTorch.

use crate::arch::{Kernels, MatMut, MatRef};

impl Kernels {
    /// `x = max(x, 0)`.
    pub fn relu(&self, mut x: MatMut<'_>) {
        self.compiled(
            #[inline(always)]
            || {
                for row in 0..x.rows() {
                    x.row_mut(row).iter_mut().for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x });
                }
            },
        );
    }

    /// Turns the gradient `d` of [`Kernels::relu`]'s output `a` into that of its input, both of one
    /// shape.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn relu_backward(&self, a: MatRef<'_>, mut d: MatMut<'_>) {
        assert_eq!((a.rows(), a.cols()), (d.rows(), d.cols()), "relu d");
        self.compiled(
            #[inline(always)]
            || {
                for row in 0..a.rows() {
                    for (d, &a) in d.row_mut(row).iter_mut().zip(a.row(row)) {
                        *d = if a <= 0.0 { 0.0 } else { *d };
                    }
                }
            },
        );
    }
}
