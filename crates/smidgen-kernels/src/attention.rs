//! Causal attention one block of scores at a time, forward and backward.
//!
//! Source: Dao et al., "FlashAttention", 2022, and Dao, "FlashAttention-2", 2023. For one head,
//! with s = scale q kᵀ over the visible keys, p = softmax(s) and o = p v:
//!
//!   forward   o, and lse = log Σ exp s for each query;
//!   delta     Σ do o for each query;
//!   backward  p = exp(s - lse), dp = do vᵀ, ds = p (dp - delta) scale,
//!             dq = ds k, dk = dsᵀ q, dv = pᵀ do.
//!
//! Nothing of size queries x keys is kept. Blocks are aligned to positions of the segment, so a
//! result does not depend on how queries or keys are cut into tiles of whole blocks. The products
//! go through [`Kernels::gemm`]; the backward of keys and values computes the scores transposed,
//! so that every product there has its operands as they lie in memory.

use std::ops::Range;

use crate::arch::{Kernels, MatMut, MatRef};
use crate::exp::exp;
use crate::gemm::{GEMM_SCRATCH, Init, Matrix, Operand, Term};
use crate::lanes;

/// Queries that walk the keys together: a tile of a forward or of dq is whole blocks of these.
pub const QUERY_BLOCK: usize = 64;

/// Keys that walk the queries together: a tile of dk and dv is whole blocks of these.
pub const KEY_BLOCK: usize = 64;

/// Keys, or queries, of one step of such a walk. Longer steps make better products, and unlike
/// longer blocks they compute no more pairs that the causal order hides.
const STEP: usize = 128;

/// Scores of a block and a step.
const SCORES: usize = STEP * if QUERY_BLOCK > KEY_BLOCK { QUERY_BLOCK } else { KEY_BLOCK };

/// Numbers that every attention call needs as scratch: two sets of scores and the GEMM's.
pub const ATTENTION_SCRATCH: usize = 2 * SCORES + GEMM_SCRATCH;

/// Queries and keys of one segment (one sequence) and one key-value head.
///
/// Positions count from the segment's start. Query i sees key j where j <= i and, under a window
/// w, i - w < j.
#[derive(Clone, Copy, Debug)]
pub struct AttentionTile<'a> {
    /// Queries x head_dim; in [`Kernels::attention_backward_kv`] queries x group * head_dim.
    pub q: MatRef<'a>,
    /// Keys x head_dim.
    pub k: MatRef<'a>,
    /// Keys x head_dim.
    pub v: MatRef<'a>,
    /// Position of the first row of `q`.
    pub first_query: usize,
    /// Position of the first row of `k` and `v`.
    pub first_key: usize,
    /// Factor of the scores, above zero: usually 1 / sqrt(head_dim).
    pub scale: f32,
    /// How many keys a query sees at most, itself included; all before it where `None`.
    pub window: Option<usize>,
}

/// What the backward of some queries needs beside the forward's inputs. Rows of `lse` and `delta`
/// are query heads, their columns the queries of the tile.
#[derive(Clone, Copy, Debug)]
pub struct AttentionGradient<'a> {
    /// Gradient of the output, in the shape of the tile's `q`.
    pub d_o: MatRef<'a>,
    /// The forward's log-sum-exp, heads x queries.
    pub lse: MatRef<'a>,
    /// [`Kernels::attention_delta`], heads x queries.
    pub delta: MatRef<'a>,
}

