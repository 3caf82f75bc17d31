//! The device's part of side tuning: forward, taps, and the loss through its own head.
//!
//! A step needs the network as the step before left it, but its taps don't: so those of a few steps
//! ahead are given while the trainer is at work, and the results are the same bits however many.

use std::collections::VecDeque;
use std::path::Path;
use std::slice;
use std::sync::atomic::AtomicBool;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use smidgen_graph::Row;
use smidgen_kernels::{Kernels, MatMut, MatRef, TapKey, TapNoise, TapRounding};
use smidgen_runtime::{Engine, Numbers, Pass, Pool, Taps, sealed};
use smidgen_text::Sequence;

use super::head::head_pass;
use super::hidden::{HiddenSize, HiddenStates};
use super::identity::DeviceSecret;
use super::link::{LinkError, SampleKey, SideLabel, SideLink, SideSample};
use super::{LossOn, SideNetwork, SideShape};
use crate::base::Base;
use crate::error::{Error, Result, stop_if};
use crate::method::Side;
use crate::step::{StepLoss, StepSettings, fill};

/// How a run of side tuning goes on beside its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SidePace {
    /// Steps whose taps are given ahead of the one whose output is waited for.
    pub window: usize,
    /// Bytes of hidden states that the scratch file may keep for samples that come again. They then
    /// need no pass through the layers.
    pub kept_bytes: u64,
    /// Bytes that the link takes on the device, as who makes it says.
    pub link_bytes: u64,
}

impl Default for SidePace {
    /// Two steps ahead, 1 GB, a link in this process.
    fn default() -> Self {
        Self { window: 2, kept_bytes: 1_000_000_000, link_bytes: 0 }
    }
}

/// How much a run takes in at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SideSize {
    /// Tokens of the longest sample.
    pub tokens: usize,
    /// Tokens of all samples of a step, at most.
    pub step_tokens: usize,
    /// Samples of the data; 0 where none comes again.
    pub samples: usize,
}

/// Where a run's samples are read.
pub trait SideSamples {
    /// Appends the numbers of the samples of the step `number`, from 1.
    fn samples(&mut self, number: u64, samples: &mut Vec<u32>);

    /// Reads a sample.
    ///
    /// # Errors
    /// The data can't be read.
    fn read(&mut self, sample: u32, sequence: &mut Sequence) -> Result<()>;
}

/// Side tuning at work on the device.
#[derive(Debug)]
pub struct SideRun {
    shape: SideShape,
    link: Box<dyn SideLink>,
    secret: DeviceSecret,
    seed: u64,
    noise: TapNoise,
    loss: LossOn,
    /// Steps that may be under way.
    steps: usize,
    /// c, once the first step has begun.
    scale: Option<f32>,
    /// Steps that were begun and are not confirmed, in order.
    ahead: VecDeque<Ahead>,
    /// What the step at work came to, once its update was given.
    given: Option<Given>,
    hidden: HiddenStates,
    /// The network's output for some rows of a sample, and then that output's gradient; or what the
    /// rows of a sample were divided by.
    rows_at_work: Vec<f32>,
    /// Taps that are not given yet.
    bytes: Vec<u8>,
    sequence: Sequence,
    /// Rows of the sample at work that have a target, and those targets.
    rows: Vec<usize>,
    targets: Vec<u32>,
    factors: Numbers,
}

/// A step whose update was given.
#[derive(Clone, Copy, Debug)]
struct Given {
    targets: usize,
    tokens: usize,
    /// Of the losses, where they are computed here.
    sum: Option<f64>,
}

impl Given {
    fn loss(self, told: Option<f64>) -> Result<StepLoss> {
        let Some(sum) = self.sum.or(told) else {
            let what = "the trainer tells no loss, and is to compute it";
            return Err(Error::Link(LinkError::failed(what)));
        };
        let Self { targets, tokens, .. } = self;
        Ok(StepLoss { loss: sum / targets.max(1) as f64, targets, tokens })
    }
}

/// A step that was begun.
#[derive(Debug)]
struct Ahead {
    step: u64,
    targets: usize,
    tokens: usize,
    samples: Vec<Waiting>,
}

/// A sample whose output is waited for.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    sample: u32,
    /// Where its hidden states begin, and how many rows they have.
    first: usize,
    rows: usize,
}

