//! Products: GEMM steps and the gradients of LoRA factors.

use std::ops::Range;

use smidgen_graph::{GRAIN, ParamId, Source, Start, Term as Product, ValueId};
use smidgen_kernels::{Init, MatMut, MatRef, Matrix, Operand, Term, Tiling};

use super::Frame;
use crate::arena::carve;

impl Frame<'_> {
    pub fn gemm(&mut self, out: ValueId, start: Start, scale: f32, products: &[Product]) {
        let (rows, cols) = (self.rows(), self.cols(out));
        let range = self.range(out);
        if let Start::Value(v) = start {
            let from = self.range(v);
            if from != range {
                self.arena.copy_within(from, range.start);
            }
        }
        let bias = match start {
            Start::Bias { vector, first } => {
                Some(&self.weights.vector(self.at, vector)[first..first + cols])
            }
            _ => None,
        };
        let places: Vec<Range<usize>> = products.iter().map(|p| self.range(p.a)).collect();
        let (block, params, weights, at) = (self.block, self.params, self.weights, self.at);
        let values = &self.program.values;
        let ([c], reads) = carve(self.arena, [range]);
        let terms: Vec<Term<'_>> = products
            .iter()
            .zip(places)
            .map(|(p, place)| {
                let a = MatRef::new(reads.get(place), rows, values[p.a.0 as usize].cols);
                let matrix = match p.b {
                    Source::Weight(id) => {
                        let whole = weights.matrix(at, id).rows_range(p.rows.clone());
                        Matrix::Quant(whole.cols_range(p.cols.clone()))
                    }
                    Source::Param(id) => {
                        let slot = &block.params[id.0 as usize];
                        let data = &params[block.param_range(id)];
                        let whole = MatRef::new(data, slot.rows, slot.cols);
                        Matrix::Dense(whole.rows_range(p.rows.clone()).cols_range(p.cols.clone()))
                    }
                };
                let b = Operand { matrix, transposed: p.transposed };
                Term { a: a.cols_range(p.a_cols.clone()), b }
            })
            .collect();
        let init = match (start, bias) {
            (Start::Value(_), _) => Init::Keep,
            (_, Some(bias)) => Init::Bias(bias),
            _ => Init::Zero,
        };
        self.pool.gemm(self.kernels, MatMut::new(c, rows, cols), init, scale, &terms);
    }

    pub fn param_gradient(
        &mut self,
        param: ParamId,
        cols: &Range<usize>,
        left: ValueId,
        right: ValueId,
    ) {
        let rows = self.rows();
        let l = MatRef::new(&self.arena[self.range(left)], rows, self.cols(left));
        let r = MatRef::new(&self.arena[self.range(right)], rows, self.cols(right));
        let slot = &self.block.params[param.0 as usize];
        let gradient = &mut self.gradients[self.block.param_range(param)];
        let whole = MatMut::new(gradient, slot.rows, slot.cols);
        let (_, from) = whole.split_at_col(cols.start);
        let (c, _) = from.split_at_col(cols.len());
        let (kernels, parts) = (self.kernels, &self.band.parts);
        let tiling = Tiling { unit: 1, threads: self.pool.threads() };
        self.pool.run(tiling.tasks(c), |(row, col, mut tile), scratch| {
            let (m, n) = (row..row + tile.rows(), col..col + tile.cols());
            for part in parts {
                // From the last grain back, as bands of rows come.
                for start in part.rows.clone().step_by(GRAIN).rev() {
                    let grain = start..part.rows.end.min(start + GRAIN);
                    let l = l.rows_range(grain.clone()).cols_range(m.clone());
                    let r = r.rows_range(grain).cols_range(n.clone());
                    kernels.gemm_tn(tile.reborrow(), true, l, r, scratch);
                }
            }
        });
    }
}
