//! `smidgen replay`.

use std::time::Instant;

use serde::Serialize;
use smidgen::replay;

use super::{open_model, say_model};
use crate::args::ReplayArgs;
use crate::error::Result;
use crate::report::path_text;
use crate::ui::{Ui, count};

#[derive(Debug, Serialize)]
struct ReplayReport {
    model: String,
    history: String,
    adapter_path: String,
    steps: u64,
    seconds: f64,
}

/// Rebuilds the adapter of a MeZO run from its history.
pub fn run(args: &ReplayArgs) -> Result<()> {
    let ui = Ui::new(args.out);
    let begin = Instant::now();
    let base = open_model(&args.model)?;
    let (mut adapter, steps) = replay(&base, &args.history, args.init_adapter.as_deref())?;
    adapter.save(&base, &args.output)?;
    say_model(&ui, &base);
    let (steps_text, out) = (count(steps, "step"), args.output.display());
    ui.say(&format!("replayed  {steps_text} of {}\nadapter   {out}", args.history.display()));
    ui.report(&ReplayReport {
        model: path_text(base.path()),
        history: path_text(&args.history),
        adapter_path: path_text(&args.output),
        steps,
        seconds: begin.elapsed().as_secs_f64(),
    })
}
