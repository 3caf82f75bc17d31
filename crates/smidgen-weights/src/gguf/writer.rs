//! Writing a GGUF file (version 3) from front to back, in the memory of one block.
//!
//! Metadata come first, then the list of tensors, then their bytes in the order of that list:
//! [`GgufWriter`] takes the first two, [`TensorWriter`] the rest. What our reader would refuse is
//! refused here too.

use std::collections::BTreeSet;
use std::path::Path;

use smidgen_kernels::Format;

use super::Gguf;
use super::parse::{DEFAULT_ALIGNMENT, MAX_ENTRIES, MAX_NAME_BYTES, byte_len};
use super::types::{self, ValueType};
use crate::error::{Error, Result};
use crate::new_file::NewFile;

/// Bytes written at a time.
const BLOCK_BYTES: usize = 64 * 1024;
/// Where the numbers of tensors and of metadata entries stand, two u64.
const COUNTS_AT: u64 = 8;
const ALIGNMENT: u64 = DEFAULT_ALIGNMENT as u64;

/// A tensor that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTensor {
    /// Its name in the file.
    pub name: String,
    /// How its numbers are stored.
    pub format: Format,
    /// Size of each dimension, the row length first: `[inputs, outputs]` of a projection.
    pub shape: Vec<u64>,
}

impl NewTensor {
    /// Bytes of the tensor.
    ///
    /// # Errors
    /// What is wrong with its shape: not 1 to 4 sizes, one that is 0, rows that are no whole
    /// blocks, or more bytes than there can be.
    pub fn byte_len(&self) -> std::result::Result<usize, String> {
        if !(1..=4).contains(&self.shape.len()) {
            return Err(format!("has {} dimensions, not 1 to 4", self.shape.len()));
        }
        if self.shape.contains(&0) {
            return Err(format!("is empty: its shape is {:?}", self.shape));
        }
        byte_len(types::number(self.format), &self.shape)
    }
}

/// Writes a GGUF file's metadata, then its list of tensors.
///
/// The file appears under its name when [`TensorWriter::finish`] is done, complete and on the disk.
/// Dropped before that, writers leave what was there as it was. Two writers must not write one
/// file at a time.
#[derive(Debug)]
pub struct GgufWriter {
    out: Out,
    keys: BTreeSet<String>,
}

