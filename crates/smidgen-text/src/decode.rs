//! Decoding ids as they are generated.

use crate::tokenizer::{Engine, Tokenizer};

/// Decodes ids that arrive one by one: what it gives out, put together, is the text, and a
/// character whose bytes are spread over several tokens is held back until it is whole.
pub struct StreamDecoder<'t> {
    tokenizer: &'t Tokenizer,
    /// Bytes not yet given out: the beginning of a character.
    held: Vec<u8>,
    /// For tokens without bytes of their own (`tokenizer.json`): the last ids, and how many bytes
    /// of their text are given out.
    window: Vec<u32>,
    shown: usize,
}

impl<'t> StreamDecoder<'t> {
    pub(crate) fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, held: Vec::new(), window: Vec::new(), shown: 0 }
    }

    /// Takes the next id and gives the text that is now certain; often empty.
    pub fn push(&mut self, id: u32) -> String {
        if let Engine::Json(_) = self.tokenizer.engine {
            return self.push_to_window(id);
        }
        self.tokenizer.decode_bytes(id, &mut self.held);
        let whole = whole_characters(&self.held);
        let text = String::from_utf8_lossy(&self.held[..whole]).into_owned();
        self.held.drain(..whole);
        text
    }

    /// What is still held back, an unfinished character as U+FFFD; the decoder starts afresh.
    pub fn finish(&mut self) -> String {
        let text = if let Engine::Json(_) = self.tokenizer.engine {
            self.unshown(&self.tokenizer.decode(&self.window))
        } else {
            String::from_utf8_lossy(&self.held).into_owned()
        };
        *self = Self::new(self.tokenizer);
        text
    }

    fn push_to_window(&mut self, id: u32) -> String {
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window);
        if text.ends_with('\u{fffd}') {
            return String::new();
        }
        let fresh = self.unshown(&text);
        self.shown = text.len();
        // The last id is context enough for the next one, unless it is part of a character.
        let last = self.tokenizer.decode(&[id]);
        if !last.contains('\u{fffd}') {
            self.window = vec![id];
            self.shown = last.len();
        }
        fresh
    }

    fn unshown(&self, text: &str) -> String {
        text.get(self.shown..).unwrap_or_default().to_owned()
    }
}

/// How many bytes at the front of `bytes` can be decoded now: all but the beginning of a character
/// that may yet be completed.
fn whole_characters(bytes: &[u8]) -> usize {
    let mut done = 0;
    loop {
        match std::str::from_utf8(&bytes[done..]) {
            Ok(_) => return bytes.len(),
            Err(error) => {
                done += error.valid_up_to();
                match error.error_len() {
                    Some(invalid) => done += invalid,
                    None => return done,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_back_only_what_may_be_completed() {
        assert_eq!(whole_characters("aé".as_bytes()), 3);
        assert_eq!(whole_characters(b"a\xc3"), 1);
        assert_eq!(whole_characters(b"a\xff\xf0\x9f"), 2);
        assert_eq!(whole_characters(b"\xe2\x96z"), 3);
        assert_eq!(whole_characters(b""), 0);
    }
}
