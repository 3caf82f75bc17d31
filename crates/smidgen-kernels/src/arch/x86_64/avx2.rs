//! AVX2 with FMA: vectors of 8, tiles of 6 x 16.

use std::arch::x86_64::*;

use super::bytes::Avx2Bytes;
use crate::arch::vector::Vector;
use crate::arch::{MatMut, MatRef, pack, tile};
use crate::formats::Format;
use crate::gemm::{Operand, Store};

/// See `Kernels::decode`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::arch) fn decode(format: Format, blocks: &[u8], out: &mut [f32]) {
    // SAFETY: this function has the features of F32x8.
    unsafe { pack::decode::<F32x8>(format, blocks, out) }
}

/// See `Kernels::lanes`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::arch) fn lanes() -> usize {
    <F32x8 as Vector>::LANES
}

/// See `Kernels::pack`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::arch) fn pack(b: Operand<'_>, panel: &mut [f32]) {
    // SAFETY: this function has the features of F32x8.
    unsafe { pack::pack::<F32x8>(b, panel) }
}

/// See `Kernels::multiply`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::arch) fn multiply(c: MatMut<'_>, a: MatRef<'_>, panel: &[f32], store: Store) {
    // SAFETY: this function has the features of F32x8.
    unsafe { tile::multiply::<F32x8>(c, a, panel, store) }
}

#[derive(Clone, Copy)]
struct F32x8(__m256);

/// All ones in the lanes below `count`.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn first(count: usize) -> __m256i {
    // SAFETY: the caller's.
    unsafe {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes)
    }
}

// SAFETY of every body: the caller has the instruction set and vouches for the pointers (the
// trait's contract).
impl Vector for F32x8 {
    type Bytes = Avx2Bytes;

    const LANES: usize = 8;
    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn bytes() -> Avx2Bytes {
        unsafe { Avx2Bytes::new() }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Self(_mm256_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        unsafe { Self(_mm256_maskload_ps(from, first(count))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        unsafe { _mm256_maskstore_ps(to, first(count), self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm256_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm256_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, other: Self, sum: Self) -> Self {
        unsafe { Self(_mm256_fmadd_ps(self.0, other.0, sum.0)) }
    }

    #[inline(always)]
    unsafe fn load_quads(from: *const f32, stride: usize) -> Self {
        unsafe {
            let low = _mm256_castps128_ps256(_mm_loadu_ps(from));
            Self(_mm256_insertf128_ps::<1>(low, _mm_loadu_ps(from.add(stride))))
        }
    }

    #[inline(always)]
    unsafe fn turn_quads([a, b, c, d]: [Self; 4]) -> [Self; 4] {
        unsafe {
            let pairs = |x: __m256, y: __m256| {
                (
                    _mm256_castps_pd(_mm256_unpacklo_ps(x, y)),
                    _mm256_castps_pd(_mm256_unpackhi_ps(x, y)),
                )
            };
            let ((ab, ab_high), (cd, cd_high)) = (pairs(a.0, b.0), pairs(c.0, d.0));
            [
                Self(_mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd))),
                Self(_mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd))),
                Self(_mm256_castpd_ps(_mm256_unpacklo_pd(ab_high, cd_high))),
                Self(_mm256_castpd_ps(_mm256_unpackhi_pd(ab_high, cd_high))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_codes(from: *const i8) -> Self {
        unsafe { Self(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn code<const BYTE: u32>(self) -> Self {
        unsafe {
            let left = _mm_cvtsi32_si128(24 - 8 * BYTE as i32);
            let bits = _mm256_sll_epi32(_mm256_castps_si256(self.0), left);
            Self(_mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(bits)))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
