//! What the server sees of a tap.

use smidgen_kernels::{Kernels, TAP_GROUP, TapFormat, TapKey, TapNoise, TapRounding};

/// How taps are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    pub format: TapFormat,
    pub noise: TapNoise,
}

/// The seed of the roundings, which is the run's; the noise has one that the server lacks.
const RUN_SEED: u64 = 0;
const SECRET_SEED: u64 = 0x5eed;

impl View {
    pub fn of(format: TapFormat) -> Self {
        Self { format, noise: TapNoise::NONE }
    }

    pub fn noised(sigma: f32, clip: f32) -> Self {
        Self { format: TapFormat::F16, noise: TapNoise { clip, sigma } }
    }

    pub fn name(&self) -> String {
        let TapNoise { clip, sigma } = self.noise;
        let clip = if clip.is_finite() { format!(", clip {clip}") } else { String::new() };
        let sigma = if sigma > 0.0 { format!(", sigma {sigma}") } else { String::new() };
        format!("{} bits{clip}{sigma}", self.format.bits())
    }

    /// The rows of `states`, rows x hidden, of a sample behind a layer, as they arrive.
    pub fn seen(&self, layer: usize, sample: u64, states: &[f32], hidden: usize) -> Vec<f32> {
        let mut bytes = vec![0; self.format.row_bytes(hidden)];
        let mut seen = vec![0.0; states.len()];
        let rows = states.chunks_exact(hidden).zip(seen.chunks_exact_mut(hidden));
        for (position, (row, seen)) in (0..).zip(rows) {
            let key = |seed| TapKey { seed, sample, layer: layer as u16, position };
            let rounding = TapRounding::Stochastic(key(RUN_SEED));
            let noise = (self.noise, key(SECRET_SEED));
            self.format.encode_noised(Kernels::detect(), rounding, noise, row, &mut bytes);
            self.format.decode(&bytes, seen);
        }
        seen
    }

    /// The mean square of what each number of a row that was seen is off by, noise and rounding
    /// together, as the server can tell it.
    pub fn variances(&self, seen: &[f32]) -> Vec<f64> {
        /// The largest of 64 normal numbers, about.
        const LARGEST: f64 = 2.7;
        /// Half of a half's smallest step, squared.
        const FLOOR: f64 = 1e-15;
        let noise = f64::from(self.noise.sigma).powi(2);
        let limit = f64::from((1u32 << (self.format.bits() - 1)) - 1);
        let of = |group: &[f32]| -> Vec<f64> {
            // Of the rotated group, as far as its size tells.
            let squares = group.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
            let largest = LARGEST * (squares / group.len() as f64).sqrt();
            let rounding = |x: &f32| match self.format {
                // At most half of a unit in the last place, which is at most 2⁻¹⁰ of the number.
                TapFormat::F16 => 2f64.powi(-22) / 3.0 * f64::from(*x).powi(2),
                // By chance to one of the codes beside it: step² / 6 in the mean.
                TapFormat::Q8 | TapFormat::Q4 => (largest / limit).powi(2) / 6.0,
            };
            group.iter().map(|x| noise + rounding(x) + FLOOR).collect()
        };
        seen.chunks(TAP_GROUP).flat_map(of).collect()
    }

    /// The same for each column, in the mean over rows x hidden.
    pub fn column_variances(&self, seen: &[f32], hidden: usize) -> Vec<f32> {
        let mut sums = vec![0.0; hidden];
        for row in seen.chunks_exact(hidden) {
            sums.iter_mut().zip(self.variances(row)).for_each(|(sum, v)| *sum += v);
        }
        let rows = (seen.len() / hidden).max(1) as f64;
        sums.into_iter().map(|sum| (sum / rows) as f32).collect()
    }
}
