//! Speed of the GEMM and of decoding, one thread.
//!
//! `cargo bench -p smidgen-kernels --bench gemm [FORMAT]` prints the best of several rounds:
//! GFLOP/s of X Wᵀ (forward) and dY W (backward) for every instruction set, in tiles as a caller
//! cuts them, and ns a weight for decoding. Run as a test, it makes one short round.

use std::hint::black_box;
use std::time::{Duration, Instant};

use smidgen_kernels::{
    Format, GEMM_SCRATCH, Init, Kernels, MatMut, MatRef, Matrix, Operand, QuantMatrix, Term,
};

/// Outputs and inputs of the weights: a small model's MLP and attention.
const SHAPES: [(usize, usize); 3] = [(4864, 896), (896, 4864), (896, 896)];

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

/// How long one figure is measured for.
#[derive(Clone, Copy)]
struct Effort {
    time: Duration,
    tokens: usize,
}

/// Time of a call, as the sum over its `pieces` of the best time of each: a busy machine
/// interrupts long calls, but hardly every round of a short piece.
fn best(effort: Effort, pieces: usize, mut call: impl FnMut(&mut dyn FnMut())) -> f64 {
    let (begin, mut best) = (Instant::now(), vec![f64::INFINITY; pieces]);
    loop {
        let (mut start, mut piece) = (Instant::now(), 0);
        call(&mut || {
            best[piece] = best[piece].min(start.elapsed().as_secs_f64());
            (start, piece) = (Instant::now(), piece + 1);
        });
        if begin.elapsed() >= effort.time {
            return best.iter().sum();
        }
    }
}

/// Blocks of any bytes that mean no number so small that it slows the processor down.
fn blocks(format: Format, count: usize) -> Vec<u8> {
    (0..count * format.block_bytes()).map(|i| 0x20 + (i * 31 % 29) as u8).collect()
}

