//! `smidgen generate`, and what all answers are made with.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;
use smidgen::{Base, ChatTemplate, Conversation, Evaluator, GenerateConfig, Tokenizer};

use super::{open_adapter, open_model};
use crate::args::GenerateArgs;
use crate::error::{Failure, Result};
use crate::report::path_text;
use crate::stop::Stop;
use crate::ui::{self, Ui};

/// Tokens of a prompt that go through the model at once, at most.
pub const PROMPT_ROWS: usize = 256;

/// The report of generate, and of chat with one prompt.
#[derive(Debug, Default, Serialize)]
pub struct GenerateReport {
    model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter_path: Option<String>,
    prompt: String,
    text: String,
    prompt_tokens: usize,
    tokens: usize,
    ids: Vec<u32>,
    seconds: f64,
    planned_peak_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_memory_bytes: Option<u64>,
    weight_window_bytes: u64,
    notes: Vec<String>,
}

pub fn run(args: &GenerateArgs, stop: &Stop) -> Result<()> {
    let out = Ui::new(args.out);
    let base = open_model(&args.model)?;
    let mut notes = Vec::new();
    let adapter = open_adapter(&base, args.adapter.as_deref(), &mut notes)?;
    notes.iter().for_each(|note| ui::warn(&format!("note: {note}")));
    let tokenizer = base.tokenizer()?;
    let ids = prompt_ids(args, &tokenizer)?;
    let context = base.info().context_length;
    let room = context.checked_sub(ids.len()).filter(|&room| room > 0).ok_or_else(|| {
        let tokens = ids.len();
        Failure::usage(format!(
            "the prompt has {tokens} tokens and the model was trained for {context}; shorten it"
        ))
    })?;
    let config = args.sample.config(room, ends(&tokenizer, None));
    let rows = ids.len().min(PROMPT_ROWS);
    let positions = ids.len() + config.max_tokens;
    let (threads, budget) = (args.machine.threads(), args.machine.memory().resolve());
    let mut evaluator = Evaluator::to_generate(&base, adapter, rows, positions, threads, budget)?;
    let begin = Instant::now();
    let text = |text: &str| {
        if !args.out.json {
            out.put(text, "")
        }
    };
    text(&args.prompt);
    let mut conversation = evaluator.conversation()?;
    let talk = &mut conversation;
    let made = answer(&mut evaluator, talk, &tokenizer, &ids, &config, stop.flag(), &text)?;
    text("\n");
    let adapter = args.adapter.as_deref();
    let seconds = begin.elapsed().as_secs_f64();
    let mut report = GenerateReport::new(&mut evaluator, &base, adapter, made, seconds);
    report.asked(&args.prompt, ids.len(), notes);
    out.report(&report)
}

impl GenerateReport {
    /// A report on an answer.
    pub fn new(
        evaluator: &mut Evaluator<'_>,
        base: &Base,
        adapter: Option<&Path>,
        (text, ids): (String, Vec<u32>),
        seconds: f64,
    ) -> Self {
        Self {
            model: path_text(base.path()),
            adapter_path: adapter.map(path_text),
            text,
            tokens: ids.len(),
            ids,
            seconds,
            planned_peak_bytes: evaluator.plan().peak_bytes,
            peak_memory_bytes: Some(evaluator.peak_bytes()).filter(|&bytes| bytes > 0),
            weight_window_bytes: evaluator.plan().weight_bytes,
            ..Self::default()
        }
    }

    /// Puts in what was asked, in so many tokens, and what is worth telling.
    pub fn asked(&mut self, prompt: &str, tokens: usize, notes: Vec<String>) {
        (self.prompt, self.prompt_tokens, self.notes) = (prompt.to_owned(), tokens, notes);
    }
}

/// What the model says after the text `ids`: its text and its tokens. `show` gets the text in
/// parts, as it comes.
pub fn answer(
    evaluator: &mut Evaluator<'_>,
    conversation: &mut Conversation,
    tokenizer: &Tokenizer,
    ids: &[u32],
    config: &GenerateConfig,
    cancel: &AtomicBool,
    show: &dyn Fn(&str),
) -> Result<(String, Vec<u32>)> {
    let mut decoder = tokenizer.stream_decoder();
    let mut text = String::new();
    let made = evaluator.reply(conversation, ids, config, cancel, &mut |id| {
        let part = decoder.push(id);
        show(&part);
        text += &part;
    })?;
    let rest = decoder.finish();
    show(&rest);
    text += &rest;
    Ok((text, made))
}

/// The tokens that end an answer.
pub fn ends(tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Vec<u32> {
    let end_of_turn = template.and_then(|template| template.end_of_turn(tokenizer));
    tokenizer.eos().into_iter().chain(end_of_turn).collect()
}

fn prompt_ids(args: &GenerateArgs, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let bos = match tokenizer.bos() {
        Some(bos) if args.bos || (tokenizer.adds_bos() && !args.no_bos) => Some(bos),
        None if args.bos => return Err(Failure::usage("--bos: the model's tokenizer has no BOS")),
        _ => None,
    };
    let mut ids: Vec<u32> = bos.into_iter().collect();
    ids.extend(tokenizer.encode(&args.prompt).map_err(smidgen::Error::from)?);
    Ok(ids)
}
