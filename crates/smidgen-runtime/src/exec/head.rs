//! The vocabulary head in one sweep: cross-entropy, accuracy and the gradient of the hidden state
//! from one pass over tiles of the vocabulary, of whose logits one tile at a time exists.
//!
//! For each tile: logits by threads that own columns; softmax by threads that own rows, which
//! also rescale those rows of the gradient where the maximum moved; the tile's share of the
//! gradient by threads that own columns of it, in vocabulary order.

use std::ops::Range;

use smidgen_graph::schedule::Order;
use smidgen_graph::{Step, ValueId, WeightId, ops::HEAD_TILE};
use smidgen_kernels::{Init, MatMut, MatRef, Matrix, Operand, QuantMatrix, RowState, Term, Tiling};

use super::{Frame, token};
use crate::arena::carve;
use crate::band::bands as bands_of;
use crate::error::{Error, Result};
use crate::pass::SegmentLoss;
use crate::profile::{Lap, Phase, Work};

/// Rows whose exponentials a task takes.
const SOFTMAX_ROWS: usize = 8;

/// What the head holds beside the arena: a few numbers a row, and the losses.
#[derive(Debug, Default)]
pub struct HeadState {
    rows: Vec<usize>,
    targets: Vec<u32>,
    states: Vec<RowState>,
    factors: Vec<f32>,
    row: Vec<f32>,
    /// One a sequence of the pass.
    pub losses: Vec<SegmentLoss>,
    /// Whether the whole vocabulary's weights are in memory to stay.
    brought: bool,
}

impl HeadState {
    /// Room for passes of `tokens` rows over a hidden state of `hidden` numbers.
    pub fn new(tokens: usize, hidden: usize) -> Self {
        Self {
            rows: Vec::with_capacity(tokens),
            targets: Vec::with_capacity(tokens),
            states: Vec::with_capacity(tokens),
            factors: Vec::with_capacity(tokens),
            row: vec![0.0; hidden],
            losses: Vec::with_capacity(tokens),
            brought: false,
        }
    }

    /// Bytes of the same.
    pub fn bytes(tokens: usize, hidden: usize) -> u64 {
        let row = size_of::<usize>()
            + size_of::<u32>()
            + size_of::<RowState>()
            + size_of::<f32>()
            + size_of::<SegmentLoss>();
        (tokens * row + 4 * hidden) as u64
    }
}

