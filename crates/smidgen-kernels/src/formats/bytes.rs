//! What unpacking asks of an instruction set: operations on 32 bytes side by side.

/// An instruction set's operations. A value proves that the processor has the set.
pub(crate) trait ByteOps: Copy {
    /// 32 bytes.
    type Bytes: Copy;

    /// Bytes from memory.
    fn load(self, from: &[u8; 32]) -> Self::Bytes;

    /// The low nibbles of 16 bytes, then the high ones.
    fn nibbles(self, from: &[u8; 16]) -> Self::Bytes;

    /// 16 where one of the 32 bits, little-endian, is set, 0 elsewhere.
    fn fifth_bits(self, bits: [u8; 4]) -> Self::Bytes;

    /// `(x << left) & mask`, or `(x >> -left) & mask`, in every byte.
    fn shift_and(self, x: Self::Bytes, left: i32, mask: u8) -> Self::Bytes;

    /// `x | y`.
    fn or(self, x: Self::Bytes, y: Self::Bytes) -> Self::Bytes;

    /// `x - y`, wrapping, in every byte.
    fn sub(self, x: Self::Bytes, y: u8) -> Self::Bytes;

    /// The bytes as codes to memory.
    fn store(self, x: Self::Bytes, to: &mut [i8; 32]);
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl ByteOps for Plain {
    type Bytes = [u8; 32];

    #[inline(always)]
    fn load(self, from: &[u8; 32]) -> [u8; 32] {
        *from
    }

    #[inline(always)]
    fn nibbles(self, from: &[u8; 16]) -> [u8; 32] {
        std::array::from_fn(|i| if i < 16 { from[i] & 15 } else { from[i - 16] >> 4 })
    }

    #[inline(always)]
    fn fifth_bits(self, bits: [u8; 4]) -> [u8; 32] {
        std::array::from_fn(|i| (bits[i / 8] >> (i % 8) & 1) << 4)
    }

    #[inline(always)]
    fn shift_and(self, x: [u8; 32], left: i32, mask: u8) -> [u8; 32] {
        x.map(|x| if left >= 0 { x << left & mask } else { x >> -left & mask })
    }

    #[inline(always)]
    fn or(self, x: [u8; 32], y: [u8; 32]) -> [u8; 32] {
        std::array::from_fn(|i| x[i] | y[i])
    }

    #[inline(always)]
    fn sub(self, x: [u8; 32], y: u8) -> [u8; 32] {
        x.map(|x| x.wrapping_sub(y))
    }

    #[inline(always)]
    fn store(self, x: [u8; 32], to: &mut [i8; 32]) {
        *to = x.map(|x| x as i8);
    }
}
