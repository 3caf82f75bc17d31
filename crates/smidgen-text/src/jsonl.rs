//! One sample a line: a text, a prompt with its completion, or a chat in one of its forms.

mod features;
mod forms;
mod parse;

use std::path::Path;

pub use features::FeatureNames;
pub(crate) use forms::message;
pub(crate) use parse::list as tools;

use crate::chat::{Chat, ChatError, ChatTemplate, ChatTemplateSource, Rendering, Tick};
use crate::dataset::Sequence;
use crate::error::{Result, TextError};
use crate::prepare::MAX_PIECE_BYTES;
use crate::token_file::Fingerprint;
use crate::tokenizer::{Encoding, Tokenizer};
use forms::Sample;

/// Roles that chats have, whatever the template. Others must stand in the template.
const ROLES: [&str; 7] =
    ["system", "developer", "user", "assistant", "tool", "function", "ipython"];

/// Bytes by which a chat's text may be longer than the longest line.
const TEMPLATE_ROOM: usize = 8 << 10;

/// Why a line gives no sample.
pub(crate) enum LineError {
    /// The line is not of an expected form.
    Form(String),
    /// It is a chat without a rendering, or without anything to learn in it.
    Chat(String),
    /// The chat's text is too long for the budget.
    NoRoom(usize),
    /// The tokenizer failed, the template is broken, or the caller stopped.
    Other(TextError),
}

/// Makes samples of lines.
pub(crate) struct Lines<'a> {
    tokenizer: &'a Tokenizer,
    source: Option<&'a ChatTemplateSource>,
    /// Parsed when the first chat comes.
    template: Option<ChatTemplate>,
    names: &'a FeatureNames,
    mask_prompt: bool,
    encoding: Encoding,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(
        tokenizer: &'a Tokenizer,
        source: Option<&'a ChatTemplateSource>,
        names: &'a FeatureNames,
        mask_prompt: bool,
    ) -> Self {
        let encoding = Encoding::default();
        Self { tokenizer, source, template: None, names, mask_prompt, encoding }
    }

    /// The template, if there was a chat.
    pub(crate) fn template(&self) -> Option<Fingerprint> {
        self.template.as_ref().map(|template| template.source().fingerprint())
    }

    /// Puts the sample on `line` in place of `sample`: its tokens and its loss targets. Texts and
    /// completions end with EOS, appended where it is missing and the tokenizer has one; chats are
    /// taken as the template writes them. `longest` is the most bytes that a line may have.
    ///
    /// Stretches that are learned are tokenised apart from those that are not, so that no token
    /// spans a border between them: a model that answers sees the same tokens before its answer.
    pub(crate) fn sample(
        &mut self,
        line: &str,
        longest: usize,
        sample: &mut Sequence,
        tick: Tick<'_>,
    ) -> std::result::Result<(), LineError> {
        sample.ids.clear();
        sample.targets.clear();
        match forms::sample(line, self.names).map_err(LineError::Form)? {
            Sample::Text(text) => {
                self.push(&text, true, sample)?;
                self.end(sample);
            }
            Sample::Completion { prompt, completion } => {
                self.push(&prompt, !self.mask_prompt, sample)?;
                if self.push(&completion, true, sample)? == 0 {
                    return Err(LineError::Form("the completion is empty".into()));
                }
                self.end(sample);
            }
            Sample::Chat(chat) => self.chat(chat, longest, sample, tick)?,
        }
        // The first token is never predicted.
        match sample.targets.iter().skip(1).any(|&target| target) {
            true => Ok(()),
            false => {
                let what = format!("no token is left for the loss in {}", beginning(line));
                Err(LineError::Form(what))
            }
        }
    }

    fn chat(
        &mut self,
        chat: Chat,
        longest: usize,
        sample: &mut Sequence,
        tick: Tick<'_>,
    ) -> std::result::Result<(), LineError> {
        let (tokenizer, mask) = (self.tokenizer, self.mask_prompt);
        let template = self.parsed_template()?;
        check_roles(&chat, template).map_err(LineError::Form)?;
        template.fuel(&chat);
        let limit = longest.saturating_add(TEMPLATE_ROOM);
        let rendered = template.render(&chat, mask, tokenizer, limit, tick);
        // What it takes is room for the tokens.
        drop(chat);
        let Rendering { text, learned } = rendered.map_err(|error| match error {
            ChatError::Chat(what) => LineError::Chat(what),
            ChatError::TooLong if longest < MAX_PIECE_BYTES => LineError::NoRoom(limit),
            ChatError::TooLong => {
                LineError::Chat(format!("the chat's text is longer than {limit} bytes"))
            }
            ChatError::Stopped(error) => LineError::Other(error),
        })?;
        let mut done = 0;
        for span in learned {
            self.push(&text[done..span.start], false, sample)?;
            self.push(&text[span.clone()], true, sample)?;
            done = span.end;
        }
        self.push(&text[done..], false, sample)?;
        Ok(())
    }

    fn parsed_template(&mut self) -> std::result::Result<&mut ChatTemplate, LineError> {
        if self.template.is_none() {
            let Some(source) = self.source else {
                return Err(LineError::Chat(
                    "this is a chat, and the model has no chat template; name one with \
                     --chat-template: a chat_template.jinja or tokenizer_config.json"
                        .into(),
                ));
            };
            let template = ChatTemplate::new(source, self.tokenizer).map_err(LineError::Other)?;
            self.template = Some(template);
        }
        Ok(self.template.as_mut().expect("it was parsed"))
    }

    /// Appends the tokens of `text` and tells how many they are.
    fn push(
        &mut self,
        text: &str,
        target: bool,
        sample: &mut Sequence,
    ) -> std::result::Result<usize, LineError> {
        self.tokenizer.encode_into(text, &mut self.encoding).map_err(LineError::Other)?;
        self.encoding.ids.iter().for_each(|&id| sample.push(id, target));
        Ok(self.encoding.ids.len())
    }

    /// Appends EOS where it is missing.
    fn end(&self, sample: &mut Sequence) {
        if let Some(eos) = self.tokenizer.eos()
            && sample.ids.last().is_some_and(|&last| last != eos)
        {
            sample.push(eos, true);
        }
    }
}

