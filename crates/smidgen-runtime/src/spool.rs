//! A scratch file: numbers that wait on a disk until they are needed again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytemuck::{cast_slice, cast_slice_mut};
use half::bf16;
use half::slice::HalfFloatSliceExt;

use crate::error::{Error, Result};

/// How numbers are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpoolFormat {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bf16, to nearest even: half the bytes, and other numbers than were written.
    Bf16,
}

impl SpoolFormat {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// A file without a name, which the system removes with the process. It is read and written, never
/// mapped, so nothing of it counts as this process's memory.
#[derive(Debug)]
pub struct Spool {
    file: File,
    folder: PathBuf,
    format: SpoolFormat,
}

/// Numbers that are rounded, or written as zeros, at a time.
const RUN: usize = 4096;

impl Spool {
    /// A file in `folder` with `len` numbers, all zero. All of it is written, so that a disk that
    /// is full shows now.
    ///
    /// # Errors
    /// [`Error::Spool`] if the folder can't be written to or has no room.
    pub fn create(folder: &Path, len: usize, format: SpoolFormat) -> Result<Self> {
        let failed = |source| Error::Spool { folder: folder.to_owned(), source };
        let file = tempfile::tempfile_in(folder).map_err(failed)?;
        let spool = Self { file, folder: folder.to_owned(), format };
        for at in (0..len).step_by(RUN) {
            spool.write(at, &[0.0; RUN][..RUN.min(len - at)])?;
        }
        Ok(spool)
    }

    /// Writes numbers from the `at`-th on.
    ///
    /// # Errors
    /// [`Error::Spool`].
    pub fn write(&self, at: usize, numbers: &[f32]) -> Result<()> {
        match self.format {
            SpoolFormat::F32 => self.write_bytes(at, cast_slice(numbers)),
            SpoolFormat::Bf16 => {
                let mut rounded = [bf16::ZERO; RUN];
                for (i, run) in numbers.chunks(RUN).enumerate() {
                    rounded[..run.len()].convert_from_f32_slice(run);
                    let bits: &[u16] = rounded[..run.len()].reinterpret_cast();
                    self.write_bytes(at + i * RUN, cast_slice(bits))?;
                }
                Ok(())
            }
        }
    }

    /// Reads numbers from the `at`-th on, with the bits that were written, rounded as the format
    /// says.
    ///
    /// # Errors
    /// [`Error::Spool`].
    pub fn read(&self, at: usize, numbers: &mut [f32]) -> Result<()> {
        match self.format {
            SpoolFormat::F32 => self.read_bytes(at, cast_slice_mut(numbers)),
            SpoolFormat::Bf16 => {
                let mut rounded = [bf16::ZERO; RUN];
                for (i, run) in numbers.chunks_mut(RUN).enumerate() {
                    let bits: &mut [u16] = rounded[..run.len()].reinterpret_cast_mut();
                    self.read_bytes(at + i * RUN, cast_slice_mut(bits))?;
                    rounded[..run.len()].convert_to_f32_slice(run);
                }
                Ok(())
            }
        }
    }

    /// Waits until all that was written is on the disk.
    ///
    /// # Errors
    /// [`Error::Spool`].
    pub fn sync(&self) -> Result<()> {
        self.told(self.file.sync_data())
    }

    fn offset(&self, at: usize) -> u64 {
        (self.format.bytes() * at) as u64
    }

    fn write_bytes(&self, at: usize, bytes: &[u8]) -> Result<()> {
        self.told(self.file.write_all_at(bytes, self.offset(at)))
    }

    fn read_bytes(&self, at: usize, bytes: &mut [u8]) -> Result<()> {
        self.told(self.file.read_exact_at(bytes, self.offset(at)))
    }

    fn told(&self, done: std::io::Result<()>) -> Result<()> {
        done.map_err(|source| Error::Spool { folder: self.folder.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_with_their_bits() {
        let folder = tempfile::tempdir().expect("a folder");
        let len = 3 * RUN + 7;
        let spool = Spool::create(folder.path(), len, SpoolFormat::F32).expect("a file");
        let mut back = vec![1.0; len];
        spool.read(0, &mut back).expect("read");
        assert!(back.iter().all(|x| *x == 0.0));
        let value: Vec<f32> = (0..len as u32).map(|n| f32::from_bits(n * 300_007)).collect();
        spool.write(0, &value).expect("written");
        spool.write(5, &value[..3]).expect("written");
        spool.read(0, &mut back).expect("read");
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back[..5]), bits(&value[..5]));
        assert_eq!(bits(&back[5..8]), bits(&value[..3]));
        assert_eq!(bits(&back[8..]), bits(&value[8..]));
        assert!(spool.read(1, &mut back).is_err(), "beyond the end");
        assert_eq!(folder.path().read_dir().expect("a folder").count(), 0, "it has no name");
        assert!(Spool::create(&folder.path().join("none"), 1, SpoolFormat::F32).is_err());
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        let folder = tempfile::tempdir().expect("a folder");
        let len = RUN + 3;
        let spool = Spool::create(folder.path(), len, SpoolFormat::Bf16).expect("a file");
        let value: Vec<f32> = (0..len).map(|n| (n as f32 - 2000.0) * 1.37e-3).collect();
        spool.write(0, &value).expect("written");
        let mut back = vec![0.0; len];
        spool.read(0, &mut back).expect("read");
        for (x, y) in value.iter().zip(&back) {
            let bits = x.to_bits();
            let rounded = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
            assert_eq!(y.to_bits(), rounded, "{x}");
        }
    }
}
