//! Which tensors a side network has, and where they lie in one run of numbers.

use std::ops::Range;

use smidgen_kernels::Philox;

use super::{SideConfig, SideGate};
use crate::error::Result;

/// A side network's tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideShape {
    config: SideConfig,
    hidden: usize,
    tapped: Vec<usize>,
    taps: Vec<TapTensors>,
    expand: Option<SideTensor>,
    len: usize,
}

/// What one tapped layer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TapTensors {
    /// P, `[hidden / k, hidden]`, where k is above 1.
    pub reduce: Option<SideTensor>,
    /// a, `[1, 1]`, with a ladder.
    pub gate: Option<SideTensor>,
    /// D, `[width, hidden / k]`.
    pub down: SideTensor,
    /// U, `[hidden / k, width]`.
    pub up: SideTensor,
}

/// A matrix of a side network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideTensor {
    /// `taps.12.down.weight`, 12 being the layer; `expand.weight`.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Its place among all numbers.
    pub range: Range<usize>,
    /// Whether it is zero at the start.
    starts_at_zero: bool,
}

impl SideShape {
    /// The shape for a model of `layers` layers and `hidden` numbers a token.
    ///
    /// # Errors
    /// A setting that can't be.
    pub fn new(config: SideConfig, layers: usize, hidden: usize) -> Result<Self> {
        config.check(layers, hidden)?;
        let (narrow, width) = (hidden / config.reduction, config.width);
        let mut len = 0;
        let mut tensor = |name: String, rows: usize, cols: usize, starts_at_zero: bool| {
            let range = len..len + rows * cols;
            len = range.end;
            SideTensor { name, rows, cols, range, starts_at_zero }
        };
        let tapped = config.tapped(layers);
        let reduces = config.reduction > 1;
        let ladder = config.gate == SideGate::Ladder;
        let taps = tapped.iter().map(|layer| {
            let named = |what: &str| format!("taps.{layer}.{what}");
            TapTensors {
                reduce: reduces.then(|| tensor(named("reduce.weight"), narrow, hidden, false)),
                gate: ladder.then(|| tensor(named("gate"), 1, 1, true)),
                down: tensor(named("down.weight"), width, narrow, false),
                up: tensor(named("up.weight"), narrow, width, true),
            }
        });
        let taps = taps.collect();
        let expand = reduces.then(|| tensor("expand.weight".to_owned(), hidden, narrow, false));
        Ok(Self { config, hidden, tapped, taps, expand, len })
    }

    /// What kind of network.
    pub fn config(&self) -> &SideConfig {
        &self.config
    }

    /// Numbers a token in the model's stream, d.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Numbers a token in the network's own stream, d / k.
    pub fn narrow(&self) -> usize {
        self.hidden / self.config.reduction
    }

    /// The layers behind which the stream is read, in order.
    pub fn tapped(&self) -> &[usize] {
        &self.tapped
    }

    /// Trainable numbers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to train.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All tensors, in the order of their numbers.
    pub fn tensors(&self) -> impl Iterator<Item = &SideTensor> {
        let taps =
            self.taps.iter().flat_map(|t| t.reduce.iter().chain(&t.gate).chain([&t.down, &t.up]));
        taps.chain(&self.expand)
    }

    /// What the layer has, if it is tapped.
    pub(super) fn tap_behind(&self, layer: usize) -> Option<&TapTensors> {
        Some(&self.taps[self.tapped.iter().position(|&tapped| tapped == layer)?])
    }

    pub(super) fn expand(&self) -> Option<&SideTensor> {
        self.expand.as_ref()
    }

    /// What training starts from: uniform in +-1/sqrt(inputs) by the seed, the same on every
    /// machine; U and a zero.
    pub fn start(&self, seed: u64) -> Vec<f32> {
        let mut numbers = vec![0.0; self.len];
        for (stream, tensor) in self.tensors().enumerate() {
            if tensor.starts_at_zero {
                continue;
            }
            let numbers = &mut numbers[tensor.range.clone()];
            Philox::new(seed).uniform(stream as u64, 0, numbers);
            let bound = 1.0 / (tensor.cols as f32).sqrt();
            numbers.iter_mut().for_each(|x| *x = bound * (2.0 * *x - 1.0));
        }
        numbers
    }
}
