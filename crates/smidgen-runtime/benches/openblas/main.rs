//! The fused GEMM against OpenBLAS's sgemm on the same numbers, in interleaved pairs.
//!
//! `cargo bench -p smidgen-runtime --bench openblas -- [FLAGS]`; `--help` lists the flags. A round
//! measures every number of threads: OpenBLAS and the fused GEMM after each other, taking turns
//! at going first. A measurement is the median of as many calls as fill some milliseconds, after
//! one call that wakes the threads (a call that fills them alone is taken as it is) and a pause,
//! since OpenBLAS's threads spin for some 30 ms after a call and would take a core from the other
//! side. The ratio is that of a pair, so what slows the whole machine down slows both sides;
//! scaling is the speed over that with the first number of threads, in the same round.
//!
//! OpenBLAS gets the weights as f32, decoded once; the fused GEMM gets the file's blocks, and
//! decodes them in every call. Run as a test, it compares the results on one small shape.

mod blas;
mod fused;
mod options;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use smidgen_kernels::{Format, Kernels, MatMut, MatRef, Matrix, Operand, Philox, QuantMatrix};

use blas::OpenBlas;
use fused::Team;
use options::{Options, USAGE};

const INSTALL: &str = "Debian and Ubuntu: apt-get install libopenblas0-pthread \
                       (or libopenblas-dev); elsewhere give --library FILE";

/// A call as long as this needs no other before it.
const LONG: Duration = Duration::from_millis(100);

