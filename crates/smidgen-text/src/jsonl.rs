//! One sample a line: `{"text": …}` or `{"prompt": …, "completion": …}`.

use serde::Deserialize;

use crate::dataset::Sequence;
use crate::error::Result;
use crate::tokenizer::{Encoding, Tokenizer};

/// What a line may be, for error messages.
pub(crate) const EXPECTED: &str =
    r#"an object on each line, {"text": "…"} or {"prompt": "…", "completion": "…"}"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    text: Option<String>,
    prompt: Option<String>,
    completion: Option<String>,
}

/// Why a line gives no sample.
pub(crate) enum LineError {
    /// The line is not of the expected form.
    Form(String),
    /// The tokenizer failed on its text.
    Tokenizer(crate::TextError),
}

/// Puts the sample on `line` in place of `sample`: its tokens, ended by EOS where the tokenizer has one, and its loss targets.
///
/// Prompt and completion are tokenised apart and put together, so that no token spans the border
/// between what is masked and what is not.
pub(crate) fn sample(
    line: &str,
    tokenizer: &Tokenizer,
    mask_prompt: bool,
    encoding: &mut Encoding,
    sample: &mut Sequence,
) -> std::result::Result<(), LineError> {
    if line.trim().is_empty() {
        return Err(LineError::Form("the line is empty".into()));
    }
    // A struct may also be read from an array of its fields.
    if !line.trim_start().starts_with('{') {
        return Err(LineError::Form("this is no object".into()));
    }
    let line: Line =
        serde_json::from_str(line).map_err(|error| LineError::Form(error.to_string()))?;
    sample.ids.clear();
    sample.targets.clear();
    let mut push = |text: &str, target: bool| {
        tokenizer.encode_into(text, encoding).map_err(LineError::Tokenizer)?;
        encoding.ids.iter().for_each(|&id| sample.push(id, target));
        Ok(encoding.ids.len())
    };
    match (line.text, line.prompt, line.completion) {
        (Some(text), None, None) => {
            push(&text, true)?;
        }
        (None, Some(prompt), Some(completion)) => {
            push(&prompt, !mask_prompt)?;
            if push(&completion, true)? == 0 {
                return Err(LineError::Form("the completion is empty".into()));
            }
        }
        _ => return Err(LineError::Form("the keys do not make one sample".into())),
    }
    if let Some(eos) = tokenizer.eos()
        && sample.ids.last().is_some_and(|&last| last != eos)
    {
        sample.push(eos, true);
    }
    // The first token is never predicted.
    if !sample.targets.iter().skip(1).any(|&target| target) {
        return Err(LineError::Form("no token is left for the loss".into()));
    }
    Ok(())
}

impl LineError {
    /// The error with its place in the file.
    pub(crate) fn at<T>(self, path: &std::path::Path, line: u64) -> Result<T> {
        Err(match self {
            Self::Form(what) => {
                crate::TextError::BadLine { path: path.to_owned(), line, what, expected: EXPECTED }
            }
            Self::Tokenizer(error) => error,
        })
    }
}