impl Frame<'_> {
    pub fn head(
        &mut self,
        weight: WeightId,
        x: ValueId,
        dx: Option<ValueId>,
        logits: ValueId,
    ) -> Result<()> {
        let hidden = self.cols(x);
        let vocabulary = self.weights.tensor(self.at, weight).rows;
        let mut lap = Lap::begin();
        self.gather(x, vocabulary)?;
        let x = self.range(x);
        let dx = dx.map(|v| self.range(v));
        if let Some(dx) = &dx {
            self.arena[dx.clone()].fill(0.0);
        }
        let logits = self.range(logits);
        lap.end(self.profile, Phase::Head, Work::Other, 0);
        for first in (0..vocabulary).step_by(HEAD_TILE) {
            let tile = first..(first + HEAD_TILE).min(vocabulary);
            self.sweep(weight, &x, dx.as_ref(), &logits, tile, hidden)?;
        }
        let mut lap = Lap::begin();
        self.finish(weight, dx)?;
        lap.end(self.profile, Phase::Head, Work::Other, 0);
        Ok(())
    }

    /// Moves the rows that have a target together, at the start of `x`.
    fn gather(&mut self, x: ValueId, vocabulary: usize) -> Result<()> {
        let (range, cols) = (self.range(x), self.cols(x));
        self.head.rows.clear();
        self.head.targets.clear();
        for (row, target) in self.pass.targets[self.band.rows.clone()].iter().enumerate() {
            if let Some(target) = *target {
                token(target, vocabulary)?;
                let to = range.start + self.head.rows.len() * cols;
                let from = range.start + row * cols;
                if from != to {
                    self.arena.copy_within(from..from + cols, to);
                }
                self.head.rows.push(row);
                self.head.targets.push(target);
            }
        }
        let rows = self.head.rows.len();
        self.head.states.clear();
        self.head.states.resize(rows, RowState::NEW);
        self.head.factors.clear();
        self.head.factors.resize(rows, 1.0);
        Ok(())
    }

    /// One tile of the vocabulary.
    fn sweep(
        &mut self,
        weight: WeightId,
        x: &Range<usize>,
        dx: Option<&Range<usize>>,
        logits: &Range<usize>,
        tile: Range<usize>,
        hidden: usize,
    ) -> Result<()> {
        let rows = self.head.rows.len();
        if rows == 0 {
            return Ok(());
        }
        let mut lap = Lap::begin();
        self.bring_rows(weight, tile.clone())?;
        lap.end(self.profile, Phase::Paging, Work::Other, 0);
        let w = self.weights.matrix(self.at, weight).rows_range(tile.clone());
        let (kernels, flops) = (self.kernels, 2 * (rows * tile.len() * hidden) as u64);
        let dx = dx.map_or(0..0, |d| d.start..d.start + rows * hidden);
        let len = rows * tile.len();
        let out = logits.start..logits.start + len;
        let ([logits, dx], reads) = carve(self.arena, [out, dx]);
        let x = MatRef::new(reads.get(x.clone()), rows, hidden);
        let out = MatMut::new(logits, rows, tile.len());
        self.pool.gemm(kernels, out, Init::Zero, 1.0, &[along(x, w)]);
        lap.end(self.profile, Phase::Head, Work::Gemm, flops);
        let training = !dx.is_empty();
        let targets = self.head.targets.chunks(SOFTMAX_ROWS);
        let states = self.head.states.chunks_mut(SOFTMAX_ROWS);
        let factors = self.head.factors.chunks_mut(SOFTMAX_ROWS);
        let parts = targets.zip(states).zip(factors);
        let bands = MatMut::new(logits, rows, tile.len()).row_tiles(SOFTMAX_ROWS);
        self.pool.run(bands.zip(parts), |((_, band), ((targets, states), factors)), _| {
            kernels.softmax_tile(band, tile.start, targets, states, factors);
        });
        lap.end(self.profile, Phase::Head, Work::Other, 0);
        if training {
            let a = MatRef::new(logits, rows, tile.len());
            let factors = &self.head.factors;
            let term = Term { a, b: Operand { matrix: Matrix::Quant(w), transposed: false } };
            let tiling = Tiling::of([term.b], self.pool.threads());
            let tasks = tiling.tasks(MatMut::new(dx, rows, hidden));
            self.pool.run(tasks, |(row, col, mut c), scratch| {
                let (m, n) = (row..row + c.rows(), col..col + c.cols());
                let moved = factors[m.clone()].iter().enumerate().filter(|(_, f)| **f != 1.0);
                for (row, &factor) in moved {
                    c.row_mut(row).iter_mut().for_each(|x| *x *= factor);
                }
                kernels.gemm(c, Init::Keep, 1.0, &[term.part(m, n)], scratch);
            });
            lap.end(self.profile, Phase::Head, Work::Gemm, flops);
        }
        self.drop_rows(weight, tile);
        lap.end(self.profile, Phase::Paging, Work::Other, 0);
        Ok(())
    }

    /// Brings a tile of the vocabulary into memory, and has the system read the next one while
    /// this one is at work.
    fn bring_rows(&mut self, weight: WeightId, tile: Range<usize>) -> Result<()> {
        if self.head.brought {
            return Ok(());
        }
        let vocabulary = self.weights.tensor(self.at, weight).rows;
        let next = tile.end..(tile.end + tile.len()).min(vocabulary);
        self.head.brought = self.weights_stay && next.is_empty();
        self.weights.prefetch_rows(self.at, weight, tile)?;
        self.weights.announce_rows(self.at, weight, next);
        Ok(())
    }

    fn drop_rows(&self, weight: WeightId, tile: Range<usize>) {
        if !self.weights_stay {
            self.weights.release_rows(self.at, weight, tile);
        }
    }

    /// Losses a sequence; the gradient's rows finished and moved back to where they belong.
    fn finish(&mut self, weight: WeightId, dx: Option<Range<usize>>) -> Result<()> {
        let tensor = self.weights.tensor(self.at, weight);
        let row_bytes = tensor.range.len() / tensor.rows.max(1);
        let mut bytes = vec![0; row_bytes];
        let cols = tensor.cols;
        let HeadState { rows, targets, states, row: w, losses, .. } = &mut *self.head;
        if self.band.rows.start == 0 {
            losses.clear();
            losses.resize(self.pass.segments.len(), SegmentLoss::default());
        }
        let mut part = 0;
        let mut results = Vec::with_capacity(rows.len());
        for (&row, state) in rows.iter().zip(states.iter()) {
            while !self.band.parts[part].rows.contains(&row) {
                part += 1;
            }
            let result = state.finish(self.pass.weight);
            if !result.loss.is_finite() {
                let row = self.band.rows.start + row;
                let place = format!("token {row} of a pass of {}", self.pass.rows());
                return Err(Error::NotFinite { loss: result.loss, place });
            }
            let sum = &mut losses[self.band.parts[part].number];
            sum.sum += result.loss;
            sum.targets += 1;
            sum.correct += usize::from(result.correct);
            results.push(result);
        }
        let Some(dx) = dx else { return Ok(()) };
        let mut end = self.band.rows.len();
        for (at, (&row, result)) in rows.iter().zip(&results).enumerate().rev() {
            let id = targets[at] as usize;
            let offset = tensor.range.start + id * row_bytes;
            self.weights.gguf().map().read_at(offset as u64, &mut bytes)?;
            self.kernels.decode_row(tensor.format, &bytes, w);
            let from = dx.start + at * cols;
            let to = dx.start + row * cols;
            self.arena.copy_within(from..from + cols, to);
            let target = MatRef::new(w, 1, cols);
            let mut x = MatMut::new(&mut self.arena[to..to + cols], 1, cols);
            self.kernels.scale_in_place(result.sum_factor, x.reborrow());
            self.kernels.axpy(result.target_factor, target, x);
            self.arena[to + cols..dx.start + end * cols].fill(0.0);
            end = row;
        }
        self.arena[dx.start..dx.start + end * cols].fill(0.0);
        Ok(())
    }
}

