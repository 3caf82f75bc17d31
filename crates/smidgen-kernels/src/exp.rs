//! The exponential function, and the logistic function through it.

/// exp(x), relative error below 1.1e-7 (one unit in the last place).
///
/// Results below the smallest normal number are zero, so nothing depends on how the processor
/// treats subnormal numbers; -inf gives 0, results above the largest number +inf, NaN gives NaN.
///
/// Method: x = n ln 2 + r with |r| <= ln 2 / 2, where ln 2 is split in two so that n times its
/// upper part is exact (Cody and Waite, 1980); exp r = 1 + r + r² q(r) with q the minimax
/// polynomial of degree 4 for the relative error (3e-9); n is added to the exponent's bits.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN_2_UPPER: f32 = 355.0 / 512.0;
    const LN_2_LOWER: f32 = -2.121_944_4e-4;
    // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits. The low
    // nine bits of the constant are zero, so a shift by 23 leaves n alone in the exponent.
    const ROUND: f32 = 12_582_912.0;
    // exp of these is the smallest normal number and the largest number.
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.722_83;

    let rounded = x.mul_add(LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2_LOWER, n.mul_add(-LN_2_UPPER, x));
    let q = 1.381_453_7e-3_f32
        .mul_add(r, 8.368_745e-3)
        .mul_add(r, 4.166_839e-2)
        .mul_add(r, 1.666_652_1e-1)
        .mul_add(r, 4.999_999_4e-1);
    let exp_r = (r * r).mul_add(q, r) + 1.0;
    let scaled = f32::from_bits(exp_r.to_bits().wrapping_add(rounded.to_bits() << 23));
    let scaled = if x > HIGHEST { f32::INFINITY } else { scaled };
    let scaled = if x < LOWEST { 0.0 } else { scaled };
    if x.is_nan() { x } else { scaled }
}

/// 1 / (1 + exp(-x)).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_one_unit_in_the_last_place() {
        let mut worst = 0.0f64;
        for i in 0..2_000_000 {
            let x = -87.3 + 176.0 * (i as f32 / 2_000_000.0);
            let want = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / want - 1.0).abs());
        }
        for i in 0..100_000 {
            let x = -0.5 + i as f32 * 1e-5;
            worst = worst.max((f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs());
        }
        assert!(worst < 1.1e-7, "relative error {worst:e}");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::MIN), 0.0);
        assert_eq!(exp(-87.4), 0.0);
        assert!(exp(-87.336).is_normal());
        assert!(exp(88.722).is_finite());
        assert_eq!(exp(88.73), f32::INFINITY);
        assert_eq!(exp(f32::MAX), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_is_right() {
        for i in -4000..4000 {
            let x = i as f32 * 0.02;
            let want = 1.0 / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(sigmoid(x)) - want).abs() <= 2e-7 * want, "sigmoid({x})");
        }
        assert_eq!(sigmoid(-1000.0), 0.0);
        assert_eq!(sigmoid(1000.0), 1.0);
    }
}
