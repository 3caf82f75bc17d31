//! A run's state on disk: what it takes to go on, bit for bit, after the process was killed.
//!
//! All numbers are little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `SMDGRUN` and a zero byte |
//! | 4 | version, 1 |
//! | 4 | bytes J of the record |
//! | J | the record: steps done, sizes of what follows, the run's settings, as JSON |
//! | 4 P | the adapter's numbers, in the order of [`AdapterShape::factors`](crate::AdapterShape::factors) |
//! | 4 W for each state | the optimiser's state, layer after layer |
//! | 32 | SHA-256 of all before |
//!
//! What else a step depends on is counted from its number: the data's position and order, the
//! dropout masks, the rate.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use smidgen_runtime::Numbers;
use smidgen_weights::NewFile;

use crate::error::{Error, Result};

const MAGIC: [u8; 8] = *b"SMDGRUN\0";
const VERSION: u32 = 1;
/// Bytes before the record.
const START_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 32;
/// Far above what a record takes.
const MAX_RECORD_BYTES: u64 = 64 << 10;
/// Numbers written, and bytes read, at once.
const CHUNK: usize = 4096;

/// A run's settings, each under the name of its flag: two runs with the same ones take the same
/// steps.
pub(crate) type RunSettings = BTreeMap<String, String>;

/// What stands before the numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// Steps done.
    pub done: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Trainable numbers.
    pub numbers: u64,
    /// Words of each of the optimiser's states.
    pub states: Vec<u64>,
    /// The settings.
    pub settings: RunSettings,
}

/// A saved state, found to be whole.
#[derive(Debug)]
pub struct RunState {
    path: PathBuf,
    file: File,
    record: Record,
    /// Where its numbers begin.
    start: u64,
}

/// A setting in which a run differs from the one that saved a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The flag, or what else it is.
    pub name: String,
    /// What it was.
    pub then: String,
    /// What it is.
    pub now: String,
}

/// The differences of a run from the one that saved a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differences(pub Vec<Difference>);

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Difference { name, then, now }) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "; " };
            write!(f, "{comma}{name} was {then} and is {now}")?;
        }
        Ok(())
    }
}

impl RunState {
    /// Opens the state at `path` and reads it once to check it; none where no file is.
    ///
    /// # Errors
    /// The file can't be read, is no state, or was damaged or cut short.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let read = |source| Error::io("read", path)(source);
        let damaged = |what: String| damaged(path, &what);
        let mut file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.map_err(read)?,
        };
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(damaged("it is no regular file".into()));
        }
        let short = || damaged(format!("{} bytes are too few", metadata.len()));
        let mut start = [0; START_BYTES];
        let body = metadata.len().checked_sub((START_BYTES + CHECKSUM_BYTES) as u64);
        let body = body.ok_or_else(short)?;
        file.read_exact(&mut start).map_err(read)?;
        let word = |at: usize| u32::from_le_bytes(start[at..at + 4].try_into().expect("4 bytes"));
        if start[..8] != MAGIC {
            return Err(damaged("it does not begin with SMDGRUN".into()));
        }
        if word(8) != VERSION {
            return Err(damaged(format!(
                "version {} is not {VERSION}, the only one known",
                word(8)
            )));
        }
        let record_bytes = u64::from(word(12));
        if record_bytes > body.min(MAX_RECORD_BYTES) {
            return Err(damaged(format!("a record of {record_bytes} bytes doesn't fit")));
        }
        let mut record = vec![0; record_bytes as usize];
        file.read_exact(&mut record).map_err(read)?;
        check(&mut file, body - record_bytes, &[&start, &record], path)?;
        let record: Record =
            serde_json::from_slice(&record).map_err(|error| damaged(error.to_string()))?;
        if record.bytes() != Some(body - record_bytes) {
            return Err(damaged("its record does not describe its size".into()));
        }
        let start = START_BYTES as u64 + record_bytes;
        Ok(Some(Self { path: path.to_owned(), file, record, start }))
    }

    /// Steps done when it was saved.
    pub fn steps_done(&self) -> u64 {
        self.record.done
    }

    /// Steps of the run that saved it.
    pub fn steps(&self) -> u64 {
        self.record.steps
    }

    /// Whether a run of these settings and sizes may go on from it; `force` lets the settings
    /// differ.
    pub(crate) fn check(&self, run: &Record, force: bool) -> Result<()> {
        let Self { path, record, .. } = self;
        let refuse = |what| Err(Error::State { path: path.clone(), what });
        if record.done > run.steps {
            return refuse(format!(
                "it is {} steps into its run and this one has {}; give a larger --iters",
                record.done, run.steps
            ));
        }
        let names: BTreeSet<_> = record.settings.keys().chain(run.settings.keys()).collect();
        let of = |settings: &RunSettings, name| {
            settings.get(name).map_or_else(|| "not set".to_owned(), String::clone)
        };
        let all = names.into_iter().map(|name| Difference {
            name: name.clone(),
            then: of(&record.settings, name),
            now: of(&run.settings, name),
        });
        let differences: Vec<_> = all.filter(|d| d.then != d.now).collect();
        if !differences.is_empty() && !force {
            return Err(Error::OtherRun {
                path: path.clone(),
                differences: Differences(differences),
            });
        }
        if (record.numbers, &record.states) != (run.numbers, &run.states) {
            return refuse(format!(
                "it holds {} numbers of an adapter with states of {:?} and this run trains {} with \
                 {:?}; no --force can put them there",
                record.numbers, record.states, run.numbers, run.states
            ));
        }
        Ok(())
    }

    /// Puts what was saved into `adapter`, of which `runs` are the pieces, and `states`, of which
    /// `pieces` are.
    pub(crate) fn load(
        &self,
        adapter: &mut Numbers,
        runs: &[Range<usize>],
        states: &mut [Numbers],
        pieces: &[Range<usize>],
    ) -> Result<()> {
        let mut at = self.start;
        self.read(adapter, runs, &mut at)?;
        for state in states {
            self.read(state, pieces, &mut at)?;
        }
        Ok(())
    }

    fn read(&self, numbers: &mut Numbers, pieces: &[Range<usize>], at: &mut u64) -> Result<()> {
        let mut bytes = [0; CHUNK * 4];
        for piece in pieces {
            for numbers in numbers.piece_mut(piece.clone())?.chunks_mut(CHUNK) {
                let bytes = &mut bytes[..size_of_val(numbers)];
                self.file.read_exact_at(bytes, *at).map_err(Error::io("read", &self.path))?;
                for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks().0) {
                    *number = f32::from_bits(u32::from_le_bytes(*bytes));
                }
                *at += bytes.len() as u64;
            }
        }
        Ok(())
    }
}

