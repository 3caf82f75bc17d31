//! The history of a MeZO run, and the adapter rebuilt from it alone.
//!
//! A step is a seed and a projected gradient for each of its directions, with the rate: some 100
//! bytes. One line of JSON says what the run began with, then each step has a line; a line's last
//! field is a checksum of all before it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use smidgen_kernels::{Kernels, NormalKey};
use smidgen_weights::{BaseModel, NewFile};

use crate::adapter::{
    Adapter, AdapterShape, AdapterStart, InitLoraWeights, LoraConfig, TargetModules,
};
use crate::base::Base;
use crate::error::{Error, Result};
use crate::mezo::{Descent, Projection};

const VERSION: u32 = 1;

/// Bytes of the longest line that is read: a step of 1,024 directions takes 50 kB.
const LONGEST_LINE: u64 = 1 << 20;

/// Begins the last field of a line: 8 hexadecimal digits of the SHA-256 of what stands before it.
const CHECK: &str = ",\"check\":\"";

/// What a run began with: its first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Beginning {
    version: u32,
    base: BaseModel,
    rank: usize,
    alpha: f64,
    use_rslora: bool,
    modules: Vec<String>,
    num_layers: usize,
    start: Start,
}

/// The adapter before the first step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Start {
    /// A new one of this seed, A uniform.
    Seed(u64),
    /// A new one of this seed, A normal.
    Gaussian(u64),
    /// A PEFT folder's, whose `adapter_model.safetensors` has this SHA-256.
    Sha256(String),
}

/// A step's line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    step: u64,
    rate: f64,
    weight_decay: f64,
    /// The seed, which of its directions, and the projected gradient.
    projections: Vec<(u64, u64, f64)>,
}

impl Beginning {
    /// What a run of `shape` begins with, from an adapter's folder or a new one of a seed.
    pub fn new(
        base: &Base,
        shape: &AdapterShape,
        folder: Option<&Path>,
        (init, seed): (&InitLoraWeights, u64),
    ) -> Result<Self> {
        let start = match (folder, init) {
            (Some(folder), _) => Start::Sha256(sha256(&folder.join("adapter_model.safetensors"))?),
            (None, InitLoraWeights::Gaussian) => Start::Gaussian(seed),
            (None, _) => Start::Seed(seed),
        };
        Ok(Self {
            version: VERSION,
            base: base.record()?,
            rank: shape.config().rank,
            alpha: shape.config().alpha,
            use_rslora: shape.config().use_rslora,
            modules: shape.spec().modules.clone(),
            num_layers: base.info.layers - shape.first_layer(),
            start,
        })
    }
}

/// Writes the line of a step, and before the first one what the run began with.
pub(crate) fn write_step(
    path: &Path,
    file: &mut Option<File>,
    beginning: &Beginning,
    (step, descent): (u64, Descent),
    projections: &[Projection],
) -> Result<()> {
    let Descent { rate, weight_decay } = descent;
    let projections = projections.iter().map(|p| (p.key.seed, p.key.sample, p.gradient)).collect();
    let file = match file {
        Some(file) => file,
        none => {
            let file = none.insert(File::create(path).map_err(Error::io("create", path))?);
            write_line(path, file, beginning)?;
            file
        }
    };
    write_line(path, file, &Step { step, rate, weight_decay, projections })
}

fn write_line(path: &Path, file: &mut File, line: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string(line)
        .map_err(|e| Error::io("write", path)(std::io::Error::other(e)))?;
    text.pop();
    let check = checksum(&text);
    text += &format!("{CHECK}{check}\"}}\n");
    file.write_all(text.as_bytes()).map_err(Error::io("write", path))
}

/// A line, or what is wrong with it.
fn parse<T: DeserializeOwned>(line: &[u8]) -> std::result::Result<T, String> {
    let line = str::from_utf8(line).map_err(|_| "it is no text".to_owned())?;
    let (fields, check) = line.trim_end().rsplit_once(CHECK).ok_or("it has no checksum")?;
    if check.strip_suffix("\"}") != Some(&checksum(fields)) {
        return Err(
            "its checksum is that of another line: it was changed or is half written".into()
        );
    }
    serde_json::from_str(&format!("{fields}}}")).map_err(|e| e.to_string())
}

