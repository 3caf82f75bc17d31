//! Budgets from the least to no limit: the same numbers, in less time the more memory there is.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

use super::flags::Flags;
use super::program::{Program, Report, Run, mb};
use super::{PROGRAM, settings};

const FLAGS: [&str; 10] = [
    "-m",
    "--data",
    "--budgets",
    "--iters",
    "--threads",
    "--max-seq-length",
    "--optimizer",
    "--rates",
    "--rounds",
    PROGRAM,
];

/// What all runs of a sweep share.
struct Sweep {
    program: Program,
    model: PathBuf,
    tokens: PathBuf,
    iters: String,
    length: String,
    optimizer: String,
    threads: Vec<u32>,
    /// One for each of `threads`; none where the program measures them.
    rates: Vec<PathBuf>,
}

/// A budget on some threads, and what the plan said before any run.
struct Planned {
    budget: String,
    thread_choice: usize,
    plan: Report,
}

/// `cargo xtask sweep`: plans all budgets, then runs them. Fails where a number differs or a peak
/// is above its budget or plan; never for time.
pub fn sweep(args: &[&str]) -> Result<()> {
    let flags = Flags::parse(args, &FLAGS)?.no_words()?;
    let budgets: usize = flags.get("--budgets", 10)?;
    ensure!(budgets >= 2, "--budgets {budgets}: min and unlimited are two");
    let sweep = Sweep::new(&flags)?;
    let planned = sweep.plan_all(budgets)?;

    println!(
        "| budget | threads | planned MB | peak MB | s/step | predicted | ratio | kept, MB | \
         GB spooled a step |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---|---:|");
    let mut failures = Vec::new();
    let mut rounds: Vec<Vec<Run>> = planned.iter().map(|_| Vec::new()).collect();
    for round in 0..flags.get("--rounds", 1)? {
        for i in 0..planned.len() {
            let run = sweep.run(&planned[i])?;
            let threads = sweep.threads[planned[i].thread_choice];
            println!("{}", line(&planned[i], threads, &run));
            let first = rounds[0].first().unwrap_or(&run);
            let wrong = wrong(&planned[i], &run, first).into_iter();
            let name = format!("{} on {threads} threads, round {round}", planned[i].budget);
            failures.extend(wrong.map(|what| format!("{name}: {what}")));
            rounds[i].push(run);
        }
    }
    println!();
    let runs = rounds.iter().map(Vec::len).sum::<usize>();
    let medians: Vec<Run> =
        rounds.into_iter().map(median).collect::<Option<_>>().unwrap_or_default();
    ensure!(!medians.is_empty(), "--rounds 0 measures nothing");
    sweep.say_summary(&planned, &medians);
    if failures.is_empty() {
        println!("- losses and adapters of all {runs} runs: the same bits; all peaks within");
        return Ok(());
    }
    bail!("{}", failures.join("\n"))
}

/// The run of the median time, the upper one of two.
fn median(mut rounds: Vec<Run>) -> Option<Run> {
    let seconds = |run: &Run| run.report.seconds_per_step.unwrap_or(f64::NAN);
    rounds.sort_by(|a, b| seconds(a).total_cmp(&seconds(b)));
    let middle = rounds.len() / 2;
    (middle < rounds.len()).then(|| rounds.swap_remove(middle))
}

impl Sweep {
    fn new(flags: &Flags) -> Result<Self> {
        let program = Program::new(flags)?;
        let (model, text) = (flags.file("-m")?, flags.file("--data")?);
        let length = flags.get("--max-seq-length", 256)?;
        let threads: Vec<u32> = flags.list("--threads", "1,2")?;
        ensure!(!threads.is_empty(), "--threads: none given");
        let mut rates: Vec<PathBuf> = flags.list("--rates", "")?;
        if rates.len() == 1 {
            rates = vec![rates[0].clone(); threads.len()];
        }
        ensure!(
            rates.is_empty() || rates.len() == threads.len(),
            "--rates: {} files for {} numbers of threads",
            rates.len(),
            threads.len()
        );
        let (tokens, peak) = program.prepare(&model, &text, length)?;
        println!("{}; preparing the text: {} MB from outside\n", model.display(), mb(peak));
        Ok(Self {
            program,
            model,
            tokens,
            iters: flags.get::<u32>("--iters", 20)?.to_string(),
            length: length.to_string(),
            optimizer: flags.get("--optimizer", "adamw".to_owned())?,
            threads,
            rates,
        })
    }

    /// Plans of all budgets on all numbers of threads, each budget's in a row.
    fn plan_all(&self, budgets: usize) -> Result<Vec<Planned>> {
        let of_all = |budget: &str| -> Result<Vec<Planned>> {
            (0..self.threads.len()).map(|choice| self.plan(budget, choice)).collect()
        };
        let most_bytes = |plans: &[Planned]| {
            plans.iter().map(|p| p.plan.planned_peak_bytes).max().expect("a number of threads")
        };
        let (least, most) = (of_all("min")?, of_all("unlimited")?);
        let between = between(most_bytes(&least), most_bytes(&most), budgets - 2);
        let mut all = least;
        for budget in between {
            all.extend(of_all(&budget.to_string())?);
        }
        all.extend(most);
        Ok(all)
    }

