//! `smidgen train`, and the run that `smidgen demo` makes the same way.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use smidgen::{
    Adapter, AdapterShape, Base, Budget, Dataset, LoftqReport, LoraConfig, MemoryBudget, Method,
    Outcome, Paged, Planned, RunFolder, RunState, Session, StepReport, TrainConfig, Tuning,
    export_gguf, plan_ahead, plan_prepare,
};

use super::run_data::{RunData, RunFiles, say_packs};
use super::samples::{self, Samples};
use super::settings::{check_ahead, config, usual_method, with_rates};
use super::{open_model, plan, say_model, say_notes, side_link};
use crate::args::{MethodName, SideArgs, TrainArgs};
use crate::created::Created;
use crate::error::{Failure, Result};
use crate::memory_trace;
use crate::progress::Progress;
use crate::report::{PlanRow, Report, Valid, median, path_text};
use crate::run_page::{self, Page};
use crate::stop::Stop;
use crate::table;
use crate::tensorboard::Events;
use crate::ui::{self, Ui, count, grouped, megabytes};

/// The longest time that a killed run has to do again.
const SAVE_EVERY: Duration = Duration::from_secs(300);

/// A run that was made, and what it gave.
#[derive(Debug)]
pub struct Trained {
    pub base: Base,
    pub report: Report,
    /// The exit code of the signal that ended it early.
    pub interrupted: Option<u8>,
}

pub fn run(args: &mut TrainArgs, stop: &Stop) -> Result<()> {
    if args.dry_run {
        return plan::run(args, None, stop);
    }
    let ui = Ui::new(args.out);
    let open = |args: &TrainArgs| -> Result<Base> {
        Ok(args.window.chat.template.apply(open_model(&args.model)?))
    };
    let trained = match train(open(args)?, args, &ui, stop) {
        Err(Failure::LinkLost { what, done, steps }) if args.side.fallback.is_some() => {
            ui::warn(&format!("{what}\nGoing on here, after {done} of {steps} steps."));
            fall_back(args, steps - done);
            train(open(args)?, args, &ui, stop)?
        }
        trained => trained?,
    };
    ui.report(&trained.report)?;
    trained.interrupted.map_or(Ok(()), |code| Err(Failure::Interrupted(code)))
}

/// Makes the flags those of a run here, by the exact gradient, for the steps that are left.
fn fall_back(args: &mut TrainArgs, left: u64) {
    args.optimizer.method.method = MethodName::Exact;
    // What the network's rate was says nothing of an adapter's.
    args.optimizer.learning_rate = None;
    args.side = SideArgs::default();
    args.output = args.output.as_ref().map(|out| out.join("local"));
    (args.length.iters, args.length.epochs) = (Some(left), None);
    (args.watch.resume, args.watch.force) = (false, true);
}

