//! The steps between the products: scores become probabilities, or their gradients.
//!
//! A block of scores has rows [`SCORE_STRIDE`] apart, so that the last vector of a row may be
//! computed whole; what is not visible is replaced by zeros.

use std::ops::Range;

use super::{AttentionTile, LINE, PART, QUERY_BLOCK, SCORE_STRIDE, overlap};
use crate::arch::{Kernels, MatMut};
use crate::exp::exp;
use crate::lanes;

/// A block of scores as a matrix.
pub(super) fn view(scores: &mut [f32], rows: usize, cols: usize) -> MatMut<'_> {
    MatMut::new(scores, rows, SCORE_STRIDE).split_at_col(cols).0
}

/// Each query's maximum and sum over the keys so far.
#[derive(Clone, Copy)]
pub(super) struct OnlineSoftmax {
    max: [f32; QUERY_BLOCK],
    sum: [f32; QUERY_BLOCK],
}

impl OnlineSoftmax {
    /// No key seen. The maximum is finite: exp(MIN - max) is 0, exp(-inf + inf) would be NaN.
    pub const NEW: Self = Self { max: [f32::MIN; QUERY_BLOCK], sum: [0.0; QUERY_BLOCK] };
}

/// What the backward knows of some queries of one head.
#[derive(Clone, Copy)]
pub(super) struct PerQuery<'a> {
    pub lse: &'a [f32],
    pub delta: &'a [f32],
}

/// In all of these `queries` and `keys` are positions.
impl Kernels {
    /// Turns the scores `s` (queries x keys) into exponentials, zero where a key is not visible,
    /// and scales the rows of `o` and the sums where the maximum moved. The first query's state
    /// is at `first` of `state`.
    pub(super) fn exponentials(
        &self,
        tile: &AttentionTile<'_>,
        (queries, keys): (&Range<usize>, &Range<usize>),
        s: &mut [f32],
        o: MatMut<'_>,
        (state, first): (&mut OnlineSoftmax, usize),
    ) {
        self.compiled(
            #[inline(always)]
            || {
                let (mut o, mut factors) = (o, [0.0; PART]);
                let cols = keys.len().next_multiple_of(LINE);
                let rows = s.chunks_exact_mut(SCORE_STRIDE).zip(queries.clone());
                for ((row, query), max) in rows.zip(&mut factors) {
                    hide(&mut row[..cols], keys, tile.keys_of(query), f32::NEG_INFINITY);
                    *max = lanes::max(&row[..cols]);
                }
                let states = first..first + queries.len();
                let max = &mut state.max[states.clone()];
                for (factor, old) in factors.iter_mut().zip(&mut *max) {
                    let new = lanes::larger(*old, *factor * tile.scale);
                    *factor = exp(*old - new);
                    *old = new;
                }
                let states = max.iter().zip(&mut state.sum[states]).zip(factors);
                let rows = s.chunks_exact_mut(SCORE_STRIDE).zip(states);
                for (i, (row, ((&max, sum), factor))) in rows.enumerate() {
                    let added = lanes::map_sum(
                        &mut row[..cols],
                        #[inline(always)]
                        |s| exp(s.mul_add(tile.scale, -max)),
                    );
                    // At the first keys there is no output yet.
                    if *sum > 0.0 && factor != 1.0 {
                        o.row_mut(i).iter_mut().for_each(|o| *o *= factor);
                    }
                    *sum = sum.mul_add(factor, added);
                }
            },
        );
    }

    /// Divides the outputs `o` of a block by their sums.
    pub(super) fn normalise(&self, state: &OnlineSoftmax, o: MatMut<'_>, lse: &mut [f32]) {
        self.compiled(
            #[inline(always)]
            || {
                let mut o = o;
                let states = state.max.iter().zip(&state.sum);
                for (row, (lse, (max, sum))) in lse.iter_mut().zip(states).enumerate() {
                    let factor = 1.0 / sum;
                    o.row_mut(row).iter_mut().for_each(|o| *o *= factor);
                    *lse = max + sum.ln();
                }
            },
        );
    }

    /// Turns `ds` from dp into ds = p (dp - delta) scale, for the scores `s`: both queries x keys.
    pub(super) fn query_scores(
        &self,
        tile: &AttentionTile<'_>,
        (queries, keys): (&Range<usize>, &Range<usize>),
        s: &[f32],
        ds: &mut [f32],
        PerQuery { lse, delta }: PerQuery<'_>,
    ) {
        self.compiled(
            #[inline(always)]
            || {
                let rows = s.chunks_exact(SCORE_STRIDE).zip(ds.chunks_exact_mut(SCORE_STRIDE));
                let per_query = lse.iter().zip(delta);
                let cols = keys.len().next_multiple_of(LINE);
                for ((query, (s, ds)), (lse, delta)) in queries.clone().zip(rows).zip(per_query) {
                    for (ds, s) in ds[..cols].iter_mut().zip(&s[..cols]) {
                        *ds = exp(s.mul_add(tile.scale, -lse)) * (*ds - delta) * tile.scale;
                    }
                    hide(&mut ds[..cols], keys, tile.keys_of(query), 0.0);
                }
            },
        );
    }

    /// Turns `p` from scores into probabilities and `ds` from dp into ds: both keys x queries.
    pub(super) fn key_scores(
        &self,
        tile: &AttentionTile<'_>,
        (keys, queries): (&Range<usize>, &Range<usize>),
        p: &mut [f32],
        ds: &mut [f32],
        per_query: PerQuery<'_>,
    ) {
        let [mut lse, mut delta] = [[0.0; SCORE_STRIDE]; 2];
        lse[..queries.len()].copy_from_slice(per_query.lse);
        delta[..queries.len()].copy_from_slice(per_query.delta);
        self.compiled(
            #[inline(always)]
            || {
                let rows = p.chunks_exact_mut(SCORE_STRIDE).zip(ds.chunks_exact_mut(SCORE_STRIDE));
                let cols = queries.len().next_multiple_of(LINE);
                for (key, (p, ds)) in keys.clone().zip(rows) {
                    let (p, ds) = (&mut p[..cols], &mut ds[..cols]);
                    let per_query = lse[..cols].iter().zip(&delta[..cols]);
                    for ((p, ds), (lse, delta)) in p.iter_mut().zip(&mut *ds).zip(per_query) {
                        *p = exp(p.mul_add(tile.scale, -lse));
                        *ds = *p * (*ds - delta) * tile.scale;
                    }
                    hide(p, queries, tile.queries_of(key), 0.0);
                    hide(ds, queries, tile.queries_of(key), 0.0);
                }
            },
        );
    }
}

/// Puts `value` into what of a row of whole vectors, whose columns are `positions` and padding, is
/// not in `seen`.
#[inline(always)]
fn hide(row: &mut [f32], positions: &Range<usize>, seen: Range<usize>, value: f32) {
    let seen = overlap(positions, seen);
    if seen.len() == row.len() {
        return;
    }
    // At most a step: no number is cut.
    let (start, len) = (seen.start as u32, seen.len() as u32);
    for (col, x) in (0u32..).zip(row) {
        *x = if col.wrapping_sub(start) < len { *x } else { value };
    }
}
