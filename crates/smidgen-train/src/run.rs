//! What a run leaves beside its adapter, in `DIR/smidgen`: `metrics.jsonl`, `run.state`,
//! `mezo.jsonl`, `report.html` and token files.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use smidgen_weights::NewFile;

use crate::error::{Error, Result};
use crate::evaluate::Evaluation;
use crate::replay;
use crate::session::{Session, StepReport};

/// What the run leaves beside its adapter goes here, in the run's folder.
const OWN: &str = "smidgen";

/// The folder of a run, which no other run writes to meanwhile.
#[derive(Debug)]
pub struct RunFolder {
    folder: PathBuf,
    /// None before the first line.
    metrics: Option<File>,
    /// The history of a MeZO run, likewise.
    mezo: Option<File>,
    /// The own folder; its lock goes with the process, however that ends.
    _lock: File,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
enum Line<'a> {
    Step {
        step: u64,
        loss: f64,
        learning_rate: f64,
        targets: usize,
        tokens: usize,
        seconds: f64,
        memory_bytes: Option<u64>,
    },
    Evaluation {
        step: u64,
        loss: f64,
        perplexity: f64,
        accuracy: f64,
        targets: usize,
        data: &'a str,
    },
}

/// What of a line is read again.
#[derive(Deserialize)]
struct Known {
    kind: String,
    step: u64,
    loss: Option<f64>,
    seconds: Option<f64>,
    memory_bytes: Option<u64>,
}

/// How a run went, from its metrics: what it did before it was resumed too.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Steps in groups of an equal number, a power of two.
    pub steps: Vec<StepGroup>,
    /// Steps and losses of the evaluations.
    pub evaluations: Vec<(u64, f64)>,
}

/// Some steps in a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepGroup {
    /// The last step's number.
    pub step: u64,
    /// The mean loss.
    pub loss: f64,
    /// The time that all steps up to the last took.
    pub seconds: f64,
    /// The most memory that was counted, if the system tells.
    pub memory_bytes: Option<u64>,
}

