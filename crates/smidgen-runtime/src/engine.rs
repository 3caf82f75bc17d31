//! The walk over a model's blocks: forward, head, backward, in one arena.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use smidgen_graph::Architecture;
use smidgen_graph::plan::{Gradients, Plan, Row};
use smidgen_kernels::{ATTENTION_SCRATCH, GEMM_SCRATCH, Kernels, MatMut, MatRef, RopeTable};

use crate::band::Band;
use crate::cache::KvCache;
use crate::error::{Error, Result};
use crate::exec::{Binding, Frame, HeadState};
use crate::memory::Meter;
use crate::numbers::{Factors, Numbers};
use crate::pass::{Pass, SegmentLoss};
use crate::pool::Pool;
use crate::profile::{Lap, Phase, Profile, Work};
use crate::spool::{Spool, SpoolFormat};
use crate::taps::Taps;
use crate::weights::{BlockAt, ModelWeights};

/// How a program is run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The instruction set.
    pub kernels: Kernels,
    /// Threads, the caller's included.
    pub threads: usize,
    /// Positions that rotations are tabled for: the longest sequence.
    pub positions: usize,
    /// Where scratch files go, if the plan has one.
    pub spool_folder: Option<PathBuf>,
    /// How values are written that wait there for their backward.
    pub spool_format: SpoolFormat,
    /// The meter of the run, which the engine looks at after every pass.
    pub meter: Meter,
}

/// Which way a layer is run.
#[derive(Clone, Copy, Debug)]
enum Walk {
    /// Keeping what the backward starts from; in place for an untrained layer.
    Forward,
    Backward,
    /// In place at an offset of the arena, keeping nothing.
    Infer(usize),
}

