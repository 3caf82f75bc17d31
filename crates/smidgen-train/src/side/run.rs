//! The device's part of a step of side tuning: forward, taps, and the loss through its own head.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use smidgen_graph::Row;
use smidgen_kernels::{Kernels, MatMut, MatRef, TapFormat, TapKey, TapRounding};
use smidgen_runtime::{Engine, Numbers, Pass, Pool, Taps, sealed};
use smidgen_text::Sequence;

use super::{SideNetwork, SideShape};
use crate::error::{Error, Result};
use crate::step::{StepLoss, StepSettings};

/// What a link reports when it fails.
pub type LinkError = Box<dyn std::error::Error + Send + Sync>;

/// Where the side network is trained: in this process, or on a server.
///
/// A step sends the taps of each of its samples, takes the network's output for each, gives the
/// gradient of each, and ends with an update.
pub trait SideLink: fmt::Debug + Send {
    /// Gives the taps of a sample: for each tapped layer in order, `rows` rows as
    /// [`TapFormat::encode`] makes them.
    ///
    /// # Errors
    /// The link's own.
    fn taps(&mut self, sample: u64, rows: usize, bytes: &[u8]) -> Result<(), LinkError>;

    /// Waits for the network's output for a sample whose taps were given, rows x hidden.
    ///
    /// # Errors
    /// The link's own.
    fn output(&mut self, sample: u64, output: &mut [f32]) -> Result<(), LinkError>;

    /// Gives the gradient of such an output.
    ///
    /// # Errors
    /// The link's own.
    fn gradient(&mut self, sample: u64, gradient: &[f32]) -> Result<(), LinkError>;

    /// Ends the step `number`, from 1: the network moves by the gradients given since the last.
    ///
    /// # Errors
    /// The link's own.
    fn update(&mut self, number: u64, rate: f64) -> Result<(), LinkError>;

    /// The numbers of the network as it is, in the order of [`SideShape::tensors`].
    ///
    /// # Errors
    /// The link's own.
    fn numbers(&mut self) -> Result<Vec<f32>, LinkError>;
}

/// Side tuning at work on the device.
#[derive(Debug)]
pub struct SideRun {
    shape: SideShape,
    link: Box<dyn SideLink>,
    /// c, once the first step has begun.
    scale: Option<f32>,
    taps: TapWriter,
    /// The network's output for a sample, and then that output's gradient.
    output: Vec<f32>,
    factors: Numbers,
}

impl SideRun {
    /// A run over sequences of up to `tokens` tokens, whose chances are counted from `seed`.
    ///
    /// # Errors
    /// The system does not give the memory.
    pub fn new(
        shape: SideShape,
        link: Box<dyn SideLink>,
        tokens: usize,
        seed: u64,
    ) -> Result<Self> {
        let taps = TapWriter::new(&shape, tokens, seed);
        let output = sealed(tokens * shape.hidden())?;
        Ok(Self { shape, link, scale: None, taps, output, factors: Vec::new().into() })
    }

    /// The plan's lines for it.
    pub fn plan_rows(shape: &SideShape, tokens: usize) -> Vec<Row> {
        let (taps, hidden) = (shape.tapped().len(), shape.hidden());
        let row = shape.config().format.row_bytes(hidden);
        let life = "whole run";
        let taps_why = "hidden states on their way to the side network";
        let output_why = "what the side network adds, and its gradient";
        vec![
            Row::new(
                "taps",
                format!("{taps} x {tokens} x {row} bytes"),
                (taps * tokens * row) as u64,
                life,
                taps_why,
            ),
            Row::new(
                "side output",
                format!("{tokens} x {hidden}"),
                4 * (tokens * hidden) as u64,
                life,
                output_why,
            ),
        ]
    }

    /// One step over `sequences`, of which `samples` are the numbers: the same number always stands
    /// for the same sequence. The loss is the mean over the step's targets, before the update.
    ///
    /// # Errors
    /// Those of the engine and of the link. The caller cancelled: the network was not moved.
    pub fn step(
        &mut self,
        engine: &mut Engine,
        sequences: &[Sequence],
        samples: &[u64],
        settings: &StepSettings,
        pass: &mut Pass,
        cancel: &AtomicBool,
    ) -> Result<StepLoss> {
        let targets: usize = sequences.iter().map(Sequence::target_count).sum();
        pass.weight = 1.0 / targets.max(1) as f32;
        pass.dropout = None;
        let scale = match self.scale {
            Some(scale) => scale,
            None => self.measure_scale(engine, sequences, pass, cancel)?,
        };
        self.scale = Some(scale);
        let mut sum = 0.0;
        for (sequence, &sample) in sequences.iter().zip(samples) {
            stop_if(cancel)?;
            fill(pass, sequence);
            if sequence.target_count() == 0 {
                continue;
            }
            sum += self.sample(engine, sample, scale, pass)?;
        }
        stop_if(cancel)?;
        self.link.update(settings.number, settings.rate).map_err(Error::Link)?;
        let tokens = sequences.iter().map(|s| s.ids.len()).sum();
        Ok(StepLoss { loss: sum / targets.max(1) as f64, targets, tokens })
    }

