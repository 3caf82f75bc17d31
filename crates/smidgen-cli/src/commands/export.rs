//! `smidgen export`.

use std::time::Instant;

use serde::Serialize;
use smidgen::{Adapter, GgufKind, export_gguf};

use super::out_file::check_out;
use super::{open_base, say_model, say_notes};
use crate::args::{ExportArgs, ExportFormat};
use crate::error::Result;
use crate::report::path_text;
use crate::ui::{Ui, megabytes};

#[derive(Debug, Serialize)]
struct ExportReport {
    model: String,
    adapter_path: String,
    output: String,
    bytes: u64,
    seconds: f64,
    notes: Vec<String>,
}

/// Writes an adapter in another program's form.
pub fn run(args: &ExportArgs) -> Result<()> {
    let ExportFormat::Gguf = args.format;
    let (ui, out) = (Ui::new(args.out), args.output.as_path());
    check_out(out, &args.model, GgufKind::Adapter)?;
    let begin = Instant::now();
    let base = open_base(&args.model)?;
    let (mut adapter, said) = Adapter::load(&base, &args.adapter)?;
    let notes: Vec<String> = said.into_iter().map(|note| note.0).collect();
    let bytes = export_gguf(&base, &mut adapter, out)?;
    say_model(&ui, &base);
    say_notes(&ui, &notes);
    ui.say(&format!("written   {} in {}", megabytes(bytes), out.display()));
    ui.report(&ExportReport {
        model: path_text(base.path()),
        adapter_path: path_text(&args.adapter),
        output: path_text(out),
        bytes,
        seconds: begin.elapsed().as_secs_f64(),
        notes,
    })
}
