//! Writing an adapter's folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{AdapterConfig, BaseModel, CONFIG_FILE, Factor, LoraShape, WEIGHTS_FILE, safetensors};
use crate::error::{Error, Result};

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
        let (header, ranges) = safetensors::header(&matrices);
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
        self.base.write(&self.folder)?;
        self.weights.commit()?;
        replace_file(&self.folder.join(CONFIG_FILE), &self.config)
    }
}

/// Puts a file with this content in the place of what was there, or leaves that as it was.
pub(super) fn replace_file(path: &Path, content: &[u8]) -> Result<()> {
    let mut new = NewFile::create(path)?;
    let file = new.file.write_all(content);
    file.map_err(|source| Error::io("write", &new.temporary, source))?;
    new.commit()
}

/// A file under a temporary name beside its own; deleted unless committed.
#[derive(Debug)]
struct NewFile {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
}

impl NewFile {
    fn create(path: &Path) -> Result<Self> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        let file =
            File::create(&temporary).map_err(|source| Error::io("create", &temporary, source))?;
        Ok(Self { path: path.to_owned(), temporary, file })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|source| Error::io("write", &self.temporary, source))
    }

    /// Brings the content to the disk, then the name.
    fn commit(self) -> Result<()> {
        let io = |action, path: &Path, source| Error::io(action, path, source);
        self.file.sync_all().map_err(|e| io("write", &self.temporary, e))?;
        std::fs::rename(&self.temporary, &self.path).map_err(|e| io("replace", &self.path, e))?;
        let folder = self.path.parent().expect("a file is in a folder");
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|e| io("write", folder, e))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After a commit there is nothing under this name. Nobody is left to hear of an error.
        let _ = std::fs::remove_file(&self.temporary);
    }
}
