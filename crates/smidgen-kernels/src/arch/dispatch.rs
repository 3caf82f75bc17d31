//! One plain body, compiled once for every instruction set.
//!
//! An operation is written as an `#[inline(always)]` function in plain Rust and handed over as a
//! closure. Inlined into a function that has an instruction set's features switched on, the
//! compiler vectorises it for that set; floating-point arithmetic is never reordered by that, so
//! every set gives the same bits.

use super::{Isa, Kernels};

impl Kernels {
    /// Runs `body` compiled for this instruction set.
    ///
    /// `body` must be an `#[inline(always)]` closure over `#[inline(always)]` functions: what is
    /// not inlined keeps the baseline's instructions (and the right result, slowly).
    #[inline(always)]
    pub(crate) fn compiled<R>(self, body: impl FnOnce() -> R) -> R {
        match self.isa() {
            Isa::Scalar => body(),
            // SAFETY: a Kernels of this set exists only where the processor has its features.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2(body) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512(body) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => unsafe { neon(body) },
            #[allow(unreachable_patterns)] // Which sets are left depends on the target.
            _ => unreachable!("Kernels of a set that the target has not"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<R>(body: impl FnOnce() -> R) -> R {
    body()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<R>(body: impl FnOnce() -> R) -> R {
    body()
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn neon<R>(body: impl FnOnce() -> R) -> R {
    body()
}
