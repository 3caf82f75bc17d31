//! Where the samples of a token file end, kept on disk until the ids are complete.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use super::writer::BLOCK_BYTES;
use crate::error::{Result, TextError};

/// Offsets in a file of their own, which goes with this.
pub(super) struct Offsets {
    path: PathBuf,
    file: File,
    /// Not yet written.
    block: Vec<u8>,
}

impl Offsets {
    pub(super) fn create(path: PathBuf) -> Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(TextError::io(&path))?;
        Ok(Self { path, file, block: Vec::with_capacity(BLOCK_BYTES) })
    }

    pub(super) fn push(&mut self, offset: u64) -> Result<()> {
        if self.block.len() + size_of::<u64>() > BLOCK_BYTES {
            self.flush()?;
        }
        self.block.extend_from_slice(&offset.to_le_bytes());
        Ok(())
    }

    /// Calls `f` with the bytes of all offsets, in order and in blocks.
    pub(super) fn for_each_block(mut self, mut f: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.flush()?;
        self.file.seek(SeekFrom::Start(0)).map_err(TextError::io(&self.path))?;
        loop {
            self.block.resize(BLOCK_BYTES, 0);
            match self.file.read(&mut self.block).map_err(TextError::io(&self.path))? {
                0 => return Ok(()),
                read => f(&self.block[..read])?,
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_all(&self.block).map_err(TextError::io(&self.path))?;
        self.block.clear();
        Ok(())
    }
}

impl Drop for Offsets {
    fn drop(&mut self) {
        // A failure leaves only a stray file.
        let _ = fs::remove_file(&self.path);
    }
}
