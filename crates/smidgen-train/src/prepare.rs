//! From text to a token file, with the tokenizer in memory only as long as it takes.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use smidgen_runtime::memory::RunPhase;
use smidgen_text::{PrepareOptions, Progress, TokenFileHeader};

use crate::base::Base;
use crate::error::Result;

/// What preparing gave and took.
#[derive(Clone, Debug)]
pub struct PrepareReport {
    /// The token file's header.
    pub header: TokenFileHeader,
    /// The most memory that was counted meanwhile.
    pub peak_bytes: u64,
}

/// Makes the token file `out` from the text file `input` with the model's tokenizer, which is
/// freed before this returns, its memory given back to the system.
///
/// # Errors
/// The text, the tokenizer or the token file; the caller cancelled.
pub fn prepare(
    base: &Base,
    input: &Path,
    options: &PrepareOptions,
    out: &Path,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
) -> Result<PrepareReport> {
    let meter = base.meter().next_run(RunPhase::Preparing);
    let tokenizer = base.tokenizer()?;
    meter.look();
    let mut watch = |p: Progress| {
        meter.look();
        progress(p);
    };
    let header = smidgen_text::prepare(input, &tokenizer, options, out, &mut watch, cancel);
    drop(tokenizer);
    smidgen_weights::release_free_heap();
    Ok(PrepareReport { header: header?, peak_bytes: meter.peak() })
}
