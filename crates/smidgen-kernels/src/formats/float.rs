//! The formats of one number a block: F32, F16 and BF16, little-endian.

/// Numbers stored as IEEE single precision.
#[inline(always)]
pub(crate) fn decode_f32(blocks: &[u8], out: &mut [f32]) {
    for (x, bytes) in out.iter_mut().zip(blocks.as_chunks::<4>().0) {
        *x = f32::from_le_bytes(*bytes);
    }
}

/// Numbers stored as IEEE half precision.
#[inline(always)]
pub(crate) fn decode_f16(blocks: &[u8], out: &mut [f32]) {
    for (x, bytes) in out.iter_mut().zip(blocks.as_chunks::<2>().0) {
        *x = half_to_f32(u16::from_le_bytes(*bytes));
    }
}

/// Numbers stored as the upper half of an IEEE single.
#[inline(always)]
pub(crate) fn decode_bf16(blocks: &[u8], out: &mut [f32]) {
    for (x, bytes) in out.iter_mut().zip(blocks.as_chunks::<2>().0) {
        *x = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

/// The f32 of the same value.
///
/// No branch, so that loops of it become vector code, and no operand that is subnormal as an
/// f32, so that a flush-to-zero mode does not change it. A NaN keeps its bits.
#[inline(always)]
pub(crate) fn half_to_f32(half: u16) -> f32 {
    const REBIAS: u32 = (127 - 15) << 23;
    const INFINITY: u32 = 0x7c00 << 13;
    let sign = u32::from(half & 0x8000) << 16;
    let magnitude = u32::from(half & 0x7fff) << 13;
    let normal = magnitude + REBIAS;
    // 2^-14 + value is exact, and so is taking 2^-14 away again.
    let tiny = f32::from_bits(normal + (1 << 23)) - f32::from_bits(REBIAS + (1 << 23));
    let finite = if magnitude < 1 << 23 { tiny.to_bits() } else { normal };
    let bits = if magnitude >= INFINITY { normal + REBIAS } else { finite };
    f32::from_bits(bits | sign)
}

/// The nearest half, the even one of two, as bits; infinite from 65,520 on. A NaN stays one.
#[inline(always)]
pub(crate) fn f32_to_half(x: f32) -> u16 {
    const INFINITE: u32 = 0x7f80_0000;
    const TOO_LARGE: u32 = 0x477f_f000; // 65,520
    const SMALLEST_NORMAL: u32 = 0x3880_0000; // 2^-14
    const REBIAS: u32 = (127 - 15) << 23;
    let bits = x.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    let half = if magnitude > INFINITE {
        0x7e00
    } else if magnitude >= TOO_LARGE {
        0x7c00
    } else if magnitude < SMALLEST_NORMAL {
        // Numbers from 0.5 to 1 lie 2^-24 apart, as subnormal halves do.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits()
    } else {
        (magnitude + 0xfff + (magnitude >> 13 & 1) - REBIAS) >> 13
    };
    half as u16 | sign
}

/// The nearest half where that is finite.
#[inline(always)]
pub(super) fn finite_half(x: f32) -> Option<u16> {
    let half = f32_to_half(x);
    (half & 0x7fff < 0x7c00).then_some(half)
}

/// The number itself.
#[inline(always)]
pub(super) fn encode_f32([x]: &[f32; 1]) -> Option<[u8; 4]> {
    Some(x.to_le_bytes())
}

/// The nearest half; `None` where that is infinite.
#[inline(always)]
pub(super) fn encode_f16([x]: &[f32; 1]) -> Option<[u8; 2]> {
    finite_half(*x).map(u16::to_le_bytes)
}

/// The nearest upper half of a single; `None` where that is infinite.
#[inline(always)]
pub(super) fn encode_bf16([x]: &[f32; 1]) -> Option<[u8; 2]> {
    let bits = x.to_bits();
    let nearest = ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    (nearest & 0x7f80 != 0x7f80).then_some(nearest.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::{f32_to_half, half_to_f32};

    #[test]
    fn numbers_become_the_nearest_half_as_in_the_half_crate() {
        let check = |x: f32| {
            let (ours, theirs) = (f32_to_half(x), half::f16::from_f32(x));
            assert!(ours == theirs.to_bits() || x.is_nan() && theirs.is_nan(), "{x:e}");
        };
        for bits in 0..=u16::MAX {
            // Every half, the middle between two, and the singles beside these.
            let middle = half_to_f32(bits).to_bits().wrapping_add(1 << 12);
            for bits in [half_to_f32(bits).to_bits(), middle, middle - 1, middle.wrapping_add(1)] {
                check(f32::from_bits(bits));
            }
            check(f32::from_bits(u32::from(bits) << 16 | 0x5a5a));
        }
        [0.0, -0.0, f32::MIN_POSITIVE, 1e-45, f32::MAX, f32::INFINITY].into_iter().for_each(check);
    }

    #[test]
    fn every_half_converts_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (half_to_f32(bits), half::f16::from_bits(bits).to_f32());
            if theirs.is_nan() {
                assert!(ours.is_nan(), "{bits:#06x}");
            } else {
                assert_eq!(ours.to_bits(), theirs.to_bits(), "{bits:#06x}");
            }
        }
    }
}
