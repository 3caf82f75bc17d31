//! From left to right: each candidate for the next token is run behind what was recovered so far, and
//! the one whose states explain the taps best is taken.
//!
//! Of a candidate with states y, taps x that are off by mean squares v say log p = -sum (x - y)² / 2v;
//! the public model's own log p of the token behind the text so far is added, which counts where
//! noise leaves several that would do.

use std::collections::BTreeSet;

use super::view::View;
use super::walker::{ROWS, Walker};

/// A window's taps behind some layers.
#[derive(Debug)]
pub struct Window<'a> {
    pub view: View,
    pub layers: &'a [usize],
    /// For each of the layers, rows x hidden; row 0 belongs to the window's second token.
    pub taps: Vec<&'a [f32]>,
    /// The nearest tokens of each row, the nearest first.
    pub nearest: &'a [Vec<u32>],
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    pub tokens: Vec<u32>,
    /// Candidates that were run.
    pub tried: usize,
}

/// Two that differ by so many nats are told apart for good.
const CERTAIN: f64 = 20.0;
/// A mean square that is allowed for beside noise and rounding where none explains the taps: behind a
/// token that was not found, states are near to the taps at best.
const ASTRAY: f64 = 1e-3;

/// Recovers the tokens behind `first`, which the server knows. `deep` runs the tapped layers, `whole`
/// the whole model. At most `shortlist` candidates are run a position, half of them by their taps alone
/// and half by the model's prediction, the likeliest first, until one explains the taps and no other does as well.
pub fn invert(
    deep: &mut Walker,
    whole: &mut Walker,
    window: &Window<'_>,
    first: u32,
    shortlist: usize,
) -> Recovered {
    let mut recovered = Recovered::default();
    deep.extend(first, 0);
    let mut last = first;
    for (row, nearest) in window.nearest.iter().enumerate() {
        let predicted = whole.extend_and_predict(last, row);
        let candidates = candidates(nearest, &predicted, shortlist);
        let taps: Vec<&[f32]> = window.taps.iter().map(|taps| window.row(taps, row)).collect();
        let variances: Vec<_> = taps.iter().map(|taps| window.view.variances(taps)).collect();
        let mut best = Best::default();
        for batch in batches(&candidates) {
            let states = deep.branch(batch, row + 1, window.layers);
            recovered.tried += batch.len();
            for (at, &token) in batch.iter().enumerate() {
                let (log, explained) = window.judge(&taps, &variances, &states, at);
                best.take(token, log + f64::from(predicted[token as usize]), explained);
            }
            if best.is_certain() {
                break;
            }
        }
        last = best.token;
        recovered.tokens.push(last);
        deep.extend(last, row + 1);
    }
    recovered
}

impl Window<'_> {
    /// A row of rows x hidden.
    fn row<'a>(&self, numbers: &'a [f32], row: usize) -> &'a [f32] {
        let hidden = numbers.len() / self.nearest.len();
        &numbers[row * hidden..(row + 1) * hidden]
    }

    /// log p of a row's taps, but for a constant, given the states of candidate `at`; and whether they
    /// are off by no more than noise and rounding should be.
    fn judge(
        &self,
        taps: &[&[f32]],
        variances: &[Vec<f64>],
        states: &[Vec<f32>],
        at: usize,
    ) -> (f64, bool) {
        let (mut squares, mut log, mut count) = (0.0, 0.0, 0.0);
        let clip = self.view.noise.clip;
        for ((taps, variances), states) in taps.iter().zip(variances).zip(states) {
            let states = &states[at * taps.len()..(at + 1) * taps.len()];
            for ((x, y), v) in taps.iter().zip(states).zip(variances) {
                let off = f64::from(x - y.clamp(-clip, clip)).powi(2);
                squares += off / v;
                log -= off / (2.0 * (v + ASTRAY));
            }
            count += taps.len() as f64;
        }
        // A sum of `count` squares of mean 1, of spread sqrt(2 count) where they are normal.
        (log, squares < count + 6.0 * (2.0 * count).sqrt())
    }
}

/// The nearest and the likeliest tokens by turns, each once.
fn candidates(nearest: &[u32], predicted: &[f32], shortlist: usize) -> Vec<u32> {
    let mut likely: Vec<u32> = (0..predicted.len() as u32).collect();
    let by = |a: &u32, b: &u32| predicted[*b as usize].total_cmp(&predicted[*a as usize]);
    let kept = shortlist.min(likely.len());
    if kept < likely.len() {
        likely.select_nth_unstable_by(kept, by);
    }
    likely.truncate(kept);
    likely.sort_unstable_by(by);
    let mut seen = BTreeSet::new();
    let longest = nearest.len().max(likely.len());
    let turns = (0..longest).flat_map(|i| [nearest.get(i), likely.get(i)]).flatten();
    turns.copied().filter(|token| seen.insert(*token)).take(shortlist).collect()
}

/// Small batches first: most tokens are found early.
fn batches(candidates: &[u32]) -> impl Iterator<Item = &[u32]> {
    let mut rest = candidates;
    let mut size = 8;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (batch, behind) = rest.split_at(size.min(rest.len()));
        rest = behind;
        size = (2 * size).min(ROWS);
        Some(batch)
    })
}

/// The best candidate so far.
#[derive(Debug)]
struct Best {
    token: u32,
    log: f64,
    /// log p of the next best that explains the taps as this one does, or does not.
    second: f64,
    explained: bool,
}

impl Default for Best {
    fn default() -> Self {
        let none = f64::NEG_INFINITY;
        Self { token: 0, log: none, second: none, explained: false }
    }
}

impl Best {
    fn take(&mut self, token: u32, log: f64, explained: bool) {
        if (explained, log) > (self.explained, self.log) {
            let second = if explained == self.explained { self.log } else { f64::NEG_INFINITY };
            *self = Self { token, log, second, explained };
        } else if explained == self.explained {
            self.second = self.second.max(log);
        }
    }

    fn is_certain(&self) -> bool {
        self.explained && self.log - self.second > CERTAIN
    }
}
