//! Methods: how a step finds the direction in which it changes the adapter.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

use smidgen_graph::Backward;
use smidgen_kernels::TapNoise;
use smidgen_runtime::{Engine, Pass};
use smidgen_text::{Order, Sequence};

use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::mezo::{Mezo, MezoRun, Projection};
use crate::optimizer::{Optimizer, OptimizerConfig};
use crate::side::{LossOn, SideConfig, SidePace};
use crate::step::{StepLoss, StepSettings, step};
use crate::train_config::TrainConfig;

/// How a step finds its direction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Method {
    /// By the gradient of all trained layers: MeBP (arXiv 2510.03425) and MeSP (arXiv 2602.13069),
    /// which differ only in what they keep in memory.
    #[default]
    Exact,
    /// By the gradient of some layers a step. It is not the exact gradient.
    Lcsb(Lcsb),
    /// By two forward passes and no gradient.
    Mezo(Mezo),
    /// By the gradient of a network beside the model, which another machine may train: MobiLLM
    /// (arXiv 2502.20421). There is no adapter.
    Side(Side),
}

/// Side tuning: which network, and how the run goes on. The pace changes no result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Side {
    /// The network.
    pub network: SideConfig,
    /// What is done to hidden states before they are sent.
    pub noise: TapNoise,
    /// Who computes the loss.
    pub loss: LossOn,
    /// How the run goes on.
    pub pace: SidePace,
}

/// Layer-cyclic selective backpropagation, LCSB (arXiv 2602.13073): a step walks back through some
/// of the layers; for the backward, the others are the identity, out = h + detach(F(h) - h). Their
/// weights are not read for it, their factors get a zero gradient, and an optimiser with momentum
/// goes on moving them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lcsb {
    /// Layers that a step walks back through, K.
    pub layers_per_step: usize,
    /// Which ones.
    pub order: LayerOrder,
}

/// Which layers have their turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LayerOrder {
    /// The K layers behind those of the step before; the first behind the last.
    #[default]
    Cyclic,
    /// Any K, drawn anew each step.
    Random,
}

impl Method {
    /// Forward passes over a step's sequences, for each that the exact step takes.
    pub(crate) fn passes(&self) -> usize {
        match self {
            Self::Exact | Self::Lcsb(_) | Self::Side(_) => 1,
            Self::Mezo(mezo) => 2 * mezo.samples,
        }
    }

    /// Share of the trained `layers` that a step walks back through.
    pub(crate) fn walked_back(&self, layers: usize) -> f64 {
        match self {
            Self::Lcsb(lcsb) => lcsb.layers_per_step as f64 / layers.max(1) as f64,
            Self::Exact | Self::Mezo(_) | Self::Side(_) => 1.0,
        }
    }

    /// How far a step walks back.
    pub(crate) fn backward(&self) -> Backward {
        match self {
            Self::Exact | Self::Lcsb(_) => Backward::Layers,
            Self::Mezo(_) | Self::Side(Side { loss: LossOn::Trainer, .. }) => Backward::Nothing,
            Self::Side(_) => Backward::Head,
        }
    }
}

impl fmt::Display for Method {
    /// Its name and what decides its steps.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("exact"),
            Self::Lcsb(Lcsb { layers_per_step, order }) => {
                write!(f, "lcsb ({layers_per_step} layers a step, ")?;
                f.write_str(match order {
                    LayerOrder::Cyclic => "cyclic)",
                    LayerOrder::Random => "random)",
                })
            }
            Self::Mezo(Mezo { eps, samples: 1 }) => write!(f, "mezo (eps {eps})"),
            Self::Mezo(Mezo { eps, samples }) => write!(f, "mezo (eps {eps}, {samples} samples)"),
            Self::Side(Side { network, noise, loss, .. }) => {
                write!(f, "side ({network}")?;
                if *loss == LossOn::Trainer {
                    f.write_str("; loss on the server")?;
                }
                if *noise != TapNoise::NONE {
                    write!(f, "; cut off at {}, noise of {}", noise.clip, noise.sigma)?;
                }
                f.write_str(")")
            }
        }
    }
}

/// What to say where a side network would be trained without a link.
pub(crate) const NO_LINK: &str = "--method side trains on a server; name one with --server URL";

/// How an adapter's method works: all that it has beside the adapter.
#[derive(Debug)]
pub(crate) struct Stepper {
    lcsb: Option<Lcsb>,
    /// None where a step has a backward.
    mezo: Option<MezoRun>,
    optimizer: Optimizer,
}

impl Stepper {
    /// A method before its first step on `adapter`.
    ///
    /// # Errors
    /// The system does not give the memory.
    pub fn new(method: Method, optimizer: Optimizer, adapter: &Adapter) -> Result<Self> {
        let decay = optimizer.config().weight_decay();
        let (lcsb, mezo) = match method {
            Method::Exact => (None, None),
            Method::Lcsb(lcsb) => (Some(lcsb), None),
            Method::Mezo(mezo) => (None, Some(MezoRun::new(mezo, decay, adapter)?)),
            Method::Side(_) => return Err(Error::setting(NO_LINK)),
        };
        Ok(Self { lcsb, mezo, optimizer })
    }

