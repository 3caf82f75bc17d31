//! Speed of the operations beside the GEMM, one thread.
//!
//! `cargo bench -p smidgen-kernels --bench ops -- [REGEX]` measures the benches whose names match,
//! for instance `Avx512/attention` or `rope`. The names are `ISA/OPERATION`, with a variant where
//! there is one, and `ISA/attention/PASS/heads=QUERY:KEY,dim=HEAD_DIM,T=TOKENS`.
//!
//! Elements are numbers of the output, so ns a number is 1 / (Gelem/s). In `attention` they are
//! FLOPs of the visible pairs (2 products forward, 3 for dQ, 4 for dK and dV), so Gelem/s is
//! GFLOP/s. Run as a test, every bench makes one call, attention for a few tokens.

mod attention;

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use smidgen_kernels::{
    Activation, AdamW, DropoutKey, Isa, Kernels, MatMut, MatRef, NormalKey, Philox, Place, Rope,
    RopeStyle, RopeTable, RowState, Turn,
};

use attention::Shape;

const ROWS: usize = 32;
const COLS: usize = 896;

fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut x = vec![0.0; len];
    Philox::new(seed).uniform(0, 0, &mut x);
    x.iter_mut().for_each(|x| *x = *x * 4.0 - 2.0);
    x
}

/// The view of an output of ROWS x COLS.
fn out(y: &mut [f32]) -> MatMut<'_> {
    MatMut::new(y, ROWS, COLS)
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn norms(group: &mut Group<'_>, kernels: Kernels, x: MatRef<'_>, d_y: MatRef<'_>) {
    let (mut y, mut inv_rms) = (vec![0.0; ROWS * COLS], vec![1.0; ROWS]);
    let weight = random(3, COLS);
    group.bench_function("rmsnorm", |bencher| {
        bencher.iter(|| kernels.rmsnorm(x, &weight, 1e-6, out(&mut y), &mut inv_rms));
    });
    group.bench_function("rmsnorm_backward", |bencher| {
        bencher.iter(|| kernels.rmsnorm_backward(d_y, x, &inv_rms, &weight, out(&mut y)));
    });
}

fn gates(group: &mut Group<'_>, kernels: Kernels, gate: MatRef<'_>, up: MatRef<'_>) {
    let (mut y, mut z) = (vec![0.0; ROWS * COLS], vec![0.0; ROWS * COLS]);
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let id = |pass| BenchmarkId::new(pass, format!("{activation:?}"));
        group.bench_function(id("gate"), |bencher| {
            bencher.iter(|| kernels.gate(activation, gate, up, out(&mut y)));
        });
        group.bench_function(id("gate_backward"), |bencher| {
            bencher.iter(|| {
                kernels.gate_backward(activation, gate, up, gate, out(&mut y), out(&mut z));
            });
        });
    }
}

fn ropes(group: &mut Group<'_>, kernels: Kernels, x: MatRef<'_>) {
    let mut y = vec![0.0; ROWS * COLS];
    let inv_freq: Vec<f32> = (0..32).map(|i| 1e4f32.powf(i as f32 / -32.0)).collect();
    let table = RopeTable::new(&inv_freq, ROWS);
    for style in [RopeStyle::Halves, RopeStyle::Interleaved] {
        let rope = Rope { table: &table, head_dim: 64, style, turn: Turn::Forth };
        group.bench_function(BenchmarkId::new("rope", format!("{style:?}")), |bencher| {
            bencher.iter(|| kernels.rope(rope, 0, x, out(&mut y)));
        });
    }
}

fn elementwise(group: &mut Group<'_>, kernels: Kernels, x: MatRef<'_>) {
    let mut y = vec![0.0; ROWS * COLS];
    let key = DropoutKey { seed: 1, step: 1, sample: 1, tensor: 1 };
    let place = Place { first_row: 0, first_col: 0, total_cols: COLS };
    group.bench_function("dropout", |bencher| {
        bencher.iter(|| kernels.dropout(key, place, 0.1, x, out(&mut y)));
    });
    group.bench_function("axpy", |bencher| {
        bencher.iter(|| kernels.axpy(0.5, x, out(&mut y)));
    });
    group.bench_function("copy", |bencher| bencher.iter(|| kernels.copy(x, out(&mut y))));
}

