//! Where a text may be cut so that the ids of its parts, one after the other, are the ids of the
//! whole.
//!
//! Two kinds of place serve (`\S` is a character that is not white space):
//!
//! - between `\S` and a space. Byte-level kinds: no alternative of their expressions has a space
//!   after another character, so a word ends there whatever comes, and nothing but greedy runs was
//!   looked at to end it. SentencePiece: no token has that character before a space, so no merge
//!   spans the place.
//! - after a newline between two `\S`. Byte-level kinds: the run of white space is that one
//!   character, so the look-ahead in `\s+(?!\S)` decides nothing, and neither of `[\r\n]*` and
//!   `\s*[\r\n]+` goes past it. SentencePiece: no token has a newline before anything but a newline.
//!
//! Longer runs of white space don't serve: GPT-2's `\s+(?!\S)` takes all of `"\n\n"` at the end of
//! a text, but only the first of it where a word follows. Special tokens are matched before words
//! are cut, so they must not span the place either. Normal form C changes nothing here: a space and
//! a newline take part in no composition.

use crate::sentence_piece::SPACE;

/// The places where texts may be cut for one tokenizer.
#[derive(Default)]
pub(crate) struct CutRule {
    /// Characters that some token has just before a space. Sorted once [`seal`](Self::seal)ed.
    glue: Vec<char>,
    /// Some token goes on after a newline with something else.
    newline_spanned: bool,
}

impl CutRule {
    /// Takes in a token that may span places.
    pub(crate) fn observe(&mut self, token: &str) {
        for (before, after) in token.chars().zip(token.chars().skip(1)) {
            if after == ' ' || after == SPACE {
                self.glue.push(before);
            }
            self.newline_spanned |= before == '\n' && after != '\n';
        }
    }

    /// To be called after the last token.
    pub(crate) fn seal(&mut self) {
        self.glue.sort_unstable();
        self.glue.dedup();
    }

    pub(crate) fn glue(&self) -> &[char] {
        &self.glue
    }

    /// The last place at which `text` may be cut, if there is one that leaves something on both
    /// sides.
    pub(crate) fn last_cut(&self, text: &str) -> Option<usize> {
        let mut places = text.char_indices().rev().peekable();
        while let Some((place, after)) = places.next() {
            let &(newline, before) = places.peek()?;
            let serves = if after == ' ' {
                !before.is_whitespace() && self.glue.binary_search(&before).is_err()
            } else {
                before == '\n'
                    && !self.newline_spanned
                    && !after.is_whitespace()
                    && text[..newline].ends_with(|c: char| !c.is_whitespace())
            };
            if serves {
                return Some(place);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let rule = CutRule::default();
        let cut = |text: &str| rule.last_cut(text).map(|place| text.split_at(place).1.to_owned());
        assert_eq!(cut("a b c"), Some(" c".into()));
        assert_eq!(cut("a  "), Some("  ".into()));
        assert_eq!(cut("é\nb"), Some("b".into()));
        for text in ["", "a", " a", "a\n\nb", "\nb", "a\r\nb", "a\n", "a\tb", "ab"] {
            assert_eq!(cut(text), None, "{text:?}");
        }
    }

    #[test]
    fn tokens_that_span() {
        let mut rule = CutRule::default();
        rule.observe(">▁</");
        rule.observe("\nx");
        rule.seal();
        assert_eq!(rule.last_cut("a> b"), None);
        assert_eq!(rule.last_cut("a\nb"), None);
        assert_eq!(rule.last_cut("a b> c"), Some(1));
    }
}
