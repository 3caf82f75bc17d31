//! The least memory that exact training takes, against bounds and against what papers report.

use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::flags::Flags;
use super::program::{Program, Run, mb};
use super::{PROGRAM, settings};

const FLAGS: [&str; 4] = ["--data", "--threads", "--iters", PROGRAM];

/// A way to train, and the most it may take.
struct Case {
    name: &'static str,
    length: u32,
    flags: &'static [&'static str],
    most_mb: Option<u64>,
    /// As the papers have it, MB on phones: MeBP arXiv 2510.03425 and, with the second figure of
    /// a range, arXiv 2602.13069, whose own method is MeSP.
    papers: &'static str,
}

/// A model, known by words in its file's name.
struct Known {
    words: [&'static str; 2],
    cases: &'static [Case],
}

const SGD: &[&str] = &["--optimizer", "sgd"];
const SGD_NO_SPOOL: &[&str] = &["--optimizer", "sgd", "--no-spool"];
const ADAMW: &[&str] = &["--optimizer", "adamw"];
const ADAMW_NO_SPOOL: &[&str] = &["--optimizer", "adamw", "--no-spool"];

const fn sgd(most_mb: u64, papers: &'static str) -> Case {
    Case { name: "SGD", length: 256, flags: SGD, most_mb: Some(most_mb), papers }
}

const fn no_spool(most_mb: u64) -> Case {
    let name = "SGD, no spool";
    Case { name, length: 256, flags: SGD_NO_SPOOL, most_mb: Some(most_mb), papers: "" }
}

/// What a model that nobody set a bound for is tried with.
const ANY: &[Case] = &[Case { name: "SGD", length: 256, flags: SGD, most_mb: None, papers: "" }];

const KNOWN: [Known; 5] = [
    Known {
        words: ["qwen2.5", "0.5b"],
        cases: &[
            sgd(40, "MeSP 136, MeBP 320-361"),
            no_spool(60),
            Case { name: "AdamW", length: 256, flags: ADAMW, most_mb: None, papers: "" },
            Case {
                name: "AdamW, no spool",
                length: 256,
                flags: ADAMW_NO_SPOOL,
                most_mb: None,
                papers: "",
            },
            Case {
                name: "SGD, 1,024 tokens",
                length: 1024,
                flags: SGD,
                most_mb: Some(80),
                papers: "MeSP 514, MeBP 1050",
            },
        ],
    },
    Known { words: ["qwen2.5", "1.5b"], cases: &[sgd(70, "MeSP 263, MeBP 460-516")] },
    Known { words: ["qwen2.5", "3b"], cases: &[sgd(105, "MeSP 368, MeBP 638-662")] },
    Known { words: ["gemma", "3-1b"], cases: &[sgd(55, "MeBP 569")] },
    Known { words: ["gemma", "3-4b"], cases: &[sgd(115, "MeBP 1029"), no_spool(195)] },
];

/// AdamW's state beside SGD's memory at most: paged from a file, and held in memory.
const STATE_PAGED_MB: i64 = 4;
const STATE_HELD_MB: i64 = 37;

/// `cargo xtask least`: each model at `--memory min`, rank 8, all projections, batch 1; beside the
/// peak from outside stands what the program counted by itself. Fails where a peak is above its
/// plan or its bound.
pub fn least(args: &[&str]) -> Result<()> {
    let flags = Flags::parse(args, &FLAGS)?;
    ensure!(!flags.words.is_empty(), "which models?");
    let program = Program::new(&flags)?;
    let text = flags.file("--data")?;
    let (threads, iters): (u32, u32) = (flags.get("--threads", 2)?, flags.get("--iters", 3)?);
    let common = [("--threads", &*threads.to_string()), ("--iters", &*iters.to_string())];
    println!(
        "| model | settings | planned MB | peak MB | by itself | at most | window MB | s/step | \
         GB read, written a step | papers, MB |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|---|");
    let mut failures = Vec::new();
    for model in &flags.words {
        let model = Path::new(model);
        let name = model.file_stem().unwrap_or_default().to_string_lossy();
        let mut runs = Vec::new();
        for case in cases(&name) {
            let (tokens, _) = program.prepare(model, &text, case.length)?;
            let run = program.train(model, &tokens, &case.settings(&common))?;
            println!("{}", case.line(&name, &run));
            failures.extend(case.wrong(&run).map(|what| format!("{name}, {}: {what}", case.name)));
            runs.push((case.name, run));
        }
        failures.extend(state_failures(&runs));
    }
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{}", failures.join("\n"))
}

fn cases(name: &str) -> &'static [Case] {
    // Files are named gemma3-4b or gemma-3-4b-it-Q4_0.
    let name = name.to_lowercase();
    let is = |known: &&Known| known.words.iter().all(|word| name.contains(word));
    KNOWN.iter().find(is).map_or(ANY, |known| known.cases)
}