    /// The network as it is.
    ///
    /// # Errors
    /// Those of the link; no step was begun yet.
    pub fn network(&mut self) -> Result<SideNetwork> {
        let numbers = self.link.numbers().map_err(Error::Link)?;
        if numbers.len() != self.shape.len() {
            let what = format!("{} numbers where {} are due", numbers.len(), self.shape.len());
            return Err(Error::Link(what.into()));
        }
        Ok(SideNetwork::new(self.shape.clone(), self.scale.unwrap_or(1.0), numbers))
    }

    /// Root mean square of the last hidden state over all wanted positions.
    fn measure_scale(
        &mut self,
        engine: &mut Engine,
        sequences: &[Sequence],
        pass: &mut Pass,
        cancel: &AtomicBool,
    ) -> Result<f32> {
        let hidden = self.shape.hidden();
        let (mut squares, mut count) = (0.0, 0);
        for sequence in sequences {
            stop_if(cancel)?;
            fill(pass, sequence);
            self.taps.begin(pass, None);
            engine.forward(pass, &mut self.factors, &mut self.taps)?;
            let stream = engine.stream_mut(pass.rows());
            for row in &self.taps.rows {
                let row = &stream[row * hidden..(row + 1) * hidden];
                squares += row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
            }
            count += self.taps.rows.len() * hidden;
        }
        let scale = (squares / count.max(1) as f64).sqrt() as f32;
        Ok(if scale > 0.0 { scale } else { 1.0 })
    }

    /// Loss of the sample in `pass`, and its gradient given to the link.
    fn sample(&mut self, engine: &mut Engine, sample: u64, scale: f32, pass: &Pass) -> Result<f64> {
        let hidden = self.shape.hidden();
        self.taps.begin(pass, Some(sample));
        engine.forward(pass, &mut self.factors, &mut self.taps)?;
        let rows = &self.taps.rows;
        let output = &mut self.output[..rows.len() * hidden];
        self.link.taps(sample, rows.len(), self.taps.bytes()).map_err(Error::Link)?;
        self.link.output(sample, output).map_err(Error::Link)?;
        let kernels = engine.kernels();
        let stream = engine.stream_mut(pass.rows());
        for (added, row) in output.chunks_exact(hidden).zip(rows) {
            let row = &mut stream[row * hidden..(row + 1) * hidden];
            kernels.axpy(scale, MatRef::new(added, 1, hidden), MatMut::new(row, 1, hidden));
        }
        let (losses, gradient) = engine.head_gradient(pass)?;
        for (out, row) in output.chunks_exact_mut(hidden).zip(rows) {
            let row = &gradient[row * hidden..(row + 1) * hidden];
            kernels.scale(scale, MatRef::new(row, 1, hidden), MatMut::new(out, 1, hidden));
        }
        let loss = losses.iter().map(|loss| loss.sum).sum();
        self.link.gradient(sample, output).map_err(Error::Link)?;
        Ok(loss)
    }
}

fn stop_if(cancel: &AtomicBool) -> Result<()> {
    match cancel.load(Ordering::Relaxed) {
        true => Err(smidgen_runtime::Error::Cancelled.into()),
        false => Ok(()),
    }
}

fn fill(pass: &mut Pass, sequence: &Sequence) {
    pass.clear();
    pass.push(&sequence.ids, &sequence.targets, 0);
}

/// Writes the taps of a sample's positions that have a target.
#[derive(Debug)]
struct TapWriter {
    format: TapFormat,
    tapped: Vec<usize>,
    seed: u64,
    /// None where taps are only counted.
    sample: Option<u64>,
    rows: Vec<usize>,
    bytes: Vec<u8>,
}

impl TapWriter {
    fn new(shape: &SideShape, tokens: usize, seed: u64) -> Self {
        let format = shape.config().format;
        let (tapped, row) = (shape.tapped().to_vec(), format.row_bytes(shape.hidden()));
        let bytes = Vec::with_capacity(tapped.len() * tokens * row);
        Self { format, tapped, seed, sample: None, rows: Vec::with_capacity(tokens), bytes }
    }

    fn begin(&mut self, pass: &Pass, sample: Option<u64>) {
        self.sample = sample;
        self.bytes.clear();
        self.rows.clear();
        let wanted = pass.targets.iter().enumerate().filter(|(_, target)| target.is_some());
        self.rows.extend(wanted.map(|(row, _)| row));
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Taps for TapWriter {
    fn tap(&mut self, layer: usize, stream: MatRef<'_>, _: Kernels, _: &mut Pool) {
        let Some(sample) = self.sample.filter(|_| self.tapped.contains(&layer)) else { return };
        let row_bytes = self.format.row_bytes(stream.cols());
        for &row in &self.rows {
            let (layer, position) = (layer as u16, row as u32);
            let key = TapKey { seed: self.seed, sample, layer, position };
            let start = self.bytes.len();
            self.bytes.resize(start + row_bytes, 0);
            let bytes = &mut self.bytes[start..];
            self.format.encode(TapRounding::Stochastic(key), stream.row(row), bytes);
        }
    }

    fn join(&mut self, _: MatMut<'_>, _: Kernels, _: &mut Pool) {}
}
