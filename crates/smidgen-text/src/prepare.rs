//! From a text file to a token file, in memory that does not grow with the file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::str::Utf8Error;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use crate::chat::ChatTemplateSource;
use crate::dataset::Sequence;
use crate::error::{Result, TextError};
use crate::jsonl::{FeatureNames, LineError, Lines};
use crate::token_file::{TokenFileHeader, TokenFileKind, TokenFileWriter};
use crate::tokenizer::{Encoding, Tokenizer};

/// The longest line of a `.jsonl` file, and the longest stretch of a `.txt` file without a place
/// where it may be cut.
pub const MAX_PIECE_BYTES: usize = 16 << 20;

/// Bytes that [`prepare`] takes beside the tokenizer while no line and no uncuttable stretch is
/// longer than [`SHORT_PIECE_BYTES`] or mostly one word: buffers of text, ids and files. Chats take
/// [`ChatTemplateSource::prepare_bytes`] more.
pub const PREPARE_BYTES: u64 = 160 << 10;

/// Bytes of a line or uncuttable stretch that there is always memory for.
pub const SHORT_PIECE_BYTES: usize = 8 << 10;

/// How a text is made into tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrepareOptions {
    /// Leaves prompts, and all of a chat but the assistant's turns, out of the loss. On by default.
    pub mask_prompt: bool,
    /// What the keys of a `.jsonl` file's lines are called.
    pub features: FeatureNames,
    /// Bytes of a `.txt` file tokenised at a time; 8 KiB by default. The ids do not depend on it.
    pub piece_bytes: usize,
    /// The longest line of a `.jsonl` file and the longest uncuttable stretch of a `.txt` file that
    /// there is memory for, at [`Tokenizer::piece_memory`] bytes a byte; [`MAX_PIECE_BYTES`] at most and by
    /// default.
    pub longest_piece_bytes: usize,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        Self {
            mask_prompt: true,
            features: FeatureNames::default(),
            piece_bytes: 8 << 10,
            longest_piece_bytes: MAX_PIECE_BYTES,
        }
    }
}

/// How far [`prepare`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the input that are done.
    pub bytes: u64,
    /// Bytes of the input.
    pub bytes_total: u64,
    /// Tokens written.
    pub tokens: u64,
    /// Samples written.
    pub samples: u64,
}

/// Makes the token file `out` from `input`: a `.txt` file is one long text, a `.jsonl` file holds a
/// sample a line. What a line is, is told by its keys:
///
/// | keys | loss target |
/// |---|---|
/// | `text` | all of it |
/// | `prompt`, `completion`: strings | the completion |
/// | `messages`: a list of `{role, content, …}`, perhaps `tools` | the assistant's turns |
/// | `prompt`, `completion`: lists of messages, perhaps `tools` | the assistant's turns in the completion |
/// | `conversations`: a list of `{from, value}` (ShareGPT), perhaps `system`, `tools` | the assistant's turns |
/// | `instruction`, `output`, perhaps `input`, `system`, `history` (Alpaca) | the answers |
///
/// Keys whose value is null count as missing. Texts and completions end with EOS, appended where it
/// is missing and the tokenizer has one. All other forms are chats, and their text is what the
/// template `chat` makes of them: it decides what ends a turn. A turn of the assistant goes up to the
/// last control token in it.
///
/// The ids of a `.txt` file are those of the whole file tokenised at once. In samples, what is a
/// loss target is tokenised apart from what is none, so that no token spans a border between them.
///
/// `progress` is called now and then, and with all bytes done at the end; once `cancel` is true the
/// work stops and leaves nothing behind.
///
/// # Errors
/// The input is no regular file, a file can't be read or written, a line is broken, has an unknown
/// key or has no target (named by its number), a line is a chat and there is no template, or one
/// that refuses it, the text is no UTF-8, a line, a chat's text or an uncuttable stretch is longer
/// than the options or [`MAX_PIECE_BYTES`] allow, the input is empty, or the caller cancelled.
pub fn prepare(
    input: &Path,
    tokenizer: &Tokenizer,
    chat: Option<&ChatTemplateSource>,
    options: &PrepareOptions,
    out: &Path,
    progress: &mut dyn FnMut(Progress),
    cancel: &AtomicBool,
) -> Result<TokenFileHeader> {
    let kind = match input.extension().and_then(|extension| extension.to_str()) {
        Some("txt") => TokenFileKind::Text,
        Some("jsonl") => TokenFileKind::Samples,
        _ => return Err(TextError::data(input, "expected a .txt or .jsonl file")),
    };
    TextError::require_regular(input)?;
    let file = File::open(input).map_err(TextError::io(input))?;
    let bytes_total = file.metadata().map_err(TextError::io(input))?.len();
    let mut job = Job {
        input,
        tokenizer,
        chat,
        options,
        reader: HashingReader { file, hash: Sha256::new() },
        writer: TokenFileWriter::create(out, kind, tokenizer, options.mask_prompt)?,
        step: Step { bytes_total, progress, cancel },
    };
    match kind {
        TokenFileKind::Text => job.text()?,
        TokenFileKind::Samples => job.samples()?,
    }
    if job.writer.header().tokens == 0 {
        return Err(TextError::data(input, "the file is empty; give one with text or samples"));
    }
    job.writer.finish(job.reader.hash.finalize().into())
}

