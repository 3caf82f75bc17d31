//! The command line of Smidgen: flags, bars, tables and JSON over the crate `smidgen`.

#![forbid(unsafe_code)]

mod args;
mod chart;
mod commands;
mod compare_page;
mod config_file;
mod created;
mod error;
mod memory_trace;
mod progress;
mod rates;
mod report;
mod run_page;
mod stop;
mod table;
mod tensorboard;
mod ui;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{Cli, Command};
use crate::error::{Failure, Result};
use crate::stop::Stop;

fn main() -> ExitCode {
    let parsed = config_file::expand(std::env::args_os().collect(), &Cli::command())
        .and_then(|typed| Ok((Cli::try_parse_from(&typed)?, typed)));
    let mut cli = match parsed {
        Ok((mut cli, typed)) => {
            if let Command::Compare(args) = &mut cli.command {
                args.typed = typed[2..].to_vec();
            }
            cli
        }
        Err(error) => {
            // Help and version are no failure; neither is a closed pipe.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    match run(&mut cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::Interrupted(_)) {
                ui::warn(&format!("error: {failure}"));
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let stop =
        Stop::install().map_err(|e| Failure::File(format!("cannot watch for signals: {e}")))?;
    let result = match command {
        Command::Demo(args) => commands::demo::run(args, &stop),
        Command::Data(args) => commands::data::run(args, &stop),
        Command::Plan(args) => commands::plan::run(&args.train, args.curve.as_ref(), &stop),
        Command::Train(args) => commands::train::run(args, &stop),
        Command::Compare(args) => commands::compare::run(args, &stop),
        Command::Serve(args) => commands::serve::run(args, &stop),
        Command::Eval(args) => commands::eval::run(args, &stop),
        Command::Generate(args) => commands::generate::run(args, &stop),
        Command::Export(args) => commands::export::run(args),
        Command::Fuse(args) => commands::fuse::run(args, &stop),
        Command::Replay(args) => commands::replay::run(args),
        Command::Quantize(args) => commands::quantize::run(args, &stop),
        Command::Chat(args) => commands::chat::run(args, &stop),
        Command::Bench(args) => commands::bench::run(args, &stop),
        Command::Completions(args) => {
            let (mut command, out) = (Cli::command(), &mut std::io::stdout());
            clap_complete::generate(args.shell, &mut command, "smidgen", out);
            Ok(())
        }
    };
    match (result, stop.exit_code()) {
        (Err(failure), Some(code)) if failure.is_cancelled() => {
            match failure {
                // What became of the run, which waited for its server.
                Failure::Library(error @ smidgen::Error::Link(_)) => {
                    ui::warn(&format!("interrupted: {error}"));
                }
                _ => ui::warn("interrupted"),
            }
            Err(Failure::Interrupted(code))
        }
        (result, _) => result,
    }
}
