//! Q4_0: 32 nibbles under one half-precision scale.
//!
//! | bytes | holds |
//! |---|---|
//! | 0..2 | d, f16 |
//! | 2..18 | q, nibbles: byte j has number j low and number j + 16 high |
//!
//! value = d (q - 8).

use super::bytes::ByteOps;
use super::coded::{Coded, Factors, bytes_at, half_at};
use super::float::{finite_half, half_to_f32};
use crate::lanes::{LANES, Lanes, tree_sum};

/// See the module.
pub(crate) struct Q4_0;

impl Coded for Q4_0 {
    const LEN: usize = 32;
    const BYTES: usize = 18;
    const GROUP: usize = 32;
    const OFFSET: bool = false;

    #[inline(always)]
    fn unpack<S: ByteOps>(set: S, block: &[u8], codes: &mut [[i8; 32]]) {
        let q = set.nibbles(bytes_at(block, 2));
        set.store(set.sub(q, 8), &mut codes[0]);
    }

    #[inline(always)]
    fn factors(block: &[u8]) -> Factors {
        Factors::one(half_at(block, 0), 0)
    }
}

/// Magnitudes below this are nearer to 0 than to any other multiple of a half-precision number:
/// half of the smallest one.
const NEAREST_TO_ZERO: f32 = 1.0 / (1 << 25) as f32;

/// Places among the codes that the largest magnitude is put at, on either side. Small whole ones
/// are for numbers that had such codes before.
const TOPS: [f32; 18] = [
    1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.25, 6.5, 6.75, 7.0, 7.25, 7.5, 7.75, 8.0, 8.25, 8.5, 8.75, 9.0,
];

/// Times that scale and codes are fitted to each other.
const REFITS: usize = 3;

/// The block of 32 finite numbers, by weighted least squares. Scales that put the largest magnitude
/// near the end of the codes are tried, on either side; for each, every number takes the nearest
/// code, and the scale is fitted to the codes. The one of least error is refined by taking the
/// nearest codes anew. A number's weight is its square and the mean of all squares: without them,
/// scales come out that cut the largest numbers off, which a model needs most.
///
/// What has to be beaten is the plain rule, which puts the largest magnitude at -8
/// (`quantize_row_q4_0_ref` of ggml): in the weighted error, and in the plain one no block is
/// worse. `None` where every scale is beyond half precision.
///
/// Numbers that a block of this format stands for are found again, for scales from 2^-13 to 2^13:
/// their largest is a whole code.
#[inline(always)]
pub(super) fn encode(numbers: &[f32; 32]) -> Option<[u8; 18]> {
    let mut largest = 0.0f32;
    for &x in numbers {
        largest = if x.abs() > largest.abs() { x } else { largest };
    }
    if largest.abs() < NEAREST_TO_ZERO {
        return Some(pack(0, &[0.0; 32]));
    }
    let block = Block::new(numbers, largest);
    let (plain, fitted) = (block.plain(largest), block.fitted(largest));
    let is_better = fitted.weighted < plain.weighted && fitted.error <= plain.error;
    let best = if is_better { fitted } else { plain };
    best.error.is_finite().then(|| pack(best.scale, &best.codes))
}

/// 32 numbers and their weights.
struct Block<'a> {
    numbers: &'a [f32; 32],
    weights: [f32; 32],
}

/// Codes -8 to 7 of 32 numbers under a half-precision scale.
struct Fit {
    scale: u16,
    codes: [f32; 32],
    /// Sum of squared differences; infinite where the scale is.
    error: f64,
    /// The same, each times its number's weight.
    weighted: f64,
}

