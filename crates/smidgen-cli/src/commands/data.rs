//! `smidgen data`: what a file will be trained on.

use serde::Serialize;
use smidgen::{
    Base, DataFiles, Dataset, Packs, Sequence, TokenFileHeader, Tokenizer, is_token_file,
};

use super::run_data::{check_pack, packed};
use super::{chunks_note, open, open_model, temporary_folder};
use crate::args::DataArgs;
use crate::error::{Failure, Result};
use crate::report::path_text;
use crate::stop::Stop;
use crate::ui::{Ui, count, grouped};

#[derive(Debug, Serialize)]
struct DataReport {
    data: String,
    model: String,
    tokens: u64,
    sequences: usize,
    targets: u64,
    /// Of the sequences' tokens.
    targets_share: f64,
    length_min: usize,
    length_median: usize,
    length_max: usize,
    truncated: usize,
    dropped: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    packed: Option<PackReport>,
    vocab_size: u32,
    tokenizer_fingerprint: String,
    /// The file or model whose template wrote the chats; null where none is one, or the template is
    /// neither the given one nor the model's.
    chat_template: Option<String>,
    chat_template_fingerprint: Option<String>,
    first_ids: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prepare_planned_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prepare_peak_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_path: Option<String>,
    notes: Vec<String>,
}

/// Of --pack.
#[derive(Debug, Serialize)]
struct PackReport {
    packs: usize,
    /// Tokens that a pack has room for.
    capacity: usize,
    /// Tokens of all samples, after truncation, BOS included.
    tokens: u64,
    /// Of all packs' room.
    filled_share: f64,
    /// Of the pack that has the most of them.
    most_samples: usize,
}

impl From<&Packs> for PackReport {
    fn from(packs: &Packs) -> Self {
        Self {
            packs: packs.len(),
            capacity: packs.capacity(),
            tokens: packs.tokens(),
            filled_share: packs.filled(),
            most_samples: packs.most_samples(),
        }
    }
}

pub fn run(args: &DataArgs, stop: &Stop) -> Result<()> {
    let ui = Ui::new(args.output);
    let base = args.window.chat.template.apply(open_model(&args.model)?);
    let files = DataFiles::resolve(&args.data).map_err(smidgen::Error::from)?;
    let input = files.train.ok_or_else(|| {
        Failure::usage(format!(
            "{}: the folder has no train file; give the file to look at",
            args.data.display()
        ))
    })?;
    check_pack(args.pack, &input)?;
    let is_tokens = is_token_file(&input);
    if let Some(out) = &args.out {
        if is_tokens {
            return Err(Failure::usage("--out: the data is a token file already"));
        }
        if out.extension().is_none_or(|e| e != "tokens") {
            let out = out.display();
            return Err(Failure::usage(format!(
                "--out {out}: a token file's name ends in .tokens"
            )));
        }
    }
    let scratch = temporary_folder()?;
    let out = args.out.clone().unwrap_or_else(|| scratch.path().join("data.tokens"));
    let options = args.window.options(args.memory);
    let opened = open(&base, &input, &options, &out, stop)?;
    let data = opened.dataset;
    let summary = data.summary().map_err(smidgen::Error::from)?;
    let longest = options.window.longest();
    let packs = args.pack.then(|| Packs::new(&data, longest)).transpose();
    let packs = packs.map_err(smidgen::Error::from)?;
    let header = data.file().header();
    let report = DataReport {
        data: path_text(&input),
        model: path_text(base.path()),
        tokens: summary.tokens,
        sequences: summary.sequences,
        targets: summary.targets,
        targets_share: summary.targets as f64 / summary.sequence_tokens as f64,
        length_min: summary.length_min,
        length_median: summary.length_median,
        length_max: summary.length_max,
        truncated: summary.truncated,
        dropped: summary.dropped,
        packed: packs.as_ref().map(PackReport::from),
        vocab_size: header.vocab_size,
        tokenizer_fingerprint: header.fingerprint.to_string(),
        chat_template: chat_template(&base, header)?,
        chat_template_fingerprint: header.chat_template.map(|name| name.to_string()),
        first_ids: summary.first_ids,
        prepare_planned_bytes: opened.prepared.as_ref().map(|p| p.planned_bytes),
        prepare_peak_bytes: opened.prepared.map(|p| p.peak_bytes),
        tokens_path: args.out.as_deref().map(path_text),
        notes: chunks_note(&options, &data).into_iter().collect(),
    };
    tell(&ui, &report);
    if let Some(packs) = &packs {
        ui.say(&format!("packed: {}", packed(&data, packs)));
    }
    if args.show > 0 {
        show(&ui, &data, &base.tokenizer()?, args.show)?;
    }
    ui.report(&report)
}

