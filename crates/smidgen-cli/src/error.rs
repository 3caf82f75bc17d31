//! What ends a command, and with which exit code.

use std::path::Path;
use std::{fmt, io};

use smidgen::Kind;

pub type Result<T> = std::result::Result<T, Failure>;

/// What ends a command early.
#[derive(Debug)]
pub enum Failure {
    /// The library's word.
    Library(smidgen::Error),
    /// Flags that contradict each other or can't be.
    Usage(String),
    /// The budget is too small, whatever the data is.
    Budget(String),
    /// A file of the command line's own.
    File(String),
    /// The server can't run.
    Server(String),
    /// The server that trains is lost, after so many steps of the run.
    LinkLost { what: String, done: u64, steps: u64 },
    /// A signal came; the exit code that belongs to it.
    Interrupted(u8),
}

impl Failure {
    pub fn usage(what: impl Into<String>) -> Self {
        Self::Usage(what.into())
    }

    /// For `map_err` on what is done with a file.
    pub fn file(action: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let what = format!("cannot {action} {}", path.display());
        move |error| Self::File(format!("{what}: {error}{}", next_step(&error)))
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Library(error) => match error.kind() {
                Kind::Usage => 2,
                Kind::Budget => 3,
                Kind::Failed | Kind::Diverged | Kind::Cancelled => 1,
            },
            Self::Usage(_) => 2,
            Self::Budget(_) => 3,
            Self::File(_) | Self::Server(_) | Self::LinkLost { .. } => 1,
            Self::Interrupted(code) => *code,
        }
    }

    /// Whether the budget is too small, or was crossed.
    pub fn is_budget(&self) -> bool {
        self.exit_code() == 3
    }

    /// Whether the library stopped because it was asked to.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Library(error) if error.kind() == Kind::Cancelled)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(error) => {
                let told = error.to_string();
                let next = if told.contains("; ") { "" } else { next_step_of(error) };
                write!(f, "{told}{next}")
            }
            Self::Usage(what) | Self::Budget(what) | Self::File(what) | Self::Server(what) => {
                f.write_str(what)
            }
            Self::LinkLost { what, .. } => f.write_str(what),
            Self::Interrupted(_) => f.write_str("interrupted"),
        }
    }
}

/// What to do about the system's word that lies under `error`, if one does.
fn next_step_of(error: &smidgen::Error) -> &'static str {
    let first: &(dyn std::error::Error + 'static) = error;
    let mut causes = std::iter::successors(Some(first), |error| error.source());
    causes.find_map(|error| error.downcast_ref::<io::Error>()).map_or("", next_step)
}

fn next_step(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; check the path",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; name a place that you may use"
        }
        io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::AlreadyExists => "; name another place",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room there, or name another place"
        }
        io::ErrorKind::InvalidData => "; the file is of another kind or damaged",
        _ => "",
    }
}

impl From<smidgen::Error> for Failure {
    fn from(error: smidgen::Error) -> Self {
        Self::Library(error)
    }
}