/// Bytes of taps that are collected before they are given to the link.
const PIECE: usize = 64 * 1024;

impl SideRun {
    /// A run whose chances are counted from `seed`, and the noise from `secret`; what waits for its
    /// step does so in a scratch file in `folder` if there is one. `shape` is that of `side`'s network.
    ///
    /// # Errors
    /// The system does not give the memory, or the folder can't be written to.
    pub fn new(
        shape: SideShape,
        link: Box<dyn SideLink>,
        (secret, seed): (DeviceSecret, u64),
        side: &Side,
        size: SideSize,
        folder: Option<&Path>,
    ) -> Result<Self> {
        let hidden = HiddenStates::new(hidden_size(&shape, side, size), folder)?;
        Ok(Self {
            rows_at_work: sealed(numbers_at_work(&shape, side, size))?,
            bytes: Vec::with_capacity(piece_bytes(&shape)),
            rows: Vec::with_capacity(size.tokens),
            targets: Vec::with_capacity(size.tokens),
            sequence: Sequence::default(),
            steps: side.pace.window + 1,
            scale: None,
            ahead: VecDeque::new(),
            given: None,
            factors: Vec::new().into(),
            noise: side.noise,
            loss: side.loss,
            shape,
            link,
            secret,
            seed,
            hidden,
        })
    }

    /// Bytes of a step that wait for its network, at most.
    pub(crate) fn waiting_bytes(shape: &SideShape, side: &Side, size: SideSize) -> u64 {
        let HiddenSize { hidden, rows, .. } = hidden_size(shape, side, size);
        4 * hidden as u64 * rows as u64
    }

    /// The plan's lines for it, where a pass takes up to `pass` rows; `evaluates` if the network is to
    /// be run on the device meanwhile.
    pub(crate) fn plan_rows(
        shape: &SideShape,
        (side, size): (&Side, SideSize),
        pass: usize,
        file: bool,
        evaluates: bool,
    ) -> Vec<Row> {
        let row = |name: &str, shape: String, bytes: u64, why: &str| {
            Row::new(name, shape, bytes, "whole run", why)
        };
        let mut rows = hidden_size(shape, side, size).plan_rows(file);
        let numbers = numbers_at_work(shape, side, size);
        let (name, of_rows, why) = match side.loss {
            LossOn::Device => {
                let of_rows = format!("{} x {}", numbers / shape.hidden(), shape.hidden());
                ("side output", of_rows, "the side network's, for some rows; then its gradient")
            }
            LossOn::Trainer => {
                ("norms", format!("{numbers}"), "root mean squares of a sample's hidden states")
            }
        };
        rows.push(row(name, of_rows, 4 * numbers as u64, why));
        // Ids, and what is told of each: once as it is, once on its way.
        let (told, each) = (size.tokens, size_of::<u32>() + size_of::<usize>());
        let labels = if side.loss == LossOn::Trainer { 2 * size_of::<SideLabel>() } else { 0 };
        let bytes = (told * (each + labels)) as u64;
        rows.push(row("targets", format!("{told}"), bytes, "of the sample at work"));
        let piece = piece_bytes(shape);
        rows.push(row("taps", format!("{piece}"), piece as u64, "that are not given yet"));
        if side.pace.link_bytes > 0 {
            let why = "to where the side network is trained";
            rows.push(row("link", "bytes".to_owned(), side.pace.link_bytes, why));
        }
        if evaluates {
            rows.extend(super::SideForward::plan_rows(shape, pass));
        }
        rows
    }

    /// The network's tensors.
    pub fn shape(&self) -> &SideShape {
        &self.shape
    }

    /// Steps that the trainer has confirmed.
    ///
    /// # Errors
    /// Those of the link.
    pub fn confirmed(&mut self) -> Result<u64> {
        self.link.confirmed().map_err(Error::Link)
    }

