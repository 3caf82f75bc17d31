//! A step leaves nothing behind.

use anyhow::{Context, Result, ensure};

use super::flags::Flags;
use super::program::{Program, mb};
use super::{PROGRAM, settings};

const FLAGS: [&str; 8] = [
    "-m",
    "--data",
    "--iters",
    "--memory",
    "--optimizer",
    "--threads",
    "--max-seq-length",
    PROGRAM,
];

/// What memory may grow by from the second step to the last.
const MOST_BYTES: i64 = 256_000;

/// `cargo xtask growth`: counted memory of the second step and of the last, as the program has it
/// at their ends and as it is seen from outside at their highest.
pub fn growth(args: &[&str]) -> Result<()> {
    let flags = Flags::parse(args, &FLAGS)?.no_words()?;
    let program = Program::new(&flags)?;
    let (model, text) = (flags.file("-m")?, flags.file("--data")?);
    let steps: usize = flags.get("--iters", 20)?;
    ensure!(steps > 2, "--iters {steps}: growth is from the second step on");
    let length = flags.get("--max-seq-length", 256)?;
    let (tokens, _) = program.prepare(&model, &text, length)?;
    let run = program.train(
        &model,
        &tokens,
        &settings(&[
            ("--memory", &flags.get("--memory", "min".to_owned())?),
            ("--optimizer", &flags.get("--optimizer", "sgd".to_owned())?),
            ("--threads", &flags.get::<u32>("--threads", 2)?.to_string()),
            ("--max-seq-length", &length.to_string()),
            ("--iters", &steps.to_string()),
        ]),
    )?;
    let own = |step: usize| run.own_bytes.get(step - 1).context("a step without memory_bytes");
    let outside = |step: usize| {
        let seen = run.step_peaks.get(&(step - 1));
        seen.with_context(|| format!("step {step} went by unseen: take a larger model"))
    };
    println!("| counted | step 2, MB | step {steps}, MB | growth, bytes |");
    println!("|---|---:|---:|---:|");
    let mut most = i64::MIN;
    for (name, second, last) in [
        ("by the program, at a step's end", *own(2)?, *own(steps)?),
        ("from outside, a step's highest", *outside(2)?, *outside(steps)?),
    ] {
        let growth = last as i64 - second as i64;
        println!("| {name} | {} | {} | {growth} |", mb(second), mb(last));
        most = most.max(growth);
    }
    ensure!(most <= MOST_BYTES, "memory grew by {most} bytes, above {MOST_BYTES}");
    Ok(())
}
