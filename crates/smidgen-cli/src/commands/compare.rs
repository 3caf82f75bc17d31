//! `smidgen compare`: runs from the same start on the same data, side by side.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use clap::parser::ValueSource;
use clap::{Args, FromArgMatches};
use serde::Serialize;
use smidgen::{
    Adapter, Base, Curve, CurveEvaluation, Dataset, MemoryBudget, Method, Planned, RunFolder,
    Sequence, Session, TrainConfig, cosine, direction_cosines, gradient,
};

use super::run_data::{RunData, RunFiles};
use super::settings::{config, with_rates};
use super::{open_model, say_model, train};
use crate::args::{CompareArgs, TrainArgs};
use crate::compare_page;
use crate::error::{Failure, Result};
use crate::progress::Progress;
use crate::report::{median, path_text};
use crate::stop::Stop;
use crate::table;
use crate::ui::{self, Ui, megabytes};

/// Directions that a MeZO run's cosine is measured over.
const DIRECTIONS: usize = 256;

/// Flags of train that do nothing here: every run begins anew, is scored on the held-out data and
/// saved at its end, and the report shows them all.
const NOT_HERE: [&str; 8] = [
    "resume",
    "force",
    "save_every",
    "dry_run",
    "tensorboard",
    "memory_trace",
    "sample_prompts",
    "sample_tokens",
];

/// What `compare` found: `compare.json` and the page tell it.
#[derive(Debug, Serialize)]
pub struct Comparison {
    pub command: String,
    pub model: String,
    pub data: String,
    pub held_out: String,
    pub held_out_targets: u64,
    pub threads: usize,
    /// The wall time of the run that took least, at which all are compared.
    pub equal_seconds: f64,
    pub runs: Vec<ComparedRun>,
}

/// One run.
#[derive(Debug, Serialize)]
pub struct ComparedRun {
    /// As `--run` says.
    pub run: String,
    pub method: String,
    pub learning_rate: f64,
    pub sequences_a_step: usize,
    pub adapter_path: String,
    pub trainable: usize,
    pub steps: u64,
    /// The step at which a loss was not finite, where one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diverged_at_step: Option<u64>,
    pub seconds: f64,
    /// The median.
    pub seconds_per_step: Option<f64>,
    pub planned_peak_bytes: u64,
    pub peak_memory_bytes: Option<u64>,
    /// The held-out loss after [`Comparison::equal_seconds`].
    pub loss_at_equal_seconds: Option<f64>,
    /// How the method's direction lies to the exact gradient, at the end of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine: Option<Cosine>,
    pub held_out: Vec<HeldOut>,
    pub losses: Vec<f64>,
}

/// The held-out data after some steps.
#[derive(Debug, Serialize)]
pub struct HeldOut {
    pub step: u64,
    pub seconds: f64,
    pub loss: f64,
    pub accuracy: f64,
}

/// A cosine with the exact gradient of one step's sequences.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "of")]
pub enum Cosine {
    /// |cos| of random directions among `trainable` numbers; theory is sqrt(2 / (pi d)).
    Directions { count: usize, mean: f64, standard_error: f64, theory: f64 },
    /// The gradient of some layers, the others being passed by.
    SelectedLayers { layers: usize, cosine: f64 },
}

