//! Normal numbers by counting: z ~ N(0, 1), each a function of a key and its place alone.
//!
//! Source: Box and Muller, "A note on the generation of random normal deviates", 1958, on Philox's
//! words. Zeroth-order training (Malladi et al., 2023, arXiv:2305.17333) moves parameters along
//! such numbers forth and back, and makes them anew each time instead of holding them.
//!
//! Numbers come in groups of 64, which 16 blocks of four words make: number 64 g + 16 w + l of a
//! stream is normal w of block 16 g + l, so that lanes of a register are blocks next to each other
//! and nothing is shuffled. Words 0 and 1 of a block are the radius and the angle of its normals 0
//! and 1 (r cos, r sin), words 2 and 3 those of its normals 2 and 3.

use std::f32::consts::{LN_2, SQRT_2, TAU};
use std::ops::Range;

use crate::arch::Kernels;
use crate::lanes::LANES;
use crate::philox::{PHILOX_WORDS, Philox};

/// What names a stream of normal numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NormalKey {
    /// The run's seed.
    pub seed: u64,
    /// Which of the seed's streams: the optimiser's step, say.
    pub sample: u64,
}

/// Normal numbers that are made at a time.
const GROUP: usize = LANES * PHILOX_WORDS;

/// The half of a counter that tells these streams' keys from all else that a seed is used for.
const DOMAIN: u64 = u64::from_le_bytes(*b"normals\0");

impl Kernels {
    /// Numbers `first`.. of a stream: their absolute error is below 1e-6, the largest is 6.77.
    pub fn normals(&self, key: NormalKey, first: u64, out: &mut [f32]) {
        self.with_normals(
            key,
            first,
            out.len(),
            #[inline(always)]
            |at, z| out[at].copy_from_slice(z),
        );
    }

    /// Sets `y` to `x` moved along the stream: y_i = fma(`scale`, z_i, x_i), with z_i number
    /// `first` + i.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn perturb(&self, key: NormalKey, first: u64, scale: f32, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "lengths of parameters before and after");
        self.with_normals(
            key,
            first,
            x.len(),
            #[inline(always)]
            |at, z| {
                for ((y, &x), &z) in y[at.clone()].iter_mut().zip(&x[at]).zip(z) {
                    *y = scale.mul_add(z, x);
                }
            },
        );
    }

    /// A step down along the stream with decay: x_i = fma(-`step`, z_i, x_i k), where k = 1 -
    /// `decay` and x_i k are rounded first. MeZO's update has `step` = lr g, with g the projected
    /// gradient, and `decay` = lr weight_decay.
    pub fn descend_normals(
        &self,
        key: NormalKey,
        first: u64,
        step: f32,
        decay: f32,
        x: &mut [f32],
    ) {
        let keep = 1.0 - decay;
        self.with_normals(
            key,
            first,
            x.len(),
            #[inline(always)]
            |at, z| {
                for (x, &z) in x[at].iter_mut().zip(z) {
                    *x = (-step).mul_add(z, *x * keep);
                }
            },
        );
    }

    /// Sum of x_i z_i in f64. Products of f32s are exact there; element i is added to lane
    /// (`first` + i) mod 16, the lanes in order.
    pub fn dot_normals(&self, key: NormalKey, first: u64, x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        self.with_normals(
            key,
            first,
            x.len(),
            #[inline(always)]
            |at, z| {
                let lane = ((first + at.start as u64) % LANES as u64) as usize;
                add_products(&mut lanes, lane, &x[at], z);
            },
        );
        lanes.iter().sum()
    }

    /// Calls `each` with pieces of `first`..`first + len`, in order: where a piece lies from
    /// `first` on, and its numbers. A piece ends where a group does.
    #[inline(always)]
    fn with_normals(
        &self,
        key: NormalKey,
        first: u64,
        len: usize,
        mut each: impl FnMut(Range<usize>, &[f32]),
    ) {
        let stream = Stream::new(key);
        self.compiled(
            #[inline(always)]
            || {
                let mut done = 0;
                while done < len {
                    let element = first.wrapping_add(done as u64);
                    let group = stream.group(element / GROUP as u64);
                    let skip = (element % GROUP as u64) as usize;
                    let end = len.min(done + GROUP - skip);
                    each(done..end, &group.as_flattened()[skip..][..end - done]);
                    done = end;
                }
            },
        );
    }
}

