//! Where the time of a step goes.

use std::time::{Duration, Instant};

use smidgen_graph::Step;

/// A part of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Rows of the embedding.
    Embedding,
    /// The layers' forward.
    Forward,
    /// Forward values that the backward made again.
    Recompute,
    /// The layers' backward, without what it made again.
    Backward,
    /// The sweep over the vocabulary: logits, loss and the gradient of the last hidden state.
    Head,
    /// The optimiser's update.
    Optimiser,
    /// Weights brought in from the model file and dropped again; values to and from the scratch
    /// file.
    Paging,
}

/// What kind of work it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Matrix products with weights, LoRA's products and the gradients of LoRA's factors.
    Gemm,
    /// Attention.
    Attention,
    /// All else: norms, rotations, gates, softmax, sums, copies.
    Other,
}

impl Phase {
    /// All phases, in the order of a step.
    pub const ALL: [Self; 7] = [
        Self::Embedding,
        Self::Forward,
        Self::Recompute,
        Self::Backward,
        Self::Head,
        Self::Optimiser,
        Self::Paging,
    ];
}

impl Work {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Gemm, Self::Attention, Self::Other];

    pub(crate) fn of(step: &Step) -> Self {
        match step {
            Step::Gemm { .. } | Step::ParamGradient { .. } => Self::Gemm,
            Step::Attention { .. }
            | Step::AttentionDelta { .. }
            | Step::AttentionBackwardQ { .. }
            | Step::AttentionBackwardKv { .. } => Self::Attention,
            _ => Self::Other,
        }
    }
}

/// Wall time and floating-point operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Wall time, all threads together.
    pub time: Duration,
    /// Floating-point operations; a fused multiply-add counts two.
    pub flops: u64,
}

/// What was spent, by phase and kind of work, since the profile was last cleared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    costs: [[Cost; Work::ALL.len()]; Phase::ALL.len()],
}

impl Profile {
    /// Adds to one phase's work of one kind.
    pub fn add(&mut self, phase: Phase, work: Work, time: Duration, flops: u64) {
        let cost = &mut self.costs[phase as usize][work as usize];
        cost.time += time;
        cost.flops += flops;
    }

    /// What one phase's work of one kind took.
    pub fn cost(&self, phase: Phase, work: Work) -> Cost {
        self.costs[phase as usize][work as usize]
    }

    /// What all costs that `wanted` picks add up to.
    pub fn total(&self, wanted: impl Fn(Phase, Work) -> bool) -> Cost {
        let mut sum = Cost::default();
        for phase in Phase::ALL {
            for work in Work::ALL.into_iter().filter(|&work| wanted(phase, work)) {
                let cost = self.cost(phase, work);
                sum = Cost { time: sum.time + cost.time, flops: sum.flops + cost.flops };
            }
        }
        sum
    }
}

/// A stopwatch for parts that follow each other.
pub(crate) struct Lap(Instant);

impl Lap {
    pub fn begin() -> Self {
        Self(Instant::now())
    }

    /// Adds what has passed to one phase's work of one kind, and begins the next part.
    pub fn end(&mut self, profile: &mut Profile, phase: Phase, work: Work, flops: u64) {
        let now = Instant::now();
        profile.add(phase, work, now - self.0, flops);
        self.0 = now;
    }
}
