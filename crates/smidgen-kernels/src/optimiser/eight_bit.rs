//! AdamW with its two states in 8 bits a number, block by block.
//!
//! Source: Dettmers, Lewis, Shleifer and Zettlemoyer, "8-bit Optimizers via Block-wise
//! Quantization", 2021. A number is a code times its block's largest magnitude. Codes stand for
//! the paper's dynamic map: the decades from 1e-7 to 1, each cut into even bins, twice as many in
//! each decade as in the one below. The signed map has 64 bins of each sign in the uppermost
//! decade, the unsigned one has 128.

use super::{AdamW, Update};
use crate::arch::Kernels;

/// Numbers that share a scale.
pub const EIGHT_BIT_BLOCK: usize = 256;

/// Codes in a word.
const CODES: usize = 4;

/// Words of 32 bits that an 8-bit state of `len` numbers takes: a scale for each block that is
/// begun, then the codes, four a word, the first in the lowest bits. A state is held as f32s
/// whose bits these words are; all zero is a state of zeros.
pub fn eight_bit_words(len: usize) -> usize {
    len.div_ceil(EIGHT_BIT_BLOCK) + len.div_ceil(CODES)
}

impl Kernels {
    /// [`Kernels::adamw`] with `m` and `v` in 8 bits a number, [`eight_bit_words`] words each,
    /// zero before the first step. States are decoded, updated in f32 and, after the parameters
    /// have taken their step, rounded to the nearest code; blocks count from the start of `p`.
    ///
    /// # Panics
    /// If the lengths differ or `step` is 0.
    pub fn adamw_8bit(
        &self,
        p: &mut [f32],
        g: &[f32],
        m: &mut [f32],
        v: &mut [f32],
        settings: AdamW,
        step: u64,
    ) {
        let whole = std::iter::once((p.len(), settings));
        self.adamw_8bit_in_parts(p, g, m, v, whole, step);
    }

    /// The same where parts of the parameters have settings of their own: each comes with the end
    /// of its part, in order, and the last part ends where `p` does. Blocks don't heed the parts.
    ///
    /// # Panics
    /// If the lengths differ, the parts end before `p` does or `step` is 0.
    pub fn adamw_8bit_in_parts(
        &self,
        p: &mut [f32],
        g: &[f32],
        m: &mut [f32],
        v: &mut [f32],
        parts: impl Iterator<Item = (usize, AdamW)>,
        step: u64,
    ) {
        let (len, words) = (p.len(), eight_bit_words(p.len()));
        let whole = g.len() == len && m.len() == words && v.len() == words;
        assert!(whole, "lengths of 8-bit AdamW's state");
        let mut updates =
            parts.map(|(end, settings)| (end, Update::new(settings, step))).peekable();
        let mut done = 0;
        let blocks = len.div_ceil(EIGHT_BIT_BLOCK);
        let (m_scales, m_codes) = m.split_at_mut(blocks);
        let (v_scales, v_codes) = v.split_at_mut(blocks);
        let m = m_scales.iter_mut().zip(m_codes.chunks_mut(EIGHT_BIT_BLOCK / CODES));
        let v = v_scales.iter_mut().zip(v_codes.chunks_mut(EIGHT_BIT_BLOCK / CODES));
        let p = p.chunks_mut(EIGHT_BIT_BLOCK).zip(g.chunks(EIGHT_BIT_BLOCK));
        let (mut mean, mut square) = ([0.0; EIGHT_BIT_BLOCK], [0.0; EIGHT_BIT_BLOCK]);
        for (((p, g), m), v) in p.zip(m).zip(v) {
            // Codes are looked up one by one: gathers take two to three times as long.
            MEAN.decode(*m.0, m.1, &mut mean);
            MEAN_SQUARE.decode(*v.0, v.1, &mut square);
            let mut at = 0;
            while at < p.len() {
                let (end, update) = updates.peek().expect("parts that cover all");
                let part = at..p.len().min(at + (end - done));
                let (p, g) = (&mut p[part.clone()], &g[part.clone()]);
                let (mean, square) = (&mut mean[part.clone()], &mut square[part.clone()]);
                self.compiled(
                    #[inline(always)]
                    || update.run(p, g, mean, square),
                );
                (at, done) = (part.end, done + part.len());
                if done == *end {
                    updates.next();
                }
            }
            // Codes of a last word that stand for nothing are those of zero.
            mean[p.len()..].fill(0.0);
            square[p.len()..].fill(0.0);
            *m.0 = MEAN.encode(&mut mean, m.1);
            *v.0 = MEAN_SQUARE.encode(&mut square, v.1);
        }
    }
}

