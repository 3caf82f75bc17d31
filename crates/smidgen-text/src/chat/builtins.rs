//! The engine's filters, functions and methods, each with room taken for what it makes.

use minijinja::functions;
use minijinja::value::{Kwargs, Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::room::{self, ITEM};

pub(super) fn add_to(environment: &mut Environment<'static>) {
    // Jinja2 does not know them, and what they make grows without room.
    for name in ["bool", "chain", "lines", "pprint", "split", "zip"] {
        environment.remove_filter(name);
    }
    environment.remove_global("debug");
    for (name, filter) in wrapped() {
        environment.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            let cost = cost(state, name, &args)?;
            room::take(state, cost)?;
            let made = filter.call(state, &args)?;
            room::settle(state, made)
        });
    }
    environment.set_unknown_method_callback(method);
    environment.add_function("range", range);
    environment.add_function("dict", |state: &mut State, of: Option<Value>, with: Kwargs| {
        let made = functions::dict(of, with)?;
        room::settle(state, made)
    });
    environment.add_function("namespace", |state: &mut State, of: Option<ValueOrKwargs>| {
        if let Some(of) = &of {
            let of = of.clone().into_value();
            room::walk(state, &of, 0)?;
        }
        functions::namespace(of)
    });
}

/// The filters that make strings, lists or maps.
fn wrapped() -> Vec<(&'static str, Value)> {
    vec![
        ("batch", Value::from_function(filters::batch)),
        ("capitalize", Value::from_function(filters::capitalize)),
        ("dictsort", Value::from_function(filters::dictsort)),
        ("e", Value::from_function(filters::escape)),
        ("escape", Value::from_function(filters::escape)),
        ("format", Value::from_function(filters::format)),
        ("groupby", Value::from_function(filters::groupby)),
        ("indent", Value::from_function(filters::indent)),
        ("items", Value::from_function(filters::items)),
        ("join", Value::from_function(filters::join)),
        ("list", Value::from_function(filters::list)),
        ("lower", Value::from_function(filters::lower)),
        ("map", Value::from_function(filters::map)),
        ("reject", Value::from_function(filters::reject)),
        ("rejectattr", Value::from_function(filters::rejectattr)),
        ("replace", Value::from_function(filters::replace)),
        ("reverse", Value::from_function(filters::reverse)),
        ("safe", Value::from_function(filters::safe)),
        ("select", Value::from_function(filters::select)),
        ("selectattr", Value::from_function(filters::selectattr)),
        ("slice", Value::from_function(filters::slice)),
        ("sort", Value::from_function(filters::sort)),
        ("string", Value::from_function(filters::string)),
        ("sum", Value::from_function(filters::sum)),
        ("title", Value::from_function(filters::title)),
        ("trim", Value::from_function(filters::trim)),
        ("unique", Value::from_function(filters::unique)),
        ("upper", Value::from_function(filters::upper)),
    ]
}

/// Methods of Python's strings, lists and maps.
fn method(state: &mut State, of: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let makes_text = matches!(
        name,
        "capitalize"
            | "format"
            | "join"
            | "lower"
            | "lstrip"
            | "replace"
            | "rstrip"
            | "split"
            | "splitlines"
            | "strip"
            | "title"
            | "upper"
    );
    if makes_text && of.kind() == ValueKind::String {
        let all: Vec<_> = std::iter::once(of).chain(args).cloned().collect();
        let cost = cost(state, name, &all)?;
        room::take(state, cost)?;
    }
    let made = unknown_method_callback(state, of, name, args)?;
    match name {
        // It was there before.
        "get" => Ok(made),
        _ => room::settle(state, made),
    }
}

/// The most bytes of text that a filter or method makes; lists are counted when they are made,
/// but for those that a number makes long.
fn cost(state: &mut State, name: &str, args: &[Value]) -> Result<u64, Error> {
    let Some(of) = args.first() else { return Ok(0) };
    let cost = match name {
        "safe" | "string" | "trim" | "strip" | "lstrip" | "rstrip" | "sum" => {
            room::text_len(state, of)?
        }
        "reverse" => of.as_str().map_or(0, |text| text.len() as u64),
        // A character has at most three in another case.
        "capitalize" | "lower" | "title" | "upper" => room::text_len(state, of)?.saturating_mul(3),
        "e" | "escape" => room::text_len(state, of)?.saturating_mul(6),
        "replace" => replaced(state, args)?,
        "join" => joined(state, args)?,
        "split" | "splitlines" => pieces(of, args),
        "indent" => {
            let text = room::text_len(state, of)?;
            let lines = of.as_str().map_or(text, |text| text.split('\n').count() as u64);
            lines.saturating_mul(largest(&args[1..])).saturating_add(text + lines.saturating_mul(5))
        }
        "format" => formatted(state, args)?,
        "batch" | "slice" => largest(&args[1..]).saturating_mul(ITEM).saturating_add(letters(of)),
        _ => letters(of),
    };
    Ok(cost)
}

