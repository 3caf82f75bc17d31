//! Blocks' inputs in a scratch file, from their forward to their backward.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use smidgen_graph::plan::spool_buffer;

use crate::error::{Error, Result};

/// A file without a name, which the system removes with the process, and a buffer through which
/// numbers become bytes. Nothing of the file is mapped.
#[derive(Debug)]
pub struct Spool {
    file: File,
    folder: PathBuf,
    buffer: Vec<u8>,
    /// Bytes of one value.
    slot: u64,
}

impl Spool {
    /// A file in `folder` with room for `values` values of `numbers` numbers each. All of it is
    /// written, so that a disk that is full shows now.
    ///
    /// # Errors
    /// [`Error::Spool`] if the folder can't be written to or has no room.
    pub fn create(folder: &Path, values: usize, numbers: usize) -> Result<Self> {
        let failed = |source| Error::Spool { folder: folder.to_owned(), source };
        let file = tempfile::tempfile_in(folder).map_err(failed)?;
        let slot = 4 * numbers as u64;
        let buffer = vec![0; spool_buffer(numbers)];
        let len = slot * values as u64;
        let mut at = 0;
        while at < len {
            let count = (len - at).min(buffer.len() as u64) as usize;
            file.write_all_at(&buffer[..count], at).map_err(failed)?;
            at += count as u64;
        }
        Ok(Self { file, folder: folder.to_owned(), buffer, slot })
    }

    /// Writes value `index`.
    ///
    /// # Errors
    /// [`Error::Spool`].
    pub fn write(&mut self, index: usize, numbers: &[f32]) -> Result<()> {
        let mut at = index as u64 * self.slot;
        for part in numbers.chunks(self.buffer.len() / 4) {
            let bytes = &mut self.buffer[..4 * part.len()];
            for (bytes, x) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(part) {
                *bytes = x.to_le_bytes();
            }
            let written = self.file.write_all_at(bytes, at);
            written.map_err(|source| Error::Spool { folder: self.folder.clone(), source })?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Reads value `index` back, with the bits that were written.
    ///
    /// # Errors
    /// [`Error::Spool`].
    pub fn read(&mut self, index: usize, numbers: &mut [f32]) -> Result<()> {
        let mut at = index as u64 * self.slot;
        for part in numbers.chunks_mut(self.buffer.len() / 4) {
            let bytes = &mut self.buffer[..4 * part.len()];
            let read = self.file.read_exact_at(bytes, at);
            read.map_err(|source| Error::Spool { folder: self.folder.clone(), source })?;
            for (bytes, x) in bytes.as_chunks::<4>().0.iter().zip(part) {
                *x = f32::from_le_bytes(*bytes);
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_with_their_bits() {
        let folder = tempfile::tempdir().expect("a folder");
        let numbers = spool_buffer(usize::MAX / 4) / 4 + 7;
        let mut spool = Spool::create(folder.path(), 3, numbers).expect("a spool");
        let value = |i: u32| (0..numbers as u32).map(|n| f32::from_bits(n * 3 + i)).collect();
        let values: Vec<Vec<f32>> = (0..3).map(value).collect();
        for (i, value) in values.iter().enumerate() {
            spool.write(i, value).expect("written");
        }
        spool.write(1, &values[2][..5]).expect("written");
        let mut back = vec![0.0; numbers];
        for i in [2, 0] {
            spool.read(i, &mut back).expect("read");
            assert!(back.iter().zip(&values[i]).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
        spool.read(1, &mut back).expect("read");
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back[..5]), bits(&values[2][..5]));
        assert_eq!(bits(&back[5..]), bits(&values[1][5..]));
        assert_eq!(folder.path().read_dir().expect("a folder").count(), 0, "it has no name");
        assert!(Spool::create(&folder.path().join("none"), 1, 1).is_err());
    }
}
