//! Attention, forward and backward: tasks are (block of queries, key head) and (block of keys, key
//! head), each with all query heads of the group, so that every output has one owner and every sum
//! one order. The block with the most to do comes first, so that the threads end together.

use std::ops::Range;

use smidgen_graph::{AttentionShape, Step, ValueId};
use smidgen_kernels::{
    AttentionGradient, AttentionTile, KEY_BLOCK, KEY_WALK, Kernels, MatMut, MatRef, QUERY_BLOCK,
};

use super::{Frame, bands};
use crate::arena::{Reads, carve};
use crate::band::Part;
use crate::pool::Pool;
use crate::weights::BlockAt;

/// What both directions read of the forward: queries of the band, keys and values of the pass.
struct Operands<'a> {
    q: MatRef<'a>,
    k: MatRef<'a>,
    v: MatRef<'a>,
    shape: AttentionShape,
    parts: &'a [Part],
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
    fn queries(&self, kv: usize, part: usize, rows: &Range<usize>) -> AttentionTile<'a> {
        let [key_cols, query_cols] = self.cols(kv);
        let part = &self.parts[part];
        let keys = if self.cached { 0..self.k.rows() } else { part.keys() };
        let key_part = |m: MatRef<'a>| m.rows_range(keys.clone()).cols_range(key_cols.clone());
        AttentionTile {
            q: self.q.rows_range(rows.clone()).cols_range(query_cols),
            k: key_part(self.k),
            v: key_part(self.v),
            first_query: part.first_position + rows.start - part.rows.start,
            first_key: 0,
            scale: self.shape.scale,
            window: self.shape.window,
        }
    }

    /// The keys of `rows` of a key head with all queries of their group that may see them, and
    /// those queries' rows in the band.
    fn keys(
        &self,
        kv: usize,
        part: usize,
        rows: &Range<usize>,
    ) -> (AttentionTile<'a>, Range<usize>) {
        let [key_cols, query_cols] = self.cols(kv);
        let part = &self.parts[part];
        let keys = rows.start - part.sequence.start..rows.end - part.sequence.start;
        let last = part.first_position + part.rows.len();
        let first = keys.start.max(part.first_position);
        let end = self.shape.window.map_or(last, |w| last.min(keys.end.saturating_add(w)));
        let row = |position: usize| part.rows.start + position - part.first_position;
        let queries = row(first)..row(end.max(first));
        let key_part = |m: MatRef<'a>| m.rows_range(rows.clone()).cols_range(key_cols.clone());
        let tile = AttentionTile {
            q: self.q.rows_range(queries.clone()).cols_range(query_cols),
            k: key_part(self.k),
            v: key_part(self.v),
            first_query: first,
            first_key: keys.start,
            scale: self.shape.scale,
            window: self.shape.window,
        };
        (tile, queries)
    }
}

