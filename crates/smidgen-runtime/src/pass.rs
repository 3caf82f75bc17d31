//! What one pass works on: the rows of one or more sequences, one after another.

use std::ops::Range;

/// A sequence within a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its rows in the pass.
    pub rows: Range<usize>,
    /// Position of its first row; above zero only with a [`crate::KvCache`].
    pub first_position: usize,
    /// Its number in the optimiser's step, which keys dropout.
    pub sample: u64,
}

/// What keys the dropout masks of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropout {
    /// The run's seed.
    pub seed: u64,
    /// The optimiser's step.
    pub step: u64,
}

/// The rows that a pass works on.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    /// A token a row.
    pub ids: Vec<u32>,
    /// What each row should predict; none where it does not count.
    pub targets: Vec<Option<u32>>,
    /// The sequences, in order, covering all rows.
    pub segments: Vec<Segment>,
    /// 1 / N: what a target weighs in the gradient, N being the targets of the optimiser's step.
    pub weight: f32,
    /// Masks; none where nothing is dropped.
    pub dropout: Option<Dropout>,
    /// Whether the backward passes a layer by: the gradient of its output is taken for that of its
    /// input, its factors get none, and none of its weights is read. Layers beyond the list are
    /// walked through.
    pub bypassed: Vec<bool>,
}

impl Pass {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// Rows that have a target, in order.
    pub fn target_rows(&self) -> impl Iterator<Item = usize> {
        let with_target = |(row, target): (usize, &Option<u32>)| target.map(|_| row);
        self.targets.iter().enumerate().filter_map(with_target)
    }

    /// Whether the backward passes `layer` by.
    pub fn is_bypassed(&self, layer: usize) -> bool {
        self.bypassed.get(layer).copied().unwrap_or(false)
    }

    /// Takes the rows out, keeping their memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.targets.clear();
        self.segments.clear();
    }

    /// Appends a sequence. `counts[p]` says whether the prediction of token p is a target;
    /// nothing predicts token 0.
    pub fn push(&mut self, ids: &[u32], counts: &[bool], sample: u64) {
        let start = self.ids.len();
        self.ids.extend_from_slice(ids);
        let next = (1..ids.len()).map(|p| counts[p].then_some(ids[p]));
        self.targets.extend(next.chain([None]).take(ids.len()));
        let rows = start..self.ids.len();
        self.segments.push(Segment { rows, first_position: 0, sample });
    }
}

/// What came out for one sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SegmentLoss {
    /// Sum of the targets' cross-entropies, in nats.
    pub sum: f64,
    /// Number of targets.
    pub targets: usize,
    /// Targets that had the largest logit.
    pub correct: usize,
}
