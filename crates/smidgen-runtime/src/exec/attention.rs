//! Attention, forward and backward: tasks are (head, block of queries) and (key head, block of
//! keys), so that every output has one owner and every sum one order.

use std::ops::Range;

use smidgen_graph::{AttentionShape, Step, ValueId};
use smidgen_kernels::{AttentionGradient, AttentionTile, KEY_BLOCK, MatMut, MatRef, QUERY_BLOCK};

use super::{Frame, bands, pieces};
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
    /// The queries of `rows` of a head with the keys of their sequence.
    fn queries(&self, head: usize, segment: usize, rows: &Range<usize>) -> AttentionTile<'a> {
        let d = self.shape.head_dim;
        let kv = head / (self.shape.heads / self.shape.kv_heads);
        let segment = &self.segments[segment];
        let keys = if self.cached { 0..self.k.rows() } else { segment.rows.clone() };
        let key_part = |m: MatRef<'a>| m.rows_range(keys.clone()).cols_range(kv * d..(kv + 1) * d);
        AttentionTile {
            q: self.q.rows_range(rows.clone()).cols_range(head * d..(head + 1) * d),
            k: key_part(self.k),
            v: key_part(self.v),
            first_query: segment.first_position + rows.start - segment.rows.start,
            first_key: 0,
            scale: self.shape.scale,
            window: self.shape.window,
        }
    }

    /// The keys of `rows` of a key head with all queries of their group that may see them, and
    /// those queries' rows and columns.
    fn keys(
        &self,
        kv: usize,
        segment: usize,
        rows: &Range<usize>,
    ) -> (AttentionTile<'a>, Range<usize>, Range<usize>) {
        let d = self.shape.head_dim;
        let group = self.shape.heads / self.shape.kv_heads;
        let segment = &self.segments[segment].rows;
        let end = self.shape.window.map_or(segment.end, |w| segment.end.min(rows.end + w));
        let (queries, cols) = (rows.start..end, kv * group * d..(kv + 1) * group * d);
        let key_part = |m: MatRef<'a>| m.rows_range(rows.clone()).cols_range(kv * d..(kv + 1) * d);
        let tile = AttentionTile {
            q: self.q.rows_range(queries.clone()).cols_range(cols.clone()),
            k: key_part(self.k),
            v: key_part(self.v),
            first_query: rows.start - segment.start,
            first_key: rows.start - segment.start,
            scale: self.shape.scale,
            window: self.shape.window,
        };
        (tile, queries, cols)
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
        let heads = MatMut::new(o, rows, shape.query_cols()).col_tiles(shape.head_dim);
        let runs = runs.as_slice();
        let tasks =
            heads.zip(lse.chunks_exact_mut(rows)).enumerate().flat_map(|(head, ((_, o), lse))| {
                bands(o, runs)
                    .zip(pieces(lse, runs))
                    .map(move |((run, o), lse)| (head, run, o, lse))
            });
        let kernels = self.kernels;
        self.pool.run(tasks, |(head, run, o, lse), scratch| {
            let (segment, rows) = &runs[run];
            kernels.attention(&operands.queries(head, *segment, rows), o, lse, scratch);
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
        let heads = MatMut::new(dq, rows, shape.query_cols()).col_tiles(shape.head_dim);
        let runs = runs.as_slice();
        let tasks = heads
            .enumerate()
            .flat_map(|(head, (_, dq))| bands(dq, runs).map(move |(run, dq)| (head, run, dq)));
        let kernels = self.kernels;
        self.pool.run(tasks, |(head, run, dq), scratch| {
            let (segment, rows) = &runs[run];
            let d = shape.head_dim;
            let local = gradient.part(head..head + 1, head * d..(head + 1) * d, rows);
            let tile = operands.queries(head, *segment, rows);
            kernels.attention_backward_q(&tile, &local, dq, scratch);
        });
    }

    pub fn attention_backward_kv(&mut self, step: &Step) {
        let Step::AttentionBackwardKv { q, k, v, d_o, lse, delta, dk, dv, shape } = *step else {
            return;
        };
        let rows = self.rows();
        let runs = self.runs(KEY_BLOCK);
        let saved = Saved::places(self, [q, k, v], [d_o, lse, delta], shape);
        let ([dk, dv], reads) = carve(self.arena, [self.range(dk), self.range(dv)]);
        let (operands, gradient) = saved.read(&reads, &self.pass.segments, rows);
        let heads = |d| MatMut::new(d, rows, shape.key_cols()).col_tiles(shape.head_dim);
        let runs = runs.as_slice();
        let tasks = heads(dk).zip(heads(dv)).enumerate().flat_map(|(kv, ((_, dk), (_, dv)))| {
            bands(dk, runs).zip(bands(dv, runs)).map(move |((run, dk), (_, dv))| (kv, run, dk, dv))
        });
        let group = shape.heads / shape.kv_heads;
        let kernels = self.kernels;
        self.pool.run(tasks, |(kv, run, dk, dv), scratch| {
            let (segment, rows) = &runs[run];
            let (tile, queries, cols) = operands.keys(kv, *segment, rows);
            let local = gradient.part(kv * group..(kv + 1) * group, cols, &queries);
            kernels.attention_backward_kv(&tile, &local, dk, dv, scratch);
        });
    }
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
    /// Some heads, with the columns they take, at some queries.
    fn part(
        &self,
        heads: Range<usize>,
        cols: Range<usize>,
        queries: &Range<usize>,
    ) -> AttentionGradient<'a> {
        let a_head = |m: MatRef<'a>| m.rows_range(heads.clone()).cols_range(queries.clone());
        AttentionGradient {
            d_o: self.0.d_o.rows_range(queries.clone()).cols_range(cols),
            lse: a_head(self.0.lse),
            delta: a_head(self.0.delta),
        }
    }
}