/// Trains as the flags say and saves the adapter.
pub fn train(base: Base, args: &TrainArgs, ui: &Ui, stop: &Stop) -> Result<Trained> {
    let (Some(out), Some(data)) = (&args.output, &args.data) else {
        return Err(Failure::usage("train needs --data PATH and -o DIR; see smidgen train --help"));
    };
    memory_trace::begin(&args.watch.memory_trace, base.meter());
    let config = config(args, &base)?;
    check_ahead(args, &base, &config)?;
    if args.side.fallback.is_some() {
        // What it falls back to is to fit as well.
        let method = usual_method(MethodName::Exact, base.info().layers);
        check_ahead(args, &base, &TrainConfig { method, ..config.clone() })?;
    }
    let files = RunFiles::find(args, data)?;
    files.check_ahead(&base, args.memory())?;
    let config = with_rates(args, config)?;
    let method = config.method;
    let own = out.join("smidgen");
    let created = Created::watch(&own, ["train.tokens", "valid.tokens"].map(|f| own.join(f)));
    let mut folder = RunFolder::create(out)?;
    let state = saved_state(args, &folder)?;
    let options = args.window.options(args.memory());
    let data = {
        let tokens = |split: &str| folder.tokens(split);
        RunData::open(&base, &files, &options, args.watch.valid_chunks, tokens, stop)?
    };
    say_model(ui, &base);
    say_data(ui, &files.train, &data.train);
    let longest = data.longest_evaluation();
    let samples = samples(args, &base, &config, &data)?;
    let before = match &samples {
        Some(samples) => {
            ui.say(&format!("answers   of the model to {}, first", count(samples.len(), "prompt")));
            samples.ask(&base, init_adapter(args, &base)?.into(), stop)?
        }
        None => None,
    };
    let mut planned = Planned::new(base, data.train, longest, config)?;
    let mut report = Report::new(planned.base(), planned.plan());
    report.prepared(data.prepared.as_ref());
    report.notes = planned.notes().iter().map(|note| note.0.clone()).collect();
    if state.is_none() && out.join("adapter_model.safetensors").exists() {
        let what =
            format!("{} holds an adapter, which this run's first save replaces", out.display());
        report.notes.push(what);
    }
    say_packs(ui, planned.data(), planned.packs());
    say_trained(ui, &planned)?;
    say_method(ui, args, &method);
    if let Some(state) = state {
        report.resumed_steps = Some(state.steps_done());
        planned = planned.resume(state, args.watch.force)?;
    }
    say_notes(ui, &report.notes);
    report.notes.extend(data.notes);
    ui.say(&format!("\n{}\n", table::plan(planned.plan(), report.prepare_planned_bytes)));

    let resumed = report.resumed_steps;
    let mut session = start(planned, args, &folder, resumed, stop)?;
    let mut evaluated = None;
    if resumed.is_some() {
        // A server may have confirmed steps that were not saved here any more.
        let (done, steps) = (session.steps_done(), session.steps());
        evaluated = folder.resume(done, steps)?;
        ui.say(&format!("resumed   after step {done} of {steps}"));
        report.resumed_steps = Some(done);
    } else if let Method::Side(_) = method {
        // From here on the server has a session of this folder's name.
        session.save_state(&folder.state())?;
    }
    if let Some(loftq) = session.loftq() {
        say_loftq(ui, loftq);
        report.loftq_relative_errors = Some(loftq.relative_errors());
    }
    created.keep();
    let events = match args.watch.tensorboard {
        true => Some(Events::create(&folder.tensorboard()).map_err(unwritten(&folder))?),
        false => None,
    };
    let mut watch = Watch::new(args, data.valid, stop, session.plan().peak_bytes, events);
    watch.evaluated = evaluated;
    let ended = watch.run(&mut session, &mut folder);
    watch.progress.clear();
    // A step that would cross the budget is refused whole: what came before it is worth keeping.
    let keeps = ended.as_ref().map_or_else(Failure::is_budget, |()| true);
    let saved = keeps && session.steps_done() > 0;
    if saved {
        watch.save(&mut session, &folder)?;
        report.adapter_path = Some(path_text(out));
    }
    let planned = session.plan().peak_bytes;
    memory_trace::write(&args.watch.memory_trace, session.meter(), planned)?;
    if ended.is_err() && saved {
        let steps = count(session.steps_done(), "step");
        ui::warn(&format!(
            "The adapter after {steps} is saved in {}; the same command with --resume goes on.",
            out.display()
        ));
    }
    ended.map_err(|failure| lost(failure, session.steps_done(), session.steps()))?;
    let interrupted = stop.exit_code().filter(|_| !watch.is_complete(&session));
    watch.fill(&mut report, &session);
    let end = match (interrupted, session.is_finished()) {
        (None, _) => End::Complete,
        (Some(_), true) => End::EvaluationCutShort,
        (Some(_), false) => End::Interrupted,
    };
    let rows: Vec<PlanRow> = session.plan().rows.iter().map(PlanRow::from).collect();
    let budget = session.meter().budget();
    // What the page takes comes after what the steps took.
    let (base, mut adapter) = session.finish();
    if let (true, Some(adapter)) = (saved, &mut adapter) {
        export_gguf(&base, adapter, &folder.gguf())?;
    }
    if let (Some(samples), Some(before), None) = (&samples, before, interrupted) {
        let tuning = match adapter {
            Some(adapter) => adapter.into(),
            None => Tuning::load(&base, out)?.0,
        };
        match samples.ask(&base, tuning, stop) {
            Ok(Some(after)) => report.answers = samples.answers(&base, before, after)?,
            Ok(None) => {}
            Err(failure) if failure.is_cancelled() => {}
            Err(failure) => return Err(failure),
        }
    }
    if saved {
        write_page(&folder, &report, &rows, budget)?;
    }
    say_end(ui, &report, &folder, end, saved);
    if !report.answers.is_empty() {
        ui.say("\nWhat the model says to held-out prompts:");
        samples::say(ui, &report.answers);
    }
    Ok(Trained { base, report, interrupted })
}

