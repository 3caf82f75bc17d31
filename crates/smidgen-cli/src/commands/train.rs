//! `smidgen train`, and the run that `smidgen demo` makes the same way.

use std::path::{Path, PathBuf};
use std::time::Instant;

use smidgen::{
    Adapter, Base, DataFiles, DataOptions, Dataset, Length, LoraConfig, OptimizerConfig, Outcome,
    Planned, RunFolder, Session, Shape, StepReport, TargetModules, TrainConfig, WindowSpec,
};

use super::{open, open_model, plan, say_model, say_notes};
use crate::args::{LoraArgs, OptimizerName, Schedule, TrainArgs};
use crate::error::{Failure, Result};
use crate::progress::Progress;
use crate::report::{Report, Valid, median, path_text};
use crate::stop::Stop;
use crate::table;
use crate::ui::{Ui, count, grouped, megabytes};

/// A run that was made, and what it gave.
#[derive(Debug)]
pub struct Trained {
    pub base: Base,
    pub adapter: Adapter,
    pub report: Report,
    /// The exit code of the signal that ended it early.
    pub interrupted: Option<u8>,
}

pub fn run(args: &TrainArgs, stop: &Stop) -> Result<()> {
    if args.dry_run {
        return plan::run(args, stop);
    }
    let ui = Ui::new(args.out);
    let trained = train(open_model(&args.model)?, args, &ui, stop)?;
    ui.report(&trained.report)?;
    trained.interrupted.map_or(Ok(()), |code| Err(Failure::Interrupted(code)))
}

/// Trains as the flags say and saves the adapter.
pub fn train(base: Base, args: &TrainArgs, ui: &Ui, stop: &Stop) -> Result<Trained> {
    let (Some(out), Some(data)) = (&args.output, &args.data) else {
        return Err(Failure::usage("train needs --data PATH and -o DIR; see smidgen train --help"));
    };
    let config = config(args, &base)?;
    let files = data_files(args, data)?;
    let mut folder = RunFolder::create(out)?;
    let options = args.window.options();
    let opened = open(&base, &files.train, &options, &folder.tokens("train"), stop)?;
    let valid = open_valid(&base, &files, &options, &folder.tokens("valid"), stop)?;
    say_model(ui, &base);
    say_data(ui, &files.train, &opened.dataset);
    let longest = valid.as_ref().map_or(0, Dataset::max_len);
    let planned = Planned::new(base, opened.dataset, longest, config)?;
    let mut report = Report::new(planned.base(), planned.plan());
    report.prepare_peak_bytes = opened.prepared.map(|p| p.peak_bytes);
    report.notes = planned.notes().iter().map(|note| note.0.clone()).collect();
    if out.join("adapter_model.safetensors").exists() {
        let what =
            format!("{} holds an adapter, which this run's first save replaces", out.display());
        report.notes.push(what);
    }
    say_adapter(ui, planned.adapter());
    say_notes(ui, &report.notes);
    ui.say(&format!("\n{}\n", table::plan(planned.plan(), planned.base().window_bytes())));

    let mut session = planned.start()?;
    let mut watch = Watch::new(args, valid, stop, session.plan().peak_bytes);
    let ended = watch.run(&mut session, &mut folder);
    watch.progress.clear();
    ended?;
    let interrupted = stop.exit_code().filter(|_| !session.is_finished());
    let saved = session.steps_done() > 0;
    if saved {
        session.save(out)?;
        report.adapter_path = Some(path_text(out));
    }
    watch.fill(&mut report, &session);
    say_end(ui, &report, out, interrupted.is_some(), saved);
    let (base, adapter) = session.finish();
    Ok(Trained { base, adapter, report, interrupted })
}

/// Looks after a run: metrics, evaluations, saves, progress.
struct Watch<'a> {
    args: &'a TrainArgs,
    valid_data: Option<Dataset>,
    stop: &'a Stop,
    planned: u64,
    progress: Progress,
    losses: Vec<f64>,
    seconds: Vec<f64>,
    tokens: u64,
    valid: Vec<Valid>,
    begin: Instant,
}

impl<'a> Watch<'a> {
    fn new(args: &'a TrainArgs, valid_data: Option<Dataset>, stop: &'a Stop, planned: u64) -> Self {
        Self {
            args,
            valid_data,
            stop,
            planned,
            progress: Progress::new("step", 0),
            losses: Vec::new(),
            seconds: Vec::new(),
            tokens: 0,
            valid: Vec::new(),
            begin: Instant::now(),
        }
    }

