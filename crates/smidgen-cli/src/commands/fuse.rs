//! `smidgen fuse`.

use smidgen::{Adapter, Format, GgufKind};

use super::out_file::{check_new, check_out, convert};
use super::{open_base, say_model};
use crate::args::{FuseArgs, MatrixType};
use crate::error::{Failure, Result};
use crate::stop::Stop;
use crate::ui::Ui;

/// Writes a model with an adapter merged in.
pub fn run(args: &FuseArgs, stop: &Stop) -> Result<()> {
    let (ui, out) = (Ui::new(args.out), args.output.as_path());
    let safetensors = out.extension().is_some_and(|extension| extension == "safetensors");
    let floats = if safetensors { Some(floats(args.format)?) } else { None };
    match floats {
        Some(_) => check_new(out)?,
        None => check_out(out, &args.model, GgufKind::Model)?,
    }
    let base = open_base(&args.model)?;
    let (mut adapter, said) = Adapter::load(&base, &args.adapter)?;
    let notes = said.into_iter().map(|note| note.0).collect();
    say_model(&ui, &base);
    let (paths, run) = ((base.path(), Some(args.adapter.as_path()), out), (args.threads, stop));
    convert(&ui, paths, run, notes, |c| match floats {
        Some(to) => c.fuse_safetensors(&base, &mut adapter, to, out),
        None => c.fuse(&base, &mut adapter, args.format.map(MatrixType::format), out),
    })
}

/// The type of a safetensors file's numbers.
fn floats(asked: Option<MatrixType>) -> Result<Format> {
    match asked {
        None | Some(MatrixType::F16) => Ok(Format::F16),
        Some(MatrixType::F32) => Ok(Format::F32),
        Some(MatrixType::Q4_0 | MatrixType::Q8_0) => Err(Failure::usage(
            "--type: a safetensors file holds f16 or f32; give one of them, or a .gguf file's name",
        )),
    }
}