impl AttentionTile<'_> {
    /// Positions of the keys that the query at a position sees.
    #[inline(always)]
    fn keys_of(&self, query: usize) -> Range<usize> {
        let first = self.window.map_or(0, |window| (query + 1).saturating_sub(window));
        first..query + 1
    }

    /// Positions of the queries, up to the tile's last, that see the key at a position.
    #[inline(always)]
    fn queries_of(&self, key: usize) -> Range<usize> {
        let end = self.first_query + self.q.rows();
        key..self.window.map_or(end, |window| end.min(key.saturating_add(window)))
    }

    /// Positions of the keys that the tile has.
    fn keys(&self) -> Range<usize> {
        self.first_key..self.first_key + self.k.rows()
    }

    fn check(&self, heads: usize) {
        assert_eq!(self.q.cols(), heads * self.k.cols(), "columns of q and k");
        assert_eq!((self.k.rows(), self.k.cols()), (self.v.rows(), self.v.cols()), "k and v");
        assert_ne!(self.window, Some(0), "a query sees at least itself");
        assert!(self.scale > 0.0, "attention scale {}", self.scale);
    }

    /// Every query of a forward or of a query's backward finds all keys that it sees.
    fn check_keys(&self) {
        if self.q.rows() > 0 {
            let seen = self.keys_of(self.first_query).start..self.first_query + self.q.rows();
            let keys = self.keys();
            assert!(keys.start <= seen.start && seen.end <= keys.end, "keys {keys:?} of {seen:?}");
        }
    }
}

impl Kernels {
    /// The outputs `o` (queries x head_dim) of one query head, and each query's log-sum-exp of
    /// the scaled scores in `lse` (queries).
    ///
    /// # Panics
    /// If a shape does not fit, a visible key is missing or `scratch` is shorter than
    /// [`ATTENTION_SCRATCH`].
    pub fn attention(
        &self,
        tile: &AttentionTile<'_>,
        o: MatMut<'_>,
        lse: &mut [f32],
        scratch: &mut [f32],
    ) {
        tile.check(1);
        tile.check_keys();
        assert_eq!((o.rows(), o.cols()), (tile.q.rows(), tile.q.cols()), "attention output");
        assert_eq!(lse.len(), tile.q.rows(), "attention log-sum-exp");
        let (scores, _, scratch) = split_scratch(scratch);
        let mut rest = o;
        for block in blocks(tile.first_query..tile.first_query + tile.q.rows(), QUERY_BLOCK) {
            let local = within(&block, tile.first_query);
            let (mut o, below) = rest.split_at_row(local.len());
            rest = below;
            let q = tile.q.rows_range(local.clone());
            let mut rows = [OnlineSoftmax::NEW; QUERY_BLOCK];
            let rows = &mut rows[..block.len()];
            let seen = tile.keys_of(block.start).start..block.end;
            for keys in blocks(seen.clone(), STEP) {
                let key_rows = within(&keys, tile.first_key);
                let mut s = MatMut::new(scores, block.len(), keys.len());
                let k = tile.k.rows_range(key_rows.clone());
                self.product(s.reborrow(), Init::Zero, q, k, true, scratch);
                self.exponentials(tile, &block, &keys, s.reborrow(), o.reborrow(), rows);
                let init = if keys.start == seen.start { Init::Zero } else { Init::Keep };
                let v = tile.v.rows_range(key_rows);
                self.product(o.reborrow(), init, s.as_ref(), v, false, scratch);
            }
            self.normalise(rows, o, &mut lse[local]);
        }
    }

    /// `delta[i]` = the inner product of the rows `d_o[i]` and `o[i]` (both queries x head_dim).
    ///
    /// # Panics
    /// If a shape does not fit.
    pub fn attention_delta(&self, d_o: MatRef<'_>, o: MatRef<'_>, delta: &mut [f32]) {
        assert_eq!((o.rows(), o.cols()), (d_o.rows(), d_o.cols()), "attention output's gradient");
        assert_eq!(delta.len(), o.rows(), "attention delta");
        self.compiled(
            #[inline(always)]
            || {
                for (row, delta) in delta.iter_mut().enumerate() {
                    *delta = lanes::dot(d_o.row(row), o.row(row));
                }
            },
        );
    }

