//! Updates of trainable parameters.

use crate::arch::Kernels;

/// AdamW's settings, as torch.optim.AdamW names them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Kernels {
    /// One AdamW update of the parameters `p` for the gradient `g`; `m` and `v` are the running
    /// means, zero before the first step. `step` counts from 1. All four are of one length.
    ///
    /// Source: Loshchilov and Hutter, 2017, in torch.optim.AdamW's order of operations: scalars
    /// are computed in f64 and rounded, elements in f32.
    ///
    /// # Panics
    /// If the lengths differ or `step` is 0.
    pub fn adamw(
        &self,
        p: &mut [f32],
        g: &[f32],
        m: &mut [f32],
        v: &mut [f32],
        settings: AdamW,
        step: u64,
    ) {
        let len = p.len();
        assert!(g.len() == len && m.len() == len && v.len() == len, "lengths of AdamW's state");
        assert!(step > 0, "steps count from 1");
        let AdamW { lr, beta1, beta2, eps, weight_decay } = settings;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let keep = (1.0 - lr * weight_decay) as f32;
        let (m_weight, v_keep, v_weight) =
            ((1.0 - beta1) as f32, beta2 as f32, (1.0 - beta2) as f32);
        let step_size = (lr / correction(beta1)) as f32;
        let root_correction = correction(beta2).sqrt() as f32;
        let eps = eps as f32;
        self.compiled(
            #[inline(always)]
            || {
                for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                    *m += (g - *m) * m_weight;
                    *v = *v * v_keep + g * g * v_weight;
                    let denominator = v.sqrt() / root_correction + eps;
                    *p = *p * keep - *m / denominator * step_size;
                }
            },
        );
    }

    /// One step down the gradient: `p -= lr * (g + weight_decay * p)`, as torch.optim.SGD does
    /// without momentum.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn sgd(&self, p: &mut [f32], g: &[f32], lr: f32, weight_decay: f32) {
        assert_eq!(p.len(), g.len(), "lengths of parameters and gradient");
        self.compiled(
            #[inline(always)]
            || {
                for (p, &g) in p.iter_mut().zip(g) {
                    *p -= lr * (g + weight_decay * *p);
                }
            },
        );
    }
}
