//! `--memory-trace`: what was counted over a run, as numbers or as a picture.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;
use smidgen::memory::{Meter, Sample};

use crate::chart;
use crate::error::{Failure, Result};

/// A file to write, in the form that its name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceFile {
    path: PathBuf,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Svg,
    Csv,
    Jsonl,
}

impl FromStr for TraceFile {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let path = PathBuf::from(text);
        let form = match path.extension().and_then(|extension| extension.to_str()) {
            Some("svg") => Form::Svg,
            Some("csv") => Form::Csv,
            Some("jsonl") => Form::Jsonl,
            _ => return Err("its name ends in .svg, .csv or .jsonl".into()),
        };
        Ok(Self { path, form })
    }
}

/// Begins to record, if a file is to be written.
pub fn begin(files: &[TraceFile], meter: &Meter) {
    if !files.is_empty() {
        meter.begin_trace();
    }
}

/// Writes what was recorded of a run that had planned to take `planned` bytes.
pub fn write(files: &[TraceFile], meter: &Meter, planned: u64) -> Result<()> {
    let Some(trace) = meter.take_trace() else { return Ok(()) };
    let (samples, budget) = (trace.samples(), meter.budget());
    for TraceFile { path, form } in files {
        let text = match form {
            Form::Svg => chart::memory_trace_svg(samples, Some(planned), budget),
            Form::Csv => csv(samples, planned, budget),
            Form::Jsonl => jsonl(samples, planned, budget),
        };
        fs::write(path, text).map_err(Failure::file("write", path))?;
    }
    Ok(())
}

/// A sample as a line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    seconds: f64,
    step: u64,
    phase: &'a str,
    counted_bytes: u64,
    planned_bytes: u64,
    budget_bytes: Option<u64>,
}

fn jsonl(samples: &[Sample], planned_bytes: u64, budget_bytes: Option<u64>) -> String {
    let mut out = String::new();
    for &Sample { seconds, step, phase, counted: counted_bytes } in samples {
        let (seconds, phase) = (milliseconds(seconds), phase.name());
        let line = Line { seconds, step, phase, counted_bytes, planned_bytes, budget_bytes };
        out += &serde_json::to_string(&line).expect("plain numbers and a word");
        out.push('\n');
    }
    out
}

fn csv(samples: &[Sample], planned: u64, budget: Option<u64>) -> String {
    let mut out = String::from("seconds,step,phase,counted_bytes,planned_bytes,budget_bytes\n");
    let budget = budget.map_or(String::new(), |bytes| bytes.to_string());
    for Sample { seconds, step, phase, counted } in samples {
        let _ = writeln!(out, "{seconds:.3},{step},{phase},{counted},{planned},{budget}");
    }
    out
}

fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use smidgen::memory::RunPhase;

    use super::*;

    #[test]
    fn forms_go_by_the_name() {
        let form = |text: &str| text.parse::<TraceFile>().map(|file| file.form);
        assert_eq!(form("a.svg"), Ok(Form::Svg));
        assert_eq!(form("runs/b.csv"), Ok(Form::Csv));
        assert_eq!(form("c.jsonl"), Ok(Form::Jsonl));
        for bad in ["trace", "trace.png", "svg", "a.json", ""] {
            assert!(form(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lines() {
        let phase = RunPhase::Training;
        let samples = [Sample { seconds: 1.23456, step: 2, phase, counted: 5_000_000 }];
        let csv = csv(&samples, 6_000_000, Some(7_000_000));
        assert_eq!(csv.lines().nth(1), Some("1.235,2,training,5000000,6000000,7000000"));
        assert!(super::csv(&samples, 6, None).ends_with(",6,\n"));
        let expected = r#"{"seconds":1.235,"step":2,"phase":"training","counted_bytes":5000000,"planned_bytes":6000000,"budget_bytes":null}"#;
        assert_eq!(jsonl(&samples, 6_000_000, None), format!("{expected}\n"));
    }
}
