//! JSON as values that templates see.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;

use minijinja::value::Value;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::chat::has_sentinel;

/// The entries of an object.
pub(super) struct Object {
    pub(super) entries: Vec<(String, Value)>,
    /// Whether some string in it holds a character that chats can't have.
    pub(super) has_sentinel: bool,
}

/// The object on `line`.
///
/// # Errors
/// What is wrong with it, with its column: no object, a key twice, more than 128 lists and objects
/// within each other.
pub(super) fn object(line: &str) -> Result<Object, String> {
    if line.trim().is_empty() {
        return Err("the line is empty".into());
    }
    if !line.trim_start().starts_with('{') {
        return Err("this is no object".into());
    }
    let sentinel = Cell::new(false);
    let entries = parse(line, Entries(&sentinel))?;
    Ok(Object { entries, has_sentinel: sentinel.get() })
}

/// The list that `text` is, for lists that stand in strings.
///
/// # Errors
/// It is none.
pub(crate) fn list(text: &str) -> Result<Value, String> {
    let sentinel = Cell::new(false);
    if !text.trim_start().starts_with('[') {
        return Err("a JSON list is expected".into());
    }
    match parse(text, Tree(&sentinel))? {
        _ if sentinel.get() => Err(SENTINEL.into()),
        value => Ok(value),
    }
}

/// What to tell of a string with a sentinel in it.
pub(super) const SENTINEL: &str =
    "the chat holds one of the noncharacters U+FDD0 and U+FDD1, which no text should";

/// The object or list that `text` is.
///
/// # Errors
/// It is neither.
pub(super) fn value(text: &str) -> Result<Value, String> {
    let sentinel = Cell::new(false);
    let value = parse(text, Tree(&sentinel))?;
    if sentinel.get() { Err(SENTINEL.into()) } else { Ok(value) }
}

fn parse<'t, S: DeserializeSeed<'t>>(text: &'t str, seed: S) -> Result<S::Value, String> {
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed = seed.deserialize(&mut json).and_then(|value| json.end().map(|()| value));
    parsed.map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let said = error.to_string();
        let place = format!(" at line {line} column {column}");
        // A line of the file is one line.
        format!("column {column}: {}", said.strip_suffix(&place).unwrap_or(&said))
    })
}

/// Any value. The cell is set where a string holds a sentinel.
#[derive(Clone, Copy)]
struct Tree<'c>(&'c Cell<bool>);

/// An object's entries.
#[derive(Clone, Copy)]
struct Entries<'c>(&'c Cell<bool>);

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = Vec<(String, Value)>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::from(()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        self.0.set(self.0.get() || has_sentinel(value));
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(self)? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        Entries(self.0).visit_map(map).map(Value::from_pairs)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = Vec<(String, Value)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            self.0.set(self.0.get() || has_sentinel(&key));
            entries.push((key, map.next_value_seed(Tree(self.0))?));
        }
        let mut keys = BTreeSet::new();
        match entries.iter().find(|(key, _)| !keys.insert(key)) {
            Some((key, _)) => Err(A::Error::custom(format_args!("duplicate key {key:?}"))),
            None => Ok(entries),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let text =
            r#"{"a": [1, -2, 0.5, null, true, "é\u0000\ud83d\ude00"], "b": {"z": 1, "a": 2}}"#;
        let Object { entries, has_sentinel } = object(text).unwrap();
        assert!(!has_sentinel);
        assert_eq!(entries.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let keys: Vec<_> = entries[1].1.try_iter().unwrap().map(|key| key.to_string()).collect();
        assert_eq!(keys, ["z", "a"]);
        let last = entries[0].1.get_item_by_index(5).unwrap();
        assert_eq!(last.as_str(), Some("é\0😀"));
        assert!(object(r#"{"a": {"b": ["\ufdd0"]}}"#).unwrap().has_sentinel);
    }

    #[test]
    fn refusals() {
        for (text, what) in [
            ("", "the line is empty"),
            ("[]", "this is no object"),
            ("{", "column 1: EOF"),
            ("{} {}", "trailing"),
            (r#"{"a": 1, "a": 2}"#, "duplicate key \"a\""),
            (r#"{"a": {"b": 1, "b": 2}}"#, "duplicate key \"b\""),
            (r#"{"a": "\ud800"}"#, "hex escape"),
            (r#"{"a": 1e999}"#, "out of range"),
            (&format!("{{\"a\": {}", "[".repeat(100_000)), "recursion limit"),
        ] {
            let error = object(text).err().unwrap();
            assert!(error.contains(what), "{error} does not tell {what}");
        }
        assert!(list("{}").is_err() && list("[\"\u{fdd1}\"]").is_err() && value("[1]").is_ok());
    }
}
