//! The numbers of an adapter, or of an optimiser's state: one run, layer after layer.

use std::ops::Range;
use std::path::Path;

use crate::engine::sealed;
use crate::error::Result;
use crate::spool::{Spool, SpoolFormat};

/// Where a walk reads the factors of a block.
pub trait Factors {
    /// Those of one block, given by their place among all. They are read until the next call.
    ///
    /// # Errors
    /// [`crate::Error::Spool`] if a scratch file can't be read or written.
    fn piece(&mut self, range: Range<usize>) -> Result<&[f32]>;
}

impl Factors for Numbers {
    fn piece(&mut self, range: Range<usize>) -> Result<&[f32]> {
        self.piece(range)
    }
}

/// Numbers that lie in memory, or in a scratch file with one piece at a time in memory.
#[derive(Debug)]
pub struct Numbers(Place);

#[derive(Debug)]
enum Place {
    Memory(Vec<f32>),
    File(Window),
}

/// The piece of a file that is in memory.
#[derive(Debug)]
struct Window {
    file: Spool,
    len: usize,
    numbers: Vec<f32>,
    /// What of the file `numbers` starts with.
    at: Range<usize>,
    /// Whether the piece was changed since it was read.
    changed: bool,
}

impl From<Vec<f32>> for Numbers {
    fn from(numbers: Vec<f32>) -> Self {
        Self(Place::Memory(numbers))
    }
}

impl Numbers {
    /// `len` zeros in memory.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] if the system does not give that much.
    pub fn in_memory(len: usize) -> Result<Self> {
        Ok(Self(Place::Memory(sealed(len)?)))
    }

    /// `len` zeros in a file in `folder`, of which pieces of up to `window` numbers are in memory.
    ///
    /// # Errors
    /// [`crate::Error::Spool`] if the folder can't be written to or has no room.
    pub fn in_file(folder: &Path, len: usize, window: usize) -> Result<Self> {
        let (file, numbers) = (Spool::create(folder, len, SpoolFormat::F32)?, sealed(window)?);
        Ok(Self(Place::File(Window { file, len, numbers, at: 0..0, changed: false })))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Place::Memory(numbers) => numbers.len(),
            Place::File(window) => window.len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, if they are in memory.
    pub fn held(&self) -> Option<&[f32]> {
        match &self.0 {
            Place::Memory(numbers) => Some(numbers),
            Place::File(_) => None,
        }
    }

    /// The same, to change.
    pub fn held_mut(&mut self) -> Option<&mut [f32]> {
        match &mut self.0 {
            Place::Memory(numbers) => Some(numbers),
            Place::File(_) => None,
        }
    }

    /// A piece to read. What was changed before is written back first if it has to make room.
    ///
    /// # Errors
    /// [`crate::Error::Spool`] if the file can't be read or written.
    ///
    /// # Panics
    /// If the piece is larger than the window.
    pub fn piece(&mut self, range: Range<usize>) -> Result<&[f32]> {
        match &mut self.0 {
            Place::Memory(numbers) => Ok(&numbers[range]),
            Place::File(window) => window.bring(range).map(|piece| &*piece),
        }
    }

    /// A piece to change.
    ///
    /// # Errors
    /// As [`Numbers::piece`].
    ///
    /// # Panics
    /// If the piece is larger than the window.
    pub fn piece_mut(&mut self, range: Range<usize>) -> Result<&mut [f32]> {
        match &mut self.0 {
            Place::Memory(numbers) => Ok(&mut numbers[range]),
            Place::File(window) => {
                window.bring(range.clone())?;
                window.changed = true;
                window.bring(range)
            }
        }
    }
}

impl Window {
    fn bring(&mut self, range: Range<usize>) -> Result<&mut [f32]> {
        assert!(range.end <= self.len, "{range:?} of {} numbers", self.len);
        assert!(range.len() <= self.numbers.len(), "{range:?} in a window");
        if self.at.start > range.start || self.at.end < range.end {
            if self.changed {
                self.file.write(self.at.start, &self.numbers[..self.at.len()])?;
                self.changed = false;
            }
            self.at = 0..0;
            self.file.read(range.start, &mut self.numbers[..range.len()])?;
            self.at = range.clone();
        }
        let start = range.start - self.at.start;
        Ok(&mut self.numbers[start..start + range.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_what_memory_holds() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut all = [
            Numbers::in_memory(100).expect("memory"),
            Numbers::in_file(folder.path(), 100, 30).expect("a file"),
        ];
        for numbers in &mut all {
            for start in [0, 70, 20] {
                let piece = numbers.piece_mut(start..start + 30).expect("a piece");
                piece.iter_mut().enumerate().for_each(|(i, x)| *x += (start + i) as f32);
            }
            numbers.piece_mut(25..35).expect("a piece inside")[0] = -1.0;
        }
        let [memory, file] = &mut all;
        for start in (0..100).step_by(10) {
            let range = start..start + 10;
            let expected = memory.piece(range.clone()).expect("memory");
            assert_eq!(file.piece(range).expect("a piece"), expected);
        }
        assert_eq!(memory.held().map(|x| x[25]), Some(-1.0));
        assert!(file.held().is_none());
    }

    #[test]
    #[should_panic(expected = "in a window")]
    fn a_piece_beyond_the_window_is_a_mistake() {
        let mut numbers = Numbers::in_file(&std::env::temp_dir(), 10, 3).expect("a file");
        let _ = numbers.piece(0..4);
    }
}
