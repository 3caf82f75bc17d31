//! What can be wrong with a model's metadata, or end its writing.

use std::path::PathBuf;

/// The result of reading a model's metadata.
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with a model's metadata.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read, or lacks a key.
    #[error(transparent)]
    Weights(#[from] smidgen_weights::Error),
    /// A family that has no file here.
    #[error("the model is of the family {name:?}; those that can be trained are {known}")]
    Family {
        /// general.architecture.
        name: String,
        /// The families there are.
        known: &'static str,
    },
    /// A value that makes no sense, alone or beside others.
    #[error(
        "metadata {key} is {value}, but {expected}; the file is damaged or of an unknown variant"
    )]
    Value {
        /// The key.
        key: String,
        /// What it says.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A checkpoint's settings, tensors or tokenizer that no known model has.
    #[error("{path}: {what}", path = path.display())]
    Checkpoint {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong, and what to do about it.
        what: String,
    },
    /// The caller asked to stop while a model was written.
    #[error("cancelled")]
    Cancelled,
}
