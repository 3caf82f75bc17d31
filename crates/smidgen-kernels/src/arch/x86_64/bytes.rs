//! 32 bytes in a register of AVX2, which AVX-512 uses as well.

use std::arch::x86_64::*;

use crate::formats::ByteOps;

/// Proof of AVX2.
#[derive(Clone, Copy)]
pub(super) struct Avx2Bytes {
    _private: (),
}

impl Avx2Bytes {
    /// # Safety
    /// The processor has AVX2.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self { _private: () }
    }
}

// SAFETY of every body: a value of the type proves AVX2; loads and stores are of whole arrays.
impl ByteOps for Avx2Bytes {
    type Bytes = __m256i;

    #[inline(always)]
    fn load(self, from: &[u8; 32]) -> __m256i {
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn nibbles(self, from: &[u8; 16]) -> __m256i {
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
            _mm256_and_si256(both, _mm256_set1_epi8(15))
        }
    }

    #[inline(always)]
    fn fifth_bits(self, bits: [u8; 4]) -> __m256i {
        const COPIES: [u64; 4] =
            [0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303];
        unsafe {
            let copies = _mm256_loadu_si256(COPIES.as_ptr().cast());
            let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(i32::from_le_bytes(bits)), copies);
            let alone = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, alone), alone);
            _mm256_and_si256(set, _mm256_set1_epi8(16))
        }
    }

    #[inline(always)]
    fn shift_and(self, x: __m256i, left: i32, mask: u8) -> __m256i {
        // The mask clears the bits that came over from the neighbouring byte.
        let reach = if left >= 0 { 0xff << left } else { 0xff >> -left };
        unsafe {
            let count = _mm_cvtsi32_si128(left.abs());
            let shifted =
                if left >= 0 { _mm256_sll_epi16(x, count) } else { _mm256_srl_epi16(x, count) };
            _mm256_and_si256(shifted, _mm256_set1_epi8((reach & i32::from(mask)) as i8))
        }
    }

    #[inline(always)]
    fn or(self, x: __m256i, y: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(x, y) }
    }

    #[inline(always)]
    fn sub(self, x: __m256i, y: u8) -> __m256i {
        unsafe { _mm256_sub_epi8(x, _mm256_set1_epi8(y as i8)) }
    }

    #[inline(always)]
    fn store(self, x: __m256i, to: &mut [i8; 32]) {
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), x) }
    }
}