/// A filter of lists takes a string for the list of its characters.
fn letters(of: &Value) -> u64 {
    of.as_str().map_or(0, |text| text.len() as u64 * ITEM)
}

/// What was given, by name or not.
fn given(args: &[Value]) -> Vec<Value> {
    let of = |value: &Value| match value.is_kwargs() {
        true => value.try_iter().map_or_else(
            |_| Vec::new(),
            |names| names.filter_map(|name| value.get_item(&name).ok()).collect(),
        ),
        false => vec![value.clone()],
    };
    args.iter().flat_map(of).collect()
}

/// The largest number that was given.
fn largest(args: &[Value]) -> u64 {
    let size = |value: Value| match value.kind() {
        ValueKind::Number => value.as_i64().map_or(u64::MAX, i64::unsigned_abs),
        _ => 0,
    };
    given(args).into_iter().map(size).max().unwrap_or(0)
}

fn replaced(state: &mut State, args: &[Value]) -> Result<u64, Error> {
    let mut bytes = room::text_len(state, &args[0])?;
    if let [of, from, to, ..] = args {
        let count = match (of.as_str(), from.as_str()) {
            (Some(of), Some(from)) => of.matches(from).count() as u64,
            _ => bytes + 1,
        };
        bytes = bytes.saturating_add(count.saturating_mul(room::text_len(state, to)?));
    }
    Ok(bytes)
}

/// A filter gets the list first, a method what goes between.
fn joined(state: &mut State, args: &[Value]) -> Result<u64, Error> {
    let (mut bytes, mut longest, mut count) = (0_u64, 0, 0);
    for (i, value) in given(args).iter().enumerate() {
        let len = room::text_len(state, value)?;
        bytes = bytes.saturating_add(len);
        match value.as_str() {
            Some(text) if i == 0 => {
                count = count.max(text.chars().count() as u64);
                longest = longest.max(len);
            }
            Some(_) => longest = longest.max(len),
            None => count = count.max(value.len().map_or(len, |items| items as u64)),
        }
    }
    // Where two strings are joined either may be the list.
    let two = given(args).iter().filter(|value| value.as_str().is_some()).count() > 1;
    count = if two { count.max(longest) } else { count };
    Ok(bytes.saturating_add(count.saturating_mul(longest)))
}

fn pieces(of: &Value, args: &[Value]) -> u64 {
    let text = of.as_str().unwrap_or_default();
    let count = match args.get(1).and_then(Value::as_str) {
        Some("") => text.chars().count() + 2,
        Some(separator) => text.matches(separator).count() + 1,
        None => text.split_whitespace().count().max(text.lines().count()) + 1,
    };
    text.len() as u64 + (count as u64).saturating_mul(ITEM)
}

/// Each sign that begins a place may bring all that was given, as wide as any number says.
fn formatted(state: &mut State, args: &[Value]) -> Result<u64, Error> {
    let pattern = args[0].as_str().unwrap_or_default();
    let mut bytes = largest(&args[1..]).saturating_mul(u64::from(pattern.contains('*')));
    for value in given(args) {
        bytes = bytes.saturating_add(room::text_len(state, &value)?);
    }
    let widths = pattern.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    for digits in widths {
        bytes = bytes.saturating_add(digits.parse().unwrap_or(u64::MAX));
    }
    let places = pattern.bytes().filter(|byte| matches!(byte, b'%' | b'{')).count() as u64;
    // A number takes at most 310 digits, with as many signs between them.
    Ok(bytes.saturating_add(places.saturating_mul(bytes.saturating_add(1024))))
}

fn range(
    state: &mut State,
    lower: i32,
    upper: Option<i32>,
    step: Option<i32>,
) -> Result<Value, Error> {
    let [upper, step] = [upper, step].map(|bound| bound.map(|bound| bound as isize));
    let made = functions::range(lower as isize, upper, step)?;
    let len = made.len().ok_or_else(|| Error::from(ErrorKind::InvalidOperation))?;
    room::take(state, len as u64 * 8)?;
    Ok(made)
}