impl Record {
    /// Bytes of the numbers; none if that is no number of bytes.
    fn bytes(&self) -> Option<u64> {
        let words = self.states.iter().try_fold(self.numbers, |sum, &words| sum.checked_add(words));
        words?.checked_mul(4)
    }
}

/// Hashes `before`, then `bytes` bytes of the file, and compares with the checksum behind them.
fn check(file: &mut File, bytes: u64, before: &[&[u8]], path: &Path) -> Result<()> {
    let mut hash = Sha256::new();
    before.iter().for_each(|part| hash.update(part));
    let mut buffer = [0; CHUNK * 4];
    let mut left = bytes;
    while left > 0 {
        let part = &mut buffer[..left.min((CHUNK * 4) as u64) as usize];
        file.read_exact(part).map_err(Error::io("read", path))?;
        hash.update(&*part);
        left -= part.len() as u64;
    }
    let mut checksum = [0; CHECKSUM_BYTES];
    file.read_exact(&mut checksum).map_err(Error::io("read", path))?;
    if hash.finalize()[..] != checksum {
        return Err(damaged(path, "its content does not match its checksum"));
    }
    Ok(())
}

fn damaged(path: &Path, what: &str) -> Error {
    let what = format!(
        "{what}, so no run can go on from it; begin anew with --force, from an adapter that was \
         saved with --init-adapter"
    );
    Error::State { path: path.to_owned(), what }
}

/// Writes a state: the record, then numbers in the order that [`RunState::load`] reads them.
pub(crate) struct StateWriter {
    file: NewFile,
    hash: Sha256,
    at: u64,
}

impl StateWriter {
    /// Begins the state that will be at `path`.
    pub fn create(path: &Path, record: &Record) -> Result<Self> {
        let record = serde_json::to_vec(record).expect("strings and integers are JSON");
        let mut start = Vec::with_capacity(START_BYTES + record.len());
        start.extend_from_slice(&MAGIC);
        start.extend_from_slice(&VERSION.to_le_bytes());
        start.extend_from_slice(&(record.len() as u32).to_le_bytes());
        start.extend_from_slice(&record);
        let mut writer = Self { file: NewFile::create(path)?, hash: Sha256::new(), at: 0 };
        writer.append(&start)?;
        Ok(writer)
    }

    /// Appends the `pieces` of `numbers`.
    pub fn numbers(&mut self, numbers: &mut Numbers, pieces: &[Range<usize>]) -> Result<()> {
        let mut bytes = [0; CHUNK * 4];
        for piece in pieces {
            for numbers in numbers.piece(piece.clone())?.chunks(CHUNK) {
                for (bytes, number) in bytes.chunks_exact_mut(4).zip(numbers) {
                    bytes.copy_from_slice(&number.to_bits().to_le_bytes());
                }
                self.append(&bytes[..size_of_val(numbers)])?;
            }
        }
        Ok(())
    }

    /// Brings the state to the disk and puts it in the place of an earlier one.
    pub fn finish(mut self) -> Result<()> {
        let checksum = std::mem::take(&mut self.hash).finalize();
        self.file.write_at(&checksum, self.at)?;
        Ok(self.file.commit()?)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.file.write_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}
