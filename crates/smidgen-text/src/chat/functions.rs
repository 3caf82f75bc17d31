//! What transformers gives to chat templates beside Jinja's own: `tojson` as Python's `json.dumps`
//! writes it, `raise_exception` and `strftime_now`.

use std::fmt;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::room;

/// Lists and objects within each other that are written; a line of data can't have more.
const DEEPEST: usize = 200;

/// Spaces of an indentation, at most.
const WIDEST: usize = 16;

/// The template's own word on a chat that it refuses.
#[derive(Debug)]
pub(super) struct Refusal(pub String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

pub(super) fn raise_exception(state: &mut State, message: Value) -> Result<Value, Error> {
    let refusal = Refusal(room::text(state, &message)?);
    Err(Error::new(ErrorKind::InvalidOperation, refusal.0.clone()).with_source(refusal))
}

/// The time, which is always 12:00 on Friday, 26 July 2024, so that the same data makes the same
/// tokens on every day. (Llama 3.1's template takes that date where it has no clock.)
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out.push_str(match chars.next() {
            Some('Y') => "2024",
            Some('y') => "24",
            Some('m') => "07",
            Some('d' | 'e') => "26",
            Some('B') => "July",
            Some('b' | 'h') => "Jul",
            Some('A') => "Friday",
            Some('a') => "Fri",
            Some('j') => "208",
            Some('F') => "2024-07-26",
            Some('H' | 'I') => "12",
            Some('M' | 'S') => "00",
            Some('p') => "PM",
            Some('T') => "12:00:00",
            Some('%') => "%",
            other => {
                let what = format!("strftime_now: unknown format %{}", other.unwrap_or(' '));
                return Err(Error::new(ErrorKind::InvalidOperation, what));
            }
        });
    }
    Ok(out)
}

/// `value` as Python's `json.dumps(value, ensure_ascii=False, …)` writes it: keys in their order,
/// no HTML escapes.
pub(super) fn tojson(state: &mut State, value: Value, options: Kwargs) -> Result<String, Error> {
    let indent = options.get::<Option<usize>>("indent")?;
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(refused("separators are two strings".into())),
        None => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
    };
    let mut json = Json {
        state,
        counted: 0,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item,
        key,
        depth: 0,
        out: String::new(),
    };
    options.assert_all_used()?;
    if indent.is_some_and(|spaces| spaces > WIDEST) {
        return Err(refused(format!("an indentation of more than {WIDEST} spaces")));
    }
    json.value(&value)?;
    json.count()?;
    Ok(json.out)
}

fn refused(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"))
}

struct Json<'s, 't, 'e> {
    state: &'s mut State<'t, 'e>,
    /// Bytes of `out` that room was taken for.
    counted: usize,
    ascii: bool,
    sort: bool,
    indent: Option<usize>,
    item: String,
    key: String,
    depth: usize,
    out: String,
}

impl Json<'_, '_, '_> {
    /// Takes room for what was written since.
    fn count(&mut self) -> Result<(), Error> {
        let new = self.out.len() - self.counted;
        self.counted = self.out.len();
        room::take(self.state, new as u64)
    }

    fn value(&mut self, value: &Value) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)?),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item)).collect();
                self.items('[', items, ']')?;
            }
            ValueKind::Map => {
                let mut items = Vec::new();
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    items.push((Some(key_text(&key)?), item));
                }
                if self.sort {
                    items.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.items('{', items, '}')?;
            }
            kind => return Err(refused(format!("{kind} has no JSON form"))),
        }
        Ok(())
    }

    fn items(
        &mut self,
        open: char,
        items: Vec<(Option<String>, Value)>,
        close: char,
    ) -> Result<(), Error> {
        if self.depth == DEEPEST {
            return Err(refused(format!("more than {DEEPEST} lists and objects in each other")));
        }
        self.out.push(open);
        self.depth += 1;
        let is_empty = items.is_empty();
        for (i, (key, item)) in items.into_iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.item);
            }
            self.line();
            if let Some(key) = key {
                self.string(&key);
                self.out.push_str(&self.key);
            }
            self.value(&item)?;
            self.count()?;
        }
        self.depth -= 1;
        if !is_empty {
            self.line();
        }
        self.out.push(close);
        Ok(())
    }

    /// Begins a line, where there are lines.
    fn line(&mut self) {
        if let Some(spaces) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', spaces * self.depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A key as Python turns it into a string.
fn key_text(key: &Value) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
        ValueKind::None => "null".into(),
        ValueKind::Bool => key.is_true().to_string(),
        ValueKind::Number => number(key)?,
        kind => return Err(refused(format!("{kind} is no key"))),
    })
}

fn number(value: &Value) -> Result<String, Error> {
    match value.is_integer() {
        true => Ok(value.to_string()),
        false => f64::try_from(value.clone()).map(float),
    }
}

/// A float as Python's `repr` writes it: the shortest digits that read back, with an exponent below
/// 1e-4 and from 1e16 on.
fn float(x: f64) -> String {
    if !x.is_finite() {
        let name = if x.is_nan() { "NaN" } else { "Infinity" };
        return format!("{}{name}", if x < 0.0 { "-" } else { "" });
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').expect("it was asked for");
    let exponent: i32 = exponent.parse().expect("it is a number");
    if (-4..16).contains(&exponent) {
        let plain = x.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats() {
        for (x, wanted) in [
            (0.1, "0.1"),
            (3.0, "3.0"),
            (-0.0, "-0.0"),
            (1e-4, "0.0001"),
            (1.5e-5, "1.5e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e300, "1.25e+300"),
            (5e-324, "5e-324"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(float(x), wanted);
        }
    }

    #[test]
    fn times() {
        assert_eq!(strftime_now("%d %b %Y").unwrap(), "26 Jul 2024");
        assert_eq!(strftime_now("%A, %H:%M 100 %%").unwrap(), "Friday, 12:00 100 %");
        for unknown in ["%", "%Q"] {
            assert!(strftime_now(unknown).is_err());
        }
    }
}
