//! The header of a safetensors file: a length, then JSON with each tensor's type, shape and place.
//!
//! Format: <https://github.com/huggingface/safetensors#format>.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};

/// Largest header read, in bytes. An adapter of a thousand modules has a quarter of a megabyte.
const MAX_HEADER_BYTES: u64 = 16 << 20;
const METADATA_KEY: &str = "__metadata__";
/// Bytes of the length before the JSON.
const LENGTH_BYTES: usize = 8;

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Dtype {
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A matrix in the file.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    pub dtype: Dtype,
    /// Rows and columns.
    pub dims: [usize; 2],
    /// Its bytes in the file.
    pub range: Range<u64>,
}

/// A tensor as the header describes it.
#[derive(Serialize, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    /// From the end of the header.
    data_offsets: [u64; 2],
}

/// All entries, each name once.
struct Entries(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(
                self,
                mut map: M,
            ) -> std::result::Result<Entries, M::Error> {
                let mut entries = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA_KEY {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let twice = format!("tensor {name:?} occurs twice");
                    if entries.insert(name, map.next_value()?).is_some() {
                        return Err(M::Error::custom(twice));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Names)
    }
}

/// Reads the header of a file that holds matrices of floating-point numbers, and checks that they
/// fill the file without gap or overlap.
pub(super) fn read(path: &Path, file: &File) -> Result<BTreeMap<String, Matrix>> {
    let malformed = |offset, what| Error::Malformed { path: path.to_owned(), offset, what };
    let io = |source| Error::io("read", path, source);
    let file_len = file.metadata().map_err(io)?.len();
    let Some(rest) = file_len.checked_sub(LENGTH_BYTES as u64) else {
        return Err(malformed(0, "the file is too short to be a safetensors file".into()));
    };
    let mut length = [0; LENGTH_BYTES];
    file.read_exact_at(&mut length, 0).map_err(io)?;
    let header_len = u64::from_le_bytes(length);
    if header_len > rest.min(MAX_HEADER_BYTES) {
        return Err(malformed(0, format!("a header of {header_len} bytes doesn't fit")));
    }
    let mut json = vec![0; header_len as usize];
    file.read_exact_at(&mut json, LENGTH_BYTES as u64).map_err(io)?;
    let Entries(entries) = serde_json::from_slice(&json)
        .map_err(|source| Error::Json { path: path.to_owned(), source })?;
    let data_start = LENGTH_BYTES as u64 + header_len;
    let data_len = rest - header_len;

    let mut matrices = BTreeMap::new();
    let mut places = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let [start, end] = entry.data_offsets;
        let matrix = matrix(&entry, data_start, data_len)
            .map_err(|what| malformed(LENGTH_BYTES as u64, format!("tensor {name:?} {what}")))?;
        places.push((start, end));
        matrices.insert(name, matrix);
    }
    places.sort_unstable();
    let filled = places.iter().try_fold(0, |at, &(start, end)| (start == at).then_some(end));
    if filled != Some(data_len) {
        let what = "the tensors don't fill the file exactly; was it downloaded completely?";
        return Err(malformed(data_start, what.into()));
    }
    Ok(matrices)
}

fn matrix(entry: &Entry, data_start: u64, data_len: u64) -> std::result::Result<Matrix, String> {
    let dtype = match entry.dtype.as_str() {
        "F32" => Dtype::F32,
        "F16" => Dtype::F16,
        "BF16" => Dtype::Bf16,
        other => return Err(format!("is of type {other:?}, not F32, F16 or BF16")),
    };
    let [rows, cols] = entry.shape[..] else {
        return Err(format!("has {} dimensions, not 2", entry.shape.len()));
    };
    let [start, end] = entry.data_offsets;
    let bytes =
        rows.checked_mul(cols).and_then(|numbers| numbers.checked_mul(dtype.bytes() as u64));
    if bytes.is_none() || bytes != end.checked_sub(start) || end > data_len {
        return Err(format!("of {rows} x {cols} can't take the bytes {start} to {end}"));
    }
    let size = |size: u64| usize::try_from(size).map_err(|_| format!("has a side of {size}"));
    let range = data_start + start..data_start + end;
    Ok(Matrix { dtype, dims: [size(rows)?, size(cols)?], range })
}

/// The header of a file of F32 matrices in that order, with its length before it, and the bytes of
/// each in the file.
pub(super) fn header(matrices: &[(String, [usize; 2])]) -> (Vec<u8>, Vec<Range<u64>>) {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Item {
        Metadata { format: &'static str },
        Tensor(Entry),
    }
    let mut at = 0;
    let mut ranges = Vec::with_capacity(matrices.len());
    let mut items = BTreeMap::from([(METADATA_KEY, Item::Metadata { format: "pt" })]);
    for (name, [rows, cols]) in matrices {
        let end = at + (rows * cols * Dtype::F32.bytes()) as u64;
        let shape = vec![*rows as u64, *cols as u64];
        let entry = Entry { dtype: "F32".into(), shape, data_offsets: [at, end] };
        items.insert(name, Item::Tensor(entry));
        ranges.push(at..end);
        at = end;
    }
    let mut json = serde_json::to_vec(&items).expect("strings and integers are JSON");
    json.resize(json.len().next_multiple_of(8), b' ');
    let start = (LENGTH_BYTES + json.len()) as u64;
    for range in &mut ranges {
        *range = start + range.start..start + range.end;
    }
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    (header, ranges)
}
