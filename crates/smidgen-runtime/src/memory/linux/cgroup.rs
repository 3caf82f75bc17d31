//! What control groups have left of their memory, version 1 and 2 (cgroups(7)).

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::lines::each_line;
use super::mounts::Mount;

/// The hierarchies that limit memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Files of a group's folder.
struct Files {
    /// The process is killed above one of them, or held up.
    limits: &'static [&'static str],
    usage: &'static str,
    /// Field of `memory.stat`: pages of files that were not read for a while. They are in the usage
    /// but the first to go, so they are free, as container tools reckon too.
    idle: &'static str,
}

impl Version {
    fn files(self) -> Files {
        match self {
            Self::V1 => Files {
                limits: &["memory.limit_in_bytes"],
                usage: "memory.usage_in_bytes",
                idle: "total_inactive_file",
            },
            Self::V2 => Files {
                limits: &["memory.max", "memory.high"],
                usage: "memory.current",
                idle: "inactive_file",
            },
        }
    }
}

/// The least that a group has free, from this process's own up to the mounted root, in bytes; none
/// where none has a limit. Files are looked for under `root`, which is `/` but in tests. What can't
/// be read sets no limit.
pub(super) fn free(root: &Path) -> Option<u64> {
    let memberships = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mut least = None;
    let _ = each_line(&root.join("proc/self/mountinfo"), &mut |line| {
        let mounted = Mount::parse(line).and_then(|mount| Some((version(&mount)?, mount)));
        if let Some((version, mount)) = mounted {
            let group = membership(&memberships, version);
            let groups = groups(&mount, group.unwrap_or(Path::new("/")));
            let free = groups.iter().filter_map(|folder| group_free(&under(root, folder), version));
            least = least.into_iter().chain(free).min();
        }
    });
    least
}

/// Which hierarchy a mount shows, if it has to do with memory.
fn version(mount: &Mount<'_>) -> Option<Version> {
    match mount.kind {
        "cgroup2" => Some(Version::V2),
        "cgroup" if mount.options.split(',').any(|option| option == "memory") => Some(Version::V1),
        _ => None,
    }
}

/// The group of a process, from the text of its `/proc/PID/cgroup`: `id:controllers:group` a line,
/// version 2 with an id of 0 and no controllers.
fn membership(text: &str, version: Version) -> Option<&Path> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
        let is_it = match version {
            Version::V1 => controllers.split(',').any(|name| name == "memory"),
            Version::V2 => id == "0" && controllers.is_empty(),
        };
        is_it.then_some(Path::new(group))
    })
}

/// Folders of `group` and of the groups above it, up to the one that is mounted. A group that the
/// mount does not show (a container may see its own group as the root) leaves that one alone.
fn groups(mount: &Mount<'_>, group: &Path) -> Vec<PathBuf> {
    let inner = group.strip_prefix(&mount.root).unwrap_or(Path::new(""));
    let is_plain = inner.components().all(|part| matches!(part, Component::Normal(_)));
    let inner = if is_plain { inner } else { Path::new("") };
    inner.ancestors().map(|part| mount.point.join(part)).collect()
}

/// `path`, which is absolute, under another root.
fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// What the group of a folder has left below its own limit.
fn group_free(folder: &Path, version: Version) -> Option<u64> {
    let files = version.files();
    let number = |name: &&str| -> Option<u64> {
        fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
    };
    // Version 2 says "max" where there is no limit, version 1 a number beyond all memory.
    let limit = files.limits.iter().filter_map(number).min()?;
    let usage = number(&files.usage)?;
    let idle = fs::read_to_string(folder.join("memory.stat")).ok();
    let idle = idle.and_then(|text| field(&text, files.idle)).unwrap_or(0);
    Some(limit.saturating_sub(usage.saturating_sub(idle)))
}

/// The field `name` of a text with a name and a number a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.split_once(' ').filter(|(n, _)| *n == name)?.1.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    /// A folder that stands for `/`, with these files.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";

    #[test]
    fn version_2_takes_the_tightest_group_on_the_way_up() {
        let root = machine(&[
            ("proc/self/cgroup", "0::/app.slice/run/inner\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/app.slice/memory.max", "104857600\n"),
            ("sys/fs/cgroup/app.slice/memory.current", "83886080\n"),
            ("sys/fs/cgroup/app.slice/memory.stat", "anon 5\ninactive_file 10485760\n"),
            ("sys/fs/cgroup/app.slice/run/memory.max", "max\n"),
            ("sys/fs/cgroup/app.slice/run/memory.current", "83886080\n"),
            ("sys/fs/cgroup/app.slice/run/inner/memory.max", "94371840\n"),
            ("sys/fs/cgroup/app.slice/run/inner/memory.current", "41943040\n"),
        ]);
        assert_eq!(free(root.path()), Some(30 * MB));
    }

    #[test]
    fn version_2_is_held_up_at_high() {
        let root = machine(&[
            ("proc/self/cgroup", "0::/a\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/a/memory.max", "max"),
            ("sys/fs/cgroup/a/memory.high", "52428800"),
            ("sys/fs/cgroup/a/memory.current", "62914560"),
        ]);
        assert_eq!(free(root.path()), Some(0));
    }

    #[test]
    fn version_1_goes_by_the_memory_controller() {
        let root = machine(&[
            ("proc/self/cgroup", "5:devices:/other\n4:cpu,memory:/user/job\n0::/\n"),
            ("proc/self/mountinfo", V1),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "8123456789\n"),
            ("sys/fs/cgroup/memory/user/job/memory.limit_in_bytes", "73400320\n"),
            ("sys/fs/cgroup/memory/user/job/memory.usage_in_bytes", "31457280\n"),
            (
                "sys/fs/cgroup/memory/user/job/memory.stat",
                "inactive_file 1\ntotal_inactive_file 20971520\n",
            ),
            ("sys/fs/cgroup/memory/other/memory.limit_in_bytes", "1\n"),
            ("sys/fs/cgroup/memory/other/memory.usage_in_bytes", "1\n"),
        ]);
        assert_eq!(free(root.path()), Some(60 * MB));
    }

    #[test]
    fn a_container_that_mounts_its_own_group() {
        // Without a namespace of its own, the group's name is longer than what is mounted.
        let mount = "40 31 0:32 /docker/abc /my\\040groups ro - cgroup cgroup rw,memory\n";
        for group in
            ["4:memory:/docker/abc/inner", "4:memory:/elsewhere", "4:memory:/docker/abc/.."]
        {
            let root = machine(&[
                ("proc/self/cgroup", group),
                ("proc/self/mountinfo", mount),
                ("my groups/memory.limit_in_bytes", "52428800"),
                ("my groups/memory.usage_in_bytes", "10485760"),
                ("my groups/inner/memory.limit_in_bytes", "unreadable"),
            ]);
            assert_eq!(free(root.path()), Some(40 * MB), "{group}");
        }
    }

    #[test]
    fn without_a_limit_there_is_none() {
        let pieces = [
            ("proc/self/cgroup", "0::/a\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/a/memory.max", "max"),
            ("sys/fs/cgroup/a/memory.current", "1"),
        ];
        for count in 0..=pieces.len() {
            assert_eq!(free(machine(&pieces[..count]).path()), None);
        }
    }
}