    /// The step `settings.number`, which is the next one, and the beginnings of the few that come
    /// after it and are not past `last`. The loss is the mean over the step's targets, before the
    /// update.
    ///
    /// # Errors
    /// Those of the engine, of the data and of the link. The caller cancelled: the network was not
    /// moved, or the update was already given.
    pub fn step(
        &mut self,
        engine: &mut Engine,
        data: &mut dyn SideSamples,
        settings: &StepSettings,
        last: u64,
        pass: &mut Pass,
        cancel: &AtomicBool,
    ) -> Result<StepLoss> {
        pass.dropout = None;
        self.given = None;
        loop {
            match self.try_step(engine, data, settings, last, pass, cancel) {
                Err(Error::Link(LinkError::StartedAnew)) => self.ahead.clear(),
                done => return done,
            }
            // The update may have arrived all the same; then there is nothing to do again.
            if let Some(given) = self.given.take()
                && self.confirmed()? >= settings.number
            {
                return given.loss(self.link.confirm(settings.number).map_err(Error::Link)?);
            }
            stop_if(cancel)?;
        }
    }

    fn try_step(
        &mut self,
        engine: &mut Engine,
        data: &mut dyn SideSamples,
        settings: &StepSettings,
        last: u64,
        pass: &mut Pass,
        cancel: &AtomicBool,
    ) -> Result<StepLoss> {
        let number = settings.number;
        if self.scale.is_none() && number > 1 {
            self.scale = Some(self.scale_of_first_step(engine, data, pass, cancel)?);
        }
        if self.ahead.front().is_none_or(|ahead| ahead.step != number) {
            self.ahead.clear();
            self.begin(engine, data, number, pass, cancel)?;
        }
        let sum = match self.loss {
            LossOn::Device => Some(self.losses(engine, data, pass, cancel)?),
            LossOn::Trainer => None,
        };
        let Some(first) = self.ahead.front() else {
            return Err(Error::Link(LinkError::StartedAnew));
        };
        let given = Given { targets: first.targets, tokens: first.tokens, sum };
        self.given = Some(given);
        self.link.update(number, settings.rate).map_err(Error::Link)?;
        while let Some(next) = self.ahead.back().map(|ahead| ahead.step + 1)
            && next <= last
            && self.ahead.len() < self.steps
        {
            self.begin(engine, data, next, pass, cancel)?;
        }
        let told = self.link.confirm(number).map_err(Error::Link)?;
        self.ahead.pop_front();
        given.loss(told)
    }

    /// Begins a step: gives the taps that are wanted, and the labels where the trainer computes the
    /// loss, else puts hidden states where they wait.
    fn begin(
        &mut self,
        engine: &mut Engine,
        data: &mut dyn SideSamples,
        step: u64,
        pass: &mut Pass,
        cancel: &AtomicBool,
    ) -> Result<()> {
        let mut numbers = Vec::new();
        data.samples(step, &mut numbers);
        let mut ahead = Ahead { step, targets: 0, tokens: 0, samples: Vec::new() };
        let mut told = Vec::with_capacity(numbers.len());
        let mut keyed = Vec::with_capacity(numbers.len());
        for sample in numbers {
            data.read(sample, &mut self.sequence)?;
            let rows = self.sequence.target_count();
            ahead.targets += rows;
            ahead.tokens += self.sequence.ids.len();
            if rows > 0 {
                told.push(SideSample { key: self.key(sample), rows });
                keyed.push(sample);
            }
        }
        let wanted = self.link.begin(step, &told).map_err(Error::Link)?;
        if wanted.len() != told.len() {
            let what = format!("{} answers to {} samples", wanted.len(), told.len());
            return Err(Error::Link(LinkError::failed(what)));
        }
        let mut before = 0;
        for (place, (sample, wanted)) in keyed.into_iter().zip(wanted).enumerate() {
            stop_if(cancel)?;
            let rows = told[place].rows;
            let kept = self.hidden.kept(sample);
            let first = match kept {
                Some(first) => first,
                None => self.hidden.place(step, before, sample, rows),
            };
            before += rows;
            let runs = wanted || kept.is_none();
            if runs || self.loss == LossOn::Trainer {
                self.take(data, sample, pass)?;
            }
            if runs {
                self.forward(engine, (step, place, sample), wanted, pass)?;
            }
            let at = (sample, first);
            match self.loss {
                LossOn::Device if runs => {
                    let stream = engine.stream_mut(pass.rows());
                    self.hidden.write(at, stream, self.rows.iter().copied())?;
                }
                LossOn::Device => {}
                LossOn::Trainer => {
                    if runs {
                        self.keep_norms(at, engine.stream_mut(pass.rows()))?;
                    }
                    if self.scale.is_some() {
                        self.tell_labels((step, place), first)?;
                    }
                }
            }
            ahead.samples.push(Waiting { sample, first, rows });
        }
        if self.scale.is_none() {
            self.scale = Some(self.scale_of(&ahead)?);
            let told = if self.loss == LossOn::Trainer { ahead.samples.as_slice() } else { &[] };
            for (place, &Waiting { sample, first, .. }) in told.iter().enumerate() {
                self.take(data, sample, pass)?;
                self.tell_labels((step, place), first)?;
            }
        }
        self.ahead.push_back(ahead);
        Ok(())
    }

