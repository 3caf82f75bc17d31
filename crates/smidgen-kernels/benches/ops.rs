//! Speed of the operations beside the GEMM, one thread.
//!
//! `cargo bench -p smidgen-kernels --bench ops` prints for every instruction set the best of
//! several rounds: ns an element of each operation, and ms and GFLOP/s of attention (FLOPs of
//! visible pairs only: 2 products forward, 7 backward). Run as a test, it makes one short round.

use std::hint::black_box;
use std::time::{Duration, Instant};

use smidgen_kernels::{
    ATTENTION_SCRATCH, Activation, AdamW, AttentionGradient, AttentionTile, DropoutKey, Isa,
    Kernels, MatMut, MatRef, Philox, Place, Rope, RopeStyle, RopeTable, RowState, Turn,
};

const ROWS: usize = 32;
const COLS: usize = 896;

/// The best time of one call, in seconds.
fn best(time: Duration, mut call: impl FnMut()) -> f64 {
    let (begin, mut best) = (Instant::now(), f64::INFINITY);
    loop {
        let start = Instant::now();
        call();
        best = best.min(start.elapsed().as_secs_f64());
        if begin.elapsed() >= time {
            return best;
        }
    }
}

fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut x = vec![0.0; len];
    Philox::new(seed).uniform(0, 0, &mut x);
    x.iter_mut().for_each(|x| *x = *x * 4.0 - 2.0);
    x
}

/// ROWS x COLS inputs and outputs of the row-wise operations.
struct Buffers {
    x: Vec<f32>,
    u: Vec<f32>,
    y: Vec<f32>,
    z: Vec<f32>,
    per_row: Vec<f32>,
}

impl Buffers {
    fn new() -> Self {
        let len = ROWS * COLS;
        let (x, u) = (random(1, len), random(2, len));
        Self { x, u, y: vec![0.0; len], z: vec![0.0; len], per_row: vec![1.0; ROWS] }
    }
}

fn rows(kernels: Kernels, time: Duration) {
    let mut buffers = Buffers::new();
    let Buffers { x, u, y, z, per_row } = &mut buffers;
    let show = |what: &str, seconds: f64| {
        println!("{:8?} {what:24} {:.3}", kernels.isa(), seconds / (ROWS * COLS) as f64 * 1e9);
    };
    let (x, u) = (MatRef::new(x, ROWS, COLS), MatRef::new(u, ROWS, COLS));
    let weight = &random(3, COLS);
    show(
        "rmsnorm",
        best(time, || kernels.rmsnorm(x, weight, 1e-6, MatMut::new(y, ROWS, COLS), per_row)),
    );
    show(
        "rmsnorm_backward",
        best(time, || {
            kernels.rmsnorm_backward(u, x, per_row, weight, MatMut::new(y, ROWS, COLS));
        }),
    );
    for activation in [Activation::Silu, Activation::GeluTanh] {
        show(
            &format!("gate {activation:?}"),
            best(time, || kernels.gate(activation, x, u, MatMut::new(y, ROWS, COLS))),
        );
        show(
            &format!("gate_backward {activation:?}"),
            best(time, || {
                let (dg, du) = (MatMut::new(y, ROWS, COLS), MatMut::new(z, ROWS, COLS));
                kernels.gate_backward(activation, x, u, x, dg, du);
            }),
        );
    }
    let inv_freq: Vec<f32> = (0..32).map(|i| 1e4f32.powf(i as f32 / -32.0)).collect();
    let table = RopeTable::new(&inv_freq, ROWS);
    for style in [RopeStyle::Halves, RopeStyle::Interleaved] {
        let rope = Rope { table: &table, head_dim: 64, style, turn: Turn::Forth };
        show(
            &format!("rope {style:?}"),
            best(time, || kernels.rope(rope, 0, x, MatMut::new(y, ROWS, COLS))),
        );
    }
    let key = DropoutKey { seed: 1, step: 1, sample: 1, tensor: 1 };
    let place = Place { first_row: 0, first_col: 0, total_cols: COLS };
    show("dropout", best(time, || kernels.dropout(key, place, 0.1, x, MatMut::new(y, ROWS, COLS))));
    show("axpy", best(time, || kernels.axpy(0.5, x, MatMut::new(y, ROWS, COLS))));
    let logits = x;
    let (targets, mut states) = (vec![3; ROWS], vec![RowState::NEW; ROWS]);
    show(
        "copy + softmax_tile",
        best(time, || {
            kernels.copy(logits, MatMut::new(y, ROWS, COLS));
            kernels.softmax_tile(MatMut::new(y, ROWS, COLS), 0, &targets, &mut states, per_row);
        }),
    );
    show("copy", best(time, || kernels.copy(logits, MatMut::new(y, ROWS, COLS))));
}

fn updates(kernels: Kernels, time: Duration) {
    let len = ROWS * COLS;
    let g = random(1, len);
    let (mut p, mut m, mut v) = (random(2, len), vec![0.0; len], vec![0.0; len]);
    let settings = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let show = |what: &str, seconds: f64| {
        println!("{:8?} {what:24} {:.3}", kernels.isa(), seconds / len as f64 * 1e9);
    };
    show("adamw", best(time, || kernels.adamw(&mut p, &g, &mut m, &mut v, settings, 10)));
    show("sgd", best(time, || kernels.sgd(&mut p, &g, 1e-4, 0.0)));
    show(
        "sum_squares",
        best(time, || {
            black_box(kernels.sum_squares(&g));
        }),
    );
}

