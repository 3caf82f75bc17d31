//! The device's part of a step of side tuning: forward, taps, and the loss through its own head.

use std::fmt;
use std::slice;
use std::sync::atomic::AtomicBool;

use smidgen_kernels::{Kernels, MatMut, MatRef, TapKey, TapRounding};
use smidgen_runtime::{Engine, Numbers, Pass, Pool, Taps, sealed};
use smidgen_text::Sequence;

use super::{SideNetwork, SideShape};
use crate::error::{Error, Result, stop_if};
use crate::step::{StepLoss, StepSettings, fill};

/// What a link reports when it fails.
pub type LinkError = Box<dyn std::error::Error + Send + Sync>;

/// Where the side network is trained: in this process, or on a server.
///
/// A step sends the taps of each of its samples, takes the network's output for each, gives the
/// gradient of each, and ends with an update.
pub trait SideLink: fmt::Debug + Send {
    /// Gives the taps of a sample: for each tapped layer in order, `rows` rows as
    /// [`smidgen_kernels::TapFormat::encode`] makes them.
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
        let output = sealed(tokens * shape.hidden())?;
        let taps = TapWriter::new(shape, tokens, seed);
        Ok(Self { link, scale: None, taps, output, factors: Vec::new().into() })
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
        let (mut sum, rows) = (0.0, engine.plan().tokens);
        for (sequence, &sample) in sequences.iter().zip(samples) {
            stop_if(cancel)?;
            fill(pass, slice::from_ref(sequence), 0, rows);
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

    /// The network as it is; c is 1 before the first step.
    ///
    /// # Errors
    /// Those of the link.
    pub fn network(&mut self) -> Result<SideNetwork> {
        let numbers = self.link.numbers().map_err(Error::Link)?;
        if numbers.len() != self.taps.shape.len() {
            let what = format!("{} numbers where {} are due", numbers.len(), self.taps.shape.len());
            return Err(Error::Link(what.into()));
        }
        Ok(SideNetwork::new(self.taps.shape.clone(), self.scale.unwrap_or(1.0), numbers))
    }

    /// Root mean square of the last hidden state over all wanted positions.
    fn measure_scale(
        &mut self,
        engine: &mut Engine,
        sequences: &[Sequence],
        pass: &mut Pass,
        cancel: &AtomicBool,
    ) -> Result<f32> {
        let hidden = self.taps.shape.hidden();
        let (mut squares, mut count, rows) = (0.0, 0, engine.plan().tokens);
        for sequence in sequences {
            stop_if(cancel)?;
            fill(pass, slice::from_ref(sequence), 0, rows);
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
        let hidden = self.taps.shape.hidden();
        self.taps.begin(pass, Some(sample));
        engine.forward(pass, &mut self.factors, &mut self.taps)?;
        let rows = &self.taps.rows;
        let output = &mut self.output[..rows.len() * hidden];
        self.link.taps(sample, rows.len(), &self.taps.bytes).map_err(Error::Link)?;
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

/// Writes the taps of a sample's positions that have a target.
#[derive(Debug)]
struct TapWriter {
    shape: SideShape,
    seed: u64,
    /// None where taps are only counted.
    sample: Option<u64>,
    rows: Vec<usize>,
    bytes: Vec<u8>,
}

impl TapWriter {
    fn new(shape: SideShape, tokens: usize, seed: u64) -> Self {
        let row = shape.config().format.row_bytes(shape.hidden());
        let bytes = Vec::with_capacity(shape.tapped().len() * tokens * row);
        Self { shape, seed, sample: None, rows: Vec::with_capacity(tokens), bytes }
    }

    fn begin(&mut self, pass: &Pass, sample: Option<u64>) {
        self.sample = sample;
        self.bytes.clear();
        self.rows.clear();
        self.rows.extend(pass.target_rows());
    }
}

impl Taps for TapWriter {
    fn tap(&mut self, layer: usize, stream: MatRef<'_>, _: Kernels, _: &mut Pool) {
        let Some(sample) = self.sample.filter(|_| self.shape.tapped().contains(&layer)) else {
            return;
        };
        let format = self.shape.config().format;
        let row_bytes = format.row_bytes(stream.cols());
        for &row in &self.rows {
            let (layer, position) = (layer as u16, row as u32);
            let key = TapKey { seed: self.seed, sample, layer, position };
            let start = self.bytes.len();
            self.bytes.resize(start + row_bytes, 0);
            let bytes = &mut self.bytes[start..];
            format.encode(TapRounding::Stochastic(key), stream.row(row), bytes);
        }
    }

    fn join(&mut self, _: MatMut<'_>, _: Kernels, _: &mut Pool) {}
}
