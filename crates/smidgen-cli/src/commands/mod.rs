//! The commands, a file each, and what several of them need.

pub mod bench;
pub mod chat;
pub mod compare;
pub mod data;
pub mod demo;
pub mod eval;
pub mod export;
pub mod fuse;
pub mod generate;
mod out_file;
mod papers;
pub mod plan;
pub mod quantize;
pub mod replay;
mod run_data;
mod samples;
pub mod serve;
mod settings;
mod side_link;
mod synth;
pub mod train;

use std::path::Path;

use smidgen::{Adapter, Base, DataOptions, Dataset, OpenData, TokenFileKind, Tuning, open_data};

use crate::args::ModelArgs;
use crate::error::{Failure, Result};
use crate::progress::Preparing;
use crate::stop::Stop;
use crate::ui::{self, Ui, count, grouped};

/// Opens the model that `--model` names, with the tokenizer that `--tokenizer` names.
fn open_model(args: &ModelArgs) -> Result<Base> {
    let base = open_base(&args.model)?;
    Ok(match &args.tokenizer {
        Some(tokenizer) => base.with_tokenizer_json(tokenizer),
        None => base,
    })
}

/// Opens the model that `--model` names.
fn open_base(path: &Path) -> Result<Base> {
    let text = path.display();
    if path.is_dir() {
        return Err(Failure::usage(format!(
            "--model {text}: a GGUF file is expected and this is a folder; make one of the checkpoint \
             with smidgen quantize {text} -o model.gguf, or give the .gguf file in it"
        )));
    }
    let parts = path.components().count();
    if !path.exists()
        && parts == 2
        && path.is_relative()
        && path.extension().is_none_or(|e| e != "gguf")
    {
        return Err(Failure::usage(format!(
            "--model {text}: a GGUF file is expected and nothing is there; if this is a name on a \
             model hub, download a GGUF file of that model and give its path"
        )));
    }
    Ok(Base::open(path)?)
}

/// Opens data, with progress where it takes long.
fn open(
    base: &Base,
    input: &Path,
    options: &DataOptions,
    out: &Path,
    stop: &Stop,
) -> Result<OpenData> {
    let mut preparing = Preparing::new();
    let opened = open_data(base, input, options, out, stop.flag(), &mut |p| preparing.at(p));
    preparing.end();
    Ok(opened?)
}

/// Tells on stderr where `--chunks` asks for more than there is, and returns what it told.
fn chunks_note(options: &DataOptions, data: &Dataset) -> Option<String> {
    let chunks = options.window.chunks.filter(|&chunks| chunks > data.len())?;
    let (there, what) = match data.file().header().kind {
        TokenFileKind::Text => (data.len(), "whole window"),
        TokenFileKind::Samples => (data.len(), "sample"),
    };
    let note = format!("--chunks {chunks}: the data has {}", count(there as u64, what));
    ui::warn(&format!("note: {note}"));
    Some(note)
}

/// What `--adapter` names, or nothing; what is worth telling goes to `notes`.
fn open_adapter(base: &Base, folder: Option<&Path>, notes: &mut Vec<String>) -> Result<Tuning> {
    let Some(folder) = folder else { return Ok(Adapter::none(base).into()) };
    let (tuning, said) = Tuning::load(base, folder)?;
    notes.extend(said.into_iter().map(|note| note.0));
    Ok(tuning)
}

fn say_model(ui: &Ui, base: &Base) {
    let info = base.info();
    ui.say(&format!(
        "model     {} ({}, {} layers of {}, vocabulary {})",
        info.name,
        info.family,
        info.layers,
        info.hidden,
        grouped(info.vocabulary as u64)
    ));
}

fn say_notes(ui: &Ui, notes: &[String]) {
    for note in notes {
        ui.say(&format!("note      {note}"));
    }
}

/// A folder for files that end with the command.
fn temporary_folder() -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("smidgen-")
        .tempdir()
        .map_err(Failure::file("make a folder in", &std::env::temp_dir()))
}