    /// Reads a sample, makes `pass` one over it, and notes which rows have a target, and which.
    fn take(&mut self, data: &mut dyn SideSamples, sample: u32, pass: &mut Pass) -> Result<()> {
        data.read(sample, &mut self.sequence)?;
        fill(pass, slice::from_ref(&self.sequence), 0, self.sequence.ids.len());
        self.rows.clear();
        self.rows.extend(pass.target_rows());
        self.targets.clear();
        self.targets.extend(pass.targets.iter().flatten());
        Ok(())
    }

    /// Keeps what the noted rows of a sample that has just been run were divided by.
    fn keep_norms(&mut self, (sample, first): (u32, usize), stream: &[f32]) -> Result<()> {
        let hidden = self.shape.hidden();
        let norms = &mut self.rows_at_work[..self.rows.len()];
        for (norm, row) in norms.iter_mut().zip(&self.rows) {
            *norm = rms(&stream[row * hidden..(row + 1) * hidden]);
        }
        self.hidden.write((sample, first), norms, 0..norms.len())
    }

    /// Tells the trainer of the noted targets of a sample whose norms are kept from `first` on.
    fn tell_labels(&mut self, (step, place): (u64, usize), first: usize) -> Result<()> {
        let norms = &mut self.rows_at_work[..self.rows.len()];
        self.hidden.read(first, norms)?;
        let labels = self.targets.iter().zip(norms);
        let labels: Vec<SideLabel> =
            labels.map(|(&target, &mut rms)| SideLabel { target, rms }).collect();
        let scale = self.scale.unwrap_or(1.0);
        self.link.labels(step, place, scale, &labels).map_err(Error::Link)
    }

    /// A sample through the layers; its taps of the noted rows are given to the link if they are wanted.
    fn forward(
        &mut self,
        engine: &mut Engine,
        (step, place, sample): (u64, usize, u32),
        wanted: bool,
        pass: &Pass,
    ) -> Result<()> {
        self.bytes.clear();
        let mut taps = TapSender {
            shape: &self.shape,
            seed: self.seed,
            noise: (self.noise, self.secret.noise_seed()),
            sample: u64::from(sample),
            rows: if wanted { &self.rows } else { &[] },
            bytes: &mut self.bytes,
            link: self.link.as_mut(),
            at: (step, place),
            failed: None,
        };
        engine.forward(pass, &mut self.factors, &mut taps)?;
        taps.end().map_err(Error::Link)
    }

    /// Takes the outputs of the first step under way and gives their gradients. The sum of the
    /// losses.
    fn losses(
        &mut self,
        engine: &mut Engine,
        data: &mut dyn SideSamples,
        pass: &mut Pass,
        cancel: &AtomicBool,
    ) -> Result<f64> {
        let Some(ahead) = self.ahead.front() else { return Ok(0.0) };
        let (step, samples) = (ahead.step, ahead.samples.len());
        let (hidden, kernels) = (self.shape.hidden(), engine.kernels());
        let scale = self.scale.unwrap_or(1.0);
        let weight = 1.0 / ahead.targets.max(1) as f32;
        let mut sum = 0.0;
        for place in 0..samples {
            stop_if(cancel)?;
            let Waiting { sample, first, .. } = self.ahead[0].samples[place];
            self.take(data, sample, pass)?;
            let head_rows = engine.plan().head_rows;
            for (piece, targets) in self.targets.chunks(head_rows).enumerate() {
                let rows = targets.len();
                let stream = engine.stream_mut(rows);
                self.hidden.read(first + piece * head_rows, stream)?;
                for stream in stream.chunks_mut(ROWS_AT_WORK * hidden) {
                    let output = &mut self.rows_at_work[..stream.len()];
                    self.link.output(step, place, output).map_err(Error::Link)?;
                    let rows = stream.len() / hidden;
                    let added = MatRef::new(output, rows, hidden);
                    kernels.axpy(scale, added, MatMut::new(stream, rows, hidden));
                }
                head_pass(pass, targets, weight);
                let (losses, gradient) = engine.head_gradient(pass)?;
                kernels.scale_in_place(scale, MatMut::new(gradient, rows, hidden));
                sum = losses.iter().fold(sum, |sum, loss| sum + loss.sum);
                self.link.gradient(step, place, gradient).map_err(Error::Link)?;
            }
        }
        Ok(sum)
    }

