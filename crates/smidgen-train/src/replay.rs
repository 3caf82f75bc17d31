//! The history of a MeZO run, and the adapter rebuilt from it alone.
//!
//! A step is a seed and a projected gradient for each of its directions, with the rate: some 70
//! bytes. One line of JSON says what the run began with, then each step has a line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use smidgen_kernels::{Kernels, NormalKey};
use smidgen_weights::{BaseModel, NewFile};

use crate::adapter::{Adapter, AdapterShape, LoraConfig, TargetModules};
use crate::base::Base;
use crate::error::{Error, Result};
use crate::mezo::{Descent, Projection};

const VERSION: u32 = 1;

/// Bytes of the longest line that is read: a step of 1,024 directions takes 50 kB.
const LONGEST_LINE: u64 = 1 << 20;

/// What a run began with: its first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Beginning {
    version: u32,
    base: BaseModel,
    rank: usize,
    alpha: f64,
    modules: Vec<String>,
    num_layers: usize,
    start: Start,
}

/// The adapter before the first step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Start {
    /// A new one of this seed.
    Seed(u64),
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
    /// What a run of `shape` begins with, from an adapter's folder or a new one of `seed`.
    pub fn new(
        base: &Base,
        shape: &AdapterShape,
        folder: Option<&Path>,
        seed: u64,
    ) -> Result<Self> {
        let start = match folder {
            Some(folder) => Start::Sha256(sha256(&folder.join("adapter_model.safetensors"))?),
            None => Start::Seed(seed),
        };
        Ok(Self {
            version: VERSION,
            base: base.record()?,
            rank: shape.config().rank,
            alpha: shape.config().alpha,
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
    let mut text =
        serde_json::to_vec(line).map_err(|e| Error::io("write", path)(std::io::Error::other(e)))?;
    text.push(b'\n');
    file.write_all(&text).map_err(Error::io("write", path))
}

/// Leaves the steps up to `done` in the history at `path`, to go on with; false where none is.
pub(crate) fn cut_after(path: &Path, done: u64) -> Result<bool> {
    let Ok(file) = File::open(path) else { return Ok(false) };
    let (kept, mut at) = (NewFile::create(path)?, 0);
    for (i, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(Error::io("read", path))?;
        // A killed run's last line may be half written.
        let stays = i == 0 || serde_json::from_str::<Step>(&line).is_ok_and(|s| s.step <= done);
        if stays {
            let line = line + "\n";
            kept.write_at(line.as_bytes(), at)?;
            at += line.len() as u64;
        }
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
    let mut lines =
        Lines { file: BufReader::new(File::open(path).map_err(Error::io("read", path))?) };
    let mut text = String::new();
    let mut read = |text: &mut String| lines.next(text).map_err(Error::io("read", path));
    if !read(&mut text)? {
        return Err(wrong(1, "the file is empty".into()));
    }
    let beginning: Beginning =
        serde_json::from_str(&text).map_err(|e| wrong(1, format!("no beginning of a run: {e}")))?;
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
            serde_json::from_str(&text).map_err(|e| wrong(line, format!("no step: {e}")))?;
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
    /// The adapter before the first step.
    fn adapter(&self, base: &Base, path: &Path, folder: Option<&Path>) -> Result<Adapter> {
        let other = |what: String| Err(Error::setting(format!("{}: {what}", path.display())));
        if self.base.fingerprint != base.record()?.fingerprint {
            return other(format!(
                "the run trained on {} ({}), whose weights are not those of {}; give that model",
                self.base.file_name,
                self.base.architecture,
                base.path.display()
            ));
        }
        match (&self.start, folder) {
            (Start::Seed(seed), None) => {
                let config = LoraConfig {
                    rank: self.rank,
                    alpha: self.alpha,
                    dropout: 0.0,
                    targets: TargetModules::Names(self.modules.clone()),
                    num_layers: Some(self.num_layers),
                };
                Adapter::new(base, &config, *seed)
            }
            (Start::Seed(_), Some(_)) => {
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

/// A file line by line, none longer than [`LONGEST_LINE`].
struct Lines {
    file: BufReader<File>,
}

impl Lines {
    /// Puts the next line into `text`; false at the end.
    fn next(&mut self, text: &mut String) -> std::io::Result<bool> {
        text.clear();
        self.file.by_ref().take(LONGEST_LINE).read_line(text).map(|bytes| bytes > 0)
    }
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
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
