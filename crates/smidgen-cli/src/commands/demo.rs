//! `smidgen demo`: plan, training and answers on a model and data that are part of the program.

use std::fs;
use std::path::Path;

use clap::Parser;
use smidgen::{Adapter, Base, Budget, Evaluator, GenerateConfig};

use super::{generate, samples, temporary_folder, train};
use crate::args::{Cli, Command, DemoArgs, TrainArgs};
use crate::error::{Failure, Result};
use crate::report::Answer;
use crate::stop::Stop;
use crate::ui::Ui;

const MODEL: &[u8] = include_bytes!("../../../../assets/demo/demo.gguf");
const DATA: &[u8] = include_bytes!("../../../../assets/demo/train.jsonl");

/// What the training is told, as anyone would type it.
const FLAGS: &str = "--iters 240 --batch-size 4 --learning-rate 3e-3 --max-seq-length 64";

/// The first two stand in the data, the third does not.
const PROMPTS: [&str; 3] =
    ["Q: What colour is snow?\nA:", "Q: What does a cat say?\nA:", "Q: What does a wolf say?\nA:"];

/// Tokens of an answer.
const ANSWER_TOKENS: usize = 24;

pub fn run(args: &DemoArgs, stop: &Stop) -> Result<()> {
    let ui = Ui::new(args.out);
    let scratch = temporary_folder()?;
    let folder = args.output.as_deref().unwrap_or(scratch.path());
    let train_args = write_files(folder, args)?;
    ui.say(&format!(
        "A llama of 2 million parameters, trained on the King James Bible, learns 48 short answers.\n\
         It runs this, on files that are part of the program:\n\n  \
         smidgen train -m demo.gguf --data train.jsonl -o adapter {FLAGS}\n"
    ));
    let base = Base::open(&train_args.model.model)?;
    let threads = train_args.machine.threads();
    let before = answers(&base, Adapter::none(&base), threads, stop)?;
    let trained = train::train(base, &train_args, &ui, stop)?;
    let mut report = trained.report;
    if trained.interrupted.is_none() {
        let out = train_args.output.as_deref().expect("it was written to");
        let adapter = Adapter::load(&trained.base, out)?.0;
        let after = answers(&trained.base, adapter, threads, stop)?;
        report.answers = PROMPTS
            .into_iter()
            .zip(before.into_iter().zip(after))
            .map(|(prompt, (before, after))| {
                let prompt = prompt.lines().next().unwrap_or(prompt).to_owned();
                Answer { prompt, expected: None, before, after }
            })
            .collect();
        ui.say("\nWhat the model says, before and after (the last question is not in the data):");
        samples::say(&ui, &report.answers);
    }
    if args.output.is_none() {
        report.adapter_path = None;
        ui.say("\nIts files are removed now; `smidgen demo -o DIR` keeps them.");
    }
    ui.report(&report)?;
    trained.interrupted.map_or(Ok(()), |code| Err(Failure::Interrupted(code)))
}

/// Writes model and data to `folder`, and returns what `smidgen train` would be told there.
fn write_files(folder: &Path, args: &DemoArgs) -> Result<TrainArgs> {
    fs::create_dir_all(folder).map_err(Failure::file("create", folder))?;
    let [model, data, out] = ["demo.gguf", "train.jsonl", "adapter"].map(|name| folder.join(name));
    fs::write(&model, MODEL).map_err(Failure::file("write", &model))?;
    fs::write(&data, DATA).map_err(Failure::file("write", &data))?;
    let typed = ["smidgen", "train", "-m", "-", "--data", "-", "-o", "-"];
    let cli = Cli::try_parse_from(typed.into_iter().chain(FLAGS.split(' ')))
        .expect("the demo's flags are right");
    let Command::Train(mut train) = cli.command else { unreachable!("the demo trains") };
    train.model.model = model;
    (train.data, train.output) = (Some(data), Some(out));
    train.machine.asked_memory = args.machine.asked_memory;
    train.machine.threads = args.machine.threads;
    Ok(train)
}

fn answers(base: &Base, adapter: Adapter, threads: usize, stop: &Stop) -> Result<Vec<String>> {
    let tokenizer = base.tokenizer()?;
    let config = GenerateConfig {
        max_tokens: ANSWER_TOKENS,
        stop: generate::ends(&tokenizer, None),
        ..GenerateConfig::default()
    };
    let mut prompts = Vec::new();
    for prompt in PROMPTS {
        prompts.push(tokenizer.encode(prompt).map_err(smidgen::Error::from)?);
    }
    let rows = prompts.iter().map(Vec::len).max().unwrap_or(1);
    let positions = rows + ANSWER_TOKENS;
    let mut evaluator =
        Evaluator::to_generate(base, adapter, rows, positions, threads, Budget::Unlimited)?;
    let mut conversation = evaluator.conversation()?;
    let mut texts = Vec::new();
    for prompt in &prompts {
        let (flag, talk) = (stop.flag(), &mut conversation);
        let (text, _) =
            generate::answer(&mut evaluator, talk, &tokenizer, prompt, &config, flag, &|_| {})?;
        texts.push(text);
    }
    Ok(texts)
}