impl RunFolder {
    /// Makes the folder where it is missing. Its metrics begin anew with the first line that is
    /// written, so that a run which never starts leaves those of an earlier one. What a run that
    /// was killed left half written is removed.
    ///
    /// # Errors
    /// It can't be made; [`Error::Locked`].
    pub fn create(folder: &Path) -> Result<Self> {
        let own = folder.join(OWN);
        fs::create_dir_all(&own).map_err(Error::io("create", &own))?;
        let lock = File::open(&own).map_err(Error::io("open", &own))?;
        // Where a file system has no locks, it is for the caller to see to it.
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            return Err(Error::Locked { path: folder.to_owned() });
        }
        remove_half_written(&own);
        Ok(Self { folder: folder.to_owned(), metrics: None, mezo: None, _lock: lock })
    }

    /// Where the run's state is saved.
    pub fn state(&self) -> PathBuf {
        self.own().join("run.state")
    }

    /// Goes on with the metrics of a run that has done `done` of `steps` steps: lines of later
    /// steps go, and where all are done the evaluation at their end, which comes again. The step
    /// of the last evaluation that stays.
    ///
    /// # Errors
    /// The file can't be read or written.
    pub fn resume(&mut self, done: u64, steps: u64) -> Result<Option<u64>> {
        let append = |path: &Path| {
            let file = OpenOptions::new().append(true).open(path);
            file.map_err(Error::io("write", path))
        };
        let mezo = self.mezo();
        if replay::cut_after(&mezo, done)? {
            self.mezo = Some(append(&mezo)?);
        }
        let path = self.metrics_path();
        let Ok(file) = File::open(&path) else { return Ok(None) };
        let (kept, mut at, mut evaluated) = (NewFile::create(&path)?, 0, None);
        for line in BufReader::new(file).lines() {
            let line = line.map_err(Error::io("read", &path))?;
            // A killed run's last line may be half written.
            let Ok(Known { kind, step, .. }) = serde_json::from_str(&line) else { continue };
            let is_evaluation = kind == "evaluation";
            if step > done || (is_evaluation && step == steps) {
                continue;
            }
            evaluated = if is_evaluation { Some(step) } else { evaluated };
            let line = line + "\n";
            kept.write_at(line.as_bytes(), at)?;
            at += line.len() as u64;
        }
        kept.commit()?;
        self.metrics = Some(append(&path)?);
        Ok(evaluated)
    }

    /// The folder, which takes the adapter.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Where a prepared token file of this run goes.
    pub fn tokens(&self, split: &str) -> PathBuf {
        self.own().join(format!("{split}.tokens"))
    }

    /// Where the adapter goes as a GGUF LoRA, beside the PEFT files.
    pub fn gguf(&self) -> PathBuf {
        self.folder.join("adapter.gguf")
    }

    /// Where a page that tells of the run goes.
    pub fn page(&self) -> PathBuf {
        self.own().join("report.html")
    }

    /// Where a host that wants TensorBoard's files puts them.
    pub fn tensorboard(&self) -> PathBuf {
        self.own().join("tensorboard")
    }

    /// Where the history of a MeZO run goes, from which [`replay`](crate::replay()) rebuilds its
    /// adapter.
    pub fn mezo(&self) -> PathBuf {
        self.own().join("mezo.jsonl")
    }

    /// Where the name of a run of side tuning with its trainer goes.
    pub fn session(&self) -> PathBuf {
        self.own().join("side.session")
    }

    /// Where the secret of a run of side tuning goes that shares it with no other run.
    pub fn secret(&self) -> PathBuf {
        self.own().join("side.secret")
    }

    /// Appends the last step of `session`, which it reported as `r`.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn step(&mut self, session: &Session, r: &StepReport) -> Result<()> {
        if let Some((beginning, descent, projections)) = session.mezo_step(r.learning_rate) {
            let path = self.mezo();
            let step = (r.step, descent);
            replay::write_step(&path, &mut self.mezo, beginning, step, projections)?;
        }
        self.line(&Line::Step {
            step: r.step,
            loss: r.loss,
            learning_rate: r.learning_rate,
            targets: r.targets,
            tokens: r.tokens,
            seconds: r.seconds,
            memory_bytes: r.memory_bytes,
        })
    }

    /// Brings the history of a MeZO run to the disk: what [`Session::save_state`] writes next counts
    /// on it.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn sync(&self) -> Result<()> {
        let path = self.mezo();
        self.mezo
            .as_ref()
            .map_or(Ok(()), |file| file.sync_data().map_err(Error::io("write", &path)))
    }

    /// Appends an evaluation after `step` steps.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn evaluation(&mut self, step: u64, data: &str, e: &Evaluation) -> Result<()> {
        let (loss, accuracy, targets) = (e.loss, e.accuracy, e.targets);
        let perplexity = e.perplexity();
        self.line(&Line::Evaluation { step, loss, perplexity, accuracy, targets, data })
    }

    /// What the metrics tell so far, in at most `groups` groups of steps; what can't be read is left
    /// out.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn history(&self, groups: usize) -> Result<History> {
        let path = self.metrics_path();
        let mut all = History::default();
        let Ok(file) = File::open(&path) else { return Ok(all) };
        let (mut group, mut open, mut seconds) = (1, Vec::new(), 0.0);
        for line in BufReader::new(file).lines() {
            let line = line.map_err(Error::io("read", &path))?;
            let Ok(Known { kind, step, loss, seconds: took, memory_bytes }) =
                serde_json::from_str(&line)
            else {
                continue;
            };
            let Some(loss) = loss else { continue };
            if kind == "evaluation" {
                all.evaluations.push((step, loss));
                continue;
            }
            seconds += took.unwrap_or(0.0);
            open.push(StepGroup { step, loss, seconds, memory_bytes });
            if open.len() < group {
                continue;
            }
            all.steps.push(StepGroup::of(&open));
            open.clear();
            if all.steps.len() >= groups.max(2) {
                all.steps = all.steps.chunks(2).map(StepGroup::of).collect();
                group *= 2;
            }
        }
        if !open.is_empty() {
            all.steps.push(StepGroup::of(&open));
        }
        Ok(all)
    }

    fn line(&mut self, line: &Line<'_>) -> Result<()> {
        let path = self.metrics_path();
        let mut text = serde_json::to_vec(line)
            .map_err(|e| Error::io("write", &path)(std::io::Error::other(e)))?;
        text.push(b'\n');
        let metrics = match &mut self.metrics {
            Some(file) => file,
            none => none.insert(File::create(&path).map_err(Error::io("create", &path))?),
        };
        metrics.write_all(&text).map_err(Error::io("write", &path))
    }

    fn metrics_path(&self) -> PathBuf {
        self.own().join("metrics.jsonl")
    }

    fn own(&self) -> PathBuf {
        self.folder.join(OWN)
    }
}