    /// The gradient `dq` (queries x head_dim) of one query head. `lse` and `delta` have one row.
    ///
    /// # Panics
    /// As [`Kernels::attention`].
    pub fn attention_backward_q(
        &self,
        tile: &AttentionTile<'_>,
        gradient: &AttentionGradient<'_>,
        dq: MatMut<'_>,
        scratch: &mut [f32],
    ) {
        tile.check(1);
        tile.check_keys();
        gradient.check(tile, 1);
        assert_eq!((dq.rows(), dq.cols()), (tile.q.rows(), tile.q.cols()), "dq");
        let (scores, d_scores, scratch) = split_scratch(scratch);
        let mut rest = dq;
        for block in blocks(tile.first_query..tile.first_query + tile.q.rows(), QUERY_BLOCK) {
            let local = within(&block, tile.first_query);
            let (mut dq, below) = rest.split_at_row(local.len());
            rest = below;
            let q = tile.q.rows_range(local.clone());
            let d_o = gradient.d_o.rows_range(local.clone());
            let lse = &gradient.lse.row(0)[local.clone()];
            let delta = &gradient.delta.row(0)[local];
            let seen = tile.keys_of(block.start).start..block.end;
            for keys in blocks(seen.clone(), STEP) {
                let key_rows = within(&keys, tile.first_key);
                let (k, v) = (tile.k.rows_range(key_rows.clone()), tile.v.rows_range(key_rows));
                let mut s = MatMut::new(scores, block.len(), keys.len());
                let mut ds = MatMut::new(d_scores, block.len(), keys.len());
                self.product(s.reborrow(), Init::Zero, q, k, true, scratch);
                self.product(ds.reborrow(), Init::Zero, d_o, v, true, scratch);
                self.query_scores(tile, (&block, &keys), s.as_ref(), ds.reborrow(), (lse, delta));
                let init = if keys.start == seen.start { Init::Zero } else { Init::Keep };
                self.product(dq.reborrow(), init, ds.as_ref(), k, false, scratch);
            }
        }
    }

    /// The gradients `dk` and `dv` (keys x head_dim) of some keys and values, from the queries of
    /// every query head of their group: head by head, and within a head in order of position.
    ///
    /// The tile holds those keys and every query that sees one of them; its `q` and the
    /// gradient's `d_o` have the group's heads side by side, `lse` and `delta` a row a head.
    ///
    /// # Panics
    /// As [`Kernels::attention`].
    pub fn attention_backward_kv(
        &self,
        tile: &AttentionTile<'_>,
        gradient: &AttentionGradient<'_>,
        dk: MatMut<'_>,
        dv: MatMut<'_>,
        scratch: &mut [f32],
    ) {
        let head_dim = tile.k.cols();
        let group = tile.q.cols().checked_div(head_dim).unwrap_or(0);
        tile.check(group);
        gradient.check(tile, group);
        assert!(tile.k.rows() == 0 || tile.first_query <= tile.first_key, "queries of the keys");
        assert_eq!((dk.rows(), dk.cols()), (tile.k.rows(), head_dim), "dk");
        assert_eq!((dv.rows(), dv.cols()), (tile.k.rows(), head_dim), "dv");
        let mut rest = (dk, dv);
        for keys in blocks(tile.keys(), KEY_BLOCK) {
            let (mut dk, dk_below) = rest.0.split_at_row(keys.len());
            let (mut dv, dv_below) = rest.1.split_at_row(keys.len());
            rest = (dk_below, dv_below);
            for row in 0..keys.len() {
                dk.row_mut(row).fill(0.0);
                dv.row_mut(row).fill(0.0);
            }
            for head in 0..group {
                let cols = head * head_dim..(head + 1) * head_dim;
                let q = tile.q.cols_range(cols.clone());
                let head_tile = AttentionTile { q, ..*tile };
                let head_gradient = AttentionGradient {
                    d_o: gradient.d_o.cols_range(cols),
                    lse: gradient.lse.rows_range(head..head + 1),
                    delta: gradient.delta.rows_range(head..head + 1),
                };
                let d_kv = (dk.reborrow(), dv.reborrow());
                self.backward_kv_head(&head_tile, &head_gradient, &keys, d_kv, scratch);
            }
        }
    }

