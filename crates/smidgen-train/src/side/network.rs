//! A side network's numbers, and its forward pass on the device.

use smidgen_graph::Row;
use smidgen_kernels::{
    Activation, Init, Kernels, MatMut, MatRef, Matrix, Operand, TapRounding, Term,
};
use smidgen_runtime::{Pool, Taps, sealed};

use super::SideGate;
use super::shape::{SideShape, SideTensor};
use crate::error::Result;

/// Rows that are worked on at a time.
const BAND: usize = 64;

/// A side network.
#[derive(Clone, Debug, PartialEq)]
pub struct SideNetwork {
    pub(super) shape: SideShape,
    /// What its output is multiplied by, c.
    pub(super) scale: f32,
    pub(super) numbers: Vec<f32>,
}

impl SideNetwork {
    /// The network of these numbers, as many as `shape` has.
    ///
    /// # Panics
    /// If they are not as many.
    pub fn new(shape: SideShape, scale: f32, numbers: Vec<f32>) -> Self {
        assert_eq!(numbers.len(), shape.len(), "one number for each of the shape's");
        Self { shape, scale, numbers }
    }

    /// Its tensors.
    pub fn shape(&self) -> &SideShape {
        &self.shape
    }

    /// What its output is multiplied by, c.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// All its numbers, in the order of [`SideShape::tensors`].
    pub fn numbers(&self) -> &[f32] {
        &self.numbers
    }

    fn matrix(&self, tensor: &SideTensor) -> MatRef<'_> {
        MatRef::new(&self.numbers[tensor.range.clone()], tensor.rows, tensor.cols)
    }
}

/// A side network at work on the positions of a pass that are wanted.
#[derive(Debug)]
pub(crate) struct SideForward {
    network: SideNetwork,
    /// Rows of the pass, in order.
    rows: Vec<usize>,
    /// s of each wanted row.
    stream: Vec<f32>,
    band: Band,
}

/// What a band of rows needs beside the network's stream.
#[derive(Debug)]
struct Band {
    /// A tap's row as it is held.
    bytes: Vec<u8>,
    /// Taps, rows x hidden.
    taps: Vec<f32>,
    /// u, rows x narrow, where the network is narrower than the model.
    input: Vec<f32>,
    /// Rows x width.
    inside: Vec<f32>,
}

impl SideForward {
    /// Room for passes of which up to `rows` rows are wanted.
    ///
    /// # Errors
    /// The system does not give the memory.
    pub fn new(network: SideNetwork, rows: usize) -> Result<Self> {
        let shape = &network.shape;
        let (hidden, narrow, width) = (shape.hidden(), shape.narrow(), shape.config().width);
        let reduced = if narrow < hidden { BAND * narrow } else { 0 };
        let band = Band {
            bytes: vec![0; shape.config().format.row_bytes(hidden)],
            taps: sealed(BAND * hidden)?,
            input: sealed(reduced)?,
            inside: sealed(BAND * width)?,
        };
        let stream = sealed(rows * narrow)?;
        Ok(Self { rows: Vec::with_capacity(rows), stream, band, network })
    }

    /// The plan's lines for it.
    pub fn plan_rows(shape: &SideShape, rows: usize) -> Vec<Row> {
        let (hidden, narrow, width) = (shape.hidden(), shape.narrow(), shape.config().width);
        let reduced = if narrow < hidden { narrow } else { 0 };
        let row = |name: &str, shape: String, numbers: usize, why: &str| {
            Row::new(name, shape, 4 * numbers as u64, "whole run", why)
        };
        let inside = BAND * (hidden + reduced + width);
        vec![
            row("side network", format!("{}", shape.len()), shape.len(), "its numbers"),
            row("side stream", format!("{rows} x {narrow}"), rows * narrow, "what it adds up"),
            row("side tile", format!("{inside}"), inside, "taps and adapters of some rows"),
        ]
    }

