//! What the tests of several operations share.
#![allow(dead_code)] // Each test file uses a part.

use smidgen_kernels::{Kernels, Philox};

/// Lengths around the lanes of every instruction set, odd ones, 0 and 1 included.
pub const LENGTHS: [usize; 14] = [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100, 259];

/// Uniform numbers in [-scale, scale).
pub fn random(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    let mut x = vec![0.0; len];
    Philox::new(seed).uniform(0, 0, &mut x);
    x.iter_mut().for_each(|x| *x = (2.0 * *x - 1.0) * scale);
    x
}

/// The same numbers in f64.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Runs `f` with every instruction set, asserts that all give the same bits, and returns them.
pub fn same_on_all(f: impl Fn(Kernels) -> Vec<f32>) -> Vec<f32> {
    let mut sets = Kernels::all().into_iter();
    let want = f(sets.next().expect("the scalar set"));
    for kernels in sets {
        let got = f(kernels);
        let differs = want.iter().zip(&got).position(|(a, b)| a.to_bits() != b.to_bits());
        assert!(
            differs.is_none() && want.len() == got.len(),
            "{:?} differs from the scalar set at {differs:?}",
            kernels.isa()
        );
    }
    want
}

/// Asserts that every number is within `bound` of the reference, relative to the largest
/// reference number (at least `floor`).
pub fn assert_close(what: &str, got: &[f32], want: &[f64], bound: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let size = want.iter().fold(1e-30f64, |size, x| size.max(x.abs()));
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs() / size;
        assert!(error <= bound, "{what}[{i}]: {got} for {want}, error {error:e}");
    }
}

/// The gradient of `f` at `x` by central differences.
pub fn finite_differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let here = x[i];
            x[i] = here + STEP;
            let above = f(&x);
            x[i] = here - STEP;
            let below = f(&x);
            x[i] = here;
            (above - below) / (2.0 * STEP)
        })
        .collect()
}
