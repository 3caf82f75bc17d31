//! Optimisers over trainable numbers, a layer's run at a time.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use smidgen_graph::{Factor, OptimizerState};
use smidgen_kernels::{AdamW, Kernels, eight_bit_words};
use smidgen_runtime::Numbers;

use crate::adapter::AdapterShape;
use crate::error::{Error, Result};

/// How AdamW's means are held between steps. It changes the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateFormat {
    /// In f32.
    #[default]
    F32,
    /// In 8 bits a number and one f32 for each 256, counted from a layer's first: a quarter of the
    /// memory. See [`Kernels::adamw_8bit`].
    EightBit,
}

impl StateFormat {
    /// Words of 4 bytes that a state of `len` numbers takes.
    fn words(self, len: usize) -> usize {
        match self {
            Self::F32 => len,
            Self::EightBit => eight_bit_words(len),
        }
    }
}

/// Which optimiser, and its settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OptimizerConfig {
    /// Decoupled weight decay, as torch.optim.AdamW.
    AdamW {
        /// Decay of the mean of gradients.
        beta1: f64,
        /// Decay of the mean of squared gradients.
        beta2: f64,
        /// Added to the root of the mean square.
        eps: f64,
        /// Decoupled weight decay.
        weight_decay: f64,
        /// How the two means are held.
        state: StateFormat,
    },
    /// Gradient descent, as torch.optim.SGD without dampening.
    Sgd {
        /// How much of the step before is in a step; 0 for none, which needs no state.
        momentum: f64,
        /// Added to the gradient as weight_decay times the weight.
        weight_decay: f64,
    },
}

impl OptimizerConfig {
    /// AdamW with its usual constants.
    pub fn adamw(weight_decay: f64) -> Self {
        let state = StateFormat::F32;
        Self::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay, state }
    }

    /// The same with its means in 8 bits a number.
    pub fn adamw_8bit(weight_decay: f64) -> Self {
        let state = StateFormat::EightBit;
        Self::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay, state }
    }

    /// Gradient descent without momentum.
    pub fn sgd(weight_decay: f64) -> Self {
        Self::Sgd { momentum: 0.0, weight_decay }
    }

    /// Refuses settings that can't be, by the names of their flags.
    pub(crate) fn check(&self) -> Result<()> {
        let decay = self.weight_decay();
        if !(decay >= 0.0 && decay.is_finite()) {
            return Err(Error::setting(format!("--weight-decay {decay}: it is at least 0")));
        }
        match *self {
            Self::Sgd { momentum, .. } if !(0.0..1.0).contains(&momentum) => {
                Err(Error::setting(format!("--momentum {momentum}: it lies in [0, 1)")))
            }
            _ => Ok(()),
        }
    }

    /// The weight decay.
    pub fn weight_decay(&self) -> f64 {
        match *self {
            Self::AdamW { weight_decay, .. } | Self::Sgd { weight_decay, .. } => weight_decay,
        }
    }

    /// How each state is held.
    fn format(&self) -> StateFormat {
        match *self {
            Self::AdamW { state, .. } => state,
            Self::Sgd { .. } => StateFormat::F32,
        }
    }

    /// What it holds beside the trainable numbers.
    pub fn state(&self) -> Vec<OptimizerState> {
        let words: fn(usize) -> usize = match self.format() {
            StateFormat::F32 => |len| StateFormat::F32.words(len),
            StateFormat::EightBit => |len| StateFormat::EightBit.words(len),
        };
        let names: &[&str] = match *self {
            Self::AdamW { state: StateFormat::F32, .. } => &["AdamW mean", "AdamW mean square"],
            Self::AdamW { state: StateFormat::EightBit, .. } => {
                &["AdamW mean, 8-bit", "AdamW mean square, 8-bit"]
            }
            Self::Sgd { momentum: 0.0, .. } => &[],
            Self::Sgd { .. } => &["SGD momentum"],
        };
        names.iter().map(|name| OptimizerState { name, words }).collect()
    }
}

impl fmt::Display for OptimizerConfig {
    /// Its name and constants but for the weight decay.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::AdamW { beta1, beta2, eps, state, .. } => {
                let name = match state {
                    StateFormat::F32 => "adamw",
                    StateFormat::EightBit => "adamw8bit",
                };
                write!(f, "{name} ({beta1}, {beta2}, {eps})")
            }
            Self::Sgd { momentum: 0.0, .. } => f.write_str("sgd"),
            Self::Sgd { momentum, .. } => write!(f, "sgd (momentum {momentum})"),
        }
    }
}

/// An optimiser with its state.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    /// Where each run of numbers that is updated at once starts, and where each state of it does.
    starts: Vec<(usize, usize)>,
    /// As [`OptimizerConfig::state`] names them.
    state: Vec<Numbers>,
    faster: Faster,
}

/// Numbers whose rate is not the step's, but `ratio` times it.
#[derive(Debug)]
struct Faster {
    ratio: f64,
    /// In order.
    ranges: Vec<Range<usize>>,
}

impl Faster {
    /// The parts of `run` that have one rate each, counted from its start.
    fn parts(&self, run: Range<usize>, rate: f64) -> impl Iterator<Item = (Range<usize>, f64)> {
        let mut at = run.start;
        let mut next = self.ranges.partition_point(|range| range.end <= at);
        std::iter::from_fn(move || {
            if at >= run.end {
                return None;
            }
            let begin = at;
            let (end, factor) = match self.ranges.get(next) {
                Some(range) if range.start <= at => (range.end, self.ratio),
                Some(range) => (range.start, 1.0),
                None => (run.end, 1.0),
            };
            next += usize::from(factor != 1.0);
            at = end.min(run.end);
            Some((begin - run.start..at - run.start, factor * rate))
        })
    }
}

