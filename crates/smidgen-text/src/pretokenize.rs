//! Cutting text into the words that byte-level BPE never merges across.
//!
//! Each kind is published as a regular expression. They are written out here as scanners: the
//! expressions need a look-ahead that fast regex engines lack, and a scanner's state is only its
//! place in the text, which is what makes it provable where a text may be cut (see `cut`).

use regex_syntax::hir::{Class, HirKind};

/// Which words byte-level BPE works on; GGUF's `tokenizer.ggml.pre`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PreTokenizer {
    /// `qwen2`:
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    /// over text in Unicode's normal form C.
    Qwen2,
    /// `smollm`: every numeric character is a word of its own, and what lies between them is cut by
    /// GPT-2's expression,
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Smollm,
}

impl PreTokenizer {
    pub(crate) const KNOWN: &str = "smollm, qwen2";

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "qwen2" => Some(Self::Qwen2),
            "smollm" => Some(Self::Smollm),
            _ => None,
        }
    }
}

/// The scanners, with Unicode's letters and numbers at hand.
pub(crate) struct WordScanner {
    kind: PreTokenizer,
    letters: Vec<(char, char)>,
    numbers: Vec<(char, char)>,
}

/// A character as the expressions see it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CharClass {
    Letter,
    Number,
    Space,
    Other,
}

impl WordScanner {
    pub(crate) fn new(kind: PreTokenizer) -> Self {
        Self { kind, letters: class_ranges(r"\p{L}"), numbers: class_ranges(r"\p{N}") }
    }

    pub(crate) fn kind(&self) -> PreTokenizer {
        self.kind
    }

    /// Calls `f` with the words of `text`, which together are `text`.
    pub(crate) fn words<'t>(&self, text: &'t str, mut f: impl FnMut(&'t str)) {
        match self.kind {
            PreTokenizer::Qwen2 => each_word(text, |rest| self.qwen2(rest), f),
            PreTokenizer::Smollm => {
                let mut rest = text;
                while let Some(first) = rest.chars().next() {
                    // GPT-2's expression sees only what lies between two numeric characters.
                    let end = match rest.find(char::is_numeric) {
                        Some(0) => first.len_utf8(),
                        end => end.unwrap_or(rest.len()),
                    };
                    let (between, after) = rest.split_at(end);
                    each_word(between, |rest| self.gpt2(rest), &mut f);
                    rest = after;
                }
            }
        }
    }

    /// Bytes of the first word of `text`, which is not empty.
    fn qwen2(&self, text: &str) -> usize {
        if let Some(length) = contraction(text, |c| match c {
            // The one character outside ASCII whose simple case folding is one of these letters.
            'ſ' => 's',
            c => c.to_ascii_lowercase(),
        }) {
            return length;
        }
        let first = text.chars().next().expect("not empty");
        let class = self.class(first);
        match class {
            CharClass::Letter => return self.run(text, CharClass::Letter),
            CharClass::Number => return first.len_utf8(),
            CharClass::Space | CharClass::Other if first != '\r' && first != '\n' => {
                let letters = self.run(&text[first.len_utf8()..], CharClass::Letter);
                if letters > 0 {
                    return first.len_utf8() + letters;
                }
            }
            _ => {}
        }
        let lead = usize::from(first == ' ');
        let others = self.run(&text[lead..], CharClass::Other);
        if others > 0 {
            let after = &text[lead + others..];
            return lead + others + after.len() - after.trim_start_matches(['\r', '\n']).len();
        }
        let spaces = self.run(text, CharClass::Space);
        match text[..spaces].rfind(['\r', '\n']) {
            Some(newline) => newline + 1,
            None => spaces_before_word(text, spaces),
        }
    }

    /// Bytes of the first word of `text`, which is not empty.
    fn gpt2(&self, text: &str) -> usize {
        if let Some(length) = contraction(text, |c| c) {
            return length;
        }
        let lead = usize::from(text.starts_with(' '));
        if let Some(second) = text[lead..].chars().next() {
            let class = self.class(second);
            if class != CharClass::Space {
                return lead + self.run(&text[lead..], class);
            }
        }
        spaces_before_word(text, self.run(text, CharClass::Space))
    }

