//! The walk over a model's blocks: forward, head, backward, in one arena.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use smidgen_graph::Architecture;
use smidgen_graph::plan::{Gradients, Plan, Row};
use smidgen_kernels::{ATTENTION_SCRATCH, GEMM_SCRATCH, Kernels, MatRef, RopeTable};

use crate::cache::KvCache;
use crate::error::{Error, Result};
use crate::exec::{Binding, Frame, HeadState};
use crate::memory::Meter;
use crate::pass::{Pass, SegmentLoss};
use crate::pool::Pool;
use crate::profile::{Phase, Profile, Work};
use crate::weights::{BlockAt, ModelWeights};

/// How a program is run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The instruction set.
    pub kernels: Kernels,
    /// Threads, the caller's included.
    pub threads: usize,
    /// Positions that rotations are tabled for: the longest sequence.
    pub positions: usize,
}

/// Which way a layer is run.
#[derive(Clone, Copy, Debug)]
enum Walk {
    /// Keeping what the backward starts from; in place for an untrained layer.
    Forward,
    Backward,
    /// In place, keeping nothing.
    Infer,
}

/// A frame over an engine's parts. A macro, since the parts are borrowed one by one.
macro_rules! frame {
    ($engine:ident, $block:expr, $program:expr, $at:expr, $binding:expr, $pass:expr,
     $params:expr, $gradients:expr, $cache:expr, $phase:expr) => {
        Frame {
            kernels: $engine.kernels,
            pool: &mut $engine.pool,
            weights: &$engine.weights,
            ropes: &$engine.ropes,
            arena: &mut $engine.arena,
            program: $program,
            block: $block,
            at: $at,
            binding: $binding,
            pass: $pass,
            params: $params,
            gradients: $gradients,
            cache: $cache,
            head: &mut $engine.head,
            profile: &mut $engine.profile,
            phase: $phase,
        }
    };
}

/// Zeros whose pages are all there, so that no later step makes the process grow.
///
/// # Errors
/// [`Error::Memory`] if the system does not give them.
pub fn sealed(len: usize) -> Result<Vec<f32>> {
    let mut numbers = Vec::new();
    numbers.try_reserve_exact(len).map_err(|_| Error::Memory { bytes: len.saturating_mul(4) })?;
    numbers.resize(len, f32::MIN_POSITIVE);
    numbers.fill(0.0);
    Ok(numbers)
}

/// Numbers of scratch a thread.
const SCRATCH: usize =
    if ATTENTION_SCRATCH > GEMM_SCRATCH { ATTENTION_SCRATCH } else { GEMM_SCRATCH };

/// The plan's lines for what an engine holds beside the arena.
pub fn fixed_rows(
    model: &dyn Architecture,
    weights: &ModelWeights,
    settings: &Settings,
    tokens: usize,
) -> Vec<Row> {
    let ropes = model.rope_frequencies();
    let angles: usize = ropes.iter().map(|f| 2 * f.len() * settings.positions).sum();
    let row = |name: &str, shape: String, bytes: usize, why: &str| {
        Row::new(name, shape, bytes as u64, "whole run", why)
    };
    let per_thread = format!("{} x {SCRATCH}", settings.threads);
    vec![
        row("thread scratch", per_thread, 4 * SCRATCH * settings.threads, "unpacked weight panels"),
        row("rotation angles", format!("{angles}"), 4 * angles, "cosines and sines a position"),
        row(
            "norms and biases",
            format!("{}", weights.vectors_len()),
            4 * weights.vectors_len(),
            "the model's vectors, in f32",
        ),
        row(
            "row states",
            format!("{tokens}"),
            HeadState::bytes(tokens, model.hidden()) as usize,
            "softmax sums and losses of the head",
        ),
    ]
}

/// Called with a block's place among all factors, its factors and their gradients.
pub type OnBlock<'a> = dyn FnMut(std::ops::Range<usize>, &mut [f32], &mut [f32]) + 'a;

/// Runs the programs of a plan over a model's weights.
#[derive(Debug)]
pub struct Engine {
    weights: Arc<ModelWeights>,
    plan: Arc<Plan>,
    kernels: Kernels,
    pool: Pool,
    arena: Vec<f32>,
    gradients: Vec<f32>,
    ropes: Vec<RopeTable>,
    /// Positions that the tables of angles have.
    positions: usize,
    head: HeadState,
    meter: Meter,
    profile: Profile,
}