pub fn run(args: &CompareArgs, stop: &Stop) -> Result<()> {
    let ui = Ui::new(args.train.out);
    let common = &args.train;
    let (Some(out), Some(data)) = (&common.output, &common.data) else {
        return Err(Failure::usage(
            "compare needs --data PATH, --valid-data FILE and -o DIR; see smidgen compare --help",
        ));
    };
    let runs: Vec<(String, TrainArgs)> = args
        .runs
        .iter()
        .map(|run| {
            let own = flags_of(&args.typed, run)?;
            same_work(run, &own, common)?;
            Ok((run.clone(), own))
        })
        .collect::<Result<_>>()?;
    let own = out.join("smidgen");
    fs::create_dir_all(&own).map_err(Failure::file("create", &own))?;
    let files = RunFiles::find(common, data)?;
    let open = |args: &TrainArgs, base: &Base| {
        let options = args.window.options(args.memory());
        let at = |split: &str| own.join(format!("{split}.tokens"));
        RunData::open(base, &files, &options, args.watch.valid_chunks, at, stop)
    };
    let opened = || Ok::<_, Failure>(common.window.chat.template.apply(open_model(&common.model)?));
    let base = opened()?;
    say_model(&ui, &base);
    let prepared = open(common, &base)?;
    train::say_data(&ui, &files.train, &prepared.train);
    let Some(held_out) = prepared.valid else {
        return Err(Failure::usage("compare needs held-out data: give --valid-data FILE"));
    };
    let mut found = Comparison {
        command: ui::typed_command(),
        model: path_text(base.path()),
        data: path_text(&files.train),
        held_out: files.valid.as_deref().map_or_else(String::new, path_text),
        held_out_targets: held_out.targets(),
        threads: common.machine.threads(),
        equal_seconds: 0.0,
        runs: Vec::new(),
    };
    drop((base, held_out));
    let mut curves = Vec::new();
    for (i, (name, args)) in runs.iter().enumerate() {
        ui.say(&format!("\nrun {} of {}: {name}", i + 1, runs.len()));
        let folder = out.join(format!("run-{}", i + 1));
        let base = opened()?;
        let data = open(args, &base)?;
        let (run, curve) = one(name, args, base, data, &folder, &ui, stop)?;
        found.runs.push(run);
        curves.push(curve);
        found.compare(&curves);
        write(&found, out)?;
    }
    ui.say(&format!("\n{}", overview(&found)));
    let page = out.join("compare.html");
    ui.say(&format!(
        "report    {}\nraw       {}",
        page.display(),
        out.join("compare.json").display()
    ));
    ui.report(&found)
}

/// The flags of one run: those that all have, and its own over them.
fn flags_of(typed: &[OsString], run: &str) -> Result<TrainArgs> {
    let command = clap::Command::new("train").no_binary_name(true).args_override_self(true);
    let command = TrainArgs::augment_args(command);
    let mut words = Vec::new();
    let mut rest = typed.iter();
    while let Some(word) = rest.next() {
        match word.to_str() {
            Some("--run") => _ = rest.next(),
            Some(text) if text.starts_with("--run=") => {}
            _ => words.push(word.clone()),
        }
    }
    let mut own = run.split_whitespace().map(OsString::from).peekable();
    if own.peek().is_some_and(|word| !word.to_string_lossy().starts_with('-')) {
        words.push("--method".into());
    }
    words.extend(own);
    let refused = |error: clap::Error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        Failure::usage(format!(
            "--run {run:?}: {first}; it is a method and flags of train, as in --run \"mezo --iters \
             1000 --learning-rate 1e-4\""
        ))
    };
    let matches = command.try_get_matches_from(words).map_err(refused)?;
    let typed = |id: &&&str| matches.value_source(id) == Some(ValueSource::CommandLine);
    if let Some(id) = NOT_HERE.iter().find(typed) {
        return Err(Failure::usage(format!(
            "--{} is of train and does nothing in compare; leave it out",
            id.replace('_', "-")
        )));
    }
    TrainArgs::from_arg_matches(&matches).map_err(refused)
}

/// Refuses a run on other work than that of all, which its losses could not be compared with.
fn same_work(run: &str, own: &TrainArgs, all: &TrainArgs) -> Result<()> {
    let same = [
        ("--model", own.model.model == all.model.model),
        ("--data", own.data == all.data),
        ("--valid-data", own.watch.valid_data == all.watch.valid_data),
        ("--valid-chunks", own.watch.valid_chunks == all.watch.valid_chunks),
        ("--output", own.output == all.output),
    ];
    match same.iter().find(|(_, is_same)| !is_same) {
        None => Ok(()),
        Some((flag, _)) => Err(Failure::usage(format!(
            "--run {run:?}: {flag} is the same for all runs; give it beside --run"
        ))),
    }
}

