//! Labels from the gradient of the side network's output.
//!
//! With h the stream that the head reads, n = h / RMS(h), U the head's rows times the last norm's
//! gain and p = softmax(U n), a position with label t sends
//!
//! ```text
//! g = k (m - b_t),  m = P Uᵀ p,  b_t = P u_t,  P = 1 - n nᵀ / d,  k = c w / RMS(h)
//! ```
//!
//! w being the loss's weight. The server has U, and n by way of the last tap and its own s.

use smidgen_kernels::{GEMM_SCRATCH, Init, Kernels, MatMut, MatRef, Matrix, Operand, Term};
use smidgen_runtime::{Engine, Numbers, Pass};
use smidgen_train::SideHead;

use super::walker::{ROWS, rms, run};
use crate::common::Model;

/// What the server knows beside g.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Known<'a> {
    /// The head alone: t is the row that g points away from.
    Head,
    /// The last tap and s, but neither c nor w: t explains g's direction.
    Direction,
    /// k as well, one a row.
    Scale(&'a [f32]),
}

/// The public head.
#[derive(Debug)]
pub struct Head {
    /// U, vocabulary x hidden.
    rows: Vec<f32>,
    /// |u_t|².
    squares: Vec<f32>,
    hidden: usize,
    kernels: Kernels,
}

impl Head {
    pub fn new(model: &Model) -> Self {
        let gguf = model.weights.gguf();
        let gain = gguf.vector_f32("output_norm.weight").expect("the last norm");
        let own = gguf.tensor_names().any(|name| name == "output.weight");
        let name = if own { "output.weight" } else { "token_embd.weight" };
        let matrix = gguf.matrix(name).expect("a head");
        let (vocabulary, hidden) = (matrix.rows(), matrix.cols());
        let kernels = Kernels::detect();
        let mut rows = vec![0.0; vocabulary * hidden];
        for (at, row) in rows.chunks_exact_mut(hidden).enumerate() {
            kernels.decode_row(matrix.format(), matrix.row_blocks(at), row);
            row.iter_mut().zip(&gain).for_each(|(x, gain)| *x *= gain);
        }
        let squares = rows.chunks_exact(hidden).map(|row| dot(row, row)).collect();
        Self { rows, squares, hidden, kernels }
    }

    /// The label of each row of `gradient`, given what the server takes the stream for; both are
    /// rows x hidden.
    pub fn labels(&self, stream: &[f32], gradient: &[f32], known: Known<'_>) -> Vec<u32> {
        let (hidden, vocabulary) = (self.hidden, self.squares.len());
        if known == Known::Head {
            let along = self.products(gradient);
            let row = |along: &[f32]| {
                let score = |t: usize| -along[t] / self.squares[t].sqrt().max(f32::MIN_POSITIVE);
                best(vocabulary, score)
            };
            return along.chunks_exact(vocabulary).map(row).collect();
        }
        let mut normed = stream.to_vec();
        for row in normed.chunks_exact_mut(hidden) {
            let inverse = 1.0 / rms(row).max(f32::MIN_POSITIVE);
            row.iter_mut().for_each(|x| *x *= inverse);
        }
        let logits = self.products(&normed);
        let mut mean = self.mean_rows(&logits);
        let mut along = gradient.to_vec();
        for x in [&mut mean, &mut along] {
            let rows = x.chunks_exact_mut(hidden).zip(normed.chunks_exact(hidden));
            rows.for_each(|(x, n)| project(x, n));
        }
        let (with_mean, with_gradient) = (self.products(&mean), self.products(&along));
        let row = |at: usize| {
            let of = |x: &'_ [f32]| x[at * hidden..(at + 1) * hidden].to_vec();
            let (m, g) = (of(&mean), of(&along));
            let (m_m, g_m) = (dot(&m, &m), dot(&g, &m));
            let score = |t: usize| {
                let i = at * vocabulary + t;
                let b_b = self.squares[t] - logits[i] * logits[i] / hidden as f32;
                let length = (m_m - 2.0 * with_mean[i] + b_b).max(f32::MIN_POSITIVE);
                let along = g_m - with_gradient[i];
                match known {
                    Known::Scale(k) => 2.0 * k[at] * along - k[at] * k[at] * length,
                    _ => along / length.sqrt(),
                }
            };
            best(vocabulary, score)
        };
        (0..stream.len() / hidden).map(row).collect()
    }