/// Where the template stands that wrote the chats of a token file.
fn chat_template(base: &Base, header: &TokenFileHeader) -> Result<Option<String>> {
    let Some(made_with) = header.chat_template else { return Ok(None) };
    let source = base.chat_template_source()?;
    let source = source.filter(|source| source.fingerprint() == made_with);
    Ok(source.map(|source| source.origin().to_owned()))
}

fn tell(ui: &Ui, report: &DataReport) {
    let (tokens, learned) = (count(report.tokens, "token"), grouped(report.targets));
    let share = 100.0 * report.targets_share;
    ui.say(&format!("{}: {tokens}, {learned} to be learned ({share:.1} %)", report.data));
    if let Some(origin) = &report.chat_template {
        ui.say(&format!("chats written with the template of {origin}"));
    }
    ui.say(&format!(
        "{} of {} to {} tokens, the median {}; {} truncated, {} left out",
        count(report.sequences as u64, "sequence"),
        report.length_min,
        report.length_max,
        report.length_median,
        report.truncated,
        report.dropped
    ));
    if let Some(path) = &report.tokens_path {
        ui.say(&format!("prepared: {path}"));
    }
}

/// The first sequences, what is not learned dimmed, or marked where there is no terminal.
fn show(ui: &Ui, data: &Dataset, tokenizer: &Tokenizer, sequences: usize) -> Result<()> {
    let shown = sequences.min(data.len());
    let styled = ui.is_styled();
    if shown > 0 && !styled {
        ui.say("\n+ is learned, - is not:");
    }
    let mut sequence = Sequence::default();
    for index in 0..shown {
        data.read(index, &mut sequence).map_err(smidgen::Error::from)?;
        ui.say(&format!("\nsequence {}, {}", index + 1, count(sequence.ids.len() as u64, "token")));
        let mut line = String::new();
        for (text, learned) in runs(&sequence, tokenizer) {
            match (styled, learned) {
                (true, true) => line += &printable(&text),
                (true, false) => line += &format!("\x1b[2m{}\x1b[22m", printable(&text)),
                (false, _) => {
                    let sign = if learned { '+' } else { '-' };
                    // A newline ends the line that it stands on.
                    let text = text.strip_suffix('\n').unwrap_or(&text);
                    text.split('\n').for_each(|l| line += &format!("{sign} {}\n", printable(l)));
                }
            }
        }
        ui.say(line.trim_end_matches('\n'));
    }
    Ok(())
}

/// The text of each run of tokens that are all learned or all not.
fn runs(sequence: &Sequence, tokenizer: &Tokenizer) -> Vec<(String, bool)> {
    let mut runs = Vec::new();
    let mut start = 0;
    for end in 1..=sequence.ids.len() {
        let learned = sequence.targets[start];
        if end == sequence.ids.len() || sequence.targets[end] != learned {
            runs.push((tokenizer.decode(&sequence.ids[start..end]), learned));
            start = end;
        }
    }
    runs
}

/// Text without the control characters that a terminal would obey.
fn printable(text: &str) -> String {
    let safe = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.chars().map(safe).collect()
}