    /// Changes the adapter by a step's sequences.
    ///
    /// # Errors
    /// Those of [`step`] and [`MezoRun::step`].
    pub fn step(
        &mut self,
        engine: &mut Engine,
        adapter: &mut Adapter,
        sequences: &[Sequence],
        settings: &StepSettings,
        pass: &mut Pass,
        cancel: &AtomicBool,
    ) -> Result<StepLoss> {
        if let Some(mezo) = &mut self.mezo {
            return mezo.step(engine, adapter, sequences, settings, pass, cancel);
        }
        if let Some(lcsb) = self.lcsb {
            let trained = adapter.shape().first_layer()..engine.plan().layers.len();
            lcsb.choose(trained, settings.number, settings.seed, &mut pass.bypassed);
        }
        step(engine, adapter, &mut self.optimizer, sequences, settings, pass, cancel)
    }

    /// What MeZO's last step found; nothing for other methods.
    pub fn projections(&self) -> &[Projection] {
        self.mezo.as_ref().map_or(&[], MezoRun::projections)
    }

    /// The optimiser, whose state is saved.
    pub fn optimizer(&mut self) -> &mut Optimizer {
        &mut self.optimizer
    }
}

impl Side {
    /// Refuses what can't go with it: there is no adapter, and the trainer has its own AdamW.
    pub(crate) fn check(self, config: &TrainConfig) -> Result<()> {
        let adamw = OptimizerConfig::adamw(config.optimizer.weight_decay());
        let wrong = [
            (config.optimizer != adamw, "takes --optimizer adamw with its usual constants"),
            (config.clip.is_some(), "knows no --max-grad-norm"),
            (config.loraplus_ratio != 1.0, "has no B for --loraplus-ratio"),
            (
                config.init_adapter.is_some(),
                "starts no --init-adapter: it trains a network beside the model",
            ),
            (self.pace.window > 64, "takes up to 64 steps ahead"),
            (self.noise.clip.is_nan() || self.noise.clip <= 0.0, "cuts off above 0: --tap-clip"),
            (!(0.0..=1e3).contains(&self.noise.sigma), "adds noise of 0 to 1000: --tap-noise"),
        ];
        match wrong.iter().find(|(is_so, _)| *is_so) {
            Some((_, what)) => Err(Error::setting(format!("--method side {what}"))),
            None => Ok(()),
        }
    }
}

impl Lcsb {
    /// The usual choice where `layers` are trained: half of them a step, in cyclic order.
    pub fn half(layers: usize) -> Self {
        Self { layers_per_step: layers.div_ceil(2), order: LayerOrder::Cyclic }
    }

    /// Refuses a number of layers that can't have a turn, where `layers` are trained.
    pub(crate) fn check(self, layers: usize) -> Result<()> {
        match self.layers_per_step {
            k if (1..=layers).contains(&k) => Ok(()),
            k => Err(Error::setting(format!(
                "--layers-per-step {k}: {layers} layers are trained; give 1 to {layers}"
            ))),
        }
    }

    /// Sets in `bypassed` which layers a step passes by: all of the `trained` ones whose turn it is
    /// not. `step` counts from 1.
    ///
    /// # Panics
    /// If fewer layers are trained than have a turn.
    pub fn choose(self, trained: Range<usize>, step: u64, seed: u64, bypassed: &mut Vec<bool>) {
        bypassed.clear();
        bypassed.resize(trained.end, true);
        let (layers, taken) = (trained.len(), self.layers_per_step);
        match self.order {
            LayerOrder::Cyclic => {
                let first = ((step - 1) % layers as u64) as usize * taken;
                (0..taken).for_each(|i| bypassed[trained.start + (first + i) % layers] = false);
            }
            LayerOrder::Random => {
                let drawn = Order::Shuffled { seed }.epoch(layers as u32, step - 1);
                drawn[..taken].iter().for_each(|&i| {
                    bypassed[trained.start + i as usize] = false;
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(order: LayerOrder, step: u64) -> Vec<usize> {
        let mut bypassed = vec![true; 99];
        Lcsb { layers_per_step: 3, order }.choose(2..9, step, 5, &mut bypassed);
        assert_eq!(bypassed.len(), 9);
        (0..9).filter(|&layer| !bypassed[layer]).collect()
    }

    #[test]
    fn every_layer_has_its_turn() {
        assert_eq!(chosen(LayerOrder::Cyclic, 1), [2, 3, 4]);
        assert_eq!(chosen(LayerOrder::Cyclic, 2), [5, 6, 7]);
        assert_eq!(chosen(LayerOrder::Cyclic, 3), [2, 3, 8]);
        let mut turns = [0; 9];
        for step in 1..=700 {
            let layers = chosen(LayerOrder::Random, step);
            assert_eq!(layers.len(), 3);
            layers.iter().for_each(|&layer| turns[layer] += 1);
        }
        assert_eq!(turns[..2], [0; 2]);
        assert!(turns[2..].iter().all(|n| (250..350).contains(n)), "{turns:?}");
    }
}
