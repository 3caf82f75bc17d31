//! The `smidgen` program, started and watched.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::flags::Flags;
use super::watch::{self, Watched};
use crate::cargo;

/// What `--json` of `plan` and `train` holds of what the tasks need.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    pub planned_peak_bytes: u64,
    #[serde(default)]
    pub peak_memory_bytes: Option<u64>,
    #[serde(default)]
    pub weight_window_bytes: u64,
    #[serde(default)]
    pub seconds_per_step: Option<f64>,
    #[serde(default)]
    pub predicted_seconds_per_step: Option<f64>,
    /// Of a step.
    #[serde(default)]
    pub spool_written_bytes: Option<u64>,
    /// Of a step.
    #[serde(default)]
    pub spool_read_bytes: Option<u64>,
    #[serde(default)]
    pub losses: Option<Vec<f64>>,
    #[serde(default)]
    pub rows: Vec<Row>,
}

/// A line of the plan.
#[derive(Clone, Debug, Deserialize)]
pub struct Row {
    pub name: String,
    pub shape: String,
    pub bytes: u64,
    pub life: String,
    pub why: String,
}

/// A training run that has ended well.
#[derive(Debug)]
pub struct Run {
    pub report: Report,
    /// The most that was counted from outside.
    pub peak_bytes: u64,
    /// The same while each step ran: key i is from the end of step i to that of step i + 1.
    pub step_peaks: BTreeMap<usize, u64>,
    /// What the program itself counted at the end of each step.
    pub own_bytes: Vec<u64>,
    /// The adapter's file.
    pub adapter: Vec<u8>,
}

/// The program, and a folder of its own on a disk.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    folder: tempfile::TempDir,
}

impl Program {
    /// The program that `--program` names, else a fresh release build.
    pub fn new(flags: &Flags) -> Result<Self> {
        let path = match flags.has("--program") {
            true => flags.file("--program")?.canonicalize()?,
            false => built()?,
        };
        // Not in memory, where the scratch file would take what it saves.
        let folder = env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
        Ok(Self { path, folder: tempfile::tempdir_in(folder)? })
    }

    /// Makes the token file of `text`, so that runs have no text to prepare, and reads the model
    /// file once, so that all find it in the system's cache. Returns the file and the peak.
    pub fn prepare(&self, model: &Path, text: &Path, length: u32) -> Result<(PathBuf, u64)> {
        std::io::copy(&mut fs::File::open(model)?, &mut std::io::sink())?;
        let tokens = self.folder.path().join(format!("{length}.tokens"));
        let settings = ["--max-seq-length".to_owned(), length.to_string()];
        let mut command = Command::new(&self.path);
        command.arg("data").arg(text).arg("-m").arg(model).arg("--out").arg(&tokens);
        command.args(&settings).args(["--show", "0", "--json"]);
        Ok((tokens, succeeded(watch::run(&mut command, || 0)?, &settings)?.peak_bytes))
    }

    /// `smidgen plan` with `settings`, which are flags of train.
    pub fn plan(&self, model: &Path, tokens: &Path, settings: &[String]) -> Result<Report> {
        let watched = watch::run(&mut self.run_command("plan", model, tokens, settings), || 0)?;
        report(&succeeded(watched, settings)?.stdout)
    }

    /// `smidgen train` with `settings`, watched.
    pub fn train(&self, model: &Path, tokens: &Path, settings: &[String]) -> Result<Run> {
        let out = self.out();
        if out.exists() {
            fs::remove_dir_all(&out)?;
        }
        let metrics = out.join("smidgen/metrics.jsonl");
        let mut steps = Lines { path: metrics.clone(), length: 0, count: 0 };
        let mut command = self.run_command("train", model, tokens, settings);
        let watched = succeeded(watch::run(&mut command, || steps.now())?, settings)?;
        Ok(Run {
            report: report(&watched.stdout)?,
            peak_bytes: watched.peak_bytes,
            step_peaks: watched.phase_peaks,
            own_bytes: own_bytes(&fs::read_to_string(&metrics)?)?,
            adapter: fs::read(out.join("adapter_model.safetensors"))?,
        })
    }

    fn run_command(&self, name: &str, model: &Path, data: &Path, settings: &[String]) -> Command {
        let mut command = Command::new(&self.path);
        command.arg(name).arg("-m").arg(model).arg("--data").arg(data).args(settings);
        command.arg("--json").arg("-o").arg(self.out());
        command
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("run")
    }
}

/// Builds the program and tells where it is.
fn built() -> Result<PathBuf> {
    cargo::run(&["build", "--release", "-p", "smidgen-cli"], &[])?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        |folder| Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder),
    );
    Ok(target.join("release/smidgen").canonicalize()?)
}

