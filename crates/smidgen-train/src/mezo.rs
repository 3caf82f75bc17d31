//! MeZO: steps from the difference of two losses, without a backward.
//!
//! Source: Malladi et al., "Fine-tuning language models with just forward passes", 2023
//! (arXiv 2305.17333). With z ~ N(0, 1) for each trainable number, a step takes
//! L+ = L(θ + ε z) and L- = L(θ - ε z) on the same sequences, the projected gradient
//! g = (L+ - L-) / (2 ε), and θ ← θ - η (g z + λ θ). With n samples it takes n directions and the
//! mean of their g z.
//!
//! The adapter itself is never moved to look: each block reads a perturbed copy of its own factors,
//! made when its turn comes. So nothing drifts, and z, made anew from its counter, is never held.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use smidgen_kernels::{Kernels, NormalKey};
use smidgen_runtime::{Engine, Factors, Numbers, Pass, sealed};
use smidgen_text::Sequence;

use crate::adapter::{Adapter, InitLoraWeights};
use crate::error::{Error, Result, stop_if};
use crate::step::{StepLoss, StepSettings, fill};
use crate::train_config::TrainConfig;

/// MeZO's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mezo {
    /// How far a perturbation goes, ε.
    pub eps: f64,
    /// Directions a step, n.
    pub samples: usize,
}

impl Default for Mezo {
    /// ε = 1e-3, one direction.
    fn default() -> Self {
        Self { eps: 1e-3, samples: 1 }
    }
}

/// A direction and what was found along it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Projection {
    /// The direction: z is [`Kernels::normals`] of this key.
    pub key: NormalKey,
    /// The projected gradient, g.
    pub gradient: f64,
}

/// How a step changes the adapter once it knows its projections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descent {
    /// Learning rate, η.
    pub rate: f64,
    /// Weight decay, λ.
    pub weight_decay: f64,
}

impl Mezo {
    /// Refuses what the method can't be, or can't go with.
    pub(crate) fn check(&self, config: &TrainConfig, dropout: f64) -> Result<()> {
        let optimizer = &config.optimizer;
        let Self { eps, samples } = self;
        if !(*eps as f32 > 0.0 && (*eps as f32).is_finite()) {
            return Err(Error::setting(format!("--zo-eps {eps}: it is above 0; 1e-3 is usual")));
        }
        if !(1..=1 << 10).contains(samples) {
            return Err(Error::setting(format!("--zo-samples {samples}: give 1 to 1024")));
        }
        if !optimizer.state().is_empty() {
            return Err(Error::setting(format!(
                "--method mezo descends by its own rule, which keeps no state; take --optimizer \
                 sgd in place of {optimizer}"
            )));
        }
        if dropout > 0.0 {
            let what = "--method mezo compares two losses of the same model; take --lora-dropout 0";
            return Err(Error::setting(what));
        }
        if config.loraplus_ratio != 1.0 {
            let what = "--method mezo has one rate for all; leave --loraplus-ratio out";
            return Err(Error::setting(what));
        }
        if matches!(config.init_lora_weights, InitLoraWeights::Loftq { .. }) {
            return Err(Error::setting(
                "--method mezo can't tell a start by LoftQ in its history; make the start with \
                 --method exact --iters 1 --learning-rate 0, then give it as --init-adapter",
            ));
        }
        if config.clip.is_some() {
            let what = "--method mezo has no gradient to scale down; leave --max-grad-norm out";
            return Err(Error::setting(what));
        }
        Ok(())
    }
}

/// A MeZO run at work: all that it has beside the adapter.
#[derive(Debug)]
pub(crate) struct MezoRun {
    mezo: Mezo,
    weight_decay: f64,
    /// The perturbed factors of a block.
    copy: Vec<f32>,
    /// What the last step found.
    projections: Vec<Projection>,
}

impl MezoRun {
    /// A run before its first step on `adapter`.
    ///
    /// # Errors
    /// The system does not give the memory.
    pub fn new(mezo: Mezo, weight_decay: f64, adapter: &Adapter) -> Result<Self> {
        let copy = sealed(adapter.shape().largest_layer())?;
        Ok(Self { mezo, weight_decay, copy, projections: Vec::new() })
    }