/// `heads` query heads over `kv_heads` of `head_dim` columns, `tokens` tokens of one segment,
/// each of which sees the last `window`.
fn attention(
    kernels: Kernels,
    time: Duration,
    (tokens, window): (usize, Option<usize>),
    (heads, kv_heads, head_dim): (usize, usize, usize),
) {
    let (group, cols) = (heads / kv_heads, heads * head_dim);
    let q = random(1, tokens * cols);
    let (k, v) = (random(2, tokens * kv_heads * head_dim), random(3, tokens * kv_heads * head_dim));
    let (d_o, mut o, mut dq) = (random(4, q.len()), vec![0.0; q.len()], vec![0.0; q.len()]);
    let (mut dk, mut dv) = (vec![0.0; k.len()], vec![0.0; v.len()]);
    let (mut lse, mut delta) = (vec![0.0; heads * tokens], vec![0.0; heads * tokens]);
    let mut scratch = vec![0.0; ATTENTION_SCRATCH];
    let (q, d_o) = (MatRef::new(&q, tokens, cols), MatRef::new(&d_o, tokens, cols));
    let k = MatRef::new(&k, tokens, kv_heads * head_dim);
    let v = MatRef::new(&v, tokens, kv_heads * head_dim);
    let q_cols = |kv: usize| kv * group * head_dim..(kv + 1) * group * head_dim;
    let kv_cols = |kv: usize| kv * head_dim..(kv + 1) * head_dim;
    let tile = |kv: usize| AttentionTile {
        q: q.cols_range(q_cols(kv)),
        k: k.cols_range(kv_cols(kv)),
        v: v.cols_range(kv_cols(kv)),
        first_query: 0,
        first_key: 0,
        scale: 0.1,
        window,
    };
    let forward = best(time, || {
        let outputs = MatMut::new(&mut o, tokens, cols).col_tiles(group * head_dim);
        let lse = MatMut::new(&mut lse, heads, tokens).row_tiles(group);
        for (kv, ((_, o), (_, lse))) in outputs.zip(lse).enumerate() {
            kernels.attention(&tile(kv), o, lse, &mut scratch);
        }
    });
    for (head, delta) in delta.chunks_mut(tokens).enumerate() {
        let range = head * head_dim..(head + 1) * head_dim;
        let o = MatRef::new(&o, tokens, cols).cols_range(range.clone());
        kernels.attention_delta(d_o.cols_range(range), o, delta);
    }
    let lse = MatRef::new(&lse, heads, tokens);
    let delta = MatRef::new(&delta, heads, tokens);
    let gradient = |kv: usize| AttentionGradient {
        d_o: d_o.cols_range(q_cols(kv)),
        lse: lse.rows_range(kv * group..(kv + 1) * group),
        delta: delta.rows_range(kv * group..(kv + 1) * group),
    };
    let backward_q = best(time, || {
        let outputs = MatMut::new(&mut dq, tokens, cols).col_tiles(group * head_dim);
        for (kv, (_, dq)) in outputs.enumerate() {
            kernels.attention_backward_q(&tile(kv), &gradient(kv), dq, &mut scratch);
        }
    });
    let backward_kv = best(time, || {
        let dk = MatMut::new(&mut dk, tokens, kv_heads * head_dim).col_tiles(head_dim);
        let dv = MatMut::new(&mut dv, tokens, kv_heads * head_dim).col_tiles(head_dim);
        for (kv, ((_, dk), (_, dv))) in dk.zip(dv).enumerate() {
            kernels.attention_backward_kv(&tile(kv), &gradient(kv), dk, dv, &mut scratch);
        }
    });
    let pairs: usize = (1..=tokens).map(|seen| window.map_or(seen, |w| seen.min(w))).sum();
    let product = (2 * heads * head_dim * pairs) as f64;
    println!(
        "{:8?} attention {tokens} x {heads}/{kv_heads} x {head_dim}, window {window:?}: ms (GFLOP/s) \
         forward {:.2} ({:.0}), dq {:.2} ({:.0}), dk dv {:.2} ({:.0})",
        kernels.isa(),
        forward * 1e3,
        2.0 * product / forward * 1e-9,
        backward_q * 1e3,
        3.0 * product / backward_q * 1e-9,
        backward_kv * 1e3,
        4.0 * product / backward_kv * 1e-9,
    );
}

fn main() {
    let bench = std::env::args().any(|arg| arg == "--bench");
    let time = if bench { Duration::from_millis(200) } else { Duration::ZERO };
    for kernels in Kernels::all() {
        if bench && kernels.isa() == Isa::Scalar {
            continue; // The oracle's speed means nothing.
        }
        println!("ns an element, {ROWS} x {COLS}");
        rows(kernels, time);
        updates(kernels, time);
        let lengths: &[(usize, Option<usize>)] =
            if bench { &[(256, None), (1024, None), (1024, Some(512))] } else { &[(70, Some(20))] };
        for &length in lengths {
            for shape in [(14, 2, 64), (9, 3, 64), (4, 1, 256)] {
                attention(kernels, time, length, shape);
            }
        }
    }
}