fn checksum(fields: &str) -> String {
    hex(&Sha256::digest(fields)[..4])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Leaves the steps up to `done` in the history at `path`, to go on with; false where none is.
pub(crate) fn cut_after(path: &Path, done: u64) -> Result<bool> {
    let Ok(file) = File::open(path) else { return Ok(false) };
    let (kept, mut at) = (NewFile::create(path)?, 0);
    let (mut lines, mut line, mut first) = (BufReader::new(file), Vec::new(), true);
    while next_line(&mut lines, &mut line).map_err(Error::io("read", path))? {
        // A killed run's last line may be half written.
        if first || parse::<Step>(&line).is_ok_and(|s| s.step <= done) {
            kept.write_at(&line, at)?;
            at += line.len() as u64;
        }
        first = false;
    }
    kept.commit()?;
    Ok(true)
}

/// The adapter after all steps of the history at `path`, and their number: bit for bit that of the
/// run which wrote it, with neither its data nor a pass through the model. `init_adapter` is the
/// folder that the run started from, if it did.
///
/// # Errors
/// The file can't be read, is no such history or lacks a step; the model or the adapter to start
/// from is another one.
pub fn replay(base: &Base, path: &Path, init_adapter: Option<&Path>) -> Result<(Adapter, u64)> {
    let wrong = |line: u64, what: String| {
        Error::setting(format!(
            "{}, line {line}: {what}; give the mezo.jsonl that train --method mezo wrote",
            path.display()
        ))
    };
    let mut file = BufReader::new(File::open(path).map_err(Error::io("read", path))?);
    let mut text = Vec::new();
    let mut read = |text: &mut Vec<u8>| next_line(&mut file, text).map_err(Error::io("read", path));
    if !read(&mut text)? {
        return Err(wrong(1, "the file is empty".into()));
    }
    let beginning: Beginning =
        parse(&text).map_err(|e| wrong(1, format!("no beginning of a run: {e}")))?;
    if beginning.version != VERSION {
        return Err(wrong(1, format!("version {} is not {VERSION}", beginning.version)));
    }
    let mut adapter = beginning.adapter(base, path, init_adapter)?;
    let kernels = Kernels::detect();
    let numbers = adapter.values.held_mut().expect("it is in memory");
    let mut done = 0;
    while read(&mut text)? {
        let line = done + 2;
        let Step { step, rate, weight_decay, projections } =
            parse(&text).map_err(|e| wrong(line, format!("no step: {e}")))?;
        if step != done + 1 || projections.is_empty() {
            return Err(wrong(line, format!("step {step} stands where step {} should", done + 1)));
        }
        let projections = projections.into_iter().map(|(seed, sample, gradient)| Projection {
            key: NormalKey { seed, sample },
            gradient,
        });
        let projections: Vec<_> = projections.collect();
        Descent { rate, weight_decay }.descend(kernels, &projections, 0, numbers);
        done = step;
    }
    Ok((adapter, done))
}

impl Beginning {
    /// What kind of adapter it is.
    fn lora(&self) -> LoraConfig {
        LoraConfig {
            rank: self.rank,
            alpha: self.alpha,
            dropout: 0.0,
            targets: TargetModules::Names(self.modules.clone()),
            num_layers: Some(self.num_layers),
            use_rslora: self.use_rslora,
        }
    }

    /// The adapter before the first step.
    fn adapter(&self, base: &Base, path: &Path, folder: Option<&Path>) -> Result<Adapter> {
        let other =
            |what: String| Err(Error::setting(format!("{}, line 1: {what}", path.display())));
        if self.base.fingerprint != base.record()?.fingerprint {
            return other(format!(
                "the run trained on {} ({}), whose weights are not those of {}; give that model",
                self.base.file_name,
                self.base.architecture,
                base.path.display()
            ));
        }
        match (&self.start, folder) {
            (Start::Seed(seed), None) => Adapter::new(base, &self.lora(), *seed),
            (Start::Gaussian(seed), None) => {
                AdapterStart::gaussian(base, &self.lora(), *seed)?.in_memory(base)
            }
            (Start::Seed(_) | Start::Gaussian(_), Some(_)) => {
                other("the run began with a new adapter; leave --init-adapter out".into())
            }
            (Start::Sha256(hash), Some(folder)) => {
                if sha256(&folder.join("adapter_model.safetensors"))? != *hash {
                    let folder = folder.display();
                    return other(format!("{folder} is not the adapter that the run started from"));
                }
                Ok(Adapter::load(base, folder)?.0)
            }
            (Start::Sha256(hash), None) => other(format!(
                "the run started from an adapter whose adapter_model.safetensors has the SHA-256 \
                 {hash}; name its folder with --init-adapter"
            )),
        }
    }
}

/// Puts the next line into `line`, of at most [`LONGEST_LINE`]; false at the end.
fn next_line(file: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    file.take(LONGEST_LINE).read_until(b'\n', line).map(|bytes| bytes > 0)
}

fn sha256(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let mut buffer = [0; 16 << 10];
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => break,
            bytes => hash.update(&buffer[..bytes]),
        }
    }
    Ok(hex(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_to_the_last_bit() {
        let mut bits = 1u64;
        for step in 1..=20_000 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // From 2^-30 to 2^2, as gradients are.
            let exponent = 1023 - 30 + bits % 32;
            let gradient = f64::from_bits(bits >> 12 | exponent << 52 | (bits & 1) << 63);
            let line = Step {
                step,
                rate: 1e-3,
                weight_decay: 0.1,
                projections: vec![(7, step, gradient)],
            };
            let text = serde_json::to_string(&line).unwrap();
            let read: Step = serde_json::from_str(&text).unwrap();
            assert_eq!(read.projections[0].2.to_bits(), gradient.to_bits(), "{text}");
        }
    }
}
