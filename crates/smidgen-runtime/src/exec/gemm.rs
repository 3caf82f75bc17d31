//! Products: GEMM steps and the gradients of LoRA factors.

use std::ops::Range;

use smidgen_graph::{ParamId, Source, Start, Term as Product, ValueId};
use smidgen_kernels::{Init, MatMut, MatRef, Matrix, Operand, Term};

use super::Frame;
use crate::arena::carve;

/// Columns of an output tile where the reduction runs along the stored rows, and where it runs
/// down them. Both are whole blocks of every format; the wider one reads whole cache lines.
const TILE_ALONG: usize = 128;
const TILE_DOWN: usize = 256;

/// Outputs narrower than this are cut into bands of rows.
const NARROW: usize = 64;

/// Rows of the smallest band: whole panels of the widest micro-kernel.
const BAND: usize = 56;

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
            Start::Bias(id) => Some(self.weights.vector(self.at, id)),
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
        let init = |tile: &Range<usize>| match (start, bias) {
            (Start::Value(_), _) => Init::Keep,
            (_, Some(bias)) => Init::Bias(&bias[tile.clone()]),
            _ => Init::Zero,
        };
        let along = products.iter().all(|p| p.transposed);
        let (width, height) = tile_shape(rows, cols, along, self.pool.threads());
        let tiles = MatMut::new(c, rows, cols)
            .col_tiles(width)
            .flat_map(|(col, tile)| tile.row_tiles(height).map(move |(row, t)| (row, col, t)));
        let kernels = self.kernels;
        self.pool.run(tiles, |(row, col, tile), scratch| {
            let n = col..col + tile.cols();
            let m = row..row + tile.rows();
            let local: Vec<Term<'_>> = terms.iter().map(|t| part(t, &m, &n)).collect();
            kernels.gemm(tile, init(&n), scale, &local, scratch);
        });
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
        let (kernels, segments) = (self.kernels, &self.pass.segments);
        self.pool.run(c.col_tiles(TILE_DOWN), |(col, mut tile), scratch| {
            for segment in segments {
                let n = col..col + tile.cols();
                let l = l.rows_range(segment.rows.clone());
                let r = r.rows_range(segment.rows.clone()).cols_range(n);
                kernels.gemm_tn(tile.reborrow(), true, l, r, scratch);
            }
        });
    }
}

/// The rows `m` and columns `n` of a product.
fn part<'a>(term: &Term<'a>, m: &Range<usize>, n: &Range<usize>) -> Term<'a> {
    let Operand { matrix, transposed } = term.b;
    let matrix = match (matrix, transposed) {
        (Matrix::Dense(b), true) => Matrix::Dense(b.rows_range(n.clone())),
        (Matrix::Dense(b), false) => Matrix::Dense(b.cols_range(n.clone())),
        (Matrix::Quant(b), true) => Matrix::Quant(b.rows_range(n.clone())),
        (Matrix::Quant(b), false) => Matrix::Quant(b.cols_range(n.clone())),
    };
    Term { a: term.a.rows_range(m.clone()), b: Operand { matrix, transposed } }
}

/// Width and height of the tiles of an output: whole columns where there are enough of them for
/// all threads, so that a weight is unpacked once; else bands of rows too. The shape has no
/// influence on results.
fn tile_shape(rows: usize, cols: usize, along: bool, threads: usize) -> (usize, usize) {
    let width = if along { TILE_ALONG } else { TILE_DOWN };
    let across = if cols <= NARROW { 1 } else { cols.div_ceil(width) };
    let width = if cols <= NARROW { cols } else { width };
    let down = (2 * threads).div_ceil(across);
    if threads == 1 || across >= 2 * threads {
        return (width, rows.max(1));
    }
    (width, rows.div_ceil(down).next_multiple_of(BAND))
}