impl Frame<'_> {
    /// With a cache, each sequence of the band goes on from what the cache holds before its first
    /// position and takes the place of what stood behind: of several, none sees another, and the
    /// last one's keys and values stay.
    pub fn attention(&mut self, step: &Step) {
        let Step::Attention { q, k, v, o, lse, shape } = *step else { return };
        let rows = self.rows();
        let runs = self.runs(QUERY_BLOCK);
        let (q, own) = (self.range(q), [k, v].map(|v| self.range(v)));
        let whole = [k, v].map(|v| self.whole(v));
        let lse_place = self.heads_of(lse);
        let ([o, lse], reads) = carve(self.arena, [self.range(o), lse_place.range.clone()]);
        let q = MatRef::new(reads.get(q), rows, shape.query_cols());
        let mut o = MatMut::new(o, rows, shape.query_cols());
        let lse = MatMut::new(lse, shape.heads, lse_place.stride);
        let mut lse = lse.split_at_col(lse_place.first).1.split_at_col(rows).0;
        let (BlockAt::Layer(layer), Some(cache)) = (self.at, &mut self.cache) else {
            let [k, v] = whole.map(|range| keys_of(reads.get(range), shape));
            let operands = Operands { q, k, v, shape, parts: &self.band.parts, cached: false };
            return attend(self.kernels, self.pool, &operands, &runs, o, lse);
        };
        let own = own.map(|range| reads.get(range));
        for (number, part) in self.band.parts.iter().enumerate() {
            let numbers = part.rows.start * shape.key_cols()..part.rows.end * shape.key_cols();
            let [k, v] = own.map(|all| &all[numbers.clone()]);
            let kept = cache.append(layer, part.first_position, k, v);
            let [k, v] = kept.map(|numbers| keys_of(numbers, shape));
            let operands = Operands { q, k, v, shape, parts: &self.band.parts, cached: true };
            let (part_o, below) = o.split_at_row(part.rows.len());
            let (part_lse, right) = lse.split_at_col(part.rows.len());
            (o, lse) = (below, right);
            let runs = runs.iter().filter(|(part, _)| *part == number);
            let runs: Vec<_> = runs.cloned().collect();
            attend(self.kernels, self.pool, &operands, &runs, part_o, part_lse);
        }
    }

    pub fn attention_delta(&mut self, step: &Step) {
        let Step::AttentionDelta { o, d_o, delta, shape } = *step else { return };
        let rows = self.rows();
        let (o, d_o) = (self.range(o), self.range(d_o));
        let delta = self.heads_of(delta);
        let ([numbers], reads) = carve(self.arena, [delta.range]);
        let matrix = |r| MatRef::new(reads.get(r), rows, shape.query_cols());
        let (o, d_o) = (matrix(o), matrix(d_o));
        let kernels = self.kernels;
        self.pool.run(numbers.chunks_exact_mut(delta.stride).enumerate(), |(head, row), _| {
            let cols = head * shape.head_dim..(head + 1) * shape.head_dim;
            let delta = &mut row[delta.first..delta.first + rows];
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
        let (operands, gradient) = saved.read(&reads, &self.band.parts, [rows, self.pass.rows()]);
        let group = shape.heads / shape.kv_heads;
        let runs = runs.as_slice();
        let dq = last_bands(MatMut::new(dq, rows, shape.query_cols()), runs);
        let tasks = dq.flat_map(|(run, dq)| {
            let heads = dq.col_tiles(group * shape.head_dim).enumerate();
            heads.map(move |(kv, (_, dq))| (kv, run, dq))
        });
        let kernels = self.kernels;
        self.pool.run(tasks, |(kv, run, dq), scratch| {
            let (part, rows) = &runs[run];
            let local = gradient.part(&operands, kv, rows);
            let tile = operands.queries(kv, *part, rows);
            kernels.attention_backward_q(&tile, &local, dq, scratch);
        });
    }

    pub fn attention_backward_kv(&mut self, step: &Step) {
        let Step::AttentionBackwardKv { q, k, v, d_o, lse, delta, dk, dv, shape } = *step else {
            return;
        };
        let rows = self.rows();
        // Whole walks are less work, but a thread with nothing to do is worse.
        let walks = self.key_runs(KEY_WALK, shape);
        let enough = walks.len() * shape.kv_heads >= 2 * self.pool.threads();
        let runs = if enough { walks } else { self.key_runs(KEY_BLOCK, shape) };
        let (Some((_, first)), Some((_, last))) = (runs.first(), runs.last()) else { return };
        let seen = first.start..last.end;
        let saved = Saved::places(self, [q, k, v], [d_o, lse, delta], shape);
        for part in self.band.parts.iter().filter(|p| p.ends_sequence()) {
            for d in [dk, dv] {
                let range = self.rows_of(d, &part.sequence);
                self.arena[range].fill(0.0);
            }
        }
        let (dk, dv) = (self.rows_of(dk, &seen), self.rows_of(dv, &seen));
        let ([dk, dv], reads) = carve(self.arena, [dk, dv]);
        let (operands, gradient) = saved.read(&reads, &self.band.parts, [rows, self.pass.rows()]);
        let runs = runs.as_slice();
        let [dk, dv] = [dk, dv].map(|d| bands(MatMut::new(d, seen.len(), shape.key_cols()), runs));
        let tasks = dk.zip(dv).flat_map(|((run, dk), (_, dv))| {
            let heads = dk.col_tiles(shape.head_dim).zip(dv.col_tiles(shape.head_dim));
            heads.enumerate().map(move |(kv, ((_, dk), (_, dv)))| (kv, run, dk, dv))
        });
        let kernels = self.kernels;
        self.pool.run(tasks, |(kv, run, dk, dv), scratch| {
            let (part, rows) = &runs[run];
            let (tile, queries) = operands.keys(kv, *part, rows);
            let local = gradient.part(&operands, kv, &queries);
            kernels.attention_backward_kv(&tile, &local, dk, dv, scratch);
        });
    }

    /// Runs of at most `size` rows of the pass that hold keys which the band's queries see, those
    /// of a sequence from a whole walk on: (part, rows).
    fn key_runs(&self, size: usize, shape: AttentionShape) -> Vec<(usize, Range<usize>)> {
        let mut runs = Vec::new();
        for (i, part) in self.band.parts.iter().enumerate() {
            let hidden = shape.window.map_or(0, |w| (part.first_position + 1).saturating_sub(w));
            let Range { start, end } = part.keys();
            for start in (start + hidden - hidden % KEY_WALK..end).step_by(size) {
                runs.push((i, start..(start + size).min(end)));
            }
        }
        runs
    }

    /// Where a value with a row for each head, and a column for each token, has the band's columns.
    fn heads_of(&self, v: ValueId) -> HeadRows {
        if self.program.places[&v].whole {
            let (stride, first) = (self.pass.rows(), self.band.rows.start);
            HeadRows { range: self.whole(v), stride, first }
        } else {
            HeadRows { range: self.range(v), stride: self.rows(), first: 0 }
        }
    }
}

/// Keys, or values, of all key heads.
fn keys_of(numbers: &[f32], shape: AttentionShape) -> MatRef<'_> {
    MatRef::new(numbers, numbers.len() / shape.key_cols(), shape.key_cols())
}

