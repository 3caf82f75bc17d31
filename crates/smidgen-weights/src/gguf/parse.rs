//! The header of a GGUF file: counts, metadata, tensor infos.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Nothing is allocated for a
//! length the file claims before that length is known to fit into the file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::types::{self, ValueType};
use crate::error::{Error, Result};

/// Most entries of either kind. Real files have some thousands.
pub(super) const MAX_ENTRIES: u64 = 65_536;
/// Longest metadata key or tensor name, in bytes. Real ones stay under 64.
pub(super) const MAX_NAME_BYTES: usize = 1024;
/// Bytes of the smallest metadata entry: key length, one character, type, value.
const MIN_ENTRY_BYTES: usize = 8 + 1 + 4 + 1;
/// Bytes of the smallest tensor info: name length, one character, rank, one size, type, offset.
const MIN_INFO_BYTES: usize = 8 + 1 + 4 + 8 + 4 + 8;
pub(super) const DEFAULT_ALIGNMENT: usize = 32;
const MAX_ALIGNMENT: usize = 1 << 20;

/// What the header says; values stay where they are in the file.
#[derive(Debug)]
pub(super) struct Header {
    pub values: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, TensorInfo>,
    /// Bytes up to the first tensor's data.
    pub len: usize,
}

/// A metadata value: where its bytes are, and what they are.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub kind: ValueType,
    /// Elements of an array: their type and number.
    pub elements: Option<(ValueType, usize)>,
    /// The value's bytes in the file, without the length of a string or the header of an array.
    pub range: Range<usize>,
}

/// A tensor as the header describes it.
#[derive(Clone, Debug)]
pub(super) struct TensorInfo {
    pub ggml_type: u32,
    /// Size of each dimension, the row length first.
    pub shape: Vec<u64>,
    /// The tensor's bytes in the file; only its first where its type is not readable.
    pub range: Range<usize>,
    /// Where the header describes it.
    described_at: usize,
}

/// Parses the header of a file of these `bytes`.
pub(super) fn header(path: &Path, bytes: &[u8]) -> Result<Header> {
    let mut cursor = Cursor { path, bytes, at: 0 };
    preamble(&mut cursor)?;
    let tensor_count = cursor.count("tensors", MIN_INFO_BYTES)?;
    let value_count = cursor.count("metadata entries", MIN_ENTRY_BYTES)?;
    let mut values = BTreeMap::new();
    for _ in 0..value_count {
        let at = cursor.at;
        let key = cursor.name("metadata key")?;
        let value = value(&mut cursor, &key)?;
        if values.contains_key(&key) {
            return Err(cursor.error_at(at, format!("metadata key {key:?} occurs twice")));
        }
        values.insert(key, value);
    }
    let alignment = alignment(&cursor, &values)?;
    let mut tensors = BTreeMap::new();
    for _ in 0..tensor_count {
        let at = cursor.at;
        let name = cursor.name("tensor name")?;
        let info = tensor_info(&mut cursor, &name, at)?;
        if tensors.contains_key(&name) {
            return Err(cursor.error_at(at, format!("tensor {name:?} occurs twice")));
        }
        tensors.insert(name, info);
    }
    // No overflow: `at` is within the bytes of a slice, and the alignment is small.
    let len = cursor.at.next_multiple_of(alignment);
    place_tensors(&cursor, &mut tensors, len, alignment)?;
    Ok(Header { values, tensors, len })
}

fn preamble(cursor: &mut Cursor) -> Result<()> {
    let magic = cursor.take(4, || "the magic number".into())?;
    if magic != b"GGUF" {
        let what = "this is no GGUF file (it does not begin with \"GGUF\"); \
            convert the model with llama.cpp's convert_hf_to_gguf.py";
        return Err(cursor.error_at(0, what.into()));
    }
    let version = cursor.u32("the version")?;
    let what = match version {
        2 | 3 => return Ok(()),
        1 => "GGUF version 1 is not readable; convert the model again with a current llama.cpp"
            .into(),
        _ if version.swap_bytes() <= 0xffff => "this GGUF file is big-endian; \
            make it little-endian with gguf_convert_endian.py of the Python package gguf"
            .into(),
        _ => format!("GGUF version {version} is not readable, only 2 and 3 are"),
    };
    Err(cursor.error_at(4, what))
}

