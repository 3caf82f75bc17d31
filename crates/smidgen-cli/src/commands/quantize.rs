//! `smidgen quantize`.

use smidgen::{Base, GgufKind};

use super::out_file::{check_out, convert};
use super::say_model;
use crate::args::QuantizeArgs;
use crate::error::Result;
use crate::stop::Stop;
use crate::ui::Ui;

/// Writes a model with its numbers in fewer bits.
pub fn run(args: &QuantizeArgs, stop: &Stop) -> Result<()> {
    let (ui, input, out) = (Ui::new(args.out), args.input.as_path(), args.output.as_path());
    check_out(out, input, GgufKind::Model)?;
    let (format, paths, run) = (args.format.format(), (input, None, out), (args.threads, stop));
    if input.is_dir() {
        convert(&ui, paths, run, Vec::new(), |c| c.quantize_checkpoint(input, format, out))?;
        say_model(&ui, &Base::open(out)?);
        return Ok(());
    }
    let base = Base::open(input)?;
    say_model(&ui, &base);
    convert(&ui, paths, run, Vec::new(), |c| c.quantize(&base, format, out))
}
