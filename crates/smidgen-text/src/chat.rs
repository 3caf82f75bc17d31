//! Chats as the text that a model was trained on: chat templates.
//!
//! A template is a small program in Jinja that a model brings along. What it sees and how it is run
//! is what transformers' `apply_chat_template` does; tests hold the two together byte for byte.
//! It is a program of others: its steps, its text and what its values take are bounded, all by the
//! size of the chat that it renders, and it sees no file, no clock and no other template. A template
//! that asks for more fails with a message. To that end it is written anew before it runs
//! ([`rewrite`]), and all that makes values asks for [`room`] first.

mod builtins;
mod functions;
mod generation;
mod operators;
mod rewrite;
mod room;
mod source;
mod spans;

use std::error::Error as _;
use std::io::{self, Write};
use std::iter;
use std::ops::Range;

use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, Output, State};

pub use source::ChatTemplateSource;

use crate::error::{Result, TextError};
use crate::jsonl;
use crate::tokenizer::Tokenizer;
use functions::{Refusal, raise_exception, strftime_now, tojson};

pub(crate) use generation::has_sentinel;

/// Instructions of the template that any chat may take.
const FUEL: u64 = 20_000;

/// Instructions more for each value in a chat: an object, a list, a string. Templates take 10 to 40.
const FUEL_PER_VALUE: u64 = 100;

/// Instructions that a prompt may take.
const PROMPT_FUEL: u64 = 1_000_000;

/// Bytes that a parsed template takes for each byte of its text.
const MEMORY_PER_BYTE: u64 = 16;

/// Bytes that the engine takes whatever the template, and those of chats that are no longer than
/// [`SHORT_PIECE_BYTES`](crate::SHORT_PIECE_BYTES).
const MEMORY: u64 = 128 << 10;

/// Bytes of the longest prompt that [`ChatTemplate::prompt`] makes.
const LONGEST_PROMPT: usize = 16 << 20;

/// A model's chat template, parsed for a tokenizer.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: ChatTemplateSource,
    /// Of the default template, and of that for chats with tools: whether it marks with
    /// `{% generation %}` what the model writes.
    marks: [bool; 2],
}

/// What someone said in a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or another that the template knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A chat as templates see it.
#[derive(Clone, Debug)]
pub(crate) struct Chat {
    /// Each a map with at least a `role`.
    pub messages: Vec<Value>,
    /// A list of functions' schemas, or none.
    pub tools: Value,
    /// The first message that is learned, if it is the assistant's: those before are a prompt.
    pub learned_from: usize,
}

/// A chat as text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rendering {
    pub text: String,
    /// The stretches of it that are learned, in bytes, ascending and apart.
    pub learned: Vec<Range<usize>>,
}

/// Why a chat has no rendering.
#[derive(Debug)]
pub(crate) enum ChatError {
    /// The template or the chat; what to tell.
    Chat(String),
    /// The text would be longer than was allowed.
    TooLong,
    /// The caller's word.
    Stopped(TextError),
}

/// Asked now and then whether to go on with a long chat.
pub(crate) type Tick<'a> = &'a mut dyn FnMut() -> Result<()>;

impl ChatTemplate {
    /// Parses `source` for chats of `tokenizer`, whose spellings of BOS and EOS it may write.
    ///
    /// # Errors
    /// It is no Jinja template, or uses a tag, filter or test that is not known.
    pub fn new(source: &ChatTemplateSource, tokenizer: &Tokenizer) -> Result<Self> {
        let mut environment = environment(tokenizer);
        let texts = [Some(&source.default), source.tool_use.as_ref()];
        let mut marks = [false; 2];
        for ((name, text), marks) in NAMES.into_iter().zip(texts).zip(&mut marks) {
            let Some(text) = text else { continue };
            if has_sentinel(text) {
                let what = "the chat template holds one of the characters U+FDD0 and U+FDD1";
                return Err(TextError::template(&source.origin, what));
            }
            // As Jinja reads it.
            let text = text.replace("\r\n", "\n").replace('\r', "\n");
            let rewritten = generation::rewrite(&text);
            *marks = rewritten.is_some();
            let added = rewrite::rewrite(&rewritten.unwrap_or(text))
                .and_then(|text| environment.add_template_owned(name, text));
            added.map_err(|error| {
                let what = format!("the chat template is broken, {}; {ANOTHER}", told(&error));
                TextError::template(&source.origin, what)
            })?;
        }
        environment.set_fuel(Some(PROMPT_FUEL));
        Ok(Self { environment, source: source.clone(), marks })
    }

