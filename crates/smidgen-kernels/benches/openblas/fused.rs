//! The fused GEMM on several threads, cut into tasks as smidgen-runtime's pool and GEMM steps are.

use std::sync::Mutex;

use smidgen_kernels::{GEMM_SCRATCH, Init, Kernels, MatMut, MatRef, Operand, Term, Tiling};

/// Threads that take tiles of one product, the caller's included.
pub struct Team {
    helpers: Option<rayon::ThreadPool>,
    scratch: Vec<Vec<f32>>,
}

impl Team {
    pub fn new(threads: usize) -> Self {
        let builder = rayon::ThreadPoolBuilder::new().num_threads(threads - 1);
        let helpers = (threads > 1).then(|| builder.build().expect("threads"));
        Self { helpers, scratch: vec![vec![0.0; GEMM_SCRATCH]; threads] }
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.scratch.len()
    }

    /// `c` (m x n) = `a` (m x k) times `b`.
    pub fn gemm(&mut self, kernels: Kernels, a: MatRef<'_>, b: Operand<'_>, c: MatMut<'_>) {
        let tasks = Tiling::of([b], self.threads()).tasks(c);
        let (term, tasks) = (Term { a, b }, Mutex::new(tasks.fuse()));
        let take = |scratch: &mut [f32]| {
            while let Some((row, col, c)) = tasks.lock().ok().and_then(|mut t| t.next()) {
                let part = term.part(row..row + c.rows(), col..col + c.cols());
                kernels.gemm(c, Init::Zero, 1.0, &[part], scratch);
            }
        };
        let Some((own, others)) = self.scratch.split_first_mut() else { return };
        let Some(helpers) = &self.helpers else { return take(own) };
        helpers.in_place_scope(|scope| {
            others.iter_mut().for_each(|scratch| scope.spawn(|_| take(scratch)));
            take(own);
        });
    }
}