    /// Bytes at the start of `text` that are of `class`.
    fn run(&self, text: &str, class: CharClass) -> usize {
        text.find(|c| self.class(c) != class).unwrap_or(text.len())
    }

    fn class(&self, c: char) -> CharClass {
        let within = |ranges: &[(char, char)]| {
            let after = ranges.partition_point(|&(start, _)| start <= c);
            after > 0 && c <= ranges[after - 1].1
        };
        match c {
            'a'..='z' | 'A'..='Z' => CharClass::Letter,
            '0'..='9' => CharClass::Number,
            c if c.is_whitespace() => CharClass::Space,
            c if c.is_ascii() => CharClass::Other,
            _ if within(&self.letters) => CharClass::Letter,
            _ if within(&self.numbers) => CharClass::Number,
            _ => CharClass::Other,
        }
    }
}

/// Calls `f` with the words of `text`; `length` gives the bytes of the first word of what is left.
fn each_word<'t>(mut text: &'t str, length: impl Fn(&str) -> usize, mut f: impl FnMut(&'t str)) {
    while !text.is_empty() {
        let (word, after) = text.split_at(length(text));
        f(word);
        text = after;
    }
}

/// Length of `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d` at the start of `text`, each letter
/// passed through `fold` first.
fn contraction(text: &str, fold: impl Fn(char) -> char) -> Option<usize> {
    let rest = text.strip_prefix('\'')?;
    let mut chars = rest.chars();
    let first = chars.next()?;
    let second = chars.next().map(&fold);
    let letters = match (fold(first), second) {
        ('s' | 't' | 'm' | 'd', _) => first.len_utf8(),
        ('r' | 'v', Some('e')) | ('l', Some('l')) => 2,
        _ => return None,
    };
    Some(1 + letters)
}

/// `\s+(?!\S)|\s+` at a run of `spaces` bytes: the last character is left to the word that follows,
/// unless nothing follows or it is the only one.
fn spaces_before_word(text: &str, spaces: usize) -> usize {
    let last = text[..spaces].chars().next_back().map_or(0, char::len_utf8);
    if spaces == text.len() || spaces == last { spaces } else { spaces - last }
}

/// The ranges of a Unicode class, in ascending order.
fn class_ranges(pattern: &str) -> Vec<(char, char)> {
    let hir = regex_syntax::parse(pattern).expect("a constant pattern");
    match hir.into_kind() {
        HirKind::Class(Class::Unicode(class)) => {
            class.ranges().iter().map(|range| (range.start(), range.end())).collect()
        }
        _ => unreachable!("a Unicode class is parsed to a class"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(kind: PreTokenizer, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        WordScanner::new(kind).words(text, |word| words.push(word.to_owned()));
        assert_eq!(words.concat(), text);
        words
    }

    #[test]
    fn qwen2() {
        let cut = |text| words(PreTokenizer::Qwen2, text);
        assert_eq!(cut("It's 12 o'clock"), ["It", "'s", " ", "1", "2", " o", "'clock"]);
        assert_eq!(cut("WE'LL 'ſx"), ["WE", "'LL", " '", "ſx"]);
        assert_eq!(cut("a'ſ"), ["a", "'ſ"]);
        assert_eq!(cut("end.\n\n  next"), ["end", ".\n\n", " ", " next"]);
        assert_eq!(cut("x \r\n \n y"), ["x", " \r\n \n", " y"]);
        assert_eq!(cut("\tif ($a)  "), ["\tif", " ($", "a", ")", "  "]);
    }

    #[test]
    fn smollm() {
        let cut = |text| words(PreTokenizer::Smollm, text);
        assert_eq!(cut("It's  12 o'clock"), ["It", "'s", "  ", "1", "2", " o", "'", "clock"]);
        assert_eq!(cut("WE'LL"), ["WE", "'", "LL"]);
        assert_eq!(cut("end.\n\n  next"), ["end", ".", "\n\n ", " next"]);
        assert_eq!(cut(" \u{b2}x"), [" ", "\u{b2}", "x"]);
        assert_eq!(cut("\n"), ["\n"]);
    }
}