impl GgufWriter {
    /// Begins the file `path`, under that name with `.tmp` behind it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let file = NewFile::create(path.as_ref())?;
        let mut out = Out { file, block: Vec::with_capacity(BLOCK_BYTES), flushed: 0 };
        out.put(b"GGUF")?;
        out.put(&3u32.to_le_bytes())?;
        out.put(&[0; 16])?;
        Ok(Self { out, keys: BTreeSet::new() })
    }

    /// Adds a string.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] for a key that occurs twice or is too long.
    pub fn str(&mut self, key: &str, value: &str) -> Result<()> {
        self.begin(key, ValueType::String)?;
        self.out.put_str(value)
    }

    /// Adds an integer.
    ///
    /// # Errors
    /// Those of [`GgufWriter::str`].
    pub fn u32(&mut self, key: &str, value: u32) -> Result<()> {
        self.begin(key, ValueType::U32)?;
        self.out.put(&value.to_le_bytes())
    }

    /// Adds a floating-point number.
    ///
    /// # Errors
    /// Those of [`GgufWriter::str`].
    pub fn f32(&mut self, key: &str, value: f32) -> Result<()> {
        self.begin(key, ValueType::F32)?;
        self.out.put(&value.to_le_bytes())
    }

    /// Adds a truth value.
    ///
    /// # Errors
    /// Those of [`GgufWriter::str`].
    pub fn bool(&mut self, key: &str, value: bool) -> Result<()> {
        self.begin(key, ValueType::Bool)?;
        self.out.put(&[value.into()])
    }

    /// Adds an array of strings; none is kept in memory.
    ///
    /// # Errors
    /// Those of [`GgufWriter::str`].
    pub fn strings<S: AsRef<str>>(
        &mut self,
        key: &str,
        values: impl IntoIterator<Item = S>,
    ) -> Result<()> {
        self.array(key, ValueType::String, values, |out, value| out.put_str(value.as_ref()))
    }

    /// Adds an array of i32.
    ///
    /// # Errors
    /// Those of [`GgufWriter::str`].
    pub fn i32s(&mut self, key: &str, values: impl IntoIterator<Item = i32>) -> Result<()> {
        self.array(key, ValueType::I32, values, |out, value| out.put(&value.to_le_bytes()))
    }

    /// Adds an array of f32.
    ///
    /// # Errors
    /// Those of [`GgufWriter::str`].
    pub fn f32s(&mut self, key: &str, values: impl IntoIterator<Item = f32>) -> Result<()> {
        self.array(key, ValueType::F32, values, |out, value| out.put(&value.to_le_bytes()))
    }

    /// Adds an entry as it stands in another file: its key, type and bytes.
    ///
    /// # Errors
    /// Those of [`GgufWriter::str`]; [`Error::MissingKey`] where the other file has no such key.
    ///
    /// # Panics
    /// For `general.alignment`, which this file has its own of.
    pub fn copy(&mut self, from: &Gguf, key: &str) -> Result<()> {
        let (value, bytes) = from.value(key)?;
        self.begin(key, value.kind)?;
        if let Some((element, count)) = value.elements {
            self.out.put(&element.number().to_le_bytes())?;
            self.out.put(&(count as u64).to_le_bytes())?;
        } else if value.kind == ValueType::String {
            self.out.put(&(bytes.len() as u64).to_le_bytes())?;
        }
        bytes.chunks(BLOCK_BYTES).try_for_each(|bytes| self.out.put(bytes))
    }

    /// Ends the metadata and writes the list of tensors, whose bytes come next in the same order.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] for a name that occurs twice or is too long, and for a
    /// shape that [`NewTensor::byte_len`] refuses.
    pub fn tensors(mut self, tensors: &[NewTensor]) -> Result<TensorWriter> {
        let counts = [tensors.len() as u64, self.keys.len() as u64];
        if counts.iter().any(|&count| count > MAX_ENTRIES) {
            let [tensors, keys] = counts;
            return Err(self.out.malformed(format!("{tensors} tensors and {keys} keys are many")));
        }
        self.out.patch(&counts.map(u64::to_le_bytes).concat(), COUNTS_AT)?;
        let mut names = BTreeSet::new();
        let mut lens = Vec::with_capacity(tensors.len());
        let mut offset = 0u64;
        for tensor in tensors {
            self.out.check_name(&tensor.name, &names)?;
            names.insert(tensor.name.clone());
            let len = self.out.put_info(tensor, offset)?;
            lens.push(len);
            let end =
                offset.checked_add(len).and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
            let too_large = || self.out.malformed("the file is too large".into());
            offset = end.ok_or_else(too_large)?;
        }
        self.out.align()?;
        lens.reverse();
        let mut writer = TensorWriter { out: self.out, left: 0, lens };
        writer.next();
        Ok(writer)
    }

    fn begin(&mut self, key: &str, kind: ValueType) -> Result<()> {
        assert_ne!(key, "general.alignment", "the alignment is the default one");
        self.out.check_name(key, &self.keys)?;
        self.keys.insert(key.to_owned());
        self.out.put_str(key)?;
        self.out.put(&kind.number().to_le_bytes())
    }

    fn array<T>(
        &mut self,
        key: &str,
        element: ValueType,
        values: impl IntoIterator<Item = T>,
        put: impl Fn(&mut Out, T) -> Result<()>,
    ) -> Result<()> {
        self.begin(key, ValueType::Array)?;
        self.out.put(&element.number().to_le_bytes())?;
        let count_at = self.out.len();
        let mut count = 0u64;
        self.out.put(&count.to_le_bytes())?;
        for value in values {
            put(&mut self.out, value)?;
            count += 1;
        }
        self.out.patch(&count.to_le_bytes(), count_at)
    }
}

