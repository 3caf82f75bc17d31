//! Where rows of samples wait for the step that they are of: in memory, or in a scratch file that may
//! also hold those of earlier samples, for when they come again. They are the last hidden states, or
//! only what those were divided by.

use std::path::Path;

use smidgen_graph::Row;
use smidgen_runtime::{Spool, SpoolFormat, sealed};

use crate::error::Result;

/// No place.
const NONE: u32 = u32::MAX;

/// Rows of numbers, f32, with the bits that they had.
#[derive(Debug)]
pub(super) struct HiddenStates {
    place: Place,
    hidden: usize,
    /// Rows of a step that may wait, and steps that may.
    rows: usize,
    steps: usize,
    /// The first row of each sample that is kept; empty where none is.
    kept: Vec<u32>,
    /// The next row that is free to be kept, behind those that only wait, and how many rows there
    /// may be in all.
    next: usize,
    most: usize,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<f32>),
    File(Spool),
}

/// How much waits, and how much is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct HiddenSize {
    /// Numbers of a row.
    pub hidden: usize,
    /// Rows of a step, at most.
    pub rows: usize,
    /// Steps that are under way at a time.
    pub steps: usize,
    /// Samples of the data, of which states are kept; 0 for none.
    pub samples: usize,
    /// Bytes of states that may be kept.
    pub kept_bytes: u64,
}

impl HiddenSize {
    /// The plan's lines.
    pub fn plan_rows(self, file: bool) -> Vec<Row> {
        let Self { hidden, rows, steps, samples, .. } = self;
        let shape = format!("{} x {hidden}", steps * rows);
        let row = |name: &str, shape: String, bytes: usize, why: &str| {
            Row::new(name, shape, bytes as u64, "whole run", why)
        };
        if !file {
            let why = "of steps whose output is not there yet";
            return vec![row("hidden states", shape, 4 * steps * rows * hidden, why)];
        }
        let why = "of samples whose hidden states are kept in the scratch file";
        vec![row("kept samples", format!("{samples}"), 4 * samples, why)]
    }
}

impl HiddenStates {
    /// Room for them, in a scratch file in `folder` if there is one.
    ///
    /// # Errors
    /// The system does not give the memory, or the folder can't be written to.
    pub fn new(size: HiddenSize, folder: Option<&Path>) -> Result<Self> {
        let HiddenSize { hidden, rows, steps, samples, kept_bytes } = size;
        let waiting = steps * rows;
        let kept = (kept_bytes / (4 * hidden.max(1)) as u64).min(u64::from(NONE) / 2) as usize;
        let (place, samples) = match folder {
            Some(folder) => {
                (Place::File(Spool::create(folder, waiting * hidden, SpoolFormat::F32)?), samples)
            }
            None => (Place::Memory(sealed(waiting * hidden)?), 0),
        };
        let kept_samples = vec![NONE; samples];
        let most = waiting + kept;
        Ok(Self { place, hidden, rows, steps, kept: kept_samples, next: waiting, most })
    }

    /// The first row of a sample's states that are kept, if they are.
    pub fn kept(&self, sample: u32) -> Option<usize> {
        let row = *self.kept.get(sample as usize)?;
        (row != NONE).then_some(row as usize)
    }

    /// The first of `rows` rows for a sample's states: to be kept where there is room, else to wait
    /// as rows of its step behind `before` others.
    pub fn place(&mut self, step: u64, before: usize, sample: u32, rows: usize) -> usize {
        let is_kept = (sample as usize) < self.kept.len();
        if is_kept && rows <= self.most.saturating_sub(self.next) {
            return self.next;
        }
        (step % self.steps as u64) as usize * self.rows + before
    }

    /// Writes the chosen rows of a stream as the states of a sample, from the row `first` on that it
    /// has.
    ///
    /// # Errors
    /// The scratch file can't be written.
    pub fn write(
        &mut self,
        (sample, first): (u32, usize),
        stream: &[f32],
        rows: impl ExactSizeIterator<Item = usize>,
    ) -> Result<()> {
        let (hidden, count) = (self.hidden, rows.len());
        for (at, row) in (first..).zip(rows) {
            let row = &stream[row * hidden..(row + 1) * hidden];
            match &mut self.place {
                Place::Memory(numbers) => {
                    numbers[at * hidden..(at + 1) * hidden].copy_from_slice(row);
                }
                Place::File(file) => file.write(at * hidden, row)?,
            }
        }
        // Only now is all of it there.
        if first == self.next {
            self.kept[sample as usize] = first as u32;
            self.next += count;
        }
        Ok(())
    }

    /// Reads the rows from `first` on that fill `stream`.
    ///
    /// # Errors
    /// The scratch file can't be read.
    pub fn read(&self, first: usize, stream: &mut [f32]) -> Result<()> {
        let at = first * self.hidden;
        match &self.place {
            Place::Memory(numbers) => stream.copy_from_slice(&numbers[at..at + stream.len()]),
            Place::File(file) => file.read(at, stream)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(samples: usize, kept_rows: u64) -> HiddenSize {
        HiddenSize { hidden: 3, rows: 4, steps: 2, samples, kept_bytes: 12 * kept_rows }
    }

    #[test]
    fn rows_wait_and_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let stream: Vec<f32> = (0..30).map(|i| i as f32).collect();
        for (folder, kept) in [(None, false), (Some(folder.path()), true)] {
            let mut states = HiddenStates::new(size(9, 3), folder).unwrap();
            let first = states.place(1, 0, 5, 2);
            states.write((5, first), &stream, [1, 7].into_iter()).unwrap();
            assert_eq!(states.kept(5), kept.then_some(8));
            let second = states.place(1, 2, 6, 2);
            states.write((6, second), &stream, [0, 9].into_iter()).unwrap();
            assert_eq!((states.kept(6), second), (None, 6));
            assert_eq!(states.place(2, 1, 7, 2), 1);
            let mut out = vec![0.0; 12];
            states.read(first, &mut out[6..]).unwrap();
            states.read(second, &mut out[..6]).unwrap();
            assert_eq!(out, [0., 1., 2., 27., 28., 29., 3., 4., 5., 21., 22., 23.]);
        }
    }
}
