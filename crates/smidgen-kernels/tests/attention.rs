//! Attention both ways against f64, finite differences, other tilings and every instruction set.

mod common;

use common::{assert_close, finite_differences, random, same_on_all, wide};
use smidgen_kernels::{
    ATTENTION_SCRATCH, AttentionGradient, AttentionTile, KEY_BLOCK, Kernels, MatMut, MatRef,
    QUERY_BLOCK,
};

/// One segment of one key-value head and its group of query heads.
#[derive(Clone)]
struct Case {
    len: usize,
    group: usize,
    head_dim: usize,
    window: Option<usize>,
    /// len x group * head_dim, then len x head_dim twice.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_o: Vec<f32>,
}

impl Case {
    fn new(len: usize, group: usize, head_dim: usize, window: Option<usize>) -> Self {
        let (queries, keys) = (len * group * head_dim, len * head_dim);
        let (q, k) = (random(1, queries, 2.0), random(2, keys, 2.0));
        let (v, d_o) = (random(3, keys, 1.0), random(4, queries, 1.0));
        Self { len, group, head_dim, window, q, k, v, d_o }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn tile(&self) -> AttentionTile<'_> {
        AttentionTile {
            q: MatRef::new(&self.q, self.len, self.group * self.head_dim),
            k: MatRef::new(&self.k, self.len, self.head_dim),
            v: MatRef::new(&self.v, self.len, self.head_dim),
            first_query: 0,
            first_key: 0,
            scale: self.scale(),
            window: self.window,
        }
    }

    fn head_cols(&self, head: usize) -> std::ops::Range<usize> {
        head * self.head_dim..(head + 1) * self.head_dim
    }

    /// Outputs (len x group * head_dim) and log-sum-exps (group x len), in tiles of `rows`.
    fn forward(&self, kernels: Kernels, rows: usize) -> (Vec<f32>, Vec<f32>) {
        let mut o = vec![f32::NAN; self.q.len()];
        let mut lse = vec![f32::NAN; self.group * self.len];
        let mut scratch = vec![f32::NAN; ATTENTION_SCRATCH];
        let (cols, tile) = (self.group * self.head_dim, self.tile());
        let o_tiles = MatMut::new(&mut o, self.len, cols).row_tiles(rows);
        let lse_tiles = MatMut::new(&mut lse, self.group, self.len).col_tiles(rows);
        for ((first, o), (_, lse)) in o_tiles.zip(lse_tiles) {
            let end = first + o.rows();
            let q = tile.q.rows_range(first..end);
            // As in a cache: only keys up to the last query.
            let (k, v) = (tile.k.rows_range(0..end), tile.v.rows_range(0..end));
            let tile = AttentionTile { q, k, v, first_query: first, ..tile };
            kernels.attention(&tile, o, lse, &mut scratch);
        }
        (o, lse)
    }

    /// dq, dk and dv, in tiles of `rows` queries or keys.
    fn backward(&self, kernels: Kernels, rows: usize) -> [Vec<f32>; 3] {
        let (o, lse) = self.forward(kernels, QUERY_BLOCK);
        let (cols, tile) = (self.group * self.head_dim, self.tile());
        let (o, d_o) = (MatRef::new(&o, self.len, cols), MatRef::new(&self.d_o, self.len, cols));
        let mut delta = vec![f32::NAN; self.group * self.len];
        for (head, delta) in delta.chunks_mut(self.len).enumerate() {
            let cols = self.head_cols(head);
            kernels.attention_delta(d_o.cols_range(cols.clone()), o.cols_range(cols), delta);
        }
        let lse = MatRef::new(&lse, self.group, self.len);
        let delta = MatRef::new(&delta, self.group, self.len);
        let mut scratch = vec![f32::NAN; ATTENTION_SCRATCH];

        let mut dq = vec![f32::NAN; self.q.len()];
        for (first, dq) in MatMut::new(&mut dq, self.len, cols).row_tiles(rows) {
            let range = first..first + dq.rows();
            let gradient = AttentionGradient {
                d_o: d_o.rows_range(range.clone()),
                lse: lse.cols_range(range.clone()),
                delta: delta.cols_range(range.clone()),
            };
            let tile = AttentionTile { q: tile.q.rows_range(range), first_query: first, ..tile };
            kernels.attention_backward_q(&tile, &gradient, dq, &mut scratch);
        }

        let (mut dk, mut dv) = (vec![0.0; self.k.len()], vec![0.0; self.v.len()]);
        let dk_tiles = MatMut::new(&mut dk, self.len, self.head_dim).row_tiles(rows);
        let dv_tiles = MatMut::new(&mut dv, self.len, self.head_dim).row_tiles(rows);
        for ((first, dk), (_, dv)) in dk_tiles.zip(dv_tiles) {
            let range = first..first + dk.rows();
            let (k, v) = (tile.k.rows_range(range.clone()), tile.v.rows_range(range));
            let tile = AttentionTile { k, v, first_key: first, ..tile };
            let gradient = AttentionGradient { d_o, lse, delta };
            kernels.attention_backward_kv(&tile, &gradient, dk, dv, &mut scratch);
        }
        [dq, dk, dv]
    }

