//! Threads that take tiles of work from one iterator.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use smidgen_kernels::{Init, Kernels, MatMut, Term, Tiling};

use crate::engine::sealed;
use crate::error::{Error, Result};

/// How long a helper without work stays awake. Calls of a step follow each other within
/// microseconds, and waking takes tens of them, often first on the caller's own core.
const AWAKE: Duration = Duration::from_micros(200);

/// A fixed number of threads, each with scratch memory of its own. The caller's is one of them.
#[derive(Debug)]
pub struct Pool {
    helpers: Option<rayon::ThreadPool>,
    scratch: Vec<Vec<f32>>,
    /// Calls of [`Pool::run`] so far.
    calls: Arc<AtomicUsize>,
}

impl Pool {
    /// `threads` threads with `scratch_len` numbers of scratch each.
    ///
    /// # Errors
    /// [`Error::Threads`] if the system starts no more threads, [`Error::Memory`] if it gives no
    /// memory for their scratch.
    pub fn new(threads: usize, scratch_len: usize) -> Result<Self> {
        let threads = threads.max(1);
        let helpers = (threads > 1)
            .then(|| {
                rayon::ThreadPoolBuilder::new()
                    .num_threads(threads - 1)
                    .thread_name(|i| format!("smidgen-{}", i + 1))
                    .build()
            })
            .transpose()
            .map_err(|e| Error::Threads { threads, reason: e.to_string() })?;
        let scratch = (0..threads).map(|_| sealed(scratch_len)).collect::<Result<_>>()?;
        Ok(Self { helpers, scratch, calls: Arc::default() })
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.scratch.len()
    }

    /// Calls `work` once for every task, on whichever thread is free. Tasks must not depend on
    /// each other; which thread takes which has no influence on results.
    pub fn run<T: Send>(
        &mut self,
        tasks: impl Iterator<Item = T> + Send,
        work: impl Fn(T, &mut [f32]) + Sync,
    ) {
        let Some((own, others)) = self.scratch.split_first_mut() else { return };
        let Some(helpers) = &self.helpers else {
            tasks.for_each(|task| work(task, own));
            return;
        };
        let tasks = Mutex::new(tasks.fuse());
        let take = |scratch: &mut [f32]| {
            // The lock is held for the taking only. A poisoned lock means that a task of another
            // thread has panicked: this one stops, and the panic goes up with that thread.
            while let Some(task) = tasks.lock().ok().and_then(|mut t| t.next()) {
                work(task, scratch);
            }
        };
        let awake = others.len();
        let call = self.calls.fetch_add(1, Ordering::Release) + 1;
        helpers.in_place_scope(|scope| {
            for scratch in others {
                scope.spawn(|_| take(scratch));
            }
            take(own);
        });
        for _ in 0..awake {
            let calls = Arc::clone(&self.calls);
            helpers.spawn(move || stay_awake(&calls, call));
        }
    }
}

impl Pool {
    /// [`Kernels::gemm`] on all threads: a task for each tile of `c`.
    pub fn gemm(
        &mut self,
        kernels: Kernels,
        c: MatMut<'_>,
        init: Init<'_>,
        scale: f32,
        terms: &[Term<'_>],
    ) {
        let tiling = Tiling::of(terms.iter().map(|t| t.b), self.threads());
        self.run(tiling.tasks(c), |(row, col, c), scratch| {
            let (m, n) = (row..row + c.rows(), col..col + c.cols());
            let init = match init {
                Init::Bias(bias) => Init::Bias(&bias[n.clone()]),
                init => init,
            };
            let part: Vec<Term<'_>> = terms.iter().map(|t| t.part(m.clone(), n.clone())).collect();
            kernels.gemm(c, init, scale, &part, scratch);
        });
    }
}

/// Waits for the call after `call`, but not for long.
fn stay_awake(calls: &AtomicUsize, call: usize) {
    let begin = Instant::now();
    while calls.load(Ordering::Acquire) == call && begin.elapsed() < AWAKE {
        // Another process may need this core more.
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads, 1).expect("threads");
            let mut done = vec![0; 1000];
            pool.run(done.iter_mut(), |x, scratch| {
                scratch[0] += 1.0;
                *x += 1;
            });
            assert!(done.iter().all(|&x| x == 1));
        }
    }
}