impl StepGroup {
    /// One group of some, which are of one size.
    fn of(groups: &[Self]) -> Self {
        let last = groups[groups.len() - 1];
        let loss = groups.iter().map(|g| g.loss).sum::<f64>() / groups.len() as f64;
        Self { loss, memory_bytes: groups.iter().filter_map(|g| g.memory_bytes).max(), ..last }
    }
}

/// Removes the parts of files that a killed run had begun: nobody else is at work here, and what
/// can't be removed is in nobody's way.
fn remove_half_written(own: &Path) {
    let is_part = |path: &Path| {
        path.extension().is_some_and(|e| e == "tmp" || e == "partial" || e == "offsets")
    };
    let entries = fs::read_dir(own).into_iter().flatten().flatten().map(|entry| entry.path());
    for part in entries.filter(|path| is_part(path)) {
        let _ = fs::remove_file(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(lines: &str) -> (tempfile::TempDir, RunFolder) {
        let place = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(place.path()).unwrap();
        fs::write(folder.metrics_path(), lines).unwrap();
        (place, folder)
    }

    #[test]
    fn a_long_run_is_told_in_groups() {
        let line = |i: u64| {
            format!(r#"{{"kind":"step","step":{i},"loss":{i}.0,"seconds":0.5,"memory_bytes":{i}}}"#)
        };
        let mut text: Vec<String> = (1..=10).map(line).collect();
        text.push(r#"{"kind":"evaluation","step":10,"loss":4.5}"#.into());
        text.push(r#"{"kind":"step","st"#.into());
        let (_place, folder) = folder(&text.join("\n"));
        let all = folder.history(100).unwrap();
        assert_eq!((all.steps.len(), all.evaluations), (10, vec![(10, 4.5)]));
        let few = folder.history(4).unwrap().steps;
        let group =
            |step, loss, seconds| StepGroup { step, loss, seconds, memory_bytes: Some(step) };
        assert_eq!(few, [group(4, 2.5, 2.0), group(8, 6.5, 4.0), group(10, 9.5, 5.0)]);
    }

    #[test]
    fn a_resumed_run_has_each_step_once() {
        let lines = "{\"kind\":\"step\",\"step\":1,\"loss\":1.0}\n\
                     {\"kind\":\"evaluation\",\"step\":1,\"loss\":1.5}\n\
                     {\"kind\":\"step\",\"step\":2,\"loss\":0.5}\n{\"kind\":\"st";
        let (_place, mut folder) = folder(lines);
        assert_eq!(folder.resume(1, 9).unwrap(), Some(1));
        let kept = fs::read_to_string(folder.metrics_path()).unwrap();
        assert_eq!(kept.lines().count(), 2);
        assert_eq!(folder.resume(1, 1).unwrap(), None);
        let kept = fs::read_to_string(folder.metrics_path()).unwrap();
        assert!(kept.lines().count() == 1 && kept.contains("\"step\":1"), "{kept}");
    }
}
