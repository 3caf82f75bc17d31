//! Outputs, log-sum-exp, and the gradient's inner products with the outputs.

use std::ops::Range;

use super::scores::{OnlineSoftmax, view};
use super::{AttentionTile, PART, QUERY_BLOCK, blocks, split_scratch, trim, within};
use crate::arch::{Kernels, MatMut, MatRef};
use crate::lanes;

/// Query heads that share packed keys and values.
const HEADS: usize = 8;

impl Kernels {
    /// The outputs `o` (in the shape of the tile's `q`), and each query's log-sum-exp of the
    /// scaled scores in `lse` (heads x queries).
    ///
    /// # Panics
    /// If a shape does not fit, a head has more than [`super::MAX_HEAD_DIM`] columns, a visible
    /// key is missing or `scratch` is shorter than [`super::ATTENTION_SCRATCH`].
    pub fn attention(
        &self,
        tile: &AttentionTile<'_>,
        o: MatMut<'_>,
        lse: MatMut<'_>,
        scratch: &mut [f32],
    ) {
        tile.check();
        tile.check_keys();
        assert_eq!((o.rows(), o.cols()), (tile.q.rows(), tile.q.cols()), "attention output");
        assert_eq!((lse.rows(), lse.cols()), (tile.heads(), tile.q.rows()), "log-sum-exp");
        let (mut o, mut lse) = (o, lse);
        for block in blocks(tile.queries(), QUERY_BLOCK) {
            for head in (0..tile.heads()).step_by(HEADS) {
                let heads = head..tile.heads().min(head + HEADS);
                self.block(tile, &block, heads, o.reborrow(), lse.reborrow(), scratch);
            }
        }
    }

    /// One block of queries of at most [`HEADS`] heads.
    fn block(
        &self,
        tile: &AttentionTile<'_>,
        block: &Range<usize>,
        heads: Range<usize>,
        mut o: MatMut<'_>,
        mut lse: MatMut<'_>,
        scratch: &mut [f32],
    ) {
        let ([k_panel, v_panel], scores) = split_scratch(scratch);
        let mut states = [OnlineSoftmax::NEW; HEADS];
        for keys in blocks(tile.keys_of_all(block), tile.step()) {
            let key_rows = within(&keys, tile.first_key);
            let k = self.pack_turned(tile.k.rows_range(key_rows.clone()), k_panel);
            let v = self.pack_straight(tile.v.rows_range(key_rows), v_panel);
            for (head, state) in heads.clone().zip(&mut states) {
                for part in blocks(block.clone(), PART) {
                    let all = tile.keys_of_all(&part);
                    let seen = trim(&keys, all.clone());
                    if seen.is_empty() {
                        continue;
                    }
                    let rows = within(&part, tile.first_query);
                    let cols = within(&seen, keys.start);
                    let q = tile.head(tile.q, head).rows_range(rows.clone());
                    let mut o = head_rows(o.reborrow(), tile.k.cols(), head, rows);
                    self.product(view(scores, part.len(), seen.len()), q, k, cols.clone());
                    let state = (&mut *state, part.start - block.start);
                    self.exponentials(tile, (&part, &seen), scores, o.reborrow(), state);
                    let p = view(scores, part.len(), seen.len());
                    self.add_product((o, all.start < keys.start), p.as_ref(), v, cols);
                }
            }
        }
        let rows = within(block, tile.first_query);
        for (head, state) in heads.zip(&states) {
            let o = head_rows(o.reborrow(), tile.k.cols(), head, rows.clone());
            self.normalise(state, o, &mut lse.row_mut(head)[rows.clone()]);
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
}

/// Some rows of one head in a matrix of heads of `head_dim` columns.
pub(super) fn head_rows(
    m: MatMut<'_>,
    head_dim: usize,
    head: usize,
    rows: Range<usize>,
) -> MatMut<'_> {
    let (m, _) = m.split_at_row(rows.end).0.split_at_col((head + 1) * head_dim);
    m.split_at_row(rows.start).1.split_at_col(head * head_dim).1
}
