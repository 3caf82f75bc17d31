//! `smidgen plan`: the memory of a training run, before it.

use smidgen::{Planned, plan_ahead};

use super::run_data::{RunData, RunFiles};
use super::settings::{check_ahead, config, longest};
use super::train::{say_adapter, say_data};
use super::{open_model, say_model, say_notes, temporary_folder};
use crate::args::TrainArgs;
use crate::error::Result;
use crate::report::Report;
use crate::stop::Stop;
use crate::table;
use crate::ui::Ui;

pub fn run(args: &TrainArgs, stop: &Stop) -> Result<()> {
    let ui = Ui::new(args.out);
    let base = open_model(&args.model)?;
    let config = config(args, &base)?;
    say_model(&ui, &base);
    let Some(path) = &args.data else {
        let longest = longest(args);
        let plan = plan_ahead(&base, longest, &config)?;
        ui.say(&format!("data      none given: planned for sequences of {longest} tokens"));
        return tell(&ui, &plan, Report::new(&base, &plan));
    };
    check_ahead(args, &base, &config)?;
    let files = RunFiles::find(args, path)?;
    let scratch = temporary_folder()?;
    let tokens = |split: &str| scratch.path().join(format!("{split}.tokens"));
    let data = RunData::open(&base, &files, &args.window.options(), tokens, stop)?;
    say_data(&ui, &files.train, &data.train);
    let longest = data.longest_evaluation();
    let planned = Planned::new(base, data.train, longest, config)?;
    say_adapter(&ui, planned.adapter());
    let mut report = Report::new(planned.base(), planned.plan());
    report.steps = Some(planned.steps());
    report.prepare_peak_bytes = data.prepare_peak_bytes;
    report.notes = planned.notes().iter().map(|note| note.0.clone()).collect();
    say_notes(&ui, &report.notes);
    report.notes.extend(data.notes);
    tell(&ui, planned.plan(), report)
}

fn tell(ui: &Ui, plan: &smidgen::Plan, mut report: Report) -> Result<()> {
    ui.say(&format!("\n{}", table::plan(plan)));
    report.rows = plan.rows.iter().map(Into::into).collect();
    ui.report(&report)
}