impl Optimizer {
    /// An optimiser before its first step, with its state in memory, for numbers that are updated
    /// in `runs`: a plan's [`param_ranges`](smidgen_graph::Plan::param_ranges).
    ///
    /// # Errors
    /// The system does not give the memory for its state.
    pub fn new(config: OptimizerConfig, runs: &[Range<usize>]) -> Result<Self> {
        Self::with(config, runs, |len, _| Ok(Numbers::in_memory(len)?))
    }

    /// The same with its state in scratch files in `folder`, of which the memory holds what
    /// belongs to one run.
    ///
    /// # Errors
    /// The folder can't be written to or has no room.
    pub fn paged(config: OptimizerConfig, runs: &[Range<usize>], folder: &Path) -> Result<Self> {
        Self::with(config, runs, |len, longest| Ok(Numbers::in_file(folder, len, longest)?))
    }

    /// Each state comes from `make(words of all runs, words of the longest one)`.
    fn with(
        config: OptimizerConfig,
        runs: &[Range<usize>],
        make: impl Fn(usize, usize) -> Result<Numbers>,
    ) -> Result<Self> {
        let format = config.format();
        let (mut starts, mut end, mut longest) = (Vec::with_capacity(runs.len()), 0, 0);
        for run in runs {
            let words = format.words(run.len());
            starts.push((run.start, end));
            end += words;
            longest = longest.max(words);
        }
        let state = config.state().iter().map(|_| make(end, longest)).collect::<Result<_>>()?;
        let faster = Faster { ratio: 1.0, ranges: Vec::new() };
        Ok(Self { config, starts, state, faster })
    }

    /// The same with `ratio` times the rate for every B of an adapter of that shape: LoRA+
    /// (Hayou, Ghosh and Yu, 2024, arXiv:2402.12354).
    pub fn with_loraplus(mut self, ratio: f64, shape: &AdapterShape) -> Self {
        if ratio != 1.0 {
            let factors = shape.factors().filter(|(_, _, factor, _)| *factor == Factor::B);
            self.faster = Faster { ratio, ranges: factors.map(|(.., range)| range).collect() };
        }
        self
    }

    /// Which optimiser it is.
    pub(crate) fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// Where each run's part of a state lies, if there is a state.
    pub(crate) fn pieces(&self) -> Vec<Range<usize>> {
        let Some(state) = self.state.first() else { return vec![] };
        let starts = self.starts.iter().map(|&(_, words)| words);
        let ends = starts.clone().skip(1).chain([state.len()]);
        starts.zip(ends).map(|(start, end)| start..end).collect()
    }

    /// The states, as [`OptimizerConfig::state`] names them.
    pub(crate) fn states(&mut self) -> &mut [Numbers] {
        &mut self.state
    }

    /// Updates the numbers of `run`, given as `params`, by their gradients. `step` counts from
    /// 1 and is the same for all runs of a step.
    ///
    /// # Errors
    /// The state's files can't be read or written.
    ///
    /// # Panics
    /// If `run` is none of those that the optimiser was made for, unless it is one without state.
    pub fn update(
        &mut self,
        kernels: Kernels,
        run: Range<usize>,
        params: &mut [f32],
        gradients: &[f32],
        rate: f64,
        step: u64,
    ) -> smidgen_runtime::Result<()> {
        let parts = self.faster.parts(run.clone(), rate);
        let words = |state| words_of(&self.starts, state, run.clone());
        match (self.config, self.state.as_mut_slice()) {
            (
                OptimizerConfig::AdamW { beta1, beta2, eps, weight_decay, state },
                [mean, mean_square],
            ) => {
                let words = words(state);
                let mean = mean.piece_mut(words.clone())?;
                let mean_square = mean_square.piece_mut(words)?;
                let settings = |lr| AdamW { lr, beta1, beta2, eps, weight_decay };
                if state == StateFormat::EightBit {
                    let parts = parts.map(|(part, rate)| (part.end, settings(rate)));
                    kernels.adamw_8bit_in_parts(params, gradients, mean, mean_square, parts, step);
                    return Ok(());
                }
                for (part, rate) in parts {
                    let (params, gradients) = (&mut params[part.clone()], &gradients[part.clone()]);
                    let (mean, mean_square) = (&mut mean[part.clone()], &mut mean_square[part]);
                    kernels.adamw(params, gradients, mean, mean_square, settings(rate), step);
                }
            }
            (OptimizerConfig::AdamW { .. }, _) => unreachable!("AdamW has two states"),
            (OptimizerConfig::Sgd { momentum, weight_decay }, [buffer]) => {
                let buffer = buffer.piece_mut(words(StateFormat::F32))?;
                for (part, rate) in parts {
                    let (params, gradients) = (&mut params[part.clone()], &gradients[part.clone()]);
                    let (momentum, decay) = (momentum as f32, weight_decay as f32);
                    let buffer = &mut buffer[part];
                    kernels.sgd_momentum(params, gradients, buffer, momentum, rate as f32, decay);
                }
            }
            (OptimizerConfig::Sgd { weight_decay, .. }, _) => {
                for (part, rate) in parts {
                    let (params, gradients) = (&mut params[part.clone()], &gradients[part]);
                    kernels.sgd(params, gradients, rate as f32, weight_decay as f32);
                }
            }
        }
        Ok(())
    }
}

/// Where a run's part of a state lies.
fn words_of(starts: &[(usize, usize)], format: StateFormat, run: Range<usize>) -> Range<usize> {
    let found = starts.binary_search_by_key(&run.start, |(numbers, _)| *numbers);
    let (_, words) = starts[found.expect("a run that the optimiser was made for")];
    words..words + format.words(run.len())
}