/// Attention of the queries of `runs`, which follow each other: their rows of `o`, and their columns
/// of `lse`.
fn attend(
    kernels: Kernels,
    pool: &mut Pool,
    operands: &Operands<'_>,
    runs: &[(usize, Range<usize>)],
    o: MatMut<'_>,
    lse: MatMut<'_>,
) {
    let shape = operands.shape;
    let group = shape.heads / shape.kv_heads;
    let tasks = last_bands(o, runs).zip(last_col_bands(lse, runs)).flat_map(|((run, o), lse)| {
        let heads = o.col_tiles(group * shape.head_dim).zip(lse.row_tiles(group));
        heads.enumerate().map(move |(kv, ((_, o), (_, lse)))| (kv, run, o, lse))
    });
    pool.run(tasks, |(kv, run, o, lse), scratch| {
        let (part, rows) = &runs[run];
        kernels.attention(&operands.queries(kv, *part, rows), o, lse, scratch);
    });
}

impl Part {
    /// Rows of the pass up to the part's last: the keys that its queries may see.
    fn keys(&self) -> Range<usize> {
        let end = self.sequence.start + self.first_position + self.rows.len();
        self.sequence.start..end.min(self.sequence.end)
    }

    fn ends_sequence(&self) -> bool {
        self.first_position + self.rows.len() == self.sequence.len()
    }
}

/// A row for each head: numbers of the arena, how far rows are apart, and the band's first column.
struct HeadRows {
    range: Range<usize>,
    stride: usize,
    first: usize,
}

/// Bands of a matrix whose rows begin with the first run's, one a run, from the last run back: the
/// last queries see the most keys.
fn last_bands<'a>(
    mat: MatMut<'a>,
    runs: &'a [(usize, Range<usize>)],
) -> impl Iterator<Item = (usize, MatMut<'a>)> + Send {
    let mut rest = Some(mat);
    let first = runs.first().map_or(0, |(_, rows)| rows.start);
    runs.iter().enumerate().rev().filter_map(move |(i, (_, rows))| {
        let (above, band) = rest.take()?.split_at_row(rows.start - first);
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
    let first = runs.first().map_or(0, |(_, rows)| rows.start);
    runs.iter().rev().filter_map(move |(_, rows)| {
        let (left, band) = rest.take()?.split_at_col(rows.start - first);
        rest = Some(left);
        Some(band)
    })
}

/// Where the backward's operands lie.
struct Saved {
    qkv: [Range<usize>; 3],
    d_o: Range<usize>,
    lse: HeadRows,
    delta: HeadRows,
    shape: AttentionShape,
}

/// The gradient's operands over the band.
struct Gradient<'a>(AttentionGradient<'a>);

impl Saved {
    fn places(
        frame: &Frame<'_>,
        [q, k, v]: [ValueId; 3],
        [d_o, lse, delta]: [ValueId; 3],
        shape: AttentionShape,
    ) -> Self {
        Self {
            qkv: [frame.range(q), frame.whole(k), frame.whole(v)],
            d_o: frame.range(d_o),
            lse: frame.heads_of(lse),
            delta: frame.heads_of(delta),
            shape,
        }
    }

    fn read<'a>(
        self,
        reads: &Reads<'a>,
        parts: &'a [Part],
        [rows, all_rows]: [usize; 2],
    ) -> (Operands<'a>, Gradient<'a>) {
        let shape = self.shape;
        let matrix = |range: Range<usize>, rows, cols| MatRef::new(reads.get(range), rows, cols);
        let [q, k, v] = self.qkv;
        let operands = Operands {
            q: matrix(q, rows, shape.query_cols()),
            k: matrix(k, all_rows, shape.key_cols()),
            v: matrix(v, all_rows, shape.key_cols()),
            shape,
            parts,
            cached: false,
        };
        let a_head = |HeadRows { range, stride, first }| {
            MatRef::new(reads.get(range), shape.heads, stride).cols_range(first..first + rows)
        };
        let gradient = AttentionGradient {
            d_o: matrix(self.d_o, rows, shape.query_cols()),
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