/// The chat on `line`.
#[cfg(test)]
pub(crate) fn chat(line: &str) -> Chat {
    match forms::sample(line, &FeatureNames::default()) {
        Ok(Sample::Chat(chat)) => chat,
        Ok(_) => panic!("this is no chat: {line}"),
        Err(what) => panic!("{what}: {line}"),
    }
}

/// Refuses a role that neither chats nor the template know, which a template might write as it is.
fn check_roles(chat: &Chat, template: &ChatTemplate) -> std::result::Result<(), String> {
    for (number, message) in (1..).zip(&chat.messages) {
        let role = message.get_attr("role").unwrap_or_default();
        let role = role.as_str().unwrap_or_default();
        if !ROLES.contains(&role) && !template.names_role(role) {
            let known = ROLES.join(", ");
            return Err(format!("message {number}: the role {role:?} is unknown; known: {known}"));
        }
    }
    Ok(())
}

/// The beginning of a line, for a message.
fn beginning(line: &str) -> String {
    const SHOWN: usize = 80;
    let line = line.trim_end();
    let cut: String = line.chars().take(SHOWN).collect();
    if cut.len() < line.len() { cut + "…" } else { cut }
}

impl LineError {
    /// The error with its place in the file.
    pub(crate) fn at<T>(self, path: &Path, line: u64, names: &FeatureNames) -> Result<T> {
        let (what, expected) = match self {
            Self::Form(what) => (what, names.expected()),
            Self::Chat(what) => (what, "a chat that the model's template takes".into()),
            Self::NoRoom(bytes) => {
                let (path, place) = (path.to_owned(), format!("the chat of line {line}"));
                return Err(TextError::NoRoom { path, place, bytes });
            }
            Self::Other(error) => return Err(error),
        };
        Err(TextError::BadLine { path: path.to_owned(), line, what, expected })
    }
}
