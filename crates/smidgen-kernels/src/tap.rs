//! Taps: rows of hidden states, normalised by their root mean square and held in few bits.
//!
//! A row of n numbers x is scaled to x / sqrt(mean(x²)) first. With 16 bits each is the nearest
//! half. With 8 or 4, groups of 64 are rotated: some signs are turned, then Hadamard's matrix is
//! applied, so that a number much larger than the others of its group is spread over all of them. A
//! group then shares a scale s = max|x| / L, L = 127 or 7, held as a half rounded up, and each number
//! is a code q in -L..=L for q s: the nearest, or one of the two beside x / s by chance, so that the
//! mean over all chances is x itself (stochastic rounding). The chances are counted from (seed,
//! sample, layer, element), so they don't depend on who draws them when. The rotation makes the error
//! 2.7 times smaller on real taps (docs/threat-model.md); it hides nothing, for it is always the same.
//!
//! A row is its scales, then its codes; two codes share a byte at 4 bits, the first in the low half.
//!
//! Of what a row says about the text it belongs to, few bits hide nothing. [`TapNoise`] cuts a row's
//! numbers off and adds normal ones first; docs/threat-model.md has what that hides.

use crate::arch::Kernels;
use crate::formats::{f32_to_half, half_to_f32};
use crate::normal::NormalKey;
use crate::philox::Philox;

/// Numbers that share a scale.
pub const TAP_GROUP: usize = 64;

/// How many bits a number of a tap takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TapFormat {
    /// A half.
    #[default]
    F16,
    /// A code of 8 bits, and a scale a group.
    Q8,
    /// A code of 4 bits, and a scale a group.
    Q4,
}

/// How codes are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TapRounding {
    /// The nearest code, the even one of two.
    Nearest,
    /// One of the two codes beside a number, by chance.
    Stochastic(TapKey),
}

/// What the chances of a row are counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapKey {
    /// The run's seed.
    pub seed: u64,
    /// The sample's number.
    pub sample: u64,
    /// The layer.
    pub layer: u16,
    /// The row's place in its sample.
    pub position: u32,
}

/// What is done to a row's numbers, in units of its root mean square, before they are held: the
/// larger ones are cut off, then normal numbers are added. The row is not normalised again.
///
/// The numbers are functions of a key alone. Who knows its seed takes them off again, so the seed is
/// a secret of the device and not the run's; and the same row of a sample gets the same numbers
/// whenever it is sent, so that sending it again tells nothing more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TapNoise {
    /// The largest magnitude that is left.
    pub clip: f32,
    /// Standard deviation of what is added.
    pub sigma: f32,
}

impl TapNoise {
    /// Nothing cut off, nothing added.
    pub const NONE: Self = Self { clip: f32::INFINITY, sigma: 0.0 };

    /// Cuts off and noises a group of a normalised row, which begins at element `start`.
    fn apply(self, kernels: Kernels, key: TapKey, start: usize, group: &mut [f32]) {
        let mut noise = [0.0; TAP_GROUP];
        if self.sigma > 0.0 {
            let (stream, first) = key.place(start);
            let normals = &mut noise[..group.len()];
            kernels.normals(NormalKey { seed: key.seed, sample: stream }, first, normals);
        }
        for (x, z) in group.iter_mut().zip(noise) {
            *x = self.sigma.mul_add(z, x.clamp(-self.clip, self.clip));
        }
    }
}

impl TapKey {
    /// The stream of a row's layer, and the number in it that belongs to element `start`.
    fn place(self, start: usize) -> (u64, u64) {
        (self.sample << 16 | u64::from(self.layer), u64::from(self.position) << 32 | start as u64)
    }
}

impl TapFormat {
    /// Bits a number: 16, 8 or 4.
    pub fn bits(self) -> usize {
        match self {
            Self::F16 => 16,
            Self::Q8 => 8,
            Self::Q4 => 4,
        }
    }

    /// Bytes of a row of `cols` numbers.
    pub fn row_bytes(self, cols: usize) -> usize {
        let scales = 2 * cols.div_ceil(TAP_GROUP);
        match self {
            Self::F16 => 2 * cols,
            Self::Q8 => scales + cols,
            Self::Q4 => scales + cols.div_ceil(2),
        }
    }

    /// The largest code.
    fn limit(self) -> f32 {
        match self {
            Self::F16 => 0.0,
            Self::Q8 => 127.0,
            Self::Q4 => 7.0,
        }
    }

