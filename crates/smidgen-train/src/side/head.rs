//! A frozen model's head by itself, where the losses of side networks are computed.

use std::sync::Arc;

use smidgen_graph::Backward;
use smidgen_graph::plan::{FORWARD_ROW_TILE, plan};
use smidgen_runtime::memory::RunPhase;
use smidgen_runtime::{Engine, Pass, Segment};

use crate::adapter::Adapter;
use crate::base::Base;
use crate::error::Result;
use crate::planning::{frozen_request, frozen_settings};

/// Rows of a pass. Those of larger bands are a multiple.
const ROWS: usize = FORWARD_ROW_TILE;

/// The head of a model, for who trains side networks and is told the labels.
#[derive(Debug)]
pub struct SideHead {
    engine: Engine,
    pass: Pass,
    hidden: usize,
}

impl SideHead {
    /// The head of `base`, with so many threads at work. Takes some megabytes, and the pages of the
    /// head's weights.
    ///
    /// # Errors
    /// The system does not give the memory or the threads.
    pub fn new(base: &Base, threads: usize) -> Result<Self> {
        let settings = frozen_settings(base, threads, ROWS, RunPhase::Training);
        let none = Adapter::none(base);
        let request = frozen_request(base, none.shape(), ROWS, Backward::Head);
        let blocks = base.blocks.as_ref();
        let plan = Arc::new(plan(blocks, &request)?);
        let engine = Engine::new(blocks, Arc::clone(&base.weights), plan, &settings)?;
        Ok(Self { engine, pass: Pass::default(), hidden: base.info().hidden })
    }

    /// Numbers a token of the hidden state, d.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// The sum of the cross-entropies of `targets`, each of which is to follow its row of `states`,
    /// targets x hidden. The gradient of `weight` times that sum takes the place of the states.
    ///
    /// # Errors
    /// A target is none of the model's tokens; a loss is not finite.
    ///
    /// # Panics
    /// If there are not as many rows as targets.
    pub fn loss(&mut self, states: &mut [f32], targets: &[u32], weight: f32) -> Result<f64> {
        assert_eq!(states.len(), targets.len() * self.hidden, "a row for each target");
        let mut sum = 0.0;
        let pieces = states.chunks_mut(ROWS * self.hidden).zip(targets.chunks(ROWS));
        for (states, targets) in pieces {
            head_pass(&mut self.pass, targets, weight);
            self.engine.stream_mut(targets.len()).copy_from_slice(states);
            let (losses, gradient) = self.engine.head_gradient(&self.pass)?;
            sum = losses.iter().fold(sum, |sum, loss| sum + loss.sum);
            states.copy_from_slice(gradient);
        }
        Ok(sum)
    }
}

/// Makes `pass` one through the head alone: a row for each target. Its losses are sums over [`ROWS`]
/// rows each, so that those of a sample add up the same whatever pieces of whole [`ROWS`] it is
/// taken in.
pub(super) fn head_pass(pass: &mut Pass, targets: &[u32], weight: f32) {
    pass.clear();
    pass.ids.resize(targets.len(), 0);
    pass.targets.extend(targets.iter().copied().map(Some));
    for first in (0..targets.len()).step_by(ROWS) {
        let rows = first..targets.len().min(first + ROWS);
        pass.segments.push(Segment { rows, first_position: 0, sample: 0 });
    }
    pass.weight = weight;
}