/// What the 256 codes stand for, as parts of a block's scale.
#[derive(Debug)]
struct Map {
    /// Rising.
    values: [f32; 256],
    /// The code of zero: 127 with a sign, and then -values[127 - i] = values[127 + i]; else 0.
    zero: u8,
    /// Halfway from each value to the next, rounded to f32; the last is never passed.
    bounds: [f32; 256],
    /// The code nearest to each f32 in 0..=1 whose lower 16 bits are zero, from [`LEAST`] on. From
    /// one to the next there is at most one bound.
    first: [u8; (ONE - LEAST) as usize + 1],
}

/// The upper 16 bits of 2^-24, which is below all positive bounds.
const LEAST: u32 = 0x3380;

/// The upper 16 bits of 1.
const ONE: u32 = 0x3f80;

static MEAN: Map = Map::new(true);
static MEAN_SQUARE: Map = Map::new(false);

impl Map {
    const fn new(signed: bool) -> Self {
        let mut values = [0.0; 256];
        values[255] = 1.0;
        let zero = if signed { 127 } else { 0 };
        let (mut code, mut decade, mut bins) = (zero + 1, 1e6, if signed { 1 } else { 2 });
        while code < 255 {
            let mut bin = 0;
            while bin < bins {
                // The bin's middle: 0.1 + 0.9 (bin + 1/2) / bins, so many decades down.
                let middle = (2 * bins + 18 * bin + 9) as f64 / (20 * bins) as f64;
                values[code] = (middle / decade) as f32;
                if signed {
                    values[2 * zero - code] = -values[code];
                }
                code += 1;
                bin += 1;
            }
            decade /= 10.0;
            bins *= 2;
        }
        let bounds = Self::bounds(&values);
        let (mut first, mut i, mut code) = ([0; _], 0, zero);
        while i < first.len() {
            while f32::from_bits((LEAST + i as u32) << 16) > bounds[code] {
                code += 1;
            }
            first[i] = code as u8;
            i += 1;
        }
        Self { values, zero: zero as u8, bounds, first }
    }

    const fn bounds(values: &[f32; 256]) -> [f32; 256] {
        let mut bounds = [f32::INFINITY; 256];
        let mut code = 0;
        while code < 255 {
            bounds[code] = ((values[code] as f64 + values[code + 1] as f64) / 2.0) as f32;
            code += 1;
        }
        bounds
    }

    /// The code nearest to a part of the scale, -1..=1, of two at a bound the one nearer to zero.
    /// A NaN has that of 1.
    fn code(&self, part: f32) -> u8 {
        let size = part.abs();
        let upper = (size.to_bits() >> 16).clamp(LEAST, ONE);
        let first = self.first[(upper - LEAST) as usize];
        let code = first + u8::from(size > self.bounds[usize::from(first)]);
        // There is no -1: below -0.9965 it is the last negative value, too.
        let below = (2 * self.zero).saturating_sub(code);
        if part < 0.0 { below } else { code }
    }

    /// The numbers of a block, as many as there are codes.
    fn decode(&self, scale: f32, codes: &[f32], numbers: &mut [f32; EIGHT_BIT_BLOCK]) {
        let (quads, _) = numbers.as_chunks_mut::<CODES>();
        for (quad, word) in quads.iter_mut().zip(codes) {
            *quad = word.to_bits().to_le_bytes().map(|code| self.values[usize::from(code)] * scale);
        }
    }