    /// All steps, and the evaluation at their end; a signal ends both early, which is no error.
    fn run(&mut self, session: &mut Session, folder: &mut RunFolder) -> Result<()> {
        let stop = self.stop;
        let mut ended = session
            .run(None, stop.flag(), &mut |session, step| self.after_step(session, folder, step));
        let evaluated = self.valid.last().map(|v| v.step) == Some(session.steps_done());
        if matches!(ended, Ok(Outcome::Finished)) && !evaluated {
            ended = self.evaluate(session, folder).map(|()| Outcome::Finished);
        }
        match ended.map_err(Failure::from) {
            Err(failure) if !(failure.is_cancelled() && stop.exit_code().is_some()) => Err(failure),
            _ => Ok(()),
        }
    }

    fn after_step(
        &mut self,
        session: &mut Session,
        folder: &mut RunFolder,
        step: &StepReport,
    ) -> smidgen::Result<smidgen::Flow> {
        folder.step(step)?;
        self.losses.push(step.loss);
        self.seconds.push(step.seconds);
        self.tokens += step.tokens as u64;
        let planned = self.planned;
        self.progress.at(step.step, step.steps, || {
            let rate = step.tokens as f64 / step.seconds;
            let memory = step.memory_bytes.map_or(String::new(), |now| {
                format!("  {} of {}", megabytes(now), megabytes(planned))
            });
            format!("loss {:.4}  {rate:.0} tokens/s{memory}", step.loss)
        });
        let is_due = |every: Option<u64>| every.is_some_and(|n| step.step.is_multiple_of(n));
        if is_due(self.args.watch.steps_per_eval) {
            self.evaluate(session, folder)?;
        }
        if is_due(self.args.watch.save_every) && !session.is_finished() {
            session.save(folder.path())?;
        }
        Ok(match self.stop.exit_code() {
            Some(_) => smidgen::Flow::Pause,
            None => smidgen::Flow::Continue,
        })
    }

    fn evaluate(&mut self, session: &mut Session, folder: &mut RunFolder) -> smidgen::Result<()> {
        let Some(data) = &self.valid_data else { return Ok(()) };
        let scored = session.evaluate(data, self.stop.flag())?;
        let step = session.steps_done();
        folder.evaluation(step, "valid", &scored)?;
        let (loss, perplexity, accuracy) = (scored.loss, scored.perplexity(), scored.accuracy);
        self.progress.line(&format!(
            "step {step}: valid loss {loss:.4}, perplexity {perplexity:.2}, accuracy {accuracy:.3}"
        ));
        self.valid.push(Valid { step, loss, perplexity, accuracy });
        Ok(())
    }

    fn fill(self, report: &mut Report, session: &Session) {
        report.measure(session.peak_bytes());
        report.steps = Some(session.steps_done());
        report.tokens = Some(self.tokens);
        report.seconds = Some(self.begin.elapsed().as_secs_f64());
        report.seconds_per_step = median(&self.seconds);
        report.loss = self.losses.last().copied();
        report.perplexity = report.loss.map(f64::exp);
        report.accuracy = self.valid.last().map(|v| v.accuracy);
        report.losses = Some(self.losses);
        report.valid = self.valid;
    }
}

/// The files that a run reads.
#[derive(Debug)]
pub struct RunData {
    pub train: PathBuf,
    pub valid: Option<PathBuf>,
}

/// The files that `--data` and `--valid-data` name.
pub fn data_files(args: &TrainArgs, data: &Path) -> Result<RunData> {
    let files = DataFiles::resolve(data).map_err(smidgen::Error::from)?;
    let train = files.train.ok_or_else(|| {
        Failure::usage(format!("{}: the folder has no train.jsonl or train.txt", data.display()))
    })?;
    let valid = args.watch.valid_data.clone().or(files.valid);
    if args.watch.steps_per_eval.is_some() && valid.is_none() {
        return Err(Failure::usage(
            "--steps-per-eval needs data to evaluate: give --valid-data FILE, or a data folder \
             with valid.jsonl or valid.txt",
        ));
    }
    Ok(RunData { train, valid })
}

/// The valid data, where there is some; `--chunks` is for what is trained on.
pub fn open_valid(
    base: &Base,
    files: &RunData,
    options: &DataOptions,
    tokens: &Path,
    stop: &Stop,
) -> Result<Option<Dataset>> {
    let Some(path) = &files.valid else { return Ok(None) };
    let window = WindowSpec { chunks: None, ..options.window };
    let options = DataOptions { window, ..*options };
    Ok(Some(open(base, path, &options, tokens, stop)?.dataset))
}

