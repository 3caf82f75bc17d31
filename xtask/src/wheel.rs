//! Wheels (PEP 427): a Python package as a zip file. They are read, never installed, so no code of
//! the package runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Copies the member named by the second argument, of the zip file named by the first, to stdout.
const PRINT_MEMBER: &str = "\
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, wheel.open(sys.argv[2]) as member:
    shutil.copyfileobj(member, sys.stdout.buffer, 1 << 20)
";

/// Downloads the wheel of `package` (`name==version`) into `dir`, which must be empty.
pub fn download(package: &str, dir: &Path) -> Result<PathBuf> {
    let status = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"])
        .args(["--no-deps", "--only-binary=:all:", "--dest"])
        .arg(dir)
        .arg(package)
        .status()
        .context("could not start python3")?;
    ensure!(status.success(), "`python3 -m pip download {package}` failed");
    let mut files = fs::read_dir(dir)?;
    match (files.next(), files.next()) {
        (Some(wheel), None) => Ok(wheel?.path()),
        _ => bail!("pip left not one file for {package}"),
    }
}

/// Starts writing a wheel's member to the returned process's stdout.
pub fn open_member(wheel: &Path, member: &str) -> Result<Child> {
    Command::new("python3")
        .args(["-c", PRINT_MEMBER])
        .arg(wheel)
        .arg(member)
        .stdout(Stdio::piped())
        .spawn()
        .context("could not start python3")
}
