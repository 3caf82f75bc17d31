//! `smidgen plan`: the memory of a training run, before it.

use smidgen::{Dataset, Planned, plan_ahead};

use super::train::{config, data_files, open_valid, say_adapter, say_data};
use super::{open, open_model, say_model, say_notes, temporary_folder};
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
        let window = args.window.options().window;
        let longest = window.max_seq_length + usize::from(window.bos);
        let plan = plan_ahead(&base, longest, &config)?;
        ui.say(&format!("data      none given: planned for sequences of {longest} tokens"));
        return tell(&ui, &base, &plan, Report::new(&base, &plan));
    };
    let files = data_files(args, path)?;
    let scratch = temporary_folder()?;
    let options = args.window.options();
    let tokens = |name: &str| scratch.path().join(name);
    let opened = open(&base, &files.train, &options, &tokens("train.tokens"), stop)?;
    let valid = open_valid(&base, &files, &options, &tokens("valid.tokens"), stop)?;
    say_data(&ui, &files.train, &opened.dataset);
    let longest = valid.as_ref().map_or(0, Dataset::max_len);
    let planned = Planned::new(base, opened.dataset, longest, config)?;
    say_adapter(&ui, planned.adapter());
    let mut report = Report::new(planned.base(), planned.plan());
    report.steps = Some(planned.steps());
    report.prepare_peak_bytes = opened.prepared.map(|p| p.peak_bytes);
    report.notes = planned.notes().iter().map(|note| note.0.clone()).collect();
    tell(&ui, planned.base(), planned.plan(), report)
}

fn tell(ui: &Ui, base: &smidgen::Base, plan: &smidgen::Plan, mut report: Report) -> Result<()> {
    say_notes(ui, &report.notes);
    ui.say(&format!("\n{}", table::plan(plan, base.window_bytes())));
    report.rows = plan.rows.iter().map(Into::into).collect();
    ui.report(&report)
}
