//! `smidgen bench --table`: a paper's table beside what this machine takes for the same shapes.

use std::path::{Path, PathBuf};

use serde::Serialize;
use smidgen::synth::Preset;
use smidgen::{
    Base, BenchCase, BenchReport, BenchSettings, LoraConfig, MemoryBudget, Method, OptimizerConfig,
    bench,
};

use super::settings::usual_method;
use super::temporary_folder;
use crate::args::{BenchArgs, MethodName, PaperTable, threads};
use crate::error::{Failure, Result};
use crate::progress::Writing;
use crate::stop::Stop;
use crate::table;
use crate::ui::{self, Ui};

/// What a paper says of a shape; seconds a step and MB at the peak.
struct Row {
    preset: Preset,
    tokens: usize,
    methods: &'static [Measured],
}

/// A method's figures in a paper; none where it does not say.
struct Measured {
    name: &'static str,
    how: How,
    seconds: Option<f64>,
    megabytes: Option<f64>,
}

/// The same method here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Mezo,
    /// Exact, within the budget of the table.
    Exact,
    /// Exact, with the smallest plan.
    ExactMin,
    /// A half of the layers a step.
    HalfLayers,
}

const fn measured(name: &'static str, how: How, seconds: f64, megabytes: f64) -> Measured {
    Measured { name, how, seconds: Some(seconds), megabytes: Some(megabytes) }
}

const fn megabytes_only(name: &'static str, how: How, megabytes: f64) -> Measured {
    Measured { name, how, seconds: None, megabytes: Some(megabytes) }
}

/// MeBP (arXiv 2510.03425): iPhone 15 Pro Max, rank 8, batch 1; the paper does not say how long its
/// sequences are.
const MEBP: &[Row] = &[
    mebp(
        Preset::Qwen25B0_5,
        &[measured("MeZO", How::Mezo, 2.68, 319.0), measured("MeBP", How::Exact, 3.85, 320.0)],
    ),
    mebp(
        Preset::Qwen25B1_5,
        &[measured("MeZO", How::Mezo, 5.47, 452.0), measured("MeBP", How::Exact, 9.09, 460.0)],
    ),
    mebp(
        Preset::Qwen25B3,
        &[measured("MeZO", How::Mezo, 10.28, 554.0), measured("MeBP", How::Exact, 17.96, 662.0)],
    ),
    mebp(
        Preset::Gemma3B1,
        &[measured("MeZO", How::Mezo, 4.88, 564.0), measured("MeBP", How::Exact, 9.48, 569.0)],
    ),
    mebp(
        Preset::Gemma3B4,
        &[measured("MeZO", How::Mezo, 16.86, 962.0), measured("MeBP", How::Exact, 28.58, 1029.0)],
    ),
];

/// MeSP (arXiv 2602.13069): a newer iPhone, rank 8, batch 1, SGD.
const MESP: &[Row] = &[
    mesp(
        Preset::Qwen25B0_5,
        128,
        &[megabytes_only("MeBP", How::Exact, 252.7), megabytes_only("MeSP", How::ExactMin, 110.7)],
    ),
    mesp(
        Preset::Qwen25B0_5,
        256,
        &[measured("MeBP", How::Exact, 0.68, 360.8), measured("MeSP", How::ExactMin, 0.86, 136.2)],
    ),
    mesp(
        Preset::Qwen25B0_5,
        512,
        &[megabytes_only("MeBP", How::Exact, 582.4), megabytes_only("MeSP", How::ExactMin, 245.8)],
    ),
    mesp(
        Preset::Qwen25B0_5,
        1024,
        &[megabytes_only("MeBP", How::Exact, 1050.3), megabytes_only("MeSP", How::ExactMin, 513.6)],
    ),
    mesp(
        Preset::Qwen25B1_5,
        256,
        &[measured("MeBP", How::Exact, 1.66, 516.2), measured("MeSP", How::ExactMin, 2.17, 262.6)],
    ),
    mesp(
        Preset::Qwen25B3,
        256,
        &[measured("MeBP", How::Exact, 3.21, 637.6), measured("MeSP", How::ExactMin, 4.09, 368.4)],
    ),
];

/// LCSB (arXiv 2602.13073): up to 1.40 times as fast as MeBP; no table of its seconds is known to us.
const LCSB: &[Row] = &[lcsb(Preset::Qwen25B0_5), lcsb(Preset::Qwen25B1_5), lcsb(Preset::Gemma3B1)];

const fn mebp(preset: Preset, methods: &'static [Measured]) -> Row {
    Row { preset, tokens: 256, methods }
}

const fn mesp(preset: Preset, tokens: usize, methods: &'static [Measured]) -> Row {
    Row { preset, tokens, methods }
}

const fn lcsb(preset: Preset) -> Row {
    const METHODS: &[Measured] = &[
        Measured { name: "exact", how: How::ExactMin, seconds: None, megabytes: None },
        Measured { name: "LCSB, half", how: How::HalfLayers, seconds: None, megabytes: None },
    ];
    Row { preset, tokens: 256, methods: METHODS }
}