/// Largest relative difference between the two results: float32 sums of up to 151,936 products.
const MAX_ERROR: f64 = 1e-5;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let options = match Options::parse(&args) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match OpenBlas::load(&options.library) {
        Ok(blas) => compare(&options, &blas),
        Err(error) => {
            eprintln!("no OpenBLAS to compare with: {error}\n{INSTALL}");
            if options.is_bench { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
    }
}

fn compare(options: &Options, blas: &OpenBlas) -> ExitCode {
    let say = |text: String| if options.json { eprintln!("{text}") } else { println!("{text}") };
    let isa = options.kernels.isa();
    say(format!("{}; fused: {isa:?}; {} pairs", blas.config, options.pairs));
    say(format!("load before: {}", load_average()));
    say(format!("GFLOP/s: medians; ratio: OpenBLAS's time / the fused GEMM's\n{HEADER}"));
    let teams = options.threads.iter().map(|threads| Team::new(*threads)).collect();
    let (kernels, rounds) = (options.kernels, options.pairs);
    let effort = if options.is_bench { Effort::BENCH } else { Effort::TEST };
    let mut bench = Bench { blas, kernels, teams, rounds, effort };
    let mut errors = Vec::new();
    for shape in &options.shapes {
        for format in &options.formats {
            bench.run_shape(options, *format, *shape, &mut errors);
        }
    }
    let worst = quantile(errors, 1.0);
    say(format!("load after: {}; largest relative difference {worst:.1e}", load_average()));
    if worst < MAX_ERROR { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A product: what both sides compute, whatever the number of threads.
#[derive(Clone, Copy)]
struct Case {
    tokens: usize,
    forward: bool,
    /// Of the format.
    name: &'static str,
}

/// Weights of one format and shape, as blocks and as f32, outputs x inputs.
struct Weights {
    format: Format,
    inputs: usize,
    outputs: usize,
    blocks: Vec<u8>,
    dense: Vec<f32>,
}

/// Seconds of a call, round by round, with one number of threads.
struct Samples {
    threads: usize,
    openblas: Vec<f64>,
    fused: Vec<f64>,
}

impl Weights {
    /// Inputs are rounded up to whole blocks, for both sides.
    fn new(format: Format, (inputs, outputs): (usize, usize)) -> Self {
        let inputs = inputs.next_multiple_of(format.block_len());
        let len = inputs * outputs / format.block_len() * format.block_bytes();
        // Any bytes that, read as scales, are neither subnormal nor large.
        let byte = |i: usize| 0x20 + ((i as u32).wrapping_mul(0x9E37_79B1) >> 24) as u8 % 29;
        let blocks: Vec<u8> = (0..len).map(byte).collect();
        let mut dense = vec![0.0; inputs * outputs];
        format.decode(&blocks, &mut dense);
        Self { format, inputs, outputs, blocks, dense }
    }

    /// Length of the reduction and columns of the result.
    fn k_n(&self, forward: bool) -> (usize, usize) {
        let (i, o) = (self.inputs, self.outputs);
        if forward { (i, o) } else { (o, i) }
    }

    fn flops(&self, tokens: usize) -> f64 {
        2.0 * (tokens * self.inputs * self.outputs) as f64
    }
}

/// Everything that does not change from case to case.
struct Bench<'a> {
    blas: &'a OpenBlas,
    kernels: Kernels,
    teams: Vec<Team>,
    rounds: usize,
    effort: Effort,
}

/// What a measurement takes.
#[derive(Clone, Copy)]
struct Effort {
    /// Before the first call.
    pause: Duration,
    /// Of all timed calls together, at least.
    time: Duration,
}

impl Effort {
    /// The pause is longer than OpenBLAS's threads spin after a call.
    const BENCH: Self = Self { pause: Duration::from_millis(40), time: Duration::from_millis(20) };
    const TEST: Self = Self { pause: Duration::ZERO, time: Duration::from_nanos(1) };

    /// Median seconds of a call.
    fn measure(self, mut call: impl FnMut()) -> f64 {
        let mut timed = || {
            let begin = Instant::now();
            call();
            begin.elapsed()
        };
        std::thread::sleep(self.pause);
        let first = timed();
        if first >= LONG {
            return first.as_secs_f64();
        }
        let (mut times, mut sum) = (Vec::new(), Duration::ZERO);
        while sum < self.time {
            let time = timed();
            sum += time;
            times.push(time.as_secs_f64());
        }
        quantile(times, 0.5)
    }
}

impl Bench<'_> {
    /// Measures and prints all rows of the table that share weights; adds the relative
    /// differences between the results to `errors`.
    fn run_shape(
        &mut self,
        options: &Options,
        format: (&'static str, Format),
        shape: (usize, usize),
        errors: &mut Vec<f64>,
    ) {
        let weights = Weights::new(format.1, shape);
        for &tokens in &options.tokens {
            for &forward in &options.forward {
                let case = Case { tokens, forward, name: format.0 };
                let (samples, error) = self.run(case, &weights);
                errors.push(error);
                for row in &samples {
                    match options.json {
                        true => print_json_row(case, &weights, row, error),
                        false => print_table_row(case, &weights, row, &samples[0]),
                    }
                }
            }
        }
    }

    /// The samples of each team, and the relative difference between the two results.
    fn run(&mut self, case: Case, weights: &Weights) -> (Vec<Samples>, f64) {
        let (k, n) = weights.k_n(case.forward);
        let (m, transposed) = (case.tokens, case.forward);
        let mut x = vec![0.0; m * k];
        Philox::new(1).uniform(0, 0, &mut x);
        x.iter_mut().for_each(|x| *x -= 0.5);
        let (mut fused, mut wanted) = (vec![0.0; m * n], vec![0.0; m * n]);
        let a = MatRef::new(&x, m, k);
        let dense = MatRef::new(&weights.dense, weights.outputs, weights.inputs);
        let quant =
            QuantMatrix::new(weights.format, &weights.blocks, weights.outputs, weights.inputs);
        let operand = Operand { matrix: Matrix::Quant(quant), transposed };
        let (blas, kernels, effort) = (self.blas, self.kernels, self.effort);
        let mut samples = Vec::new();
        for team in &self.teams {
            let threads = team.threads();
            samples.push(Samples { threads, openblas: Vec::new(), fused: Vec::new() });
        }
        for round in 0..self.rounds {
            for (team, samples) in self.teams.iter_mut().zip(&mut samples) {
                blas.set_threads(samples.threads);
                for half in [round % 2, (round + 1) % 2] {
                    if half == 0 {
                        let mut c = MatMut::new(&mut wanted, m, n);
                        let seconds = effort.measure(|| blas.sgemm(a, dense, transposed, &mut c));
                        samples.openblas.push(seconds);
                    } else {
                        let mut c = MatMut::new(&mut fused, m, n);
                        let call = || team.gemm(kernels, a, operand, c.reborrow());
                        samples.fused.push(effort.measure(call));
                    }
                }
            }
        }
        (samples, relative_error(&fused, &wanted))
    }
}

/// Euclidean length of the difference over that of `wanted`.
fn relative_error(found: &[f32], wanted: &[f32]) -> f64 {
    let squares = |x: f64| x * x;
    let pairs = found.iter().zip(wanted);
    let difference: f64 = pairs.map(|(f, w)| squares(f64::from(*f) - f64::from(*w))).sum();
    let whole: f64 = wanted.iter().map(|w| squares(f64::from(*w))).sum();
    (difference / whole).sqrt()
}

/// The value below which the share `q` of `values` lies, between neighbours by their distance.
fn quantile(mut values: Vec<f64>, q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = q * (values.len() - 1) as f64;
    let (low, high) = (values[at.floor() as usize], values[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

const HEADER: &str = "tokens  direction  in x out          format  threads   OpenBLAS      fused  \
                      ratio  [quartiles]    scaling: OpenBLAS  fused";

fn print_table_row(case: Case, weights: &Weights, samples: &Samples, one: &Samples) {
    let speed = |times: &[f64]| weights.flops(case.tokens) / quantile(times.to_vec(), 0.5) * 1e-9;
    let ratios = quotients(&samples.openblas, &samples.fused);
    let [low, middle, high] = [0.25, 0.5, 0.75].map(|q| quantile(ratios.clone(), q));
    println!(
        "{:6}  {:9}  {:16}  {:6}  {:7}  {:9.1}  {:9.1}  {middle:5.3}  [{low:5.3} {high:5.3}]  \
         {:17.2}  {:5.2}",
        case.tokens,
        direction(case),
        format!("{} x {}", weights.inputs, weights.outputs),
        case.name,
        samples.threads,
        speed(&samples.openblas),
        speed(&samples.fused),
        quantile(quotients(&one.openblas, &samples.openblas), 0.5),
        quantile(quotients(&one.fused, &samples.fused), 0.5),
    );
}

fn print_json_row(case: Case, weights: &Weights, samples: &Samples, error: f64) {
    println!(
        "{{\"tokens\":{},\"direction\":\"{}\",\"inputs\":{},\"outputs\":{},\"format\":\"{}\",\
         \"threads\":{},\"ratio\":{:.4},\"relative_error\":{error:.1e},\
         \"openblas_seconds\":{:?},\"fused_seconds\":{:?}}}",
        case.tokens,
        direction(case),
        weights.inputs,
        weights.outputs,
        case.name,
        samples.threads,
        quantile(quotients(&samples.openblas, &samples.fused), 0.5),
        samples.openblas,
        samples.fused,
    );
}

fn direction(case: Case) -> &'static str {
    if case.forward { "forward" } else { "backward" }
}

fn quotients(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a / b).collect()
}

/// The system's own words on how busy it is; empty where it has none.
fn load_average() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}