/// Writes the bytes of the tensors that [`GgufWriter::tensors`] was given, in that order.
#[derive(Debug)]
pub struct TensorWriter {
    out: Out,
    /// Bytes that the tensor whose turn it is still lacks.
    left: u64,
    /// Bytes of the tensors after it, the next one last.
    lens: Vec<u64>,
}

impl TensorWriter {
    /// Appends bytes to the tensor whose turn it is. When it is complete, the next one's turn
    /// comes.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// If the tensor takes fewer bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        assert!(len <= self.left, "{len} bytes for a tensor that lacks {}", self.left);
        self.out.put(bytes)?;
        self.left -= len;
        if self.left == 0 {
            self.out.align()?;
            self.next();
        }
        Ok(())
    }

    /// Puts the complete file into place and gives its number of bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// If a tensor is not complete.
    pub fn finish(mut self) -> Result<u64> {
        let (bytes, tensors) = (self.left, self.lens.len());
        assert!(bytes == 0 && tensors == 0, "{bytes} bytes of a tensor and {tensors} more lack");
        self.out.flush()?;
        let bytes = self.out.flushed;
        self.out.file.commit()?;
        Ok(bytes)
    }

    fn next(&mut self) {
        self.left = self.lens.pop().unwrap_or(0);
    }
}

/// The file as far as it is written, the last block in memory.
#[derive(Debug)]
struct Out {
    file: NewFile,
    block: Vec<u8>,
    flushed: u64,
}

impl Out {
    /// Bytes so far.
    fn len(&self) -> u64 {
        self.flushed + self.block.len() as u64
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if self.block.len() + bytes.len() > BLOCK_BYTES {
            self.flush()?;
        }
        if bytes.len() > BLOCK_BYTES {
            self.file.write_at(bytes, self.flushed)?;
            self.flushed += bytes.len() as u64;
        } else {
            self.block.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// A string with its length before it.
    fn put_str(&mut self, text: &str) -> Result<()> {
        self.put(&(text.len() as u64).to_le_bytes())?;
        self.put(text.as_bytes())
    }

    /// A tensor's entry in the list, whose data begin `offset` bytes behind the header; gives their
    /// length.
    fn put_info(&mut self, tensor: &NewTensor, offset: u64) -> Result<u64> {
        let name = &tensor.name;
        let wrong = |what| self.malformed(format!("tensor {name:?} {what}"));
        let len = tensor.byte_len().map_err(wrong)?;
        self.put_str(name)?;
        self.put(&(tensor.shape.len() as u32).to_le_bytes())?;
        for size in &tensor.shape {
            self.put(&size.to_le_bytes())?;
        }
        self.put(&types::number(tensor.format).to_le_bytes())?;
        self.put(&offset.to_le_bytes())?;
        Ok(len as u64)
    }

    /// Overwrites bytes that were put before.
    fn patch(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        self.flush()?;
        self.file.write_at(bytes, offset)
    }

    /// Zeros up to the next place where a tensor may begin.
    fn align(&mut self) -> Result<()> {
        let padding = self.len().next_multiple_of(ALIGNMENT) - self.len();
        self.put(&[0; ALIGNMENT as usize][..padding as usize])
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_at(&self.block, self.flushed)?;
        self.flushed += self.block.len() as u64;
        self.block.clear();
        Ok(())
    }

    fn check_name(&self, name: &str, taken: &BTreeSet<String>) -> Result<()> {
        if taken.contains(name) {
            return Err(self.malformed(format!("{name:?} occurs twice")));
        }
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            let len = name.len();
            return Err(
                self.malformed(format!("a name has {len} bytes, not 1 to {MAX_NAME_BYTES}"))
            );
        }
        Ok(())
    }

    fn malformed(&self, what: String) -> Error {
        Error::Malformed { path: self.file.path().to_owned(), offset: self.len(), what }
    }
}