    /// c by what waits of the first step, which has just begun.
    fn scale_of(&mut self, first: &Ahead) -> Result<f32> {
        let width = waiting_width(&self.shape, self.loss);
        let (mut squares, mut count) = (0.0, 0);
        for waiting in &first.samples {
            let (mut at, end) = (waiting.first, waiting.first + waiting.rows);
            while at < end {
                let rows = (end - at).min(self.rows_at_work.len() / width);
                let read = &mut self.rows_at_work[..rows * width];
                self.hidden.read(at, read)?;
                for row in read.chunks_exact(width) {
                    squares += square(if self.loss == LossOn::Trainer { row[0] } else { rms(row) });
                }
                at += rows;
            }
            count += waiting.rows;
        }
        Ok(scale_by(squares, count))
    }

    /// The same bits for a run that goes on: its first step's samples are run once more.
    fn scale_of_first_step(
        &mut self,
        engine: &mut Engine,
        data: &mut dyn SideSamples,
        pass: &mut Pass,
        cancel: &AtomicBool,
    ) -> Result<f32> {
        let hidden = self.shape.hidden();
        let (mut squares, mut count) = (0.0, 0);
        let mut samples = Vec::new();
        data.samples(1, &mut samples);
        for sample in samples {
            stop_if(cancel)?;
            self.take(data, sample, pass)?;
            if self.rows.is_empty() {
                continue;
            }
            self.forward(engine, (1, 0, sample), false, pass)?;
            let stream = engine.stream_mut(pass.rows());
            for row in &self.rows {
                squares += square(rms(&stream[row * hidden..(row + 1) * hidden]));
            }
            count += self.rows.len();
        }
        Ok(scale_by(squares, count))
    }

