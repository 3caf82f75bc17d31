//! One file a group of steps: each turns a step into kernel calls over tiles of its outputs.

mod attention;
mod gemm;
mod head;
mod rowwise;

pub use head::HeadState;

use std::ops::Range;
use std::time::Instant;

use smidgen_graph::layout::{Place, Program};
use smidgen_graph::{Block, Step, ValueId};
use smidgen_kernels::{Kernels, MatMut, RopeTable};

use crate::band::{Band, Part, bands as bands_of};
use crate::cache::KvCache;
use crate::error::{Error, Result};
use crate::pass::Pass;
use crate::pool::Pool;
use crate::profile::{Phase, Profile, Work};
use crate::weights::{BlockAt, ModelWeights};

/// Where a block's lasting values lie in the arena.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    pub input: usize,
    pub output: usize,
    pub kept: &'a [usize],
}

/// All that the steps of one program work with.
pub struct Frame<'a> {
    pub kernels: Kernels,
    pub pool: &'a mut Pool,
    pub weights: &'a ModelWeights,
    pub ropes: &'a [RopeTable],
    pub arena: &'a mut [f32],
    pub program: &'a Program,
    /// The rows at work.
    pub band: Band,
    pub block: &'a Block,
    pub at: BlockAt,
    pub binding: Binding<'a>,
    pub pass: &'a Pass,
    /// The block's trainable factors.
    pub params: &'a [f32],
    /// Their gradients; empty outside a backward.
    pub gradients: &'a mut [f32],
    pub cache: Option<&'a mut KvCache>,
    pub head: &'a mut HeadState,
    pub profile: &'a mut Profile,
    /// What the program's steps count as, but for forward values made again.
    pub phase: Phase,
    /// Whether weights stay in memory once they are there.
    pub weights_stay: bool,
}

impl Frame<'_> {
    /// Runs the whole program.
    pub fn run(&mut self) -> Result<()> {
        let program = self.program;
        let mut start = 0;
        for stage in &program.stages {
            for band in bands_of(self.pass, program.row_tile, stage.order) {
                self.band = band;
                self.run_steps(start..stage.end)?;
            }
            start = stage.end;
        }
        Ok(())
    }

    /// Runs some steps for the band at work.
    fn run_steps(&mut self, steps: Range<usize>) -> Result<()> {
        let program = self.program;
        for (step, &remade) in program.steps[steps.clone()].iter().zip(&program.remade[steps]) {
            let begin = Instant::now();
            self.step(step)?;
            if let Step::Head { .. } = step {
                continue; // It counts its own parts.
            }
            let phase = if remade { Phase::Recompute } else { self.phase };
            self.profile.add(phase, Work::of(step), begin.elapsed(), self.flops(step));
        }
        Ok(())
    }

    /// FLOPs of a step over the band at work: of its rows' attention, all that lies before them.
    fn flops(&self, step: &Step) -> u64 {
        let up_to = |rows: usize| step.flops(rows, |v| self.cols(v));
        let of =
            |part: &Part| up_to(part.first_position + part.rows.len()) - up_to(part.first_position);
        self.band.parts.iter().map(of).sum()
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Gemm { out, start, scale, terms } => self.gemm(*out, *start, *scale, terms),
            Step::ParamGradient { param, cols, left, right } => {
                self.param_gradient(*param, cols, *left, *right);
            }
            Step::RmsNorm { .. } => self.rms_norm(step),
            Step::RmsNormBackward { .. } => self.rms_norm_backward(step),
            Step::LayerNorm { .. } => self.layer_norm(step),
            Step::LayerNormBackward { .. } => self.layer_norm_backward(step),
            Step::Rope { x, y, shape, inverse } => self.rope(*x, *y, *shape, *inverse),
            Step::Attention { .. } => self.attention(step),
            Step::AttentionDelta { .. } => self.attention_delta(step),
            Step::AttentionBackwardQ { .. } => self.attention_backward_q(step),
            Step::AttentionBackwardKv { .. } => self.attention_backward_kv(step),
            Step::Gate { g, u, a, activation } => self.gate(*g, *u, *a, *activation),
            Step::GateBackward { .. } => self.gate_backward(step),
            Step::Relu { x, out } => self.relu(*x, *out),
            Step::ReluBackward { a, da, dx } => self.relu_backward(*a, *da, *dx),
            Step::Add { x, y, out } => self.add(*x, *y, *out),
            Step::Scale { x, out, factor } => self.scale(*x, *out, *factor),
            Step::Copy { x, out } => self.copy(*x, *out),
            Step::Dropout { .. } => self.dropout(step),
            Step::Embedding { weight, out } => return self.embedding(*weight, *out),
            Step::Positions { x, weight, first, out } => {
                return self.positions(*x, *weight, *first, *out);
            }
            Step::Head { weight, x, dx, logits } => return self.head(*weight, *x, *dx, *logits),
        }
        Ok(())
    }

    /// Rows of the band at work.
    fn rows(&self) -> usize {
        self.band.rows.len()
    }

    fn cols(&self, v: ValueId) -> usize {
        self.program.values[v.0 as usize].cols
    }

    /// Where a value begins in the arena, and the first row that it holds.
    fn place(&self, v: ValueId) -> (usize, usize) {
        let placed = &self.program.places[&v];
        let start = match placed.place {
            Place::Scratch(at) => at,
            Place::Input => self.binding.input,
            Place::Output => self.binding.output,
            Place::Kept(n) => self.binding.kept[n],
        };
        (start, if placed.whole { 0 } else { self.band.rows.start })
    }

    /// Where some rows of the pass, which a value holds, lie in the arena.
    fn rows_of(&self, v: ValueId, rows: &Range<usize>) -> Range<usize> {
        let (start, first) = self.place(v);
        let at = |row: usize| start + (row - first) * self.cols(v);
        at(rows.start)..at(rows.end)
    }

    /// Where a value's rows of the band at work lie in the arena.
    fn range(&self, v: ValueId) -> Range<usize> {
        self.rows_of(v, &self.band.rows)
    }

    /// Where a value that holds all rows of the pass lies in the arena.
    fn whole(&self, v: ValueId) -> Range<usize> {
        self.rows_of(v, &(0..self.pass.rows()))
    }

    /// Runs of at most `size` rows of the band, none across two sequences: (part, rows).
    fn runs(&self, size: usize) -> Vec<(usize, Range<usize>)> {
        let mut runs = Vec::new();
        for (i, part) in self.band.parts.iter().enumerate() {
            for start in part.rows.clone().step_by(size) {
                runs.push((i, start..(start + size).min(part.rows.end)));
            }
        }
        runs
    }
}

/// Consecutive bands of a matrix, one a run, with the number of the run.
fn bands<'a>(
    mat: MatMut<'a>,
    runs: &'a [(usize, Range<usize>)],
) -> impl Iterator<Item = (usize, MatMut<'a>)> + Send {
    let mut rest = Some(mat);
    runs.iter().enumerate().filter_map(move |(i, (_, rows))| {
        let (band, below) = rest.take()?.split_at_row(rows.len());
        rest = Some(below);
        Some((i, band))
    })
}

/// An id checked against the vocabulary.
fn token(id: u32, vocabulary: usize) -> Result<usize> {
    let at = id as usize;
    if at < vocabulary { Ok(at) } else { Err(Error::Token { id, vocabulary }) }
}
