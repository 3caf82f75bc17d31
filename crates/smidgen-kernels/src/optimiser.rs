//! Updates of trainable parameters.

mod eight_bit;

use crate::arch::Kernels;
pub use eight_bit::{EIGHT_BIT_BLOCK, eight_bit_words};

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
        let update = Update::new(settings, step);
        self.compiled(
            #[inline(always)]
            || update.run(p, g, m, v),
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

    /// The same with momentum, as torch.optim.SGD has it without dampening: the gradient with its
    /// decay is added to `momentum` times the `buffer`, zero before the first step, and the
    /// parameters step down along that.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn sgd_momentum(
        &self,
        p: &mut [f32],
        g: &[f32],
        buffer: &mut [f32],
        momentum: f32,
        lr: f32,
        weight_decay: f32,
    ) {
        let len = p.len();
        assert!(g.len() == len && buffer.len() == len, "lengths of SGD's state");
        self.compiled(
            #[inline(always)]
            || {
                for ((p, &g), buffer) in p.iter_mut().zip(g).zip(buffer) {
                    *buffer = *buffer * momentum + (g + weight_decay * *p);
                    *p -= lr * *buffer;
                }
            },
        );
    }
}

/// One AdamW step's factors, in f32.
#[derive(Clone, Copy, Debug)]
struct Update {
    /// What weight decay leaves of a parameter.
    keep: f32,
    m_weight: f32,
    v_keep: f32,
    v_weight: f32,
    /// Learning rate over the correction of the mean.
    step_size: f32,
    /// Root of the correction of the mean square.
    root_correction: f32,
    eps: f32,
}

impl Update {
    fn new(settings: AdamW, step: u64) -> Self {
        assert!(step > 0, "steps count from 1");
        let AdamW { lr, beta1, beta2, eps, weight_decay } = settings;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        Self {
            keep: (1.0 - lr * weight_decay) as f32,
            m_weight: (1.0 - beta1) as f32,
            v_keep: beta2 as f32,
            v_weight: (1.0 - beta2) as f32,
            step_size: (lr / correction(beta1)) as f32,
            root_correction: correction(beta2).sqrt() as f32,
            eps: eps as f32,
        }
    }

    /// Updates as many parameters as there are in the shortest slice.
    #[inline(always)]
    fn run(&self, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            *m += (g - *m) * self.m_weight;
            *v = *v * self.v_keep + g * g * self.v_weight;
            let denominator = v.sqrt() / self.root_correction + self.eps;
            *p = *p * self.keep - *m / denominator * self.step_size;
        }
    }
}
