//! What [`super::rewrite`] writes for the operators that make values of any size. They do what the
//! engine's own do, but ask for room first, and lists that they make are lists and no promises.

use minijinja::value::{Rest, Tuple, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use super::room::{self, ITEM};

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("bounded_add", add);
    environment.add_filter("bounded_concat", concat);
    environment.add_filter("bounded_mul", multiply);
    environment.add_filter("bounded_slice", slice);
    environment.add_filter("bounded_new", |state: &mut State, value: Value| {
        room::walk(state, &value, 0).map(|()| value)
    });
    environment
        .add_filter("bounded_kept", |value: Value| room::refuse_changing(&value).map(|()| value));
}

fn failed(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

fn impossible(sign: &str, a: &Value, b: &Value) -> Error {
    let (a, b) = (a.kind(), b.kind());
    failed(format!("tried to use {sign} operator on unsupported types {a} and {b}"))
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

/// `first + others[0] + …`
fn add(state: &mut State, first: Value, others: Rest<Value>) -> Result<Value, Error> {
    let strings: Option<Vec<_>> =
        std::iter::once(&first).chain(others.iter()).map(Value::as_str).collect();
    // Strings are joined at once.
    if let Some(strings) = strings {
        room::take(state, strings.iter().map(|text| text.len() as u64).sum())?;
        return Ok(Value::from(strings.concat()));
    }
    others.iter().try_fold(first, |sum, term| add_two(state, &sum, term))
}

fn add_two(state: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        room::take(state, (a.len() + b.len()) as u64)?;
        return Ok(Value::from([a, b].concat()));
    }
    if is_list(a) && is_list(b) && a.is_tuple() == b.is_tuple() {
        let mut items = room::items(state, a)?;
        items.extend(room::items(state, b)?);
        return Ok(list(items, a.is_tuple()));
    }
    match numbers(a, b) {
        Some(Numbers::Integers(x, y)) => {
            x.checked_add(y).map(integer).ok_or_else(|| failed(format!("{a} + {b} is too large")))
        }
        Some(Numbers::Floats(x, y)) => Ok(Value::from(x + y)),
        None => Err(impossible("+", a, b)),
    }
}

fn list(items: Vec<Value>, is_tuple: bool) -> Value {
    match is_tuple {
        true => Value::from(Tuple::from(items)),
        false => Value::from(items),
    }
}

/// `first ~ others[0] ~ …`
fn concat(state: &mut State, first: Value, others: Rest<Value>) -> Result<Value, Error> {
    let mut out = String::new();
    for value in std::iter::once(&first).chain(others.iter()) {
        match value.as_str() {
            Some(text) => {
                room::take(state, text.len() as u64)?;
                out.push_str(text);
            }
            None => out.push_str(&room::text(state, value)?),
        }
    }
    Ok(Value::from(out))
}

/// `first * others[0] * …`
fn multiply(state: &mut State, first: Value, others: Rest<Value>) -> Result<Value, Error> {
    others.iter().try_fold(first, |product, factor| multiply_two(state, &product, factor))
}

fn multiply_two(state: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    let times = |count: &Value| {
        count.as_usize().ok_or_else(|| failed("only an integer repeats a string or list".into()))
    };
    for (of, count) in [(a, b), (b, a)] {
        if let Some(text) = of.as_str() {
            let count = times(count)?;
            room::take(state, (text.len() as u64).saturating_mul(count as u64))?;
            return Ok(Value::from(text.repeat(count)));
        }
    }
    for (of, count) in [(a, b), (b, a)] {
        if is_list(of) {
            let (count, items) = (times(count)?, room::items(state, of)?);
            room::take(state, (items.len() as u64 * ITEM).saturating_mul(count as u64))?;
            let repeated = std::iter::repeat_n(&items, count).flatten().cloned();
            return Ok(list(repeated.collect(), of.is_tuple()));
        }
    }
    match numbers(a, b) {
        Some(Numbers::Integers(x, y)) => {
            x.checked_mul(y).map(integer).ok_or_else(|| failed(format!("{a} * {b} is too large")))
        }
        Some(Numbers::Floats(x, y)) => Ok(Value::from(x * y)),
        None => Err(impossible("*", a, b)),
    }
}

enum Numbers {
    Integers(i128, i128),
    Floats(f64, f64),
}

fn numbers(a: &Value, b: &Value) -> Option<Numbers> {
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if !is_number(a) || !is_number(b) {
        return None;
    }
    let is_float = |value: &Value| value.kind() == ValueKind::Number && !value.is_integer();
    if is_float(a) || is_float(b) {
        return Some(Numbers::Floats(float(a)?, float(b)?));
    }
    let integer = |value: &Value| i128::try_from(value.clone()).ok();
    Some(Numbers::Integers(integer(a)?, integer(b)?))
}

fn float(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        _ => f64::try_from(value.clone()).ok(),
    }
}

