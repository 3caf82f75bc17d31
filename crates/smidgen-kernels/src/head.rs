//! Softmax and cross-entropy over a vocabulary that is seen one tile at a time.
//!
//! With logits l, target t, the running maximum m of all logits and e_v = exp(l_v - m), the
//! target is left out of the sums Z' = Σ e_v and S' = Σ e_v W_v (v ≠ t). With Z = Z' + e_t,
//!
//!   loss = log(1 + Z'/e_t),   d loss / d x = (S' - Z' W_t) / Z.
//!
//! The plain form, log Z - l_t and (S - Z W_t) / Z, cancels where the target is well predicted.
//! The running rescaling is that of Milakov and Gimelshein, "Online normalizer calculation for
//! softmax", 2018.

use crate::arch::{Kernels, MatMut};
use crate::exp::exp;
use crate::lanes;

/// What is known of a row after some tiles of the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowState {
    /// The largest logit so far, the target's included.
    max: f32,
    /// The largest logit so far, the target's left out.
    max_other: f32,
    /// The target's logit, once its tile was seen.
    target: f32,
    /// Z' for the maximum so far.
    sum: f64,
}

impl RowState {
    /// Nothing seen.
    pub const NEW: Self = Self {
        // Finite, so that the first factor exp(MIN - max) is 0 and not exp(-inf + inf).
        max: f32::MIN,
        max_other: f32::NEG_INFINITY,
        target: f32::NEG_INFINITY,
        sum: 0.0,
    };

    /// The row's loss and gradient once every tile was seen; `weight` multiplies the gradient,
    /// not the loss.
    pub fn finish(&self, weight: f32) -> RowResult {
        let above_max = f64::from(self.target) - f64::from(self.max);
        let target = above_max.exp();
        let total = self.sum + target;
        let loss =
            if target.is_normal() { (self.sum / target).ln_1p() } else { total.ln() - above_max };
        let scale = f64::from(weight) / total;
        RowResult {
            loss,
            sum_factor: scale as f32,
            target_factor: (-self.sum * scale) as f32,
            correct: self.target > self.max_other,
        }
    }
}

/// A row's cross-entropy and its gradient with respect to the head's input x:
/// `dx = sum_factor * S' + target_factor * W_t`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowResult {
    /// -log of the target's probability, in nats.
    pub loss: f64,
    /// Factor of S'.
    pub sum_factor: f32,
    /// Factor of the target's row of the head.
    pub target_factor: f32,
    /// Whether the target's logit is larger than every other.
    pub correct: bool,
}

impl Kernels {
    /// Takes the logits of one vocabulary tile into the state of each row.
    ///
    /// `logits` (rows x n) are those of tokens `first_token`..`first_token + n`; they become
    /// exp(l - maximum so far), the target's zero, so that their product with the tile of the
    /// head is the tile's part of S'. `targets`, `states` and `factors` have an entry a row; what
    /// S' held before is to be multiplied by the row's factor (1 where the maximum stayed).
    ///
    /// # Panics
    /// If a shape does not fit.
    pub fn softmax_tile(
        &self,
        logits: MatMut<'_>,
        first_token: usize,
        targets: &[u32],
        states: &mut [RowState],
        factors: &mut [f32],
    ) {
        let rows = logits.rows();
        assert_eq!(targets.len(), rows, "targets");
        assert_eq!(states.len(), rows, "row states");
        assert_eq!(factors.len(), rows, "factors");
        self.compiled(
            #[inline(always)]
            || {
                let mut logits = logits;
                let per_row = targets.iter().zip(states).zip(factors).enumerate();
                for (row, ((&target, state), factor)) in per_row {
                    let column = (target as usize).checked_sub(first_token);
                    *factor = take_row(logits.row_mut(row), column, state);
                }
            },
        );
    }
}

#[inline(always)]
fn take_row(logits: &mut [f32], target: Option<usize>, state: &mut RowState) -> f32 {
    if let Some(logit) = target.and_then(|column| logits.get_mut(column)) {
        // The exponential of -inf is the zero that leaves the target out of both sums.
        state.target = std::mem::replace(logit, f32::NEG_INFINITY);
    }
    state.max_other = lanes::larger(state.max_other, lanes::max(logits));
    let max = lanes::larger(lanes::larger(state.max, state.max_other), state.target);
    let factor = exp(state.max - max);
    let sum = lanes::map_sum(
        logits,
        #[inline(always)]
        |logit| exp(logit - max),
    );
    state.max = max;
    state.sum = state.sum * f64::from(factor) + f64::from(sum);
    factor
}