    /// Writes a block's codes and returns its scale. `numbers` are parts of the scale afterwards.
    fn encode(&self, numbers: &mut [f32; EIGHT_BIT_BLOCK], codes: &mut [f32]) -> f32 {
        let mut scale = 0.0f32;
        for number in numbers.iter() {
            let size = number.abs();
            scale = if size > scale { size } else { scale };
        }
        // A block of zeros has 0 for each part, not 0 / 0.
        let divisor = if scale > 0.0 { scale } else { 1.0 };
        numbers.iter_mut().for_each(|number| *number /= divisor);
        for (parts, word) in numbers.as_chunks::<CODES>().0.iter().zip(codes) {
            *word = f32::from_bits(u32::from_le_bytes(parts.map(|part| self.code(part))));
        }
        scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::Philox;

    const SETTINGS: AdamW =
        AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };

    /// Numbers of both signs over eight decades, some of them zero.
    fn spread(seed: u64, len: usize) -> Vec<f32> {
        let (mut x, mut size) = (vec![0.0; len], vec![0.0; len]);
        Philox::new(seed).uniform(0, 0, &mut x);
        Philox::new(seed).uniform(1, 0, &mut size);
        let number = |(x, size): (&f32, &f32)| {
            if *size < 0.05 { 0.0 } else { (2.0 * x - 1.0) * 10f32.powf(-8.0 * size) }
        };
        x.iter().zip(&size).map(number).collect()
    }

    #[test]
    fn maps_have_the_papers_values() {
        for (map, zero) in [(&MEAN, 127), (&MEAN_SQUARE, 0)] {
            assert!(map.values.windows(2).all(|pair| pair[0] < pair[1]), "256 rising values");
            assert_eq!((map.values[zero], map.values[255]), (0.0, 1.0));
        }
        for code in 1..=127 {
            assert_eq!(MEAN.values[127 - code], -MEAN.values[127 + code]);
        }
        // A decade's first code, its bins and its power.
        for (map, first, least) in [(&MEAN, 128, 1), (&MEAN_SQUARE, 1, 2)] {
            let mut first = first;
            for decade in 0..7 {
                let (bins, power) = (least << decade, 10f64.powi(decade - 6));
                let step = 0.9 / f64::from(bins);
                for bin in 0..bins {
                    let middle = power * (0.1 + step * (f64::from(bin) + 0.5));
                    let found = f64::from(map.values[first + bin as usize]);
                    assert!((found - middle).abs() < 1e-7 * middle, "{found} for {middle}");
                }
                first += bins as usize;
            }
            assert_eq!(first, 255);
        }
    }

    #[test]
    fn codes_are_the_nearest_ones() {
        for map in [&MEAN, &MEAN_SQUARE] {
            for (code, value) in map.values.iter().enumerate() {
                assert_eq!(usize::from(map.code(*value)), code);
            }
            for code in usize::from(map.zero)..255 {
                let bound = map.bounds[code];
                assert_eq!(usize::from(map.code(bound)), code, "at the bound");
                assert_eq!(usize::from(map.code(bound.next_up())), code + 1);
            }
            // At most one bound from an entry of `first` to the next.
            assert!(map.first.windows(2).all(|pair| pair[1] - pair[0] <= 1));
            assert_eq!(map.first[0], map.zero);
        }
        for code in 0..127 {
            let bound = MEAN.bounds[code];
            assert_eq!(usize::from(MEAN.code(bound)), code + 1, "nearer to zero at the bound");
            assert_eq!(usize::from(MEAN.code(bound.next_down())), code);
        }
        for (part, codes) in [
            (0.0, [127, 0]),
            (-0.0, [127, 0]),
            (f32::from_bits(1), [127, 0]),
            (1.0, [255, 255]),
            (f32::INFINITY, [255, 255]),
            (f32::NAN, [255, 255]),
        ] {
            assert_eq!([&MEAN, &MEAN_SQUARE].map(|map| map.code(part)), codes, "{part}");
        }
        assert_eq!([-1.0, f32::NEG_INFINITY].map(|part| MEAN.code(part)), [0, 0]);
    }

