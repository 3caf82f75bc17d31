//! `smidgen chat`: a conversation in the form that the model was trained on.

use std::io::{self, BufRead, IsTerminal};
use std::time::Instant;

use smidgen::{
    Base, ChatTemplate, Conversation, Evaluator, GenerateConfig, Kind, Message, Tokenizer, Tuning,
};

use super::generate::{GenerateReport, PROMPT_ROWS, answer, ends};
use super::{open_adapter, open_model};
use crate::args::{ConversationArgs, OutputArgs};
use crate::error::{Failure, Result};
use crate::stop::Stop;
use crate::ui::{self, Ui};

/// Tokens of the longest conversation where none is named.
const CONTEXT: usize = 4096;

/// A conversation is not made shorter than this to fit the memory.
const SHORTEST: usize = 256;

/// A line that begins the conversation anew.
const CLEAR: &str = "/clear";

pub fn run(args: &ConversationArgs, stop: &Stop) -> Result<()> {
    let out = Ui::new(OutputArgs { json: args.json });
    let base = args.template.apply(open_model(&args.model)?);
    let mut notes = Vec::new();
    let adapter = open_adapter(&base, args.adapter.as_deref(), &mut notes)?;
    notes.iter().for_each(|note| ui::warn(&format!("note: {note}")));
    let tokenizer = base.tokenizer()?;
    let template = base.chat_template(&tokenizer)?.ok_or_else(|| {
        Failure::usage(
            "the model file has no chat template; give one with --chat-template, or go on with a \
             plain text: smidgen generate",
        )
    })?;
    let (mut evaluator, context) = evaluator(args, &base, adapter)?;
    let mut talk = Talk {
        conversation: evaluator.conversation()?,
        messages: system(args),
        stop: ends(&tokenizer, Some(&template)),
        args,
        tokenizer: &tokenizer,
        template: &template,
        context,
    };
    let Some(prompt) = &args.prompt else {
        return talk.lines(&mut evaluator, &out, stop);
    };
    let begin = Instant::now();
    let (ids, config) = talk.ask(prompt)?;
    let made = talk.answer(&mut evaluator, &ids, &config, &out, stop)?;
    let seconds = begin.elapsed().as_secs_f64();
    let adapter = args.adapter.as_deref();
    let mut report = GenerateReport::new(&mut evaluator, &base, adapter, made, seconds);
    report.asked(prompt, ids.len(), notes);
    out.report(&report)
}

/// The model with room for as long a conversation as was asked for, or as there is memory for.
fn evaluator<'a>(
    args: &ConversationArgs,
    base: &'a Base,
    mut adapter: Tuning,
) -> Result<(Evaluator<'a>, usize)> {
    let most = base.info().context_length;
    let mut context = args.context.map_or(CONTEXT, |n| n as usize).min(most);
    let (threads, budget) = (args.machine.threads(), args.machine.memory().resolve());
    loop {
        let rows = context.min(PROMPT_ROWS);
        match Evaluator::to_generate(base, adapter, rows, context, threads, budget) {
            Ok(evaluator) => return Ok((evaluator, context)),
            Err(error)
                if args.context.is_none()
                    && error.kind() == Kind::Budget
                    && context / 2 >= SHORTEST =>
            {
                context /= 2;
                adapter = open_adapter(base, args.adapter.as_deref(), &mut Vec::new())?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn system(args: &ConversationArgs) -> Vec<Message> {
    let system = args.system.as_ref();
    system
        .map(|text| Message { role: "system".into(), content: text.clone() })
        .into_iter()
        .collect()
}

/// A conversation with a person.
struct Talk<'a> {
    args: &'a ConversationArgs,
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    conversation: Conversation,
    messages: Vec<Message>,
    /// Tokens that end an answer.
    stop: Vec<u32>,
    /// Tokens of the longest conversation.
    context: usize,
}

impl Talk<'_> {
    /// A line, an answer, and so on, to the end of the input.
    fn lines(&mut self, evaluator: &mut Evaluator<'_>, out: &Ui, stop: &Stop) -> Result<()> {
        let is_person = io::stdin().is_terminal();
        if is_person {
            ui::warn(&format!("{CLEAR} begins anew, Ctrl-D ends."));
        }
        let mut line = String::new();
        loop {
            if is_person {
                out.put("> ", "");
            }
            line.clear();
            let read = io::stdin().lock().read_line(&mut line);
            if read.map_err(|e| Failure::File(format!("cannot read the input: {e}")))? == 0 {
                return Ok(());
            }
            match line.trim() {
                "" => continue,
                CLEAR => self.messages = system(self.args),
                said => {
                    let before = self.messages.len();
                    match self.ask(said) {
                        Ok((ids, config)) => {
                            self.answer(evaluator, &ids, &config, out, stop)?;
                        }
                        Err(failure) => {
                            self.messages.truncate(before);
                            ui::warn(&format!("error: {failure}"));
                        }
                    }
                }
            }
        }
    }

    /// Adds what the person says. The whole text for the model to answer, and how.
    fn ask(&mut self, said: &str) -> Result<(Vec<u32>, GenerateConfig)> {
        self.messages.push(Message { role: "user".into(), content: said.to_owned() });
        let text = self.template.prompt(&self.messages, None).map_err(smidgen::Error::from)?;
        let ids = self.tokenizer.encode(&text).map_err(smidgen::Error::from)?;
        let room = self.context.saturating_sub(ids.len());
        if room == 0 {
            return Err(Failure::usage(format!(
                "the conversation has grown to {} tokens and there is room for {}: {CLEAR} begins \
                 anew, --context and --memory give more room",
                ids.len(),
                self.context
            )));
        }
        Ok((ids, self.args.sample.config(room, self.stop.clone())))
    }

    /// The model's answer, which is shown as it comes and becomes part of the conversation.
    fn answer(
        &mut self,
        evaluator: &mut Evaluator<'_>,
        ids: &[u32],
        config: &GenerateConfig,
        out: &Ui,
        stop: &Stop,
    ) -> Result<(String, Vec<u32>)> {
        let (talk, json) = (&mut self.conversation, self.args.json);
        let show = |part: &str| {
            if !json {
                out.put(part, "");
            }
        };
        let made = answer(evaluator, talk, self.tokenizer, ids, config, stop.flag(), &show)?;
        show("\n");
        self.messages.push(Message { role: "assistant".into(), content: made.0.clone() });
        Ok(made)
    }
}
