//! LoftQ: an adapter that starts from what quantisation took from the base's weights.
//!
//! Source: Li et al., "LoftQ: LoRA-fine-tuning-aware quantization", 2023 (arXiv:2310.08659), with
//! the quantised weights given and so one iteration: for each projection, scale B A is the best
//! approximation of its rank to E = W - Q, with W from before quantisation and Q in the base.
//!
//! The singular vectors come from a random subspace (Halko, Martinsson and Tropp, "Finding
//! structure with randomness", 2011, algorithm 4.4), which takes products with E only: W and Q are
//! read past the map in bands of rows, once for each of six products, and E is never whole.

mod residual;
mod source;
mod subspace;

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use smidgen_graph::{Budget, Factor};
use smidgen_kernels::{Kernels, NormalKey};
use smidgen_runtime::memory::RunPhase;

use crate::adapter::{Adapter, AdapterShape};
use crate::base::Base;
use crate::convert::{Stored, tensor_name};
use crate::error::{Error, Result};
use crate::train_config::MemoryBudget;
use residual::{Products, Residual};
pub(crate) use source::Source;
use subspace::{Approximation, orthonormalise};

/// Vectors beyond the rank that the subspace has.
const OVERSAMPLING: usize = 8;

/// Times that the subspace is multiplied by E Eᵀ, which turns it towards the largest singular
/// values.
const POWER_ITERATIONS: usize = 2;

/// The highest rank: the time of a small matrix's eigenvectors grows with its third power.
const MAX_RANK: usize = 256;

/// A larger error, relative to the weights, is not quantisation's.
const LARGEST_ERROR: f64 = 0.7;

/// What LoftQ did.
#[derive(Clone, Debug, PartialEq)]
pub struct LoftqReport {
    /// The projections, layer by layer.
    pub tensors: Vec<LoftqTensor>,
    /// The most memory that it was expected to take, what the process has included.
    pub planned_bytes: u64,
    /// The most memory that was counted meanwhile.
    pub peak_bytes: u64,
}

/// What LoftQ did for a projection.
#[derive(Clone, Debug, PartialEq)]
pub struct LoftqTensor {
    /// The tensor's name in the base's file.
    pub name: String,
    /// The Frobenius norm of the weights before they were quantised.
    pub norm: f64,
    /// The Frobenius norm of W - Q.
    pub error_before: f64,
    /// The Frobenius norm of W - Q - scale B A.
    pub error_after: f64,
}

impl LoftqReport {
    /// The error of all projections together, before and after, relative to their weights' norm.
    pub fn relative_errors(&self) -> [f64; 2] {
        let sum = |of: fn(&LoftqTensor) -> f64| self.tensors.iter().map(|t| of(t).powi(2)).sum();
        let [norm, before, after]: [f64; 3] =
            [sum(|t| t.norm), sum(|t| t.error_before), sum(|t| t.error_after)];
        let relative = |error: f64| if norm > 0.0 { (error / norm).sqrt() } else { 0.0 };
        [relative(before), relative(after)]
    }
}

/// The budget has no room for LoftQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--init-lora-weights loftq takes {} MB before the run, and the budget is {} MB; give at least \
     {} MB, a smaller --lora-rank, or leave it out",
    megabytes(*needed), *budget as f64 / 1e6, megabytes(*needed)
)]
pub struct LoftqOverBudget {
    /// Bytes that it takes, those that the process has and the adapter's numbers included.
    pub needed: u64,
    /// Bytes that were allowed.
    pub budget: u64,
}

/// Rounded up, so that the amount that is named will do.
fn megabytes(bytes: u64) -> f64 {
    bytes.div_ceil(100_000) as f64 / 10.0
}

/// LoftQ that the budget has room for; nothing large was read yet.
#[derive(Debug)]
pub(crate) struct Loftq {
    source: Source,
    threads: usize,
    /// The most bytes that the process will take.
    planned: u64,
    budget: Option<u64>,
}

/// A projection: its name, and where W and Q and the numbers of A and B are.
struct Projection<'a> {
    name: String,
    residual: Residual<'a>,
    a: Range<usize>,
    b: Range<usize>,
}