    /// Half a bin of the uppermost decade a number of that decade, and so on down, with the
    /// negative end, which has no -1, and the rounding of products a little beyond.
    #[test]
    fn a_round_trip_is_within_half_a_bin() {
        for (map, least, signed) in [(&MEAN, 1.0, true), (&MEAN_SQUARE, 2.0, false)] {
            let mut block = spread(3, EIGHT_BIT_BLOCK);
            if !signed {
                block.iter_mut().for_each(|x| *x = x.abs());
            }
            let (mut codes, mut back) = ([0.0; 64], [0.0; EIGHT_BIT_BLOCK]);
            let mut parts = *block.first_chunk().expect("a block");
            let scale = map.encode(&mut parts, &mut codes);
            assert_eq!(scale, block.iter().fold(0.0, |s: f32, x| s.max(x.abs())));
            map.decode(scale, &codes, &mut back);
            for (x, back) in block.iter().zip(back) {
                let part = f64::from(*x) / f64::from(scale);
                // Parts between two decades take the wider bins of the upper one's scale.
                let decade = part.abs().log10().ceil().clamp(-6.0, 0.0);
                let bins = least * 2f64.powf(6.0 + decade);
                let bound = 10f64.powf(decade) * (0.45 / bins) * 1.4;
                let error = f64::from((back - x).abs()) / f64::from(scale);
                assert!(error <= bound, "{x} of {scale}: {back}, off {error:e} of {bound:e}");
                assert!(*x != 0.0 || back == 0.0, "zero stays zero");
            }
        }
    }

    /// The kernel's words are those of the f32 kernel on decoded states, encoded again.
    #[test]
    fn an_update_is_the_f32_one_between_decoding_and_encoding() {
        let kernels = Kernels::scalar();
        for len in [0, 1, 3, 255, 256, 257, 700] {
            let words = eight_bit_words(len);
            let (mut p, mut m, mut v) = (spread(1, len), vec![0.0; words], vec![0.0; words]);
            let (mut want, mut blocks) = (p.clone(), vec![([0.0; 256], [0.0; 256]); 3]);
            for step in 1..=4 {
                let g = spread(10 + step, len);
                kernels.adamw_8bit(&mut p, &g, &mut m, &mut v, SETTINGS, step);
                let runs = want.chunks_mut(256).zip(g.chunks(256)).zip(&mut blocks);
                for (i, ((p, g), (mean, square))) in runs.enumerate() {
                    let n = p.len();
                    let (mean, square) = (&mut mean[..n], &mut square[..n]);
                    kernels.adamw(p, g, mean, square, SETTINGS, step);
                    for (map, state, words) in [(&MEAN, mean, &m), (&MEAN_SQUARE, square, &v)] {
                        let size = state.iter().fold(0.0, |s: f32, x| s.max(x.abs()));
                        let codes = &words[len.div_ceil(256)..];
                        assert_eq!(words[i], size);
                        for (j, x) in state.iter_mut().enumerate() {
                            let at = 256 * i + j;
                            let code = codes[at / 4].to_bits() >> (8 * (at % 4)) & 255;
                            let part = *x / size.max(f32::MIN_POSITIVE);
                            let off = |value: &f32| (f64::from(*value) - f64::from(part)).abs();
                            let near = map.values.iter().min_by(|a, b| off(a).total_cmp(&off(b)));
                            let found = map.values[code as usize];
                            assert!(off(&found) <= off(near.expect("256")) * 1.000_001);
                            *x = found * size;
                        }
                    }
                }
                assert_eq!(p, want, "{len} numbers, step {step}");
            }
        }
    }
}