/// What of a layer waits in the scratch file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    Input,
    Kept,
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
            band: Band::default(),
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
            weights_stay: $engine.plan.weights_stay,
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
pub(crate) const SCRATCH: usize =
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
pub type OnBlock<'a> = dyn FnMut(Range<usize>, &mut [f32], &mut [f32]) -> Result<()> + 'a;

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
    /// Numbers a token in the hidden state.
    hidden: usize,
    head: HeadState,
    meter: Meter,
    profile: Profile,
    /// Layers whose weights are in memory to stay.
    brought: Vec<bool>,
    /// Values that wait for their backward elsewhere.
    spool: Option<Spool>,
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
        let layers = plan.layers.len();
        let folder = settings.spool_folder.as_deref().unwrap_or(Path::new("."));
        let spool = (plan.spool_len > 0)
            .then(|| Spool::create(folder, plan.spool_len, settings.spool_format))
            .transpose()?;
        Ok(Self {
            kernels: settings.kernels,
            pool: Pool::new(settings.threads, SCRATCH)?,
            arena: sealed(plan.arena_len)?,
            gradients: sealed(plan.gradient_len)?,
            ropes,
            positions: settings.positions,
            hidden: model.hidden(),
            head: HeadState::new(plan.tokens, model.hidden()),
            weights,
            plan,
            meter: settings.meter.clone(),
            profile: Profile::default(),
            brought: vec![false; layers],
            spool,
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

    /// The meter, which looks after every pass.
    pub fn meter(&self) -> &Meter {
        &self.meter
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
    pub fn evaluate(
        &mut self,
        pass: &Pass,
        params: &mut dyn Factors,
        taps: Option<&mut dyn Taps>,
    ) -> Result<&[SegmentLoss]> {
        self.hidden(pass, params, taps, None)?;
        self.run_head(pass, false)?;
        self.meter.look();
        Ok(&self.head.losses)
    }

    /// Runs all layers over the stream of `pass`, from its embedding on, with `taps` behind each.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn forward(
        &mut self,
        pass: &Pass,
        params: &mut dyn Factors,
        taps: &mut dyn Taps,
    ) -> Result<()> {
        self.hidden(pass, params, Some(taps), None)?;
        self.meter.look();
        Ok(())
    }

    /// The same for sequences that go on from `cache`, each from its first position and none seeing
    /// another; where two have a position, the last one's keys and values stay there.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn forward_cached(
        &mut self,
        pass: &Pass,
        params: &mut dyn Factors,
        taps: &mut dyn Taps,
        cache: &mut KvCache,
    ) -> Result<()> {
        self.hidden(pass, params, Some(taps), Some(cache))?;
        self.meter.look();
        Ok(())
    }

    /// The stream of a pass of `rows` rows, rows x hidden: after [`Engine::forward`] what the head
    /// reads.
    pub fn stream_mut(&mut self, rows: usize) -> &mut [f32] {
        let at = self.plan.stream;
        &mut self.arena[at..at + rows * self.hidden]
    }

    /// Loss of each sequence of `pass`, whose last hidden state is in [`Engine::stream_mut`], and
    /// its gradient, rows x hidden. Takes up to [`Plan::head_rows`] rows.
    ///
    /// # Errors
    /// See [`Error`].
    ///
    /// # Panics
    /// If the plan has no backward through the head, or the pass more rows than that.
    pub fn head_gradient(&mut self, pass: &Pass) -> Result<(&[SegmentLoss], &mut [f32])> {
        assert!(pass.rows() <= self.plan.head_rows, "a pass through the head in pieces");
        self.check(pass)?;
        self.run_head(pass, true)?;
        self.meter.look();
        Ok((&self.head.losses, &mut self.arena[..pass.rows() * self.hidden]))
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
        params: &mut Numbers,
        cancel: &AtomicBool,
        on_block: &mut OnBlock<'_>,
    ) -> Result<&[SegmentLoss]> {
        self.check(pass)?;
        self.run_embedding(pass)?;
        let plan = Arc::clone(&self.plan);
        let first_trained = plan.segments.first().map_or(plan.layers.len(), |s| s.start);
        let cancelled = || cancel.load(Ordering::Relaxed);
        for layer in 0..first_trained {
            if cancelled() {
                return Err(Error::Cancelled);
            }
            self.run_layer(layer, Walk::Forward, pass, params, None)?;
        }
        for (i, segment) in plan.segments.iter().enumerate() {
            let next = plan.segments.get(i + 1).map(|next| plan.layers[next.start].input);
            if let Some(next) = next {
                let input = plan.layers[segment.start].input;
                self.arena.copy_within(input..input + pass.rows() * self.hidden, next);
            }
            for layer in segment.clone() {
                if cancelled() {
                    return Err(Error::Cancelled);
                }
                let walk = next.map_or(Walk::Forward, Walk::Infer);
                let write = |spool: &Spool, at, value: &mut [f32]| match pass.is_bypassed(layer) {
                    true => Ok(()),
                    false => spool.write(at, value),
                };
                // The output may take the input's place.
                self.spool(layer, pass, Waiting::Input, write)?;
                self.run_layer(layer, walk, pass, params, None)?;
                self.spool(layer, pass, Waiting::Kept, write)?;
            }
        }
        self.run_head(pass, true)?;
        for (i, segment) in plan.segments.iter().enumerate().rev() {
            let last = segment.clone().rev().find(|&layer| !pass.is_bypassed(layer));
            if let Some((next, last)) = plan.segments.get(i + 1).zip(last) {
                // The gradient on its way down waits where the next segment's input was.
                let (gradient, len) = (plan.layers[next.start].input, pass.rows() * self.hidden);
                self.arena.copy_within(..len, gradient);
                for layer in segment.start..=last {
                    self.run_layer(layer, Walk::Forward, pass, params, None)?;
                }
                self.arena.copy_within(gradient..gradient + len, 0);
            }
            for layer in segment.clone().rev() {
                let waiting: &[_] = match pass.is_bypassed(layer) {
                    true => &[],
                    false => &[Waiting::Input, Waiting::Kept],
                };
                for what in waiting {
                    self.spool(layer, pass, *what, |spool, at, value| spool.read(at, value))?;
                }
                self.backward(layer, pass, params, on_block)?;
            }
        }
        self.meter.look();
        Ok(&self.head.losses)
    }

    /// One layer's backward, and its update where gradients are held a block at a time. That of a
    /// bypassed layer leaves the gradient on its way down, and the factors' gradients at zero.
    fn backward(
        &mut self,
        layer: usize,
        pass: &Pass,
        params: &mut Numbers,
        on_block: &mut OnBlock<'_>,
    ) -> Result<()> {
        let plan = &self.plan.layers[layer];
        let len = self.plan.programs[plan.programs].block.param_len();
        let range = plan.params..plan.params + len;
        let by_block = self.plan.gradients == Gradients::Block;
        if by_block {
            self.gradients[..len].fill(0.0);
        }
        if !pass.is_bypassed(layer) {
            self.run_layer(layer, Walk::Backward, pass, params, None)?;
        }
        if by_block {
            let mut lap = Lap::begin();
            let gradients = &mut self.gradients[..len];
            on_block(range.clone(), params.piece_mut(range)?, gradients)?;
            lap.end(&mut self.profile, Phase::Optimiser, Work::Other, 0);
        }
        Ok(())
    }

    /// Logits of the rows of `pass` from `first_row` on: `visit(first token, rows x tokens)` is
    /// called for each tile of the vocabulary. With a cache, sequences go on where their first
    /// positions say, as in [`Engine::forward_cached`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn logits(
        &mut self,
        pass: &Pass,
        params: &mut dyn Factors,
        taps: Option<&mut dyn Taps>,
        cache: Option<&mut KvCache>,
        first_row: usize,
        visit: &mut dyn FnMut(usize, MatRef<'_>),
    ) -> Result<()> {
        self.hidden(pass, params, taps, cache)?;
        let (block, _, program) = &self.plan.head;
        let binding = Binding { input: self.plan.stream, output: 0, kept: &[] };
        frame!(self, block, program, BlockAt::Head, binding, pass, &[], &mut [], None, Phase::Head)
            .run_logits(first_row, visit)
    }

    /// Runs all blocks in place.
    fn hidden(
        &mut self,
        pass: &Pass,
        params: &mut dyn Factors,
        mut taps: Option<&mut dyn Taps>,
        mut cache: Option<&mut KvCache>,
    ) -> Result<()> {
        self.check(pass)?;
        self.run_embedding(pass)?;
        let (at, rows, cols) = (self.plan.stream, pass.rows(), self.hidden);
        for layer in 0..self.plan.layers.len() {
            self.run_layer(layer, Walk::Infer(at), pass, params, cache.as_deref_mut())?;
            if let Some(taps) = &mut taps {
                let stream = MatRef::new(&self.arena[at..at + rows * cols], rows, cols);
                taps.tap(layer, stream, self.kernels, &mut self.pool);
            }
        }
        if let Some(taps) = taps {
            let stream = MatMut::new(&mut self.arena[at..at + rows * cols], rows, cols);
            taps.join(stream, self.kernels, &mut self.pool);
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
        params: &mut dyn Factors,
        cache: Option<&mut KvCache>,
    ) -> Result<()> {
        self.bring_weights(layer, walk)?;
        let place = &self.plan.layers[layer];
        let programs = &self.plan.programs[place.programs];
        let program = match walk {
            Walk::Forward => programs.forward.as_ref().unwrap_or(&programs.infer),
            Walk::Backward => programs.backward.as_ref().expect("a trained layer"),
            Walk::Infer(_) => &programs.infer,
        };
        let input = match walk {
            Walk::Infer(at) => at,
            Walk::Forward | Walk::Backward => place.input,
        };
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
            Walk::Forward | Walk::Infer(_) => Phase::Forward,
        };
        let params = params.piece(range)?;
        frame!(self, block, program, at, binding, pass, params, gradients, cache, phase).run()?;
        if !self.plan.weights_stay {
            let mut lap = Lap::begin();
            self.weights.release(layer);
            lap.end(&mut self.profile, Phase::Paging, Work::Other, 0);
        }
        Ok(())
    }

    /// Hands a layer's input, or each of its kept values, to `work` with its place in the scratch
    /// file, if they go there.
    fn spool(
        &mut self,
        layer: usize,
        pass: &Pass,
        what: Waiting,
        work: impl Fn(&Spool, usize, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let place = &self.plan.layers[layer];
        let Some((spool, mut at)) = self.spool.as_ref().zip(place.spooled) else { return Ok(()) };
        let mut lap = Lap::begin();
        let kept = &self.plan.programs[place.programs].kept;
        let kept = place.kept.iter().zip(kept).map(|(start, (_, cols))| (*start, *cols));
        let input = [(Waiting::Input, place.input, self.hidden)].into_iter();
        for (of, start, cols) in input.chain(kept.map(|(at, cols)| (Waiting::Kept, at, cols))) {
            if of == what {
                work(spool, at, &mut self.arena[start..start + pass.rows() * cols])?;
            }
            at += self.plan.tokens * cols;
        }
        lap.end(&mut self.profile, Phase::Paging, Work::Other, 0);
        Ok(())
    }

    /// Brings a layer's weights into memory, and has the system read those of the next one while
    /// this one is at work.
    fn bring_weights(&mut self, layer: usize, walk: Walk) -> Result<()> {
        if self.brought[layer] {
            return Ok(());
        }
        let mut lap = Lap::begin();
        self.weights.prefetch(layer)?;
        let next = match walk {
            Walk::Forward | Walk::Infer(_) => layer + 1,
            Walk::Backward => layer.wrapping_sub(1),
        };
        if next < self.plan.layers.len() {
            self.weights.announce(next);
        }
        self.brought[layer] = self.plan.weights_stay;
        lap.end(&mut self.profile, Phase::Paging, Work::Other, 0);
        Ok(())
    }
}
