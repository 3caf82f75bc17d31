//! What a rotation before quantisation does to its error: signs by chance, then Hadamard's matrix over
//! blocks of a power of two. [`smidgen_kernels::TapFormat`] has blocks of 64.

use smidgen_kernels::{Philox, TAP_GROUP};

/// |x' - x| / |x| over all rows of `states`, held in codes of -`limit`..=`limit` by chance, a group
/// of [`TAP_GROUP`] sharing a scale, with blocks of `block` numbers rotated first; 1 leaves them as
/// they are.
pub fn error(limit: f32, states: &[f32], hidden: usize, block: usize) -> f64 {
    let (mut signs, mut chances) = (vec![0.0; hidden], vec![0.0; hidden]);
    Philox::new(1).uniform(0, 0, &mut signs);
    let (mut off, mut all) = (0.0, 0.0);
    for (stream, row) in (1..).zip(states.chunks_exact(hidden)) {
        let mut row = row.to_vec();
        if block > 1 {
            row.iter_mut().zip(&signs).for_each(|(x, s)| *x = x.copysign(*x * (s - 0.5)));
            row.chunks_exact_mut(block).for_each(hadamard);
        }
        Philox::new(1).uniform(stream, 0, &mut chances);
        for (x, chances) in row.chunks(TAP_GROUP).zip(chances.chunks(TAP_GROUP)) {
            let step = x.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs())) / limit;
            for (x, chance) in x.iter().zip(chances) {
                off += f64::from((x / step + chance).floor() * step - x).powi(2);
                all += f64::from(*x).powi(2);
            }
        }
    }
    (off / all).sqrt()
}

/// x H, H orthogonal. The length is a power of two.
pub fn hadamard(x: &mut [f32]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (left, right) = pair.split_at_mut(half);
            for (a, b) in left.iter_mut().zip(right) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = 1.0 / (x.len() as f32).sqrt();
    x.iter_mut().for_each(|x| *x *= scale);
}