fn value(cursor: &mut Cursor, key: &str) -> Result<Value> {
    let kind = value_type(cursor, key)?;
    if kind != ValueType::Array {
        let range = match kind.bytes() {
            Some(len) => cursor.range(len, || format!("metadata {key:?}"))?,
            None => cursor.string(|| format!("metadata {key:?}"))?,
        };
        return Ok(Value { kind, elements: None, range });
    }
    let at = cursor.at;
    let element = value_type(cursor, key)?;
    let count = cursor.u64(&format!("metadata {key:?}"))?;
    let shortest = match element {
        ValueType::Array => {
            return Err(cursor.error_at(at, format!("metadata {key:?} is an array of arrays")));
        }
        ValueType::String => 8,
        _ => element.bytes().expect("every other type has a size"),
    };
    let too_long = || cursor.error_at(at, format!("metadata {key:?}: {count} elements don't fit"));
    let count = usize::try_from(count).map_err(|_| too_long())?;
    let bytes = count.checked_mul(shortest).ok_or_else(too_long)?;
    if bytes > cursor.left() {
        return Err(too_long());
    }
    let start = cursor.at;
    if element == ValueType::String {
        for i in 0..count {
            cursor.string(|| format!("metadata {key:?}, element {i}"))?;
        }
    } else {
        cursor.at += bytes;
    }
    Ok(Value { kind, elements: Some((element, count)), range: start..cursor.at })
}

fn value_type(cursor: &mut Cursor, key: &str) -> Result<ValueType> {
    let at = cursor.at;
    let number = cursor.u32(&format!("the type of metadata {key:?}"))?;
    ValueType::from_number(number).ok_or_else(|| {
        cursor.error_at(at, format!("metadata {key:?} has the unknown type {number}"))
    })
}

fn alignment(cursor: &Cursor, values: &BTreeMap<String, Value>) -> Result<usize> {
    let Some(value) = values.get("general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let bytes = &cursor.bytes[value.range.clone()];
    let alignment = match (value.kind, <[u8; 4]>::try_from(bytes)) {
        (ValueType::U32, Ok(bytes)) => u32::from_le_bytes(bytes) as usize,
        _ => 0,
    };
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        let what = format!("general.alignment should be a u32 power of two up to {MAX_ALIGNMENT}");
        return Err(cursor.error_at(value.range.start, what));
    }
    Ok(alignment)
}

/// Reads one tensor info. Its range begins at the offset the file gives, from the data's start.
fn tensor_info(cursor: &mut Cursor, name: &str, described_at: usize) -> Result<TensorInfo> {
    let about = format!("tensor {name:?}");
    let at = cursor.at;
    let rank = cursor.u32(&about)?;
    if !(1..=4).contains(&rank) {
        return Err(cursor.error_at(at, format!("{about} has {rank} dimensions, not 1 to 4")));
    }
    let at = cursor.at;
    let shape = (0..rank).map(|_| cursor.u64(&about)).collect::<Result<Vec<_>>>()?;
    if shape.contains(&0) {
        return Err(cursor.error_at(at, format!("{about} is empty: its shape is {shape:?}")));
    }
    let ggml_type = cursor.u32(&about)?;
    let offset = cursor.u64(&about)?;
    let len = match byte_len(ggml_type, &shape) {
        Ok(len) => len,
        Err(what) => return Err(cursor.error_at(at, format!("{about} {what}"))),
    };
    let end = |offset: usize| Some(offset..offset.checked_add(len)?);
    let range = usize::try_from(offset).ok().and_then(end).ok_or_else(|| {
        cursor.error_at(described_at, format!("{about} ends beyond the end of the file"))
    })?;
    Ok(TensorInfo { ggml_type, shape, range, described_at })
}

