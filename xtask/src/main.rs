//! Tasks of the workspace, run as `cargo xtask TASK`.
#![forbid(unsafe_code)]

mod aarch64;
mod arrows;
mod cargo;
mod memory;
mod models;
mod wheel;

use std::env;
use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
Usage: cargo xtask TASK

  models [NAME|all]...  bring the test models of tests/models.toml into the cache (default: all)
  arrows                check which crate may depend on which
  check                 formatting, clippy and the crate arrows
  test [--all-models]   run the workspace's tests on SmolLM2, or on every test model
  aarch64               run the kernels' tests and the tiny golden models on an emulated aarch64

Memory and time, watched from outside (Linux):
  sweep -m MODEL --data TEXT [--budgets 10] [--iters 20] [--threads 1,2] [--max-seq-length 256]
        [--optimizer adamw] [--rates FILE,...]
                        train with budgets from min to unlimited: the same losses and adapter to the
                        bit, peaks within budgets, times against predictions (--rates: by these
                        rates, one file for all, or one for each number of threads)
  least --data TEXT [--threads 2] [--iters 3] MODEL...
                        peaks at --memory min against the bounds that known models have
  growth -m MODEL --data TEXT [--iters 20] [--memory min] [--optimizer sgd] [--threads 2]
        [--max-seq-length 256]
                        what memory grows by from the second step to the last
                        (all three: --program FILE watches that program, not a fresh build)

The cache is $SMIDGEN_TEST_MODELS, else smidgen/models under $XDG_CACHE_HOME or ~/.cache.";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let Err(error) = run(&args) else {
        return ExitCode::SUCCESS;
    };
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("caused by: {cause}");
    }
    ExitCode::FAILURE
}

fn run(args: &[&str]) -> Result<()> {
    match *args {
        ["models", ref names @ ..] => {
            let dir = models::bring(names)?;
            println!("SMIDGEN_TEST_MODELS={}", dir.display());
            Ok(())
        }
        ["arrows"] => arrows::check(),
        ["check"] => check(),
        ["aarch64"] => aarch64::test(),
        ["test"] => test(&["smollm2"], Some("all_models_")),
        ["test", "--all-models"] => test(&["all"], None),
        ["sweep", ref args @ ..] => memory::sweep(args),
        ["least", ref args @ ..] => memory::least(args),
        ["growth", ref args @ ..] => memory::growth(args),
        [] | ["help" | "-h" | "--help"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("not a task: {}\n\n{USAGE}", args.join(" ")),
    }
}

fn check() -> Result<()> {
    cargo::run(&["fmt", "--all", "--check"], &[])?;
    cargo::run(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])?;
    arrows::check()
}

/// Runs unit, integration and doc tests, in release since they compute on real models.
fn test(models: &[&str], skip: Option<&str>) -> Result<()> {
    let dir = models::bring(models)?;
    let mut args = vec!["test", "--workspace", "--release", "--no-fail-fast"];
    if let Some(prefix) = skip {
        args.extend(["--", "--skip", prefix]);
    }
    let tested = cargo::run(&args, &[("SMIDGEN_TEST_MODELS", dir.as_os_str())]);
    if let Some(prefix) = skip {
        println!(
            "Skipped: tests named {prefix}*, which need every test model and the folder \
             SMIDGEN_TEST_DATA names; `cargo xtask test --all-models` runs them."
        );
    }
    tested
}
