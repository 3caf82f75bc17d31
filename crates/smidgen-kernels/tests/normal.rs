//! Normal numbers: the same bits however they are cut and on every instruction set, and normal.

mod common;

use common::{random, same_on_all};
use smidgen_kernels::{Kernels, NormalKey};

const KEY: NormalKey = NormalKey { seed: 17, sample: 3 };
const COUNT: usize = 1 << 20;

fn normals(key: NormalKey, first: u64, len: usize) -> Vec<f32> {
    let mut z = vec![f32::NAN; len];
    Kernels::detect().normals(key, first, &mut z);
    z
}

#[test]
fn pieces_are_the_whole() {
    const FIRST: u64 = (u32::MAX as u64) * 4 - 301;
    let len = 1003;
    let x = random(1, len, 1.0);
    let whole = same_on_all(|kernels| {
        let (mut z, mut y, mut down) = (vec![0.0; len], vec![0.0; len], x.clone());
        kernels.normals(KEY, FIRST, &mut z);
        kernels.perturb(KEY, FIRST, 0.1, &x, &mut y);
        kernels.descend_normals(KEY, FIRST, 0.3, 0.01, &mut down);
        [z, y, down].concat()
    });
    for piece in [1, 2, 3, 15, 16, 63, 64, 65, 127, 500] {
        let pieces = same_on_all(|kernels| {
            let (mut z, mut y, mut down) = (vec![0.0; len], vec![0.0; len], x.clone());
            for from in (0..len).step_by(piece) {
                let at = from..len.min(from + piece);
                let first = FIRST + from as u64;
                kernels.normals(KEY, first, &mut z[at.clone()]);
                kernels.perturb(KEY, first, 0.1, &x[at.clone()], &mut y[at.clone()]);
                kernels.descend_normals(KEY, first, 0.3, 0.01, &mut down[at]);
            }
            [z, y, down].concat()
        });
        assert_eq!(pieces, whole, "pieces of {piece}");
    }
    let (z, rest) = whole.split_at(len);
    for (i, &x) in x.iter().enumerate() {
        assert_eq!(rest[i], 0.1f32.mul_add(z[i], x));
        assert_eq!(rest[len + i], (-0.3f32).mul_add(z[i], x * (1.0 - 0.01)));
    }
}

#[test]
fn products_are_summed_in_one_order() {
    let x = random(1, 1003, 1.0);
    for first in [0, 5, 64, 77] {
        let sums: Vec<f64> = Kernels::all().iter().map(|k| k.dot_normals(KEY, first, &x)).collect();
        assert!(sums.iter().all(|sum| sum.to_bits() == sums[0].to_bits()), "{sums:?}");
        let z = normals(KEY, first, x.len());
        let want: f64 = x.iter().zip(&z).map(|(&x, &z)| f64::from(x) * f64::from(z)).sum();
        assert!((sums[0] - want).abs() < 1e-11, "{} for {want}", sums[0]);
    }
}

#[test]
fn nothing_is_written_where_nothing_is_asked_for() {
    for kernels in Kernels::all() {
        kernels.normals(KEY, 9, &mut []);
        assert_eq!(kernels.dot_normals(KEY, 9, &[]), 0.0);
    }
}

/// Each bound is five standard deviations of what a sample of this size gives.
#[test]
fn moments_are_those_of_the_normal_distribution() {
    let z = normals(KEY, 1, COUNT);
    let n = COUNT as f64;
    let mean = |power: i32| z.iter().map(|&z| f64::from(z).powi(power)).sum::<f64>() / n;
    for (power, want, variance) in
        [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0), (6, 15.0, 10_170.0)]
    {
        let (got, bound) = (mean(power), 5.0 * f64::sqrt(variance / n));
        assert!((got - want).abs() < bound, "mean of z^{power}: {got}");
    }
    // Neighbours in a block, in a register and in a group are independent.
    for lag in [1, 16, 32, 48, 64] {
        let products = z.iter().zip(&z[lag..]).map(|(&a, &b)| f64::from(a) * f64::from(b));
        let got = products.sum::<f64>() / n;
        assert!(got.abs() < 5.0 / n.sqrt(), "correlation at {lag}: {got}");
    }
}

#[test]
fn keys_have_streams_of_their_own() {
    let z = normals(KEY, 0, COUNT);
    for other in [
        NormalKey { seed: 18, ..KEY },
        NormalKey { sample: 4, ..KEY },
        NormalKey { seed: 3, sample: 17 },
    ] {
        let got = Kernels::detect().dot_normals(other, 0, &z) / COUNT as f64;
        assert!(got.abs() < 5.0 / (COUNT as f64).sqrt(), "{other:?}: correlation {got}");
    }
}

/// The distance of Kolmogorov and Smirnov: beyond 1.95 / sqrt(n) in one of a thousand samples.
#[test]
fn the_distribution_is_the_normal_one() {
    let mut z = normals(KEY, 0, COUNT);
    z.sort_by(f32::total_cmp);
    let n = COUNT as f64;
    let distance = z.iter().enumerate().map(|(i, &z)| {
        let below = cumulative(f64::from(z));
        (below - i as f64 / n).abs().max(((i + 1) as f64 / n - below).abs())
    });
    let worst = distance.fold(0.0, f64::max);
    assert!(worst < 1.95 / n.sqrt(), "distance {worst:e}");
}

/// Of 2^25 numbers, as many as there should be lie beyond 3 to 5 standard deviations.
#[test]
fn tails_are_as_heavy_as_they_should_be() {
    const LIMITS: [f32; 5] = [3.0, 3.5, 4.0, 4.5, 5.0];
    let mut beyond = [0u32; LIMITS.len()];
    let mut z = vec![0.0; COUNT];
    for part in 0..32 {
        Kernels::detect().normals(KEY, part * COUNT as u64, &mut z);
        for (count, limit) in beyond.iter_mut().zip(LIMITS) {
            *count += z.iter().filter(|z| z.abs() > limit).count() as u32;
        }
    }
    for (count, limit) in beyond.into_iter().zip(LIMITS) {
        let want = 32.0 * COUNT as f64 * 2.0 * cumulative(-f64::from(limit));
        let bound = 5.0 * want.sqrt();
        assert!((f64::from(count) - want).abs() < bound, "{count} beyond {limit}, not {want}");
    }
}

/// The probability of less than x: the series of odd factorials near zero, the continued fraction
/// in the tails (Abramowitz and Stegun, 26.2.11 and 26.2.14).
fn cumulative(x: f64) -> f64 {
    let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    if x.abs() < 3.0 {
        let (mut term, mut sum) = (x, x);
        for k in 1..100 {
            term *= x * x / f64::from(2 * k + 1);
            sum += term;
        }
        return 0.5 + density * sum;
    }
    let fraction = (1..200).rev().fold(x.abs(), |below, k| x.abs() + f64::from(k) / below);
    let tail = density / fraction;
    if x < 0.0 { tail } else { 1.0 - tail }
}
