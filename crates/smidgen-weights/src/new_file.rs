//! Files that appear under their name only when they are complete.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A file under a temporary name beside its own; deleted unless committed.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
}

impl NewFile {
    /// Begins the file that will be `path`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: &Path) -> Result<Self> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        let file =
            File::create(&temporary).map_err(|source| Error::io("create", &temporary, source))?;
        Ok(Self { path: path.to_owned(), temporary, file })
    }

    /// The name that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `bytes` at `offset`, past the file's end too.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|source| Error::io("write", &self.temporary, source))
    }

    /// Brings the content to the disk, then the name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn commit(self) -> Result<()> {
        let io = |action, path: &Path, source| Error::io(action, path, source);
        self.file.sync_all().map_err(|e| io("write", &self.temporary, e))?;
        std::fs::rename(&self.temporary, &self.path).map_err(|e| io("replace", &self.path, e))?;
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
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