    /// Runs a step. The loss told is the mean of all that were computed.
    ///
    /// # Errors
    /// Those of the engine. The caller cancelled, or a loss is not finite: nothing was changed.
    pub fn step(
        &mut self,
        engine: &mut Engine,
        adapter: &mut Adapter,
        sequences: &[Sequence],
        settings: &StepSettings,
        pass: &mut Pass,
        cancel: &AtomicBool,
    ) -> Result<StepLoss> {
        let StepSettings { number, rate, seed, .. } = *settings;
        let Self { mezo: Mezo { eps, samples }, weight_decay, .. } = *self;
        let (kernels, eps) = (engine.kernels(), eps as f32);
        let targets = sequences.iter().map(Sequence::target_count).sum::<usize>().max(1);
        self.projections.clear();
        let mut sum = 0.0;
        for sample in 0..samples as u64 {
            let key = NormalKey { seed, sample: (number - 1) * samples as u64 + sample };
            let mut loss = |scale: f32| {
                let (factors, copy) = (&mut adapter.values, self.copy.as_mut_slice());
                let mut view = Perturbed { factors, copy, kernels, key, scale };
                total_loss(engine, &mut view, sequences, pass, cancel)
                    .map(|sum| sum / targets as f64)
            };
            let (above, below) = (loss(eps)?, loss(-eps)?);
            let gradient = (above - below) / (2.0 * f64::from(eps));
            self.projections.push(Projection { key, gradient });
            sum += 0.5 * (above + below);
        }
        let descent = Descent { rate, weight_decay };
        for range in engine.plan().param_ranges() {
            let numbers = adapter.values.piece_mut(range.clone())?;
            descent.descend(kernels, &self.projections, range.start, numbers);
        }
        let tokens = sequences.iter().map(|s| s.ids.len()).sum();
        Ok(StepLoss { loss: sum / samples as f64, targets, tokens })
    }

    /// What the last step found.
    pub fn projections(&self) -> &[Projection] {
        &self.projections
    }
}

impl Descent {
    /// Moves the numbers from `first` on: θ ← θ - η (mean of g z + λ θ). A step is these additions
    /// in the projections' order, so it can be told again from them alone.
    pub fn descend(
        self,
        kernels: Kernels,
        projections: &[Projection],
        first: usize,
        numbers: &mut [f32],
    ) {
        let share = self.rate / projections.len() as f64;
        let mut decay = (self.rate * self.weight_decay) as f32;
        for Projection { key, gradient } in projections {
            let step = (share * gradient) as f32;
            kernels.descend_normals(*key, first as u64, step, decay, numbers);
            decay = 0.0;
        }
    }
}

/// Sum of the losses of all targets.
fn total_loss(
    engine: &mut Engine,
    factors: &mut dyn Factors,
    sequences: &[Sequence],
    pass: &mut Pass,
    cancel: &AtomicBool,
) -> Result<f64> {
    pass.dropout = None;
    pass.weight = 0.0;
    let (mut sum, mut next) = (0.0, 0);
    while next < sequences.len() {
        stop_if(cancel)?;
        next = fill(pass, sequences, next, engine.plan().tokens);
        sum = engine.evaluate(pass, factors, None)?.iter().fold(sum, |sum, loss| sum + loss.sum);
    }
    Ok(sum)
}

/// θ + scale z, a block at a time.
struct Perturbed<'a> {
    factors: &'a mut Numbers,
    copy: &'a mut [f32],
    kernels: Kernels,
    key: NormalKey,
    scale: f32,
}

impl Factors for Perturbed<'_> {
    fn piece(&mut self, range: Range<usize>) -> smidgen_runtime::Result<&[f32]> {
        let copy = &mut self.copy[..range.len()];
        let factors = self.factors.piece(range.clone())?;
        self.kernels.perturb(self.key, range.start as u64, self.scale, factors, copy);
        Ok(copy)
    }
}
