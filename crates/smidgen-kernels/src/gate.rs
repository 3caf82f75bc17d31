//! The gated activation of an MLP: a = act(g) u.
//!
//! Both activations are g σ(w(g)) with σ the logistic function: SiLU (Elfwing et al., 2017) has
//! w(g) = g; GELU's tanh form (Hendrycks and Gimpel, 2016) has w(g) = 2 sqrt(2/π) (g + 0.044715 g³),
//! since (1 + tanh z) / 2 = σ(2z). So act'(g) = σ + g σ (1 - σ) w'(g).

use crate::arch::{Kernels, MatMut, MatRef};
use crate::exp::sigmoid;

/// What the gate's branch goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// g σ(g).
    Silu,
    /// g (1 + tanh(sqrt(2/π) (g + 0.044715 g³))) / 2: `gelu_pytorch_tanh`.
    GeluTanh,
}

impl Kernels {
    /// `a = act(g) * u`, all of one shape.
    ///
    /// # Panics
    /// If a shape does not fit.
    pub fn gate(&self, activation: Activation, g: MatRef<'_>, u: MatRef<'_>, a: MatMut<'_>) {
        assert_eq!((g.rows(), g.cols()), (u.rows(), u.cols()), "gate u");
        assert_eq!((g.rows(), g.cols()), (a.rows(), a.cols()), "gate a");
        match activation {
            Activation::Silu => self.compiled(
                #[inline(always)]
                || forward(g, u, a, silu_inner),
            ),
            Activation::GeluTanh => self.compiled(
                #[inline(always)]
                || forward(g, u, a, gelu_inner),
            ),
        }
    }

    /// `x = act(x)`.
    pub fn activate(&self, activation: Activation, x: MatMut<'_>) {
        match activation {
            Activation::Silu => self.compiled(
                #[inline(always)]
                || in_place(x, silu_inner),
            ),
            Activation::GeluTanh => self.compiled(
                #[inline(always)]
                || in_place(x, gelu_inner),
            ),
        }
    }

    /// The gradients of [`Kernels::gate`] for the output's gradient `da`:
    /// `dg = da * u * act'(g)` and `du = da * act(g)`, all of one shape.
    ///
    /// # Panics
    /// If a shape does not fit.
    pub fn gate_backward(
        &self,
        activation: Activation,
        g: MatRef<'_>,
        u: MatRef<'_>,
        da: MatRef<'_>,
        dg: MatMut<'_>,
        du: MatMut<'_>,
    ) {
        assert_eq!((g.rows(), g.cols()), (u.rows(), u.cols()), "gate u");
        assert_eq!((g.rows(), g.cols()), (da.rows(), da.cols()), "gate da");
        assert_eq!((g.rows(), g.cols()), (dg.rows(), dg.cols()), "gate dg");
        assert_eq!((g.rows(), g.cols()), (du.rows(), du.cols()), "gate du");
        match activation {
            Activation::Silu => self.compiled(
                #[inline(always)]
                || backward(g, u, da, dg, du, silu_inner),
            ),
            Activation::GeluTanh => self.compiled(
                #[inline(always)]
                || backward(g, u, da, dg, du, gelu_inner),
            ),
        }
    }
}

/// w(g) and w'(g) of SiLU.
#[inline(always)]
fn silu_inner(g: f32) -> (f32, f32) {
    (g, 1.0)
}

/// w(g) and w'(g) of GELU's tanh form.
#[inline(always)]
fn gelu_inner(g: f32) -> (f32, f32) {
    const TWICE_ROOT: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2;
    const CUBE: f32 = 0.044_715;
    let square = CUBE * g * g;
    (TWICE_ROOT * g.mul_add(square, g), TWICE_ROOT * 3.0f32.mul_add(square, 1.0))
}

#[inline(always)]
fn in_place(mut x: MatMut<'_>, inner: impl Fn(f32) -> (f32, f32)) {
    for row in 0..x.rows() {
        x.row_mut(row).iter_mut().for_each(|x| *x *= sigmoid(inner(*x).0));
    }
}

#[inline(always)]
fn forward(g: MatRef<'_>, u: MatRef<'_>, mut a: MatMut<'_>, inner: impl Fn(f32) -> (f32, f32)) {
    for row in 0..g.rows() {
        for ((a, &g), &u) in a.row_mut(row).iter_mut().zip(g.row(row)).zip(u.row(row)) {
            *a = g * sigmoid(inner(g).0) * u;
        }
    }
}

#[inline(always)]
fn backward(
    g: MatRef<'_>,
    u: MatRef<'_>,
    da: MatRef<'_>,
    mut dg: MatMut<'_>,
    mut du: MatMut<'_>,
    inner: impl Fn(f32) -> (f32, f32),
) {
    for row in 0..g.rows() {
        let inputs = g.row(row).iter().zip(u.row(row)).zip(da.row(row));
        let outputs = dg.row_mut(row).iter_mut().zip(du.row_mut(row));
        for ((dg, du), ((&g, &u), &da)) in outputs.zip(inputs) {
            let (w, dw) = inner(g);
            let s = sigmoid(w);
            let act = g * s;
            *du = da * act;
            *dg = da * u * (act * (1.0 - s)).mul_add(dw, s);
        }
    }
}
