//! `smidgen bench synth`: models to measure on.

use std::time::Instant;

use serde::Serialize;
use smidgen::Base;

use super::say_model;
use crate::args::SynthArgs;
use crate::error::{Failure, Result};
use crate::progress::Writing;
use crate::report::path_text;
use crate::stop::Stop;
use crate::ui::{Ui, megabytes};

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
    let mut writing = Writing::new();
    let mut at = |done, total| writing.at(done, total);
    let bytes = args.preset.shape().write(path, args.seed, stop.flag(), &mut at);
    writing.clear();
    let bytes = bytes.map_err(smidgen::Error::from)?;
    let seconds = begin.elapsed().as_secs_f64();
    say_model(&ui, &Base::open(path)?);
    ui.say(&format!("written   {} in {text}, {seconds:.1} s", megabytes(bytes)));
    let (preset, model) = (args.preset.name(), path_text(path));
    ui.report(&SynthReport { preset, seed: args.seed, model, bytes, seconds })
}