/// The run's session, for a side network on its server; where the adapter starts with LoftQ, that
/// takes its time.
pub fn start(
    planned: Planned,
    args: &TrainArgs,
    folder: &RunFolder,
    resumed: Option<u64>,
    stop: &Stop,
) -> Result<Session> {
    if args.optimizer.method.method == MethodName::Side {
        let steps = planned.steps();
        let link = side_link::open(&args.side, &planned, folder, resumed.is_some(), stop);
        let (link, secret) = link.map_err(|failure| lost(failure, resumed.unwrap_or(0), steps))?;
        return Ok(planned.start_side(Box::new(link), secret)?);
    }
    let mut progress = Progress::new("projection", 0);
    let started = planned.start_watched(stop.flag(), &mut |done, total| {
        progress.at(done as u64, total as u64, || "corrected".to_owned());
    });
    progress.clear();
    Ok(started?)
}

/// A failure after so many steps, as what it is if the server is lost.
fn lost(failure: Failure, done: u64, steps: u64) -> Failure {
    match failure {
        Failure::Library(smidgen::Error::Link(_)) if !failure.is_cancelled() => {
            Failure::LinkLost { what: failure.to_string(), done, steps }
        }
        failure => failure,
    }
}

fn say_loftq(ui: &Ui, loftq: &LoftqReport) {
    let [before, after] = loftq.relative_errors().map(|error| 100.0 * error);
    ui.say(&format!(
        "loftq     {}: the base is off by {before:.2} % of its weights' norm, with the adapter by \
         {after:.2} %; {} of planned {}",
        count(loftq.tensors.len() as u64, "projection"),
        megabytes(loftq.peak_bytes),
        megabytes(loftq.planned_bytes),
    ));
}

/// The state that the run goes on from, if it is to go on. A run that is not finished is not
/// begun anew by mistake.
fn saved_state(args: &TrainArgs, folder: &RunFolder) -> Result<Option<RunState>> {
    if args.watch.force && !args.watch.resume {
        return Ok(None);
    }
    let Some(state) = RunState::open(&folder.state())? else { return Ok(None) };
    let (done, steps) = (state.steps_done(), state.steps());
    match args.watch.resume {
        true => Ok(Some(state)),
        false if done >= steps => Ok(None),
        false => Err(Failure::usage(format!(
            "{} holds a run that stopped after {done} of {steps} steps: --resume goes on with it, \
             --force begins anew over it, another -o leaves it as it is",
            folder.path().display()
        ))),
    }
}

/// The held-out prompts that the model is asked, if there are any and their answers take no more
/// than the run will: where even the adapter waits in a scratch file there is no room for them.
fn samples(
    args: &TrainArgs,
    base: &Base,
    config: &TrainConfig,
    data: &RunData,
) -> Result<Option<Samples>> {
    let (count, tokens) = (args.watch.sample_prompts, args.watch.sample_tokens as usize);
    let Some(valid) = data.valid.as_ref().filter(|_| count > 0) else { return Ok(None) };
    let longest = data.train.max_len().max(data.longest_evaluation());
    // Packs take no less than as many single sequences.
    let config = TrainConfig { pack: false, ..config.clone() };
    let plan = plan_ahead(base, longest, &config).ok();
    let Some(plan) = plan.filter(|plan| plan.paged != Paged::All) else { return Ok(None) };
    let peak = plan.peak_bytes;
    if plan_prepare(base, Path::new("prompts.jsonl"), MemoryBudget::Bytes(peak)).is_err() {
        return Ok(None);
    }
    let budget = Budget::AtMost(peak);
    let samples = Samples::choose(valid, count, tokens, args.machine.threads(), budget)?;
    Ok(Some(samples).filter(|samples| !samples.is_empty()))
}

