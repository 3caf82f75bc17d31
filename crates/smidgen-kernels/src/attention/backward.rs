//! Gradients of queries, keys and values.

use std::ops::Range;

use super::forward::head_rows;
use super::panel::Packed;
use super::scores::{PerQuery, view};
use super::{
    AttentionGradient, AttentionTile, KEY_WALK, PART, QUERY_BLOCK, SCORE_STRIDE, blocks,
    blocks_back, split_scratch, trim, within,
};
use crate::arch::{Kernels, MatMut};

impl Kernels {
    /// The gradient `dq`, in the shape of the tile's `q`.
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
        tile.check();
        tile.check_keys();
        gradient.check(tile);
        assert_eq!((dq.rows(), dq.cols()), (tile.q.rows(), tile.q.cols()), "dq");
        let mut dq = dq;
        let ([k_panel, turned_k_panel, turned_v_panel], scores) = split_scratch(scratch);
        for block in blocks(tile.queries(), QUERY_BLOCK) {
            for keys in blocks(tile.keys_of_all(&block), tile.step()) {
                let key_rows = within(&keys, tile.first_key);
                let (k, v) = (tile.k.rows_range(key_rows.clone()), tile.v.rows_range(key_rows));
                let panels = QueryPanels {
                    k: self.pack_straight(k, k_panel),
                    turned_k: self.pack_turned(k, turned_k_panel),
                    turned_v: self.pack_turned(v, turned_v_panel),
                };
                for head in 0..tile.heads() {
                    for part in blocks(block.clone(), PART) {
                        let rows = within(&part, tile.first_query);
                        let dq = head_rows(dq.reborrow(), tile.k.cols(), head, rows);
                        let at = (head, &part, &keys);
                        self.backward_q_part(tile, gradient, at, &panels, dq, scores);
                    }
                }
            }
        }
    }

    /// Adds a step's part to the gradient of some queries of one head.
    fn backward_q_part(
        &self,
        tile: &AttentionTile<'_>,
        gradient: &AttentionGradient<'_>,
        (head, part, keys): (usize, &Range<usize>, &Range<usize>),
        panels: &QueryPanels<'_>,
        dq: MatMut<'_>,
        scores: &mut [f32],
    ) {
        let all = tile.keys_of_all(part);
        let seen = trim(keys, all.clone());
        if seen.is_empty() {
            return;
        }
        let rows = within(part, tile.first_query);
        let cols = within(&seen, keys.start);
        let q = tile.head(tile.q, head).rows_range(rows.clone());
        let d_o = tile.head(gradient.d_o, head).rows_range(rows.clone());
        let per_query = gradient.per_query(head, rows);
        let (s, ds) = scores.split_at_mut(part.len() * SCORE_STRIDE);
        self.product(view(s, part.len(), seen.len()), q, panels.turned_k, cols.clone());
        self.product(view(ds, part.len(), seen.len()), d_o, panels.turned_v, cols.clone());
        self.query_scores(tile, (part, &seen), s, ds, per_query);
        let ds = view(ds, part.len(), seen.len());
        self.add_product((dq, all.start < keys.start), ds.as_ref(), panels.k, cols);
    }

    /// Adds to the gradients `dk` and `dv` (keys x head_dim) of some keys and values what the tile's
    /// queries bring: from the last step of queries to the first, in each head by head.
    ///
    /// Zeros, and then calls for the queries from a whole number of steps on, the last ones first,
    /// give the bits of one call for all of them.
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
        tile.check();
        gradient.check(tile);
        let head_dim = tile.k.cols();
        assert_eq!((dk.rows(), dk.cols()), (tile.k.rows(), head_dim), "dk");
        assert_eq!((dv.rows(), dv.cols()), (tile.k.rows(), head_dim), "dv");
        let (mut dk, mut dv) = (dk, dv);
        for keys in blocks(tile.keys(), KEY_WALK) {
            for block in blocks_back(tile.queries_of_all(&keys), tile.step()) {
                for head in 0..tile.heads() {
                    let at = (head, &keys, &block);
                    let d_kv = (dk.reborrow(), dv.reborrow());
                    self.backward_kv_step(tile, gradient, at, d_kv, scratch);
                }
            }
        }
    }

    /// Adds one step of one head's queries to the gradients of a block of keys and values.
    fn backward_kv_step(
        &self,
        tile: &AttentionTile<'_>,
        gradient: &AttentionGradient<'_>,
        (head, keys, block): (usize, &Range<usize>, &Range<usize>),
        (mut dk, mut dv): (MatMut<'_>, MatMut<'_>),
        scratch: &mut [f32],
    ) {
        let rows = within(block, tile.first_query);
        let q = tile.head(tile.q, head).rows_range(rows.clone());
        let d_o = tile.head(gradient.d_o, head).rows_range(rows.clone());
        let per_query = gradient.per_query(head, rows);
        let ([panel], scores) = split_scratch(scratch);
        let (p, ds) = scores.split_at_mut(KEY_WALK * SCORE_STRIDE);
        let parts = || {
            blocks(keys.clone(), PART).filter_map(|part| {
                let seeing = trim(block, tile.queries_of_all(&part));
                let first = (part.start - keys.start) * SCORE_STRIDE;
                (!seeing.is_empty()).then_some((part, seeing, first))
            })
        };
        for (m, right, s) in [(tile.k, q, &mut *p), (tile.v, d_o, &mut *ds)] {
            let right = self.pack_turned(right, panel);
            for (part, seeing, first) in parts() {
                let left = m.rows_range(within(&part, tile.first_key));
                let s = view(&mut s[first..], part.len(), seeing.len());
                self.product(s, left, right, within(&seeing, block.start));
            }
        }
        for (part, seeing, first) in parts() {
            let per_query = per_query.part(within(&seeing, block.start));
            self.key_scores(tile, (&part, &seeing), &mut p[first..], &mut ds[first..], per_query);
        }
        for (d_kv, right, s) in [(&mut dv, d_o, p), (&mut dk, q, ds)] {
            let right = self.pack_straight(right, panel);
            for (part, seeing, first) in parts() {
                let d_kv = head_rows(d_kv.reborrow(), q.cols(), 0, within(&part, tile.first_key));
                let s = view(&mut s[first..], part.len(), seeing.len());
                self.add_product((d_kv, true), s.as_ref(), right, within(&seeing, block.start));
            }
        }
    }
}

/// A step's keys and values, packed for the gradient of queries.
struct QueryPanels<'a> {
    k: Packed<'a>,
    turned_k: Packed<'a>,
    turned_v: Packed<'a>,
}

impl<'a> AttentionGradient<'a> {
    fn check(&self, tile: &AttentionTile<'_>) {
        let (heads, queries) = (tile.heads(), tile.q.rows());
        assert_eq!((self.d_o.rows(), self.d_o.cols()), (queries, tile.q.cols()), "d_o");
        assert_eq!((self.lse.rows(), self.lse.cols()), (heads, queries), "lse");
        assert_eq!((self.delta.rows(), self.delta.cols()), (heads, queries), "delta");
    }

    fn per_query(&self, head: usize, rows: Range<usize>) -> PerQuery<'a> {
        PerQuery { lse: self.lse.row(head), delta: self.delta.row(head) }.part(rows)
    }
}

impl PerQuery<'_> {
    fn part(self, queries: Range<usize>) -> Self {
        Self { lse: &self.lse[queries.clone()], delta: &self.delta[queries] }
    }
}
