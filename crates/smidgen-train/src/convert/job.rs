//! What is written of a model: a list of tensors, each with where it comes from.

use std::ops::Range;
use std::sync::atomic::Ordering;

use smidgen_kernels::Format;
use smidgen_weights::NewTensor;

use super::merge::Merge;
use super::recode::{Edit, Recoder, RowOrder, Stored};
use super::{Convert, ConvertedTensor};
use crate::error::Result;

/// A tensor that is to be written.
pub(super) struct Job<'a> {
    /// Its name in the new file.
    pub name: String,
    /// Its name in the file that it comes from.
    pub source: String,
    /// Size of each dimension, the row length first.
    pub shape: Vec<u64>,
    pub from: Origin<'a>,
    pub to: Format,
    /// Added to every number.
    pub added: f32,
}

/// Where numbers come from.
pub(super) enum Origin<'a> {
    Stored(Stored<'a>),
    /// A vector that is F32.
    Made(&'a [f32]),
}

impl Job<'_> {
    pub fn listed(&self) -> NewTensor {
        NewTensor { name: self.name.clone(), format: self.to, shape: self.shape.clone() }
    }

    /// Bytes in the new file.
    pub fn byte_len(&self) -> u64 {
        self.listed().byte_len().unwrap_or(0) as u64
    }

    fn is_vector(&self) -> bool {
        is_vector(&self.shape)
    }
}

/// Whether a tensor of this shape, the row length first, has a single row.
fn is_vector(shape: &[u64]) -> bool {
    shape.iter().skip(1).product::<u64>() == 1
}

/// `to`, or what a tensor of this shape is stored as instead: a vector is F32, and what has rows
/// that are no whole blocks is F16.
pub(super) fn fitting(to: Format, shape: &[u64]) -> Format {
    if is_vector(shape) {
        Format::F32
    } else if shape[0].is_multiple_of(to.block_len() as u64) {
        to
    } else {
        Format::F16
    }
}

impl Convert<'_> {
    /// Hands the bytes of all tensors to `write`, in their order.
    pub(super) fn run(
        &mut self,
        jobs: Vec<Job<'_>>,
        mut merge: Option<&mut Merge<'_>>,
        write: &mut dyn FnMut(&[u8]) -> smidgen_weights::Result<()>,
    ) -> Result<Vec<ConvertedTensor>> {
        let total = jobs.iter().map(Job::byte_len).sum();
        let mut written = 0;
        let mut put = |bytes: &[u8]| -> Result<()> {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(smidgen_models::Error::Cancelled.into());
            }
            write(bytes)?;
            written += bytes.len() as u64;
            (self.progress)(written, total);
            Ok(())
        };
        let mut recoder = Recoder::new(self.threads)?;
        let mut done = Vec::with_capacity(jobs.len());
        for job in jobs {
            let (from, bytes_before, relative_error) = match &job.from {
                Origin::Made(numbers) => {
                    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                    put(&bytes)?;
                    (Format::F32, bytes.len(), 0.0)
                }
                Origin::Stored(stored) => {
                    let error =
                        write_stored(&job, stored, merge.as_deref_mut(), &mut recoder, &mut put)?;
                    (stored.format, stored.byte_len(), error)
                }
            };
            done.push(ConvertedTensor {
                bytes: job.byte_len(),
                bytes_before: bytes_before as u64,
                name: job.name,
                shape: job.shape,
                from,
                to: job.to,
                relative_error,
            });
        }
        Ok(done)
    }
}

/// Hands a tensor's bytes to `put` and gives its relative error.
fn write_stored(
    job: &Job<'_>,
    stored: &Stored<'_>,
    merge: Option<&mut Merge<'_>>,
    recoder: &mut Recoder,
    put: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<f64> {
    let delta = match merge {
        Some(merge) => merge.delta(&job.source)?,
        None => None,
    };
    let add = |_: usize, _: Range<usize>, numbers: &mut [f32], _: &mut [f32]| {
        numbers.iter_mut().for_each(|x| *x += job.added);
    };
    let merge_in = delta.as_ref().map(|delta| {
        move |row: usize, cols: Range<usize>, numbers: &mut [f32], room: &mut [f32]| {
            delta.add(row, cols, numbers, room);
        }
    });
    let edit: Option<Edit<'_>> = match &merge_in {
        Some(merge_in) => Some(merge_in),
        None if job.added != 0.0 => Some(&add),
        None => None,
    };
    if edit.is_none() && stored.format == job.to && stored.order == RowOrder::AsStored {
        return recoder.copy(stored, put).map(|()| 0.0);
    }
    recoder.recode(&job.source, stored, job.to, edit, put)
}

/// Tells which matrices are not stored as `wanted`.
pub(super) fn misfits(jobs: &[Job<'_>], wanted: Format) -> Vec<String> {
    let misfits = jobs.iter().filter(|job| !job.is_vector() && job.to != wanted);
    let note = |job: &Job<'_>| {
        let (name, cols, to) = (&job.name, job.shape[0], job.to.name());
        let block = wanted.block_len();
        format!("{name}: rows of {cols} are no whole blocks of {block}, so it is {to}")
    };
    misfits.map(note).collect()
}
