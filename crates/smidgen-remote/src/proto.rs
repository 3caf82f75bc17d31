//! The protocol between device and server: `proto/side.proto` as Rust, and what both ends make of it.
//!
//! `generated.rs` is written by the test `protocol`, which fails where it does not belong to the
//! definition.

#[allow(clippy::all, missing_docs, unreachable_pub)]
#[rustfmt::skip]
mod generated;

pub use generated::*;

use sha2::{Digest, Sha256};
use smidgen_train::{SampleKey, SideConfig, SideGate, SideShape, TapFormat};

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

/// Checks a message's settings before anything is made by them.
///
/// # Errors
/// What can't be.
#[cfg(feature = "server")]
pub(crate) fn shape_of(settings: &Settings, parameters_max: u64) -> Result<SideShape, String> {
    const LAYERS_MAX: u32 = 4096;
    const HIDDEN_MAX: u32 = 1 << 17;
    let Settings { layers, hidden, first_tap, every, width, reduction, tap_bits, .. } = *settings;
    let gate = match settings.gate() {
        Gate::Unspecified => return Err("settings.gate is none of this protocol's".to_owned()),
        Gate::Sum => SideGate::Sum,
        Gate::Ladder => SideGate::Ladder,
    };
    let format = match tap_bits {
        16 => TapFormat::F16,
        8 => TapFormat::Q8,
        4 => TapFormat::Q4,
        _ => return Err(format!("settings.tap_bits is {tap_bits}: they are 16, 8 or 4")),
    };
    if !(1..=LAYERS_MAX).contains(&layers) || !(1..=HIDDEN_MAX).contains(&hidden) {
        return Err(format!(
            "settings say {layers} layers of {hidden} numbers: they lie in 1 to {LAYERS_MAX} and 1 \
             to {HIDDEN_MAX}"
        ));
    }
    // The least that such a network takes, before its tensors are listed.
    let taps = u64::from(layers.saturating_sub(first_tap).div_ceil(every.max(1)).max(1));
    let narrow = u64::from(hidden / reduction.max(1));
    let least = taps.saturating_mul(2 * narrow).saturating_mul(width.into());
    let too_many = |found: u64| {
        format!("the side network has {found} numbers: the server allows {parameters_max}")
    };
    if least > parameters_max {
        return Err(too_many(least));
    }
    let index = |x: u32| x as usize;
    let config = SideConfig {
        first_tap: index(first_tap),
        every: index(every),
        width: index(width),
        reduction: index(reduction),
        gate,
        format,
    };
    let shape = SideShape::new(config, index(layers), index(hidden)).map_err(|e| e.to_string())?;
    match shape.len() as u64 {
        found if found > parameters_max => Err(too_many(found)),
        _ => Ok(shape),
    }
}

/// Bytes of a sample's taps.
pub(crate) fn tap_bytes(shape: &SideShape, rows: usize) -> u64 {
    let row = shape.config().format.row_bytes(shape.hidden());
    (shape.tapped().len() as u64).saturating_mul(row as u64).saturating_mul(rows as u64)
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

    /// The next bytes of its gradients.
    pub fn gradient(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
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

/// Bytes as numbers, as far as they go on both sides.
pub(crate) fn read_numbers(bytes: &[u8], numbers: &mut [f32]) {
    for (bytes, x) in bytes.chunks_exact(4).zip(numbers) {
        *x = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
}
