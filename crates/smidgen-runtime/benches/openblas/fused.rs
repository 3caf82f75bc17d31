//! The fused GEMM on several threads, as the runtime's GEMM steps are.

use smidgen_kernels::{GEMM_SCRATCH, Init, Kernels, MatMut, MatRef, Operand, Term};
use smidgen_runtime::Pool;

/// Threads that take tiles of one product, the caller's included.
pub struct Team(Pool);

impl Team {
    pub fn new(threads: usize) -> Self {
        Self(Pool::new(threads, GEMM_SCRATCH).expect("threads"))
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.0.threads()
    }

    /// `c` (m x n) = `a` (m x k) times `b`.
    pub fn gemm(&mut self, kernels: Kernels, a: MatRef<'_>, b: Operand<'_>, c: MatMut<'_>) {
        self.0.gemm(kernels, c, Init::Zero, 1.0, &[Term { a, b }]);
    }
}
