//! Each position by itself: the tokens whose own states are nearest to a tap.
//!
//! The table has every token of the vocabulary behind one neutral token. States of a layer have a
//! large part in common, and a few columns that are much larger than all others, so they are centred
//! on the table's mean and each column is divided by its spread (with what noise, rounding and another
//! context add) before cosines are taken.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use smidgen_kernels::{GEMM_SCRATCH, Init, MatMut, MatRef, Matrix, Operand, Term};

use super::walker::{ROWS, Walker};

/// Taps of one layer and view.
#[derive(Debug)]
pub struct Query {
    /// Which of the table's layers.
    pub layer: usize,
    /// Rows x hidden.
    pub taps: Vec<f32>,
    /// Mean square of what each column is off by.
    pub variances: Vec<f32>,
}

/// What a column's mean square is taken to be off by for standing behind another text than the table's
/// one token. Without it, columns that hardly vary in the table count for far too much.
const CONTEXT: f32 = 1.0;

/// Tokens that mean and spread of the table are taken over.
const SAMPLE: usize = 4 * ROWS;

/// For each query and each of its rows the `keep` nearest tokens, the nearest first.
pub fn nearest(
    walker: &mut Walker,
    neutral: u32,
    vocabulary: usize,
    layers: &[usize],
    queries: &[Query],
    keep: usize,
) -> Vec<Vec<Vec<u32>>> {
    walker.extend(neutral, 0);
    let moments = moments(walker, vocabulary, layers);
    let mut searches: Vec<Search> =
        queries.iter().map(|query| Search::new(query, &moments[query.layer], keep)).collect();
    let (kernels, mut scratch) = (walker.kernels(), vec![0.0; GEMM_SCRATCH]);
    let tokens: Vec<u32> = (0..vocabulary as u32).collect();
    for tokens in tokens.chunks(ROWS) {
        let mut states = walker.branch(tokens, 1, layers);
        for (states, moments) in states.iter_mut().zip(&moments) {
            for row in states.chunks_exact_mut(moments.mean.len()) {
                row.iter_mut().zip(&moments.mean).for_each(|(x, mean)| *x -= mean);
            }
        }
        for search in &mut searches {
            let hidden = search.weights.len();
            let states = MatRef::new(&states[search.layer], tokens.len(), hidden);
            let rows = search.taps.len() / hidden;
            let taps = MatRef::new(&search.taps, rows, hidden);
            let mut dots = vec![0.0; rows * tokens.len()];
            let b = Operand { matrix: Matrix::Dense(states), transposed: true };
            let out = MatMut::new(&mut dots, rows, tokens.len());
            kernels.gemm(out, Init::Zero, 1.0, &[Term { a: taps, b }], &mut scratch);
            search.take(tokens, states, &dots);
        }
    }
    searches.into_iter().map(Search::finish).collect()
}

/// Mean and mean square deviation of a layer's columns.
struct Moments {
    mean: Vec<f32>,
    variance: Vec<f32>,
}

fn moments(walker: &mut Walker, vocabulary: usize, layers: &[usize]) -> Vec<Moments> {
    let count = SAMPLE.min(vocabulary);
    let tokens: Vec<u32> = (0..count).map(|i| (i * vocabulary / count) as u32).collect();
    let mut states = vec![Vec::new(); layers.len()];
    for tokens in tokens.chunks(ROWS) {
        let part = walker.branch(tokens, 1, layers);
        states.iter_mut().zip(part).for_each(|(all, part)| all.extend(part));
    }
    let of = |states: &Vec<f32>| {
        let hidden = states.len() / count;
        let column = |col: usize| states.iter().skip(col).step_by(hidden).map(|&x| f64::from(x));
        let mean = |col| column(col).sum::<f64>() / count as f64;
        let variance = |col| {
            let mean = mean(col);
            (column(col).map(|x| (x - mean).powi(2)).sum::<f64>() / count as f64) as f32
        };
        Moments {
            mean: (0..hidden).map(|col| mean(col) as f32).collect(),
            variance: (0..hidden).map(variance).collect(),
        }
    };
    states.iter().map(of).collect()
}

/// A query on its way through the table.
struct Search {
    layer: usize,
    /// What each column's square weighs.
    weights: Vec<f32>,
    /// Centred and weighted.
    taps: Vec<f32>,
    keep: usize,
    /// The best so far of each row, the worst of them on top.
    best: Vec<BinaryHeap<Reverse<(u32, u32)>>>,
}

impl Search {
    fn new(query: &Query, moments: &Moments, keep: usize) -> Self {
        let columns = moments.variance.iter().zip(&query.variances);
        let weights: Vec<f32> = columns.map(|(v, off)| 1.0 / (v + off + CONTEXT)).collect();
        let mut taps = query.taps.clone();
        for row in taps.chunks_exact_mut(weights.len()) {
            let columns = row.iter_mut().zip(moments.mean.iter().zip(&weights));
            columns.for_each(|(x, (mean, weight))| *x = (*x - mean) * weight);
        }
        let rows = taps.len() / weights.len();
        Self { layer: query.layer, weights, taps, keep, best: vec![BinaryHeap::new(); rows] }
    }

    /// Takes products of the taps with the centred states of `tokens` in.
    fn take(&mut self, tokens: &[u32], states: MatRef<'_>, dots: &[f32]) {
        let inverse_norm = |row: usize| {
            let squares = states.row(row).iter().zip(&self.weights).map(|(x, w)| x * x * w);
            1.0 / squares.sum::<f32>().sqrt().max(f32::MIN_POSITIVE)
        };
        let norms: Vec<f32> = (0..tokens.len()).map(inverse_norm).collect();
        for (best, dots) in self.best.iter_mut().zip(dots.chunks_exact(tokens.len())) {
            for ((dot, norm), &token) in dots.iter().zip(&norms).zip(tokens) {
                let found = Reverse((in_order(dot * norm), token));
                if best.len() < self.keep {
                    best.push(found);
                } else if let Some(mut worst) = best.peek_mut()
                    && found.0.0 > worst.0.0
                {
                    *worst = found;
                }
            }
        }
    }

    fn finish(self) -> Vec<Vec<u32>> {
        let tokens = |best: BinaryHeap<Reverse<(u32, u32)>>| {
            best.into_sorted_vec().into_iter().map(|Reverse((_, token))| token).collect()
        };
        self.best.into_iter().map(tokens).collect()
    }
}

/// A word in the same order as the numbers.
fn in_order(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}
