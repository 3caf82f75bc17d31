//! Safetensors files: a length, then JSON with each tensor's type, shape and place, then bytes.
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
use smidgen_kernels::Format;

use crate::error::{Error, Result};
use crate::new_file::NewFile;

/// Largest header read, in bytes. An adapter of a thousand modules has a quarter of a megabyte.
const MAX_HEADER_BYTES: u64 = 16 << 20;
const METADATA_KEY: &str = "__metadata__";
/// Bytes of the length before the JSON.
const LENGTH_BYTES: usize = 8;

/// A tensor in a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The type's name in the file.
    pub dtype: String,
    /// How its numbers are stored, where that is one of our formats.
    pub format: Option<Format>,
    /// Size of each dimension, the slowest first.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<u64>,
}

/// The format of a type's name.
fn format(dtype: &str) -> Option<Format> {
    match dtype {
        "F32" => Some(Format::F32),
        "F16" => Some(Format::F16),
        "BF16" => Some(Format::Bf16),
        _ => None,
    }
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

/// Reads a file's header, and checks that the tensors fill the file without gap or overlap, each
/// with the bytes that its shape asks for where its type is one of ours.
pub(crate) fn read(path: &Path, file: &File) -> Result<BTreeMap<String, Stored>> {
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

    let mut tensors = BTreeMap::new();
    let mut places = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let [start, end] = entry.data_offsets;
        let tensor = stored(entry, data_start, data_len)
            .map_err(|what| malformed(LENGTH_BYTES as u64, format!("tensor {name:?} {what}")))?;
        places.push((start, end));
        tensors.insert(name, tensor);
    }
    places.sort_unstable();
    let filled = places.iter().try_fold(0, |at, &(start, end)| (start == at).then_some(end));
    if filled != Some(data_len) {
        let what = "the tensors don't fill the file exactly; was it downloaded completely?";
        return Err(malformed(data_start, what.into()));
    }
    Ok(tensors)
}

fn stored(entry: Entry, data_start: u64, data_len: u64) -> std::result::Result<Stored, String> {
    let Entry { dtype, shape, data_offsets: [start, end] } = entry;
    let format = format(&dtype);
    let numbers = shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
    let bytes = numbers.and_then(|n| n.checked_mul(format.map_or(0, Format::block_bytes) as u64));
    let len = end.checked_sub(start).filter(|_| end <= data_len);
    if len.is_none() || format.is_some() && bytes != len {
        return Err(format!("of shape {shape:?} can't take the bytes {start} to {end}"));
    }
    let size = |&size: &u64| usize::try_from(size).map_err(|_| format!("has a side of {size}"));
    let shape = shape.iter().map(size).collect::<std::result::Result<_, _>>()?;
    Ok(Stored { dtype, format, shape, range: data_start + start..data_start + end })
}

/// The name of a format as files have it.
///
/// # Panics
/// If safetensors files have no such type.
fn dtype(format: Format) -> &'static str {
    match format {
        Format::F32 => "F32",
        Format::F16 => "F16",
        Format::Bf16 => "BF16",
        other => panic!("{other:?} is no type of safetensors files"),
    }
}

/// The header of a file of these tensors in that order (name, format, shape), with its length
/// before it, and the bytes of each in the file.
pub(crate) fn header<'a>(
    tensors: impl IntoIterator<Item = (&'a str, Format, &'a [usize])>,
) -> (Vec<u8>, Vec<Range<u64>>) {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Item {
        Metadata { format: &'static str },
        Tensor(Entry),
    }
    let mut at = 0;
    let mut ranges = Vec::new();
    let mut items = BTreeMap::from([(METADATA_KEY, Item::Metadata { format: "pt" })]);
    for (name, format, shape) in tensors {
        let end = at + (shape.iter().product::<usize>() * format.block_bytes()) as u64;
        let shape = shape.iter().map(|&size| size as u64).collect();
        let entry = Entry { dtype: dtype(format).into(), shape, data_offsets: [at, end] };
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

/// Writes a safetensors file from front to back.
///
/// The file appears under its name when [`SafetensorsWriter::finish`] is done, complete and on the
/// disk. Dropped before that, it leaves what was there as it was.
#[derive(Debug)]
pub struct SafetensorsWriter {
    file: NewFile,
    at: u64,
    end: u64,
}

impl SafetensorsWriter {
    /// Begins the file `path` of these tensors (name, format, shape with the slowest dimension
    /// first), whose bytes come next in the same order.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// If a format is not F32, F16 or BF16.
    pub fn create(
        path: impl AsRef<Path>,
        tensors: &[(String, Format, Vec<usize>)],
    ) -> Result<Self> {
        let file = NewFile::create(path.as_ref())?;
        let tensors = tensors.iter().map(|(name, format, shape)| (&**name, *format, &**shape));
        let (header, ranges) = header(tensors);
        file.write_at(&header, 0)?;
        let at = header.len() as u64;
        Ok(Self { file, at, end: ranges.last().map_or(at, |range| range.end) })
    }

    /// Appends bytes of the tensor whose turn it is.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// If the tensors take fewer bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let left = self.end - self.at;
        assert!(bytes.len() as u64 <= left, "{} bytes where {left} lack", bytes.len());
        self.file.write_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Puts the complete file into place and gives its number of bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// If bytes lack.
    pub fn finish(self) -> Result<u64> {
        assert_eq!(self.at, self.end, "bytes that were written and that there are");
        self.file.commit()?;
        Ok(self.end)
    }
}
