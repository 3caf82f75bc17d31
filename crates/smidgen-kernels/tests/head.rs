//! The vocabulary sweep's softmax against f64: losses, gradients, tiles and instruction sets.

mod common;

use common::{random, wide};
use smidgen_kernels::{Kernels, MatMut, RowResult, RowState};

const VOCAB: usize = 101;
const HIDDEN: usize = 5;

/// Sweeps the rows' logits in tiles of `width` and adds S' up in plain f32: results and dX.
fn sweep(
    kernels: Kernels,
    logits: &[f32],
    targets: &[u32],
    w: &[f32],
    width: usize,
) -> (Vec<RowResult>, Vec<f32>) {
    let rows = targets.len();
    let mut states = vec![RowState::NEW; rows];
    let mut factors = vec![0.0; rows];
    let mut dx = vec![0.0f32; rows * HIDDEN];
    let mut all = logits.to_vec();
    for (first, mut tile) in MatMut::new(&mut all, rows, VOCAB).col_tiles(width) {
        kernels.softmax_tile(tile.reborrow(), first, targets, &mut states, &mut factors);
        for row in 0..rows {
            for (h, dx) in dx[row * HIDDEN..][..HIDDEN].iter_mut().enumerate() {
                *dx *= factors[row];
                for (i, e) in tile.as_ref().row(row).iter().enumerate() {
                    *dx += e * w[(first + i) * HIDDEN + h];
                }
            }
        }
    }
    let results: Vec<_> = states.iter().map(|state| state.finish(0.5)).collect();
    for (row, result) in results.iter().enumerate() {
        for h in 0..HIDDEN {
            let dx = &mut dx[row * HIDDEN + h];
            *dx = *dx * result.sum_factor
                + result.target_factor * w[targets[row] as usize * HIDDEN + h];
        }
    }
    (results, dx)
}

/// Loss and dX of one row in f64, by differences from the target so that nothing cancels.
fn reference(logits: &[f32], target: usize, w: &[f32]) -> (f64, Vec<f64>) {
    let l = wide(logits);
    let others: Vec<f64> =
        (0..VOCAB).map(|v| if v == target { 0.0 } else { (l[v] - l[target]).exp() }).collect();
    let odds: f64 = others.iter().sum();
    let dx = (0..HIDDEN).map(|h| {
        let w = |v: usize| f64::from(w[v * HIDDEN + h]);
        (0..VOCAB).map(|v| others[v] * (w(v) - w(target))).sum::<f64>() / (1.0 + odds) * 0.5
    });
    (odds.ln_1p(), dx.collect())
}

#[test]
fn losses_and_gradients_for_every_confidence() {
    let w = random(1, VOCAB * HIDDEN, 1.0);
    // How far the target's logit stands above the others: losses from 80 down to 1e-9.
    let heights = [-80.0f32, -30.0, -3.0, 0.0, 3.0, 10.0, 16.0, 25.0];
    let targets: Vec<u32> = (0..heights.len()).map(|row| (row * 14) as u32).collect();
    let mut logits = random(2, heights.len() * VOCAB, 1.0);
    for (row, height) in heights.iter().enumerate() {
        logits[row * VOCAB + targets[row] as usize] = *height;
    }
    for kernels in Kernels::all() {
        for width in [1, 16, 37, VOCAB] {
            let (results, dx) = sweep(kernels, &logits, &targets, &w, width);
            for (row, result) in results.iter().enumerate() {
                let target = targets[row] as usize;
                let (loss, want) = reference(&logits[row * VOCAB..][..VOCAB], target, &w);
                assert!((result.loss / loss - 1.0).abs() < 2e-6, "{} for {loss}", result.loss);
                assert_eq!(result.correct, heights[row] >= 1.0);
                let size = want.iter().fold(0.0f64, |size, x| size.max(x.abs()));
                for (got, want) in dx[row * HIDDEN..][..HIDDEN].iter().zip(want) {
                    let error = (f64::from(*got) - want).abs() / size;
                    assert!(error < 1e-5, "loss {loss:e}: {got:e} for {want:e}");
                }
            }
        }
    }
}

#[test]
fn extreme_logits_give_finite_losses() {
    let w = random(1, VOCAB * HIDDEN, 1.0);
    for (others, target, loss) in [
        (1e4f32, -1e4f32, 2e4 + 100f64.ln()),
        (-1e4, 1e4, 0.0),
        (3e4, 3e4, 101f64.ln()),
        (-3e4, -3e4, 101f64.ln()),
        (0.0, -200.0, 200.0 + 100f64.ln()),
    ] {
        let mut logits = vec![others; VOCAB];
        logits[40] = target;
        for kernels in Kernels::all() {
            for width in [1, 16, VOCAB] {
                let (results, dx) = sweep(kernels, &logits, &[40], &w, width);
                assert!((results[0].loss - loss).abs() <= 1e-6 * loss, "{}", results[0].loss);
                assert!(dx.iter().all(|x| x.is_finite()));
            }
        }
    }
}

#[test]
fn a_logit_that_is_no_number_shows_in_the_loss() {
    let mut logits = vec![0.0; VOCAB];
    logits[7] = f32::NAN;
    let w = vec![0.0; VOCAB * HIDDEN];
    for kernels in Kernels::all() {
        assert!(sweep(kernels, &logits, &[3], &w, 16).0[0].loss.is_nan());
        assert!(sweep(kernels, &logits, &[7], &w, 16).0[0].loss.is_nan());
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let w = random(1, VOCAB * HIDDEN, 1.0);
    let (logits, targets) = (random(5, 3 * VOCAB, 20.0), [0, 50, 100]);
    for width in [1, 15, 16, 33, VOCAB] {
        let want = sweep(Kernels::scalar(), &logits, &targets, &w, width);
        for kernels in Kernels::all() {
            assert_eq!(sweep(kernels, &logits, &targets, &w, width), want);
        }
    }
}
