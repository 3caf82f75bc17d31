//! `smidgen plan`: the memory and the time of a training run, before it.

use std::fs;
use std::path::{Path, PathBuf};

use smidgen::{CurvePoint, MemoryBudget, Plan, Planned, curve_ahead, plan_ahead, plan_prepare};

use super::run_data::{RunData, RunFiles, say_packs};
use super::settings::{check_ahead, config, longest, with_rates};
use super::train::{say_data, say_trained};
use super::{open_model, say_model, say_notes, temporary_folder};
use crate::args::TrainArgs;
use crate::chart::curve::curve_svg;
use crate::error::{Failure, Result};
use crate::report::{CurveRow, Report};
use crate::stop::Stop;
use crate::table;
use crate::ui::{Ui, megabytes};

/// Lines of the curve's table, and labelled points of its picture.
const CURVE_LINES: usize = 16;

/// Plans as the flags say. `curve` asks for what every budget would give, perhaps as a picture.
pub fn run(args: &TrainArgs, curve: Option<&Option<PathBuf>>, stop: &Stop) -> Result<()> {
    let ui = Ui::new(args.out);
    let base = args.window.chat.template.apply(open_model(&args.model)?);
    let config = config(args, &base)?;
    say_model(&ui, &base);
    let picture = curve.and_then(Option::as_deref);
    let Some(path) = &args.data else {
        let longest = longest(args);
        if curve.is_none() {
            // A refusal measures nothing.
            plan_ahead(&base, longest, &config)?;
        }
        let config = with_rates(args, config)?;
        let what = if config.pack { "packs" } else { "sequences" };
        ui.say(&format!("data      none given: planned for {what} of {longest} tokens"));
        if curve.is_some() {
            let points = curve_ahead(&base, longest, &config)?;
            return tell_curve(&ui, &points, picture, Report::of(&base));
        }
        let plan = plan_ahead(&base, longest, &config)?;
        let mut report = Report::new(&base, &plan);
        // A model whose tokenizer is not known can still be trained, on a token file.
        let preparing = plan_prepare(&base, Path::new("text"), MemoryBudget::Unlimited);
        report.prepare_planned_bytes = preparing.ok();
        return tell(&ui, &plan, report);
    };
    check_ahead(args, &base, &config)?;
    let files = RunFiles::find(args, path)?;
    files.check_ahead(&base, args.memory())?;
    let config = with_rates(args, config)?;
    let scratch = temporary_folder()?;
    let options = args.window.options(args.memory());
    let tokens = |split: &str| scratch.path().join(format!("{split}.tokens"));
    let data = RunData::open(&base, &files, &options, args.watch.valid_chunks, tokens, stop)?;
    say_data(&ui, &files.train, &data.train);
    let longest = data.longest_evaluation();
    let planned = Planned::new(base, data.train, longest, config)?;
    say_packs(&ui, planned.data(), planned.packs());
    say_trained(&ui, &planned)?;
    if curve.is_some() {
        return tell_curve(&ui, &planned.curve(), picture, Report::of(planned.base()));
    }
    let mut report = Report::new(planned.base(), planned.plan());
    report.steps = Some(planned.steps());
    report.prepared(data.prepared.as_ref());
    report.notes = planned.notes().iter().map(|note| note.0.clone()).collect();
    say_notes(&ui, &report.notes);
    report.notes.extend(data.notes);
    tell(&ui, planned.plan(), report)
}

fn tell(ui: &Ui, plan: &Plan, mut report: Report) -> Result<()> {
    ui.say(&format!("\n{}", table::plan(plan, report.prepare_planned_bytes)));
    report.rows = plan.rows.iter().map(Into::into).collect();
    ui.report(&report)
}

/// The curve as a table of a few lines, all of it in the picture and in JSON.
fn tell_curve(
    ui: &Ui,
    points: &[CurvePoint],
    picture: Option<&Path>,
    mut report: Report,
) -> Result<()> {
    let few = spread(points);
    let head = ["budget", "step", "scratch file, written", "and read, a step"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(few.iter().map(|p| {
        vec![
            megabytes(p.peak_bytes),
            format!("{:.2} s", p.seconds),
            megabytes(p.scratch_traffic.written),
            megabytes(p.scratch_traffic.read),
        ]
    }));
    ui.say(&format!("\n{}", table::right(&rows)));
    ui.say(&format!("{} of {} plans that some budget gives", few.len(), points.len()));
    if let Some(path) = picture {
        let label = |p: &CurvePoint| match few.iter().any(|f| f.peak_bytes == p.peak_bytes) {
            true => megabytes(p.peak_bytes),
            false => String::new(),
        };
        let points: Vec<_> = points.iter().map(|p| (p.peak_bytes, p.seconds, label(p))).collect();
        fs::write(path, curve_svg(&points)).map_err(Failure::file("write", path))?;
        ui.say(&format!("picture   {}", path.display()));
    }
    report.curve = points.iter().map(CurveRow::from).collect();
    ui.report(&report)
}

/// A few of the points, about evenly by the ratio of their budgets, the ends among them.
fn spread(points: &[CurvePoint]) -> Vec<CurvePoint> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return vec![] };
    let (low, high) = ((first.peak_bytes as f64).ln(), (last.peak_bytes as f64).ln());
    let mut few: Vec<CurvePoint> = Vec::new();
    for i in 0..CURVE_LINES {
        let at = low + (high - low) * i as f64 / (CURVE_LINES - 1) as f64;
        let point = points.iter().rfind(|p| (p.peak_bytes as f64).ln() <= at + 1e-9);
        let point = *point.unwrap_or(first);
        if few.last().is_none_or(|p| p.peak_bytes < point.peak_bytes) {
            few.push(point);
        }
    }
    few
}