    /// x Uᵀ.
    fn products(&self, x: &[f32]) -> Vec<f32> {
        self.gemm(x, self.hidden, true)
    }

    /// softmax(logits) U.
    fn mean_rows(&self, logits: &[f32]) -> Vec<f32> {
        let vocabulary = self.squares.len();
        let mut p = logits.to_vec();
        for row in p.chunks_exact_mut(vocabulary) {
            let largest = row.iter().fold(f32::MIN, |m, x| m.max(*x));
            row.iter_mut().for_each(|x| *x = (*x - largest).exp());
            let sum: f64 = row.iter().map(|&x| f64::from(x)).sum();
            row.iter_mut().for_each(|x| *x = (f64::from(*x) / sum) as f32);
        }
        self.gemm(&p, vocabulary, false)
    }

    fn gemm(&self, x: &[f32], cols: usize, transposed: bool) -> Vec<f32> {
        let matrix = MatRef::new(&self.rows, self.squares.len(), self.hidden);
        let b = Operand { matrix: Matrix::Dense(matrix), transposed };
        let (rows, out_cols) = (x.len() / cols, b.shape().1);
        let mut out = vec![0.0; rows * out_cols];
        let term = Term { a: MatRef::new(x, rows, cols), b };
        let c = MatMut::new(&mut out, rows, out_cols);
        self.kernels.gemm(c, Init::Zero, 1.0, &[term], &mut vec![0.0; GEMM_SCRATCH]);
        out
    }
}

/// The device's part of a step.
#[derive(Debug)]
pub struct Device {
    engine: Engine,
    head: SideHead,
    factors: Numbers,
    hidden: usize,
}

/// What a step gives for one window: rows that have a target.
#[derive(Debug)]
pub struct Step {
    /// The stream behind the last layer.
    pub stream: Vec<f32>,
    /// The gradient of s.
    pub gradient: Vec<f32>,
    /// k of each row.
    pub scales: Vec<f32>,
}

impl Device {
    pub fn new(model: &Model, threads: usize) -> Self {
        let engine = run(model.info.layers, threads).engine(model.blocks.as_ref(), &model.weights);
        let head = SideHead::new(&model.base, threads).expect("a head");
        Self { engine, head, factors: Vec::new().into(), hidden: model.info.hidden }
    }

    /// A step over `ids`, at most [`ROWS`], each of which but the first is a target, with the side
    /// network's output `side`, rows x hidden.
    pub fn step(&mut self, ids: &[u32], side: &[f32], c: f32, weight: f32) -> Step {
        assert!(ids.len() <= ROWS, "a window fits a pass");
        let (rows, hidden) = (ids.len() - 1, self.hidden);
        let mut pass = Pass { weight, ..Pass::default() };
        pass.push(ids, &vec![true; ids.len()], 0);
        self.engine.forward(&pass, &mut self.factors, &mut NoTaps).expect("a forward");
        let stream = &mut self.engine.stream_mut(pass.rows())[..rows * hidden];
        let before = stream.to_vec();
        stream.iter_mut().zip(side).for_each(|(x, s)| *x += c * s);
        let scale = |row: &[f32]| c * weight / rms(row);
        let scales = stream.chunks_exact(hidden).map(scale).collect();
        let mut gradient = stream.to_vec();
        self.head.loss(&mut gradient, &ids[1..], weight).expect("a gradient");
        gradient.iter_mut().for_each(|x| *x *= c);
        Step { stream: before, gradient, scales }
    }
}

/// Reads nothing.
#[derive(Debug)]
struct NoTaps;

impl smidgen_runtime::Taps for NoTaps {
    fn tap(&mut self, _: usize, _: MatRef<'_>, _: Kernels, _: &mut smidgen_runtime::Pool) {}

    fn join(&mut self, _: MatMut<'_>, _: Kernels, _: &mut smidgen_runtime::Pool) {}
}

/// P x.
fn project(x: &mut [f32], n: &[f32]) {
    let along = dot(x, n) / n.len() as f32;
    x.iter_mut().zip(n).for_each(|(x, n)| *x -= along * n);
}

/// The place of the largest of `count` scores.
fn best(count: usize, score: impl Fn(usize) -> f32) -> u32 {
    let larger = |best: (usize, f32), t: usize| {
        let score = score(t);
        if score > best.1 { (t, score) } else { best }
    };
    (0..count).fold((0, f32::MIN), larger).0 as u32
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() as f32
}
