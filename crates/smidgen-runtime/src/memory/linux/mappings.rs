//! The process's mappings: `/proc/self/maps` and `smaps` (proc_pid_maps(5), proc_pid_smaps(5)).

use std::path::Path;

use super::lines::each_line;
use super::mounts::Mount;

/// Resident bytes of the shared mappings of files that the process may write to: a page that was
/// written and has reached the disk since looks like one that was only read, so all count. Files in
/// memory (tmpfs, memfd) are in `RssShmem` and left out; so are private mappings, of which a written
/// page is anonymous.
///
/// The list of mappings takes some 40 us; `smaps` walks the page tables (6 ms for 400 MB) and is read
/// only where the list has such a mapping, of which this library makes none.
pub(super) fn written_files() -> Option<u64> {
    let mut devices = Vec::new();
    each_line(Path::new("/proc/self/maps"), &mut |line| {
        let written = Mapping::parse(line).filter(Mapping::may_write_file);
        devices.extend(written.map(|mapping| mapping.device));
    })
    .ok()?;
    if devices.is_empty() {
        return Some(0);
    }
    each_line(Path::new("/proc/self/mountinfo"), &mut |line| {
        if let Some(memory) = Mount::parse(line).filter(Mount::is_memory) {
            devices.retain(|&device| number(memory.device, 10) != Some(device));
        }
    })
    .ok()?;
    if devices.is_empty() {
        return Some(0);
    }
    let mut sum = ResidentSum::new(&devices);
    each_line(Path::new("/proc/self/smaps"), &mut |line| {
        sum.line(line);
    })
    .ok()?;
    Some(sum.bytes)
}

/// A line of `maps`, or the first of a mapping in `smaps`.
#[derive(Debug)]
struct Mapping<'a> {
    permissions: &'a str,
    /// Major and minor.
    device: (u32, u32),
    inode: u64,
    path: &'a str,
}

impl<'a> Mapping<'a> {
    /// `from-to permissions offset major:minor inode      path`
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.splitn(6, ' ');
        let (from, to) = fields.next()?.split_once('-')?;
        for end in [from, to] {
            u64::from_str_radix(end, 16).ok()?;
        }
        Some(Self {
            permissions: fields.next()?,
            device: fields.nth(1).and_then(|device| number(device, 16))?,
            inode: fields.next()?.parse().ok()?,
            path: fields.next().unwrap_or_default().trim_start(),
        })
    }

    /// Whether it is shared, writable, of a file, and not of one that is visibly in memory alone.
    fn may_write_file(&self) -> bool {
        /// Names that the kernel gives to shared memory without a file system.
        const IN_MEMORY: [&str; 3] = ["/memfd:", "/SYSV", "/dev/zero (deleted)"];
        let permissions = self.permissions.as_bytes();
        permissions.get(1) == Some(&b'w')
            && permissions.get(3) == Some(&b's')
            && self.inode != 0
            && !IN_MEMORY.iter().any(|name| self.path.starts_with(name))
    }
}

/// A device as `major:minor`, decimal in `mountinfo` and hexadecimal in `maps`.
fn number(device: &str, radix: u32) -> Option<(u32, u32)> {
    let (major, minor) = device.split_once(':')?;
    Some((u32::from_str_radix(major, radix).ok()?, u32::from_str_radix(minor, radix).ok()?))
}

/// Adds up the resident bytes of the mappings that count, over the lines of `smaps`.
#[derive(Debug)]
struct ResidentSum<'a> {
    /// Devices whose files are on a disk.
    devices: &'a [(u32, u32)],
    /// Whether the mapping whose lines are being read counts.
    counts: bool,
    bytes: u64,
}

impl<'a> ResidentSum<'a> {
    fn new(devices: &'a [(u32, u32)]) -> Self {
        Self { devices, counts: false, bytes: 0 }
    }

    fn line(&mut self, line: &str) {
        if let Some(mapping) = Mapping::parse(line) {
            self.counts = mapping.may_write_file() && self.devices.contains(&mapping.device);
        } else if self.counts && line.starts_with("Rss:") {
            self.bytes = self.bytes.saturating_add(super::kibibytes(line, "Rss:").unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0c0a00000-55d0c0a80000 r--p 00000000 fd:01 1201                       /usr/bin/app
Size:                512 kB
Rss:                 128 kB
VmFlags: rd mr mw me
7f0000000000-7f0000400000 rw-s 00000000 fd:01 1202                       /data/state file
Size:               4096 kB
Rss:                4000 kB
Pss:                4000 kB
Shared_Clean:       3000 kB
7f0000400000-7f0000800000 rw-s 00000000 00:1c 77                         /run/host.sock-memory
Rss:                2000 kB
7f0000800000-7f0000c00000 rw-s 00000000 00:01 1025                       /memfd:buffer (deleted)
Rss:                1000 kB
7f0000c00000-7f0001000000 r--s 00000000 fd:01 1203                       /models/model.gguf
Rss:                 900 kB
7f0001000000-7f0001400000 rw-p 00000000 fd:01 1204                       /lib/libc.so
Rss:                 800 kB
7f0001400000-7f0001800000 rw-s 00000000 00:01 5                          /dev/zero (deleted)
Rss:                 700 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
Rss:                  60 kB
7f0002000000-7f0002400000 rw-s 00000000 fd:01 1205                       /data/more
Rss:                  40 kB
";

    #[test]
    fn shared_writable_files_count_and_nothing_else() {
        let mut sum = ResidentSum::new(&[(0xfd, 1)]);
        SMAPS.lines().for_each(|line| sum.line(line));
        assert_eq!(sum.bytes, 4040 << 10);
    }

    #[test]
    fn mappings() {
        let line = "7f00-7fff rw-s 00000000 fd:01 1202      /data/state file";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!(mapping.path, "/data/state file");
        assert_eq!((mapping.device, mapping.inode), ((0xfd, 1), 1202));
        let anonymous = Mapping::parse("7f00-7fff rw-p 00000000 00:00 0 ").unwrap();
        assert!(!anonymous.may_write_file());
        for other in ["Rss:   4 kB", "VmFlags: rd wr", "", "a-b rw-s", "Size-x: 4"] {
            assert!(Mapping::parse(other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn this_process_maps_no_file_to_write() {
        assert_eq!(written_files(), Some(0));
    }
}
