//! Our record of the base model an adapter was trained on, `smidgen/base.json` in its folder.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::write::replace_file;
use crate::error::{Error, Result};
use crate::gguf::Fingerprint;
use crate::json;

/// The base model an adapter belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseModel {
    /// `general.architecture` of the base.
    pub architecture: String,
    /// The name of its file, for people.
    pub file_name: String,
    /// Its identity.
    pub fingerprint: Fingerprint,
}

impl BaseModel {
    /// Reads the record in an adapter's folder; `None` where there is none, as in an adapter made
    /// by another program.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Json`].
    pub fn read(folder: impl AsRef<Path>) -> Result<Option<Self>> {
        json::read_optional(&record(folder.as_ref()))
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let path = record(folder);
        let within = folder.join("smidgen");
        std::fs::create_dir_all(&within).map_err(|source| Error::io("create", &within, source))?;
        let json = serde_json::to_vec_pretty(self)
            .map_err(|source| Error::Json { path: path.clone(), source })?;
        replace_file(&path, &json)
    }
}

fn record(folder: &Path) -> PathBuf {
    folder.join("smidgen").join("base.json")
}
