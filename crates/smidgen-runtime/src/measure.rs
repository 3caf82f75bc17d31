//! What parts of the GEMM take by themselves: for benches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smidgen_graph::{Source, Step};
use smidgen_kernels::{GEMM_SCRATCH, GRAIN, Init, Kernels, MatMut, MatRef, Matrix, Operand, Term};

use crate::engine::Engine;
use crate::error::Result;
use crate::pool::Pool;
use crate::weights::{BlockAt, ModelWeights};

/// Multiplies f32 matrices on some threads, to find their rate.
#[derive(Debug)]
pub struct GemmRate {
    kernels: Kernels,
    pool: Pool,
    x: Vec<f32>,
    w: Vec<f32>,
    y: Vec<f32>,
}

impl GemmRate {
    /// Tokens, inputs and outputs of the product: an MLP's of a model of 0.5B parameters.
    pub const SHAPE: [usize; 3] = [256, 896, 4864];

    /// Makes the matrices: 23 MB.
    ///
    /// # Errors
    /// Threads can't be started.
    pub fn new(kernels: Kernels, threads: usize) -> Result<Self> {
        let [m, k, n] = Self::SHAPE;
        let ramp = |len: usize| (0..len).map(|i| (i % 13) as f32 - 6.0).collect();
        let pool = Pool::new(threads, GEMM_SCRATCH)?;
        Ok(Self { kernels, pool, x: ramp(m * k), w: ramp(n * k), y: vec![0.0; m * n] })
    }

    /// FLOP/s of one product Y = X Wᵀ.
    pub fn measure(&mut self) -> f64 {
        let [m, k, n] = Self::SHAPE;
        let matrix = Matrix::Dense(MatRef::new(&self.w, n, k));
        let term = Term { a: MatRef::new(&self.x, m, k), b: Operand { matrix, transposed: true } };
        let begin = Instant::now();
        let y = MatMut::new(&mut self.y, m, n);
        self.pool.gemm(self.kernels, y, Init::Zero, 1.0, &[term]);
        2.0 * (m * k * n) as f64 / begin.elapsed().as_secs_f64()
    }
}

/// What the packing of a step's frozen weights takes, without the products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// From the file's blocks.
    pub weights: Duration,
    /// The same panels from f32 numbers that lie in cache.
    pub numbers: Duration,
}

impl Engine {
    /// Packs every panel of frozen weights that a training step packs, on all threads, but
    /// multiplies nothing.
    ///
    /// # Errors
    /// The model file can't be read.
    pub fn packing(&mut self) -> Result<Packing> {
        let mut packing = Packing { weights: Duration::ZERO, numbers: Duration::ZERO };
        let plan = Arc::clone(self.shared_plan());
        let (kernels, pool, weights) = self.parts();
        for (layer, place) in plan.layers.iter().enumerate() {
            let programs = &plan.programs[place.programs];
            let forward = programs.forward.as_ref().unwrap_or(&programs.infer);
            let backward = programs.backward.as_ref().filter(|_| place.trained);
            let steps = [Some(forward), backward].into_iter().flatten().flat_map(|p| &p.steps);
            let operands = frozen(steps, weights, BlockAt::Layer(layer));
            weights.prefetch(layer)?;
            packing.add(kernels, pool, &operands);
            weights.release(layer);
        }
        for step in &plan.head.1.steps {
            let Step::Head { weight, .. } = step else { continue };
            let matrix = weights.matrix(BlockAt::Head, *weight);
            let rows = 0..matrix.rows();
            weights.prefetch_rows(BlockAt::Head, *weight, rows.clone())?;
            let operand = |transposed| Operand { matrix: Matrix::Quant(matrix), transposed };
            packing.add(kernels, pool, &[operand(true), operand(false)]);
            weights.release_rows(BlockAt::Head, *weight, rows);
        }
        Ok(packing)
    }
}

/// The frozen matrices that some steps multiply by.
fn frozen<'a>(
    steps: impl Iterator<Item = &'a Step>,
    weights: &'a ModelWeights,
    at: BlockAt,
) -> Vec<Operand<'a>> {
    let mut operands = Vec::new();
    for step in steps {
        let Step::Gemm { terms, .. } = step else { continue };
        for term in terms {
            if let Source::Weight(id) = term.b {
                let whole = weights.matrix(at, id).rows_range(term.rows.clone());
                let matrix = Matrix::Quant(whole.cols_range(term.cols.clone()));
                operands.push(Operand { matrix, transposed: term.transposed });
            }
        }
    }
    operands
}

impl Packing {
    /// Packs `operands`, then as many numbers in the same shapes.
    fn add(&mut self, kernels: Kernels, pool: &mut Pool, operands: &[Operand<'_>]) {
        let numbers = [0.5; GRAIN * GRAIN];
        let mut pack = |numbers: Option<MatRef<'_>>| {
            let begin = Instant::now();
            pool.run(operands.iter().flat_map(panels), |panel, scratch| {
                let operand = match numbers {
                    None => panel,
                    Some(numbers) => {
                        let (k, n) = panel.shape();
                        let (rows, cols) = if panel.transposed { (n, k) } else { (k, n) };
                        let part = numbers.rows_range(0..rows).cols_range(0..cols);
                        Operand { matrix: Matrix::Dense(part), ..panel }
                    }
                };
                kernels.pack_panel(operand, scratch);
            });
            begin.elapsed()
        };
        self.weights += pack(None);
        self.numbers += pack(Some(MatRef::new(&numbers, GRAIN, GRAIN)));
    }
}

/// The panels that a product with `operand` packs.
fn panels<'a>(operand: &Operand<'a>) -> impl Iterator<Item = Operand<'a>> + Send {
    let (operand, (depth, width)) = (*operand, operand.shape());
    (0..width).step_by(GRAIN).flat_map(move |n| {
        let n = n..(n + GRAIN).min(width);
        (0..depth).step_by(GRAIN).map(move |k| operand.part(k..(k + GRAIN).min(depth), n.clone()))
    })
}
