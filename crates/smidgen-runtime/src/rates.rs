//! How fast this machine is: what the planner's model of time starts from. Kernels are timed by
//! themselves on made-up numbers, the disk on a file of its own.

use std::path::Path;
use std::time::{Duration, Instant};

use smidgen_graph::Rates;
use smidgen_graph::ops::HEAD_TILE;
use smidgen_kernels::{
    Activation, AdamW, AttentionTile, Format, Init, KEY_WALK, Kernels, MatMut, MatRef, Matrix,
    Operand, QUERY_BLOCK, QuantMatrix, RowState, Term,
};
use smidgen_weights::Mapped;

use crate::engine::SCRATCH;
use crate::error::Result;
use crate::pool::Pool;
use crate::spool::{Spool, SpoolFormat};

/// Rows, inputs and most outputs of the products that are timed.
const SHAPE: [usize; 3] = [256, 896, 1792];
/// Outputs of the products that are timed: keys of a group, queries, an MLP's.
const OUTPUTS: [usize; 3] = [128, 896, 1792];
/// The rank of the LoRA factors that are timed.
const RANK: usize = 8;
/// How long each kind of work is timed in a round, after a first call that is not.
const TIMED: Duration = Duration::from_millis(25);
/// Rounds, so that a second's pause of another program does not count.
const ROUNDS: usize = 6;
/// Numbers written to the scratch file and read back.
const SPOOLED: usize = 4 << 20;

/// Measures this machine with `threads` threads; the disk is the one that `folder` is on, or that
/// of [`Rates::REFERENCE`]. Takes about a second and 10 MB.
///
/// # Errors
/// Threads can't be started, or the folder can't be written to.
pub fn measure_rates(kernels: Kernels, threads: usize, folder: Option<&Path>) -> Result<Rates> {
    let mut bench = Bench::new(kernels, threads)?;
    let mut best: Option<Rates> = None;
    // What else the machine does slows some rounds: the fastest is the machine's own.
    for _ in 0..ROUNDS {
        let mut rates = bench.round();
        if let Some(best) = &mut best {
            for ((name, best), (_, rate)) in best.named().into_iter().zip(rates.named()) {
                *best = if name == "call" { best.min(*rate) } else { best.max(*rate) };
            }
        }
        best.get_or_insert(rates);
    }
    let mut rates = best.expect("there is a round");
    if let Some(folder) = folder {
        (rates.write, rates.read) = spool_rates(folder)?;
    }
    rates.weights = weights_rate().unwrap_or(rates.weights);
    Ok(rates)
}

struct Bench {
    kernels: Kernels,
    pool: Pool,
    /// As wide as the widest operand.
    x: Vec<f32>,
    y: Vec<f32>,
    blocks: Vec<u8>,
}

impl Bench {
    fn new(kernels: Kernels, threads: usize) -> Result<Self> {
        let [m, k, n] = SHAPE;
        let ramp = |len: usize| (0..len).map(|i| ((i % 13) as f32 - 6.0) / 8.0).collect();
        // Blocks of Q4_0: a half scale, then 16 bytes of codes.
        let bytes = n * k / Format::Q4_0.block_len() * Format::Q4_0.block_bytes();
        let block = |i: usize| match i % Format::Q4_0.block_bytes() {
            0 => 0x00,
            1 => 0x2c,
            i => (37 * i) as u8,
        };
        Ok(Self {
            kernels,
            pool: Pool::new(threads, SCRATCH)?,
            x: ramp(m * n),
            y: vec![0.0; m * n],
            blocks: (0..bytes).map(block).collect(),
        })
    }

    /// Every kind of work once.
    fn round(&mut self) -> Rates {
        Rates {
            products: self.products(),
            lora: self.lora(),
            attention: self.attention(),
            rowwise: self.rowwise(),
            softmax: self.softmax(),
            optimizer: self.optimizer(),
            call: self.call(),
            ..Rates::REFERENCE
        }
    }

