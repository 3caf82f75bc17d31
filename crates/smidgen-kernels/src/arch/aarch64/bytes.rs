//! 32 bytes in two registers of NEON.

use std::arch::aarch64::*;

use crate::formats::ByteOps;

/// Proof of NEON.
#[derive(Clone, Copy)]
pub(super) struct NeonBytes {
    _private: (),
}

impl NeonBytes {
    /// # Safety
    /// The processor has NEON.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self { _private: () }
    }
}

// SAFETY of every body: a value of the type proves NEON; loads and stores are of whole arrays.
impl ByteOps for NeonBytes {
    type Bytes = uint8x16x2_t;

    #[inline(always)]
    fn load(self, from: &[u8; 32]) -> uint8x16x2_t {
        unsafe { uint8x16x2_t(vld1q_u8(from.as_ptr()), vld1q_u8(from.as_ptr().add(16))) }
    }

    #[inline(always)]
    fn nibbles(self, from: &[u8; 16]) -> uint8x16x2_t {
        unsafe {
            let bytes = vld1q_u8(from.as_ptr());
            uint8x16x2_t(vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes))
        }
    }

    #[inline(always)]
    fn fifth_bits(self, [a, b, c, d]: [u8; 4]) -> uint8x16x2_t {
        unsafe {
            let alone = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
            let half = |low, high| {
                let bytes = vcombine_u8(vdup_n_u8(low), vdup_n_u8(high));
                vandq_u8(vtstq_u8(bytes, alone), vdupq_n_u8(16))
            };
            uint8x16x2_t(half(a, b), half(c, d))
        }
    }

    #[inline(always)]
    fn shift_and(self, x: uint8x16x2_t, left: i32, mask: u8) -> uint8x16x2_t {
        unsafe {
            // A negative count shifts right, zeros coming in as the bytes are unsigned.
            let (left, mask) = (vdupq_n_s8(left as i8), vdupq_n_u8(mask));
            let shift = |x| vandq_u8(vshlq_u8(x, left), mask);
            uint8x16x2_t(shift(x.0), shift(x.1))
        }
    }

    #[inline(always)]
    fn or(self, x: uint8x16x2_t, y: uint8x16x2_t) -> uint8x16x2_t {
        unsafe { uint8x16x2_t(vorrq_u8(x.0, y.0), vorrq_u8(x.1, y.1)) }
    }

    #[inline(always)]
    fn sub(self, x: uint8x16x2_t, y: u8) -> uint8x16x2_t {
        unsafe {
            let y = vdupq_n_u8(y);
            uint8x16x2_t(vsubq_u8(x.0, y), vsubq_u8(x.1, y))
        }
    }

    #[inline(always)]
    fn store(self, x: uint8x16x2_t, to: &mut [i8; 32]) {
        unsafe {
            vst1q_s8(to.as_mut_ptr(), vreinterpretq_s8_u8(x.0));
            vst1q_s8(to.as_mut_ptr().add(16), vreinterpretq_s8_u8(x.1));
        }
    }
}