    fn plan(&self, budget: &str, thread_choice: usize) -> Result<Planned> {
        let settings = self.settings(budget, thread_choice);
        let plan = self.program.plan(&self.model, &self.tokens, &settings)?;
        Ok(Planned { budget: budget.to_owned(), thread_choice, plan })
    }

    fn run(&self, planned: &Planned) -> Result<Run> {
        let settings = self.settings(&planned.budget, planned.thread_choice);
        self.program.train(&self.model, &self.tokens, &settings)
    }

    fn settings(&self, budget: &str, thread_choice: usize) -> Vec<String> {
        let threads = self.threads[thread_choice].to_string();
        let mut all = settings(&[
            ("--memory", budget),
            ("--threads", &threads),
            ("--iters", &self.iters),
            ("--max-seq-length", &self.length),
            ("--optimizer", &self.optimizer),
        ]);
        if let Some(file) = self.rates.get(thread_choice) {
            all.extend(["--assume-rates".to_owned(), file.display().to_string()]);
        }
        all
    }

    fn say_summary(&self, planned: &[Planned], runs: &[Run]) {
        for (choice, threads) in self.threads.iter().enumerate() {
            let of_choice = |(p, _): &(&Planned, &Run)| p.thread_choice == choice;
            let pairs: Vec<_> = planned.iter().zip(runs).filter(of_choice).collect();
            let plans: BTreeSet<_> = pairs.iter().map(|(p, _)| p.plan.choices()).collect();
            let seconds = |i: usize| pairs[i].1.report.seconds_per_step.unwrap_or(f64::NAN);
            let gain = seconds(pairs.len() - 1) / seconds(0);
            println!(
                "- {threads} threads: {} distinct plans; time(unlimited) / time(min) {gain:.3}; \
                 largest prediction error {}",
                plans.len(),
                percent(pairs.iter().filter_map(|(p, run)| error(p, run)).reduce(f64::max)),
            );
        }
    }
}

/// `count` sizes between two, each larger than the one before by the same factor.
fn between(least: u64, most: u64, count: usize) -> Vec<u64> {
    let factor = (most as f64 / least as f64).powf(1.0 / (count + 1) as f64);
    (1..=count).map(|i| (least as f64 * factor.powi(i as i32)) as u64).collect()
}

/// How far the measured time is from the predicted one, as a part of the measured.
fn error(planned: &Planned, run: &Run) -> Option<f64> {
    let measured = run.report.seconds_per_step?;
    Some((planned.plan.predicted_seconds_per_step? - measured).abs() / measured)
}

fn percent(part: Option<f64>) -> String {
    part.map_or("not known".to_owned(), |part| format!("{:.1} %", 100.0 * part))
}

fn line(planned: &Planned, threads: u32, run: &Run) -> String {
    let budget = planned.budget.parse().map_or(planned.budget.clone(), |bytes| mb(bytes) + " MB");
    let figure = |x: Option<f64>, digits| x.map_or("–".to_owned(), |x| format!("{x:.digits$}"));
    let (measured, predicted) =
        (run.report.seconds_per_step, planned.plan.predicted_seconds_per_step);
    let ratio = predicted.zip(measured).map(|(predicted, measured)| predicted / measured);
    format!(
        "| {budget} | {threads} | {} | {} | {} | {} | {} | {} | {} |",
        mb(run.report.planned_peak_bytes),
        mb(run.peak_bytes),
        figure(measured, 3),
        figure(predicted, 3),
        figure(ratio, 2),
        planned.plan.kept(),
        figure(run.report.spooled_bytes().map(|bytes| bytes as f64 / 1e9), 3),
    )
}

/// What `run` breaks of the promise, next to the sweep's first run.
fn wrong(planned: &Planned, run: &Run, first: &Run) -> Vec<String> {
    let mut wrong = Vec::new();
    let (peak, plan) = (run.peak_bytes, run.report.planned_peak_bytes);
    if peak > plan {
        wrong.push(format!("a peak of {peak} bytes from outside, planned {plan}"));
    }
    if let Ok(budget) = planned.budget.parse::<u64>()
        && peak.max(plan) > budget
    {
        wrong.push(format!("a peak of {peak} bytes from outside, a plan of {plan}"));
    }
    // Losses are printed to nine digits, so that equal numbers are equal text.
    if run.report.losses.is_none() || run.report.losses != first.report.losses {
        wrong.push("its losses are not those of the first run".to_owned());
    }
    if run.adapter != first.adapter {
        wrong.push("its adapter is not that of the first run".to_owned());
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_grow_by_one_factor() {
        assert_eq!(between(1_000_000, 16_000_000, 3), [2_000_000, 4_000_000, 8_000_000]);
        assert!(between(5, 7, 0).is_empty());
    }
}