/// One run, from its plan to its cosine.
fn one(
    name: &str,
    args: &TrainArgs,
    base: Base,
    data: RunData,
    folder: &Path,
    ui: &Ui,
    stop: &Stop,
) -> Result<(ComparedRun, Curve)> {
    let settings = with_rates(args, config(args, &base)?)?;
    let mut run_folder = RunFolder::create(folder)?;
    let longest = data.longest_evaluation();
    let held_out = data.valid.expect("compare has held-out data");
    let first = first_batch(&data.train, settings.batch_size * settings.grad_accumulation_steps)?;
    let planned = Planned::new(base, data.train, longest, settings.clone())?;
    train::say_method(ui, args, &settings.method);
    let mut session = train::start(planned, args, &run_folder, None, stop)?;
    let mut progress = Progress::new("step", session.steps());
    let every = args.watch.steps_per_eval.unwrap_or_else(|| session.steps().div_ceil(10).max(1));
    let curve =
        Curve::of(&mut session, &mut run_folder, &held_out, every, stop.flag(), &mut |c, step| {
            progress.at(step.step, step.steps, || {
                let held_out = c.evaluations.last().map_or(f64::NAN, |e| e.loss);
                format!("loss {:.4}, held out {held_out:.4}", step.loss)
            });
        });
    progress.clear();
    let curve = curve?;
    if curve.diverged.is_none() {
        session.save(folder)?;
    }
    let mut run = ComparedRun::of(name, &settings, &session, &curve, folder);
    match curve.diverged {
        Some(step) => ui.say(&format!("diverged: the loss of step {step} is not finite")),
        None => {
            if let (base, Some(mut adapter)) = session.finish() {
                run.cosine = cosine_of(&base, &mut adapter, &first, &settings, stop)?;
            }
        }
    }
    Ok((run, curve))
}

impl ComparedRun {
    /// A run that is over, before it is looked at beside others.
    fn of(
        name: &str,
        settings: &TrainConfig,
        session: &Session,
        curve: &Curve,
        folder: &Path,
    ) -> Self {
        let held_out = |e: &CurveEvaluation| HeldOut {
            step: e.step,
            seconds: e.seconds,
            loss: e.loss,
            accuracy: e.accuracy,
        };
        Self {
            run: name.to_owned(),
            method: settings.method.to_string(),
            learning_rate: settings.learning_rate,
            sequences_a_step: settings.batch_size * settings.grad_accumulation_steps,
            adapter_path: path_text(folder),
            trainable: session.trainable(),
            steps: session.steps_done(),
            diverged_at_step: curve.diverged,
            seconds: curve.total_seconds(),
            seconds_per_step: median(&curve.seconds),
            planned_peak_bytes: session.plan().peak_bytes,
            peak_memory_bytes: Some(session.peak_bytes()).filter(|&bytes| bytes > 0),
            loss_at_equal_seconds: None,
            cosine: None,
            held_out: curve.evaluations.iter().map(held_out).collect(),
            losses: curve.losses.clone(),
        }
    }
}

/// The first sequences of the data, as many as a step takes.
fn first_batch(data: &Dataset, count: usize) -> Result<Vec<Sequence>> {
    let read = |i| {
        let mut sequence = Sequence::default();
        data.read(i, &mut sequence).map_err(smidgen::Error::from)?;
        Ok(sequence)
    };
    (0..count.min(data.len())).map(read).collect()
}

/// How the direction of the run's method lies to the exact gradient; none where it is that.
fn cosine_of(
    base: &Base,
    adapter: &mut Adapter,
    batch: &[Sequence],
    settings: &TrainConfig,
    stop: &Stop,
) -> Result<Option<Cosine>> {
    if settings.method == Method::Exact {
        return Ok(None);
    }
    // A run's plan may have been one that keeps no gradient.
    let least = TrainConfig { memory: MemoryBudget::Min, ..settings.clone() };
    let mut gradient = |bypassed| gradient(base, adapter, batch, bypassed, &least, stop.flag());
    let exact = gradient(Vec::new())?;
    Ok(match settings.method {
        Method::Exact | Method::Side(_) => None,
        Method::Lcsb(lcsb) => {
            let layers = base.info().layers;
            let trained = settings.lora.num_layers.unwrap_or(layers);
            let mut bypassed = Vec::new();
            lcsb.choose(layers - trained..layers, 1, settings.seed, &mut bypassed);
            let cosine = cosine(&exact, &gradient(bypassed)?);
            Some(Cosine::SelectedLayers { layers: lcsb.layers_per_step, cosine })
        }
        Method::Mezo(_) => {
            let found = direction_cosines(&exact, DIRECTIONS, settings.seed);
            Some(Cosine::Directions {
                count: found.directions,
                mean: found.mean,
                standard_error: found.standard_error,
                theory: found.expected(),
            })
        }
    })
}

