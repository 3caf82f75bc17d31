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
//! Nothing of size queries x keys is kept. A block of queries walks its keys (a block of keys its
//! queries, backwards) in steps that end at multiples of a constant, counted from the segment's
//! start; a sum over keys or queries is the sum over the steps, in that order, of each step's
//! partial sum, which takes its products in order by fused multiply-add. Queries are walked
//! backwards so that keys of which the queries come in bands, from the last band to the first, are
//! done when their own band is. What the causal order or the window hides
//! counts as zero, so leaving it out changes no bit, and a result depends neither on the
//! instruction set nor on how queries or keys are cut into tiles of whole blocks.
//!
//! The keys and values of a step are packed once for all query heads that share them. The backward
//! of keys and values computes the scores transposed, so that every product there has its
//! left-hand side as it lies in memory.

mod backward;
mod forward;
mod panel;
mod scores;

use std::ops::Range;

use crate::arch::MatRef;

/// Queries that walk the keys together: a tile of a forward or of dq is whole blocks of these.
pub const QUERY_BLOCK: usize = 64;

/// A tile of dk and dv is whole blocks of as many keys.
pub const KEY_BLOCK: usize = 64;

/// Keys, of tiles that have so many, that walk the queries together: the more, the less often
/// queries are packed. That changes no sum.
pub const KEY_WALK: usize = 2 * KEY_BLOCK;

/// The most columns of a head.
pub const MAX_HEAD_DIM: usize = PANEL / UNIT;

/// Numbers that every attention call needs as scratch.
pub const ATTENTION_SCRATCH: usize = PANELS * PANEL + SCORES + LINE;

/// The most keys, or queries, of one step of a walk.
const STEP: usize = 128;

/// Numbers of a packed operand: those of a step of a head of 256 columns.
const PANEL: usize = 256 * STEP;

/// Packed operands that are needed at a time: the most are k, kᵀ and vᵀ for dq.
const PANELS: usize = 3;

/// Rows of scores that are computed at a time. The fewer, the less of the diagonal is computed in
/// vain, and the more often a packed operand is read.
const PART: usize = 32;

/// Steps are trimmed to whole units: the widest tile of a panel.
const UNIT: usize = 32;

/// Numbers of a cache line, the most lanes of an operation on a row.
const LINE: usize = 16;

/// Distance of two rows of scores: room for a row's last vector to be a whole one.
const SCORE_STRIDE: usize = STEP + LINE;

/// Scores and their gradients: of a part for dq, of a walk for dk and dv, which packs one operand at
/// a time.
const SCORES: usize = 2 * PART * SCORE_STRIDE;

const _: () = assert!(
    PANEL + 2 * KEY_WALK * SCORE_STRIDE <= PANELS * PANEL + SCORES,
    "scratch of the backward of keys and values"
);

/// Queries and keys of one segment (one sequence), of one key-value head and its query heads.
///
/// Positions count from the segment's start. Query i sees key j where j <= i and, under a window
/// w, i - w < j.
#[derive(Clone, Copy, Debug)]
pub struct AttentionTile<'a> {
    /// Queries x heads * head_dim: the query heads side by side.
    pub q: MatRef<'a>,
    /// Keys x head_dim.
    pub k: MatRef<'a>,
    /// Keys x head_dim.
    pub v: MatRef<'a>,
    /// Position of the first row of `q`.
    pub first_query: usize,
    /// Position of the first row of `k` and `v`, a multiple of [`KEY_BLOCK`].
    pub first_key: usize,
    /// Factor of the scores, above zero: usually 1 / sqrt(head_dim).
    pub scale: f32,
    /// How many keys a query sees at most, itself included; all before it where `None`.
    pub window: Option<usize>,
}

/// What the backward of some queries needs beside the forward's inputs.
#[derive(Clone, Copy, Debug)]
pub struct AttentionGradient<'a> {
    /// Gradient of the output, in the shape of the tile's `q`.
    pub d_o: MatRef<'a>,
    /// The forward's log-sum-exp, heads x queries.
    pub lse: MatRef<'a>,
    /// [`crate::Kernels::attention_delta`], heads x queries.
    pub delta: MatRef<'a>,
}

impl<'a> AttentionTile<'a> {
    /// Positions of the keys that the query at a position sees.
    #[inline(always)]
    fn keys_of(&self, query: usize) -> Range<usize> {
        let first = self.window.map_or(0, |window| (query + 1).saturating_sub(window));
        first..query + 1
    }