    /// What it was parsed from.
    pub fn source(&self) -> &ChatTemplateSource {
        &self.source
    }

    /// The text that a model goes on from to answer `messages`: the chat so far and the beginning
    /// of the assistant's turn. `tools` is a JSON list of functions' schemas.
    ///
    /// # Errors
    /// `tools` is no list, or the template refuses the chat or fails on it.
    pub fn prompt(&self, messages: &[Message], tools: Option<&str>) -> Result<String> {
        let wrong = |what: String| TextError::template(&self.source.origin, what);
        let chat = Chat {
            messages: messages.iter().map(|m| jsonl::message(&m.role, &*m.content)).collect(),
            tools: tools.map_or(Ok(Value::from(())), jsonl::tools).map_err(wrong)?,
            learned_from: 0,
        };
        let mut text = match self.text(&chat, true, LONGEST_PROMPT) {
            Ok(text) => text,
            Err(ChatError::Chat(what)) => return Err(wrong(what)),
            Err(ChatError::TooLong) => return Err(wrong("the prompt is too long".into())),
            Err(ChatError::Stopped(error)) => return Err(error),
        };
        text.retain(|c| !has_sentinel(c.encode_utf8(&mut [0; 4])));
        Ok(text)
    }

    /// The token that ends an answer: the first control token that the template writes behind one.
    /// None where it writes none, or takes no plain answer to a plain question.
    pub fn end_of_turn(&self, tokenizer: &Tokenizer) -> Option<u32> {
        const ANSWER: &str = "The answer is 42";
        let said = [("user", "What is the answer?"), ("assistant", ANSWER)];
        let messages = said.map(|(role, content)| jsonl::message(role, content)).to_vec();
        let chat = Chat { messages, tools: Value::from(()), learned_from: 0 };
        let text = self.text(&chat, false, LONGEST_PROMPT).ok()?;
        let (_, behind) = text.rsplit_once(ANSWER)?;
        tokenizer.controls(behind).next().map(|(id, _)| id)
    }

    /// Allows as many instructions a rendering as the chat may take.
    pub(crate) fn fuel(&mut self, chat: &Chat) {
        let values = chat.messages.iter().chain([&chat.tools]).map(values).sum::<u64>();
        self.environment.set_fuel(Some(FUEL + FUEL_PER_VALUE * values));
    }

    /// Whether the template's text names the role, in quotes.
    pub(crate) fn names_role(&self, role: &str) -> bool {
        let texts = [Some(&self.source.default), self.source.tool_use.as_ref()];
        let is_named = |text: &String| {
            ["'", "\""].iter().any(|quote| text.contains(&format!("{quote}{role}{quote}")))
        };
        texts.into_iter().flatten().any(is_named)
    }

    /// The chat as text of at most `limit` bytes and what of it is learned: with `mask` the
    /// assistant's turns, up to the last control token of each, else all.
    pub(crate) fn render(
        &self,
        chat: &Chat,
        mask: bool,
        tokenizer: &Tokenizer,
        limit: usize,
        tick: Tick<'_>,
    ) -> std::result::Result<Rendering, ChatError> {
        let mut text = self.text(chat, false, limit)?;
        let marked = self.marks[self.which(chat)];
        let spans = match marked {
            true => generation::take_spans(&mut text).ok_or_else(|| {
                ChatError::Chat("the template's {% generation %} tags do not pair".into())
            })?,
            false => Vec::new(),
        };
        let mut learned = match (mask, marked) {
            (false, _) => iter::once(0..text.len()).collect(),
            (true, true) => self.of_completion(chat, spans, &text, limit)?,
            (true, false) => spans::by_difference(self, chat, &text, tokenizer, tick)?,
        };
        if mask {
            learned.iter_mut().for_each(|span| spans::end_at_control(span, &text, tokenizer));
        }
        Ok(Rendering { text, learned })
    }

    /// Those of the marked spans that are not of the prompt.
    fn of_completion(
        &self,
        chat: &Chat,
        mut spans: Vec<Range<usize>>,
        text: &str,
        limit: usize,
    ) -> std::result::Result<Vec<Range<usize>>, ChatError> {
        let prompt = &chat.messages[..chat.learned_from];
        if prompt.iter().any(spans::is_answer) {
            let prompt = Chat { messages: prompt.to_vec(), ..chat.clone() };
            let mut before = self.text(&prompt, true, limit)?;
            generation::take_spans(&mut before);
            if !text.starts_with(&before) {
                return Err(ChatError::Chat(spans::rewritten(chat.learned_from)));
            }
            spans.retain(|span| span.start >= before.len());
        }
        Ok(spans)
    }

