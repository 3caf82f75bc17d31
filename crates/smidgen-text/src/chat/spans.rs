//! Which stretches of a chat's text the model is to learn.
//!
//! Where the template has no `{% generation %}`, an answer is what a rendering gains by it: it
//! begins where the rendering of the messages before it ends, with the beginning of the assistant's
//! turn that a model would be given, and ends where the rendering of the messages up to it ends.

use std::io::{self, Write};
use std::ops::Range;

use minijinja::value::Value;

use super::{Chat, ChatError, ChatTemplate, Tick};
use crate::tokenizer::Tokenizer;

/// Renderings between two ticks.
const TICK: usize = 32;

/// Bytes in which a shorter rendering may differ at its end, at most.
const TAIL: usize = 256;

/// Whether the message is the assistant's.
pub(super) fn is_answer(message: &Value) -> bool {
    message.get_attr("role").is_ok_and(|role| role.as_str() == Some("assistant"))
}

/// The assistant's turns in `text`, the chat's whole rendering, by the difference that each makes.
pub(super) fn by_difference(
    template: &ChatTemplate,
    chat: &Chat,
    text: &str,
    tokenizer: &Tokenizer,
    tick: Tick<'_>,
) -> Result<Vec<Range<usize>>, ChatError> {
    let mut spans = Vec::new();
    let mut from = 0;
    let answers =
        (chat.learned_from..chat.messages.len()).filter(|&i| is_answer(&chat.messages[i]));
    for (done, answer) in answers.enumerate() {
        if done % TICK == TICK - 1 {
            tick().map_err(ChatError::Stopped)?;
        }
        let before = begins(template, chat, answer, true, text)?;
        let start = before.whole().ok_or_else(|| ChatError::Chat(rewritten(answer)))?;
        let end = match answer + 1 == chat.messages.len() {
            true => Some(text.len()),
            false => begins(template, chat, answer + 1, false, text)?.end(start, tokenizer),
        };
        match end {
            Some(end) if from <= start && start <= end => spans.push(start..end),
            _ => return Err(ChatError::Chat(rewritten(answer))),
        }
        from = spans.last().map_or(0, |span| span.end);
    }
    spans.retain(|span| !span.is_empty());
    Ok(spans)
}

/// What to tell of an answer that can't be found.
pub(super) fn rewritten(answer: usize) -> String {
    format!(
        "message {}, the assistant's, can't be told from the rest, since the template writes it or \
         what stands before it another way when more follows; make one sample of each answer, give a \
         --chat-template with {{% generation %}} around what the model writes, or learn all with \
         --no-mask-prompt",
        answer + 1
    )
}

/// Ends a span behind its last control token, if nothing but white space follows that: a model stops
/// there.
pub(super) fn end_at_control(span: &mut Range<usize>, text: &str, tokenizer: &Tokenizer) {
    let learned = &text[span.clone()];
    if let Some((_, last)) = tokenizer.controls(learned).last()
        && is_space(&learned[last.end..])
    {
        span.end = span.start + last.end;
    }
}

/// How the rendering of the first `count` messages compares with `text`.
fn begins<'t>(
    template: &ChatTemplate,
    chat: &Chat,
    count: usize,
    prompt: bool,
    text: &'t str,
) -> Result<Beginning<'t>, ChatError> {
    let mut beginning = Beginning { text, same: 0, tail: Vec::new(), is_over: false };
    let written = template.write(chat, count, prompt, &mut beginning);
    if !beginning.is_over {
        written?;
    }
    Ok(beginning)
}

/// Compares what is written to it with the beginning of `text`, and keeps only what differs.
struct Beginning<'t> {
    text: &'t str,
    /// Bytes that are the same.
    same: usize,
    /// What came then.
    tail: Vec<u8>,
    /// More came than [`TAIL`].
    is_over: bool,
}

impl Beginning<'_> {
    /// The length of what was written, if `text` begins with all of it.
    fn whole(&self) -> Option<usize> {
        self.tail.is_empty().then_some(self.same)
    }

    /// Where the turn that begins at `start` ends: where what was written ends, or, since some
    /// templates close a chat with a token that stands nowhere else, behind the last control token
    /// that is in both, if there is nothing but control tokens and white space left of what was written.
    fn end(&self, start: usize, tokenizer: &Tokenizer) -> Option<usize> {
        if let Some(end) = self.whole() {
            return Some(end);
        }
        let same = self.text.floor_char_boundary(self.same);
        let (_, last) = tokenizer.controls(self.text.get(start..same)?).last()?;
        let end = start + last.end;
        let rest = [&self.text.as_bytes()[end..self.same], &self.tail].concat();
        let rest = String::from_utf8(rest).ok().filter(|_| !self.is_over)?;
        let mut done = 0;
        for (_, control) in tokenizer.controls(&rest) {
            if !is_space(&rest[done..control.start]) {
                return None;
            }
            done = control.end;
        }
        is_space(&rest[done..]).then_some(end)
    }
}

fn is_space(text: &str) -> bool {
    text.chars().all(char::is_whitespace)
}

impl Write for Beginning<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut differs = bytes;
        if self.tail.is_empty() {
            let there = &self.text.as_bytes()[self.same..];
            let same = there.iter().zip(bytes).take_while(|(a, b)| a == b).count();
            self.same += same;
            differs = &bytes[same..];
        }
        if self.tail.len() + differs.len() > TAIL {
            self.is_over = true;
            self.tail.push(0);
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.tail.extend_from_slice(differs);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
