//! What a run leaves beside its adapter: `DIR/smidgen/metrics.jsonl`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::evaluate::Evaluation;
use crate::session::StepReport;

/// The folder of a run.
#[derive(Debug)]
pub struct RunFolder {
    folder: PathBuf,
    /// None before the first line.
    metrics: Option<File>,
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

impl RunFolder {
    /// Makes the folder where it is missing. Its metrics begin anew with the first line that is
    /// written, so that a run which never starts leaves those of an earlier one.
    ///
    /// # Errors
    /// It can't be made.
    pub fn create(folder: &Path) -> Result<Self> {
        let own = folder.join("smidgen");
        fs::create_dir_all(&own).map_err(Error::io("create", &own))?;
        Ok(Self { folder: folder.to_owned(), metrics: None })
    }

    /// The folder, which takes the adapter.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Where a prepared token file of this run goes.
    pub fn tokens(&self, split: &str) -> PathBuf {
        self.folder.join("smidgen").join(format!("{split}.tokens"))
    }

    /// Appends a step.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn step(&mut self, r: &StepReport) -> Result<()> {
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

    /// Appends an evaluation after `step` steps.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn evaluation(&mut self, step: u64, data: &str, e: &Evaluation) -> Result<()> {
        let (loss, accuracy, targets) = (e.loss, e.accuracy, e.targets);
        let perplexity = e.perplexity();
        self.line(&Line::Evaluation { step, loss, perplexity, accuracy, targets, data })
    }

    fn line(&mut self, line: &Line<'_>) -> Result<()> {
        let path = self.folder.join("smidgen").join("metrics.jsonl");
        let mut text = serde_json::to_vec(line)
            .map_err(|e| Error::io("write", &path)(std::io::Error::other(e)))?;
        text.push(b'\n');
        let metrics = match &mut self.metrics {
            Some(file) => file,
            none => none.insert(File::create(&path).map_err(Error::io("create", &path))?),
        };
        metrics.write_all(&text).map_err(Error::io("write", &path))
    }
}
