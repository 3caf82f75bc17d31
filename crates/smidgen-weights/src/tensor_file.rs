//! A safetensors file of floats, read one tensor at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::safetensors::{self, Stored};

/// Bytes read at once.
const CHUNK_BYTES: usize = 16 << 10;

/// A safetensors file whose header was checked.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    tensors: BTreeMap<String, Stored>,
}

impl TensorFile {
    /// Opens a file and checks that its tensors fill it, each with the bytes that its shape asks
    /// for.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`], [`Error::Malformed`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let file = File::open(&path).map_err(|source| Error::io("open", &path, source))?;
        let tensors = safetensors::read(&path, &file)?;
        Ok(Self { path, file, tensors })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors with the size of each dimension, the slowest first; sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, stored)| (name.as_str(), stored.shape.as_slice()))
    }

    /// Whether a tensor's numbers can be read: the name of their type where they can't.
    pub(crate) fn unreadable(&self, name: &str) -> Option<&str> {
        let stored = self.tensors.get(name)?;
        stored.format.is_none().then_some(stored.dtype.as_str())
    }

    /// Reads a tensor into `out`; F16 and BF16 are widened.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::TensorType`] where its numbers are not F32, F16 or BF16;
    /// [`Error::Adapter`] where one is infinite or no number.
    ///
    /// # Panics
    /// If there is no such tensor, or `out` is not as long as its shape says.
    pub fn read(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let stored = self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}"));
        assert_eq!(out.len(), stored.shape.iter().product::<usize>(), "numbers of {name}");
        let Some(format) = stored.format else {
            return Err(Error::TensorType {
                path: self.path.clone(),
                tensor: name.to_owned(),
                expected: "F32, F16 or BF16".to_owned(),
                found: stored.dtype.clone(),
            });
        };
        let mut at = stored.range.start;
        let mut chunk = [0; CHUNK_BYTES];
        for out in out.chunks_mut(CHUNK_BYTES / format.block_bytes()) {
            let bytes = &mut chunk[..out.len() * format.block_bytes()];
            self.file
                .read_exact_at(bytes, at)
                .map_err(|source| Error::io("read", &self.path, source))?;
            at += bytes.len() as u64;
            format.decode(bytes, out);
            if !out.iter().all(|number| number.is_finite()) {
                let what = format!(
                    "{name} holds a number that is not finite; take a save from before the loss \
                     became so"
                );
                return Err(Error::adapter(&self.path, what));
            }
        }
        Ok(())
    }
}
