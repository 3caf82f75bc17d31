//! Where a command may write a GGUF file, and what it tells of a model that it wrote.

use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use smidgen::{Convert, Converted, GgufKind, memory};

use crate::args::threads;
use crate::error::{Failure, Result};
use crate::progress::Writing;
use crate::report::path_text;
use crate::stop::Stop;
use crate::table;
use crate::ui::{Ui, grouped, megabytes};

/// Refuses an `--output` that is no file's name, is the file that is read, or is a file of another
/// kind than the one that would take its place.
pub fn check_out(out: &Path, input: &Path, kind: GgufKind) -> Result<()> {
    if check_new(out).is_ok() || out.is_dir() {
        return check_new(out);
    }
    let refuse = |why: &str| refuse(out, why);
    if out.canonicalize().ok() == input.canonicalize().ok() {
        return refuse("this is the file that is read; give another name");
    }
    let what = match kind {
        GgufKind::Model => "model",
        GgufKind::Adapter => "adapter",
    };
    if GgufKind::of(out) != Some(kind) {
        return refuse(&format!(
            "there is something already that is no GGUF {what}; remove it or give another name"
        ));
    }
    Ok(())
}

/// Refuses an `--output` that is no file's name, or where something is.
pub fn check_new(out: &Path) -> Result<()> {
    if out.file_name().is_none() || out.is_dir() {
        return refuse(out, "this is not a file's name");
    }
    match out.symlink_metadata() {
        Ok(_) => refuse(out, "there is something already; remove it or give another name"),
        Err(_) => Ok(()),
    }
}

fn refuse(out: &Path, why: &str) -> Result<()> {
    Err(Failure::usage(format!("--output {}: {why}", out.display())))
}

/// What `--json` reports of a model that was written.
#[derive(Debug, Serialize)]
struct ConvertReport {
    model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter_path: Option<String>,
    output: String,
    bytes: u64,
    tensor_bytes_before: u64,
    tensor_bytes: u64,
    seconds: f64,
    peak_rss_bytes: Option<u64>,
    tensors: Vec<TensorRow>,
    notes: Vec<String>,
}

/// A tensor that was written.
#[derive(Debug, Serialize)]
struct TensorRow {
    name: String,
    shape: Vec<u64>,
    from: &'static str,
    to: &'static str,
    bytes: u64,
    relative_error: f64,
}

/// Runs `work` with progress on stderr, and tells what it wrote.
pub fn convert(
    ui: &Ui,
    (input, adapter, out): (&Path, Option<&Path>, &Path),
    (asked_threads, stop): (Option<u32>, &Stop),
    mut notes: Vec<String>,
    work: impl FnOnce(&mut Convert<'_>) -> smidgen::Result<Converted>,
) -> Result<()> {
    let begin = Instant::now();
    let mut writing = Writing::new();
    let mut progress = |done, total| writing.at(done, total);
    let threads = threads(asked_threads);
    let convert = &mut Convert { threads, cancel: stop.flag(), progress: &mut progress };
    let converted = work(convert);
    writing.clear();
    let converted = converted?;
    let seconds = begin.elapsed().as_secs_f64();
    notes.extend(converted.notes.iter().cloned());
    let (before, after) = (converted.bytes_before(), converted.bytes());
    ui.say(&tensors(&converted));
    super::say_notes(ui, &notes);
    let rate = before as f64 / 1e6 / seconds.max(1e-9);
    ui.say(&format!(
        "tensors   {} before, {} now, {seconds:.1} s, {rate:.0} MB/s",
        megabytes(before),
        megabytes(after)
    ));
    ui.say(&format!("written   {} in {}", megabytes(converted.file_bytes), out.display()));
    ui.report(&ConvertReport {
        model: path_text(input),
        adapter_path: adapter.map(path_text),
        output: path_text(out),
        bytes: converted.file_bytes,
        tensor_bytes_before: before,
        tensor_bytes: after,
        seconds,
        peak_rss_bytes: memory::usage().map(|usage| usage.resident_peak),
        tensors: converted.tensors.into_iter().map(TensorRow::from).collect(),
        notes,
    })
}

impl From<smidgen::ConvertedTensor> for TensorRow {
    fn from(t: smidgen::ConvertedTensor) -> Self {
        let (from, to) = (t.from.name(), t.to.name());
        let (bytes, relative_error) = (t.bytes, t.relative_error);
        Self { name: t.name, shape: t.shape, from, to, bytes, relative_error }
    }
}

/// A line a tensor.
fn tensors(converted: &Converted) -> String {
    let head = ["tensor", "shape", "from", "to", "bytes", "error"].map(str::to_owned);
    let mut rows = vec![head.to_vec()];
    rows.extend(converted.tensors.iter().map(|t| {
        let shape: Vec<String> = t.shape.iter().map(u64::to_string).collect();
        let error = match t.relative_error {
            0.0 => "none".to_owned(),
            error => format!("{:.3} %", 100.0 * error),
        };
        vec![
            t.name.clone(),
            shape.join(" x "),
            t.from.name().to_owned(),
            t.to.name().to_owned(),
            grouped(t.bytes),
            error,
        ]
    }));
    table::right(&rows)
}
