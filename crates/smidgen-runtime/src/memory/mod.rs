//! What a process takes of the machine's memory, as the budget counts it; what the machine has
//! free; and the meter that watches a run.
//!
//! Counted: anonymous memory, shared memory, and every resident byte of a shared mapping of a file
//! that the process may write to, clean or dirty. Read-only mappings of the model are the system's
//! to drop and are not counted. On Apple's systems it is the footprint (`phys_footprint`), by which
//! they end a process that takes too much.

#[cfg(target_vendor = "apple")]
#[expect(unsafe_code, reason = "task_info is a foreign function")]
mod apple;
#[cfg(target_os = "linux")]
mod linux;
mod meter;
mod trace;

#[cfg(target_vendor = "apple")]
use apple as system;
#[cfg(target_os = "linux")]
use linux as system;

pub use meter::{BudgetCrossed, Meter, RunPhase};
pub use trace::{Sample, Trace};

/// Memory of this process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// What the budget counts.
    pub counted: u64,
    /// All that is resident, mapped files included.
    pub resident: u64,
    /// The most that was ever resident.
    pub resident_peak: u64,
}

/// Reads this process's memory, or nothing where the system does not tell.
pub fn usage() -> Option<Usage> {
    system::usage()
}

/// Bytes that the machine and the limits set for this process have free, or nothing where the
/// system does not tell. On Linux it is the least of the machine's available memory and what each
/// control group has left, from the process's own up to the root.
pub fn available() -> Option<u64> {
    system::available()
}

/// Where a [`Meter`] reads what it watches.
///
/// A closure is one too, which is how a test lets a meter see made-up readings.
pub trait MemorySource: Send {
    /// Bytes that the process takes now, as the budget counts them; none where nobody tells.
    fn counted(&mut self) -> Option<u64>;
}

impl<F: FnMut() -> Option<u64> + Send> MemorySource for F {
    fn counted(&mut self) -> Option<u64> {
        self()
    }
}

/// This process, as the system counts it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process;

impl MemorySource for Process {
    fn counted(&mut self) -> Option<u64> {
        usage().map(|usage| usage.counted)
    }
}

/// A system that does not tell.
#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
mod system {
    pub(super) fn usage() -> Option<super::Usage> {
        None
    }

    pub(super) fn available() -> Option<u64> {
        None
    }
}
