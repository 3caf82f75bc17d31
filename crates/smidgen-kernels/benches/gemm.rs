//! Speed of the GEMM and of decoding, one thread.
//!
//! `cargo bench -p smidgen-kernels --bench gemm -- [REGEX]` measures the benches whose names match,
//! for instance `Avx512/Q5_0`, `Avx2/Q4K/decode` or `T=16`. The names are
//! - `ISA/FORMAT/forward/OUTxIN,T=TOKENS` and `.../backward/...`: X Wᵀ and dY W, in tiles as a
//!   caller cuts them;
//! - `ISA/FORMAT/decode`: a row of weights to f32;
//! - `ISA/dense/...`: the products with a matrix in memory, LoRA's shapes among them;
//! - `ISA/gemm_tn/RANKxCOLS,T=TOKENS`: a sum over tokens, LoRA's gradient.
//!
//! Elements are FLOPs, so Gelem/s is GFLOP/s; only in `decode` they are weights, and ns a weight is
//! 1 / (Gelem/s). Run as a test, every bench makes one call for a few tokens.

use std::cell::LazyCell;
use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use smidgen_kernels::{
    Format, GEMM_SCRATCH, Init, Isa, Kernels, MatMut, MatRef, Matrix, Operand, QuantMatrix, Term,
};

/// Outputs and inputs of the weights: a small model's MLP and attention.
const SHAPES: [(usize, usize); 3] = [(4864, 896), (896, 4864), (896, 896)];

/// Outputs and inputs of matrices in memory: a projection, and A and B of two LoRA ranks.
const DENSE_SHAPES: [(usize, usize); 5] = [(896, 896), (8, 896), (32, 896), (896, 8), (896, 32)];

/// Ranks and columns of LoRA's gradients.
const GRADIENT_SHAPES: [(usize, usize); 4] = [(8, 896), (8, 4864), (16, 4864), (64, 896)];

/// Output columns of one call.
const TILE_COLS: usize = 256;

/// Weights decoded in one call.
const ROW_LEN: usize = 4096;

const FORMATS: [Format; 11] = [
    Format::F32,
    Format::F16,
    Format::Bf16,
    Format::Q8_0,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
];

/// Rows of X: a sequence, and so few that packing weighs more than multiplying.
fn token_counts() -> &'static [usize] {
    let has = |flag| std::env::args().any(|arg| arg == flag);
    if has("--bench") && !has("--test") { &[256, 16] } else { &[16] }
}

/// Blocks of any bytes that mean no number so small that it slows the processor down.
fn blocks(format: Format, numbers: usize) -> Vec<u8> {
    let count = numbers / format.block_len() * format.block_bytes();
    (0..count).map(|i| 0x20 + (i * 31 % 29) as u8).collect()
}

/// What a product reads and writes beside the weights.
struct Buffers {
    a: Vec<f32>,
    c: Vec<f32>,
    scratch: Vec<f32>,
}

impl Buffers {
    /// For m x k times k x n.
    fn new(m: usize, k: usize, n: usize) -> Self {
        let a = (0..m * k).map(|i| (i % 13) as f32 - 6.0).collect();
        Self { a, c: vec![0.0; m * n], scratch: vec![0.0; GEMM_SCRATCH] }
    }

    /// C = A B, [`TILE_COLS`] columns at a time.
    fn multiply(&mut self, kernels: Kernels, m: usize, b: Operand<'_>) {
        let (k, n) = b.shape();
        let a = MatRef::new(&self.a, m, k);
        for (col, tile) in MatMut::new(&mut self.c, m, n).col_tiles(TILE_COLS) {
            let b = b.part(0..k, col..col + tile.cols());
            kernels.gemm(tile, Init::Zero, 1.0, &[Term { a, b }], &mut self.scratch);
        }
        black_box(&self.c);
    }
}

/// Both products of `m` tokens with a matrix of `rows` x `cols`, which is asked for only where
/// the filter lets one of them through.
fn products<'a>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    kernels: Kernels,
    m: usize,
    (rows, cols): (usize, usize),
    matrix: impl Fn() -> Matrix<'a>,
) {
    group.throughput(Throughput::Elements((2 * m * rows * cols) as u64));
    for (direction, transposed) in [("forward", true), ("backward", false)] {
        let (k, n) = if transposed { (cols, rows) } else { (rows, cols) };
        let mut buffers = LazyCell::new(|| Buffers::new(m, k, n));
        let id = BenchmarkId::new(direction, format!("{rows}x{cols},T={m}"));
        group.bench_function(id, |bencher| {
            let b = Operand { matrix: matrix(), transposed };
            let buffers = LazyCell::force_mut(&mut buffers);
            bencher.iter(|| buffers.multiply(kernels, m, b));
        });
    }
}

/// Products with weights of one format, and their decoding.
fn weights(criterion: &mut Criterion, kernels: Kernels, format: Format) {
    let mut group = criterion.benchmark_group(format!("{:?}/{format:?}", kernels.isa()));
    for (rows, cols) in SHAPES {
        let cols = cols.next_multiple_of(format.block_len());
        let bytes = LazyCell::new(|| blocks(format, rows * cols));
        for &m in token_counts() {
            products(&mut group, kernels, m, (rows, cols), || {
                Matrix::Quant(QuantMatrix::new(format, &bytes, rows, cols))
            });
        }
    }
    let bytes = blocks(format, ROW_LEN);
    let mut out = vec![0.0; ROW_LEN];
    group.throughput(Throughput::Elements(ROW_LEN as u64));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| {
            kernels.decode_row(format, black_box(&bytes), &mut out);
            black_box(&out);
        });
    });
}

fn dense(criterion: &mut Criterion, kernels: Kernels) {
    let mut group = criterion.benchmark_group(format!("{:?}/dense", kernels.isa()));
    for (rows, cols) in DENSE_SHAPES {
        let numbers = vec![0.5; rows * cols];
        products(&mut group, kernels, token_counts()[0], (rows, cols), || {
            Matrix::Dense(MatRef::new(&numbers, rows, cols))
        });
    }
}

fn over_tokens(criterion: &mut Criterion, kernels: Kernels) {
    let mut group = criterion.benchmark_group(format!("{:?}/gemm_tn", kernels.isa()));
    let t = token_counts()[0];
    for (m, n) in GRADIENT_SHAPES {
        let (l, r) = (vec![0.5; t * m], vec![0.5; t * n]);
        let (l, r) = (MatRef::new(&l, t, m), MatRef::new(&r, t, n));
        let (mut c, mut scratch) = (vec![0.0; m * n], vec![0.0; GEMM_SCRATCH]);
        group.throughput(Throughput::Elements((2 * m * n * t) as u64));
        group.bench_function(format!("{m}x{n},T={t}"), |bencher| {
            bencher.iter(|| {
                kernels.gemm_tn(MatMut::new(&mut c, m, n), false, l, r, &mut scratch);
                black_box(&c);
            });
        });
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .nresamples(10_000)
        .configure_from_args();
    // The scalar set is the tests' oracle: its speed means nothing.
    for kernels in Kernels::all().into_iter().filter(|kernels| kernels.isa() != Isa::Scalar) {
        for format in FORMATS {
            weights(&mut criterion, kernels, format);
        }
        dense(&mut criterion, kernels);
        over_tokens(&mut criterion, kernels);
    }
}