impl<'a> Block<'a> {
    #[inline(always)]
    fn new(numbers: &'a [f32; 32], largest: f32) -> Self {
        let mut lanes = [0.0; LANES];
        let inverse = 1.0 / largest;
        let mut weights = [0.0; 32];
        for (w, x) in weights.iter_mut().zip(numbers) {
            *w = (x * inverse) * (x * inverse);
        }
        for w in weights.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                lanes[lane] += w[lane];
            }
        }
        let mean = tree_sum(lanes) / 32.0;
        for w in &mut weights {
            *w += mean;
        }
        Self { numbers, weights }
    }

    /// What ggml's reference makes of the numbers.
    #[inline(always)]
    fn plain(&self, largest: f32) -> Fit {
        let scale = largest / -8.0;
        let inverse = 1.0 / scale;
        let mut codes = [0.0; 32];
        for (code, x) in codes.iter_mut().zip(self.numbers) {
            *code = ((x * inverse + 8.5) as i32 as f32).min(15.0) - 8.0;
        }
        self.fit(codes, scale)
    }

    /// Scale and codes of least weighted error among those that are tried.
    #[inline(always)]
    fn fitted(&self, largest: f32) -> Fit {
        let codes = self.nearest(self.best_inverse(largest));
        let mut best = self.fit(codes, self.least_squares(&codes));
        for _ in 0..REFITS {
            let scale = half_to_f32(best.scale);
            if scale == 0.0 {
                break;
            }
            let codes = self.nearest(1.0 / scale);
            let next = self.fit(codes, self.least_squares(&codes));
            if next.weighted >= best.weighted {
                break;
            }
            best = next;
        }
        best
    }

    /// One over the scale of least weighted error, by where it puts the largest magnitude among the
    /// codes. Small places come first, and rounding alone does not make a later one better.
    #[inline(always)]
    fn best_inverse(&self, largest: f32) -> f32 {
        let inverse = 1.0 / largest;
        let mut best = (0.0, inverse);
        for top in TOPS {
            for candidate in [-top * inverse, top * inverse] {
                let removed = self.error_removed(candidate);
                if removed > best.0 * (1.0 + 1e-6) {
                    best = (removed, candidate);
                }
            }
        }
        best.1
    }

    /// By how much a scale, fitted to its codes l, brings the weighted error below that of zeros:
    /// (sum w x l)² / sum w l².
    #[inline(always)]
    fn error_removed(&self, inverse: f32) -> f32 {
        let (mut xl, mut ll): (Lanes, Lanes) = ([0.0; LANES], [0.0; LANES]);
        let (numbers, weights) = (self.numbers.as_chunks().0, self.weights.as_chunks().0);
        for (x, w) in numbers.iter().zip(weights) {
            let (x, w): (&Lanes, &Lanes) = (x, w);
            for lane in 0..LANES {
                let l = nearest(x[lane] * inverse);
                let wl = w[lane] * l;
                xl[lane] += wl * x[lane];
                ll[lane] += wl * l;
            }
        }
        let (xl, ll) = (tree_sum(xl), tree_sum(ll));
        // The largest magnitude has a code that is not 0.
        xl * xl / ll
    }

    /// The codes with their errors under a scale.
    #[inline(always)]
    fn fit(&self, codes: [f32; 32], scale: f32) -> Fit {
        let Some(half) = finite_half(scale) else {
            return Fit { scale: 0, codes, error: f64::INFINITY, weighted: f64::INFINITY };
        };
        let scale = half_to_f32(half);
        let (mut error, mut weighted) = ([0.0f64; 8], [0.0f64; 8]);
        for i in 0..32 {
            // The product is exact: 11 bits times 4.
            let difference = f64::from(self.numbers[i]) - f64::from(scale * codes[i]);
            error[i % 8] += difference * difference;
            weighted[i % 8] += f64::from(self.weights[i]) * (difference * difference);
        }
        let (error, weighted) = (error.iter().sum(), weighted.iter().sum());
        Fit { scale: half, codes, error, weighted }
    }

    /// The nearest codes.
    #[inline(always)]
    fn nearest(&self, inverse: f32) -> [f32; 32] {
        let mut codes = [0.0; 32];
        for (l, x) in codes.iter_mut().zip(self.numbers) {
            *l = nearest(x * inverse);
        }
        codes
    }

    /// The scale that brings codes nearest to numbers; 0 where all codes are.
    #[inline(always)]
    fn least_squares(&self, codes: &[f32; 32]) -> f32 {
        let (mut xl, mut ll) = ([0.0f64; 8], [0.0f64; 8]);
        for i in 0..32 {
            let wl = f64::from(self.weights[i]) * f64::from(codes[i]);
            xl[i % 8] += wl * f64::from(self.numbers[i]);
            ll[i % 8] += wl * f64::from(codes[i]);
        }
        let (xl, ll): (f64, f64) = (xl.iter().sum(), ll.iter().sum());
        if ll == 0.0 { 0.0 } else { (xl / ll) as f32 }
    }
}

/// The nearest code, the even one of two.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    // 1.5 * 2^23: adding it rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    (x.clamp(-8.0, 7.0) + ROUND) - ROUND
}

/// The bytes of a block.
#[inline(always)]
fn pack(scale: u16, codes: &[f32; 32]) -> [u8; 18] {
    let mut block = [0; 18];
    let (d, q) = block.split_at_mut(2);
    d.copy_from_slice(&scale.to_le_bytes());
    let (low, high) = codes.split_at(16);
    for (q, (low, high)) in q.iter_mut().zip(low.iter().zip(high)) {
        *q = (low + 8.0) as u8 | ((high + 8.0) as u8) << 4;
    }
    block
}