    /// The chat as text of at most `limit` bytes, sentinels included; with `prompt`, the beginning
    /// of the assistant's next turn too.
    fn text(
        &self,
        chat: &Chat,
        prompt: bool,
        limit: usize,
    ) -> std::result::Result<String, ChatError> {
        let mut out = Bounded { bytes: Vec::new(), limit, is_over: false };
        let written = self.write(chat, chat.messages.len(), prompt, &mut out);
        if out.is_over {
            return Err(ChatError::TooLong);
        }
        written?;
        Ok(String::from_utf8(out.bytes).expect("a template writes strings"))
    }

    /// Writes the first `count` messages.
    fn write(
        &self,
        chat: &Chat,
        count: usize,
        prompt: bool,
        out: &mut dyn Write,
    ) -> std::result::Result<(), ChatError> {
        let messages = &chat.messages[..count];
        let context = Value::from_pairs([
            (room::NAME, Value::from(room::of_chat(messages.iter().chain([&chat.tools])))),
            ("messages", Value::from(messages.to_vec())),
            ("tools", chat.tools.clone()),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(prompt)),
        ]);
        let failed = |error: minijinja::Error| ChatError::Chat(failure(&error));
        let template = self.environment.get_template(NAMES[self.which(chat)]).map_err(failed)?;
        template.render_captured_to(context, out).map(|_| ()).map_err(failed)
    }

    /// Which of the two templates the chat takes.
    fn which(&self, chat: &Chat) -> usize {
        usize::from(!chat.tools.is_none() && self.source.tool_use.is_some())
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatTemplate({})", self.source.origin)
    }
}

impl ChatTemplateSource {
    /// The most bytes that [`prepare`](crate::prepare) takes for chats of this template above what
    /// it takes for texts, while no line is longer than
    /// [`SHORT_PIECE_BYTES`](crate::SHORT_PIECE_BYTES) or mostly brackets.
    pub fn prepare_bytes(&self) -> u64 {
        MEMORY + self.memory()
    }
}

/// The values in a tree of them.
fn values(tree: &Value) -> u64 {
    let inner = match tree.kind() {
        ValueKind::Seq => tree.try_iter().map(|items| items.map(|item| values(&item)).sum()),
        ValueKind::Map => tree
            .try_iter()
            .map(|keys| keys.map(|key| tree.get_item(&key).map_or(0, |item| values(&item))).sum()),
        _ => Ok(0),
    };
    1 + inner.unwrap_or(0)
}

/// The names of the two templates in the environment.
const NAMES: [&str; 2] = ["default", "tool_use"];

/// Jinja as transformers sets it up.
fn environment(tokenizer: &Tokenizer) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(rewrite::plain_syntax());
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(write_value);
    builtins::add_to(&mut environment);
    operators::add_to(&mut environment);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: String| strftime_now(&format));
    for (name, id) in [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos())] {
        if let Some(token) = id.and_then(|id| tokenizer.token(id)) {
            environment.add_global(name, token);
        }
    }
    environment
}

/// Writes a value to the text, or to that of a variable.
fn write_value(
    out: &mut Output,
    state: &mut State,
    value: &Value,
) -> std::result::Result<(), minijinja::Error> {
    match value.as_str() {
        Some(text) => {
            room::take(state, text.len() as u64)?;
            out.write_str(text)?;
        }
        None => out.write_str(&room::text(state, value)?)?,
    }
    Ok(())
}

/// A writer that takes no more than `limit` bytes.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    is_over: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            self.is_over = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What to do about a template.
const ANOTHER: &str = "mend it, or give another with --chat-template";

/// What to tell of a rendering that failed.
fn failure(error: &minijinja::Error) -> String {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(Refusal(message)) = inner.downcast_ref::<Refusal>() {
            return format!("the chat template refuses it: {message}");
        }
        cause = inner.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => {
            let what = "the chat template takes far more steps than such a chat needs";
            format!("{what}; it may never end; {ANOTHER}")
        }
        _ => format!("the chat template fails, {}; {ANOTHER}", told(error)),
    }
}

/// The engine's error, without the name that the template has inside.
fn told(error: &minijinja::Error) -> String {
    let place = error.line().map_or_else(String::new, |line| format!("in its line {line}: "));
    match error.detail() {
        Some(detail) => format!("{place}{}: {detail}", error.kind()),
        None => format!("{place}{}", error.kind()),
    }
}

#[cfg(test)]
mod tests;
