//! `smidgen train`, and the run that `smidgen demo` makes the same way.

use std::path::Path;
use std::time::Instant;

use smidgen::{
    Adapter, AdapterShape, Base, Dataset, LoraConfig, Outcome, Planned, RunFolder, Session,
    StepReport,
};

use super::run_data::{RunData, RunFiles};
use super::settings::{check_ahead, config, with_rates};
use super::{open_model, plan, say_model, say_notes};
use crate::args::TrainArgs;
use crate::created::Created;
use crate::error::{Failure, Result};
use crate::memory_trace;
use crate::progress::Progress;
use crate::report::{Report, Valid, median, path_text};
use crate::stop::Stop;
use crate::table;
use crate::ui::{self, Ui, count, grouped, megabytes};

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
        return plan::run(args, None, stop);
    }
    let ui = Ui::new(args.out);
    let trained = train(args.window.chat.apply(open_model(&args.model)?), args, &ui, stop)?;
    ui.report(&trained.report)?;
    trained.interrupted.map_or(Ok(()), |code| Err(Failure::Interrupted(code)))
}

/// Trains as the flags say and saves the adapter.
pub fn train(base: Base, args: &TrainArgs, ui: &Ui, stop: &Stop) -> Result<Trained> {
    let (Some(out), Some(data)) = (&args.output, &args.data) else {
        return Err(Failure::usage("train needs --data PATH and -o DIR; see smidgen train --help"));
    };
    memory_trace::begin(&args.watch.memory_trace, base.meter());
    let config = config(args, &base)?;
    check_ahead(args, &base, &config)?;
    let files = RunFiles::find(args, data)?;
    files.check_ahead(&base, args.machine.memory)?;
    let config = with_rates(args, config)?;
    let own = out.join("smidgen");
    let created = Created::watch(&own, ["train.tokens", "valid.tokens"].map(|f| own.join(f)));
    let mut folder = RunFolder::create(out)?;
    let options = args.window.options(args.machine.memory);
    let data = RunData::open(&base, &files, &options, |split| folder.tokens(split), stop)?;
    say_model(ui, &base);
    say_data(ui, &files.train, &data.train);
    let longest = data.longest_evaluation();
    let planned = Planned::new(base, data.train, longest, config)?;
    let mut report = Report::new(planned.base(), planned.plan());
    report.prepared(data.prepared.as_ref());
    report.notes = planned.notes().iter().map(|note| note.0.clone()).collect();
    if out.join("adapter_model.safetensors").exists() {
        let what =
            format!("{} holds an adapter, which this run's first save replaces", out.display());
        report.notes.push(what);
    }
    say_adapter(ui, planned.adapter());
    say_notes(ui, &report.notes);
    report.notes.extend(data.notes);
    ui.say(&format!("\n{}\n", table::plan(planned.plan(), report.prepare_planned_bytes)));

    let mut session = planned.start()?;
    created.keep();
    let mut watch = Watch::new(args, data.valid, stop, session.plan().peak_bytes);
    let ended = watch.run(&mut session, &mut folder);
    watch.progress.clear();
    // A step that would cross the budget is refused whole: what came before it is worth keeping.
    let keeps = ended.as_ref().map_or_else(Failure::is_budget, |()| true);
    let saved = keeps && session.steps_done() > 0;
    if saved {
        session.save(out)?;
        report.adapter_path = Some(path_text(out));
    }
    let planned = session.plan().peak_bytes;
    memory_trace::write(&args.watch.memory_trace, session.meter(), planned)?;
    if ended.is_err() && saved {
        let steps = count(session.steps_done(), "step");
        ui::warn(&format!("The adapter after {steps} is saved in {}.", out.display()));
    }
    ended?;
    let interrupted = stop.exit_code().filter(|_| !watch.is_complete(&session));
    watch.fill(&mut report, &session);
    let end = match (interrupted, session.is_finished()) {
        (None, _) => End::Complete,
        (Some(_), true) => End::EvaluationCutShort,
        (Some(_), false) => End::Interrupted,
    };
    say_end(ui, &report, out, end, saved);
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
        if matches!(ended, Ok(Outcome::Finished)) && !self.is_complete(session) {
            ended = self.evaluate(session, folder).map(|()| Outcome::Finished);
        }
        match ended.map_err(Failure::from) {
            Err(failure) if !(failure.is_cancelled() && stop.exit_code().is_some()) => Err(failure),
            _ => Ok(()),
        }
    }

    /// Whether all steps are done, and the evaluation at their end where there is data for one.
    fn is_complete(&self, session: &Session) -> bool {
        let evaluated = self.valid.last().map(|v| v.step) == Some(session.steps_done());
        session.is_finished() && (evaluated || self.valid_data.is_none())
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
        report.phases(session.meter());
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

pub fn say_data(ui: &Ui, path: &Path, data: &Dataset) {
    ui.say(&format!(
        "data      {}: {}, {}, the longest of {}",
        path.display(),
        count(data.len() as u64, "sequence"),
        count(data.targets(), "target"),
        count(data.max_len() as u64, "token")
    ));
}

pub fn say_adapter(ui: &Ui, adapter: &AdapterShape) {
    let LoraConfig { rank, alpha, .. } = adapter.config();
    let numbers = grouped(adapter.len() as u64);
    ui.say(&format!("adapter   rank {rank}, alpha {alpha}, {numbers} numbers to train"));
}

/// How far a run came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Complete,
    /// All steps are done, the evaluation after them is not.
    EvaluationCutShort,
    Interrupted,
}

fn say_end(ui: &Ui, report: &Report, out: &Path, end: End, saved: bool) {
    let steps = report.steps.unwrap_or(0);
    let (seconds, tokens) = (report.seconds.unwrap_or(0.0), report.tokens.unwrap_or(0));
    let head = if end == End::Interrupted { "Interrupted after" } else { "Trained" };
    ui.say(&format!(
        "{head} {}, {} in {seconds:.1} s.",
        count(steps, "step"),
        count(tokens, "token")
    ));
    if end == End::EvaluationCutShort {
        ui.say("The evaluation after the last step was cut short.");
    }
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
