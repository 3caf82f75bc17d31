//! `smidgen bench`: how fast a step is, and where its time goes.

use clap::CommandFactory;
use serde::Serialize;
use smidgen::{
    BenchCase, BenchReport, BenchSettings, LoraConfig, MemoryBudget, Phase, TrainConfig, Work,
    bench,
};

use super::settings::{optimizer_config, usual_method, usual_optimizer};
use super::{open_model, papers, say_model, synth, temporary_folder};
use crate::args::{
    BenchArgs, BenchCommand, Cli, MeasureArgs, MethodName, ModelArgs, OutputArgs, threads,
};
use crate::error::{Failure, Result};
use crate::progress::Progress;
use crate::rates;
use crate::report::path_text;
use crate::stop::Stop;
use crate::table;
use crate::ui::{Ui, megabytes};

pub fn run(args: &BenchArgs, stop: &Stop) -> Result<()> {
    match (&args.command, &args.model) {
        (Some(BenchCommand::Synth(args)), _) => synth::run(args, stop),
        (Some(BenchCommand::Rates(args)), _) => measure(args),
        (None, None) if args.table.table.is_some() => papers::run(args, stop),
        (None, Some(model)) => {
            speed(args, ModelArgs { model: model.clone(), tokenizer: None }, stop)
        }
        (None, None) => help(),
    }
}

fn measure(args: &MeasureArgs) -> Result<()> {
    let found = rates::measure(threads(args.threads), Some(&args.spool_dir))?;
    Ui::new(OutputArgs { json: false }).say(&rates::json(found)?);
    Ok(())
}

fn help() -> Result<()> {
    let mut cli = Cli::command();
    cli.build();
    let bench = cli.find_subcommand_mut("bench").expect("it is this one");
    bench.print_help().map_err(|e| Failure::File(format!("cannot print the help: {e}")))
}

/// All cases that the lists of `args` make.
fn cases(args: &BenchArgs) -> Vec<BenchCase> {
    let threads = match args.threads.as_slice() {
        [] => vec![TrainConfig::default().threads],
        list => list.iter().map(|n| *n as usize).collect(),
    };
    let mut cases = Vec::new();
    for tokens in args.max_seq_length.iter().map(|n| *n as usize) {
        for &rank in &args.lora_rank {
            for &threads in &threads {
                for &memory in &args.memory {
                    cases.push(BenchCase { tokens, rank, threads, memory });
                }
            }
        }
    }
    cases
}

fn speed(args: &BenchArgs, model: ModelArgs, stop: &Stop) -> Result<()> {
    if args.method == MethodName::Mesp {
        return Err(Failure::usage(
            "--method mesp stands for --method exact --memory min; give these",
        ));
    }
    let ui = Ui::new(args.output);
    let base = open_model(&model)?;
    say_model(&ui, &base);
    let optimizer = args.optimizer.unwrap_or(usual_optimizer(args.method));
    let scratch = temporary_folder()?;
    let settings = BenchSettings {
        method: usual_method(args.method, base.info().layers),
        lora: LoraConfig::default(),
        optimizer: optimizer_config(optimizer, None),
        rounds: args.rounds as usize,
        spool: Some(scratch.path().to_owned()),
    };
    let cases = cases(args);
    let mut progress = Progress::new("measuring case", 0);
    let mut measured = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        progress.at(i as u64 + 1, cases.len() as u64, String::new);
        let report =
            bench(&base, *case, &settings, stop.flag()).inspect_err(|_| progress.clear())?;
        measured.push(Case::of(&report));
    }
    progress.clear();
    ui.say(&format!("\n{}\n", overview(&measured)));
    for case in &measured {
        ui.say(&format!("{}\n", phases(case)));
    }
    let (model, optimizer) = (path_text(&model.model), optimizer.name());
    ui.report(&Report { model, optimizer, cases: measured })
}