    /// Begins a pass of which these rows are wanted, as far as there is room for them: the engine
    /// refuses a pass that is longer.
    pub fn begin(&mut self, rows: impl Iterator<Item = usize>) {
        let narrow = self.network.shape.narrow();
        self.rows.clear();
        self.rows.extend(rows.take(self.stream.len() / narrow));
        self.stream[..self.rows.len() * narrow].fill(0.0);
    }
}

impl Taps for SideForward {
    fn tap(&mut self, layer: usize, stream: MatRef<'_>, kernels: Kernels, pool: &mut Pool) {
        let Self { network, rows, stream: side, band } = self;
        let shape = &network.shape;
        let Some(tap) = shape.tap_behind(layer) else { return };
        let (hidden, narrow, config) = (shape.hidden(), shape.narrow(), shape.config());
        let bands = rows.chunks(BAND).zip(side.chunks_mut(BAND * narrow));
        for (rows, side) in bands {
            let count = rows.len();
            for (&row, tap) in rows.iter().zip(band.taps.chunks_exact_mut(hidden)) {
                config.format.encode(TapRounding::Nearest, stream.row(row), &mut band.bytes);
                config.format.decode(&band.bytes, tap);
            }
            let mut input = &mut band.taps;
            if let Some(reduce) = &tap.reduce {
                let taps = MatRef::new(input, count, hidden);
                let out = MatMut::new(&mut band.input, count, narrow);
                pool.gemm(kernels, out, Init::Zero, 1.0, &[along(taps, network.matrix(reduce))]);
                input = &mut band.input;
            }
            let gate = tap.gate.as_ref().map(|gate| network.numbers[gate.range.start]);
            let input_mut = MatMut::new(input, count, narrow);
            join(kernels, config.gate, gate, MatRef::new(side, count, narrow), input_mut);
            let input = MatRef::new(input, count, narrow);
            let inside = MatMut::new(&mut band.inside, count, config.width);
            let down = along(input, network.matrix(&tap.down));
            pool.gemm(kernels, inside, Init::Zero, 1.0, &[down]);
            let inside = MatMut::new(&mut band.inside, count, config.width);
            kernels.activate(Activation::Silu, inside);
            let inside = MatRef::new(&band.inside, count, config.width);
            let out = MatMut::new(side, count, narrow);
            pool.gemm(kernels, out, Init::Keep, 1.0, &[along(inside, network.matrix(&tap.up))]);
        }
    }

    fn join(&mut self, mut stream: MatMut<'_>, kernels: Kernels, pool: &mut Pool) {
        let Self { network, rows, stream: side, band } = self;
        let (hidden, narrow) = (network.shape.hidden(), network.shape.narrow());
        for (rows, side) in rows.chunks(BAND).zip(side.chunks_mut(BAND * narrow)) {
            let mut added = MatRef::new(side, rows.len(), narrow);
            if let Some(expand) = network.shape.expand() {
                let out = MatMut::new(&mut band.taps, rows.len(), hidden);
                let expand = network.matrix(expand);
                pool.gemm(kernels, out, Init::Zero, 1.0, &[along(added, expand)]);
                added = MatRef::new(&band.taps, rows.len(), hidden);
            }
            for (at, &row) in rows.iter().enumerate() {
                let out = MatMut::new(stream.row_mut(row), 1, hidden);
                kernels.axpy(network.scale, added.rows_range(at..at + 1), out);
            }
        }
    }
}

/// u of the tap in `input` and the network's stream.
fn join(kernels: Kernels, gate: SideGate, a: Option<f32>, side: MatRef<'_>, mut input: MatMut<'_>) {
    let share = match gate {
        SideGate::Sum => return kernels.add(side, input),
        SideGate::Ladder => 1.0 / (1.0 + (-10.0 * a.unwrap_or(0.0)).exp()),
    };
    kernels.scale_in_place(share, input.reborrow());
    kernels.axpy(1.0 - share, side, input);
}

/// x wᵀ.
fn along<'a>(x: MatRef<'a>, w: MatRef<'a>) -> Term<'a> {
    Term { a: x, b: Operand { matrix: Matrix::Dense(w), transposed: true } }
}