impl Engine {
    /// Makes the arena and all else that the plan lists; nothing large is allocated after.
    ///
    /// # Errors
    /// [`Error::Memory`] if the system does not give that much, [`Error::Threads`] if the threads
    /// can't be started.
    pub fn new(
        model: &dyn Architecture,
        weights: Arc<ModelWeights>,
        plan: Arc<Plan>,
        settings: &Settings,
    ) -> Result<Self> {
        let ropes = model.rope_frequencies();
        let ropes = ropes.iter().map(|f| RopeTable::new(f, settings.positions)).collect();
        Ok(Self {
            kernels: settings.kernels,
            pool: Pool::new(settings.threads, SCRATCH)?,
            arena: sealed(plan.arena_len)?,
            gradients: sealed(plan.gradient_len)?,
            ropes,
            positions: settings.positions,
            head: HeadState::new(plan.tokens, model.hidden()),
            weights,
            plan,
            meter: Meter::default(),
            profile: Profile::default(),
        })
    }

    /// The plan that runs.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The model's weights.
    pub fn weights(&self) -> &ModelWeights {
        &self.weights
    }

    /// The instruction set that runs.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// The meter, which looks after every block.
    pub fn meter(&mut self) -> &mut Meter {
        &mut self.meter
    }

    /// Where time has gone since the engine was made, or since its profile was last replaced.
    pub fn profile(&mut self) -> &mut Profile {
        &mut self.profile
    }

    pub(crate) fn shared_plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    pub(crate) fn parts(&mut self) -> (Kernels, &mut Pool, &ModelWeights) {
        (self.kernels, &mut self.pool, &self.weights)
    }

    /// Gradients of all factors summed so far, where they are held whole.
    pub fn gradients(&mut self) -> &mut [f32] {
        &mut self.gradients
    }

