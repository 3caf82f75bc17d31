//! Attention, forward and backward: tasks are (block of queries, key head) and (block of keys, key
//! head), each with all query heads of the group, so that every output has one owner and every sum
//! one order. The block with the most to do comes first, so that the threads end together.

use std::ops::Range;

use smidgen_graph::{AttentionShape, Step, ValueId};
use smidgen_kernels::{
    AttentionGradient, AttentionTile, KEY_BLOCK, KEY_WALK, MatMut, MatRef, QUERY_BLOCK,
};

use super::{Frame, bands};
use crate::arena::{Reads, carve};
use crate::pass::Segment;
use crate::weights::BlockAt;

/// What both directions read of the forward.
struct Operands<'a> {
    q: MatRef<'a>,
    k: MatRef<'a>,
    v: MatRef<'a>,
    shape: AttentionShape,
    segments: &'a [Segment],
    /// Whether k and v are those of a cache, all positions from 0 on.
    cached: bool,
}

impl<'a> Operands<'a> {
    /// The columns of a key head in `k`, and those of its group in `q`.
    fn cols(&self, kv: usize) -> [Range<usize>; 2] {
        let (d, group) = (self.shape.head_dim, self.shape.heads / self.shape.kv_heads);
        [d, group * d].map(|cols| kv * cols..(kv + 1) * cols)
    }

    /// The queries of `rows` of a key head's group with the keys of their sequence.
    fn queries(&self, kv: usize, segment: usize, rows: &Range<usize>) -> AttentionTile<'a> {
        let [key_cols, query_cols] = self.cols(kv);
        let segment = &self.segments[segment];
        let keys = if self.cached { 0..self.k.rows() } else { segment.rows.clone() };
        let key_part = |m: MatRef<'a>| m.rows_range(keys.clone()).cols_range(key_cols.clone());
        AttentionTile {
            q: self.q.rows_range(rows.clone()).cols_range(query_cols),
            k: key_part(self.k),
            v: key_part(self.v),
            first_query: segment.first_position + rows.start - segment.rows.start,
            first_key: 0,
            scale: self.shape.scale,
            window: self.shape.window,
        }
    }

    /// The keys of `rows` of a key head with all queries of their group that may see them, and
    /// those queries' rows.
    fn keys(
        &self,
        kv: usize,
        segment: usize,
        rows: &Range<usize>,
    ) -> (AttentionTile<'a>, Range<usize>) {
        let [key_cols, query_cols] = self.cols(kv);
        let segment = &self.segments[segment].rows;
        let end =
            self.shape.window.map_or(segment.end, |w| segment.end.min(rows.end.saturating_add(w)));
        let queries = rows.start..end;
        let key_part = |m: MatRef<'a>| m.rows_range(rows.clone()).cols_range(key_cols.clone());
        let tile = AttentionTile {
            q: self.q.rows_range(queries.clone()).cols_range(query_cols),
            k: key_part(self.k),
            v: key_part(self.v),
            first_query: rows.start - segment.start,
            first_key: rows.start - segment.start,
            scale: self.shape.scale,
            window: self.shape.window,
        };
        (tile, queries)
    }
}

