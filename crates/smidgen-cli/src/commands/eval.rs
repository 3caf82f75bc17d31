//! `smidgen eval`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use smidgen::{DataFiles, Dataset, Evaluator, Sequence, write_logits};

use super::train::say_data;
use super::{chunks_note, open, open_adapter, open_model, say_model, say_notes, temporary_folder};
use crate::args::EvalArgs;
use crate::error::{Failure, Result};
use crate::progress::Progress;
use crate::report::{Report, path_text};
use crate::stop::Stop;
use crate::ui::{Ui, grouped};

pub fn run(args: &EvalArgs, stop: &Stop) -> Result<()> {
    let ui = Ui::new(args.out);
    let base = args.window.chat.template.apply(open_model(&args.model)?);
    let mut notes = Vec::new();
    let adapter = open_adapter(&base, args.adapter.as_deref(), &mut notes)?;
    let input = scored_file(&args.data)?;
    let scratch = temporary_folder()?;
    let tokens = scratch.path().join("eval.tokens");
    let options = args.window.options(args.machine.memory());
    let opened = open(&base, &input, &options, &tokens, stop)?;
    let data = opened.dataset;
    say_model(&ui, &base);
    say_data(&ui, &input, &data);
    say_notes(&ui, &notes);
    notes.extend(chunks_note(&options, &data));

    let (rows, budget) = (data.max_len(), args.machine.memory().resolve());
    let mut evaluator = Evaluator::new(&base, adapter, rows, rows, args.machine.threads(), budget)?;
    let mut report = Report::new(&base, evaluator.plan());
    report.notes = notes;
    report.adapter_path = args.adapter.as_deref().map(path_text);
    report.prepared(opened.prepared.as_ref());
    let begin = Instant::now();
    let mut progress = Progress::new("sequence", data.len() as u64);
    let scored = evaluator.evaluate(&data, stop.flag(), &mut |done, all| {
        progress.at(done as u64, all as u64, String::new);
    });
    progress.clear();
    report.scored(scored?);
    report.seconds = Some(begin.elapsed().as_secs_f64());
    if let Some(path) = &args.logits {
        let ids = first_ids(&data)?;
        write_logits(&base, &mut evaluator, &ids, path)?;
        ui.say(&format!(
            "logits    {} x {} in {}",
            ids.len(),
            base.info().vocabulary,
            path.display()
        ));
    }
    report.measure(evaluator.peak_bytes());
    tell(&ui, &report);
    ui.report(&report)
}

fn tell(ui: &Ui, report: &Report) {
    let (Some(loss), Some(perplexity), Some(accuracy)) =
        (report.loss, report.perplexity, report.accuracy)
    else {
        return;
    };
    ui.say(&format!(
        "loss      {loss:.4} nats a token (perplexity {perplexity:.3}), accuracy {accuracy:.4}"
    ));
    let measured = report
        .peak_memory_bytes
        .map_or("not measured here".to_owned(), |peak| format!("measured {}", grouped(peak)));
    ui.say(&format!("peak      planned {} bytes, {measured}", grouped(report.planned_peak_bytes)));
}

/// A file as it is; of a folder its test file, else its valid file.
fn scored_file(path: &Path) -> Result<PathBuf> {
    let files = DataFiles::resolve(path).map_err(smidgen::Error::from)?;
    let of_folder = files.test.or(files.valid);
    let file = if path.is_dir() { of_folder } else { files.train };
    file.ok_or_else(|| {
        Failure::usage(format!(
            "{}: the folder has neither a test nor a valid file; give the file to score",
            path.display()
        ))
    })
}

fn first_ids(data: &Dataset) -> Result<Vec<u32>> {
    let mut sequence = Sequence::default();
    data.read(0, &mut sequence).map_err(smidgen::Error::from)?;
    Ok(sequence.ids)
}
