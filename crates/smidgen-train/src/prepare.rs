//! From text to a token file, with the tokenizer in memory only as long as it takes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use smidgen_graph::Budget;
use smidgen_runtime::memory::{Meter, RunPhase};
use smidgen_text::{
    ChatTemplateSource, PrepareOptions, Progress, SHORT_PIECE_BYTES, TokenFileHeader, Tokenizer,
};

use crate::base::Base;
use crate::error::Result;
use crate::train_config::MemoryBudget;

/// What preparing gave and took.
#[derive(Clone, Debug)]
pub struct PrepareReport {
    /// The token file's header.
    pub header: TokenFileHeader,
    /// The most memory that it was expected to take, as [`plan_prepare`] tells.
    pub planned_bytes: u64,
    /// The most memory that was counted meanwhile.
    pub peak_bytes: u64,
}

/// The budget has no room for the tokenizer. A token file needs none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "preparing {} takes {} MB, and the budget is {} MB; give at least {} MB, or the token file that \
     `smidgen data TEXT -m MODEL --out train.tokens` makes where there is more memory: it trains \
     within the budget",
    input.display(), megabytes(*needed), *budget as f64 / 1e6, megabytes(*needed)
)]
pub struct PrepareOverBudget {
    /// The text.
    pub input: PathBuf,
    /// Bytes that preparing takes, those that the process has included.
    pub needed: u64,
    /// Bytes that were allowed.
    pub budget: u64,
}

/// Rounded up, so that the amount that is named will do.
fn megabytes(bytes: u64) -> f64 {
    bytes.div_ceil(100_000) as f64 / 10.0
}

/// The most memory that the process takes while the text file `input` is prepared, from its name and
/// the model's metadata alone; the text is not looked at. A `.jsonl` file may hold chats.
///
/// # Errors
/// The metadata makes no tokenizer, the chat template can't be read; [`PrepareOverBudget`].
pub fn plan_prepare(base: &Base, input: &Path, memory: MemoryBudget) -> Result<u64> {
    let meter = base.meter().next_run(RunPhase::Preparing);
    Planned::new(base, input, memory, &meter).map(|planned| planned.bytes)
}

/// Makes the token file `out` from the text file `input` with the model's tokenizer and, for chats,
/// its chat template; the tokenizer is freed before this returns, its memory given back to the system. [`MemoryBudget::Min`] sets no
/// limit: this never takes more than it must.
///
/// # Errors
/// The text, the tokenizer, the chat template or the token file; the budget is too small ([`plan_prepare`]), for a
/// long line too, or was crossed; the caller cancelled. Nothing is left at `out` then.
pub fn prepare(
    base: &Base,
    input: &Path,
    options: &PrepareOptions,
    memory: MemoryBudget,
    out: &Path,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
) -> Result<PrepareReport> {
    let meter = base.meter().next_run(RunPhase::Preparing);
    let planned = Planned::new(base, input, memory, &meter)?;
    meter.set_budget(planned.budget);
    let tokenizer = base.tokenizer()?;
    meter.look();
    let options = planned.options(options, &tokenizer);
    let stop = AtomicBool::new(false);
    let mut looked = 0;
    let mut watch = |p: Progress| {
        if p.bytes >= looked || p.bytes == p.bytes_total {
            meter.look();
            looked = p.bytes + LOOK_BYTES;
        }
        progress(p);
        let stops = cancel.load(Ordering::Relaxed) || meter.check().is_err();
        stop.store(stops, Ordering::Relaxed);
    };
    let chat = planned.chat.as_ref();
    let header = smidgen_text::prepare(input, &tokenizer, chat, &options, out, &mut watch, &stop);
    drop(tokenizer);
    smidgen_weights::release_free_heap();
    if header.is_err() {
        // The watch stops the work as a caller does.
        meter.check()?;
    }
    let (planned_bytes, peak_bytes) = (planned.bytes, meter.peak());
    Ok(PrepareReport { header: header?, planned_bytes, peak_bytes })
}

/// Text between two looks at the meter.
const LOOK_BYTES: u64 = 64 << 10;

/// What preparing will take, and may.
struct Planned {
    bytes: u64,
    budget: Option<u64>,
    /// Where lines may be chats.
    chat: Option<ChatTemplateSource>,
}

impl Planned {
    fn new(base: &Base, input: &Path, memory: MemoryBudget, meter: &Meter) -> Result<Self> {
        let chat = match input.extension().is_some_and(|extension| extension == "jsonl") {
            true => base.chat_template_source()?,
            false => None,
        };
        let takes = base.prepare_bytes(chat.as_ref())?;
        smidgen_weights::release_free_heap();
        // In steps, so that the same call is told the same another time.
        let now = meter.look().unwrap_or(0).next_multiple_of(64 * 1024);
        let needed = now.saturating_add(takes);
        let budget = match memory.resolve() {
            Budget::AtMost(bytes) => Some(bytes),
            Budget::Least | Budget::Unlimited => None,
        };
        match budget {
            Some(budget) if needed > budget => {
                Err(PrepareOverBudget { input: input.to_owned(), needed, budget }.into())
            }
            _ => Ok(Self { bytes: needed, budget, chat }),
        }
    }

    /// The options with the longest line that the budget has room for.
    fn options(&self, given: &PrepareOptions, tokenizer: &Tokenizer) -> PrepareOptions {
        let mut options = given.clone();
        if let Some(budget) = self.budget {
            let room = (budget - self.bytes) / tokenizer.piece_memory();
            let longest =
                SHORT_PIECE_BYTES.saturating_add(usize::try_from(room).unwrap_or(usize::MAX));
            options.longest_piece_bytes = options.longest_piece_bytes.min(longest);
        }
        options
    }
}