impl Comparison {
    /// Puts in what all runs had reached when the shortest of those that reached their end was over.
    fn compare(&mut self, curves: &[Curve]) {
        let whole = curves.iter().filter(|curve| curve.diverged.is_none());
        let seconds = whole.map(Curve::total_seconds).reduce(f64::min).unwrap_or(0.0);
        self.equal_seconds = seconds;
        for (run, curve) in self.runs.iter_mut().zip(curves) {
            run.loss_at_equal_seconds = curve.loss_at(seconds);
        }
    }
}

/// Writes `compare.json` and the page: after every run, since a run may take hours.
fn write(found: &Comparison, out: &Path) -> Result<()> {
    let json = out.join("compare.json");
    let text = serde_json::to_string(found).map_err(|e| Failure::File(e.to_string()))?;
    fs::write(&json, text + "\n").map_err(Failure::file("write", &json))?;
    let page = out.join("compare.html");
    fs::write(&page, compare_page::html(found)).map_err(Failure::file("write", &page))
}

/// The names and values of a run's figures, for the table and the page.
pub fn figures(run: &ComparedRun) -> [(&'static str, String); 8] {
    let last = run.held_out.last();
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    let cosine = run.cosine.as_ref().map(|cosine| match cosine {
        Cosine::Directions { mean, standard_error, theory, .. } => {
            format!("{mean:.2e} ± {standard_error:.0e} (theory {theory:.2e})")
        }
        Cosine::SelectedLayers { cosine, .. } => format!("{cosine:.3}"),
    });
    [
        ("steps", run.steps.to_string()),
        ("s a step", or_none(run.seconds_per_step.map(|s| format!("{s:.3}")))),
        ("seconds", format!("{:.0}", run.seconds)),
        (
            "peak",
            run.peak_memory_bytes.map_or_else(|| megabytes(run.planned_peak_bytes), megabytes),
        ),
        (
            "held-out loss",
            match run.diverged_at_step {
                Some(step) => format!("diverged at step {step}"),
                None => or_none(last.map(|e| format!("{:.4}", e.loss))),
            },
        ),
        ("accuracy", or_none(last.map(|e| format!("{:.4}", e.accuracy)))),
        ("at equal s", or_none(run.loss_at_equal_seconds.map(|loss| format!("{loss:.4}")))),
        ("cosine", or_none(cosine)),
    ]
}

/// The runs as a table.
fn overview(found: &Comparison) -> String {
    let mut rows = vec![];
    for run in &found.runs {
        let figures = figures(run);
        if rows.is_empty() {
            let names = figures.iter().map(|(name, _)| (*name).to_owned());
            rows.push(std::iter::once("run".to_owned()).chain(names).collect::<Vec<_>>());
        }
        let values = figures.into_iter().map(|(_, value)| value);
        rows.push(std::iter::once(run.run.clone()).chain(values).collect());
    }
    let text = table::right(&rows);
    let start = found.runs.first().and_then(|run| run.held_out.first());
    let start = start.map_or(String::new(), |e| {
        format!("held-out loss before: {:.4}, accuracy {:.4}; ", e.loss, e.accuracy)
    });
    format!("{text}\n{start}equal seconds: {:.0}", found.equal_seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::MethodName;

    #[test]
    fn a_run_has_its_own_flags_over_those_of_all() {
        let typed =
            ["-m", "m.gguf", "--iters", "5", "--run", "exact", "--run=mezo", "--lr", "1e-3"];
        let typed: Vec<OsString> = typed.map(OsString::from).to_vec();
        let args = flags_of(&typed, "mezo --iters 1000 --zo-eps 0.01").unwrap();
        assert_eq!(args.optimizer.method.method, MethodName::Mezo);
        assert_eq!((args.length.iters, args.optimizer.learning_rate), (Some(1000), Some(1e-3)));
        let args = flags_of(&typed, "--method exact").unwrap();
        assert_eq!((args.optimizer.method.method, args.length.iters), (MethodName::Exact, Some(5)));
        let error = flags_of(&typed, "mezo --itres 3").unwrap_err().to_string();
        assert!(error.contains("--run \"mezo --itres 3\"") && error.contains("--itres"), "{error}");
    }
}