    /// Calls `work` until enough time has passed; returns `units` of a call over its median time.
    fn rate(&mut self, units: f64, mut work: impl FnMut(&mut Self)) -> f64 {
        work(self);
        let mut times = Vec::new();
        let begin = Instant::now();
        while begin.elapsed() < TIMED || times.len() < 3 {
            let one = Instant::now();
            work(self);
            times.push(one.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        units / times[times.len() / 2].max(1e-9)
    }

    /// Y = X W^T, and X = Y W: once each for every number of outputs.
    fn products(&mut self) -> f64 {
        let [m, k, most] = SHAPE;
        let outputs: usize = OUTPUTS.iter().sum();
        self.rate(4.0 * (m * k * outputs) as f64, |b| {
            let Self { kernels, pool, x, y, blocks } = b;
            let whole = QuantMatrix::new(Format::Q4_0, blocks, most, k);
            for n in OUTPUTS {
                let matrix = Matrix::Quant(whole.rows_range(0..n));
                for (transposed, depth, width) in [(true, k, n), (false, n, k)] {
                    let a = MatRef::new(&x[..m * depth], m, depth);
                    let term = Term { a, b: Operand { matrix, transposed } };
                    let c = MatMut::new(&mut y[..m * width], m, width);
                    pool.gemm(*kernels, c, Init::Zero, 1.0, &[term]);
                }
            }
        })
    }

    /// H = X A^T, Y = H B, and the gradient of A.
    fn lora(&mut self) -> f64 {
        let [m, k, _] = SHAPE;
        let mut h = vec![0.5; m * RANK];
        let factor = vec![0.01; RANK * k];
        let mut gradient = vec![0.0; RANK * k];
        self.rate(6.0 * (m * k * RANK) as f64, |b| {
            let Self { kernels, pool, x, y, .. } = b;
            let matrix = Matrix::Dense(MatRef::new(&factor, RANK, k));
            let inputs = MatRef::new(&x[..m * k], m, k);
            let down = Term { a: inputs, b: Operand { matrix, transposed: true } };
            pool.gemm(*kernels, MatMut::new(&mut h, m, RANK), Init::Zero, 1.0, &[down]);
            let hidden = MatRef::new(&h, m, RANK);
            let up = Term { a: hidden, b: Operand { matrix, transposed: false } };
            pool.gemm(*kernels, MatMut::new(&mut y[..m * k], m, k), Init::Zero, 1.0, &[up]);
            let tasks = MatMut::new(&mut gradient, RANK, k).col_tiles(256);
            pool.run(tasks, |(col, c), scratch| {
                let cols = col..col + c.cols();
                kernels.gemm_tn(c, true, hidden, inputs.cols_range(cols), scratch);
            });
        })
    }

    /// The last queries of a sequence over all its keys, a group of heads a task.
    fn attention(&mut self) -> f64 {
        const HEAD: usize = 64;
        const GROUP: usize = 4;
        let keys = 2 * KEY_WALK;
        let first_query = keys - QUERY_BLOCK;
        let pairs: usize = (first_query..keys).map(|query| query + 1).sum();
        let tasks = 2 * self.pool.threads();
        let mut lse = vec![0.0; tasks * GROUP * QUERY_BLOCK];
        self.rate((4 * tasks * pairs * GROUP * HEAD) as f64, |b| {
            let Self { kernels, pool, x, y, .. } = b;
            let outputs = y.chunks_exact_mut(QUERY_BLOCK * GROUP * HEAD);
            let lse = lse.chunks_exact_mut(GROUP * QUERY_BLOCK);
            let tile = AttentionTile {
                q: MatRef::new(&x[..QUERY_BLOCK * GROUP * HEAD], QUERY_BLOCK, GROUP * HEAD),
                k: MatRef::new(&x[..keys * HEAD], keys, HEAD),
                v: MatRef::new(&x[..keys * HEAD], keys, HEAD),
                first_query,
                first_key: 0,
                scale: 0.125,
                window: None,
            };
            pool.run(outputs.zip(lse).take(tasks), |(o, lse), scratch| {
                let o = MatMut::new(o, QUERY_BLOCK, GROUP * HEAD);
                kernels.attention(&tile, o, MatMut::new(lse, GROUP, QUERY_BLOCK), scratch);
            });
        })
    }

    /// A norm and a gate.
    fn rowwise(&mut self) -> f64 {
        let [m, k, _] = SHAPE;
        let weight = vec![1.0; k];
        let mut inv_rms = vec![0.0; m];
        const ROWS: usize = 16;
        self.rate(2.0 * (m * k) as f64, |b| {
            let Self { kernels, pool, x, y, .. } = b;
            let x = MatRef::new(&x[..m * k], m, k);
            let tasks = MatMut::new(&mut y[..m * k], m, k).row_tiles(ROWS);
            pool.run(tasks.zip(inv_rms.chunks_mut(ROWS)), |((row, y), inv), _| {
                kernels.rmsnorm(x.rows_range(row..row + y.rows()), &weight, 1e-6, y, inv);
            });
            pool.run(MatMut::new(&mut y[..m * k], m, k).row_tiles(ROWS), |(row, a), _| {
                let x = x.rows_range(row..row + a.rows());
                kernels.gate(Activation::Silu, x, x, a);
            });
        })
    }

    /// A tile of the vocabulary.
    fn softmax(&mut self) -> f64 {
        const ROWS: usize = 8;
        let rows = SHAPE[0];
        let targets = vec![0; rows];
        let mut states = vec![RowState::NEW; rows];
        let mut factors = vec![1.0; rows];
        self.rate((rows * HEAD_TILE) as f64, |b| {
            let Self { kernels, pool, x, y, .. } = b;
            let logits = &mut y[..rows * HEAD_TILE];
            logits.copy_from_slice(&x[..rows * HEAD_TILE]);
            let bands = MatMut::new(logits, rows, HEAD_TILE).row_tiles(ROWS);
            let states = states.chunks_mut(ROWS).zip(factors.chunks_mut(ROWS));
            pool.run(bands.zip(targets.chunks(ROWS).zip(states)), |((_, band), rest), _| {
                let (targets, (states, factors)) = rest;
                kernels.softmax_tile(band, 0, targets, states, factors);
            });
        })
    }

    /// AdamW, which runs on one thread.
    fn optimizer(&mut self) -> f64 {
        let len = SHAPE[0] * SHAPE[1];
        let (mut mean, mut square) = (vec![0.0; len], vec![0.0; len]);
        self.rate(len as f64, |b| {
            let settings =
                AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
            let (p, g) = (&mut b.y[..len], &b.x[..len]);
            b.kernels.adamw(p, g, &mut mean, &mut square, settings, 10);
        })
    }

    /// Seconds of a call with nothing to do.
    fn call(&mut self) -> f64 {
        const CALLS: usize = 100;
        let per_second = self.rate(CALLS as f64, |b| {
            for _ in 0..CALLS {
                b.pool.run(0..b.pool.threads(), |_, _| {});
            }
        });
        1.0 / per_second
    }
}

/// Bytes a second to a scratch file, all the way to the disk, and back.
fn spool_rates(folder: &Path) -> Result<(f64, f64)> {
    let spool = Spool::create(folder, SPOOLED, SpoolFormat::F32)?;
    let mut numbers = vec![1.0; 64 * 1024];
    let bytes = 4.0 * SPOOLED as f64;
    let begin = Instant::now();
    for at in (0..SPOOLED).step_by(numbers.len()) {
        spool.write(at, &numbers)?;
    }
    spool.sync()?;
    let write = bytes / begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    for at in (0..SPOOLED).step_by(numbers.len()) {
        spool.read(at, &mut numbers)?;
    }
    Ok((write, bytes / begin.elapsed().as_secs_f64()))
}

/// Bytes a second of a file brought from the system's file cache into memory and dropped: the
/// program's own, which is read-only and there. None where it can't be read.
fn weights_rate() -> Option<f64> {
    const MOST: usize = 8 << 20;
    let map = Mapped::open(std::env::current_exe().ok()?).ok()?;
    let bytes = map.bytes().len().min(MOST);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        map.prefetch(0..bytes).ok()?;
        map.release(0..bytes);
        times.push(begin.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Some(bytes as f64 / times[ROUNDS / 2].max(1e-9))
}