    /// dk and dv from bands of `rows` queries, from the last one back, each with all keys up to its
    /// last query.
    fn kv_in_bands(&self, kernels: Kernels, rows: usize) -> [Vec<f32>; 2] {
        let (o, lse) = self.forward(kernels, QUERY_BLOCK);
        let (cols, tile) = (self.group * self.head_dim, self.tile());
        let (o, d_o) = (MatRef::new(&o, self.len, cols), MatRef::new(&self.d_o, self.len, cols));
        let lse = MatRef::new(&lse, self.group, self.len);
        let mut scratch = vec![f32::NAN; ATTENTION_SCRATCH];
        let (mut dk, mut dv) = (vec![0.0; self.k.len()], vec![0.0; self.v.len()]);
        for first in (0..self.len).step_by(rows).rev() {
            let band = first..self.len.min(first + rows);
            let (o, d_o) = (o.rows_range(band.clone()), d_o.rows_range(band.clone()));
            let mut delta = vec![f32::NAN; self.group * band.len()];
            for (head, delta) in delta.chunks_mut(band.len()).enumerate() {
                let cols = self.head_cols(head);
                kernels.attention_delta(d_o.cols_range(cols.clone()), o.cols_range(cols), delta);
            }
            let delta = MatRef::new(&delta, self.group, band.len());
            let gradient = AttentionGradient { d_o, lse: lse.cols_range(band.clone()), delta };
            let (k, v) = (tile.k.rows_range(0..band.end), tile.v.rows_range(0..band.end));
            let q = tile.q.rows_range(band.clone());
            let tile = AttentionTile { q, k, v, first_query: first, ..tile };
            let [dk, dv] = [&mut dk, &mut dv].map(|d| MatMut::new(d, band.end, self.head_dim));
            kernels.attention_backward_kv(&tile, &gradient, dk, dv, &mut scratch);
        }
        [dk, dv]
    }

    /// Probabilities (group x len x len) and outputs in f64.
    fn forward_f64(&self, q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let (n, d, cols) = (self.len, self.head_dim, self.group * self.head_dim);
        let (mut p, mut lse) = (vec![0.0; self.group * n * n], vec![0.0; self.group * n]);
        let mut o = vec![0.0; n * cols];
        for (head, i) in (0..self.group).flat_map(|h| (0..n).map(move |i| (h, i))) {
            let seen = self.window.map_or(0, |w| (i + 1).saturating_sub(w))..i + 1;
            let q = &q[i * cols + head * d..][..d];
            let score = |j: usize| {
                let s: f64 = q.iter().zip(&k[j * d..][..d]).map(|(q, k)| q * k).sum();
                s * f64::from(self.scale())
            };
            let max = seen.clone().map(score).fold(f64::MIN, f64::max);
            let sum: f64 = seen.clone().map(|j| (score(j) - max).exp()).sum();
            lse[head * n + i] = max + sum.ln();
            for j in seen {
                let pij = (score(j) - max).exp() / sum;
                p[(head * n + i) * n + j] = pij;
                for c in 0..d {
                    o[i * cols + head * d + c] += pij * v[j * d + c];
                }
            }
        }
        (o, lse, p)
    }

