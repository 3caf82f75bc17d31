//! Writing a token file as its tokens come.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::offsets::Offsets;
use super::{CHECKSUM_AT, HEADER_BYTES, TARGET_BIT};
use super::{Fingerprint, TokenFileHeader, TokenFileKind};
use crate::dataset::Sequence;
use crate::error::{Result, TextError};
use crate::tokenizer::Tokenizer;

/// Bytes hashed and written at a time.
pub(super) const BLOCK_BYTES: usize = 16 * 1024;

/// Writes a token file beside its place and moves it there when it is whole; dropped before that,
/// it leaves nothing behind. What it keeps in memory does not grow with the file.
pub struct TokenFileWriter {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    /// Content not yet hashed and written.
    block: Vec<u8>,
    hash: Sha256,
    header: TokenFileHeader,
    /// None for one long text.
    offsets: Option<Offsets>,
}

impl TokenFileWriter {
    /// Begins a file at `path` for ids of `tokenizer`.
    ///
    /// # Errors
    /// The folder can't be written to.
    pub fn create(
        path: &Path,
        kind: TokenFileKind,
        tokenizer: &Tokenizer,
        mask_prompt: bool,
    ) -> Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(TextError::data(path, "not a file name"));
        };
        let beside = |end: &str| {
            path.with_file_name(format!(".{}.{}.{end}", name.display(), std::process::id()))
        };
        let partial = beside("partial");
        let file = File::create(&partial).map_err(TextError::io(path))?;
        let block = Vec::with_capacity(BLOCK_BYTES);
        let mut writer = Self {
            path: path.to_owned(),
            partial,
            file,
            block,
            hash: Sha256::new(),
            header: TokenFileHeader {
                kind,
                vocab_size: tokenizer.vocab_size() as u32,
                bos: tokenizer.bos(),
                eos: tokenizer.eos(),
                mask_prompt,
                fingerprint: tokenizer.fingerprint(),
                source_sha256: [0; 32],
                tokens: 0,
                targets: 0,
                samples: 0,
                chat_template: None,
                features: None,
            },
            offsets: None,
        };
        writer.write_all(&[0; HEADER_BYTES])?;
        if kind == TokenFileKind::Samples {
            writer.offsets.insert(Offsets::create(beside("offsets"))?).push(0)?;
        }
        Ok(writer)
    }

    /// Adds the next ids of one long text; all are loss targets.
    ///
    /// # Errors
    /// The file can't be written.
    ///
    /// # Panics
    /// If the file was begun for samples, or an id is outside the vocabulary.
    pub fn push_text(&mut self, ids: &[u32]) -> Result<()> {
        assert_eq!(self.header.kind, TokenFileKind::Text, "samples don't take text");
        self.push_tokens(ids.iter().map(|&id| (id, true)))
    }

    /// Adds a sample.
    ///
    /// # Errors
    /// The file can't be written.
    ///
    /// # Panics
    /// If the file was begun for one long text, the sample is empty, its ids and targets differ in
    /// number, or an id is outside the vocabulary.
    pub fn push_sample(&mut self, sample: &Sequence) -> Result<()> {
        assert!(self.offsets.is_some(), "one long text takes no samples");
        assert!(!sample.ids.is_empty(), "a sample has tokens");
        assert_eq!(sample.ids.len(), sample.targets.len(), "one mask entry a token");
        self.push_tokens(sample.ids.iter().copied().zip(sample.targets.iter().copied()))?;
        self.header.samples += 1;
        match &mut self.offsets {
            Some(offsets) => offsets.push(self.header.tokens),
            None => Ok(()),
        }
    }

    /// Puts down what decided the ids beside the tokenizer: the template of chats, and the names of
    /// keys where they are not the usual ones.
    pub fn made_with(&mut self, chat_template: Option<Fingerprint>, features: Option<Fingerprint>) {
        (self.header.chat_template, self.header.features) = (chat_template, features);
    }

    /// What has been written so far.
    pub fn header(&self) -> &TokenFileHeader {
        &self.header
    }

    /// Completes the file, brings it to disk and moves it to its place.
    ///
    /// # Errors
    /// The file can't be written or moved.
    pub fn finish(mut self, source_sha256: [u8; 32]) -> Result<TokenFileHeader> {
        if let Some(offsets) = self.offsets.take() {
            offsets.for_each_block(|block| self.append(block))?;
        }
        self.flush()?;
        self.header.source_sha256 = source_sha256;
        let header = self.header.to_bytes();
        self.hash.update(header);
        let checksum = self.hash.finalize_reset();
        let mut start = [0; HEADER_BYTES];
        start[..CHECKSUM_AT].copy_from_slice(&header);
        start[CHECKSUM_AT..].copy_from_slice(&checksum);
        self.file.seek(SeekFrom::Start(0)).map_err(TextError::io(&self.partial))?;
        self.write_all(&start)?;
        self.file.sync_all().map_err(TextError::io(&self.partial))?;
        fs::rename(&self.partial, &self.path).map_err(TextError::io(&self.path))?;
        sync_folder_of(&self.path)?;
        Ok(self.header.clone())
    }

    fn push_tokens(&mut self, tokens: impl Iterator<Item = (u32, bool)>) -> Result<()> {
        for (id, target) in tokens {
            assert!(id < self.header.vocab_size, "id {id} is outside the vocabulary");
            let word = if target { id | TARGET_BIT } else { id };
            self.append(&word.to_le_bytes())?;
            self.header.tokens += 1;
            self.header.targets += u64::from(target);
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.block.len() + bytes.len() > BLOCK_BYTES {
            self.flush()?;
        }
        self.block.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.hash.update(&self.block);
        self.file.write_all(&self.block).map_err(TextError::io(&self.partial))?;
        self.block.clear();
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(TextError::io(&self.partial))
    }
}

impl Drop for TokenFileWriter {
    fn drop(&mut self) {
        // After `finish` there is nothing left to remove; a failure leaves only a stray file.
        let _ = fs::remove_file(&self.partial);
    }
}

/// Makes the new name last over a power cut.
fn sync_folder_of(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(TextError::io(folder))
}