    /// Adds one query head's part to the gradients of one block of keys and values.
    fn backward_kv_head(
        &self,
        tile: &AttentionTile<'_>,
        gradient: &AttentionGradient<'_>,
        keys: &Range<usize>,
        (mut dk, mut dv): (MatMut<'_>, MatMut<'_>),
        scratch: &mut [f32],
    ) {
        let key_rows = within(keys, tile.first_key);
        let (k, v) = (tile.k.rows_range(key_rows.clone()), tile.v.rows_range(key_rows));
        let (scores, d_scores, scratch) = split_scratch(scratch);
        let seeing = keys.start..tile.queries_of(keys.end - 1).end;
        for block in blocks(seeing, STEP) {
            let local = within(&block, tile.first_query);
            let q = tile.q.rows_range(local.clone());
            let d_o = gradient.d_o.rows_range(local.clone());
            let lse = &gradient.lse.row(0)[local.clone()];
            let delta = &gradient.delta.row(0)[local];
            let mut p = MatMut::new(scores, keys.len(), block.len());
            let mut ds = MatMut::new(d_scores, keys.len(), block.len());
            self.product(p.reborrow(), Init::Zero, k, q, true, scratch);
            self.product(ds.reborrow(), Init::Zero, v, d_o, true, scratch);
            self.key_scores(tile, (keys, &block), p.reborrow(), ds.reborrow(), (lse, delta));
            self.product(dv.reborrow(), Init::Keep, p.as_ref(), d_o, false, scratch);
            self.product(dk.reborrow(), Init::Keep, ds.as_ref(), q, false, scratch);
        }
    }

    /// c = init + a b, or a bᵀ.
    fn product(
        &self,
        c: MatMut<'_>,
        init: Init<'_>,
        a: MatRef<'_>,
        b: MatRef<'_>,
        transposed: bool,
        scratch: &mut [f32],
    ) {
        let b = Operand { matrix: Matrix::Dense(b), transposed };
        self.gemm(c, init, 1.0, &[Term { a, b }], scratch);
    }
}

impl AttentionGradient<'_> {
    fn check(&self, tile: &AttentionTile<'_>, heads: usize) {
        let queries = tile.q.rows();
        assert_eq!((self.d_o.rows(), self.d_o.cols()), (queries, tile.q.cols()), "d_o");
        assert_eq!((self.lse.rows(), self.lse.cols()), (heads, queries), "lse");
        assert_eq!((self.delta.rows(), self.delta.cols()), (heads, queries), "delta");
    }
}

/// A query's maximum and sum over the keys so far.
#[derive(Clone, Copy)]
struct OnlineSoftmax {
    max: f32,
    sum: f32,
}

impl OnlineSoftmax {
    /// No key seen. The maximum is finite: exp(MIN - max) is 0, exp(-inf + inf) would be NaN.
    const NEW: Self = Self { max: f32::MIN, sum: 0.0 };
}

/// The steps between the products. `block` and `keys` are positions.
impl Kernels {
    /// Turns the scores `s` (queries x keys) into exponentials, zero where a key is not visible,
    /// and scales the rows of `o` and the sums where the maximum moved.
    fn exponentials(
        &self,
        tile: &AttentionTile<'_>,
        block: &Range<usize>,
        keys: &Range<usize>,
        s: MatMut<'_>,
        o: MatMut<'_>,
        rows: &mut [OnlineSoftmax],
    ) {
        self.compiled(
            #[inline(always)]
            || {
                let (mut s, mut o) = (s, o);
                for (row, (query, state)) in block.clone().zip(rows).enumerate() {
                    let s = visible(s.row_mut(row), keys, tile.keys_of(query));
                    let max = lanes::larger(state.max, lanes::max(s) * tile.scale);
                    let factor = exp(state.max - max);
                    let sum = lanes::map_sum(
                        s,
                        #[inline(always)]
                        |s| exp(s.mul_add(tile.scale, -max)),
                    );
                    state.sum = state.sum.mul_add(factor, sum);
                    state.max = max;
                    if factor != 1.0 {
                        o.row_mut(row).iter_mut().for_each(|o| *o *= factor);
                    }
                }
            },
        );
    }

