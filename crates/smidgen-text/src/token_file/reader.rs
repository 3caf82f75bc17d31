//! Reading a token file with `pread`: nothing of it stays in memory.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{CHECKSUM_AT, HEADER_BYTES, TARGET_BIT};
use super::{TokenFileHeader, TokenFileKind};
use crate::error::{Result, TextError};

/// Bytes read at a time; a multiple of 8.
const BUFFER_BYTES: usize = 16 * 1024;

/// An open token file, found to be whole.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    file: File,
    header: TokenFileHeader,
}

impl TokenFile {
    /// Opens the file at `path` and reads it once to check it.
    ///
    /// # Errors
    /// The file is no regular one, can't be read, is no token file, has another size than its header says, holds an
    /// id outside the vocabulary or offsets that don't rise, or fails its checksum.
    pub fn open(path: &Path) -> Result<Self> {
        TextError::require_regular(path)?;
        let mut file = File::open(path).map_err(TextError::io(path))?;
        let bytes = file.metadata().map_err(TextError::io(path))?.len();
        let wrong = |what: String| TextError::token_file(path, what);
        if bytes < HEADER_BYTES as u64 {
            return Err(wrong(format!("{bytes} bytes are less than a header")));
        }
        let mut start = [0; HEADER_BYTES];
        file.read_exact(&mut start).map_err(TextError::io(path))?;
        let header = TokenFileHeader::parse(&start).map_err(wrong)?;
        if header.file_bytes() != Some(bytes) {
            return Err(wrong(format!("{bytes} bytes are not what its header describes")));
        }
        let file = Self { path: path.to_owned(), file, header };
        file.verify(&start)?;
        Ok(file)
    }

    /// The header.
    pub fn header(&self) -> &TokenFileHeader {
        &self.header
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokens of sample `sample`.
    ///
    /// # Errors
    /// The file can't be read, or has changed since it was opened.
    ///
    /// # Panics
    /// If there is no such sample.
    pub fn sample_range(&self, sample: u64) -> Result<Range<u64>> {
        assert!(sample < self.header.samples, "sample {sample} of {}", self.header.samples);
        let mut bytes = [0; 16];
        self.read_at(self.offsets_at() + sample * 8, &mut bytes)?;
        let (start, end) = bytes.split_at(8);
        let long = |half: &[u8]| u64::from_le_bytes(half.try_into().expect("8 bytes"));
        let range = long(start)..long(end);
        if range.start >= range.end || range.end > self.header.tokens {
            return Err(TextError::token_file(&self.path, "it has changed since it was opened"));
        }
        Ok(range)
    }

    /// Calls `f` with id and loss mask of each token of `range`.
    ///
    /// # Errors
    /// The file can't be read.
    ///
    /// # Panics
    /// If the range goes past the file's tokens.
    pub fn for_each_token(&self, range: Range<u64>, mut f: impl FnMut(u32, bool)) -> Result<()> {
        assert!(range.end <= self.header.tokens, "tokens {range:?} of {}", self.header.tokens);
        let count = range.end.saturating_sub(range.start);
        self.for_each_block(HEADER_BYTES as u64 + range.start * 4, count * 4, |block| {
            for word in block.as_chunks().0 {
                let word = u32::from_le_bytes(*word);
                f(word & !TARGET_BIT, word & TARGET_BIT != 0);
            }
        })
    }

    /// Calls `f` with the number of tokens of each sample.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn for_each_length(&self, mut f: impl FnMut(u64)) -> Result<()> {
        let mut before = None;
        let bytes = self.offsets_bytes();
        self.for_each_block(self.offsets_at(), bytes, |block| {
            for offset in block.as_chunks().0 {
                let offset = u64::from_le_bytes(*offset);
                if let Some(before) = before.replace(offset) {
                    f(offset.saturating_sub(before));
                }
            }
        })
    }

    fn offsets_at(&self) -> u64 {
        HEADER_BYTES as u64 + self.header.tokens * 4
    }

    fn offsets_bytes(&self) -> u64 {
        match self.header.kind {
            TokenFileKind::Text => 0,
            TokenFileKind::Samples => (self.header.samples + 1) * 8,
        }
    }

    /// Checks every id, mask and offset, and the checksum.
    fn verify(&self, start: &[u8; HEADER_BYTES]) -> Result<()> {
        let header = &self.header;
        let wrong = |what: &str| Err(TextError::token_file(&self.path, what));
        let mut hash = Sha256::new();
        let (mut largest, mut targets) = (0, 0);
        self.for_each_block(HEADER_BYTES as u64, header.tokens * 4, |block| {
            hash.update(block);
            for word in block.as_chunks().0 {
                let word = u32::from_le_bytes(*word);
                largest = largest.max(word & !TARGET_BIT);
                targets += u64::from(word >> 31);
            }
        })?;
        let (mut rising, mut before) = (true, None);
        self.for_each_block(self.offsets_at(), self.offsets_bytes(), |block| {
            hash.update(block);
            for offset in block.as_chunks().0 {
                let offset = u64::from_le_bytes(*offset);
                rising &= before.map_or(offset == 0, |before| before < offset);
                before = Some(offset);
            }
        })?;
        hash.update(&start[..CHECKSUM_AT]);
        if hash.finalize()[..] != start[CHECKSUM_AT..] {
            return wrong("its content does not match its checksum");
        }
        if header.tokens > 0 && largest >= header.vocab_size {
            return wrong("it holds an id outside its vocabulary");
        }
        if targets != header.targets {
            return wrong("its number of targets is not what its header says");
        }
        if header.kind == TokenFileKind::Samples && !(rising && before == Some(header.tokens)) {
            return wrong("its samples' offsets do not rise from 0 to its number of tokens");
        }
        Ok(())
    }

    /// Calls `f` with `bytes` bytes from `at` on, in blocks that are multiples of 8 bytes but for
    /// the last.
    fn for_each_block(&self, mut at: u64, bytes: u64, mut f: impl FnMut(&[u8])) -> Result<()> {
        let mut buffer = [0; BUFFER_BYTES];
        let end = at + bytes;
        while at < end {
            let block = &mut buffer[..(end - at).min(BUFFER_BYTES as u64) as usize];
            self.read_at(at, block)?;
            f(block);
            at += block.len() as u64;
        }
        Ok(())
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(bytes, at).map_err(TextError::io(&self.path))
    }
}