impl Loftq {
    /// Opens the unquantised weights, and checks that every projection is there. The process has
    /// `held` bytes then, the adapter's numbers among them.
    ///
    /// # Errors
    /// The file or folder can't be read, or is of a model of another shape; the rank is too high;
    /// [`LoftqOverBudget`].
    pub fn open(
        base: &Base,
        shape: &AdapterShape,
        source: &Path,
        threads: usize,
        held: u64,
        memory: MemoryBudget,
    ) -> Result<Self> {
        let rank = shape.config().rank;
        if rank > MAX_RANK {
            return Err(Error::setting(format!(
                "--lora-rank {rank}: --init-lora-weights loftq takes up to {MAX_RANK}"
            )));
        }
        let budget = match memory.resolve() {
            Budget::AtMost(bytes) => Some(bytes),
            Budget::Least | Budget::Unlimited => None,
        };
        let mut loftq = Self { source: Source::open(base, source)?, threads, planned: 0, budget };
        loftq.planned = held.saturating_add(loftq.bytes(base, shape)?);
        smidgen_weights::release_free_heap();
        match (budget, loftq.planned) {
            (Some(budget), needed) if needed > budget => {
                Err(LoftqOverBudget { needed, budget }.into())
            }
            _ => Ok(loftq),
        }
    }

    /// The most bytes that it takes beside what is held.
    fn bytes(&self, base: &Base, shape: &AdapterShape) -> Result<u64> {
        let rank = shape.config().rank;
        let of = |projection: &Projection<'_>| {
            let e = &projection.residual;
            let vectors = width(rank, e.rows(), e.cols());
            let small = 4 * size_of::<f64>() * vectors * vectors;
            [vectors * e.rows(), vectors * e.cols(), small + Products::bytes(e, vectors)]
        };
        // Buffers keep the largest size that they had.
        let mut largest = [0; 3];
        for projection in self.projections(base, shape)? {
            for (largest, bytes) in largest.iter_mut().zip(of(&projection)) {
                *largest = bytes.max(*largest);
            }
        }
        let [left, right, products] = largest;
        let numbers = size_of::<f32>() * (left + right);
        Ok((numbers + products + self.threads * residual::THREAD_BYTES + SLACK) as u64)
    }

    /// Fills the adapter's numbers: those of B that correct nothing stay zero, and their A as it is.
    /// `progress` hears how many projections are done, and of how many.
    ///
    /// # Errors
    /// A file can't be read or holds numbers that are not finite, the weights are another model's,
    /// the budget was crossed or the caller cancelled.
    pub fn fill(
        &self,
        base: &Base,
        adapter: &mut Adapter,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<LoftqReport> {
        let projections = self.projections(base, adapter.shape())?;
        let total = projections.len();
        let (rank, scale) = (adapter.config().rank, f64::from(adapter.shape().spec().scale));
        let meter = base.meter().next_run(RunPhase::Preparing);
        meter.set_budget(self.budget);
        let mut products = Products::new(self.threads, cancel)?;
        let mut vectors = Vectors::default();
        let mut tensors = Vec::with_capacity(total);
        for (i, Projection { name, residual, a, b }) in projections.into_iter().enumerate() {
            progress(i, total);
            let sums = vectors.find(&residual, rank, i as u64, &mut products)?;
            let [norm, error_before] = [sums.weights, sums.errors].map(f64::sqrt);
            self.source.check(&name, norm, error_before)?;
            let found = Approximation::new(&vectors.right, residual.cols(), rank);
            let a = adapter.values().piece_mut(a)?;
            found.factor(&vectors.right, residual.cols(), |sigma| 1.0 / (sigma * scale).sqrt(), a);
            let b = adapter.values().piece_mut(b)?;
            found.factor(&vectors.left, residual.rows(), |sigma| (sigma / scale).sqrt(), b);
            let error_after = (sums.errors - found.squares()).max(0.0).sqrt();
            meter.look();
            meter.check()?;
            tensors.push(LoftqTensor { name, norm, error_before, error_after });
        }
        progress(total, total);
        Ok(LoftqReport { tensors, planned_bytes: self.planned, peak_bytes: meter.peak() })
    }

    fn projections<'a>(
        &'a self,
        base: &'a Base,
        shape: &AdapterShape,
    ) -> Result<Vec<Projection<'a>>> {
        let gguf = base.weights.gguf();
        let names: Vec<String> = shape
            .factors()
            .filter(|(_, _, factor, _)| *factor == Factor::A)
            .map(|(layer, module, ..)| tensor_name(base, layer, module))
            .collect();
        let weights = self.source.tensors(names.iter().map(String::as_str))?;
        let mut names = names.into_iter();
        let mut projections: Vec<Projection<'a>> = Vec::with_capacity(names.len());
        for (.., factor, range) in shape.factors() {
            if factor == Factor::B {
                projections.last_mut().expect("A comes before B").b = range;
                continue;
            }
            let name = names.next().expect("a name for each A");
            let quantised = Stored::of(gguf, &name)?;
            let source = weights
                .get(&name)
                .copied()
                .filter(|source| [source.rows, source.cols] == [quantised.rows, quantised.cols]);
            let source = source.ok_or_else(|| self.source.lacks(&name))?;
            let residual = Residual { source, quantised };
            projections.push(Projection { name, residual, a: range, b: 0..0 });
        }
        Ok(projections)
    }
}