/// Adds products to the lanes in turn, from `lane` on.
#[inline(always)]
fn add_products(lanes: &mut [f64; LANES], lane: usize, x: &[f32], z: &[f32]) {
    if lane == 0 && x.len() == GROUP {
        for (x, z) in x.as_chunks::<LANES>().0.iter().zip(z.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                lanes[lane] += f64::from(x[lane]) * f64::from(z[lane]);
            }
        }
        return;
    }
    for (i, (&x, &z)) in x.iter().zip(z).enumerate() {
        lanes[(lane + i) % LANES] += f64::from(x) * f64::from(z);
    }
}

/// A stream's function from counters to words.
struct Stream {
    philox: Philox,
    upper: u64,
}

impl Stream {
    /// One block of the seed's own function, a bijection of the sample, gives the stream's key
    /// and the upper half of its counter.
    fn new(key: NormalKey) -> Self {
        let [a, b, c, d] = Philox::new(key.seed).block(key.sample, DOMAIN);
        let join = |lower: u32, upper: u32| u64::from(lower) | u64::from(upper) << 32;
        Self { philox: Philox::new(join(a, b)), upper: join(c, d) }
    }

    /// The numbers of a group: normal w of its block l at `[w][l]`.
    ///
    /// One loop with all of a block in its body: the compiler makes each lane a lane of a register.
    #[inline(always)]
    fn group(&self, group: u64) -> [[f32; LANES]; PHILOX_WORDS] {
        let first_block = group * LANES as u64;
        let mut z = [[0.0; LANES]; PHILOX_WORDS];
        let [z_0, z_1, z_2, z_3] = &mut z;
        for lane in 0..LANES {
            let words = self.philox.block(first_block + lane as u64, self.upper);
            [z_0[lane], z_1[lane]] = polar(words[0], words[1]);
            [z_2[lane], z_3[lane]] = polar(words[2], words[3]);
        }
        z
    }
}

/// Two normals, r cos and r sin, of words that stand for the radius and the angle.
#[inline(always)]
fn polar(radius_word: u32, angle_word: u32) -> [f32; 2] {
    let r = radius(radius_word);
    let (cos, sin) = cos_sin(angle_word);
    [r * cos, r * sin]
}

/// sqrt(-2 ln u) with u = (word + 1/2) / 2³² in [2⁻³³, 1], rounded to an f32: tails reach as far as
/// 33 bits do.
///
/// Method: u = 2ⁿ (1 + f) with 1 + f from sqrt(1/2) to sqrt(2); ln(1 + f) = f - f²/2 + f³ q(f) with
/// q the minimax polynomial of degree 6 for the relative error of the logarithm (3e-8).
#[inline(always)]
fn radius(word: u32) -> f32 {
    const STEP: f32 = 1.0 / (1u64 << 32) as f32;
    const LOWEST: u32 = (SQRT_2 / 2.0).to_bits();
    let u = (word as f32 + 0.5) * STEP;
    let above = u.to_bits().wrapping_sub(LOWEST);
    let n = (above as i32 >> 23) as f32;
    let f = f32::from_bits((above & 0x007F_FFFF) + LOWEST) - 1.0;
    let q = 8.700_368e-2_f32
        .mul_add(f, -1.426_749e-1)
        .mul_add(f, 1.491_479e-1)
        .mul_add(f, -1.657_758_5e-1)
        .mul_add(f, 1.996_306_2e-1)
        .mul_add(f, -2.500_133_8e-1)
        .mul_add(f, 3.333_391e-1);
    let ln = n.mul_add(LN_2, (f * f).mul_add(f.mul_add(q, -0.5), f));
    (-2.0 * ln).sqrt()
}

