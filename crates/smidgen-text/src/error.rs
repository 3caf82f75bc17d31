//! What can go wrong with a tokenizer, a data file or a token file.

use std::path::{Path, PathBuf};

/// A problem of the files or settings given to this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The tokenizer's kind is one this crate does not know.
    #[error(
        "{key} is {found:?}, which is not supported; known: {known}; give the model's \
         tokenizer.json with --tokenizer"
    )]
    UnknownTokenizer {
        /// The metadata key that names the kind.
        key: &'static str,
        /// What the file says.
        found: String,
        /// The values that are supported.
        known: &'static str,
    },
    /// The tokenizer's tables contradict themselves.
    #[error("tokenizer: {0}; convert the model again, or give its tokenizer.json with --tokenizer")]
    BadVocabulary(String),
    /// `tokenizer.json` could not be read, or failed on a text.
    #[error("this is no usable tokenizer.json: {0}; give the one that belongs to the model")]
    TokenizerJson(String),
    /// A file could not be opened, read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word on it.
        source: std::io::Error,
    },
    /// A data folder or data file is not of a form this crate reads.
    #[error("{path}: {what}", path = path.display())]
    BadData {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what was expected.
        what: String,
    },
    /// One line of a `.jsonl` file is wrong.
    #[error("{path}:{line}: {what}; expected {expected}", path = path.display())]
    BadLine {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
        /// What a right line looks like.
        expected: String,
    },
    /// A chat template is broken, or refuses a chat or fails on it.
    #[error("{origin}: {what}")]
    BadTemplate {
        /// The file or model that it stands in.
        origin: String,
        /// What is wrong.
        what: String,
    },
    /// A line of a `.jsonl` file or its chat's text, or a stretch of a `.txt` file without a place where it may be cut,
    /// is longer than [`PrepareOptions::longest_piece_bytes`](crate::PrepareOptions) allows.
    #[error(
        "{path}: {place} goes on for more than the {bytes} bytes that the memory budget has room \
         for; give a larger budget, or cut the text into shorter samples",
        path = path.display()
    )]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// The line, or the byte where the stretch begins.
        place: String,
        /// The most bytes that are allowed.
        bytes: usize,
    },
    /// A token file is damaged, or not a token file.
    #[error(
        "{path}: not a usable token file: {what}; make it again with smidgen data --out",
        path = path.display()
    )]
    BadTokenFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

/// This crate's result.
pub type Result<T> = std::result::Result<T, TextError>;

impl TextError {
    /// The same problem told of `path`, where it is one of a file's form or content: for a file
    /// that was made from the one at `path`.
    pub fn of(self, path: &Path) -> Self {
        match self {
            Self::BadData { what, .. } => Self::BadData { path: path.to_owned(), what },
            other => other,
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// Nothing but a regular file has a size and can be read twice; opening a pipe would wait for
    /// its other end.
    pub(crate) fn require_regular(path: &Path) -> Result<()> {
        match path.metadata().map_err(Self::io(path))?.is_file() {
            true => Ok(()),
            false => Err(Self::data(path, "not a regular file; pipes and devices are not read")),
        }
    }

    pub(crate) fn data(path: &Path, what: impl Into<String>) -> Self {
        Self::BadData { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn template(origin: &str, what: impl Into<String>) -> Self {
        Self::BadTemplate { origin: origin.to_owned(), what: what.into() }
    }

    pub(crate) fn token_file(path: &Path, what: impl Into<String>) -> Self {
        Self::BadTokenFile { path: path.to_owned(), what: what.into() }
    }
}