impl Frame<'_> {
    pub fn attention(&mut self, step: &Step) {
        let Step::Attention { q, k, v, o, lse, shape } = *step else { return };
        let rows = self.rows();
        let runs = self.runs(QUERY_BLOCK);
        let [q, k, v] = [q, k, v].map(|v| self.range(v));
        let ([o, lse], reads) = carve(self.arena, [self.range(o), self.range(lse)]);
        let (mut keys, mut values) = (reads.get(k), reads.get(v));
        let cached = self.cache.is_some();
        if let (Some(cache), BlockAt::Layer(layer), Some(segment)) =
            (&mut self.cache, self.at, self.pass.segments.first())
        {
            (keys, values) = cache.append(layer, segment.first_position, keys, values);
        }
        let key_rows = keys.len() / shape.key_cols();
        let operands = Operands {
            q: MatRef::new(reads.get(q), rows, shape.query_cols()),
            k: MatRef::new(keys, key_rows, shape.key_cols()),
            v: MatRef::new(values, key_rows, shape.key_cols()),
            shape,
            segments: &self.pass.segments,
            cached,
        };
        let group = shape.heads / shape.kv_heads;
        let runs = runs.as_slice();
        let o = last_bands(MatMut::new(o, rows, shape.query_cols()), runs);
        let lse = last_col_bands(MatMut::new(lse, shape.heads, rows), runs);
        let tasks = o.zip(lse).flat_map(|((run, o), lse)| {
            let heads = o.col_tiles(group * shape.head_dim).zip(lse.row_tiles(group));
            heads.enumerate().map(move |(kv, ((_, o), (_, lse)))| (kv, run, o, lse))
        });
        let kernels = self.kernels;
        self.pool.run(tasks, |(kv, run, o, lse), scratch| {
            let (segment, rows) = &runs[run];
            kernels.attention(&operands.queries(kv, *segment, rows), o, lse, scratch);
        });
    }

    pub fn attention_delta(&mut self, step: &Step) {
        let Step::AttentionDelta { o, d_o, delta, shape } = *step else { return };
        let rows = self.rows();
        let (o, d_o) = (self.range(o), self.range(d_o));
        let ([delta], reads) = carve(self.arena, [self.range(delta)]);
        let matrix = |r| MatRef::new(reads.get(r), rows, shape.query_cols());
        let (o, d_o) = (matrix(o), matrix(d_o));
        let kernels = self.kernels;
        self.pool.run(delta.chunks_exact_mut(rows).enumerate(), |(head, delta), _| {
            let cols = head * shape.head_dim..(head + 1) * shape.head_dim;
            kernels.attention_delta(d_o.cols_range(cols.clone()), o.cols_range(cols), delta);
        });
    }

    pub fn attention_backward_q(&mut self, step: &Step) {
        let Step::AttentionBackwardQ { q, k, v, d_o, lse, delta, dq, shape } = *step else {
            return;
        };
        let rows = self.rows();
        let runs = self.runs(QUERY_BLOCK);
        let saved = Saved::places(self, [q, k, v], [d_o, lse, delta], shape);
        let ([dq], reads) = carve(self.arena, [self.range(dq)]);
        let (operands, gradient) = saved.read(&reads, &self.pass.segments, rows);
        let group = shape.heads / shape.kv_heads;
        let runs = runs.as_slice();
        let dq = last_bands(MatMut::new(dq, rows, shape.query_cols()), runs);
        let tasks = dq.flat_map(|(run, dq)| {
            let heads = dq.col_tiles(group * shape.head_dim).enumerate();
            heads.map(move |(kv, (_, dq))| (kv, run, dq))
        });
        let kernels = self.kernels;
        self.pool.run(tasks, |(kv, run, dq), scratch| {
            let (segment, rows) = &runs[run];
            let local = gradient.part(&operands, kv, rows);
            let tile = operands.queries(kv, *segment, rows);
            kernels.attention_backward_q(&tile, &local, dq, scratch);
        });
    }

    pub fn attention_backward_kv(&mut self, step: &Step) {
        let Step::AttentionBackwardKv { q, k, v, d_o, lse, delta, dk, dv, shape } = *step else {
            return;
        };
        let rows = self.rows();
        // Whole walks are less work, but a thread with nothing to do is worse.
        let walks = self.runs(KEY_WALK);
        let enough = walks.len() * shape.kv_heads >= 2 * self.pool.threads();
        let runs = if enough { walks } else { self.runs(KEY_BLOCK) };
        let saved = Saved::places(self, [q, k, v], [d_o, lse, delta], shape);
        let ([dk, dv], reads) = carve(self.arena, [self.range(dk), self.range(dv)]);
        let (operands, gradient) = saved.read(&reads, &self.pass.segments, rows);
        let runs = runs.as_slice();
        let [dk, dv] = [dk, dv].map(|d| bands(MatMut::new(d, rows, shape.key_cols()), runs));
        let tasks = dk.zip(dv).flat_map(|((run, dk), (_, dv))| {
            let heads = dk.col_tiles(shape.head_dim).zip(dv.col_tiles(shape.head_dim));
            heads.enumerate().map(move |(kv, ((_, dk), (_, dv)))| (kv, run, dk, dv))
        });
        let kernels = self.kernels;
        self.pool.run(tasks, |(kv, run, dk, dv), scratch| {
            let (segment, rows) = &runs[run];
            let (tile, queries) = operands.keys(kv, *segment, rows);
            let local = gradient.part(&operands, kv, &queries);
            kernels.attention_backward_kv(&tile, &local, dk, dv, scratch);
        });
    }
}

