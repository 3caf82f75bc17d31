//! GGUF files (version 2 and 3, little-endian), read through a map; [`GgufWriter`] writes them.
//!
//! Opening a file checks its whole header: every length and offset against the file, names for
//! duplicates, tensors for overlaps. Values and tensors stay in the file until they are asked for.

mod fingerprint;
mod metadata;
mod parse;
mod types;
mod writer;

use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use smidgen_kernels::{Format, QuantMatrix};

pub use fingerprint::{Fingerprint, NoFingerprint};
pub use metadata::Strings;
pub use writer::{GgufWriter, NewTensor, TensorWriter};

use crate::error::{Error, Result};
use crate::mapped::Mapped;
use parse::{Header, TensorInfo};

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    map: Mapped,
    header: Header,
}

/// A tensor of a GGUF file as a matrix of `rows` x `cols`, where `cols` is the length of a row
/// (`ne[0]`). A vector has one row; further dimensions count as rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in the file.
    pub name: String,
    /// How its numbers are stored.
    pub format: Format,
    /// Number of rows: outputs of a projection, entries of a vocabulary.
    pub rows: usize,
    /// Numbers in a row: inputs of a projection, the width of an embedding.
    pub cols: usize,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

impl Gguf {
    /// Opens the file at `path` and checks its header. The pages this touches are released.
    ///
    /// # Errors
    /// Those of [`Mapped::open`]; [`Error::Malformed`] where the file is no sound GGUF file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let map = Mapped::open(path)?;
        let header = parse::header(map.path(), map.bytes())?;
        let gguf = Self { map, header };
        gguf.map.release(0..gguf.map.bytes().len());
        Ok(gguf)
    }

    /// The mapped file, to bring [`Tensor::range`]s into memory and drop them.
    pub fn map(&self) -> &Mapped {
        &self.map
    }

    /// Drops the pages that reading metadata has brought into memory: some megabytes after a
    /// vocabulary was read. The few pages behind the header that the system has mapped along with
    /// its last ones stay.
    pub fn release_header(&self) {
        self.map.release(0..self.header.len.min(self.map.bytes().len()));
    }

    /// Names of all tensors, sorted.
    pub fn tensor_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// Names of all tensors in the order of their bytes in the file.
    pub fn tensors_in_order(&self) -> Vec<&str> {
        let mut tensors: Vec<_> = self.header.tensors.iter().collect();
        tensors.sort_by_key(|(_, info)| info.range.start);
        tensors.into_iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Size of each dimension of a tensor, the row length first.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn shape(&self, name: &str) -> Result<&[u64]> {
        Ok(&self.info(name)?.shape)
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::TensorType`] where its type is not readable.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self.info(name)?;
        let Some(format) = types::format(info.ggml_type) else {
            return Err(self.tensor_type(name, types::READABLE, types::name(info.ggml_type)));
        };
        // The parser has checked that the product of all sizes fits.
        let size = |sizes: &[u64]| sizes.iter().product::<u64>() as usize;
        Ok(Tensor {
            name: name.to_owned(),
            format,
            rows: size(&info.shape[1..]),
            cols: size(&info.shape[..1]),
            range: info.range.clone(),
        })
    }

    /// Checks that every tensor has a readable type.
    ///
    /// # Errors
    /// [`Error::TensorType`] for the first that has not.
    pub fn check_readable(&self) -> Result<()> {
        self.tensor_names().try_for_each(|name| self.tensor(name).map(drop))
    }

    /// The bytes of a tensor of this file, where they are in the map.
    ///
    /// # Panics
    /// If the tensor is of another file.
    pub fn view(&self, tensor: &Tensor) -> QuantMatrix<'_> {
        let bytes = &self.map.bytes()[tensor.range.clone()];
        QuantMatrix::new(tensor.format, bytes, tensor.rows, tensor.cols)
    }

    /// The tensor of that name, where it is in the map.
    ///
    /// # Errors
    /// Those of [`Gguf::tensor`].
    pub fn matrix(&self, name: &str) -> Result<QuantMatrix<'_>> {
        Ok(self.view(&self.tensor(name)?))
    }

    /// A vector such as a norm's weight or a bias, read past the map and widened to f32.
    ///
    /// # Errors
    /// Those of [`Gguf::tensor`] and [`Mapped::read_at`]; [`Error::TensorType`] where the tensor has
    /// more than one row or is stored in blocks.
    pub fn vector_f32(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        let expected = "a vector of F32, F16 or BF16";
        if tensor.rows != 1 {
            let found = format!("a matrix of {} x {}", tensor.rows, tensor.cols);
            return Err(self.tensor_type(name, expected, found));
        }
        let widen: fn(&[u8]) -> f32 = match tensor.format {
            Format::F32 => |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Format::F16 => |b| f16::from_le_bytes([b[0], b[1]]).to_f32(),
            Format::Bf16 => |b| bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            _ => {
                let found = types::name(self.info(name)?.ggml_type);
                return Err(self.tensor_type(name, expected, found));
            }
        };
        let mut bytes = vec![0; tensor.range.len()];
        self.map.read_at(tensor.range.start as u64, &mut bytes)?;
        Ok(bytes.chunks_exact(tensor.format.block_bytes()).map(widen).collect())
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        let path = || self.map.path().to_owned();
        let missing = || Error::MissingTensor { path: path(), tensor: name.to_owned() };
        self.header.tensors.get(name).ok_or_else(missing)
    }

    fn tensor_type(&self, name: &str, expected: &str, found: String) -> Error {
        Error::TensorType {
            path: self.map.path().to_owned(),
            tensor: name.to_owned(),
            expected: expected.to_owned(),
            found,
        }
    }

    fn malformed(&self, offset: usize, what: String) -> Error {
        Error::Malformed { path: self.map.path().to_owned(), offset: offset as u64, what }
    }
}