/// The adapter that the run starts from, or none.
fn init_adapter(args: &TrainArgs, base: &Base) -> Result<Adapter> {
    match &args.lora.init_adapter {
        Some(folder) => Ok(Adapter::load(base, folder)?.0),
        None => Ok(Adapter::none(base)),
    }
}

/// What to say where events can't be written.
fn unwritten(folder: &RunFolder) -> impl FnOnce(std::io::Error) -> smidgen::Error {
    let path = folder.tensorboard();
    move |source| smidgen::Error::Io { action: "write", path, source }
}

/// Writes the page that tells of the run.
fn write_page(
    folder: &RunFolder,
    report: &Report,
    rows: &[PlanRow],
    budget: Option<u64>,
) -> Result<()> {
    let history = folder.history(run_page::GROUPS)?;
    let command = &ui::typed_command();
    let page = Page { command, report, history: &history, rows, budget }.html();
    fs::write(folder.page(), page).map_err(Failure::file("write", &folder.page()))
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
    /// The last step that was evaluated, before the run was resumed too.
    evaluated: Option<u64>,
    begin: Instant,
    /// When the run's state was saved, or began.
    saved: Instant,
    /// The last step after which it was saved.
    saved_step: Option<u64>,
    events: Option<Events>,
}

impl<'a> Watch<'a> {
    fn new(
        args: &'a TrainArgs,
        valid_data: Option<Dataset>,
        stop: &'a Stop,
        planned: u64,
        events: Option<Events>,
    ) -> Self {
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
            evaluated: None,
            begin: Instant::now(),
            saved: Instant::now(),
            saved_step: None,
            events,
        }
    }

    /// All steps, and the evaluation at their end; a signal ends both early, which is no error.
    fn run(&mut self, session: &mut Session, folder: &mut RunFolder) -> Result<()> {
        let stop = self.stop;
        let mut ended = match self.evaluate_late(session, folder) {
            Ok(()) => session.run(None, stop.flag(), &mut |session, step| {
                self.after_step(session, folder, step)
            }),
            Err(error) => Err(error),
        };
        if matches!(ended, Ok(Outcome::Finished)) && !self.is_complete(session) {
            self.save(session, folder)?;
            ended = self.evaluate(session, folder).map(|()| Outcome::Finished);
        }
        match ended.map_err(Failure::from) {
            Err(failure) if !(failure.is_cancelled() && stop.exit_code().is_some()) => Err(failure),
            _ => Ok(()),
        }
    }

    /// The evaluation after the step that the run was interrupted at, if it was cut short.
    fn evaluate_late(
        &mut self,
        session: &mut Session,
        folder: &mut RunFolder,
    ) -> smidgen::Result<()> {
        let done = session.steps_done();
        let due = is_due(self.args.watch.steps_per_eval, done);
        if due && done > 0 && !session.is_finished() && self.evaluated != Some(done) {
            self.evaluate(session, folder)?;
        }
        Ok(())
    }

    /// Whether all steps are done, and the evaluation at their end where there is data for one.
    fn is_complete(&self, session: &Session) -> bool {
        let evaluated = self.evaluated == Some(session.steps_done());
        session.is_finished() && (evaluated || self.valid_data.is_none())
    }

    fn after_step(
        &mut self,
        session: &mut Session,
        folder: &mut RunFolder,
        step: &StepReport,
    ) -> smidgen::Result<smidgen::Flow> {
        folder.step(session, step)?;
        self.losses.push(step.loss);
        self.seconds.push(step.seconds);
        self.tokens += step.tokens as u64;
        let mut numbers =
            vec![("train/loss", step.loss), ("train/learning_rate", step.learning_rate)];
        numbers.extend(step.memory_bytes.map(|bytes| ("memory/MB", bytes as f64 / 1e6)));
        self.event(folder, step.step, &numbers)?;
        let planned = self.planned;
        self.progress.at(step.step, step.steps, || {
            let rate = step.tokens as f64 / step.seconds;
            let memory = step.memory_bytes.map_or(String::new(), |now| {
                format!("  {} of {}", megabytes(now), megabytes(planned))
            });
            format!("loss {:.4}  {rate:.0} tokens/s{memory}", step.loss)
        });
        if is_due(self.args.watch.steps_per_eval, step.step) {
            self.evaluate(session, folder)?;
        }
        let is_old = self.saved.elapsed() >= SAVE_EVERY;
        let due = is_due(self.args.watch.save_every, step.step);
        if (due || is_old) && !session.is_finished() {
            self.save(session, folder)?;
        }
        Ok(match self.stop.exit_code() {
            Some(_) => smidgen::Flow::Pause,
            None => smidgen::Flow::Continue,
        })
    }

    /// Saves the state that a killed run goes on from, and the adapter.
    fn save(&mut self, session: &mut Session, folder: &RunFolder) -> smidgen::Result<()> {
        if self.saved_step == Some(session.steps_done()) {
            return Ok(());
        }
        // An adapter that is not finite is refused, and leaves the last good state.
        session.save(folder.path())?;
        folder.sync()?;
        session.save_state(&folder.state())?;
        self.saved = Instant::now();
        self.saved_step = Some(session.steps_done());
        Ok(())
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
        self.event(folder, step, &[("valid/loss", loss), ("valid/accuracy", accuracy)])?;
        self.valid.push(Valid { step, loss, perplexity, accuracy });
        self.evaluated = Some(step);
        Ok(())
    }

    fn event(
        &mut self,
        folder: &RunFolder,
        step: u64,
        numbers: &[(&str, f64)],
    ) -> smidgen::Result<()> {
        match &mut self.events {
            Some(events) => events.numbers(step, numbers).map_err(unwritten(folder)),
            None => Ok(()),
        }
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

/// Tells what kind of thing is trained, and how large it is.
pub fn say_trained(ui: &Ui, planned: &Planned) -> Result<()> {
    match planned.side()? {
        Some(start) => {
            let numbers = grouped(start.shape.len() as u64);
            let taps = count(start.shape.tapped().len() as u64, "tapped layer");
            ui.say(&format!("network   beside the model, of {taps}, {numbers} numbers to train"));
        }
        None => say_adapter(ui, planned.adapter()),
    }
    Ok(())
}

fn say_adapter(ui: &Ui, adapter: &AdapterShape) {
    let LoraConfig { rank, alpha, use_rslora, .. } = adapter.config();
    let numbers = grouped(adapter.len() as u64);
    let stabilised = if *use_rslora { " over the root of the rank" } else { "" };
    ui.say(&format!(
        "adapter   rank {rank}, alpha {alpha}{stabilised}, {numbers} numbers to train"
    ));
}

/// Tells of a method that is not the exact gradient's, and what mesp stands for.
pub fn say_method(ui: &Ui, args: &TrainArgs, method: &Method) {
    match (args.optimizer.method.method, method) {
        (MethodName::Mesp, _) => ui.say("method    mesp: --method exact --memory min"),
        (_, Method::Exact) => {}
        (_, method) => ui.say(&format!("method    {method}")),
    }
}

/// Whether what is done every so many steps is done after `step`.
fn is_due(every: Option<u64>, step: u64) -> bool {
    every.is_some_and(|n| step.is_multiple_of(n))
}

/// How far a run came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Complete,
    /// All steps are done, the evaluation after them is not.
    EvaluationCutShort,
    Interrupted,
}

fn say_end(ui: &Ui, report: &Report, folder: &RunFolder, end: End, saved: bool) {
    let steps = report.steps.unwrap_or(0);
    let (seconds, tokens) = (report.seconds.unwrap_or(0.0), report.tokens.unwrap_or(0));
    let head = if end == End::Interrupted { "Interrupted after" } else { "Trained" };
    let before = report.resumed_steps.map_or(String::new(), |n| format!(", {n} of them before"));
    ui.say(&format!(
        "{head} {}{before}, {} in {seconds:.1} s.",
        count(steps, "step"),
        count(tokens, "token")
    ));
    if end == End::Interrupted && saved {
        ui.say("The same command with --resume goes on, as if it had not been interrupted.");
    }
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
        true => {
            let (adapter, page) = (folder.path().display(), folder.page());
            format!("adapter   {adapter}\nreport    {}", page.display())
        }
        false => "Nothing was trained, so nothing was saved.".to_owned(),
    });
}
