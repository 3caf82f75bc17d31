//! A token file as the sequences that training and evaluation read.

use crate::error::{Result, TextError};
use crate::token_file::{TokenFile, TokenFileKind};

/// How a token file is cut into sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSpec {
    /// The longest sequence in tokens, at least 2, BOS not counted.
    pub max_seq_length: usize,
    /// Only the first so many windows or samples. Without it one long text also gives its last,
    /// shorter window, if that has at least 2 tokens.
    pub chunks: Option<usize>,
    /// Puts BOS in front of every window, and of every sample that does not begin with it. A
    /// window's first token stays without loss, so a long text has the same targets with BOS and
    /// without.
    pub bos: bool,
    /// Of each sample, only its first target counts, and what comes behind it is left out: an answer
    /// that is one token, as a class in a classification.
    pub single_token: bool,
}

impl WindowSpec {
    /// Tokens of the longest sequence that it allows, BOS included.
    pub fn longest(&self) -> usize {
        self.max_seq_length.saturating_add(usize::from(self.bos))
    }
}

/// One sequence of T tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// The tokens, `[T]`.
    pub ids: Vec<u32>,
    /// Whether the prediction of token t from those before it counts in the loss, `[T]`; never so
    /// for the first.
    pub targets: Vec<bool>,
}

impl Sequence {
    /// Number of tokens whose prediction counts in the loss.
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|&&target| target).count()
    }

    pub(crate) fn push(&mut self, id: u32, target: bool) {
        self.ids.push(id);
        self.targets.push(target);
    }
}

/// A token file's content in figures, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Tokens in the file.
    pub tokens: u64,
    /// Sequences the dataset reads.
    pub sequences: usize,
    /// Their tokens, after truncation, BOS included.
    pub sequence_tokens: u64,
    /// Predictions that count in the loss, over all those sequences.
    pub targets: u64,
    /// The shortest sequence in tokens, after truncation, BOS included.
    pub length_min: usize,
    /// The median sequence, the upper one of two.
    pub length_median: usize,
    /// The longest sequence.
    pub length_max: usize,
    /// Samples that were cut to the longest length.
    pub truncated: usize,
    /// Samples left out because the cut left them without a target.
    pub dropped: usize,
    /// The file's first ids, at most 40.
    pub first_ids: Vec<u32>,
}

/// The sequences of a token file, read when asked for.
#[derive(Debug)]
pub struct Dataset {
    file: TokenFile,
    spec: WindowSpec,
    bos: Option<u32>,
    /// Of samples: those that have a target, in file order. Of windows: nothing.
    kept: Vec<u32>,
    len: usize,
    max_len: usize,
    targets: u64,
    truncated: usize,
    dropped: usize,
}

impl Dataset {
    /// The sequences of `file` under `spec`. Keeps 4 bytes a sample in memory.
    ///
    /// # Errors
    /// The spec asks for sequences of less than 2 tokens or for a BOS the tokenizer lacks, the file
    /// can't be read, or no sequence with a target is left.
    pub fn open(file: TokenFile, spec: &WindowSpec) -> Result<Self> {
        let path = file.path().to_owned();
        let refuse = |what: String| Err(TextError::data(&path, what));
        if spec.max_seq_length < 2 {
            return refuse(format!("sequences of {} tokens predict nothing", spec.max_seq_length));
        }
        let bos = if spec.bos { file.header().bos } else { None };
        if spec.bos && bos.is_none() {
            return refuse("BOS is asked for, but the tokenizer has none".into());
        }
        if spec.single_token && file.header().kind == TokenFileKind::Text {
            return refuse("a text has no answers of which one token could count".into());
        }
        if spec.single_token && !file.header().mask_prompt {
            let what = "prompts are in the loss, so an answer's first token is not the first one";
            return refuse(what.into());
        }
        let mut dataset = Self {
            file,
            spec: *spec,
            bos,
            kept: Vec::new(),
            len: 0,
            max_len: 0,
            targets: 0,
            truncated: 0,
            dropped: 0,
        };
        match dataset.file.header().kind {
            TokenFileKind::Text => dataset.count_windows(),
            TokenFileKind::Samples => dataset.keep_samples()?,
        }
        if dataset.len == 0 {
            let header = dataset.file.header();
            return refuse(match header.kind {
                TokenFileKind::Text => too_short(header.tokens, spec),
                TokenFileKind::Samples => format!(
                    "none of its {} samples has a target within {} tokens",
                    header.samples, spec.max_seq_length
                ),
            });
        }
        Ok(dataset)
    }