/// The flags as the library takes them.
pub fn config(args: &TrainArgs, base: &Base) -> Result<TrainConfig> {
    let optimizer = &args.optimizer;
    let config = match optimizer.optimizer {
        OptimizerName::Adamw => OptimizerConfig::adamw(optimizer.weight_decay.unwrap_or(0.01)),
        OptimizerName::Sgd => {
            OptimizerConfig::Sgd { weight_decay: optimizer.weight_decay.unwrap_or(0.0) }
        }
    };
    Ok(TrainConfig {
        lora: lora(&args.lora, base)?,
        init_adapter: args.lora.init_adapter.clone(),
        length: match args.length.iters {
            Some(iters) => Length::Iters(iters),
            None => Length::Epochs(args.length.epochs.unwrap_or(1)),
        },
        batch_size: args.length.batch_size,
        grad_accumulation_steps: args.length.grad_accumulation_steps,
        optimizer: config,
        learning_rate: optimizer.learning_rate,
        schedule: match optimizer.lr_schedule {
            Schedule::Constant => Shape::Constant,
            Schedule::Linear => Shape::Linear,
            Schedule::Cosine => Shape::Cosine,
        },
        warmup: optimizer.warmup,
        clip: optimizer.max_grad_norm,
        shuffle: !args.no_shuffle,
        seed: optimizer.seed,
        memory: args.machine.memory,
        threads: args.machine.threads(),
    })
}

/// The kind of adapter: the flags over the defaults, or that of `--init-adapter`, which no flag
/// may contradict.
fn lora(args: &LoraArgs, base: &Base) -> Result<LoraConfig> {
    let flags = |base: LoraConfig| LoraConfig {
        rank: args.lora_rank.unwrap_or(base.rank),
        alpha: args.lora_alpha.unwrap_or(base.alpha),
        dropout: args.lora_dropout.unwrap_or(base.dropout),
        targets: args.target_modules.clone().unwrap_or(base.targets),
        num_layers: args.num_layers.or(base.num_layers),
    };
    let Some(folder) = &args.init_adapter else { return Ok(flags(LoraConfig::default())) };
    let init = Adapter::load(base, folder)?.0.config().clone();
    let given = flags(init.clone());
    let layers = |c: &LoraConfig| c.num_layers.unwrap_or(base.info().layers).to_string();
    let modules = |t: &TargetModules| t.modules().map(|names| names.join(","));
    let pairs = [
        ("--lora-rank", given.rank.to_string(), init.rank.to_string()),
        ("--lora-alpha", given.alpha.to_string(), init.alpha.to_string()),
        ("--lora-dropout", given.dropout.to_string(), init.dropout.to_string()),
        ("--target-modules", modules(&given.targets)?, modules(&init.targets)?),
        ("--num-layers", layers(&given), layers(&init)),
    ];
    for (flag, given, init) in pairs {
        if given != init {
            return Err(Failure::usage(format!(
                "{flag} {given} contradicts --init-adapter {}, which has {init}; leave {flag} out",
                folder.display()
            )));
        }
    }
    Ok(init)
}

pub fn say_data(ui: &Ui, path: &Path, data: &Dataset) {
    ui.say(&format!(
        "data      {}: {}, {}, the longest of {}",
        path.display(),
        count(data.len() as u64, "sequence"),
        count(data.targets(), "target"),
        count(data.max_len() as u64, "token")
    ));
}

pub fn say_adapter(ui: &Ui, adapter: &Adapter) {
    let LoraConfig { rank, alpha, .. } = adapter.config();
    let numbers = grouped(adapter.len() as u64);
    ui.say(&format!("adapter   rank {rank}, alpha {alpha}, {numbers} numbers to train"));
}

fn say_end(ui: &Ui, report: &Report, out: &Path, interrupted: bool, saved: bool) {
    let steps = report.steps.unwrap_or(0);
    let (seconds, tokens) = (report.seconds.unwrap_or(0.0), report.tokens.unwrap_or(0));
    let head = if interrupted { "Interrupted after" } else { "Trained" };
    ui.say(&format!(
        "{head} {}, {} in {seconds:.1} s.",
        count(steps, "step"),
        count(tokens, "token")
    ));
    if let (Some(first), Some(last)) = (report.losses.as_ref().and_then(|l| l.first()), report.loss)
    {
        ui.say(&format!("loss      {first:.4} at the first step, {last:.4} at the last"));
    }
    let planned = report.planned_peak_bytes;
    let measured = report.peak_memory_bytes.map_or("not measured here".to_owned(), |peak| {
        format!(
            "measured {}, {:.1} % of the plan",
            grouped(peak),
            100.0 * peak as f64 / planned as f64
        )
    });
    ui.say(&format!("peak      planned {} bytes, {measured}", grouped(planned)));
    ui.say(&match saved {
        true => format!("adapter   {}", out.display()),
        false => "Nothing was trained, so nothing was saved.".to_owned(),
    });
}
