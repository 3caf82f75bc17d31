//! What the GEMM asks of an instruction set.

use crate::formats::ByteOps;

/// A vector register of f32s.
///
/// # Safety
///
/// Every function needs a processor that has the instruction set, and to be compiled must be
/// inlined into a function that switches its features on. Pointers need no alignment.
pub(super) trait Vector: Copy {
    /// Operations on bytes.
    type Bytes: ByteOps;

    /// Numbers in a vector, a multiple of four.
    const LANES: usize;

    /// Rows of C that a tile of two vectors holds in registers.
    const ROWS: usize;

    /// The operations on bytes, which go with the vectors.
    unsafe fn bytes() -> Self::Bytes;

    /// The same number in every lane.
    unsafe fn splat(x: f32) -> Self;

    /// `LANES` numbers from memory.
    unsafe fn load(from: *const f32) -> Self;

    /// The first `count` < `LANES` lanes from memory, zeros in the others.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;

    /// `LANES` numbers to memory.
    unsafe fn store(self, to: *mut f32);

    /// The first `count` < `LANES` lanes to memory; nothing else is written.
    unsafe fn store_first(self, to: *mut f32, count: usize);

    /// Sums.
    unsafe fn add(self, other: Self) -> Self;

    /// Products.
    unsafe fn mul(self, other: Self) -> Self;

    /// `self * other + sum`, rounded once.
    unsafe fn mul_add(self, other: Self, sum: Self) -> Self;

    /// Four numbers from each of `LANES / 4` addresses, `stride` numbers apart.
    unsafe fn load_quads(from: *const f32, stride: usize) -> Self;

    /// Takes each quad of the four vectors as a row of a 4 x 4 matrix and turns that matrix.
    unsafe fn turn_quads(rows: [Self; 4]) -> [Self; 4];

    /// `LANES` i8s from memory, as numbers.
    unsafe fn load_codes(from: *const i8) -> Self;

    /// Byte `BYTE` of each lane's bits, an i8, as a number.
    unsafe fn code<const BYTE: u32>(self) -> Self;

    /// Asks for a cache line ahead of use. Any address will do.
    unsafe fn prefetch(at: *const f32);
}