fn columns(operand: Matrix<'_>, transposed: bool, from: usize, to: usize) -> Operand<'_> {
    let matrix = match operand {
        Matrix::Dense(m) if transposed => Matrix::Dense(m.rows_range(from..to)),
        Matrix::Dense(m) => Matrix::Dense(m.cols_range(from..to)),
        Matrix::Quant(m) if transposed => Matrix::Quant(m.rows_range(from..to)),
        Matrix::Quant(m) => Matrix::Quant(m.cols_range(from..to)),
    };
    Operand { matrix, transposed }
}

/// GFLOP/s of one product with `matrix` of `rows` x `cols`.
fn product(
    kernels: Kernels,
    effort: Effort,
    matrix: Matrix<'_>,
    (rows, cols): (usize, usize),
    transposed: bool,
) -> f64 {
    let (k, n) = if transposed { (cols, rows) } else { (rows, cols) };
    let m = effort.tokens;
    let a: Vec<f32> = (0..m * k).map(|i| (i % 13) as f32 - 6.0).collect();
    let mut c = vec![0.0; m * n];
    let mut scratch = vec![0.0; GEMM_SCRATCH];
    let a = MatRef::new(&a, m, k);
    let width = 256;
    let seconds = best(effort, n.div_ceil(width), |done| {
        for (col, tile) in MatMut::new(&mut c, m, n).col_tiles(width) {
            let b = columns(matrix, transposed, col, col + tile.cols());
            kernels.gemm(tile, Init::Zero, 1.0, &[Term { a, b }], &mut scratch);
            done();
        }
    });
    2.0 * (m * n * k) as f64 / seconds * 1e-9
}

fn products(effort: Effort, wanted: impl Fn(&str) -> bool) {
    println!("GFLOP/s, {} tokens: forward/backward", effort.tokens);
    print!("{:16}", "");
    SHAPES.iter().for_each(|(rows, cols)| print!("{:>16}", format!("{rows} x {cols}")));
    println!();
    for kernels in Kernels::all().into_iter().skip(1) {
        for format in FORMATS {
            if !wanted(&format!("{format:?}")) {
                continue;
            }
            print!("{:16}", format!("{:?} {format:?}", kernels.isa()));
            for (rows, cols) in SHAPES {
                let cols_padded = cols.next_multiple_of(format.block_len());
                let bytes = blocks(format, rows * cols_padded / format.block_len());
                let matrix = Matrix::Quant(QuantMatrix::new(format, &bytes, rows, cols_padded));
                let speed =
                    |transposed| product(kernels, effort, matrix, (rows, cols_padded), transposed);
                print!("{:>16}", format!("{:.1}/{:.1}", speed(true), speed(false)));
            }
            println!();
        }
    }
}

fn dense(effort: Effort) {
    println!("GFLOP/s, {} tokens, f32 matrix: forward/backward", effort.tokens);
    for kernels in Kernels::all().into_iter().skip(1) {
        for (rows, cols) in [(896, 896), (8, 896), (32, 896), (896, 8), (896, 32)] {
            let numbers = vec![0.5; rows * cols];
            let matrix = Matrix::Dense(MatRef::new(&numbers, rows, cols));
            let speed = |transposed| product(kernels, effort, matrix, (rows, cols), transposed);
            let (forward, backward) = (speed(true), speed(false));
            println!("{:?} {rows} x {cols}: {forward:.1}/{backward:.1}", kernels.isa());
        }
    }
}

fn over_tokens(effort: Effort) {
    println!("GFLOP/s of the sum over {} tokens: rank x columns", effort.tokens);
    for kernels in Kernels::all().into_iter().skip(1) {
        for (m, n) in [(8, 896), (8, 4864), (16, 4864), (64, 896)] {
            let t = effort.tokens;
            let (l, r) = (vec![0.5; t * m], vec![0.5; t * n]);
            let (l, r) = (MatRef::new(&l, t, m), MatRef::new(&r, t, n));
            let (mut c, mut scratch) = (vec![0.0; m * n], vec![0.0; GEMM_SCRATCH]);
            let seconds = best(effort, 1, |done| {
                kernels.gemm_tn(MatMut::new(&mut c, m, n), false, l, r, &mut scratch);
                done();
            });
            let flops = 2.0 * (m * n * t) as f64;
            let bytes = 4.0 * (t * n) as f64;
            println!(
                "{:?} {m} x {n}: {:.1} GFLOP/s, {:.1} GB/s",
                kernels.isa(),
                flops / seconds * 1e-9,
                bytes / seconds * 1e-9
            );
        }
    }
}

fn decoding(effort: Effort, wanted: impl Fn(&str) -> bool) {
    println!("decoding, ns a weight");
    let len = 4096;
    for format in FORMATS {
        if !wanted(&format!("{format:?}")) {
            continue;
        }
        let bytes = blocks(format, len / format.block_len());
        let mut out = vec![0.0; len];
        print!("{:8}", format!("{format:?}"));
        for kernels in Kernels::all() {
            let seconds = best(effort, 1, |done| {
                kernels.decode_row(format, black_box(&bytes), &mut out);
                done();
                black_box(&out);
            });
            print!("  {:?} {:.3}", kernels.isa(), seconds / len as f64 * 1e9);
        }
        println!();
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let bench = args.iter().any(|arg| arg == "--bench");
    let filter: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    let wanted = |name: &str| filter.is_empty() || filter.iter().any(|arg| *arg == name);
    let long = Duration::from_millis(300);
    let effort = |tokens| match bench {
        true => Effort { time: long, tokens },
        false => Effort { time: Duration::ZERO, tokens: 16 },
    };
    products(effort(256), wanted);
    if bench {
        products(effort(16), wanted);
    }
    if filter.is_empty() {
        dense(effort(256));
        over_tokens(effort(256));
    }
    decoding(effort(256), wanted);
}
