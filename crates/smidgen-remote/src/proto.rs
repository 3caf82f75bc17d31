//! The protocol between device and server: `proto/side.proto` as Rust, and what both ends make of it.
//!
//! `generated.rs` is written by the test `protocol`, which fails where it does not belong to the
//! definition.

#[allow(clippy::all, missing_docs, unreachable_pub)]
#[rustfmt::skip]
mod generated;

pub use generated::*;

use sha2::{Digest, Sha256};
use smidgen_train::{LossOn, SampleKey, SideConfig, SideGate, SideLabel, SideShape};

/// The version that is spoken here.
pub const VERSION: u32 = 1;
/// Bytes of the longest message that is read.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Bytes of the longest piece of taps, outputs, gradients and networks that is taken.
pub const PART_BYTES_MAX: usize = 256 << 10;
/// Bytes of such pieces as they are sent from here: each is held a few times on its way.
pub(crate) const PART_BYTES: usize = 64 << 10;

/// A SHA-256.
pub type Hash = [u8; 32];

impl Settings {
    /// The message for a shape.
    pub fn of(shape: &SideShape) -> Self {
        let SideConfig { first_tap, every, width, reduction, gate, format } = *shape.config();
        // A shape's numbers are checked against the model's, which are much smaller than u32's.
        let number = |x: usize| u32::try_from(x).unwrap_or(u32::MAX);
        let layers = shape.tapped().last().map_or(0, |last| last + 1);
        let gate = match gate {
            SideGate::Sum => Gate::Sum,
            SideGate::Ladder => Gate::Ladder,
        };
        Self {
            layers: number(layers),
            hidden: number(shape.hidden()),
            first_tap: number(first_tap),
            every: number(every),
            width: number(width),
            reduction: number(reduction),
            gate: gate.into(),
            tap_bits: number(format.bits()),
        }
    }
}

impl From<LossOn> for Loss {
    fn from(loss: LossOn) -> Self {
        match loss {
            LossOn::Device => Self::OnDevice,
            LossOn::Trainer => Self::OnServer,
        }
    }
}

/// What a step is known by: [`Update::hash`], as it is gathered.
#[derive(Clone, Debug)]
pub struct StepHash(Sha256);

impl StepHash {
    /// Of a step that begins.
    pub fn new(step: u64) -> Self {
        Self(Sha256::new_with_prefix(step.to_le_bytes()))
    }

    /// Its next sample.
    pub fn sample(&mut self, key: &SampleKey, rows: u32) {
        self.0.update(key);
        self.0.update(rows.to_le_bytes());
    }

    /// The next bytes of its gradients, or of a sample's labels.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// What stands before a sample's labels.
    pub fn scale(&mut self, scale: f32) {
        self.0.update(scale.to_le_bytes());
    }

    /// All of it.
    pub fn end(mut self, rate: f64) -> Hash {
        self.0.update(rate.to_le_bytes());
        self.0.finalize().into()
    }
}

/// Numbers as bytes.
pub(crate) fn to_bytes(numbers: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 * numbers.len());
    numbers.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
    bytes
}

/// Bytes that a label takes.
pub(crate) const LABEL_BYTES: usize = 8;

/// Labels as bytes.
#[cfg(feature = "client")]
pub(crate) fn label_bytes(labels: &[SideLabel]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LABEL_BYTES * labels.len());
    for label in labels {
        bytes.extend_from_slice(&label.target.to_le_bytes());
        bytes.extend_from_slice(&label.rms.to_le_bytes());
    }
    bytes
}

/// Bytes as labels.
#[cfg(feature = "server")]
pub(crate) fn read_labels(bytes: &[u8]) -> Vec<SideLabel> {
    let labels = bytes.chunks_exact(LABEL_BYTES).map(|b| SideLabel {
        target: u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        rms: f32::from_le_bytes([b[4], b[5], b[6], b[7]]),
    });
    labels.collect()
}

/// Bytes as numbers, as far as they go on both sides.
pub(crate) fn read_numbers(bytes: &[u8], numbers: &mut [f32]) {
    for (bytes, x) in bytes.chunks_exact(4).zip(numbers) {
        *x = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
}
