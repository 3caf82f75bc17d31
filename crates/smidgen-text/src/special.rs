//! Tokens that are recognised in the text itself, before anything else is cut: `<|im_end|>`, runs
//! of newlines, and their like.

use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use crate::error::{Result, TextError};

/// A stretch of text between such tokens, or one of them.
pub(crate) enum Piece<'t> {
    Text(&'t str),
    Token(u32),
}

/// The set of such tokens; of several that match at one place the longest is taken.
pub(crate) struct AddedTokens {
    automaton: AhoCorasick,
    /// The id of each pattern of the automaton, ascending.
    ids: Vec<u32>,
    /// Whether each is a control token, which no plain text stands for.
    controls: Vec<bool>,
}

/// Bytes that a node of the tokens' trie takes in the automaton and in what it is built from.
const NODE_BYTES: u64 = 64;

/// Bytes of a token's id, of its kind and of the reference to its spelling.
const TOKEN_BYTES: u64 = 21;

/// Bytes of an automaton whatever its tokens.
const AUTOMATON_BYTES: u64 = 16 * 1024;

impl AddedTokens {
    /// `tokens` are id, spelling and whether it is a control token; ids ascending, spellings not
    /// empty.
    pub(crate) fn build<'s>(tokens: impl Iterator<Item = (u32, &'s str, bool)>) -> Result<Self> {
        let (mut ids, mut spellings, mut controls) = (Vec::new(), Vec::new(), Vec::new());
        for (id, spelling, is_control) in tokens {
            ids.push(id);
            spellings.push(spelling);
            controls.push(is_control);
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            // The smallest of the automata; the text is mostly skipped by its prefilter.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(spellings)
            .map_err(|error| TextError::BadVocabulary(format!("special tokens: {error}")))?;
        Ok(Self { automaton, ids, controls })
    }

    /// The most bytes that the automaton of some tokens takes while it is built; fewest where
    /// tokens that begin alike follow each other.
    pub(crate) fn memory<'s>(tokens: impl Iterator<Item = &'s str>) -> u64 {
        let (mut count, mut nodes, mut before) = (0, 0, "");
        for token in tokens {
            let shared = token.bytes().zip(before.bytes()).take_while(|(a, b)| a == b).count();
            (count, nodes, before) = (count + 1, nodes + token.len() - shared, token);
        }
        AUTOMATON_BYTES + NODE_BYTES * nodes as u64 + TOKEN_BYTES * count as u64
    }

    pub(crate) fn contains(&self, id: u32) -> bool {
        self.ids.binary_search(&id).is_ok()
    }

    /// The control tokens in `text`, in order, and where they stand.
    pub(crate) fn controls(&self, text: &str) -> impl Iterator<Item = (u32, Range<usize>)> {
        self.automaton.find_iter(text).filter_map(|found| {
            let token = found.pattern().as_usize();
            self.controls[token].then(|| (self.ids[token], found.range()))
        })
    }

    /// Calls `f` with the pieces of `text`, in order; texts are not empty.
    pub(crate) fn split<'t>(&self, text: &'t str, mut f: impl FnMut(Piece<'t>)) {
        let mut done = 0;
        for found in self.automaton.find_iter(text) {
            if done < found.start() {
                f(Piece::Text(&text[done..found.start()]));
            }
            f(Piece::Token(self.ids[found.pattern().as_usize()]));
            done = found.end();
        }
        if done < text.len() {
            f(Piece::Text(&text[done..]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(tokens: &[&str], text: &str) -> Vec<String> {
        let tokens = tokens.iter().zip(10..).map(|(&spelling, id)| (id, spelling, false));
        let mut pieces = Vec::new();
        AddedTokens::build(tokens).unwrap().split(text, |piece| {
            pieces.push(match piece {
                Piece::Text(text) => text.to_owned(),
                Piece::Token(id) => format!("#{id}"),
            })
        });
        pieces
    }

    #[test]
    fn longest_first() {
        assert_eq!(split(&["\n", "\n\n", "<a>"], "x\n\n\n<a><b"), ["x", "#11", "#10", "#12", "<b"]);
        assert_eq!(split(&["<a>"], "<a>"), ["#10"]);
        assert_eq!(split(&[], "abc"), ["abc"]);
        assert_eq!(split(&["é"], ""), [""; 0]);
    }

    #[test]
    fn controls() {
        let tokens = [(3, "<a>", true), (5, "<b>", false), (9, "<c>", true)];
        let tokens = AddedTokens::build(tokens.into_iter()).unwrap();
        let found: Vec<_> = tokens.controls("é<a><b>x<c>").collect();
        assert_eq!(found, [(3, 2..5), (9, 9..12)]);
    }
}