    /// Normalises and holds the row `x` in `row`, [`TapFormat::row_bytes`] long. Returns the root
    /// mean square. A row of zeros stays zeros.
    ///
    /// # Panics
    /// If `row` has another length.
    pub fn encode(self, rounding: TapRounding, x: &[f32], row: &mut [u8]) -> f32 {
        self.hold(rounding, x, row, |_, _| ())
    }

    /// The same of a row that is cut off and noised first, by the numbers that `key` names.
    ///
    /// # Panics
    /// If `row` has another length.
    pub fn encode_noised(
        self,
        kernels: Kernels,
        rounding: TapRounding,
        (noise, key): (TapNoise, TapKey),
        x: &[f32],
        row: &mut [u8],
    ) -> f32 {
        self.hold(rounding, x, row, |start, group| noise.apply(kernels, key, start, group))
    }

    /// Holds a row group by group; `change` gets each normalised group and its first element's place.
    fn hold(
        self,
        rounding: TapRounding,
        x: &[f32],
        row: &mut [u8],
        change: impl Fn(usize, &mut [f32]),
    ) -> f32 {
        assert_eq!(row.len(), self.row_bytes(x.len()), "bytes of a tap's row");
        let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let rms = (squares / x.len().max(1) as f64).sqrt() as f32;
        let inverse = if rms > 0.0 { 1.0 / rms } else { 0.0 };
        let scale_bytes = if self == Self::F16 { 0 } else { 2 * x.len().div_ceil(TAP_GROUP) };
        let (scales, codes) = row.split_at_mut(scale_bytes);
        codes.fill(0);
        let mut numbers = [0.0; TAP_GROUP];
        for (number, x) in x.chunks(TAP_GROUP).enumerate() {
            let (start, group) = (number * TAP_GROUP, &mut numbers[..x.len()]);
            group.iter_mut().zip(x).for_each(|(out, x)| *out = x * inverse);
            change(start, group);
            if self == Self::F16 {
                for (out, x) in codes[2 * start..].chunks_exact_mut(2).zip(group) {
                    out.copy_from_slice(&f32_to_half(*x).to_le_bytes());
                }
                continue;
            }
            turn_signs(group);
            rotate(group);
            let largest = group.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let half = half_above(largest / self.limit());
            scales[2 * number..2 * number + 2].copy_from_slice(&half.to_le_bytes());
            let scale = half_to_f32(half);
            let steps = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            let chances = rounding.chances(start);
            for (at, x) in group.iter().enumerate() {
                let x = x * steps;
                let code = match &chances {
                    None => x.round_ties_even(),
                    Some(chances) => (x + chances[at]).floor(),
                };
                self.store(codes, start + at, code.clamp(-self.limit(), self.limit()) as i8);
            }
        }
        rms
    }

    fn store(self, codes: &mut [u8], at: usize, code: i8) {
        match self {
            Self::Q4 => codes[at / 2] |= ((code as u8) & 0xf) << (4 * (at % 2)),
            Self::F16 | Self::Q8 => codes[at] = code as u8,
        }
    }

    /// The numbers of a row that [`TapFormat::encode`] made.
    ///
    /// # Panics
    /// If `row` is not as long as such a row of as many numbers.
    pub fn decode(self, row: &[u8], x: &mut [f32]) {
        assert_eq!(row.len(), self.row_bytes(x.len()), "bytes of a tap's row");
        let half = |bytes: &[u8]| half_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]));
        if self == Self::F16 {
            row.chunks_exact(2).zip(x).for_each(|(bytes, x)| *x = half(bytes));
            return;
        }
        let (scales, codes) = row.split_at(2 * x.len().div_ceil(TAP_GROUP));
        for (group, x) in x.chunks_mut(TAP_GROUP).enumerate() {
            let scale = half(&scales[2 * group..]);
            for (at, x) in (group * TAP_GROUP..).zip(x.iter_mut()) {
                let code = match self {
                    Self::Q4 => (codes[at / 2] << (4 * (1 - at % 2))) as i8 >> 4,
                    Self::F16 | Self::Q8 => codes[at] as i8,
                };
                *x = f32::from(code) * scale;
            }
            rotate(x);
            turn_signs(x);
        }
    }
}

impl TapRounding {
    /// A chance in [0, 1) for each number of the group from `start` on.
    fn chances(self, start: usize) -> Option<[f32; TAP_GROUP]> {
        let Self::Stochastic(key) = self else { return None };
        let mut chances = [0.0; TAP_GROUP];
        let (stream, first) = key.place(start);
        Philox::new(key.seed).uniform(stream, first, &mut chances);
        Some(chances)
    }
}

