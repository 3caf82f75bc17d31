//! A side network's folder: `side_config.json` and `side_model.safetensors`, with the record of the
//! base model beside them in `smidgen/base.json`, as an adapter has it.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use smidgen_kernels::{Format, TapFormat};
use smidgen_weights::{SafetensorsWriter, TensorFile, put_in_place, read_json};

use super::{SideConfig, SideGate, SideNetwork, SideShape};
use crate::adapter::AdapterNote;
use crate::base::Base;
use crate::error::{Error, Result};

const CONFIG_FILE: &str = "side_config.json";
const WEIGHTS_FILE: &str = "side_model.safetensors";
/// Numbers that are written at a time.
const CHUNK: usize = 4096;
/// What this program writes and reads.
const VERSION: u32 = 1;

/// `side_config.json`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    version: u32,
    layers: usize,
    hidden: usize,
    first_tap: usize,
    tap_every: usize,
    tap_bits: usize,
    width: usize,
    reduction: usize,
    gate: Gate,
    /// c.
    scale: f32,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Gate {
    Sum,
    Ladder,
}

impl SideNetwork {
    /// Whether a folder holds a side network.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(CONFIG_FILE).is_file()
    }

    /// Writes the network's folder. Each file is replaced whole or not at all, the settings last.
    ///
    /// # Errors
    /// A number is infinite or no number: nothing is written then. A file can't be written.
    pub fn save(&self, base: &Base, folder: &Path) -> Result<()> {
        save(&self.shape, self.scale, base, folder, &mut |write| write(&self.numbers))
    }

    /// The network in a folder, and what is worth telling about it.
    ///
    /// # Errors
    /// The folder can't be read, or holds a network of another model or shape.
    pub fn load(base: &Base, folder: &Path) -> Result<(Self, Vec<AdapterNote>)> {
        let notes = base.check_record(folder)?;
        let settings = read_settings(folder)?;
        let info = base.info();
        if (settings.layers, settings.hidden) != (info.layers, info.hidden) {
            let what = format!(
                "it was trained beside {} layers of {} and the model has {} of {}; give that model",
                settings.layers, settings.hidden, info.layers, info.hidden
            );
            return Err(wrong(folder, what));
        }
        let config = settings.config().map_err(|what| wrong(folder, what))?;
        let shape = SideShape::new(config, info.layers, info.hidden)
            .map_err(|e| wrong(folder, format!("its settings can't be: {e}")))?;
        let numbers = read_numbers(folder, &shape)?;
        Ok((Self::new(shape, settings.scale, numbers), notes))
    }
}

/// What takes the next numbers of a network.
pub(super) type Take<'a> = dyn FnMut(&[f32]) -> Result<()> + 'a;

/// Writes a network's folder; `numbers` gives its numbers in order, in pieces of any size, to what
/// it is called with.
pub(super) fn save(
    shape: &SideShape,
    scale: f32,
    base: &Base,
    folder: &Path,
    numbers: &mut dyn FnMut(&mut Take<'_>) -> Result<()>,
) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let settings = serde_json::to_vec_pretty(&Settings::of(shape, scale, base))
        .map_err(|e| Error::io("write", folder.join(CONFIG_FILE))(e.into()))?;
    let listed: Vec<_> =
        shape.tensors().map(|t| (t.name.clone(), Format::F32, vec![t.rows, t.cols])).collect();
    let mut writer = SafetensorsWriter::create(folder.join(WEIGHTS_FILE), &listed)?;
    let mut bytes = Vec::new();
    numbers(&mut |numbers| {
        for numbers in numbers.chunks(CHUNK) {
            if !(scale.is_finite() && numbers.iter().all(|x| x.is_finite())) {
                let what = "the side network holds numbers that are not finite, so it is not saved \
                            and an earlier one is left as it was; lower the learning rate";
                return Err(wrong(folder, what));
            }
            bytes.clear();
            bytes.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
            writer.write(&bytes)?;
        }
        Ok(())
    })?;
    put_in_place(folder, CONFIG_FILE, &settings, &base.record()?, || writer.finish().map(|_| ()))?;
    Ok(())
}

impl Settings {
    fn of(shape: &SideShape, scale: f32, base: &Base) -> Self {
        let config = shape.config();
        Self {
            version: VERSION,
            layers: base.info().layers,
            hidden: shape.hidden(),
            first_tap: config.first_tap,
            tap_every: config.every,
            tap_bits: config.format.bits(),
            width: config.width,
            reduction: config.reduction,
            gate: match config.gate {
                SideGate::Sum => Gate::Sum,
                SideGate::Ladder => Gate::Ladder,
            },
            scale,
        }
    }

    fn config(&self) -> Result<SideConfig, String> {
        let format = [TapFormat::F16, TapFormat::Q8, TapFormat::Q4]
            .into_iter()
            .find(|format| format.bits() == self.tap_bits)
            .ok_or_else(|| format!("tap_bits is {}, not 16, 8 or 4", self.tap_bits))?;
        Ok(SideConfig {
            first_tap: self.first_tap,
            every: self.tap_every,
            width: self.width,
            reduction: self.reduction,
            gate: match self.gate {
                Gate::Sum => SideGate::Sum,
                Gate::Ladder => SideGate::Ladder,
            },
            format,
        })
    }
}

fn read_settings(folder: &Path) -> Result<Settings> {
    let settings: Settings = read_json(&folder.join(CONFIG_FILE))?;
    match settings.version {
        VERSION => Ok(settings),
        other => Err(wrong(
            folder,
            format!("{CONFIG_FILE} is of version {other} and this program reads {VERSION}"),
        )),
    }
}

fn read_numbers(folder: &Path, shape: &SideShape) -> Result<Vec<f32>> {
    let file = TensorFile::open(folder.join(WEIGHTS_FILE))?;
    let found = file.tensors().count();
    let expected = shape.tensors().count();
    if found != expected {
        let what =
            format!("{WEIGHTS_FILE} has {found} tensors where its settings ask for {expected}");
        return Err(wrong(folder, what));
    }
    // The file fills what its header says, so the room is not more than it has.
    for tensor in shape.tensors() {
        let dims = file.tensors().find(|(name, _)| *name == tensor.name).map(|(_, dims)| dims);
        if dims != Some(&[tensor.rows, tensor.cols]) {
            let what = format!(
                "{WEIGHTS_FILE}: {} is {} where its settings ask for [{}, {}]",
                tensor.name,
                dims.map_or("missing".to_owned(), |dims| format!("{dims:?}")),
                tensor.rows,
                tensor.cols
            );
            return Err(wrong(folder, what));
        }
    }
    let mut numbers = vec![0.0; shape.len()];
    for tensor in shape.tensors() {
        file.read(&tensor.name, &mut numbers[tensor.range.clone()])?;
    }
    Ok(numbers)
}

fn wrong(folder: &Path, what: impl Into<String>) -> Error {
    Error::Adapter { path: folder.to_owned(), what: what.into() }
}
