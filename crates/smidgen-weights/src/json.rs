//! Small JSON files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Largest file read, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// Reads a file of settings.
///
/// # Errors
/// [`Error::Io`], [`Error::Json`]; [`Error::Unusable`] where it is too large.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let io = |source| Error::io("read", path, source);
    let file = File::open(path).map_err(io)?;
    let mut json = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut json).map_err(io)?;
    if json.len() as u64 > MAX_BYTES {
        return Err(Error::Unusable { path: path.to_owned(), why: "it is too large for settings" });
    }
    serde_json::from_slice(&json).map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// Reads a file of settings that need not be there.
pub(crate) fn read_optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match read(path) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}