fn integer(x: i128) -> Value {
    i64::try_from(x).map_or_else(|_| Value::from(x), Value::from)
}

/// `value[start:stop:step]`, as in Python.
fn slice(
    state: &mut State,
    value: Value,
    start: Option<i64>,
    stop: Option<i64>,
    step: Option<i64>,
) -> Result<Value, Error> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(failed("cannot slice by step size of 0".into()));
    }
    if let Some(text) = value.as_str() {
        room::take(state, text.len() as u64 * if step == 1 { 1 } else { 5 })?;
        let count = text.chars().count();
        if step == 1 {
            let taken = places(count, start, stop, 1);
            let text = text.chars().skip(taken.first).take(taken.count).collect::<String>();
            return Ok(Value::from(text));
        }
        let chars: Vec<_> = text.chars().collect();
        return Ok(Value::from(
            places(count, start, stop, step).map(|at| chars[at]).collect::<String>(),
        ));
    }
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => Ok(Value::from(Vec::<Value>::new())),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = room::items(state, &value)?;
            let taken = places(items.len(), start, stop, step);
            Ok(list(taken.map(|at| items[at].clone()).collect(), value.is_tuple()))
        }
        kind => Err(failed(format!("value of type {kind} cannot be sliced"))),
    }
}

/// The places that a slice takes of `len` items.
struct Places {
    first: usize,
    count: usize,
    step: i64,
}

fn places(len: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> Places {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    // Behind the last place that there may be, going on from there.
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let bound = |bound: Option<i64>, default: i64| {
        let from_end = |at: i64| if at < 0 { at.saturating_add(len) } else { at };
        bound.map_or(default, |at| from_end(at).clamp(lowest, highest))
    };
    let (start, stop) = match step > 0 {
        true => (bound(start, 0), bound(stop, len)),
        false => (bound(start, len - 1), bound(stop, -1)),
    };
    let distance = if step > 0 { stop - start } else { start - stop }.max(0).unsigned_abs();
    let count = usize::try_from(distance.div_ceil(step.unsigned_abs())).unwrap_or(0);
    Places { first: usize::try_from(start).unwrap_or(0), count, step }
}

impl Iterator for Places {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.count = self.count.checked_sub(1)?;
        let at = self.first;
        // Behind the last there may be no next.
        self.first = at.saturating_add_signed(isize::try_from(self.step).unwrap_or(isize::MAX));
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Python takes of range(5).
    #[test]
    fn slices_are_those_of_python() {
        let taken = |start, stop, step| places(5, start, stop, step).collect::<Vec<_>>();
        assert_eq!(taken(None, None, 1), [0, 1, 2, 3, 4]);
        assert_eq!(taken(Some(1), Some(-1), 1), [1, 2, 3]);
        assert_eq!(taken(Some(-2), None, 1), [3, 4]);
        assert_eq!(taken(Some(-9), Some(99), 2), [0, 2, 4]);
        assert!(taken(Some(3), Some(1), 1).is_empty());
        assert_eq!(taken(None, None, -1), [4, 3, 2, 1, 0]);
        assert_eq!(taken(Some(3), Some(0), -1), [3, 2, 1]);
        assert_eq!(taken(Some(9), Some(-9), -2), [4, 2, 0]);
        assert_eq!(taken(Some(0), None, -1), [0]);
        assert!(taken(Some(1), Some(3), -1).is_empty());
        for extreme in [i64::MIN, i64::MAX] {
            for (start, stop) in [(None, None), (Some(extreme), None), (None, Some(extreme))] {
                assert!(taken(start, stop, extreme).len() <= 1);
                assert!(taken(start, stop, 1).len() <= 5);
            }
        }
        assert_eq!(places(0, None, None, -1).count(), 0);
    }
}
