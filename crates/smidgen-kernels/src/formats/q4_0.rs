//! Q4_0: 32 nibbles under one half-precision scale.
//!
//! | bytes | holds |
//! |---|---|
//! | 0..2 | d, f16 |
//! | 2..18 | q, nibbles: byte j has number j low and number j + 16 high |
//!
//! value = d (q - 8).

use std::array::from_fn;

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

/// Where the largest magnitude is put among the codes: from here on in steps of a quarter.
const FIRST_TOP: f32 = 6.25;
const TOPS: usize = 13;

/// Times that scale and codes are fitted to each other.
const REFITS: usize = 3;

/// The block of 32 finite numbers. Scales that put the largest magnitude near the end of the codes
/// are tried, on either side; for each, every number takes the nearest code, and the scale is
/// fitted to the codes by least squares. The one of least error is refined by taking the nearest
/// codes anew. The plain rule, which puts the largest magnitude at -8 (`quantize_row_q4_0_ref` of
/// ggml), is what has to be beaten. `None` where every scale is beyond half precision.
///
/// Numbers that a block of this format stands for are found again, for scales from 2^-13 to 2^13:
/// their largest is a whole code.
#[inline(always)]
pub(super) fn encode(numbers: &[f32; 32]) -> Option<[u8; 18]> {
    let largest = numbers.iter().fold(0.0, |a: f32, &b| if b.abs() > a.abs() { b } else { a });
    if largest.abs() < NEAREST_TO_ZERO {
        return Some(pack(0, &[0.0; 32]));
    }
    let plain = Fit::plain(numbers, largest);
    let fitted = Fit::refined(numbers, nearest(numbers, best_inverse(numbers, largest)));
    let best = match fitted.error < plain.error {
        true => fitted,
        false => plain,
    };
    best.error.is_finite().then(|| pack(best.scale, &best.codes))
}

/// Codes -8 to 7 of 32 numbers under a half-precision scale.
struct Fit {
    scale: u16,
    codes: [f32; 32],
    /// Sum of squared differences; infinite where the scale is.
    error: f64,
}

impl Fit {
    #[inline(always)]
    fn new(numbers: &[f32; 32], codes: [f32; 32], scale: f32) -> Self {
        let Some(half) = finite_half(scale) else {
            return Self { scale: 0, codes, error: f64::INFINITY };
        };
        let scale = half_to_f32(half);
        let mut sums = [0.0f64; 8];
        for i in 0..32 {
            // The product is exact: 11 bits times 4.
            let difference = f64::from(numbers[i]) - f64::from(scale * codes[i]);
            sums[i % 8] += difference * difference;
        }
        Self { scale: half, codes, error: sums.iter().sum() }
    }

    /// What ggml's reference makes of the numbers.
    #[inline(always)]
    fn plain(numbers: &[f32; 32], largest: f32) -> Self {
        let scale = largest / -8.0;
        let inverse = 1.0 / scale;
        let codes = numbers.map(|x| (x * inverse + 8.5).trunc().min(15.0) - 8.0);
        Self::new(numbers, codes, scale)
    }

    /// Scale and codes fitted to each other, from these codes on, as long as that helps.
    #[inline(always)]
    fn refined(numbers: &[f32; 32], codes: [f32; 32]) -> Self {
        let mut best = Self::new(numbers, codes, least_squares(numbers, &codes));
        for _ in 0..REFITS {
            let scale = half_to_f32(best.scale);
            if scale == 0.0 {
                break;
            }
            let codes = nearest(numbers, 1.0 / scale);
            let next = Self::new(numbers, codes, least_squares(numbers, &codes));
            if next.error >= best.error {
                break;
            }
            best = next;
        }
        best
    }
}

/// One over the scale of least error, by where it puts the largest magnitude among the codes. Small
/// whole places are for numbers that had such codes before; they come first, and rounding alone
/// does not make a later one better.
#[inline(always)]
fn best_inverse(numbers: &[f32; 32], largest: f32) -> f32 {
    let inverse = 1.0 / largest;
    let mut best = (0.0, inverse);
    let tops = (0..TOPS).map(|i| FIRST_TOP + 0.25 * i as f32);
    for top in (1..=6).map(|code| code as f32).chain(tops) {
        for top in [-top, top] {
            let removed = error_removed(numbers, top * inverse);
            if removed > best.0 * (1.0 + 1e-6) {
                best = (removed, top * inverse);
            }
        }
    }
    best.1
}

/// By how much a scale, fitted to its codes l, brings the squared error below that of zeros:
/// (sum x l)² / sum l².
#[inline(always)]
fn error_removed(numbers: &[f32; 32], inverse: f32) -> f32 {
    let codes = nearest(numbers, inverse);
    let (mut xl, mut ll): (Lanes, Lanes) = ([0.0; LANES], [0.0; LANES]);
    for (x, l) in numbers.as_chunks::<LANES>().0.iter().zip(codes.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            xl[lane] += x[lane] * l[lane];
            ll[lane] += l[lane] * l[lane];
        }
    }
    let (xl, ll) = (tree_sum(xl), tree_sum(ll));
    // The largest magnitude has a code that is not 0.
    xl * xl / ll
}

/// The nearest codes, the even one of two.
#[inline(always)]
fn nearest(numbers: &[f32; 32], inverse: f32) -> [f32; 32] {
    // 1.5 * 2^23: adding it rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    from_fn(
        #[inline(always)]
        |i| ((numbers[i] * inverse).clamp(-8.0, 7.0) + ROUND) - ROUND,
    )
}

/// The scale that brings codes nearest to numbers; 0 where all codes are.
#[inline(always)]
fn least_squares(numbers: &[f32; 32], codes: &[f32; 32]) -> f32 {
    let (mut xl, mut ll) = (0.0f64, 0.0f64);
    for (&x, &l) in numbers.iter().zip(codes) {
        xl += f64::from(x) * f64::from(l);
        ll += f64::from(l) * f64::from(l);
    }
    if ll == 0.0 { 0.0 } else { (xl / ll) as f32 }
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