    fn normalise(&self, rows: &[OnlineSoftmax], o: MatMut<'_>, lse: &mut [f32]) {
        self.compiled(
            #[inline(always)]
            || {
                let mut o = o;
                for (row, (state, lse)) in rows.iter().zip(lse).enumerate() {
                    let factor = 1.0 / state.sum;
                    o.row_mut(row).iter_mut().for_each(|o| *o *= factor);
                    *lse = state.max + state.sum.ln();
                }
            },
        );
    }

    /// Turns `ds` from dp into ds = p (dp - delta) scale, for the scores `s`: both queries x keys.
    fn query_scores(
        &self,
        tile: &AttentionTile<'_>,
        (block, keys): (&Range<usize>, &Range<usize>),
        s: MatRef<'_>,
        ds: MatMut<'_>,
        (lse, delta): (&[f32], &[f32]),
    ) {
        self.compiled(
            #[inline(always)]
            || {
                let mut ds = ds;
                for (row, query) in block.clone().enumerate() {
                    let (lse, delta) = (lse[row], delta[row]);
                    let seen = overlap(keys, tile.keys_of(query));
                    let s = &s.row(row)[seen];
                    let ds = visible(ds.row_mut(row), keys, tile.keys_of(query));
                    for (ds, s) in ds.iter_mut().zip(s) {
                        *ds = exp(s.mul_add(tile.scale, -lse)) * (*ds - delta) * tile.scale;
                    }
                }
            },
        );
    }

    /// Turns `p` from scores into probabilities and `ds` from dp into ds: both keys x queries.
    fn key_scores(
        &self,
        tile: &AttentionTile<'_>,
        (keys, block): (&Range<usize>, &Range<usize>),
        p: MatMut<'_>,
        ds: MatMut<'_>,
        (lse, delta): (&[f32], &[f32]),
    ) {
        self.compiled(
            #[inline(always)]
            || {
                let (mut p, mut ds) = (p, ds);
                for (row, key) in keys.clone().enumerate() {
                    let seeing = overlap(block, tile.queries_of(key));
                    let (lse, delta) = (&lse[seeing.clone()], &delta[seeing]);
                    let p = visible(p.row_mut(row), block, tile.queries_of(key));
                    let ds = visible(ds.row_mut(row), block, tile.queries_of(key));
                    for (((p, ds), lse), delta) in p.iter_mut().zip(ds).zip(lse).zip(delta) {
                        *p = exp(p.mul_add(tile.scale, -lse));
                        *ds = *p * (*ds - delta) * tile.scale;
                    }
                }
            },
        );
    }
}

/// The part of a row of scores, whose columns are the positions `cols`, that is visible; the
/// rest becomes zero.
#[inline(always)]
fn visible<'a>(row: &'a mut [f32], cols: &Range<usize>, seen: Range<usize>) -> &'a mut [f32] {
    let seen = overlap(cols, seen);
    row[..seen.start].fill(0.0);
    row[seen.end..].fill(0.0);
    &mut row[seen]
}

/// The columns, of those at positions `cols`, whose positions are in `seen`.
#[inline(always)]
fn overlap(cols: &Range<usize>, seen: Range<usize>) -> Range<usize> {
    let start = seen.start.clamp(cols.start, cols.end);
    let end = seen.end.clamp(start, cols.end);
    start - cols.start..end - cols.start
}

/// Rows of a matrix whose first row is at position `first`.
fn within(positions: &Range<usize>, first: usize) -> Range<usize> {
    positions.start - first..positions.end - first
}

/// Cuts a range of positions where a multiple of `size` stands.
fn blocks(positions: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = positions.start;
    std::iter::from_fn(move || {
        let block = start..positions.end.min((start / size + 1) * size);
        start = block.end;
        (!block.is_empty()).then_some(block)
    })
}

/// Two blocks of scores, and what is left for the GEMM.
fn split_scratch(scratch: &mut [f32]) -> (&mut [f32], &mut [f32], &mut [f32]) {
    assert!(scratch.len() >= ATTENTION_SCRATCH, "attention scratch of {}", scratch.len());
    let (scores, rest) = scratch.split_at_mut(SCORES);
    let (d_scores, rest) = rest.split_at_mut(SCORES);
    (scores, d_scores, rest)
}
