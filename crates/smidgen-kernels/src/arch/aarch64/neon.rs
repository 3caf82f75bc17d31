//! NEON: vectors of 4, tiles of 12 x 8.

use std::arch::aarch64::*;

use super::bytes::NeonBytes;
use crate::arch::vector::Vector;
use crate::arch::{MatMut, MatRef, pack, tile};
use crate::formats::Format;
use crate::gemm::{Operand, Store};

/// See `Kernels::decode`.
#[target_feature(enable = "neon")]
pub(in crate::arch) fn decode(format: Format, blocks: &[u8], out: &mut [f32]) {
    // SAFETY: this function has the features of F32x4.
    unsafe { pack::decode::<F32x4>(format, blocks, out) }
}

/// See `Kernels::lanes`.
#[target_feature(enable = "neon")]
pub(in crate::arch) fn lanes() -> usize {
    <F32x4 as Vector>::LANES
}

/// See `Kernels::pack`.
#[target_feature(enable = "neon")]
pub(in crate::arch) fn pack(b: Operand<'_>, panel: &mut [f32]) {
    // SAFETY: this function has the features of F32x4.
    unsafe { pack::pack::<F32x4>(b, panel) }
}

/// See `Kernels::multiply`.
#[target_feature(enable = "neon")]
pub(in crate::arch) fn multiply(c: MatMut<'_>, a: MatRef<'_>, panel: &[f32], store: Store) {
    // SAFETY: this function has the features of F32x4.
    unsafe { tile::multiply::<F32x4>(c, a, panel, store) }
}

#[derive(Clone, Copy)]
struct F32x4(float32x4_t);

// SAFETY of every body: the caller has the instruction set and vouches for the pointers (the
// trait's contract).
impl Vector for F32x4 {
    type Bytes = NeonBytes;

    const LANES: usize = 4;
    const ROWS: usize = 12;

    #[inline(always)]
    unsafe fn bytes() -> NeonBytes {
        unsafe { NeonBytes::new() }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Self(vdupq_n_f32(x)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(vld1q_f32(from)) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        let mut lanes = [0.0; 4];
        unsafe {
            from.copy_to_nonoverlapping(lanes.as_mut_ptr(), count);
            Self(vld1q_f32(lanes.as_ptr()))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { vst1q_f32(to, self.0) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        let mut lanes = [0.0; 4];
        unsafe {
            vst1q_f32(lanes.as_mut_ptr(), self.0);
            to.copy_from_nonoverlapping(lanes.as_ptr(), count);
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(vaddq_f32(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(vmulq_f32(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, other: Self, sum: Self) -> Self {
        unsafe { Self(vfmaq_f32(sum.0, self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn load_quads(from: *const f32, _stride: usize) -> Self {
        unsafe { Self::load(from) }
    }

    #[inline(always)]
    unsafe fn turn_quads([a, b, c, d]: [Self; 4]) -> [Self; 4] {
        unsafe {
            let pairs = |x: float32x4_t, y: float32x4_t| {
                (vreinterpretq_f64_f32(vzip1q_f32(x, y)), vreinterpretq_f64_f32(vzip2q_f32(x, y)))
            };
            let ((ab, ab_high), (cd, cd_high)) = (pairs(a.0, b.0), pairs(c.0, d.0));
            [
                Self(vreinterpretq_f32_f64(vzip1q_f64(ab, cd))),
                Self(vreinterpretq_f32_f64(vzip2q_f64(ab, cd))),
                Self(vreinterpretq_f32_f64(vzip1q_f64(ab_high, cd_high))),
                Self(vreinterpretq_f32_f64(vzip2q_f64(ab_high, cd_high))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_codes(from: *const i8) -> Self {
        unsafe {
            let codes = vcreate_s8(u64::from(from.cast::<u32>().read_unaligned()));
            Self(vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(codes)))))
        }
    }

    #[inline(always)]
    unsafe fn code<const BYTE: u32>(self) -> Self {
        unsafe {
            let left = vdupq_n_s32(24 - 8 * BYTE as i32);
            let bits = vshlq_s32(vreinterpretq_s32_f32(self.0), left);
            Self(vcvtq_f32_s32(vshrq_n_s32::<24>(bits)))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(_at: *const f32) {}
}