fn succeeded(watched: Watched, settings: &[String]) -> Result<Watched> {
    let said = watched.stderr.lines().last().unwrap_or("");
    ensure!(watched.status.success(), "{}, {}: {said}", settings.join(" "), watched.status);
    Ok(watched)
}

fn report(stdout: &str) -> Result<Report> {
    serde_json::from_str(stdout).with_context(|| format!("no report: {stdout}"))
}

/// How many lines a growing file has; it is read only where its length is new.
struct Lines {
    path: PathBuf,
    length: u64,
    count: usize,
}

impl Lines {
    fn now(&mut self) -> usize {
        let length = fs::metadata(&self.path).map_or(0, |found| found.len());
        if length != self.length {
            let text = fs::read(&self.path).unwrap_or_default();
            self.count = text.iter().filter(|&&byte| byte == b'\n').count();
            self.length = length;
        }
        self.count
    }
}

/// `memory_bytes` of each step in the metrics of a run.
fn own_bytes(metrics: &str) -> Result<Vec<u64>> {
    #[derive(Deserialize)]
    struct Line {
        kind: String,
        memory_bytes: Option<u64>,
    }
    let lines: Vec<Line> =
        metrics.lines().map(serde_json::from_str).collect::<serde_json::Result<_>>()?;
    Ok(lines
        .iter()
        .filter(|line| line.kind == "step")
        .filter_map(|line| line.memory_bytes)
        .collect())
}

impl Report {
    /// Bytes that a step reads from the scratch file and writes to it.
    pub fn spooled_bytes(&self) -> Option<u64> {
        Some(self.spool_read_bytes? + self.spool_written_bytes?)
    }

    /// What makes this plan: all rows but those of the process itself.
    pub fn choices(&self) -> BTreeSet<[&str; 4]> {
        let rows = self.rows.iter().filter(|row| !["process", "programs"].contains(&&*row.name));
        rows.map(|row| [&*row.name, &*row.shape, &*row.life, &*row.why]).collect()
    }

    /// What lives from forward to backward, the largest first: `mlp.gate 34.9, block inputs 22.9`.
    pub fn kept(&self) -> String {
        let lives = |row: &&Row| row.life == "forward to backward";
        let mut kept: Vec<&Row> = self.rows.iter().filter(lives).collect();
        kept.sort_by_key(|row| std::cmp::Reverse(row.bytes));
        let shown = kept.iter().take(3).map(|row| format!("{} {}", row.name, mb(row.bytes)));
        let mut text = shown.collect::<Vec<_>>().join(", ");
        if kept.len() > 3 {
            let rest = kept[3..].iter().map(|row| row.bytes).sum();
            text += &format!(", {} more {}", kept.len() - 3, mb(rest));
        }
        text
    }
}

/// Bytes in MB (10^6).
pub fn mb(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, bytes: u64, life: &str) -> Row {
        let shape = format!("{bytes}");
        Row { name: name.into(), shape, bytes, life: life.into(), why: String::new() }
    }

    fn plan(rows: Vec<Row>) -> Report {
        let mut report = report(r#"{"planned_peak_bytes": 1, "rows": []}"#).unwrap();
        report.rows = rows;
        report
    }

    #[test]
    fn plans_differ_by_their_choices() {
        let inputs = row("block inputs", 5, "forward to backward");
        let a = plan(vec![row("process", 1, "whole run"), inputs.clone()]);
        let b = plan(vec![inputs.clone(), row("process", 2, "whole run")]);
        let c = plan(vec![inputs, row("mlp.up", 7, "forward to backward")]);
        assert_eq!(a.choices(), b.choices());
        assert_ne!(a.choices(), c.choices());
    }

    #[test]
    fn the_largest_kept_buffers_are_named() {
        let sizes = [1_000_000, 4_000_000, 2_000_000, 3_000_000];
        let kept = |(i, &b): (usize, &u64)| row(&format!("v{i}"), b, "forward to backward");
        let mut rows: Vec<Row> = sizes.iter().enumerate().map(kept).collect();
        rows.push(row("scratch", 9_000_000, "whole run"));
        assert_eq!(plan(rows).kept(), "v1 4.0, v3 3.0, v2 2.0, 1 more 1.0");
    }

    #[test]
    fn own_figures_of_steps() {
        let metrics = "{\"kind\":\"step\",\"memory_bytes\":7}\n{\"kind\":\"valid\",\"step\":1}\n";
        assert_eq!(own_bytes(metrics).unwrap(), [7]);
    }
}
