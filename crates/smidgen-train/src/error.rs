//! What can go wrong, and what kind of thing it is.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::side::LinkError;

/// The result of a run's operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model or adapter file.
    #[error(transparent)]
    Weights(#[from] smidgen_weights::Error),
    /// The model's metadata, or the writing of a model.
    #[error(transparent)]
    Model(#[from] smidgen_models::Error),
    /// The text, tokenizer or token file.
    #[error(transparent)]
    Text(#[from] smidgen_text::TextError),
    /// Running the program.
    #[error(transparent)]
    Runtime(#[from] smidgen_runtime::Error),
    /// The budget is too small.
    #[error(transparent)]
    OverBudget(#[from] smidgen_graph::OverBudget),
    /// The budget is too small to prepare text.
    #[error(transparent)]
    PrepareOverBudget(#[from] crate::prepare::PrepareOverBudget),
    /// The budget is too small to start with LoftQ.
    #[error(transparent)]
    LoftqOverBudget(#[from] crate::loftq::LoftqOverBudget),
    /// The process took more than the budget; what was trained can still be saved.
    #[error(transparent)]
    BudgetCrossed(#[from] smidgen_runtime::memory::BudgetCrossed),
    /// Where a side network is trained.
    #[error("the side network: {0}")]
    Link(crate::side::LinkError),
    /// What a file says of its model or tokenizer.
    #[error("{}: {source}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A setting that can't be.
    #[error("{0}")]
    Setting(String),
    /// An adapter that does not belong to this model.
    #[error("adapter {path}: {what}")]
    Adapter {
        /// The adapter's folder.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// A saved state that can't be gone on from.
    #[error("{}: {what}", path.display())]
    State {
        /// The state's file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A state that a run of other data, model or settings saved.
    #[error(
        "{}: it was saved by another run: {differences}; give what that run had, --force to go on \
         with what is given now, or another folder to begin anew", path.display()
    )]
    OtherRun {
        /// The state's file.
        path: PathBuf,
        /// In what the two runs differ.
        differences: crate::state::Differences,
    },
    /// Another run writes to the folder.
    #[error(
        "another run is at work in {}; wait until it ends, or name another folder", path.display()
    )]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A file that can't be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
}

/// What a caller may want to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file, the data or the system.
    Failed,
    /// The caller's settings contradict each other or make no sense.
    Usage,
    /// The budget is too small, or the process took more.
    Budget,
    /// A loss became infinite or no number: the run's rate is too high, or the model file damaged.
    Diverged,
    /// The caller asked to stop.
    Cancelled,
}

impl Error {
    /// What kind of thing went wrong.
    pub fn kind(&self) -> Kind {
        match self {
            Self::OverBudget(_)
            | Self::PrepareOverBudget(_)
            | Self::LoftqOverBudget(_)
            | Self::BudgetCrossed(_)
            | Self::Text(smidgen_text::TextError::NoRoom { .. }) => Kind::Budget,
            Self::Setting(_) | Self::OtherRun { .. } => Kind::Usage,
            Self::Model(smidgen_models::Error::Cancelled)
            | Self::Runtime(smidgen_runtime::Error::Cancelled)
            | Self::Text(smidgen_text::TextError::Cancelled)
            | Self::Link(LinkError::Stopped(_)) => Kind::Cancelled,
            Self::Runtime(smidgen_runtime::Error::NotFinite { .. }) => Kind::Diverged,
            _ => Kind::Failed,
        }
    }

    /// For `map_err` on what is read of `path`: names it, where the error does not.
    pub(crate) fn in_file<E: Into<Self>>(path: &Path) -> impl FnOnce(E) -> Self {
        use smidgen_models::Error as Model;
        use smidgen_runtime::Error as Runtime;
        use smidgen_text::TextError as Text;
        move |error| match error.into() {
            source @ (Self::Model(Model::Value { .. } | Model::Family { .. })
            | Self::Runtime(Runtime::Shape { .. } | Runtime::Unused { .. })
            | Self::Text(
                Text::UnknownTokenizer { .. } | Text::BadVocabulary(_) | Text::TokenizerJson(_),
            )) => Self::InFile { path: path.to_owned(), source: Box::new(source) },
            other => other,
        }
    }

    pub(crate) fn setting(what: impl Into<String>) -> Self {
        Self::Setting(what.into())
    }

    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

/// Ends what the caller has cancelled.
pub(crate) fn stop_if(cancel: &AtomicBool) -> Result<()> {
    match cancel.load(Ordering::Relaxed) {
        true => Err(smidgen_runtime::Error::Cancelled.into()),
        false => Ok(()),
    }
}