/// Bytes of a tensor; 1 where its type is not readable, so that its size is not known.
pub(super) fn byte_len(ggml_type: u32, shape: &[u64]) -> std::result::Result<usize, String> {
    let too_large = || format!("is too large: its shape is {shape:?}");
    let numbers = shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
    let numbers = numbers.and_then(|n| usize::try_from(n).ok()).ok_or_else(too_large)?;
    let Some(format) = types::format(ggml_type) else {
        return Ok(1);
    };
    let (block_len, block_bytes) = (format.block_len(), format.block_bytes());
    if !shape[0].is_multiple_of(block_len as u64) {
        let name = types::name(ggml_type);
        return Err(format!("is {name} with rows of {}, no multiple of {block_len}", shape[0]));
    }
    (numbers / block_len).checked_mul(block_bytes).ok_or_else(too_large)
}

/// Turns offsets from the data's start into offsets in the file, and checks them all.
fn place_tensors(
    cursor: &Cursor,
    tensors: &mut BTreeMap<String, TensorInfo>,
    data_start: usize,
    alignment: usize,
) -> Result<()> {
    for (name, info) in tensors.iter_mut() {
        if !info.range.start.is_multiple_of(alignment) {
            let what =
                format!("tensor {name:?} begins at no multiple of the alignment, {alignment}");
            return Err(cursor.error_at(info.described_at, what));
        }
        let end = data_start.checked_add(info.range.end).filter(|&end| end <= cursor.bytes.len());
        let Some(end) = end else {
            let what = format!(
                "tensor {name:?} ends beyond the end of the file, which has {} bytes; \
                 was it downloaded completely?",
                cursor.bytes.len()
            );
            return Err(cursor.error_at(info.described_at, what));
        };
        info.range = data_start + info.range.start..end;
    }
    let mut by_place: Vec<_> = tensors.iter().collect();
    by_place.sort_by_key(|(_, info)| (info.range.start, info.range.end));
    for pair in by_place.windows(2) {
        let ((before, first), (name, info)) = (pair[0], pair[1]);
        if first.range.end > info.range.start {
            let what = format!("tensors {before:?} and {name:?} overlap");
            return Err(cursor.error_at(info.described_at, what));
        }
    }
    Ok(())
}

/// A place in the header, up to which all is read.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn error_at(&self, offset: usize, what: String) -> Error {
        Error::Malformed { path: self.path.to_owned(), offset: offset as u64, what }
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Steps over `len` bytes that hold `what`.
    fn range(&mut self, len: usize, what: impl Fn() -> String) -> Result<Range<usize>> {
        if len > self.left() {
            let what = format!("the file ends within {}; was it downloaded completely?", what());
            return Err(self.error_at(self.at, what));
        }
        let start = self.at;
        self.at += len;
        Ok(start..self.at)
    }

    fn take(&mut self, len: usize, what: impl Fn() -> String) -> Result<&'a [u8]> {
        Ok(&self.bytes[self.range(len, what)?])
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        let bytes = self.take(4, || what.to_owned())?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        let bytes = self.take(8, || what.to_owned())?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    }

    /// The number of entries of which each takes at least `min_bytes`.
    fn count(&mut self, of: &str, min_bytes: usize) -> Result<u64> {
        let at = self.at;
        let count = self.u64(&format!("the number of {of}"))?;
        if count > MAX_ENTRIES || count > (self.left() / min_bytes) as u64 {
            return Err(self.error_at(at, format!("the file can't hold {count} {of}")));
        }
        Ok(count)
    }

    /// Steps over a string and gives the range of its characters.
    fn string(&mut self, what: impl Fn() -> String) -> Result<Range<usize>> {
        let at = self.at;
        let bytes = self.take(8, &what)?;
        let len = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        match usize::try_from(len) {
            Ok(len) if len <= self.left() => self.range(len, what),
            _ => Err(self.error_at(at, format!("{}: a string of {len} bytes doesn't fit", what()))),
        }
    }

    /// Reads a key or a tensor's name.
    fn name(&mut self, what: &str) -> Result<String> {
        let at = self.at;
        let range = self.string(|| format!("a {what}"))?;
        if range.is_empty() || range.len() > MAX_NAME_BYTES {
            let what = format!("a {what} has {} bytes, not 1 to {MAX_NAME_BYTES}", range.len());
            return Err(self.error_at(at, what));
        }
        match std::str::from_utf8(&self.bytes[range]) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => Err(self.error_at(at, format!("a {what} is no UTF-8"))),
        }
    }
}