/// cos and sin of word / 2³² turns.
///
/// Method: what is left of the word beside the nearest quarter of a turn is an angle x of at most
/// pi / 4; sin x = x + x³ p(x²) and cos x = 1 - x²/2 + x⁴ q(x²) with p and q the minimax polynomials
/// of degree 2 (4e-9 of the sine, 1e-10).
#[inline(always)]
fn cos_sin(word: u32) -> (f32, f32) {
    const STEP: f32 = TAU / (1u64 << 32) as f32;
    const SIGN: u32 = 1 << 31;
    let quarters = word.wrapping_add(1 << 29) >> 30;
    let x = word.wrapping_sub(quarters << 30) as i32 as f32 * STEP;
    let square = x * x;
    let p = (-1.951_528_1e-4_f32).mul_add(square, 8.332_16e-3).mul_add(square, -1.666_665_5e-1);
    let q = 2.443_844_8e-5_f32.mul_add(square, -1.388_736_8e-3).mul_add(square, 4.166_664_6e-2);
    let sin = (x * square).mul_add(p, x);
    let cos = square.mul_add(square.mul_add(q, -0.5), 1.0);
    let (c, s) = if quarters & 1 == 0 { (cos, sin) } else { (sin, cos) };
    // cos is negative in quarters 1 and 2, sin in 2 and 3.
    let c = f32::from_bits(c.to_bits() ^ ((quarters + 1) << 30 & SIGN));
    let s = f32::from_bits(s.to_bits() ^ (quarters << 30 & SIGN));
    (c, s)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// r cos and r sin of the same uniform numbers in f64.
    fn polar_f64(radius: u32, angle: u32) -> [f64; 2] {
        let turns = 2f64.powi(-32);
        let u = f64::from(radius as f32 + 0.5) * turns;
        let r = (-2.0 * u.ln()).sqrt();
        let angle = std::f64::consts::TAU * turns * f64::from(angle);
        [r * angle.cos(), r * angle.sin()]
    }

    #[test]
    fn normals_are_right() {
        let philox = Philox::new(5);
        let edges = [0, 1, 2, 1 << 23, u32::MAX >> 1, 3 << 30, u32::MAX - 200, u32::MAX];
        let mut words: Vec<[u32; 2]> = edges.iter().flat_map(|&r| edges.map(|a| [r, a])).collect();
        // Shifts bring small radius words, for the tails, and large ones.
        words.extend((0..500_000).flat_map(|i| {
            let [a, b, c, d] = philox.block(i, 0);
            [[a, b], [c >> (i % 32), d], [!(a >> (i % 32)), c]]
        }));
        let mut worst = 0.0f64;
        for [r, a] in words {
            for (got, want) in polar(r, a).into_iter().zip(polar_f64(r, a)) {
                worst = worst.max((f64::from(got) - want).abs());
            }
        }
        assert!(worst < 1e-6, "absolute error {worst:e}");
    }

    #[test]
    fn radii_at_the_edges() {
        assert_eq!(radius(u32::MAX), 0.0);
        assert!((radius(0) - 6.763_7).abs() < 1e-4, "{}", radius(0));
        // Multiples of a quarter turn are exact.
        assert_eq!(
            [0, 1, 2, 3].map(|q| cos_sin(q << 30)),
            [(1.0, 0.0), (-0.0, 1.0), (-1.0, -0.0), (0.0, -1.0)]
        );
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let key = NormalKey { seed: 3, sample: 4 };
        let [a, b, c, d] = Philox::new(3).block(4, DOMAIN);
        let philox = Philox::new(u64::from(a) | u64::from(b) << 32);
        let upper = u64::from(c) | u64::from(d) << 32;
        let mut z = [0.0; 3 * GROUP];
        Kernels::scalar().normals(key, 0, &mut z);
        for (i, &z) in z.iter().enumerate() {
            let (group, normal, lane) = (i / GROUP, i % GROUP / LANES, i % LANES);
            let words = philox.block((group * LANES + lane) as u64, upper);
            let pair = normal / 2 * 2;
            let want = polar(words[pair], words[pair + 1])[normal % 2];
            assert_eq!(z, want, "number {i}");
        }
    }
}