/// The softmax overwrites its logits, so each call is given them anew; `copy` alone tells how much
/// of the time that is.
fn softmax(group: &mut Group<'_>, kernels: Kernels, logits: MatRef<'_>) {
    let (mut y, mut rescale) = (vec![0.0; ROWS * COLS], vec![1.0; ROWS]);
    let (targets, mut states) = (vec![3; ROWS], vec![RowState::NEW; ROWS]);
    group.bench_function("softmax_tile_with_copy", |bencher| {
        bencher.iter(|| {
            kernels.copy(logits, out(&mut y));
            kernels.softmax_tile(out(&mut y), 0, &targets, &mut states, &mut rescale);
        });
    });
}

fn updates(group: &mut Group<'_>, kernels: Kernels) {
    let len = ROWS * COLS;
    let g = random(1, len);
    let (mut p, mut m, mut v) = (random(2, len), vec![0.0; len], vec![0.0; len]);
    let settings = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    group.bench_function("adamw", |bencher| {
        bencher.iter(|| kernels.adamw(&mut p, &g, &mut m, &mut v, settings, 10));
    });
    group.bench_function("sgd", |bencher| bencher.iter(|| kernels.sgd(&mut p, &g, 1e-4, 0.0)));
    group.bench_function("sgd_momentum", |bencher| {
        bencher.iter(|| kernels.sgd_momentum(&mut p, &g, &mut m, 0.9, 1e-4, 0.0));
    });
    group.bench_function("sum_squares", |bencher| bencher.iter(|| kernels.sum_squares(&g)));
}

fn normals(group: &mut Group<'_>, kernels: Kernels) {
    let len = ROWS * COLS;
    let key = NormalKey { seed: 1, sample: 1 };
    let (mut x, mut y) = (random(1, len), vec![0.0; len]);
    group.bench_function("normals", |bencher| bencher.iter(|| kernels.normals(key, 7, &mut y)));
    group.bench_function("perturb", |bencher| {
        bencher.iter(|| kernels.perturb(key, 7, 1e-3, &x, &mut y));
    });
    group.bench_function("descend_normals", |bencher| {
        bencher.iter(|| kernels.descend_normals(key, 7, 1e-9, 0.0, &mut x));
    });
}

fn operations(criterion: &mut Criterion, kernels: Kernels) {
    let (x, u) = (random(1, ROWS * COLS), random(2, ROWS * COLS));
    let (x, u) = (MatRef::new(&x, ROWS, COLS), MatRef::new(&u, ROWS, COLS));
    let mut group = criterion.benchmark_group(format!("{:?}", kernels.isa()));
    group.throughput(Throughput::Elements((ROWS * COLS) as u64));
    norms(&mut group, kernels, x, u);
    gates(&mut group, kernels, x, u);
    ropes(&mut group, kernels, x);
    elementwise(&mut group, kernels, x);
    softmax(&mut group, kernels, x);
    updates(&mut group, kernels);
    normals(&mut group, kernels);
}

/// Tokens and windows of the attention.
fn lengths() -> &'static [(usize, Option<usize>)] {
    let has = |flag| std::env::args().any(|arg| arg == flag);
    if has("--bench") && !has("--test") {
        &[(256, None), (1024, None), (1024, Some(512))]
    } else {
        &[(70, Some(20))]
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
        operations(&mut criterion, kernels);
        for &(tokens, window) in lengths() {
            for (heads, kv_heads, head_dim) in [(14, 2, 64), (9, 3, 64), (4, 1, 256)] {
                let shape = Shape { tokens, window, heads, kv_heads, head_dim };
                attention::bench(&mut criterion, kernels, shape);
            }
        }
    }
}
