//! AVX-512: vectors of 16, tiles of 14 x 32.

use std::arch::x86_64::*;

use super::bytes::Avx2Bytes;
use crate::arch::vector::Vector;
use crate::arch::{MatMut, MatRef, pack, tile};
use crate::formats::Format;
use crate::gemm::{Operand, Store};

/// See `Kernels::decode`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(in crate::arch) fn decode(format: Format, blocks: &[u8], out: &mut [f32]) {
    // SAFETY: this function has the features of F32x16.
    unsafe { pack::decode::<F32x16>(format, blocks, out) }
}

/// See `Kernels::lanes`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(in crate::arch) fn lanes() -> usize {
    <F32x16 as Vector>::LANES
}

/// See `Kernels::pack`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(in crate::arch) fn pack(b: Operand<'_>, panel: &mut [f32]) {
    // SAFETY: this function has the features of F32x16.
    unsafe { pack::pack::<F32x16>(b, panel) }
}

/// See `Kernels::multiply`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(in crate::arch) fn multiply(c: MatMut<'_>, a: MatRef<'_>, panel: &[f32], store: Store) {
    // SAFETY: this function has the features of F32x16.
    unsafe { tile::multiply::<F32x16>(c, a, panel, store) }
}

#[derive(Clone, Copy)]
struct F32x16(__m512);

/// The lanes below `count`.
#[inline(always)]
fn first(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}

// SAFETY of every body: the caller has the instruction set and vouches for the pointers (the
// trait's contract).
impl Vector for F32x16 {
    type Bytes = Avx2Bytes;

    const LANES: usize = 16;
    const ROWS: usize = 14;

    #[inline(always)]
    unsafe fn bytes() -> Avx2Bytes {
        unsafe { Avx2Bytes::new() }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Self(_mm512_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm512_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        unsafe { Self(_mm512_maskz_loadu_ps(first(count), from)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        unsafe { _mm512_mask_storeu_ps(to, first(count), self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, other: Self, sum: Self) -> Self {
        unsafe { Self(_mm512_fmadd_ps(self.0, other.0, sum.0)) }
    }

    #[inline(always)]
    unsafe fn load_quads(from: *const f32, stride: usize) -> Self {
        unsafe {
            let quad = |i| _mm_loadu_ps(from.add(i * stride));
            let quads = _mm512_castps128_ps512(quad(0));
            let quads = _mm512_insertf32x4::<1>(quads, quad(1));
            let quads = _mm512_insertf32x4::<2>(quads, quad(2));
            Self(_mm512_insertf32x4::<3>(quads, quad(3)))
        }
    }

    #[inline(always)]
    unsafe fn turn_quads([a, b, c, d]: [Self; 4]) -> [Self; 4] {
        unsafe {
            let pairs = |x: __m512, y: __m512| {
                (
                    _mm512_castps_pd(_mm512_unpacklo_ps(x, y)),
                    _mm512_castps_pd(_mm512_unpackhi_ps(x, y)),
                )
            };
            let ((ab, ab_high), (cd, cd_high)) = (pairs(a.0, b.0), pairs(c.0, d.0));
            [
                Self(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd))),
                Self(_mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd))),
                Self(_mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high))),
                Self(_mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_codes(from: *const i8) -> Self {
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn code<const BYTE: u32>(self) -> Self {
        unsafe {
            let left = _mm_cvtsi32_si128(24 - 8 * BYTE as i32);
            let bits = _mm512_sll_epi32(_mm512_castps_si512(self.0), left);
            Self(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(bits)))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