    /// Positions of the keys that some of these queries see, from a whole unit on.
    fn keys_of_all(&self, queries: &Range<usize>) -> Range<usize> {
        let first = self.keys_of(queries.start).start;
        first - first % UNIT..queries.end
    }

    /// Positions of the tile's queries that see the key at a position.
    #[inline(always)]
    fn queries_of(&self, key: usize) -> Range<usize> {
        let Range { start, end } = self.queries();
        let end = self.window.map_or(end, |window| end.min(key.saturating_add(window)));
        key.max(start)..end
    }

    /// Positions of the tile's queries that see some of these keys.
    fn queries_of_all(&self, keys: &Range<usize>) -> Range<usize> {
        keys.start.max(self.first_query)..self.queries_of(keys.end - 1).end
    }

    /// Positions of the tile's queries.
    #[inline(always)]
    fn queries(&self) -> Range<usize> {
        self.first_query..self.first_query + self.q.rows()
    }

    /// Positions of the tile's keys.
    fn keys(&self) -> Range<usize> {
        self.first_key..self.first_key + self.k.rows()
    }

    fn heads(&self) -> usize {
        self.q.cols().checked_div(self.k.cols()).unwrap_or(0)
    }

    /// Length of the steps of a walk, a multiple of [`UNIT`].
    fn step(&self) -> usize {
        let fitting = PANEL / self.k.cols().next_multiple_of(UNIT).max(UNIT);
        STEP.min(fitting - fitting % UNIT)
    }

    /// The columns of one query head in `m`, which has the shape of `q`.
    fn head(&self, m: MatRef<'a>, head: usize) -> MatRef<'a> {
        let head_dim = self.k.cols();
        m.cols_range(head * head_dim..(head + 1) * head_dim)
    }

    fn check(&self) {
        let head_dim = self.k.cols();
        assert!(head_dim <= MAX_HEAD_DIM, "a head of {head_dim} columns");
        assert_eq!(self.q.cols(), self.heads() * head_dim, "columns of q and k");
        assert_eq!((self.k.rows(), head_dim), (self.v.rows(), self.v.cols()), "k and v");
        assert!(self.first_key.is_multiple_of(KEY_BLOCK), "first key at {}", self.first_key);
        assert_ne!(self.window, Some(0), "a query sees at least itself");
        assert!(self.scale > 0.0, "attention scale {}", self.scale);
    }

    /// Every query of a forward or of a query's backward finds all keys that it sees.
    fn check_keys(&self) {
        if self.q.rows() > 0 {
            let (seen, keys) = (self.keys_of_all(&self.queries()), self.keys());
            assert!(keys.start <= seen.start && seen.end <= keys.end, "keys {keys:?} of {seen:?}");
        }
    }
}

/// The part of a step that `seen` needs, in whole units of the step.
fn trim(step: &Range<usize>, seen: Range<usize>) -> Range<usize> {
    let seen = overlap(step, seen);
    if seen.is_empty() {
        return step.start..step.start;
    }
    let end = seen.end.next_multiple_of(UNIT).min(step.len());
    step.start + seen.start - seen.start % UNIT..step.start + end
}

/// The places among `positions` of those that are in `seen`.
#[inline(always)]
fn overlap(positions: &Range<usize>, seen: Range<usize>) -> Range<usize> {
    let start = seen.start.clamp(positions.start, positions.end);
    let end = seen.end.clamp(start, positions.end);
    start - positions.start..end - positions.start
}

/// Rows of a matrix whose first row is at position `first`.
#[inline(always)]
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

/// The same, from the last block back.
fn blocks_back(positions: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let Range { start, mut end } = positions;
    std::iter::from_fn(move || {
        let block = (end.saturating_sub(1) / size * size).max(start)..end;
        end = block.start;
        (!block.is_empty()).then_some(block)
    })
}

/// Cuts [`ATTENTION_SCRATCH`] numbers, from a cache line on: panels, then what is left.
fn split_scratch<const N: usize>(scratch: &mut [f32]) -> ([&mut [f32]; N], &mut [f32]) {
    assert!(scratch.len() >= ATTENTION_SCRATCH, "attention scratch of {}", scratch.len());
    let skip = scratch.as_ptr().align_offset(4 * LINE).min(LINE);
    let (panels, rest) = scratch[skip..].split_at_mut(N * PANEL);
    let mut panels = panels.chunks_exact_mut(PANEL);
    (std::array::from_fn(|_| panels.next().unwrap_or_default()), rest)
}