impl Case {
    fn settings(&self, common: &[(&str, &str)]) -> Vec<String> {
        let length = self.length.to_string();
        let mut all = settings(&[("--memory", "min"), ("--max-seq-length", &length)]);
        all.extend(settings(common));
        all.extend(self.flags.iter().map(|flag| (*flag).to_owned()));
        all
    }

    fn line(&self, model: &str, run: &Run) -> String {
        let report = &run.report;
        let gb =
            |bytes: Option<u64>| bytes.map_or("–".into(), |b| format!("{:.3}", b as f64 / 1e9));
        format!(
            "| {model} | {} | {} | {} | {} | {} | {} | {} | {}, {} | {} |",
            self.name,
            mb(report.planned_peak_bytes),
            mb(run.peak_bytes),
            report.peak_memory_bytes.map_or("–".into(), mb),
            self.most_mb.map_or("–".into(), |most| most.to_string()),
            mb(report.weight_window_bytes),
            report.seconds_per_step.map_or("–".into(), |seconds| format!("{seconds:.2}")),
            gb(report.spool_read_bytes),
            gb(report.spool_written_bytes),
            self.papers,
        )
    }

    fn wrong(&self, run: &Run) -> Option<String> {
        let (peak, planned) = (run.peak_bytes, run.report.planned_peak_bytes);
        if peak > planned {
            return Some(format!("a peak of {peak} bytes from outside, planned {planned}"));
        }
        let most = self.most_mb.filter(|most| peak > most * 1_000_000)?;
        Some(format!("a peak of {} MB, above {most}", mb(peak)))
    }
}

/// Prints what AdamW adds to SGD, and says where it is too much.
fn state_failures(runs: &[(&str, Run)]) -> Vec<String> {
    let peak = |name: &str| {
        let run = runs.iter().find(|(case, _)| *case == name);
        run.map(|(_, run)| run.peak_bytes as i64)
    };
    let mut failures = Vec::new();
    for (adamw, sgd, most) in
        [("AdamW", "SGD", STATE_PAGED_MB), ("AdamW, no spool", "SGD, no spool", STATE_HELD_MB)]
    {
        let Some((with, without)) = peak(adamw).zip(peak(sgd)) else { continue };
        let added = (with - without) as f64 / 1e6;
        println!("{adamw} adds {added:.1} MB to {sgd}; at most {most}.");
        if added > most as f64 {
            failures.push(format!("{adamw} adds {added:.1} MB to {sgd}, above {most}"));
        }
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_known_by_their_files_names() {
        let most = |name: &str| cases(name)[0].most_mb;
        assert_eq!(most("qwen2.5-coder-0.5b-instruct-q4_k_m"), Some(40));
        assert_eq!(most("Qwen2.5-1.5B-Instruct-Q4_0"), Some(70));
        assert_eq!(most("qwen2.5-3b"), Some(105));
        assert_eq!(most("gemma3-1b"), Some(55));
        assert_eq!(most("gemma-3-4b-it-Q4_0"), Some(115));
        assert_eq!(most("SmolLM2-135M"), None);
    }
}