struct Job<'a> {
    input: &'a Path,
    tokenizer: &'a Tokenizer,
    chat: Option<&'a ChatTemplateSource>,
    options: &'a PrepareOptions,
    reader: HashingReader,
    writer: TokenFileWriter,
    step: Step<'a>,
}

/// Reports how far the work is, and asks whether to go on.
struct Step<'a> {
    bytes_total: u64,
    progress: &'a mut dyn FnMut(Progress),
    cancel: &'a AtomicBool,
}

impl Step<'_> {
    fn at(&mut self, bytes: u64, written: &TokenFileHeader) -> Result<()> {
        let (tokens, samples) = (written.tokens, written.samples);
        (self.progress)(Progress { bytes, bytes_total: self.bytes_total, tokens, samples });
        if self.cancel.load(Ordering::Relaxed) { Err(TextError::Cancelled) } else { Ok(()) }
    }
}

impl Job<'_> {
    /// One long text, cut only where the ids can't depend on the cut.
    fn text(&mut self) -> Result<()> {
        let piece_bytes = self.options.piece_bytes.clamp(1, MAX_PIECE_BYTES) as u64;
        let longest = self.options.longest_piece_bytes.min(MAX_PIECE_BYTES);
        let (mut buffer, mut encoding) = (Vec::new(), Encoding::default());
        let mut done = 0;
        loop {
            self.step.at(done, self.writer.header())?;
            let read = (&mut self.reader)
                .take(piece_bytes)
                .read_to_end(&mut buffer)
                .map_err(TextError::io(self.input))?;
            let text = match std::str::from_utf8(&buffer) {
                Ok(text) => text,
                Err(error) if error.error_len().is_none() && read > 0 => valid_part(&buffer, error),
                Err(error) => return Err(self.not_utf8(done + error.valid_up_to() as u64)),
            };
            let cut = if read == 0 { Some(text.len()) } else { self.tokenizer.last_cut(text) };
            let Some(cut) = cut else {
                if buffer.len() > longest.max(piece_bytes as usize) {
                    return Err(self.uncuttable(done));
                }
                continue;
            };
            self.tokenizer.encode_into(&text[..cut], &mut encoding)?;
            self.writer.push_text(&encoding.ids)?;
            buffer.drain(..cut);
            done += cut as u64;
            if read == 0 {
                return self.step.at(done, self.writer.header());
            }
        }
    }

    /// A sample a line.
    fn samples(&mut self) -> Result<()> {
        let longest = self.options.longest_piece_bytes.min(MAX_PIECE_BYTES);
        let names = &self.options.features;
        let mut samples = Lines::new(self.tokenizer, self.chat, names, self.options.mask_prompt);
        let mut lines = BufReader::new(&mut self.reader);
        let (mut buffer, mut sample) = (Vec::new(), Sequence::default());
        let mut done = 0;
        let mut reported = 0;
        for number in 1.. {
            if done >= reported {
                self.step.at(done, self.writer.header())?;
                reported = done + (64 << 10);
            }
            buffer.clear();
            let mut line = (&mut lines).take(longest as u64 + 1);
            let read = line.read_until(b'\n', &mut buffer).map_err(TextError::io(self.input))?;
            if read == 0 {
                break;
            }
            if buffer.len() > longest && longest < MAX_PIECE_BYTES {
                return Err(self.no_room(format!("line {number}"), longest));
            }
            let mut tick = || self.step.at(done, self.writer.header());
            let made = match whole_line(&buffer, number) {
                Ok(line) => samples.sample(line, longest, &mut sample, &mut tick),
                Err(what) => Err(LineError::Form(what)),
            };
            match made {
                Ok(()) => self.writer.push_sample(&sample)?,
                Err(error) => return error.at(self.input, number, names),
            }
            done += read as u64;
        }
        self.writer.made_with(samples.template(), names.fingerprint());
        self.step.at(done, self.writer.header())
    }

    fn not_utf8(&self, at: u64) -> TextError {
        TextError::data(
            self.input,
            format!("byte {at} is not part of UTF-8 text; convert the file to UTF-8"),
        )
    }

    fn no_room(&self, place: String, bytes: usize) -> TextError {
        TextError::NoRoom { path: self.input.to_owned(), place, bytes }
    }

    fn uncuttable(&self, at: u64) -> TextError {
        let longest = self.options.longest_piece_bytes;
        if longest < MAX_PIECE_BYTES {
            return self.no_room(format!("the text from byte {at} on, uncuttable,"), longest);
        }
        TextError::data(
            self.input,
            format!(
                "from byte {at} on there are more than {MAX_PIECE_BYTES} bytes without a place \
                 where this tokenizer's text may be cut; write it as a .jsonl file with shorter texts"
            ),
        )
    }
}

/// The part of `bytes` before the character that `error` found unfinished.
fn valid_part(bytes: &[u8], error: Utf8Error) -> &str {
    std::str::from_utf8(&bytes[..error.valid_up_to()]).expect("found to be valid")
}

/// The text of a line, or what is wrong with it.
fn whole_line(bytes: &[u8], number: u64) -> std::result::Result<&str, String> {
    if bytes.len() > MAX_PIECE_BYTES {
        return Err(format!("the line is longer than {MAX_PIECE_BYTES} bytes"));
    }
    let line = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    // Some editors put a byte order mark in front of a file.
    Ok(if number == 1 { line.trim_start_matches('\u{feff}') } else { line })
}

/// Hashes a file as it is read.
struct HashingReader {
    file: File,
    hash: Sha256,
}

impl Read for HashingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}