/// What was measured of a row's method.
#[derive(Debug, Serialize)]
struct Found {
    model: &'static str,
    tokens: usize,
    rank: usize,
    method: &'static str,
    paper_seconds: Option<f64>,
    paper_megabytes: Option<f64>,
    memory: &'static str,
    seconds: f64,
    /// Each round's.
    seconds_of_rounds: Vec<f64>,
    /// Over two forwards with the loss of every token.
    over_two_forwards: f64,
    /// Over the first method's of the row.
    over_first: f64,
    planned_bytes: u64,
    peak_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    table: &'static str,
    threads: usize,
    rows: Vec<Found>,
}

/// Measures a paper's rows and prints both.
pub fn run(bench_args: &BenchArgs, stop: &Stop) -> Result<()> {
    let (args, ui) = (&bench_args.table, Ui::new(bench_args.output));
    let (table, rows, rank, optimizer) = match args.table.expect("it was asked for") {
        PaperTable::Mebp => ("mebp", MEBP, 8, OptimizerConfig::adamw(0.01)),
        PaperTable::Mesp => ("mesp", MESP, 8, OptimizerConfig::sgd(0.0)),
        PaperTable::Lcsb => ("lcsb", LCSB, 16, OptimizerConfig::adamw(0.01)),
    };
    let models = args.models.as_deref().ok_or_else(|| {
        Failure::usage(
            "--table needs --models DIR: a folder for models of the papers' shapes, which are made \
             there where they are missing (0.3 to 2.2 GB each)",
        )
    })?;
    std::fs::create_dir_all(models).map_err(Failure::file("create", models))?;
    let threads = threads(bench_args.threads.first().copied());
    let wanted = |row: &&Row| args.presets.is_empty() || args.presets.contains(&row.preset);
    let scratch = temporary_folder()?;
    let mut found: Vec<Found> = Vec::new();
    for row in rows.iter().filter(wanted) {
        let base = Base::open(model(models, row.preset, stop)?)?;
        let first = found.len();
        for method in row.methods {
            ui::warn(&format!("{}, {} tokens: {}", row.preset.name(), row.tokens, method.name));
            let (memory, memory_name) = match method.how {
                How::Exact => (MemoryBudget::Unlimited, "unlimited"),
                How::Mezo | How::ExactMin | How::HalfLayers => (MemoryBudget::Min, "min"),
            };
            let case = BenchCase { tokens: row.tokens, rank, threads, memory };
            let settings = BenchSettings {
                method: method.how.method(&base),
                lora: LoraConfig::default(),
                optimizer: match method.how {
                    How::Mezo => OptimizerConfig::sgd(0.0),
                    _ => optimizer,
                },
                rounds: bench_args.rounds as usize,
                spool: Some(scratch.path().to_owned()),
            };
            let report = bench(&base, case, &settings, stop.flag())?;
            found.push(Found::of(row, method, memory_name, &report));
            let of_first = found[first].seconds;
            let last = found.last_mut().expect("just pushed");
            last.over_first = last.seconds / of_first;
        }
    }
    ui.say(&text(&found));
    ui.report(&Report { table, threads, rows: found })
}

/// The file of a preset's shapes, made where it is missing.
fn model(folder: &Path, preset: Preset, stop: &Stop) -> Result<PathBuf> {
    let path = folder.join(format!("{}.gguf", preset.name()));
    if !path.exists() {
        let mut writing = Writing::new();
        let written = preset.shape().write(&path, 0, stop.flag(), &mut |a, b| writing.at(a, b));
        writing.clear();
        written.map_err(smidgen::Error::from)?;
    }
    Ok(path)
}

impl How {
    fn method(self, base: &Base) -> Method {
        let name = match self {
            Self::Mezo => MethodName::Mezo,
            Self::Exact | Self::ExactMin => MethodName::Exact,
            Self::HalfLayers => MethodName::Lcsb,
        };
        usual_method(name, base.info().layers)
    }
}

impl Found {
    fn of(row: &Row, method: &Measured, memory: &'static str, report: &BenchReport) -> Self {
        Self {
            model: row.preset.name(),
            tokens: row.tokens,
            rank: report.case.rank,
            method: method.name,
            paper_seconds: method.seconds,
            paper_megabytes: method.megabytes,
            memory,
            seconds: report.seconds(),
            seconds_of_rounds: report.rounds.iter().map(|r| r.step.as_secs_f64()).collect(),
            over_two_forwards: report.forwards(),
            over_first: 1.0,
            planned_bytes: report.planned_bytes,
            peak_bytes: report.peak_bytes,
        }
    }
}

/// The table: a line a method.
fn text(found: &[Found]) -> String {
    let head = [
        "model",
        "tokens",
        "method",
        "paper s",
        "here s",
        "paper MB",
        "here MB",
        "--memory",
        "/ 2 forwards",
        "/ first",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let or_dash = |x: Option<f64>, digits: usize| {
        x.map_or_else(|| "–".to_owned(), |x| format!("{x:.digits$}"))
    };
    for row in found {
        rows.push(vec![
            row.model.to_owned(),
            row.tokens.to_string(),
            row.method.to_owned(),
            or_dash(row.paper_seconds, 2),
            format!("{:.2}", row.seconds),
            or_dash(row.paper_megabytes, 1),
            format!("{:.1}", row.peak_bytes as f64 / 1e6),
            row.memory.to_owned(),
            format!("{:.3}", row.over_two_forwards),
            format!("{:.3}", row.over_first),
        ]);
    }
    table::right(&rows)
}
