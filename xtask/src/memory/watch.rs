//! A process tree's memory, watched from outside while it runs.
//!
//! Counted, summed over the process and all its descendants:
//!
//! - `RssAnon`, `RssShmem` and `VmSwap` of `/proc/PID/status`: anonymous pages (those that a
//!   private file mapping got by being written among them), shared memory, and what is in swap;
//! - from `/proc/PID/smaps`, all of `Rss` of every shared file mapping that is writable or holds a
//!   dirty page: a file that is written through a map counts with its clean pages too.
//!
//! Not counted: pages of files that are mapped to be read, or private and never written; and pages
//! of the system's file cache that belong to no mapping. A file in a memory file system that is
//! mapped to be written would count twice, which is never too little.
//!
//! `status` is read every millisecond; `smaps` and the tree, which cost more, every 50. A peak that
//! is shorter than that can be missed: the buffers that this is about live for a step or for a run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

const PAUSE: Duration = Duration::from_millis(1);
const LONG_PAUSE: Duration = Duration::from_millis(50);

/// What was seen of a process that has ended.
#[derive(Debug)]
pub struct Watched {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    /// The most that was counted, in bytes.
    pub peak_bytes: u64,
    /// The same for each phase of the run that was seen.
    pub phase_peaks: BTreeMap<usize, u64>,
}

/// Starts `command` and watches it until it ends. `phase` tells the phase that the run is in.
pub fn run(command: &mut Command, mut phase: impl FnMut() -> usize) -> Result<Watched> {
    ensure!(fs::exists("/proc/self/status")?, "watching a process needs Linux's /proc");
    // Files, since a pipe that nobody empties would stop the process.
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()
        .with_context(|| format!("could not start {}", command.get_program().display()))?;
    let mut phase_peaks = BTreeMap::new();
    let (mut tree, mut written, mut looked) = (vec![child.id()], 0, None::<Instant>);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if looked.is_none_or(|at| at.elapsed() >= LONG_PAUSE) {
            tree = with_descendants(child.id());
            written = tree.iter().map(|&pid| written_file_maps(pid)).sum();
            looked = Some(Instant::now());
        }
        let counted = written + tree.iter().map(|&pid| own_memory(pid)).sum::<u64>();
        let peak: &mut u64 = phase_peaks.entry(phase()).or_default();
        *peak = counted.max(*peak);
        thread::sleep(PAUSE);
    };
    Ok(Watched {
        status,
        stdout: text_of(&mut stdout)?,
        stderr: text_of(&mut stderr)?,
        peak_bytes: phase_peaks.values().copied().max().unwrap_or(0),
        phase_peaks,
    })
}

fn text_of(file: &mut File) -> Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Anonymous and shared memory of a process, swapped or not; 0 once it has ended.
fn own_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let counted = ["RssAnon:", "RssShmem:", "VmSwap:"];
    status.lines().filter(|line| counted.iter().any(|name| line.starts_with(name))).map(bytes).sum()
}

fn written_file_maps(pid: u32) -> u64 {
    written_in(&fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default())
}

/// Resident bytes of the shared file mappings in a text of `smaps` that are writable or dirty.
fn written_in(smaps: &str) -> u64 {
    let (mut sum, mut current) = (0, Mapping::default());
    for line in smaps.lines() {
        match line.split_whitespace().next() {
            Some(name) if !name.ends_with(':') => {
                sum += current.written_bytes();
                current = Mapping::from_head(line);
            }
            Some("Rss:") => current.resident = bytes(line),
            Some("Shared_Dirty:" | "Private_Dirty:") => current.dirty += bytes(line),
            _ => {}
        }
    }
    sum + current.written_bytes()
}

/// A mapping of `smaps`.
#[derive(Default)]
struct Mapping {
    is_shared_file: bool,
    is_writable: bool,
    resident: u64,
    dirty: u64,
}

impl Mapping {
    /// Reads `START-END PERMISSIONS OFFSET DEVICE INODE PATH`. Files that are but names for shared
    /// memory are no files here: `RssShmem` has them.
    fn from_head(line: &str) -> Self {
        let mut words = line.split_whitespace().skip(1);
        let permissions = words.next().unwrap_or("");
        let inode = words.nth(2).unwrap_or("0");
        let path = words.next().unwrap_or("");
        let is_memory = ["/memfd:", "/dev/zero", "/SYSV"].iter().any(|p| path.starts_with(p));
        Self {
            is_shared_file: permissions.ends_with('s') && inode != "0" && !is_memory,
            is_writable: permissions.contains('w'),
            resident: 0,
            dirty: 0,
        }
    }

    fn written_bytes(&self) -> u64 {
        if self.is_shared_file && (self.is_writable || self.dirty > 0) { self.resident } else { 0 }
    }
}

/// The bytes of a line `Name:  123 kB`.
fn bytes(line: &str) -> u64 {
    let kib = line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// A process and all that it started, by their parents' ids.
fn with_descendants(root: u32) -> Vec<u32> {
    let mut children = BTreeMap::<u32, Vec<u32>>::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            && let Some(parent) = parent(pid)
        {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut tree, mut next) = (vec![root], 0);
    while next < tree.len() {
        tree.extend(children.get(&tree[next]).into_iter().flatten());
        next += 1;
    }
    tree
}

/// The second number of `PID (NAME) STATE PARENT ...`, where the name may hold anything.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_shared_files_count_wholly_and_nothing_else_does() {
        let mapping = |permissions: &str, inode: u32, path: &str, rss: u32, dirty: u32| {
            format!(
                "7f00-7f01 {permissions} 00000000 fe:00 {inode}    {path}\nRss:  {rss} kB\n\
                 Shared_Dirty:  0 kB\nPrivate_Dirty:  {dirty} kB\nVmFlags: rd mr\n"
            )
        };
        let counted = |text: &str| written_in(text) / 1024;
        let read_only = mapping("r--s", 9, "/m.gguf", 100, 0);
        let private = mapping("rw-p", 9, "/lib.so", 20, 20);
        let heap = mapping("rw-p", 0, "[heap]", 30, 30);
        let memory = mapping("rw-s", 9, "/memfd:x (deleted)", 40, 40);
        assert_eq!(counted(&format!("{read_only}{private}{heap}{memory}")), 0);
        let clean = mapping("rw-s", 9, "/scratch file", 50, 0);
        let sealed = mapping("r--s", 9, "/scratch", 60, 4);
        assert_eq!(counted(&format!("{read_only}{clean}{private}{sealed}")), 110);
    }

    /// `tail -c` holds what it is given until its input ends.
    #[test]
    fn the_tree_is_summed() {
        let line = "(head -c 50000000 /dev/zero; sleep 0.5) | tail -c 50000000 | wc -c";
        let watched = run(Command::new("sh").args(["-c", line]), || 3).unwrap();
        assert!(watched.status.success(), "{}", watched.stderr);
        assert_eq!(watched.stdout.trim(), "50000000");
        assert!((50_000_000..70_000_000).contains(&watched.peak_bytes), "{}", watched.peak_bytes);
        assert_eq!(watched.phase_peaks, BTreeMap::from([(3, watched.peak_bytes)]));
    }
}