/// Bands of a matrix, one a run, from the last run back: the last queries see the most keys.
fn last_bands<'a>(
    mat: MatMut<'a>,
    runs: &'a [(usize, Range<usize>)],
) -> impl Iterator<Item = (usize, MatMut<'a>)> + Send {
    let mut rest = Some(mat);
    runs.iter().enumerate().rev().filter_map(move |(i, (_, rows))| {
        let (above, band) = rest.take()?.split_at_row(rows.start);
        rest = Some(above);
        Some((i, band))
    })
}

/// The same bands of a matrix whose columns are the rows that runs count.
fn last_col_bands<'a>(
    mat: MatMut<'a>,
    runs: &'a [(usize, Range<usize>)],
) -> impl Iterator<Item = MatMut<'a>> + Send {
    let mut rest = Some(mat);
    runs.iter().rev().filter_map(move |(_, rows)| {
        let (left, band) = rest.take()?.split_at_col(rows.start);
        rest = Some(left);
        Some(band)
    })
}

/// Where the backward's operands lie.
struct Saved {
    qkv: [Range<usize>; 3],
    d_o: Range<usize>,
    lse: Range<usize>,
    delta: Range<usize>,
    shape: AttentionShape,
}

/// The gradient's operands over all rows.
struct Gradient<'a>(AttentionGradient<'a>);

impl Saved {
    fn places(
        frame: &Frame<'_>,
        qkv: [ValueId; 3],
        [d_o, lse, delta]: [ValueId; 3],
        shape: AttentionShape,
    ) -> Self {
        Self {
            qkv: qkv.map(|v| frame.range(v)),
            d_o: frame.range(d_o),
            lse: frame.range(lse),
            delta: frame.range(delta),
            shape,
        }
    }

    fn read<'a>(
        self,
        reads: &Reads<'a>,
        segments: &'a [Segment],
        rows: usize,
    ) -> (Operands<'a>, Gradient<'a>) {
        let shape = self.shape;
        let matrix = |range: Range<usize>, cols| MatRef::new(reads.get(range), rows, cols);
        let [q, k, v] = self.qkv;
        let operands = Operands {
            q: matrix(q, shape.query_cols()),
            k: matrix(k, shape.key_cols()),
            v: matrix(v, shape.key_cols()),
            shape,
            segments,
            cached: false,
        };
        let a_head = |range: Range<usize>| MatRef::new(reads.get(range), shape.heads, rows);
        let gradient = AttentionGradient {
            d_o: matrix(self.d_o, shape.query_cols()),
            lse: a_head(self.lse),
            delta: a_head(self.delta),
        };
        (operands, Gradient(gradient))
    }
}

impl<'a> Gradient<'a> {
    /// A key head's group at some queries.
    fn part(
        &self,
        operands: &Operands<'a>,
        kv: usize,
        queries: &Range<usize>,
    ) -> AttentionGradient<'a> {
        let group = operands.shape.heads / operands.shape.kv_heads;
        let heads = kv * group..(kv + 1) * group;
        let a_head = |m: MatRef<'a>| m.rows_range(heads.clone()).cols_range(queries.clone());
        let [_, cols] = operands.cols(kv);
        AttentionGradient {
            d_o: self.0.d_o.rows_range(queries.clone()).cols_range(cols),
            lse: a_head(self.0.lse),
            delta: a_head(self.0.delta),
        }
    }
}
