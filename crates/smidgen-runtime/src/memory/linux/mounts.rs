//! `/proc/self/mountinfo`: what is mounted where (proc_pid_mountinfo(5)).

use std::path::PathBuf;

/// A line of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount<'a> {
    /// `major:minor`.
    pub device: &'a str,
    /// The folder of the file system that is mounted.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Type of the file system.
    pub kind: &'a str,
    /// Options of the file system.
    pub options: &'a str,
}

impl<'a> Mount<'a> {
    /// `id parent major:minor root point options [field ...] - kind source options`
    pub(super) fn parse(line: &'a str) -> Option<Self> {
        let (place, what) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(2);
        let mut what = what.split(' ');
        Some(Self {
            device: place.next()?,
            root: unescaped(place.next()?),
            point: unescaped(place.next()?),
            kind: what.next()?,
            options: what.nth(1).unwrap_or_default(),
        })
    }

    /// Whether pages of its files are shared memory to the kernel's counters.
    pub(super) fn is_memory(&self) -> bool {
        matches!(self.kind, "tmpfs" | "devtmpfs")
    }
}

/// Spaces, tabs, line ends and backslashes stand as three octal digits behind a backslash.
fn unescaped(path: &str) -> PathBuf {
    let mut out = String::new();
    let mut parts = path.split('\\');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                out.push_str(&part[3..]);
            }
            None => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let line = r"36 35 98:0 /mnt1 /my\040disk\134x rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
        let expected = Mount {
            device: "98:0",
            root: "/mnt1".into(),
            point: r"/my disk\x".into(),
            kind: "ext3",
            options: "rw,errors=continue",
        };
        assert_eq!(Mount::parse(line), Some(expected));
        let bare = Mount::parse("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw").unwrap();
        assert!(bare.is_memory());
        for bad in ["", "1 2 3:4 / /x rw", "1 2 - tmpfs"] {
            assert_eq!(Mount::parse(bad), None, "{bad:?}");
        }
    }
}
