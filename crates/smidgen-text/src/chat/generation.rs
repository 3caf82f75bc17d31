//! `{% generation %}` and `{% endgeneration %}`, which stand around what the model writes.
//!
//! No engine but transformers' own knows the two tags. Each is rewritten as an `if` that writes one
//! character, a sentinel, so that whitespace around it is treated as that around the tag:
//! `{%- generation %}` becomes `{%- if true %}S{% endif %}`. The sentinels are then taken out of
//! what was rendered.

use std::ops::Range;

/// Stands where a stretch of the model's begins. Unicode keeps the noncharacters for such inner uses.
pub(crate) const BEGIN: char = '\u{fdd0}';
/// Stands where it ends.
pub(crate) const END: char = '\u{fdd1}';

/// Whether `text` holds a sentinel.
pub(crate) fn has_sentinel(text: &str) -> bool {
    text.contains([BEGIN, END])
}

/// The template with its tags rewritten; none where it has no such tag.
pub(super) fn rewrite(source: &str) -> Option<String> {
    let (mut out, mut copied, mut at) = (String::new(), 0, 0);
    while let Some(found) = source[at..].find('{') {
        let open = at + found;
        at = match source.as_bytes().get(open + 1) {
            Some(b'#') => after(source, open + 2, "#}"),
            Some(b'{') => close(source, open + 2, "}}"),
            Some(b'%') => {
                let end = close(source, open + 2, "%}");
                let tag = Tag::parse(&source[open + 2..end]);
                if let Some(sentinel) = tag.sentinel() {
                    out.push_str(&source[copied..open]);
                    let Tag { left, right, .. } = tag;
                    out.push_str(&format!("{{%{left} if true %}}{sentinel}{{% endif {right}%}}"));
                    copied = end;
                }
                if tag.name == "raw" { after(source, end, "endraw") } else { end }
            }
            _ => open + 1,
        };
    }
    (copied > 0).then(|| out + &source[copied..])
}

/// The inside of `{% … %}`, its end included: a name between signs of whitespace control.
struct Tag<'a> {
    left: &'a str,
    name: &'a str,
    right: &'a str,
}

impl<'a> Tag<'a> {
    fn parse(inside: &'a str) -> Self {
        let inside = inside.strip_suffix("%}").unwrap_or_default();
        let signs = ['-', '+'];
        let (left, inside) = inside.split_at(usize::from(inside.starts_with(signs)));
        let sign = usize::from(inside.ends_with(signs));
        let (inside, right) = inside.split_at(inside.len() - sign);
        Self { left, name: inside.trim(), right }
    }

    fn sentinel(&self) -> Option<char> {
        match self.name {
            "generation" => Some(BEGIN),
            "endgeneration" => Some(END),
            _ => None,
        }
    }
}

/// Where the first `end` from `at` on is over; the end of the text where there is none.
fn after(source: &str, at: usize, end: &str) -> usize {
    source[at..].find(end).map_or(source.len(), |found| at + found + end.len())
}

/// The same, but for ends within quotes.
fn close(source: &str, at: usize, end: &str) -> usize {
    let bytes = source.as_bytes();
    let (mut at, mut quote) = (at, None);
    while at < bytes.len() {
        match (bytes[at], quote) {
            (b'\\', Some(_)) => at += 1,
            (byte, Some(open)) if byte == open => quote = None,
            (byte @ (b'\'' | b'"'), None) => quote = Some(byte),
            (_, None) if bytes[at..].starts_with(end.as_bytes()) => return at + end.len(),
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

/// Takes the sentinels out of `text` and gives the stretches that lay between them, in bytes; none
/// where they do not pair. A stretch within another is part of it.
pub(super) fn take_spans(text: &mut String) -> Option<Vec<Range<usize>>> {
    let (mut spans, mut at, mut begin, mut depth) = (Vec::new(), 0, 0, 0_usize);
    let mut pairs = true;
    text.retain(|c| {
        match c {
            BEGIN => {
                begin = if depth == 0 { at } else { begin };
                depth += 1;
            }
            END => {
                pairs &= depth > 0;
                depth = depth.saturating_sub(1);
                if depth == 0 && begin < at {
                    spans.push(begin..at);
                }
            }
            c => {
                at += c.len_utf8();
                return true;
            }
        }
        false
    });
    (pairs && depth == 0).then_some(spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        let rewritten = |source: &str| rewrite(source).map(|s| s.replace([BEGIN, END], "S"));
        let one = "{% if true %}S{% endif %}";
        for (source, wanted) in [
            ("{% generation %}", one.to_owned()),
            ("é{%generation%}a{% endgeneration %}b", format!("é{one}a{one}b")),
            ("{%- endgeneration +%}", "{%- if true %}S{% endif +%}".into()),
            ("{%+\n generation\t-%}", "{%+ if true %}S{% endif -%}".into()),
            ("{{ '}}' }}{% generation %}", format!("{{{{ '}}}}' }}}}{one}")),
            ("{% set x = '%}{% generation %}' %}{% generation %}", {
                format!("{{% set x = '%}}{{% generation %}}' %}}{one}")
            }),
        ] {
            assert_eq!(rewritten(source), Some(wanted), "{source}");
        }
        for source in [
            "",
            "{",
            "{%",
            "{% generation",
            "generation",
            "{{ generation }}",
            "{% set generation = 1 %}",
            "{# {% generation %} #}",
            "{% raw %}{% generation %}{% endraw %}",
            "{{ \"\\\"{% generation %}\" }}",
        ] {
            assert_eq!(rewritten(source), None, "{source}");
        }
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)]
    fn spans() {
        let taken = |text: &str| {
            let mut text = text.replace('<', "\u{fdd0}").replace('>', "\u{fdd1}");
            take_spans(&mut text).map(|spans| (text, spans))
        };
        assert_eq!(taken("aé<bc>d<>"), Some(("aébcd".into(), vec![3..5])));
        assert_eq!(taken("<a<b>c>"), Some(("abc".into(), vec![0..3])));
        assert_eq!(taken(""), Some((String::new(), vec![])));
        for odd in ["<", ">", "a><b"] {
            assert_eq!(taken(odd), None, "{odd}");
        }
    }
}
