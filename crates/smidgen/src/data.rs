//! From a data path to the sequences that a run reads.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use smidgen_train::{
    Base, Dataset, Error, FeatureNames, MemoryBudget, PrepareOptions, PrepareReport, Progress,
    Result, TokenFile, TokenFileHeader, TokenFileKind, WindowSpec, prepare,
};

/// How a data file is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataOptions {
    /// How it is cut into sequences.
    pub window: WindowSpec,
    /// Whether prompts, and all of a chat but the assistant's turns, are left out of the loss. Without
    /// it they are, or what the token file was prepared with holds.
    pub mask_prompt: Option<bool>,
    /// What the keys of a `.jsonl` file's lines are called. With the usual names, a token file may
    /// have been made with others.
    pub features: FeatureNames,
    /// The memory that making a token file may take.
    pub memory: MemoryBudget,
}

/// Data that is ready to be trained on.
#[derive(Debug)]
pub struct OpenData {
    /// The sequences.
    pub dataset: Dataset,
    /// What preparing took; none where the data was a token file already.
    pub prepared: Option<PrepareReport>,
}

/// Opens `input` for the model `base`. A `.tokens` file is taken as it is, if this model's
/// tokenizer made it and what was asked for (mask, names of keys, a given chat template) is what it
/// was made with; a `.txt` or `.jsonl` file is made into the token file `out` first. The tokenizer is
/// freed before this returns.
///
/// # Errors
/// The data can't be read or makes no sequence, the token file was made with another tokenizer or
/// other settings, preparing does not fit the budget, or the caller cancelled.
pub fn open_data(
    base: &Base,
    input: &Path,
    options: &DataOptions,
    out: &Path,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
) -> Result<OpenData> {
    let (file, prepared) = if is_token_file(input) {
        let file = TokenFile::open(input)?;
        check_token_file(base, input, file.header(), options)?;
        (file, None)
    } else {
        let mut settings =
            PrepareOptions { features: options.features.clone(), ..PrepareOptions::default() };
        settings.mask_prompt = options.mask_prompt.unwrap_or(settings.mask_prompt);
        let report = prepare(base, input, &settings, options.memory, out, cancel, progress)?;
        (TokenFile::open(out)?, Some(report))
    };
    let dataset = Dataset::open(file, &options.window).map_err(|error| match prepared {
        // The token file's name would tell the caller nothing.
        Some(_) => error.of(input),
        None => error,
    })?;
    Ok(OpenData { dataset, prepared })
}

/// Whether `input` is taken as a token file, which is by its name.
pub fn is_token_file(input: &Path) -> bool {
    input.extension().is_some_and(|extension| extension == "tokens")
}

fn check_token_file(
    base: &Base,
    path: &Path,
    header: &TokenFileHeader,
    options: &DataOptions,
) -> Result<()> {
    let refuse = |what: &str| {
        Err(Error::Setting(format!("{}: {what}; prepare the text again", path.display())))
    };
    if header.fingerprint != base.tokenizer_fingerprint()? {
        return refuse("it was prepared with another tokenizer than this model's");
    }
    let samples = header.kind == TokenFileKind::Samples;
    if let (Some(made_with), true) = (header.chat_template, base.has_given_chat_template()) {
        let given = base.chat_template_source()?.map(|source| source.fingerprint());
        if given != Some(made_with) {
            return refuse("it was prepared with another chat template than the given one");
        }
    }
    let features = options.features.fingerprint();
    if samples && features.is_some() && features != header.features {
        return refuse("it was prepared with other names of keys");
    }
    match options.mask_prompt {
        Some(true) if samples && !header.mask_prompt => {
            refuse("it was prepared with prompts in the loss")
        }
        Some(false) if samples && header.mask_prompt => {
            refuse("it was prepared with prompts left out of the loss")
        }
        _ => Ok(()),
    }
}
