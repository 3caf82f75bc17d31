//! Steps that work on each row by itself: norms, rotations, activations, sums, dropout, embedding,
//! positions.

use smidgen_graph::{RopeShape, Step, ValueId, WeightId};
use smidgen_kernels::{
    Activation, DropoutKey, MatMut, MatRef, Place as DropoutPlace, Rope, RopeStyle, Turn,
};

use super::{Frame, bands, token};
use crate::arena::carve;
use crate::error::{Error, Result};

/// Numbers that a task works on at least, so that handing it out costs little beside it.
const TASK: usize = 16 * 1024;

/// Rows of a task over rows of `cols` numbers.
fn task_rows(cols: usize) -> usize {
    (TASK / cols.max(1)).max(1)
}

impl Frame<'_> {
    pub fn rms_norm(&mut self, step: &Step) {
        let Step::RmsNorm { x, weight, width, eps, y, inv_rms } = *step else { return };
        let rows = self.rows() * self.cols(x) / width;
        let (x, y, inv) = (self.range(x), self.range(y), self.range(inv_rms));
        let weight = self.weights.vector(self.at, weight);
        let ([y, inv], reads) = carve(self.arena, [y, inv]);
        let x = MatRef::new(reads.get(x), rows, width);
        let height = task_rows(width);
        let tasks = MatMut::new(y, rows, width).row_tiles(height).zip(inv.chunks_mut(height));
        let kernels = self.kernels;
        self.pool.run(tasks, |((row, y), inv), _| {
            let x = x.rows_range(row..row + y.rows());
            kernels.rmsnorm(x, weight, eps, y, inv);
        });
    }

    pub fn rms_norm_backward(&mut self, step: &Step) {
        let Step::RmsNormBackward { dy, x, inv_rms, weight, width, dx } = *step else { return };
        let rows = self.rows() * self.cols(x) / width;
        let (dy, x, inv) = (self.range(dy), self.range(x), self.range(inv_rms));
        let weight = self.weights.vector(self.at, weight);
        let ([dx], reads) = carve(self.arena, [self.range(dx)]);
        let (dy, x) =
            (MatRef::new(reads.get(dy), rows, width), MatRef::new(reads.get(x), rows, width));
        let inv = reads.get(inv);
        let tasks = MatMut::new(dx, rows, width).row_tiles(task_rows(width));
        let kernels = self.kernels;
        self.pool.run(tasks, |(row, dx), _| {
            let m = row..row + dx.rows();
            let (dy, x) = (dy.rows_range(m.clone()), x.rows_range(m.clone()));
            kernels.rmsnorm_backward(dy, x, &inv[m], weight, dx);
        });
    }

    pub fn layer_norm(&mut self, step: &Step) {
        let Step::LayerNorm { x, weight, bias, eps, y, mean, inv_std } = *step else { return };
        let (rows, cols) = (self.rows(), self.cols(x));
        let (weights, at) = (self.weights, self.at);
        let vectors = [weight, bias].map(|id| weights.vector(at, id));
        let (x, written) = (self.range(x), [y, mean, inv_std].map(|v| self.range(v)));
        let ([y, mean, inv], reads) = carve(self.arena, written);
        let x = MatRef::new(reads.get(x), rows, cols);
        let height = task_rows(cols);
        let statistics = mean.chunks_mut(height).zip(inv.chunks_mut(height));
        let tasks = MatMut::new(y, rows, cols).row_tiles(height).zip(statistics);
        let kernels = self.kernels;
        self.pool.run(tasks, |((row, y), (mean, inv)), _| {
            let x = x.rows_range(row..row + y.rows());
            kernels.layernorm(x, vectors, eps, y, mean, inv);
        });
    }

    pub fn layer_norm_backward(&mut self, step: &Step) {
        let Step::LayerNormBackward { dy, x, mean, inv_std, weight, dx } = *step else { return };
        let (rows, cols) = (self.rows(), self.cols(x));
        let weight = self.weights.vector(self.at, weight);
        let [dy, x, mean, inv] = [dy, x, mean, inv_std].map(|v| self.range(v));
        let ([dx], reads) = carve(self.arena, [self.range(dx)]);
        let [dy, x] = [dy, x].map(|r| MatRef::new(reads.get(r), rows, cols));
        let (mean, inv) = (reads.get(mean), reads.get(inv));
        let tasks = MatMut::new(dx, rows, cols).row_tiles(task_rows(cols));
        let kernels = self.kernels;
        self.pool.run(tasks, |(row, dx), _| {
            let m = row..row + dx.rows();
            let (dy, x) = (dy.rows_range(m.clone()), x.rows_range(m.clone()));
            kernels.layernorm_backward(dy, x, &mean[m.clone()], &inv[m], weight, dx);
        });
    }

    pub fn rope(&mut self, x: ValueId, y: ValueId, shape: RopeShape, inverse: bool) {
        let (rows, cols) = (self.rows(), self.cols(x));
        let (from, to) = (self.range(x), self.range(y));
        if from != to {
            self.arena.copy_within(from, to.start);
        }
        let runs = self.runs(task_rows(cols));
        let rope = Rope {
            table: &self.ropes[shape.table],
            head_dim: shape.head_dim,
            style: match shape.style {
                smidgen_graph::RopeStyle::Interleaved => RopeStyle::Interleaved,
                smidgen_graph::RopeStyle::Halves => RopeStyle::Halves,
            },
            turn: if inverse { Turn::Back } else { Turn::Forth },
        };
        let tasks = bands(MatMut::new(&mut self.arena[to], rows, cols), &runs);
        let (kernels, parts) = (self.kernels, &self.band.parts);
        self.pool.run(tasks, |(run, band), _| {
            let (part, rows) = &runs[run];
            let part = &parts[*part];
            let position = part.first_position + rows.start - part.rows.start;
            kernels.rope_in_place(rope, position, band);
        });
    }

    pub fn gate(
        &mut self,
        g: ValueId,
        u: ValueId,
        a: ValueId,
        activation: smidgen_graph::Activation,
    ) {
        let (rows, cols) = (self.rows(), self.cols(g));
        let (g, u) = (self.range(g), self.range(u));
        let ([a], reads) = carve(self.arena, [self.range(a)]);
        let (g, u) = (MatRef::new(reads.get(g), rows, cols), MatRef::new(reads.get(u), rows, cols));
        let tasks = MatMut::new(a, rows, cols).row_tiles(task_rows(cols));
        let kernels = self.kernels;
        self.pool.run(tasks, |(row, a), _| {
            let m = row..row + a.rows();
            kernels.gate(function(activation), g.rows_range(m.clone()), u.rows_range(m), a);
        });
    }

    pub fn gate_backward(&mut self, step: &Step) {
        let Step::GateBackward { g, u, da, dg, du, activation } = *step else { return };
        let (rows, cols) = (self.rows(), self.cols(g));
        let (g, u, da) = (self.range(g), self.range(u), self.range(da));
        let ([dg, du], reads) = carve(self.arena, [self.range(dg), self.range(du)]);
        let [g, u, da] = [g, u, da].map(|r| MatRef::new(reads.get(r), rows, cols));
        let height = task_rows(cols);
        let tasks = MatMut::new(dg, rows, cols)
            .row_tiles(height)
            .zip(MatMut::new(du, rows, cols).row_tiles(height));
        let kernels = self.kernels;
        self.pool.run(tasks, |((row, dg), (_, du)), _| {
            let m = row..row + dg.rows();
            let [g, u, da] = [g, u, da].map(|x| x.rows_range(m.clone()));
            kernels.gate_backward(function(activation), g, u, da, dg, du);
        });
    }

    pub fn relu(&mut self, x: ValueId, out: ValueId) {
        self.copy(x, out);
        let (rows, cols) = (self.rows(), self.cols(out));
        let range = self.range(out);
        let tasks = MatMut::new(&mut self.arena[range], rows, cols).row_tiles(task_rows(cols));
        let kernels = self.kernels;
        self.pool.run(tasks, |(_, out), _| kernels.relu(out));
    }

    pub fn relu_backward(&mut self, a: ValueId, da: ValueId, dx: ValueId) {
        self.copy(da, dx);
        let (rows, cols) = (self.rows(), self.cols(dx));
        let a = self.range(a);
        let ([d], reads) = carve(self.arena, [self.range(dx)]);
        let a = MatRef::new(reads.get(a), rows, cols);
        let tasks = MatMut::new(d, rows, cols).row_tiles(task_rows(cols));
        let kernels = self.kernels;
        self.pool.run(tasks, |(row, d), _| {
            kernels.relu_backward(a.rows_range(row..row + d.rows()), d);
        });
    }

    pub fn add(&mut self, x: ValueId, y: ValueId, out: ValueId) {
        // x + y has the same bits as y + x, so either may lie where the sum goes.
        let (into, other) = if self.range(out) == self.range(y) { (y, x) } else { (x, y) };
        self.copy(into, out);
        let (rows, cols) = (self.rows(), self.cols(out));
        let other = self.range(other);
        let ([sum], reads) = carve(self.arena, [self.range(out)]);
        let other = MatRef::new(reads.get(other), rows, cols);
        let tasks = MatMut::new(sum, rows, cols).row_tiles(task_rows(cols));
        let kernels = self.kernels;
        self.pool.run(tasks, |(row, sum), _| {
            kernels.add(other.rows_range(row..row + sum.rows()), sum);
        });
    }

    pub fn scale(&mut self, x: ValueId, out: ValueId, factor: f32) {
        self.copy(x, out);
        let (rows, cols) = (self.rows(), self.cols(out));
        let range = self.range(out);
        let tasks = MatMut::new(&mut self.arena[range], rows, cols).row_tiles(task_rows(cols));
        let kernels = self.kernels;
        self.pool.run(tasks, |(_, out), _| kernels.scale_in_place(factor, out));
    }

    pub fn copy(&mut self, x: ValueId, out: ValueId) {
        let (from, to) = (self.range(x), self.range(out));
        if from != to {
            self.arena.copy_within(from, to.start);
        }
    }

    pub fn dropout(&mut self, step: &Step) {
        let Step::Dropout { x, out, site, first_col, total_cols, probability } = *step else {
            return;
        };
        let Some(mask) = self.pass.dropout else {
            self.copy(x, out);
            return;
        };
        let (rows, cols) = (self.rows(), self.cols(x));
        let tensor = self.at.number() << 8 | site;
        let (from, to) = (self.range(x), self.range(out));
        assert!(from != to, "dropout has a buffer of its own");
        let runs = self.runs(task_rows(cols));
        let ([out], reads) = carve(self.arena, [to]);
        let x = MatRef::new(reads.get(from), rows, cols);
        let (kernels, parts) = (self.kernels, &self.band.parts);
        self.pool.run(bands(MatMut::new(out, rows, cols), &runs), |(run, band), _| {
            let (part, m) = &runs[run];
            let part = &parts[*part];
            let key = DropoutKey { seed: mask.seed, step: mask.step, sample: part.sample, tensor };
            let first_row = part.first_position + m.start - part.rows.start;
            let place = DropoutPlace { first_row, first_col, total_cols };
            kernels.dropout(key, place, probability, x.rows_range(m.clone()), band);
        });
    }

    pub fn embedding(&mut self, weight: WeightId, out: ValueId) -> Result<()> {
        let tensor = self.weights.tensor(self.at, weight);
        let row_bytes = tensor.range.len() / tensor.rows.max(1);
        let mut bytes = vec![0; row_bytes];
        let range = self.range(out);
        let ids = &self.pass.ids[self.band.rows.clone()];
        for (id, row) in ids.iter().zip(self.arena[range].chunks_exact_mut(tensor.cols)) {
            let at = tensor.range.start + token(*id, tensor.rows)? * row_bytes;
            self.weights.gguf().map().read_at(at as u64, &mut bytes)?;
            self.kernels.decode_row(tensor.format, &bytes, row);
        }
        Ok(())
    }

    pub fn positions(
        &mut self,
        x: ValueId,
        weight: WeightId,
        first: usize,
        out: ValueId,
    ) -> Result<()> {
        self.copy(x, out);
        let tensor = self.weights.tensor(self.at, weight);
        let row_bytes = tensor.range.len() / tensor.rows.max(1);
        let (mut bytes, mut row) = (vec![0; row_bytes], vec![0.0; tensor.cols]);
        let (rows, range) = (self.rows(), self.range(out));
        let mut sums = MatMut::new(&mut self.arena[range], rows, tensor.cols);
        for part in &self.band.parts {
            for (i, at) in part.rows.clone().enumerate() {
                let position = part.first_position + i;
                let place = first + position;
                if place >= tensor.rows {
                    return Err(Error::Position { position, positions: tensor.rows - first });
                }
                let at_byte = (tensor.range.start + place * row_bytes) as u64;
                self.weights.gguf().map().read_at(at_byte, &mut bytes)?;
                self.kernels.decode_row(tensor.format, &bytes, &mut row);
                sums.row_mut(at).iter_mut().zip(&row).for_each(|(sum, p)| *sum += p);
            }
        }
        Ok(())
    }
}

fn function(activation: smidgen_graph::Activation) -> Activation {
    match activation {
        smidgen_graph::Activation::Silu => Activation::Silu,
        smidgen_graph::Activation::GeluTanh => Activation::GeluTanh,
    }
}