    /// dq, dk and dv in f64.
    fn backward_f64(&self) -> [Vec<f64>; 3] {
        let (n, d, cols) = (self.len, self.head_dim, self.group * self.head_dim);
        let (q, k, v, d_o) = (wide(&self.q), wide(&self.k), wide(&self.v), wide(&self.d_o));
        let (o, _, p) = self.forward_f64(&q, &k, &v);
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        for (head, i) in (0..self.group).flat_map(|h| (0..n).map(move |i| (h, i))) {
            let row = i * cols + head * d;
            let delta: f64 = (0..d).map(|c| d_o[row + c] * o[row + c]).sum();
            for j in 0..=i {
                let p = p[(head * n + i) * n + j];
                let dp: f64 = (0..d).map(|c| d_o[row + c] * v[j * d + c]).sum();
                let ds = p * (dp - delta) * f64::from(self.scale());
                for c in 0..d {
                    dq[row + c] += ds * k[j * d + c];
                    dk[j * d + c] += ds * q[row + c];
                    dv[j * d + c] += p * d_o[row + c];
                }
            }
        }
        [dq, dk, dv]
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for len in [1, 2, 63, 64, 65, 130] {
        for window in [None, Some(1), Some(7), Some(64), Some(100)] {
            cases.push(Case::new(len, 1, 16, window));
        }
        cases.push(Case::new(len, 3, 20, None));
        cases.push(Case::new(len, 2, 17, Some(65)));
    }
    cases.push(Case::new(200, 2, 64, Some(70)));
    cases.push(Case::new(300, 1, 16, None));
    cases
}

#[test]
fn the_reference_agrees_with_finite_differences() {
    let case = Case::new(6, 2, 3, Some(4));
    let (q, k, v) = (wide(&case.q), wide(&case.k), wide(&case.v));
    let loss = |q: &[f64], k: &[f64], v: &[f64]| {
        let (o, _, _) = case.forward_f64(q, k, v);
        o.iter().zip(&case.d_o).map(|(o, &d)| o * f64::from(d)).sum::<f64>()
    };
    let differences = [
        finite_differences(&q, |q| loss(q, &k, &v)),
        finite_differences(&k, |k| loss(&q, k, &v)),
        finite_differences(&v, |v| loss(&q, &k, v)),
    ];
    for (got, want) in case.backward_f64().iter().zip(&differences) {
        let got: Vec<f32> = got.iter().map(|&x| x as f32).collect();
        assert_close("reference", &got, want, 1e-6);
    }
}

#[test]
fn forward_agrees_with_the_reference_on_every_set() {
    for case in cases() {
        let (o, lse, _) = case.forward_f64(&wide(&case.q), &wide(&case.k), &wide(&case.v));
        let got = same_on_all(|kernels| {
            let (o, lse) = case.forward(kernels, case.len);
            [o, lse].concat()
        });
        let (got_o, got_lse) = got.split_at(o.len());
        assert_close("o", got_o, &o, 1e-6);
        assert_close("lse", got_lse, &lse, 1e-6);
    }
}

#[test]
fn backward_agrees_with_the_reference_on_every_set() {
    for case in cases() {
        let want = case.backward_f64().concat();
        let got = same_on_all(|kernels| case.backward(kernels, case.len).concat());
        assert_close("dq, dk, dv", &got, &want, 2e-6);
    }
}

#[test]
fn tiles_of_whole_blocks_give_the_same_bits() {
    for case in cases() {
        let kernels = Kernels::detect();
        let whole = case.backward(kernels, case.len);
        assert_eq!(case.backward(kernels, QUERY_BLOCK.max(KEY_BLOCK)), whole);
        // Query by query, as generation runs: the forward has no need of whole blocks.
        assert_eq!(case.forward(kernels, 1), case.forward(kernels, case.len));
    }
}

#[test]
fn keys_take_their_queries_in_bands_from_the_last_to_the_first() {
    for (len, window) in [(300, None), (600, None), (600, Some(100)), (520, Some(300))] {
        let case = Case::new(len, 2, 24, window);
        let kernels = Kernels::detect();
        let [_, dk, dv] = case.backward(kernels, len);
        assert_eq!(case.kv_in_bands(kernels, 256), [dk, dv], "{len} under {window:?}");
    }
}

#[test]
fn keys_before_the_window_may_be_missing() {
    let case = Case::new(130, 1, 16, Some(20));
    let kernels = Kernels::detect();
    let (want, _) = case.forward(kernels, case.len);
    let tile = case.tile();
    // The last query sees keys 110..130.
    let tile = AttentionTile {
        q: tile.q.rows_range(129..130),
        k: tile.k.rows_range(64..130),
        v: tile.v.rows_range(64..130),
        first_query: 129,
        first_key: 64,
        ..tile
    };
    let (mut o, mut lse, mut scratch) = ([0.0; 16], [0.0], vec![0.0; ATTENTION_SCRATCH]);
    let o_row = MatMut::new(&mut o, 1, 16);
    kernels.attention(&tile, o_row, MatMut::new(&mut lse, 1, 1), &mut scratch);
    assert_eq!(o, want[129 * 16..]);
}

#[test]
fn scores_far_apart_stay_finite() {
    let mut case = Case::new(100, 1, 16, None);
    case.q.iter_mut().for_each(|q| *q *= 1e3);
    let (o, lse, _) = case.forward_f64(&wide(&case.q), &wide(&case.k), &wide(&case.v));
    let (got_o, got_lse) = case.forward(Kernels::detect(), case.len);
    assert_close("lse", &got_lse, &lse, 1e-6);
    assert_close("o", &got_o, &o, 2e-3);
    let gradients = case.backward(Kernels::detect(), case.len).concat();
    assert!(gradients.iter().all(|x| x.is_finite()));
}
