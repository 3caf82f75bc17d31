//! The kernels' tests and the tiny golden models on aarch64, emulated by qemu-user.
//!
//! Test binaries are linked statically, so that the emulator needs no aarch64 system below it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cargo;

/// A target that the tests can be built for, and what links it.
struct Target {
    triple: &'static str,
    linker: &'static str,
    rustflags: &'static str,
}

/// In the order of preference: musl's std brings its libc, and rust-lld comes with the compiler.
const TARGETS: [Target; 2] = [
    Target { triple: "aarch64-unknown-linux-musl", linker: "rust-lld", rustflags: "" },
    Target {
        triple: "aarch64-unknown-linux-gnu",
        linker: "aarch64-linux-gnu-gcc",
        rustflags: "-C target-feature=+crt-static",
    },
];

const EMULATORS: [&str; 2] = ["qemu-aarch64", "qemu-aarch64-static"];

const TESTS: [&[&str]; 2] =
    [&["-p", "smidgen-kernels"], &["-p", "smidgen-train", "--test", "golden"]];

/// Builds and runs the tests, in release since emulation is slow. Installs nothing: what is missing
/// is named in the error.
pub fn test() -> Result<()> {
    let emulator = EMULATORS.into_iter().find(|name| in_path(name));
    let target = TARGETS.iter().find(|target| target.is_usable());
    let mut missing = Vec::new();
    if emulator.is_none() {
        missing.push("qemu-aarch64 (Debian's package qemu-user)");
    }
    if target.is_none() {
        missing.push(
            "Rust's std for aarch64: `rustup target add aarch64-unknown-linux-musl`, or that of \
             aarch64-unknown-linux-gnu with aarch64-linux-gnu-gcc (gcc-aarch64-linux-gnu and \
             libc6-dev-arm64-cross)",
        );
    }
    let (Some(emulator), Some(target)) = (emulator, target) else {
        bail!("the tests on aarch64 need\n  {}", missing.join("\n  "));
    };
    let vars = target.variables(emulator);
    let vars: Vec<(&str, &OsStr)> = vars.iter().map(|(k, v)| (k.as_str(), OsStr::new(v))).collect();
    for tests in TESTS {
        let mut args = vec!["test", "--release", "--no-fail-fast", "--target", target.triple];
        args.extend(tests);
        cargo::run(&args, &vars)?;
    }
    Ok(())
}

impl Target {
    /// Whether the compiler has the target's std, and the linker is there.
    fn is_usable(&self) -> bool {
        let has_linker = self.linker == "rust-lld" || in_path(self.linker);
        has_linker && std_folder(self.triple).is_ok_and(|folder| holds_std(&folder))
    }

    /// Cargo's settings for the target, as environment variables.
    fn variables(&self, emulator: &'static str) -> Vec<(String, &'static str)> {
        let name = self.triple.to_uppercase().replace('-', "_");
        [("LINKER", self.linker), ("RUNNER", emulator), ("RUSTFLAGS", self.rustflags)]
            .into_iter()
            .map(|(key, value)| (format!("CARGO_TARGET_{name}_{key}"), value))
            .collect()
    }
}

/// Where the compiler looks for a target's std; the folder need not exist.
fn std_folder(triple: &str) -> Result<PathBuf> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let printed = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", triple])
        .output()
        .context("could not start rustc")?;
    ensure!(printed.status.success(), "rustc does not know {triple}");
    Ok(PathBuf::from(String::from_utf8(printed.stdout)?.trim()))
}

fn holds_std(folder: &Path) -> bool {
    let Ok(mut files) = fs::read_dir(folder) else { return false };
    files.any(|file| file.is_ok_and(|f| f.file_name().to_string_lossy().starts_with("libstd-")))
}

fn in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_named_after_the_target() {
        let variables = TARGETS[0].variables("qemu-aarch64");
        let expected = ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER", "qemu-aarch64");
        assert!(variables.iter().any(|(k, v)| (k.as_str(), *v) == expected), "{variables:?}");
    }

    #[test]
    fn a_folder_without_std_is_told_from_one_with_it() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!holds_std(folder.path()) && !holds_std(&folder.path().join("absent")));
        fs::write(folder.path().join("libstd-0.rlib"), "").unwrap();
        assert!(holds_std(folder.path()));
    }
}
