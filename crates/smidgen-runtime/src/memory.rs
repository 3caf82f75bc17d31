//! What a process takes of the machine's memory, as the budget counts it.
//!
//! Counted: anonymous memory and shared memory. Read-only mappings of the model are the system's
//! to drop and are not counted.

use std::fs;

/// Memory of this process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Anonymous and shared memory that is resident: what the budget counts.
    pub counted: u64,
    /// All that is resident, mapped files included.
    pub resident: u64,
    /// The most that was ever resident.
    pub resident_peak: u64,
}

/// Reads this process's memory, or nothing where the system does not tell.
pub fn usage() -> Option<Usage> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| kibibytes(&status, name);
    Some(Usage {
        counted: field("RssAnon:")? + field("RssShmem:")?,
        resident: field("VmRSS:")?,
        resident_peak: field("VmHWM:")?,
    })
}

/// Bytes that the machine and this process's control group have free, or nothing where the
/// system does not tell.
pub fn available() -> Option<u64> {
    let machine = kibibytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    Some(group_free().map_or(machine, |group| group.min(machine)))
}

/// What is left of the control group's limit, where there is one.
fn group_free() -> Option<u64> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let pairs = [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ];
    pairs.iter().find_map(|(limit, used)| Some(number(limit)?.saturating_sub(number(used)?)))
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The largest use seen so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    peak: u64,
}

impl Meter {
    /// Looks now; returns what is counted now, if the system tells.
    pub fn look(&mut self) -> Option<u64> {
        let now = usage()?.counted;
        self.peak = self.peak.max(now);
        Some(now)
    }

    /// The most that was counted at any look.
    pub fn peak(&self) -> u64 {
        self.peak
    }
}
