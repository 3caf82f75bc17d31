//! The cargo that started this task, run from the workspace's root.

use std::env;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A cargo command, not yet started.
pub fn command(args: &[&str]) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args(args);
    command
}

/// Runs cargo with `vars` added to the environment; fails where cargo does.
pub fn run(args: &[&str], vars: &[(&str, &OsStr)]) -> Result<()> {
    let line = format!("cargo {}", args.join(" "));
    println!("> {line}");
    let status = command(args)
        .envs(vars.iter().copied())
        .status()
        .with_context(|| format!("could not start `{line}`"))?;
    ensure!(status.success(), "`{line}` failed");
    Ok(())
}
