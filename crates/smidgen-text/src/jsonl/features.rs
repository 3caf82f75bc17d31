//! The names of a line's keys.

use sha2::{Digest, Sha256};

use crate::token_file::Fingerprint;

/// What a line's keys are called. What stands under the names given here is read; the other forms'
/// keys have fixed names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureNames {
    /// A text, all of it learned; `text` by default.
    pub text: String,
    /// What a completion goes on from; `prompt` by default.
    pub prompt: String,
    /// What is learned of a prompt and its completion; `completion` by default.
    pub completion: String,
    /// A chat's messages; by default `messages`, and `conversations` too.
    pub chat: Option<String>,
    /// Keys that may stand there and are not read.
    pub ignored: Vec<String>,
}

/// What stands under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Text,
    Prompt,
    Completion,
    Chat,
    Tools,
    System,
    Instruction,
    Input,
    Output,
    History,
}

/// Keys whose names are fixed.
const FIXED: [(&str, Key); 6] = [
    ("tools", Key::Tools),
    ("system", Key::System),
    ("instruction", Key::Instruction),
    ("input", Key::Input),
    ("output", Key::Output),
    ("history", Key::History),
];

impl Default for FeatureNames {
    fn default() -> Self {
        let [text, prompt, completion] = ["text", "prompt", "completion"].map(str::to_owned);
        Self { text, prompt, completion, chat: None, ignored: Vec::new() }
    }
}

impl FeatureNames {
    /// Tells these names from others; none where they are the usual ones.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        if *self == Self::default() {
            return None;
        }
        let mut hash = Sha256::new();
        let chat = self.chat_names();
        let names = [&*self.text, &*self.prompt, &*self.completion].into_iter().chain(chat);
        for name in names.chain(self.ignored.iter().map(String::as_str)) {
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name);
        }
        let digest: [u8; 32] = hash.finalize().into();
        Some(Fingerprint(*digest.first_chunk().expect("32 bytes hold 16")))
    }

    /// What `name` stands for; none where it is not known.
    pub(super) fn key(&self, name: &str) -> Option<Key> {
        if self.chat_names().any(|chat| chat == name) {
            return Some(Key::Chat);
        }
        let named = [
            (&self.text, Key::Text),
            (&self.prompt, Key::Prompt),
            (&self.completion, Key::Completion),
        ];
        let named = named.into_iter().map(|(name, key)| (name.as_str(), key));
        named.chain(FIXED).find(|(known, _)| *known == name).map(|(_, key)| key)
    }

    /// What the key is called.
    pub(super) fn name(&self, key: Key) -> &str {
        match key {
            Key::Text => &self.text,
            Key::Prompt => &self.prompt,
            Key::Completion => &self.completion,
            Key::Chat => self.chat.as_deref().unwrap_or("messages"),
            key => FIXED.iter().find(|(_, fixed)| *fixed == key).map_or("", |(name, _)| name),
        }
    }

    /// All names that are known, for messages.
    pub(super) fn known(&self) -> String {
        let named = [&*self.text, &*self.prompt, &*self.completion].into_iter();
        let names = named.chain(self.chat_names()).chain(FIXED.map(|(name, _)| name));
        names.collect::<Vec<_>>().join(", ")
    }

    /// What a line may be, for messages.
    pub(super) fn expected(&self) -> String {
        let (text, prompt, completion) = (&self.text, &self.prompt, &self.completion);
        let chat = self.name(Key::Chat);
        format!(
            "an object on each line, {{\"{text}\": \"…\"}}, {{\"{prompt}\": \"…\", \"{completion}\": \
             \"…\"}}, {{\"{chat}\": [{{\"role\": \"user\", \"content\": \"…\"}}, …]}} or \
             {{\"instruction\": \"…\", \"output\": \"…\"}}"
        )
    }

    fn chat_names(&self) -> impl Iterator<Item = &str> {
        let names = match &self.chat {
            Some(name) => [Some(name.as_str()), None],
            None => [Some("messages"), Some("conversations")],
        };
        names.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let usual = FeatureNames::default();
        assert_eq!(usual.fingerprint(), None);
        assert_eq!(usual.key("conversations"), Some(Key::Chat));
        assert_eq!(usual.key("output"), Some(Key::Output));
        let renamed = FeatureNames {
            prompt: "instruction".into(),
            completion: "output".into(),
            chat: Some("dialogue".into()),
            ..FeatureNames::default()
        };
        assert_eq!(renamed.key("instruction"), Some(Key::Prompt));
        assert_eq!(renamed.key("messages"), None);
        assert_eq!(renamed.name(Key::Chat), "dialogue");
        assert!(renamed.expected().contains("{\"dialogue\": ["));
        let more = FeatureNames { ignored: vec!["id".into()], ..renamed.clone() };
        assert_ne!(renamed.fingerprint(), more.fingerprint());
    }
}
