//! Memory and time of training runs as they are seen from outside: budgets, least memory, growth.
//!
//! The tasks start the release program `smidgen` on token files that were prepared before, and the
//! model files in the system's cache. What counts as memory: [`watch`].

mod flags;
mod growth;
mod least;
mod program;
mod sweep;
mod watch;

pub use growth::growth;
pub use least::least;
pub use sweep::sweep;

/// `--flag value` pairs as arguments.
fn settings(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs.iter().flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()]).collect()
}

/// The flag that says which program to watch.
const PROGRAM: &str = "--program";
