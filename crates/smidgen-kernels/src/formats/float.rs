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

#[cfg(test)]
mod tests {
    use super::half_to_f32;

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