    /// What stands for the taps of the sample that was read: HMAC-SHA256 under the device's secret of
    /// all that decides them but the model, cut to 16 bytes.
    fn key(&self, sample: u32) -> SampleKey {
        let config = self.shape.config();
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret.0).expect("any key length");
        let numbers = [self.seed, u64::from(sample), self.sequence.ids.len() as u64];
        let kind = [config.first_tap, config.every, config.format.bits()].map(|n| n as u64);
        numbers.iter().chain(&kind).for_each(|n| mac.update(&n.to_le_bytes()));
        let noise = [self.noise.clip, self.noise.sigma];
        noise.iter().for_each(|n| mac.update(&n.to_le_bytes()));
        self.sequence.ids.iter().for_each(|id| mac.update(&id.to_le_bytes()));
        self.sequence.targets.iter().for_each(|&t| mac.update(&[u8::from(t)]));
        mac.finalize().into_bytes()[..16].try_into().expect("16 bytes")
    }

    /// The network after the last confirmed step, in memory; c is 1 before the first one.
    ///
    /// # Errors
    /// Those of the link.
    pub fn network(&mut self) -> Result<SideNetwork> {
        let mut numbers = Vec::with_capacity(self.shape.len());
        self.numbers(&mut |piece| {
            numbers.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(SideNetwork::new(self.shape.clone(), self.scale.unwrap_or(1.0), numbers))
    }

    /// Writes the network's folder, as [`SideNetwork::save`] does, with a piece of it in memory at a
    /// time.
    ///
    /// # Errors
    /// Those of the link and of [`SideNetwork::save`].
    pub fn save(&mut self, base: &Base, folder: &Path) -> Result<()> {
        let (shape, scale) = (self.shape.clone(), self.scale.unwrap_or(1.0));
        super::files::save(&shape, scale, base, folder, &mut |write| self.numbers(write))
    }

    fn numbers(&mut self, take: &mut super::files::Take<'_>) -> Result<()> {
        let (mut found, expected, mut taken) = (0, self.shape.len(), Ok(()));
        let link = self.link.numbers(&mut |piece| {
            found += piece.len();
            if taken.is_ok() && found <= expected {
                taken = take(piece);
            }
        });
        link.map_err(Error::Link)?;
        taken?;
        match found == expected {
            true => Ok(()),
            false => {
                let what = format!("{found} numbers of the network where {expected} are due");
                Err(Error::Link(LinkError::failed(what)))
            }
        }
    }
}

/// Root mean square.
fn rms(row: &[f32]) -> f32 {
    let squares: f64 = row.iter().copied().map(square).sum();
    (squares / row.len().max(1) as f64).sqrt() as f32
}

fn square(x: f32) -> f64 {
    f64::from(x) * f64::from(x)
}

/// c by the sum of the squares of so many rows' root mean squares.
fn scale_by(squares: f64, rows: usize) -> f32 {
    let scale = (squares / rows.max(1) as f64).sqrt() as f32;
    if scale > 0.0 { scale } else { 1.0 }
}

/// Numbers of a row that wait for the network: of its last hidden state, or what that was divided by.
fn waiting_width(shape: &SideShape, loss: LossOn) -> usize {
    match loss {
        LossOn::Device => shape.hidden(),
        LossOn::Trainer => 1,
    }
}

fn hidden_size(shape: &SideShape, side: &Side, size: SideSize) -> HiddenSize {
    HiddenSize {
        hidden: waiting_width(shape, side.loss),
        rows: size.step_tokens,
        steps: side.pace.window + 1,
        samples: size.samples,
        kept_bytes: side.pace.kept_bytes,
    }
}

/// Rows of outputs that are taken at a time.
const ROWS_AT_WORK: usize = 32;

/// Numbers of rows that are worked on at a time.
fn numbers_at_work(shape: &SideShape, side: &Side, size: SideSize) -> usize {
    match side.loss {
        LossOn::Device => size.tokens.min(ROWS_AT_WORK) * shape.hidden(),
        LossOn::Trainer => size.tokens,
    }
}

/// Bytes that taps are collected in: a row is begun before [`PIECE`] is full.
fn piece_bytes(shape: &SideShape) -> usize {
    PIECE + shape.config().format.row_bytes(shape.hidden())
}

/// Gives the taps of a sample's rows to the link.
struct TapSender<'a> {
    shape: &'a SideShape,
    seed: u64,
    /// The noise, and what it is counted from.
    noise: (TapNoise, u64),
    sample: u64,
    rows: &'a [usize],
    bytes: &'a mut Vec<u8>,
    link: &'a mut dyn SideLink,
    /// The step, and the place in it.
    at: (u64, usize),
    failed: Option<LinkError>,
}

impl TapSender<'_> {
    fn give(&mut self) {
        if !self.bytes.is_empty() && self.failed.is_none() {
            self.failed = self.link.taps(self.at.0, self.at.1, self.bytes).err();
        }
        self.bytes.clear();
    }

    fn end(mut self) -> Result<(), LinkError> {
        self.give();
        self.failed.map_or(Ok(()), Err)
    }
}

impl Taps for TapSender<'_> {
    fn tap(&mut self, layer: usize, stream: MatRef<'_>, kernels: Kernels, _: &mut Pool) {
        if self.failed.is_some() || !self.shape.tapped().contains(&layer) {
            return;
        }
        let format = self.shape.config().format;
        let row_bytes = format.row_bytes(stream.cols());
        for &row in self.rows {
            let key = TapKey {
                seed: self.seed,
                sample: self.sample,
                layer: layer as u16,
                position: row as u32,
            };
            let start = self.bytes.len();
            self.bytes.resize(start + row_bytes, 0);
            let (bytes, rounding) = (&mut self.bytes[start..], TapRounding::Stochastic(key));
            let (noise, seed) = self.noise;
            let noise = (noise, TapKey { seed, ..key });
            format.encode_noised(kernels, rounding, noise, stream.row(row), bytes);
            if self.bytes.len() >= PIECE {
                self.give();
            }
        }
    }

    fn join(&mut self, _: MatMut<'_>, _: Kernels, _: &mut Pool) {}
}
