//! Writing an adapter's folder.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use smidgen_kernels::Format;

use super::{AdapterConfig, BaseModel, CONFIG_FILE, Factor, LoraShape, WEIGHTS_FILE};
use crate::error::{Error, Result};
use crate::new_file::NewFile;
use crate::safetensors;

/// Numbers written at once.
const CHUNK_LEN: usize = 4096;

/// Writes an adapter's folder, one matrix at a time and in any order.
///
/// Each file appears under its name only when it is complete and on the disk; the settings come
/// last. A writer that is dropped before [`AdapterWriter::finish`] leaves the folder's files as
/// they were. Two writers must not work on one folder at a time.
#[derive(Debug)]
pub struct AdapterWriter {
    folder: PathBuf,
    config: Vec<u8>,
    base: BaseModel,
    weights: NewFile,
    /// Where each matrix that is not written yet goes.
    missing: BTreeMap<(String, Factor), Range<u64>>,
}

impl AdapterWriter {
    /// Begins to write an adapter of these modules (paths within the base, such as
    /// `model.layers.0.self_attn.q_proj`) into `folder`, which is made where there is none.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(
        folder: impl AsRef<Path>,
        config: &AdapterConfig,
        base: &BaseModel,
        modules: &BTreeMap<String, LoraShape>,
    ) -> Result<Self> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(|source| Error::io("create", folder, source))?;
        let factors = |module| Factor::ALL.map(|factor| (module, factor));
        let places: Vec<_> = modules.keys().flat_map(factors).collect();
        let matrices: Vec<_> = places
            .iter()
            .map(|&(module, factor)| (factor.key(module), modules[module].dims(factor)))
            .collect();
        let tensors = matrices.iter().map(|(name, dims)| (&**name, Format::F32, &dims[..]));
        let (header, ranges) = safetensors::header(tensors);
        let missing = places.iter().map(|&(module, factor)| (module.clone(), factor)).zip(ranges);
        let weights = NewFile::create(&folder.join(WEIGHTS_FILE))?;
        weights.write_at(&header, 0)?;
        let config = config
            .to_json()
            .map_err(|source| Error::Json { path: folder.join(CONFIG_FILE), source })?;
        Ok(Self {
            folder: folder.to_owned(),
            config,
            base: base.clone(),
            weights,
            missing: missing.collect(),
        })
    }

    /// Writes one matrix, given row by row.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// If the matrix was not announced, has another size or is already written.
    pub fn write(&mut self, module: &str, factor: Factor, numbers: &[f32]) -> Result<()> {
        let place = self.missing.remove(&(module.to_owned(), factor));
        let range = place.unwrap_or_else(|| panic!("{module} {factor:?} is not to be written"));
        let bytes = size_of_val(numbers) as u64;
        assert_eq!(range.end - range.start, bytes, "bytes of {module} {factor:?}");
        let mut chunk = [0; CHUNK_LEN * size_of::<f32>()];
        let mut at = range.start;
        for numbers in numbers.chunks(CHUNK_LEN) {
            for (bytes, number) in chunk.chunks_exact_mut(size_of::<f32>()).zip(numbers) {
                bytes.copy_from_slice(&number.to_le_bytes());
            }
            let bytes = &chunk[..size_of_val(numbers)];
            self.weights.write_at(bytes, at)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Puts the complete files into place.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// If a matrix was not written.
    pub fn finish(self) -> Result<()> {
        assert!(self.missing.is_empty(), "not written: {:?}", self.missing.keys());
        let Self { folder, config, base, weights, .. } = self;
        put_in_place(&folder, CONFIG_FILE, &config, &base, || weights.commit())
    }
}

/// Ends the writing of a folder of settings, in the file `name`, and of weights, which `weights`
/// puts into place: each file is replaced whole or not at all, the settings last. Another one's
/// settings never stand beside these weights, not even for a moment.
///
/// # Errors
/// [`Error::Io`].
pub fn put_in_place(
    folder: &Path,
    name: &str,
    settings: &[u8],
    base: &BaseModel,
    weights: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let path = folder.join(name);
    if std::fs::read(&path).is_ok_and(|old| old != settings) {
        std::fs::remove_file(&path).map_err(|source| Error::io("replace", &path, source))?;
    }
    base.write(folder)?;
    weights()?;
    replace_file(&path, settings)
}

/// Puts a file with this content in the place of what was there, or leaves that as it was.
pub(super) fn replace_file(path: &Path, content: &[u8]) -> Result<()> {
    let new = NewFile::create(path)?;
    new.write_at(content, 0)?;
    new.commit()
}