    /// Loss of each sequence of `pass`; no gradients.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn evaluate(&mut self, pass: &Pass, params: &[f32]) -> Result<&[SegmentLoss]> {
        self.hidden(pass, params, None)?;
        self.run_head(pass, false)?;
        self.meter.look();
        Ok(&self.head.losses)
    }

    /// Loss of each sequence of `pass`, and gradients. Held whole, they are added to
    /// [`Engine::gradients`]; held a block at a time, `on_block(factors, gradients)` gets each
    /// block's as soon as it is done, from the last block to the first, and may change the
    /// block's factors.
    ///
    /// # Errors
    /// See [`Error`]. [`Error::Cancelled`] is returned before any factor was changed: `cancel` is
    /// looked at before each block of the forward, and a backward that has begun is finished.
    pub fn train(
        &mut self,
        pass: &Pass,
        params: &mut [f32],
        cancel: &AtomicBool,
        on_block: &mut OnBlock<'_>,
    ) -> Result<&[SegmentLoss]> {
        self.check(pass)?;
        self.run_embedding(pass)?;
        for layer in 0..self.plan.layers.len() {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            self.run_layer(layer, Walk::Forward, pass, params, None)?;
        }
        self.run_head(pass, true)?;
        for layer in (0..self.plan.layers.len()).rev() {
            let plan = &self.plan.layers[layer];
            if !plan.trained {
                break;
            }
            let len = self.plan.programs[plan.programs].block.param_len();
            let range = plan.params..plan.params + len;
            if self.plan.gradients == Gradients::Block {
                self.gradients[..len].fill(0.0);
            }
            self.run_layer(layer, Walk::Backward, pass, params, None)?;
            if self.plan.gradients == Gradients::Block {
                let begin = Instant::now();
                on_block(range.clone(), &mut params[range], &mut self.gradients[..len]);
                self.profile.add(Phase::Optimiser, Work::Other, begin.elapsed(), 0);
            }
        }
        self.meter.look();
        Ok(&self.head.losses)
    }

    /// Logits of the rows of `pass` from `first_row` on: `visit(first token, rows x tokens)` is
    /// called for each tile of the vocabulary. With a cache, the pass is one sequence that goes
    /// on where its first position says.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn logits(
        &mut self,
        pass: &Pass,
        params: &[f32],
        cache: Option<&mut KvCache>,
        first_row: usize,
        visit: &mut dyn FnMut(usize, MatRef<'_>),
    ) -> Result<()> {
        self.hidden(pass, params, cache)?;
        let (block, _, program) = &self.plan.head;
        let binding = Binding { input: self.plan.stream, output: 0, kept: &[] };
        frame!(self, block, program, BlockAt::Head, binding, pass, &[], &mut [], None, Phase::Head)
            .run_logits(first_row, visit)
    }

    /// Runs all blocks in place.
    fn hidden(
        &mut self,
        pass: &Pass,
        params: &[f32],
        mut cache: Option<&mut KvCache>,
    ) -> Result<()> {
        self.check(pass)?;
        self.run_embedding(pass)?;
        for layer in 0..self.plan.layers.len() {
            self.run_layer(layer, Walk::Infer, pass, params, cache.as_deref_mut())?;
        }
        Ok(())
    }

    /// Whether a pass fits the plan and the tables of angles.
    fn check(&self, pass: &Pass) -> Result<()> {
        let (rows, planned) = (pass.rows(), self.plan.tokens);
        if rows == 0 {
            return Err(Error::Empty);
        }
        if rows > planned {
            return Err(Error::Length { rows, planned });
        }
        let ends = pass.segments.iter().map(|s| s.first_position + s.rows.len());
        let (rows, planned) = (ends.max().unwrap_or(0), self.positions);
        if rows > planned { Err(Error::Length { rows, planned }) } else { Ok(()) }
    }

    fn run_embedding(&mut self, pass: &Pass) -> Result<()> {
        let (block, program) = &self.plan.embedding;
        let binding = Binding { input: 0, output: self.plan.stream, kept: &[] };
        frame!(
            self,
            block,
            program,
            BlockAt::Embedding,
            binding,
            pass,
            &[],
            &mut [],
            None,
            Phase::Embedding
        )
        .run()
    }

    fn run_head(&mut self, pass: &Pass, train: bool) -> Result<()> {
        let (block, training, infer) = &self.plan.head;
        let program = if train { training } else { infer };
        let input = if train { self.plan.last } else { self.plan.stream };
        let binding = Binding { input, output: 0, kept: &[] };
        frame!(self, block, program, BlockAt::Head, binding, pass, &[], &mut [], None, Phase::Head)
            .run()
    }

    fn run_layer(
        &mut self,
        layer: usize,
        walk: Walk,
        pass: &Pass,
        params: &[f32],
        cache: Option<&mut KvCache>,
    ) -> Result<()> {
        let place = &self.plan.layers[layer];
        let programs = &self.plan.programs[place.programs];
        let program = match walk {
            Walk::Forward => programs.forward.as_ref().unwrap_or(&programs.infer),
            Walk::Backward => programs.backward.as_ref().expect("a trained layer"),
            Walk::Infer => &programs.infer,
        };
        let in_place = matches!(walk, Walk::Infer);
        let input = if in_place { self.plan.stream } else { place.input };
        let binding = Binding { input, output: place.output, kept: &place.kept };
        let range = place.params..place.params + programs.block.param_len();
        let gradients = match (walk, self.plan.gradients) {
            (Walk::Backward, Gradients::Block) => &mut self.gradients[..range.len()],
            (Walk::Backward, Gradients::Whole) => &mut self.gradients[range.clone()],
            _ => &mut [],
        };
        let block = &programs.block;
        let at = BlockAt::Layer(layer);
        let phase = match walk {
            Walk::Backward => Phase::Backward,
            Walk::Forward | Walk::Infer => Phase::Forward,
        };
        let begin = Instant::now();
        self.weights.prefetch(layer)?;
        self.profile.add(Phase::Paging, Work::Other, begin.elapsed(), 0);
        frame!(self, block, program, at, binding, pass, &params[range], gradients, cache, phase)
            .run()?;
        let begin = Instant::now();
        self.weights.release(layer);
        self.profile.add(Phase::Paging, Work::Other, begin.elapsed(), 0);
        Ok(())
    }
}
