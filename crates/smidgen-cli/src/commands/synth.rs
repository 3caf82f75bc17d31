//! `smidgen bench synth`: models to measure on.

use std::time::Instant;

use serde::Serialize;
use smidgen::Base;

use super::say_model;
use crate::args::SynthArgs;
use crate::error::{Failure, Result};
use crate::progress::Progress;
use crate::report::path_text;
use crate::stop::Stop;
use crate::ui::{Ui, megabytes};

const MB: u64 = 1_000_000;

#[derive(Debug, Serialize)]
struct SynthReport {
    preset: &'static str,
    seed: u64,
    model: String,
    bytes: u64,
    seconds: f64,
}

/// Writes a model of true shapes with random weights.
pub fn run(args: &SynthArgs, stop: &Stop) -> Result<()> {
    let (path, text) = (args.out.as_path(), args.out.display());
    if path.symlink_metadata().is_ok() {
        return Err(Failure::usage(format!(
            "--out {text}: there is something already; remove it or give another name"
        )));
    }
    if path.file_name().is_none() {
        return Err(Failure::usage(format!("--out {text}: this is not a file's name")));
    }
    let ui = Ui::new(args.output);
    let begin = Instant::now();
    let mut progress = Progress::new("writing MB", 0);
    let mut told = None;
    let mut at = |done: u64, total: u64| {
        if told.replace(done / MB) != Some(done / MB) {
            progress.at(done / MB, total / MB, String::new);
        }
    };
    let bytes = args.preset.shape().write(path, args.seed, stop.flag(), &mut at);
    progress.clear();
    let bytes = bytes.map_err(smidgen::Error::from)?;
    let seconds = begin.elapsed().as_secs_f64();
    say_model(&ui, &Base::open(path)?);
    ui.say(&format!("written   {} in {text}, {seconds:.1} s", megabytes(bytes)));
    let (preset, model) = (args.preset.name(), path_text(path));
    ui.report(&SynthReport { preset, seed: args.seed, model, bytes, seconds })
}
