//! The network that a message asks for.

use smidgen_train::{SideConfig, SideGate, SideShape, TapFormat};

use crate::proto::{Gate, Settings};

/// Checks a message's settings before anything is made by them.
///
/// # Errors
/// What can't be.
pub(super) fn shape_of(settings: &Settings, parameters_max: u64) -> Result<SideShape, String> {
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
pub(super) fn tap_bytes(shape: &SideShape, rows: usize) -> u64 {
    let row = shape.config().format.row_bytes(shape.hidden());
    (shape.tapped().len() as u64).saturating_mul(row as u64).saturating_mul(rows as u64)
}