/// Whose signs are turned before the rotation, a bit each: without that, a group of like numbers
/// would become one large number.
const TURNED: u64 = 0x9E37_79B9_7F4A_7C15;

fn turn_signs(x: &mut [f32]) {
    for (at, x) in x.iter_mut().enumerate() {
        *x = if TURNED >> at & 1 == 1 { -*x } else { *x };
    }
}

/// x H, with H symmetric and orthogonal: its own inverse. A group that is no power of two is cut into
/// such pieces, the largest first.
fn rotate(x: &mut [f32]) {
    let mut rest = x;
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at_mut(1 << rest.len().ilog2());
        let mut half = 1;
        while half < piece.len() {
            for pair in piece.chunks_exact_mut(2 * half) {
                let (left, right) = pair.split_at_mut(half);
                for (a, b) in left.iter_mut().zip(right) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        let scale = 1.0 / (piece.len() as f32).sqrt();
        piece.iter_mut().for_each(|x| *x *= scale);
        rest = behind;
    }
}

/// The smallest half that is at least `x`, which is not negative: codes never pass their limit.
fn half_above(x: f32) -> u16 {
    let nearest = f32_to_half(x);
    let is_below = half_to_f32(nearest) < x;
    (nearest + u16::from(is_below)).min(LARGEST_HALF)
}

/// 65,504.
const LARGEST_HALF: u16 = 0x7bff;

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [TapFormat; 3] = [TapFormat::F16, TapFormat::Q8, TapFormat::Q4];

    fn row(cols: usize, stream: u64) -> Vec<f32> {
        let mut x = vec![0.0; cols];
        Philox::new(5).uniform(stream, 0, &mut x);
        x.iter_mut().for_each(|x| *x = 6.0 * *x - 3.0);
        x
    }

    fn through(format: TapFormat, rounding: TapRounding, x: &[f32]) -> (f32, Vec<f32>) {
        let mut bytes = vec![0xff; format.row_bytes(x.len())];
        let rms = format.encode(rounding, x, &mut bytes);
        let mut out = vec![f32::NAN; x.len()];
        format.decode(&bytes, &mut out);
        (rms, out)
    }

    fn key(sample: u64) -> TapKey {
        TapKey { seed: 3, sample, layer: 7, position: 11 }
    }

    #[test]
    fn errors_are_within_half_a_step_of_the_group() {
        for (format, cols) in FORMATS.iter().flat_map(|f| [1, 2, 63, 64, 65, 200].map(|c| (*f, c)))
        {
            let x = row(cols, cols as u64);
            let (rms, out) = through(format, TapRounding::Nearest, &x);
            for (x, out) in x.chunks(TAP_GROUP).zip(out.chunks(TAP_GROUP)) {
                let mut held: Vec<f32> = x.iter().map(|x| x / rms).collect();
                let off: Vec<f32> = held.iter().zip(out).map(|(x, out)| x - out).collect();
                if format != TapFormat::F16 {
                    turn_signs(&mut held);
                    rotate(&mut held);
                }
                let largest = held.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                let step = match format {
                    TapFormat::F16 => largest / 1024.0,
                    _ => largest / format.limit(),
                };
                // The rotation keeps lengths.
                let most = 0.51 * step * (x.len() as f32).sqrt();
                let length = off.iter().map(|x| x * x).sum::<f32>().sqrt();
                assert!(length <= most, "{format:?} {length} {most}");
            }
        }
    }

    #[test]
    fn a_large_number_costs_the_others_of_its_group_little() {
        let mut x = row(64, 6);
        x[9] = 60.0;
        let (rms, out) = through(TapFormat::Q4, TapRounding::Nearest, &x);
        let squares = x.iter().zip(&out).map(|(x, out)| (x / rms - out).powi(2)).sum::<f32>();
        // Unrotated, a step is 60 / 7 and the others, at most 3, are all lost: 0.21 of a length of 8.
        assert!(squares.sqrt() / 8.0 < 0.12, "{}", squares.sqrt() / 8.0);
    }

    #[test]
    fn a_rotation_is_its_own_inverse_at_all_lengths() {
        for cols in [1, 2, 31, 33, 48, 64] {
            let x = row(cols, 7);
            let mut turned = x.clone();
            turn_signs(&mut turned);
            rotate(&mut turned);
            rotate(&mut turned);
            turn_signs(&mut turned);
            let off = x.iter().zip(&turned).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(off < 2e-6, "{cols} {off}");
        }
    }

    #[test]
    fn stochastic_rounding_is_right_in_the_mean() {
        let x = row(96, 1);
        for format in [TapFormat::Q8, TapFormat::Q4] {
            let draws = 4000;
            let mut mean = vec![0.0f64; x.len()];
            let mut rms = 0.0;
            for sample in 0..draws {
                let (found, out) = through(format, TapRounding::Stochastic(key(sample)), &x);
                rms = found;
                mean.iter_mut().zip(&out).for_each(|(m, &x)| *m += f64::from(x) / draws as f64);
            }
            // No rotated number is above 4.
            let step = f64::from(4.0 / format.limit());
            for (x, mean) in x.iter().zip(mean) {
                // The mean of `draws` draws strays by at most half a step over their root.
                let error = (f64::from(x / rms) - mean).abs();
                assert!(error < 5.0 * 0.5 * step / (draws as f64).sqrt(), "{format:?} {error}");
            }
        }
    }

    #[test]
    fn chances_are_those_of_the_key_alone() {
        let x = row(130, 2);
        let rounding = TapRounding::Stochastic(key(1));
        assert_eq!(through(TapFormat::Q4, rounding, &x), through(TapFormat::Q4, rounding, &x));
        let other = TapRounding::Stochastic(key(2));
        assert_ne!(through(TapFormat::Q4, rounding, &x).1, through(TapFormat::Q4, other, &x).1);
    }

    fn noised(format: TapFormat, noise: TapNoise, sample: u64, x: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; x.len()];
        for kernels in Kernels::all() {
            let mut bytes = vec![0xff; format.row_bytes(x.len())];
            let keyed = (noise, key(sample));
            format.encode_noised(kernels, TapRounding::Nearest, keyed, x, &mut bytes);
            let before = out.clone();
            format.decode(&bytes, &mut out);
            assert!(before[0].is_nan() || before == out, "an instruction set changes the noise");
        }
        out
    }

    #[test]
    fn no_noise_is_the_row_itself() {
        let x = row(130, 3);
        for format in FORMATS {
            let (_, plain) = through(format, TapRounding::Nearest, &x);
            assert_eq!(plain, noised(format, TapNoise::NONE, 1, &x), "{format:?}");
        }
    }

    #[test]
    fn noise_has_its_size_and_is_the_keys_alone() {
        let x = row(4096, 4);
        let (_, plain) = through(TapFormat::F16, TapRounding::Nearest, &x);
        let noise = TapNoise { sigma: 0.5, ..TapNoise::NONE };
        let (one, other) =
            (noised(TapFormat::F16, noise, 1, &x), noised(TapFormat::F16, noise, 2, &x));
        assert_eq!(one, noised(TapFormat::F16, noise, 1, &x));
        let apart = |a: &[f32], b: &[f32]| {
            let squares = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
            (squares / a.len() as f32).sqrt()
        };
        assert!((apart(&one, &plain) - 0.5).abs() < 0.02, "{}", apart(&one, &plain));
        assert!((apart(&one, &other) - 0.5f32.hypot(0.5)).abs() < 0.03, "{}", apart(&one, &other));
        // A row's first numbers are those of a longer row of the key: its place alone counts.
        let long = [&x[..], &x[..]].concat();
        let found = noised(TapFormat::F16, noise, 1, &long);
        assert!(apart(&one, &found[..4096]) < 1e-3);
        assert!(apart(&one, &found[4096..]) > 0.6);
    }

    #[test]
    fn clipping_cuts_off_outliers_before_noise() {
        let mut x = vec![0.1f32; 256];
        x[70] = 50.0;
        let noise = TapNoise { clip: 2.0, sigma: 0.0 };
        assert_eq!(noised(TapFormat::F16, noise, 1, &x)[70], 2.0);
        let noise = TapNoise { clip: 2.0, sigma: 0.1 };
        assert!((noised(TapFormat::F16, noise, 1, &x)[70] - 2.0).abs() < 0.5);
    }

    #[test]
    fn zeros_and_outliers_are_held() {
        for format in FORMATS {
            assert_eq!(through(format, TapRounding::Nearest, &[0.0; 70]), (0.0, vec![0.0; 70]));
            let mut x = vec![1e-30f32; 4096];
            x[70] = 1e20;
            let (rms, out) = through(format, TapRounding::Stochastic(key(1)), &x);
            let step = if format == TapFormat::F16 { 1e-3 } else { 1.0 / format.limit() };
            assert!((out[70] / 64.0 - 1.0).abs() < 1.01 * step, "{format:?} {}", out[70]);
            assert!(rms.is_finite() && out.iter().all(|x| x.is_finite()));
        }
    }
}