impl Frame<'_> {
    /// Runs the program up to the head and calls `visit(first token, logits)` for each tile of
    /// the vocabulary, for the rows from `first_row` on.
    pub fn run_logits(
        &mut self,
        first_row: usize,
        visit: &mut dyn FnMut(usize, MatRef<'_>),
    ) -> Result<()> {
        let program = self.program;
        let (mut rows, mut head) = (Vec::new(), None);
        for band in bands_of(self.pass, program.row_tile, Order::Forth) {
            self.band = band;
            for step in &program.steps {
                match step {
                    Step::Head { weight, x, .. } => {
                        let wanted = first_row.saturating_sub(self.band.rows.start);
                        let (range, cols) = (self.range(*x), self.cols(*x));
                        let from = range.end.min(range.start + wanted * cols);
                        rows.extend_from_slice(&self.arena[from..range.end]);
                        head = Some(*weight);
                    }
                    other => self.step(other)?,
                }
            }
        }
        head.map_or(Ok(()), |weight| self.visit_logits(weight, &rows, visit))
    }

    fn visit_logits(
        &mut self,
        weight: WeightId,
        x: &[f32],
        visit: &mut dyn FnMut(usize, MatRef<'_>),
    ) -> Result<()> {
        let whole = self.weights.matrix(self.at, weight);
        let (vocabulary, hidden) = (whole.rows(), whole.cols());
        let rows = x.len() / hidden;
        let a = MatRef::new(x, rows, hidden);
        for first in (0..vocabulary).step_by(HEAD_TILE) {
            let tile = first..(first + HEAD_TILE).min(vocabulary);
            self.bring_rows(weight, tile.clone())?;
            let w = whole.rows_range(tile.clone());
            let mut logits = vec![0.0; rows * tile.len()];
            let out = MatMut::new(&mut logits, rows, tile.len());
            self.pool.gemm(self.kernels, out, Init::Zero, 1.0, &[along(a, w)]);
            visit(first, MatRef::new(&logits, rows, tile.len()));
            self.drop_rows(weight, tile);
        }
        Ok(())
    }
}

/// x wᵀ.
fn along<'a>(x: MatRef<'a>, w: QuantMatrix<'a>) -> Term<'a> {
    Term { a: x, b: Operand { matrix: Matrix::Quant(w), transposed: true } }
}
