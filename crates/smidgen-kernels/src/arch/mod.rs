//! Instruction sets: what this processor has, and the code that is written for one of them.

#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod dispatch;
mod mat;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod pack;
mod scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tile;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use crate::formats::Format;
use crate::gemm::{Operand, Store};

pub use mat::{MatMut, MatRef};

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust for the target's baseline: the oracle that the others are tested against.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// aarch64 with NEON.
    Neon,
}

/// The kernels of one instruction set.
///
/// A value of this type proves that the processor has the set: only [`Kernels::detect`],
/// [`Kernels::scalar`] and [`Kernels::all`] make one.
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    isa: Isa,
}

impl Kernels {
    /// The best set that this processor has.
    pub fn detect() -> Self {
        *Self::all().last().expect("the scalar set is always there")
    }

    /// The reference: plain Rust for the target's baseline.
    pub fn scalar() -> Self {
        Self { isa: Isa::Scalar }
    }

    /// Every set that this processor has, the scalar one first and the best one last.
    pub fn all() -> Vec<Self> {
        let mut sets = vec![Self::scalar()];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                sets.push(Self { isa: Isa::Avx2 });
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                sets.push(Self { isa: Isa::Avx512 });
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            sets.push(Self { isa: Isa::Neon });
        }
        sets
    }

    /// Which set these kernels are compiled for.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

/// Calls the instruction set's own version of a GEMM part.
macro_rules! dispatch {
    ($kernels:expr, $part:ident($($arg:expr),*)) => {
        match $kernels.isa {
            Isa::Scalar => scalar::$part($($arg),*),
            // SAFETY: a Kernels of this set exists only where the processor has its features.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86_64::avx2::$part($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86_64::avx512::$part($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => unsafe { aarch64::neon::$part($($arg),*) },
            #[allow(unreachable_patterns)] // Which sets are left depends on the target.
            _ => unreachable!("Kernels of a set that the target has not"),
        }
    };
}

impl Kernels {
    /// Decodes whole blocks; `out` has as many numbers.
    pub(crate) fn decode(&self, format: Format, blocks: &[u8], out: &mut [f32]) {
        dispatch!(self, decode(format, blocks, out));
    }

    /// Numbers in a vector, which fixes the layout of a panel.
    pub(crate) fn lanes(&self) -> usize {
        dispatch!(self, lanes())
    }

    /// Lays the operand (k x n, both at most 256) out as the panel that `multiply` reads.
    pub(crate) fn pack(&self, b: Operand<'_>, panel: &mut [f32]) {
        dispatch!(self, pack(b, panel));
    }

    /// C = A B, or C += A B, then scaled: `c` is m x n, `a` m x k, the panel holds k x n.
    pub(crate) fn multiply(&self, c: MatMut<'_>, a: MatRef<'_>, panel: &[f32], store: Store) {
        dispatch!(self, multiply(c, a, panel, store));
    }
}
