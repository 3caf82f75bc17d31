//! The text of a chat template, and where it stands.

use std::io::Read;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::MEMORY_PER_BYTE;
use crate::error::{Result, TextError};
use crate::token_file::Fingerprint;

/// The text of a model's chat template, written in Jinja and not yet parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplateSource {
    pub(super) origin: String,
    pub(super) default: String,
    pub(super) tool_use: Option<String>,
}

/// What is read of a `tokenizer_config.json` or `chat_template.json`.
#[derive(Deserialize)]
struct Config {
    chat_template: Option<Templates>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string, or a list of {name, template}")]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

impl ChatTemplateSource {
    /// Bytes of the longest template that is taken; models' own have 0.2 to 30 kB.
    pub const LONGEST: usize = 1 << 20;

    /// The template `text`, of a file or model named `origin`: the content of a
    /// `chat_template.jinja`, or GGUF's `tokenizer.chat_template`.
    ///
    /// # Errors
    /// It is longer than 1 MiB.
    pub fn new(origin: impl Into<String>, text: impl Into<String>) -> Result<Self> {
        let source = Self { origin: origin.into(), default: text.into(), tool_use: None };
        source.check_length(&source.default)?;
        Ok(source)
    }

    /// The same with another template for chats that have tools.
    ///
    /// # Errors
    /// It is longer than 1 MiB.
    pub fn with_tool_use(self, text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        self.check_length(&text)?;
        Ok(Self { tool_use: Some(text), ..self })
    }

    /// The template in a `tokenizer_config.json`, if it has one: a string, or a list of
    /// `{name, template}`, of which `default` and `tool_use` are taken.
    ///
    /// # Errors
    /// This is no such file, its list has no `default`, or a template is longer than 1 MiB.
    pub fn from_config(origin: impl Into<String>, file: impl Read) -> Result<Option<Self>> {
        let origin = origin.into();
        let config: Config = serde_json::from_reader(file).map_err(|error| {
            TextError::template(&origin, format!("its chat_template can't be read: {error}"))
        })?;
        match config.chat_template {
            None => Ok(None),
            Some(Templates::One(text)) => Self::new(origin, text).map(Some),
            Some(Templates::Named(templates)) => {
                let of = |name: &str| templates.iter().find(|t| t.name == name);
                let Some(default) = of("default") else {
                    let what = "its list of chat templates has none named \"default\"";
                    return Err(TextError::template(&origin, what));
                };
                let source = Self::new(origin, &default.template)?;
                match of("tool_use") {
                    Some(named) => source.with_tool_use(&named.template).map(Some),
                    None => Ok(Some(source)),
                }
            }
        }
    }

    /// The file or model that it stands in.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The template, without the one for chats with tools.
    pub fn text(&self) -> &str {
        &self.default
    }

    /// Names the template's text, which with the tokenizer decides what a chat becomes.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        for text in [Some(&self.default), self.tool_use.as_ref()] {
            hash.update(text.map_or(u64::MAX, |text| text.len() as u64).to_le_bytes());
            hash.update(text.map_or("", |text| text));
        }
        let digest: [u8; 32] = hash.finalize().into();
        Fingerprint(*digest.first_chunk().expect("32 bytes hold 16"))
    }

    /// The most bytes that the template takes from when it is parsed on, beside the chats.
    pub(super) fn memory(&self) -> u64 {
        let text = self.default.len() + self.tool_use.as_ref().map_or(0, String::len);
        text as u64 * MEMORY_PER_BYTE
    }

    fn check_length(&self, text: &str) -> Result<()> {
        match text.len() {
            0..=Self::LONGEST => Ok(()),
            bytes => {
                let what = format!(
                    "{bytes} bytes are too many for a chat template, which has {} at most; \
                     give another with --chat-template",
                    Self::LONGEST
                );
                Err(TextError::template(&self.origin, what))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Option<ChatTemplateSource>> {
        ChatTemplateSource::from_config("tokenizer_config.json", text.as_bytes())
    }

    #[test]
    fn configs() {
        assert_eq!(config("{}").unwrap(), None);
        assert_eq!(config(r#"{"chat_template": null, "eos_token": {"a": [1]}}"#).unwrap(), None);
        let one = config(r#"{"bos_token": "<s>", "chat_template": "a"}"#).unwrap().unwrap();
        assert_eq!((one.default.as_str(), &one.tool_use), ("a", &None));
        let named = r#"{"chat_template": [{"name": "tool_use", "template": "b"},
                        {"name": "rag", "template": "c"}, {"name": "default", "template": "a"}]}"#;
        let named = config(named).unwrap().unwrap();
        assert_eq!((named.default.as_str(), named.tool_use.as_deref()), ("a", Some("b")));
        assert_ne!(named.fingerprint(), one.fingerprint());
        for broken in ["", "[]", "{\"chat_template\": 3}", r#"{"chat_template": []}"#] {
            let error = config(broken).unwrap_err().to_string();
            assert!(error.starts_with("tokenizer_config.json: "), "{error}");
        }
        assert!(ChatTemplateSource::new("a", "x".repeat(ChatTemplateSource::LONGEST + 1)).is_err());
    }
}
