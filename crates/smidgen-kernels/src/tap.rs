//! Taps: rows of hidden states, normalised by their root mean square and held in few bits.
//!
//! A row of n numbers x is scaled to x / sqrt(mean(x²)) first. With 16 bits each is the nearest
//! half. With 8 or 4, groups of 64 share a scale s = max|x| / L, L = 127 or 7, held as a half
//! rounded up, and each number is a code q in -L..=L for q s: the nearest, or one of the two beside
//! x / s by chance, so that the mean over all chances is x itself (stochastic rounding). The chances
//! are counted from (seed, sample, layer, element), so they don't depend on who draws them when.
//!
//! A row is its scales, then its codes; two codes share a byte at 4 bits, the first in the low half.

use crate::formats::{f32_to_half, half_to_f32};
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
        assert_eq!(row.len(), self.row_bytes(x.len()), "bytes of a tap's row");
        let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let rms = (squares / x.len().max(1) as f64).sqrt() as f32;
        let inverse = if rms > 0.0 { 1.0 / rms } else { 0.0 };
        if self == Self::F16 {
            for (out, x) in row.chunks_exact_mut(2).zip(x) {
                out.copy_from_slice(&f32_to_half(x * inverse).to_le_bytes());
            }
            return rms;
        }
        let (scales, codes) = row.split_at_mut(2 * x.len().div_ceil(TAP_GROUP));
        codes.fill(0);
        for (group, x) in x.chunks(TAP_GROUP).enumerate() {
            let largest = x.iter().fold(0.0f32, |m, x| m.max((x * inverse).abs()));
            let half = half_above(largest / self.limit());
            scales[2 * group..2 * group + 2].copy_from_slice(&half.to_le_bytes());
            let scale = half_to_f32(half);
            let steps = if scale > 0.0 { inverse / scale } else { 0.0 };
            let start = group * TAP_GROUP;
            let chances = rounding.chances(start);
            for (at, x) in x.iter().enumerate() {
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
            for (at, x) in (group * TAP_GROUP..).zip(x) {
                let code = match self {
                    Self::Q4 => (codes[at / 2] << (4 * (1 - at % 2))) as i8 >> 4,
                    Self::F16 | Self::Q8 => codes[at] as i8,
                };
                *x = f32::from(code) * scale;
            }
        }
    }
}

impl TapRounding {
    /// A chance in [0, 1) for each number of the group from `start` on.
    fn chances(self, start: usize) -> Option<[f32; TAP_GROUP]> {
        let Self::Stochastic(TapKey { seed, sample, layer, position }) = self else { return None };
        let mut chances = [0.0; TAP_GROUP];
        let first = u64::from(position) << 32 | start as u64;
        Philox::new(seed).uniform(sample << 16 | u64::from(layer), first, &mut chances);
        Some(chances)
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
                let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs() / rms));
                let step = match format {
                    TapFormat::F16 => largest / 1024.0,
                    _ => largest / format.limit(),
                };
                for (x, out) in x.iter().zip(out) {
                    assert!((x / rms - out).abs() <= 0.51 * step, "{format:?} {x} {out} {step}");
                }
            }
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
            let step = f64::from(1.8 / format.limit());
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