/// A line a case.
fn overview(cases: &[Case]) -> String {
    let head = [
        "tokens",
        "rank",
        "threads",
        "memory",
        "planned",
        "step",
        "fastest",
        "slowest",
        "tokens/s",
        "GFLOP/s",
        "of GEMM rate",
        "non-GEMM",
        "dequantisation",
        "/ 2 forwards",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for case in cases {
        rows.push(vec![
            case.tokens.to_string(),
            case.rank.to_string(),
            case.threads.to_string(),
            case.memory.clone(),
            megabytes(case.planned_bytes),
            seconds(case.step_seconds),
            seconds(case.step_seconds_least),
            seconds(case.step_seconds_most),
            format!("{:.1}", case.tokens_per_second),
            format!("{:.1}", case.gflops),
            percent(case.share_of_gemm_rate),
            percent(case.share_of_non_gemm),
            percent(case.share_of_dequantisation),
            format!("{:.3}", case.step_over_two_forwards),
        ]);
    }
    table::right(&rows)
}

/// A case's phases: a line each.
fn phases(case: &Case) -> String {
    let head = ["phase", "GEMM", "attention", "other", "share", "GEMM GFLOP/s"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for part in &case.phases {
        rows.push(vec![
            part.phase.to_owned(),
            seconds(part.gemm_seconds),
            seconds(part.attention_seconds),
            seconds(part.other_seconds),
            percent(part.share),
            if part.gemm_gflops > 0.0 { format!("{:.1}", part.gemm_gflops) } else { String::new() },
        ]);
    }
    let title = format!(
        "{} tokens, rank {}, {} threads, memory {}: where a step's time goes",
        case.tokens, case.rank, case.threads, case.memory
    );
    format!("{title}\n{}", table::right(&rows))
}

fn seconds(s: f64) -> String {
    format!("{s:.3} s")
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn memory(budget: MemoryBudget) -> String {
    match budget {
        MemoryBudget::Auto => "auto".into(),
        MemoryBudget::Bytes(bytes) => megabytes(bytes),
        MemoryBudget::Min => "min".into(),
        MemoryBudget::Unlimited => "unlimited".into(),
    }
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    optimizer: &'static str,
    cases: Vec<Case>,
}

/// One case. Times are medians over the rounds where nothing else is said.
#[derive(Debug, Serialize)]
struct Case {
    tokens: usize,
    rank: usize,
    threads: usize,
    memory: String,
    planned_bytes: u64,
    rounds: usize,
    step_seconds: f64,
    step_seconds_least: f64,
    step_seconds_most: f64,
    tokens_per_second: f64,
    /// FLOPs of the mean step, recomputation among them.
    flops: u64,
    gflops: f64,
    /// Products with frozen weights of one forward.
    linear_flops: u64,
    gemm_rate_gflops: f64,
    share_of_gemm_rate: f64,
    share_of_non_gemm: f64,
    share_of_dequantisation: f64,
    pack_weights_seconds: f64,
    pack_numbers_seconds: f64,
    two_forwards_seconds: f64,
    step_over_two_forwards: f64,
    phases: Vec<Part>,
}

/// One phase of the mean step.
#[derive(Debug, Serialize)]
struct Part {
    phase: &'static str,
    gemm_seconds: f64,
    attention_seconds: f64,
    other_seconds: f64,
    share: f64,
    flops: u64,
    gemm_gflops: f64,
}

impl Case {
    fn of(report: &BenchReport) -> Self {
        let rounds = report.rounds.len();
        let all: Vec<f64> = report.rounds.iter().map(|r| r.step.as_secs_f64()).collect();
        let mean = all.iter().sum::<f64>() / rounds as f64;
        let flops = report.profile.total(|_, _| true).flops / rounds as u64;
        let case = report.case;
        Self {
            tokens: case.tokens,
            rank: case.rank,
            threads: case.threads,
            memory: memory(case.memory),
            planned_bytes: report.planned_bytes,
            rounds,
            step_seconds: report.seconds(),
            step_seconds_least: all.iter().copied().fold(f64::INFINITY, f64::min),
            step_seconds_most: all.iter().copied().fold(0.0, f64::max),
            tokens_per_second: case.tokens as f64 / report.seconds(),
            flops,
            gflops: flops as f64 / mean * 1e-9,
            linear_flops: report.linear_flops,
            gemm_rate_gflops: report.median(|r| r.gemm_rate) * 1e-9,
            share_of_gemm_rate: report.gemm_share(),
            share_of_non_gemm: report.share(|_, work| work != Work::Gemm),
            share_of_dequantisation: report.dequantisation_share(),
            pack_weights_seconds: report.packing.weights.as_secs_f64(),
            pack_numbers_seconds: report.packing.numbers.as_secs_f64(),
            two_forwards_seconds: report.median(|r| r.two_forwards.as_secs_f64()),
            step_over_two_forwards: report.forwards(),
            phases: Phase::ALL.map(|phase| Part::of(report, phase)).into(),
        }
    }
}

impl Part {
    fn of(report: &BenchReport, phase: Phase) -> Self {
        let rounds = report.rounds.len() as f64;
        let seconds = |work| report.profile.cost(phase, work).time.as_secs_f64() / rounds;
        let gemm = report.profile.cost(phase, Work::Gemm);
        let rate = gemm.flops as f64 / gemm.time.as_secs_f64() * 1e-9;
        let flops = report.profile.total(|p, _| p == phase).flops;
        Self {
            phase: match phase {
                Phase::Embedding => "embedding",
                Phase::Forward => "forward",
                Phase::Recompute => "recompute",
                Phase::Backward => "backward",
                Phase::Head => "head",
                Phase::Optimiser => "optimiser",
                Phase::Paging => "paging",
            },
            gemm_seconds: seconds(Work::Gemm),
            attention_seconds: seconds(Work::Attention),
            other_seconds: seconds(Work::Other),
            share: report.share(|p, _| p == phase),
            flops: flops / report.rounds.len() as u64,
            gemm_gflops: if gemm.flops > 0 { rate } else { 0.0 },
        }
    }
}
