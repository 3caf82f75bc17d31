//! What can be wrong with a file, and what to do about it.

use std::path::{Path, PathBuf};

/// An error of the world: a file that can't be read, or whose content is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused an operation on a file.
    #[error("could not {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },

    /// The path can't hold what is asked of it, whatever its content.
    #[error("{path}: {why}", path = path.display())]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// What is the matter with it.
        why: &'static str,
    },

    /// The bytes of a file contradict its format.
    #[error("{path}: byte {offset}: {what}{next}", path = path.display(), next = next_step(what))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where in the file, in bytes from its start.
        offset: u64,
        /// What is wrong, with the key or tensor it is about.
        what: String,
    },

    /// The GGUF metadata lacks a key.
    #[error(
        "{path}: metadata has no {key}; the file is of an unknown variant: convert the model again \
         with a current llama.cpp",
        path = path.display()
    )]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key asked for.
        key: String,
    },

    /// A GGUF metadata value has another type, or is out of range for the one asked for.
    #[error(
        "{path}: metadata {key} should be {expected}, not {found}; convert the model again with a \
         current llama.cpp",
        path = path.display()
    )]
    KeyType {
        /// The file.
        path: PathBuf,
        /// The key asked for.
        key: String,
        /// The type asked for.
        expected: &'static str,
        /// The type in the file, or the value where only that is out of range.
        found: String,
    },

    /// The GGUF file lacks a tensor.
    #[error(
        "{path}: there is no tensor {tensor}; the file is incomplete or of an unknown variant: \
         download or convert the model again",
        path = path.display()
    )]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor asked for.
        tensor: String,
    },

    /// A tensor is stored in a way that it can't be read from.
    #[error("{path}: tensor {tensor} is {found}, not {expected}", path = path.display())]
    TensorType {
        /// The file.
        path: PathBuf,
        /// The tensor asked for.
        tensor: String,
        /// What can be read.
        expected: String,
        /// Its type or shape in the file.
        found: String,
    },

    /// A tensor holds what can't be written, or is not what it should be.
    #[error("{path}: tensor {tensor}: {what}", path = path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it, and where.
        what: String,
    },

    /// A JSON file does not parse.
    #[error("{path}: {source}; write or download the file again", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },

    /// A checkpoint's folder lacks a file, or its files contradict each other.
    #[error("{path}: {what}", path = path.display())]
    Checkpoint {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong, and what to do about it.
        what: String,
    },

    /// An adapter asks for what is not exact plain LoRA, or its files contradict each other.
    #[error("{path}: {what}", path = path.display())]
    Adapter {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what to do about it.
        what: String,
    },
}

/// What to do about damaged bytes, where it is not told with them.
fn next_step(what: &str) -> &'static str {
    if what.contains("; ") { "" } else { "; the file is damaged: download or write it again" }
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn adapter(path: &Path, what: impl Into<String>) -> Self {
        Self::Adapter { path: path.to_owned(), what: what.into() }
    }
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Tells what a file lacks from what is wrong with it.
pub trait Optional<T> {
    /// `None` for a [`Error::MissingKey`] or [`Error::MissingTensor`]; other errors stay.
    ///
    /// # Errors
    /// Every other error.
    fn optional(self) -> Result<Option<T>>;
}

impl<T> Optional<T> for Result<T> {
    fn optional(self) -> Result<Option<T>> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(Error::MissingKey { .. } | Error::MissingTensor { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