/// Lists, the allocator's slack, and stacks.
const SLACK: usize = 512 << 10;

/// Vectors of the subspace.
fn width(rank: usize, rows: usize, cols: usize) -> usize {
    (rank + OVERSAMPLING).min(rows).min(cols)
}

/// A subspace of E's columns and what E is in it.
#[derive(Debug, Default)]
struct Vectors {
    /// Q: orthonormal, `[vectors, rows]`.
    left: Vec<f32>,
    /// Qᵀ E, `[vectors, cols]`.
    right: Vec<f32>,
}

impl Vectors {
    /// Finds them, from random vectors of that stream.
    fn find(
        &mut self,
        e: &Residual<'_>,
        rank: usize,
        stream: u64,
        products: &mut Products<'_>,
    ) -> Result<residual::Sums> {
        /// Fixed, so that an adapter's start depends on the two models alone.
        const SEED: u64 = 0;
        let (kernels, rows, cols) = (Kernels::detect(), e.rows(), e.cols());
        let vectors = width(rank, rows, cols);
        self.left.resize(vectors * rows, 0.0);
        self.right.resize(vectors * cols, 0.0);
        kernels.normals(NormalKey { seed: SEED, sample: stream }, 0, &mut self.right);
        let sums = products.times(e, &self.right, &mut self.left)?;
        orthonormalise(kernels, &mut self.left, rows);
        for _ in 0..POWER_ITERATIONS {
            products.transposed_times(e, &self.left, &mut self.right)?;
            orthonormalise(kernels, &mut self.right, cols);
            products.times(e, &self.right, &mut self.left)?;
            orthonormalise(kernels, &mut self.left, rows);
        }
        products.transposed_times(e, &self.left, &mut self.right)?;
        Ok(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::{AdapterStart, LoraConfig};

    #[test]
    fn it_is_refused_where_the_budget_has_no_room() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo/demo.gguf");
        let base = Base::open(&demo).expect("the demo's model");
        let of = |rank, threads, budget| {
            let lora = LoraConfig { rank, ..LoraConfig::default() };
            let start = AdapterStart::random(&base, &lora, 0).expect("a start");
            let memory = MemoryBudget::Bytes(budget);
            Loftq::open(&base, start.shape(), &demo, threads, 1_000_000, memory)
        };
        let needed = |rank, threads| {
            let Err(Error::LoftqOverBudget(over)) = of(rank, threads, 1) else {
                panic!("a byte is enough")
            };
            assert!(over.budget == 1 && over.to_string().contains("give at least"), "{over}");
            over.needed
        };
        let least = needed(8, 1);
        assert!(least > 1_000_000 && needed(8, 4) > least && needed(64, 1) > least);
        assert!(of(8, 1, least).is_ok() && of(8, 1, least - 1).is_err());
    }
}
