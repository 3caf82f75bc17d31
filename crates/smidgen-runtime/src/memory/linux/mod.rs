//! Linux: `/proc` and control groups.

mod cgroup;
mod lines;
mod mappings;
mod mounts;

use std::fs;
use std::path::Path;

use super::Usage;

/// The counters of `/proc/self/status`, and what these don't tell apart: the pages of files that
/// the process may write to through a map.
pub(super) fn usage() -> Option<Usage> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| kibibytes(&status, name);
    Some(Usage {
        counted: field("RssAnon:")? + field("RssShmem:")? + mappings::written_files()?,
        resident: field("VmRSS:")?,
        resident_peak: field("VmHWM:")?,
    })
}

/// The least of what the machine and the control groups have free.
pub(super) fn available() -> Option<u64> {
    let machine = kibibytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    Some(cgroup::free(Path::new("/")).map_or(machine, |group| group.min(machine)))
}

/// The field `name` of a text with a field a line, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_status() {
        let text =
            "Name:\tx\nRssAnon:\t     412 kB\nRssFile:\t 9 kB\nVmHWM:\t99999999999999999 kB\n";
        assert_eq!(kibibytes(text, "RssAnon:"), Some(412 << 10));
        assert_eq!(kibibytes(text, "RssShmem:"), None);
        assert_eq!(kibibytes(text, "VmHWM:"), None);
    }

    #[test]
    fn what_is_allocated_is_counted() {
        let before = usage().unwrap().counted;
        let held = std::hint::black_box(vec![1u8; 32 << 20]);
        let after = usage().unwrap();
        assert!(after.counted - before >= 31 << 20, "{before} then {}", after.counted);
        assert!(after.resident >= after.counted);
        drop(held);
    }

    #[test]
    fn the_machine_has_something_free() {
        assert!(available().unwrap() > 1 << 20);
    }
}
