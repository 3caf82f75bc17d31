//! The data of a run: what `train` and `plan` read.

use std::path::{Path, PathBuf};

use smidgen::{
    Base, DataFiles, DataOptions, Dataset, MemoryBudget, Packs, PrepareReport, WindowSpec,
    is_token_file, plan_prepare,
};

use super::{chunks_note, open};
use crate::args::TrainArgs;
use crate::error::{Failure, Result};
use crate::stop::Stop;
use crate::ui::{Ui, count, grouped};

/// The files that a run reads.
#[derive(Debug)]
pub struct RunFiles {
    pub train: PathBuf,
    pub valid: Option<PathBuf>,
}

/// Their sequences.
#[derive(Debug)]
pub struct RunData {
    pub train: Dataset,
    pub valid: Option<Dataset>,
    /// What preparing took, of the file where it was the most; none where they were token files
    /// already.
    pub prepared: Option<PrepareReport>,
    pub notes: Vec<String>,
}

impl RunFiles {
    /// The files that `--data`, which is `data`, and `--valid-data` name.
    pub fn find(args: &TrainArgs, data: &Path) -> Result<Self> {
        let files = DataFiles::resolve(data).map_err(smidgen::Error::from)?;
        let train = files.train.ok_or_else(|| {
            Failure::usage(format!(
                "{}: the folder has no train.jsonl or train.txt",
                data.display()
            ))
        })?;
        check_pack(args.pack, &train)?;
        let valid = args.watch.valid_data.clone().or(files.valid);
        if args.watch.steps_per_eval.is_some() && valid.is_none() {
            return Err(Failure::usage(
                "--steps-per-eval needs data to evaluate: give --valid-data FILE, or a data folder \
                 with valid.jsonl or valid.txt",
            ));
        }
        Ok(Self { train, valid })
    }

    /// Refuses, before any of it is read, text that can't be prepared within the budget.
    pub fn check_ahead(&self, base: &Base, memory: MemoryBudget) -> Result<()> {
        for text in [Some(&self.train), self.valid.as_ref()].into_iter().flatten() {
            if !is_token_file(text) {
                plan_prepare(base, text, memory)?;
            }
        }
        Ok(())
    }
}

impl RunData {
    /// Opens the files; `tokens` tells where the token file of a split goes. `--chunks` is for
    /// what is trained on, `valid_chunks` for what is not.
    pub fn open(
        base: &Base,
        files: &RunFiles,
        options: &DataOptions,
        valid_chunks: Option<u32>,
        tokens: impl Fn(&str) -> PathBuf,
        stop: &Stop,
    ) -> Result<Self> {
        let train = open(base, &files.train, options, &tokens("train"), stop)?;
        let window = WindowSpec { chunks: valid_chunks.map(|n| n as usize), ..options.window };
        let whole = DataOptions { window, ..options.clone() };
        let valid = match &files.valid {
            Some(path) => Some(open(base, path, &whole, &tokens("valid"), stop)?),
            None => None,
        };
        let (valid, valid_prepared) = valid.map(|v| (v.dataset, v.prepared)).unzip();
        let prepared = train.prepared.into_iter().chain(valid_prepared.flatten());
        Ok(Self {
            prepared: prepared.max_by_key(|p| p.planned_bytes.max(p.peak_bytes)),
            notes: chunks_note(options, &train.dataset).into_iter().collect(),
            train: train.dataset,
            valid,
        })
    }

    /// Tokens of the longest sequence that will be evaluated, 0 for none.
    pub fn longest_evaluation(&self) -> usize {
        self.valid.as_ref().map_or(0, Dataset::max_len)
    }
}

/// Refuses, before it is read, a text that has nothing to pack.
pub fn check_pack(pack: bool, input: &Path) -> Result<()> {
    if pack && input.extension().is_some_and(|extension| extension == "txt") {
        return Err(Failure::usage(format!(
            "--pack: {} is one long text, whose windows are full already; leave --pack out",
            input.display()
        )));
    }
    Ok(())
}

/// How samples fit into packs.
pub fn packed(data: &Dataset, packs: &Packs) -> String {
    format!(
        "{} into {} of {} tokens, {:.1} % filled by {}",
        count(data.len() as u64, "sample"),
        count(packs.len() as u64, "pack"),
        grouped(packs.capacity() as u64),
        100.0 * packs.filled(),
        count(packs.tokens(), "token")
    )
}

/// The line of a run on how its samples fit into packs, if they are packed.
pub fn say_packs(ui: &Ui, data: &Dataset, packs: Option<&Packs>) {
    if let Some(packs) = packs {
        let (cut, out) = (data.truncated(), data.dropped());
        ui.say(&format!("packed    {}; {cut} truncated, {out} left out", packed(data, packs)));
    }
}