    /// Number of sequences; at least 1.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tokens of the longest sequence, BOS included.
    pub fn max_len(&self) -> usize {
        self.max_len
    }

    /// Predictions that count in the loss, over all sequences.
    pub fn targets(&self) -> u64 {
        self.targets
    }

    /// Samples that were cut to the longest length.
    pub fn truncated(&self) -> usize {
        self.truncated
    }

    /// Samples left out because the cut left them without a target.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// How it is cut into sequences.
    pub fn spec(&self) -> &WindowSpec {
        &self.spec
    }

    /// The token file behind it.
    pub fn file(&self) -> &TokenFile {
        &self.file
    }

    /// Reads sequence `index` into `sequence`, whose memory is reused.
    ///
    /// # Errors
    /// The file can't be read.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn read(&self, index: usize, sequence: &mut Sequence) -> Result<()> {
        assert!(index < self.len, "sequence {index} of {}", self.len);
        let limit = self.spec.max_seq_length as u64;
        let range = match self.file.header().kind {
            TokenFileKind::Text => {
                let start = index as u64 * limit;
                start..(start + limit).min(self.file.header().tokens)
            }
            TokenFileKind::Samples => {
                let range = self.file.sample_range(self.kept[index].into())?;
                range.start..range.end.min(range.start.saturating_add(limit))
            }
        };
        sequence.ids.clear();
        sequence.targets.clear();
        let length = (range.end - range.start) as usize + usize::from(self.bos.is_some());
        sequence.ids.reserve_exact(length);
        sequence.targets.reserve_exact(length);
        let mut first = None;
        self.file.for_each_token(range, |id, target| {
            if first.is_none() {
                let lead = self.lead(id);
                lead.iter().for_each(|&bos| sequence.push(bos, false));
                first = Some(sequence.ids.len());
            }
            sequence.push(id, target);
        })?;
        if let Some(first) = first.filter(|&first| self.first_is_free(first)) {
            sequence.targets[first] = false;
        }
        if self.spec.single_token {
            let answer = sequence.targets.iter().position(|&target| target);
            let length = answer.map_or(sequence.ids.len(), |answer| answer + 1);
            sequence.ids.truncate(length);
            sequence.targets.truncate(length);
        }
        Ok(())
    }

    /// The dataset in figures. Needs 4 bytes a sample for a moment.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn summary(&self) -> Result<Summary> {
        let mut lengths = self.lengths()?;
        lengths.sort_unstable();
        let mut first_ids = Vec::new();
        let tokens = self.file.header().tokens;
        self.file.for_each_token(0..tokens.min(40), |id, _| first_ids.push(id))?;
        Ok(Summary {
            tokens,
            sequences: self.len,
            sequence_tokens: lengths.iter().map(|&length| u64::from(length)).sum(),
            targets: self.targets,
            length_min: lengths[0] as usize,
            length_median: lengths[lengths.len() / 2] as usize,
            length_max: self.max_len,
            truncated: self.truncated,
            dropped: self.dropped,
            first_ids,
        })
    }

    /// The BOS that is put in front of a window or sample that begins with `first`.
    fn lead(&self, first: u32) -> Option<u32> {
        let has_own = self.file.header().kind == TokenFileKind::Samples;
        self.bos.filter(|&bos| !(has_own && bos == first))
    }

    /// Whether the token at place `first`, the first of a window or sample, is not predicted:
    /// nothing stands before it, or it continues a text that BOS does not begin.
    fn first_is_free(&self, first: usize) -> bool {
        first == 0 || self.file.header().kind == TokenFileKind::Text
    }

    fn count_windows(&mut self) {
        let limit = self.spec.max_seq_length as u64;
        let tokens = self.file.header().tokens;
        let (whole, rest) = (tokens / limit, tokens % limit);
        let windows = match self.spec.chunks {
            Some(chunks) => whole.min(chunks as u64),
            None => whole + u64::from(rest >= 2),
        };
        self.len = windows as usize;
        let longest = if whole > 0 { limit } else { rest };
        self.max_len = longest as usize + usize::from(self.bos.is_some());
        self.targets = tokens.min(windows * limit) - windows;
    }

    /// Finds the samples that have a target within the longest length.
    fn keep_samples(&mut self) -> Result<()> {
        let samples = match u32::try_from(self.file.header().samples) {
            Ok(samples) => samples,
            Err(_) => return Err(TextError::data(self.file.path(), "more than 2^32 samples")),
        };
        for sample in 0..samples {
            if self.spec.chunks.is_some_and(|chunks| self.kept.len() >= chunks) {
                break;
            }
            let Extent { length, targets, truncated } = self.extent(sample)?;
            self.truncated += usize::from(truncated);
            if targets == 0 {
                self.dropped += 1;
                continue;
            }
            self.kept.push(sample);
            self.targets += targets;
            self.max_len = self.max_len.max(length);
        }
        self.len = self.kept.len();
        Ok(())
    }

    /// What is read of a sample.
    fn extent(&self, sample: u32) -> Result<Extent> {
        let range = self.file.sample_range(sample.into())?;
        let length = (range.end - range.start).min(self.spec.max_seq_length as u64);
        let (mut place, mut answer, mut targets) = (None, None, 0);
        self.file.for_each_token(range.start..range.start + length, |id, target| {
            let at = place.unwrap_or_else(|| usize::from(self.lead(id).is_some()));
            if target && at > 0 {
                targets += 1;
                answer = answer.or(Some(at));
            }
            place = Some(at + 1);
        })?;
        let truncated = length < range.end - range.start;
        Ok(match answer.filter(|_| self.spec.single_token) {
            Some(answer) => Extent { length: answer + 1, targets: 1, truncated: false },
            None => Extent { length: place.unwrap_or(0), targets, truncated },
        })
    }

    /// The number of tokens of each sequence, BOS included; of one that is longer, 2^32 - 1.
    pub(crate) fn lengths(&self) -> Result<Vec<u32>> {
        let limit = self.spec.max_seq_length as u64;
        let bos = u32::from(self.bos.is_some());
        let length = |tokens: u64| u32::try_from(tokens.min(limit)).unwrap_or(u32::MAX);
        let mut lengths = Vec::with_capacity(self.len);
        if self.file.header().kind == TokenFileKind::Text {
            let before = (self.len as u64 - 1) * limit;
            lengths.resize(self.len - 1, length(limit).saturating_add(bos));
            lengths.push(length(self.file.header().tokens - before).saturating_add(bos));
            return Ok(lengths);
        }
        if self.spec.single_token {
            for &sample in &self.kept {
                lengths.push(u32::try_from(self.extent(sample)?.length).unwrap_or(u32::MAX));
            }
            return Ok(lengths);
        }
        let (mut sample, mut kept) = (0, self.kept.iter().peekable());
        self.file.for_each_length(|tokens| {
            if kept.next_if_eq(&&sample).is_some() {
                lengths.push(length(tokens));
            }
            sample += 1;
        })?;
        if self.bos.is_some() {
            for (length, &sample) in lengths.iter_mut().zip(&self.kept) {
                let first = self.file.sample_range(sample.into())?.start;
                self.file.for_each_token(first..first + 1, |id, _| {
                    *length = length.saturating_add(u32::from(self.lead(id).is_some()));
                })?;
            }
        }
        Ok(lengths)
    }
}

/// What is read of a sample: tokens, BOS included, and targets among them.
struct Extent {
    length: usize,
    targets: u64,
    /// Whether it was cut to the longest length.
    truncated: bool,
}

/// What to say of a text of `tokens` tokens that makes no window.
fn too_short(tokens: u64, spec: &WindowSpec) -> String {
    let has = format!(
        "the text is too short: it has {tokens} token{}",
        if tokens == 1 { "" } else { "s" }
    );
    match spec.chunks {
        Some(_) => format!(
            "{has}, and a number of windows is read of whole ones of {}; give a longer \
             text, or a smaller --max-seq-length",
            spec.max_seq_length
        ),
        None => format!("{has}, and the shortest window 2; give a longer text"),
    }
}
