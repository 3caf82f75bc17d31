//! One step of exact training, top to bottom.
//!
//! A step takes some sequences, runs them through the model in one or more passes, and updates
//! the adapter once. The loss is the mean over the step's N targets of their cross-entropy, so
//! every target weighs 1 / N wherever its sequence and its pass end. Sequences are taken in
//! order, and sums over them are in that order however many share a pass.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use smidgen_graph::Gradients;
use smidgen_kernels::Kernels;
use smidgen_runtime::profile::{Phase, Work};
use smidgen_runtime::{Dropout, Engine, Pass};
use smidgen_text::Sequence;

use crate::adapter::Adapter;
use crate::error::Result;
use crate::optimizer::Optimizer;

/// What a step is told beside its sequences.
#[derive(Clone, Copy, Debug)]
pub struct StepSettings {
    /// Number of the step, from 1.
    pub number: u64,
    /// Learning rate.
    pub rate: f64,
    /// The norm that all gradients together are scaled down to; none for no clipping.
    pub clip: Option<f64>,
    /// Keys the dropout masks.
    pub seed: u64,
}

/// What a step gives back.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepLoss {
    /// Mean cross-entropy of the targets before the update, in nats.
    pub loss: f64,
    /// Number of targets, N.
    pub targets: usize,
    /// Number of tokens.
    pub tokens: usize,
}

/// Runs one step. The adapter is changed only if all passes succeed, or, where each block is
/// updated in the walk, once the backward has begun.
///
/// # Errors
/// Those of the engine; see [`Engine::train`] for what `cancel` does.
pub fn step(
    engine: &mut Engine,
    adapter: &mut Adapter,
    optimizer: &mut Optimizer,
    sequences: &[Sequence],
    settings: &StepSettings,
    pass: &mut Pass,
    cancel: &AtomicBool,
) -> Result<StepLoss> {
    let kernels = engine.kernels();
    let targets: usize = sequences.iter().map(Sequence::target_count).sum();
    pass.weight = 1.0 / targets.max(1) as f32;
    pass.dropout = (adapter.shape().spec().dropout > 0.0)
        .then_some(Dropout { seed: settings.seed, step: settings.number });
    let whole = engine.plan().gradients == Gradients::Whole;
    if whole {
        engine.gradients().fill(0.0);
    }
    let (mut sum, mut next) = (0.0, 0);
    while next < sequences.len() {
        next = fill(pass, sequences, next, engine.plan().tokens);
        let losses =
            engine.train(pass, &mut adapter.values, cancel, &mut |range, params, gradients| {
                let (rate, number) = (settings.rate, settings.number);
                optimizer.update(kernels, range, params, gradients, rate, number)
            })?;
        sum = losses.iter().fold(sum, |sum, l| sum + l.sum);
    }
    if whole {
        let begin = Instant::now();
        let layers = engine.plan().param_ranges();
        let gradients = engine.gradients();
        if let Some(limit) = settings.clip {
            clip(kernels, adapter, gradients, limit);
        }
        let (rate, number) = (settings.rate, settings.number);
        for range in layers {
            let params = adapter.values.piece_mut(range.clone())?;
            let gradients = &gradients[range.clone()];
            optimizer.update(kernels, range, params, gradients, rate, number)?;
        }
        engine.profile().add(Phase::Optimiser, Work::Other, begin.elapsed(), 0);
    }
    let tokens = sequences.iter().map(|s| s.ids.len()).sum();
    Ok(StepLoss { loss: sum / targets.max(1) as f64, targets, tokens })
}

/// Fills `pass` with sequences from `first` on, as many as fit `rows`; returns the next one.
pub(crate) fn fill(pass: &mut Pass, sequences: &[Sequence], first: usize, rows: usize) -> usize {
    pass.clear();
    let mut next = first;
    while let Some(sequence) = sequences.get(next) {
        if next > first && pass.rows() + sequence.ids.len() > rows {
            break;
        }
        pass.push(&sequence.ids, &sequence.targets, next as u64);
        next += 1;
    }
    next
}

/// Scales all gradients down to the norm `limit`, as torch's clip_grad_norm_ does. Squares are
/// summed a factor at a time, then over factors in order.
fn clip(kernels: Kernels, adapter: &Adapter, gradients: &mut [f32], limit: f64) {
    let squares: f64 = adapter
        .shape()
        .factors()
        .map(|(_, _, _, range)| kernels.sum_squares(&gradients[range]))
        .sum();
    let factor = limit / (squares.sqrt() + 1e-6);
    if factor < 1.0 {
        gradients.iter_mut().for_each(|g| *g *= factor as f32);
    }
}
