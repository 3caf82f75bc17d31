//! The bytes that a template's values may take.
//!
//! What is counted is all that was made while a chat is rendered, and none of it is given back: a
//! sum that only grows needs no list of what still lives, and bounds it.

use std::fmt::{self, Write};

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Bytes that any chat may take.
const ROOM: u64 = 16 << 20;

/// Bytes more for each byte of a chat: templates put a text together from those of all messages, now
/// and then anew for each.
const ROOM_PER_BYTE: u64 = 64;

/// Bytes that an item of a list or map is counted as.
pub(super) const ITEM: u64 = 64;

/// Lists and maps within each other; a line of data has no more than 200.
const DEEPEST: u32 = 256;

/// Under this the context tells a chat's room. No name in a template can be spelled like this.
pub(super) const NAME: &str = "\0room";

/// What is left.
struct Room(u64);

/// Bytes for values of a template that renders `chat`.
pub(super) fn of_chat<'v>(chat: impl IntoIterator<Item = &'v Value>) -> u64 {
    let bytes: u64 = chat.into_iter().map(text_bytes).sum();
    bytes.saturating_mul(ROOM_PER_BYTE).saturating_add(ROOM)
}

fn text_bytes(tree: &Value) -> u64 {
    match tree.kind() {
        ValueKind::String => tree.as_str().map_or(0, |text| text.len() as u64),
        ValueKind::Seq => tree.try_iter().map_or(0, |items| items.map(|v| text_bytes(&v)).sum()),
        ValueKind::Map => tree.try_iter().map_or(0, |keys| {
            keys.map(|key| tree.get_item(&key).map_or(0, |item| text_bytes(&item))).sum()
        }),
        _ => 0,
    }
}

fn left<'s>(state: &'s mut State) -> &'s mut u64 {
    if state.get_extension::<Room>().is_none() {
        let room = state.lookup(NAME).and_then(|room| u64::try_from(room).ok());
        state.get_or_insert_extension(Room(room.unwrap_or(ROOM)));
    }
    &mut state.get_extension_mut::<Room>().expect("it was put there").0
}

/// Takes room for `bytes` more.
pub(super) fn take(state: &mut State, bytes: u64) -> Result<(), Error> {
    let left = left(state);
    *left = left.checked_sub(bytes).ok_or_else(exhausted)?;
    Ok(())
}

fn exhausted() -> Error {
    Error::new(ErrorKind::InvalidOperation, "it makes far larger values than such a chat needs")
}

/// `value` as text, for which room is taken.
pub(super) fn text(state: &mut State, value: &Value) -> Result<String, Error> {
    let mut out = Limited { text: Some(String::new()), bytes: 0, limit: *left(state) };
    write!(out, "{value}").map_err(|_| exhausted())?;
    take(state, out.bytes)?;
    Ok(out.text.unwrap_or_default())
}

/// The bytes that `value` has as text.
pub(super) fn text_len(state: &mut State, value: &Value) -> Result<u64, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.len() as u64);
    }
    let mut out = Limited { text: None, bytes: 0, limit: *left(state) };
    write!(out, "{value}").map_err(|_| exhausted())?;
    Ok(out.bytes)
}

/// Counts what is written to it, stores it where that is asked for, and fails at the limit.
struct Limited {
    text: Option<String>,
    bytes: u64,
    limit: u64,
}

impl Write for Limited {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes += text.len() as u64;
        if self.bytes > self.limit {
            return Err(fmt::Error);
        }
        self.text.iter_mut().for_each(|out| out.push_str(text));
        Ok(())
    }
}

/// The items of a list, for which room is taken.
pub(super) fn items(state: &mut State, list: &Value) -> Result<Vec<Value>, Error> {
    let mut items = Vec::new();
    for item in list.try_iter()?.checked() {
        take(state, ITEM)?;
        items.push(item?);
    }
    Ok(items)
}

/// Takes room for a value that the engine made of others: the items of a list or map, and theirs.
/// What would be made while it is walked over is made now.
pub(super) fn settle(state: &mut State, value: Value) -> Result<Value, Error> {
    let value = match value.kind() {
        ValueKind::Iterable => Value::from(items(state, &value)?),
        _ => value,
    };
    walk(state, &value, 0)?;
    Ok(value)
}

/// Takes room for every item in a tree, as often as it is in there, since that is how often it is
/// written or compared.
pub(super) fn walk(state: &mut State, tree: &Value, depth: u32) -> Result<(), Error> {
    let kind = tree.kind();
    if !matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return Ok(());
    }
    if depth == DEEPEST {
        let what = format!("more than {DEEPEST} lists in each other");
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    refuse_changing(tree)?;
    for item in tree.try_iter()?.checked() {
        let item = item?;
        take(state, ITEM)?;
        walk(state, &item, depth + 1)?;
        if kind == ValueKind::Map {
            walk(state, &tree.get_item(&item)?, depth + 1)?;
        }
    }
    Ok(())
}

/// Refuses what can change, namespaces and loops, as parts of others: they could come to hold
/// themselves, which neither ends when it is written nor is ever freed.
pub(super) fn refuse_changing(value: &Value) -> Result<(), Error> {
    let of_type = value.as_object().map_or("", |object| object.type_name());
    if ["::Namespace", "::Loop"].iter().any(|name| of_type.ends_with(name)) {
        let what = "a namespace or loop can't be part of another value";
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    Ok(())
}
