//! A model file written anew: with smaller numbers, or with an adapter merged into it.

use std::collections::BTreeMap;
use std::path::Path;

use smidgen_kernels::Format;
use smidgen_models::checkpoint::place;
use smidgen_weights::{Gguf, GgufWriter, NewTensor, SafetensorsWriter};

use super::job::{Job, Origin, fitting, misfits};
use super::merge::Merge;
use super::recode::{RowOrder, Stored};
use super::{Convert, Converted};
use crate::adapter::Adapter;
use crate::base::Base;
use crate::error::{Error, Result};

/// The version of ggml's quantised formats, which files with such tensors name.
const QUANTIZATION_VERSION: u32 = 2;

const FILE_TYPE_KEY: &str = "general.file_type";
const VERSION_KEY: &str = "general.quantization_version";
const ALIGNMENT_KEY: &str = "general.alignment";

impl Convert<'_> {
    /// Writes the model of `base` to `out` with its matrices as `to`, the embedding included;
    /// vectors become F32, and matrices whose rows are no whole blocks F16. Metadata stay but for
    /// the file's type. Tensors that are stored so already are copied.
    ///
    /// # Errors
    /// A number that is not finite or too large for `to`, a file that can't be read or written, or
    /// the caller cancelled.
    ///
    /// # Panics
    /// If `to` has no encoder.
    pub fn quantize(&mut self, base: &Base, to: Format, out: &Path) -> Result<Converted> {
        assert!(to.has_encoder(), "{to:?} can be written");
        let gguf = base.weights.gguf();
        let jobs = jobs(gguf, |job| fitting(to, &job.shape))?;
        let notes = misfits(&jobs, to);
        self.rewrite(gguf, jobs, None, Some(to), notes, out)
    }

    /// Writes the model of `base` to `out` with `adapter` merged in: W + scale B A for each of its
    /// projections, made in F32. With `to`, all matrices are stored so, as [`Convert::quantize`]
    /// has it. Without, tensors that the adapter leaves alone are copied byte for byte, and its
    /// own keep their format where it can be written, else they become Q8_0.
    ///
    /// # Errors
    /// Those of [`Convert::quantize`]; there is no adapter.
    ///
    /// # Panics
    /// If `to` has no encoder.
    pub fn fuse(
        &mut self,
        base: &Base,
        adapter: &mut Adapter,
        to: Option<Format>,
        out: &Path,
    ) -> Result<Converted> {
        assert!(to.is_none_or(Format::has_encoder), "{to:?} can be written");
        let gguf = base.weights.gguf();
        let mut merge = merged(base, adapter)?;
        let jobs = jobs(gguf, |job| match to {
            Some(to) => fitting(to, &job.shape),
            None if merge.changes(&job.source) && !job.to.has_encoder() => {
                fitting(Format::Q8_0, &job.shape)
            }
            None => job.to,
        })?;
        let notes = match to {
            Some(to) => misfits(&jobs, to),
            None => replaced(&jobs),
        };
        self.rewrite(gguf, jobs, Some(&mut merge), to, notes, out)
    }

    /// Writes the weights of `base` with `adapter` merged in to the safetensors file `out`, as
    /// `transformers` names and orders them, as `to`: what `model.safetensors` is in the folder of
    /// the base's checkpoint.
    ///
    /// # Errors
    /// Those of [`Convert::fuse`].
    ///
    /// # Panics
    /// If `to` is not F32, F16 or BF16.
    pub fn fuse_safetensors(
        &mut self,
        base: &Base,
        adapter: &mut Adapter,
        to: Format,
        out: &Path,
    ) -> Result<Converted> {
        let gguf = base.weights.gguf();
        let mut merge = merged(base, adapter)?;
        let jobs: Vec<Job<'_>> = jobs(gguf, |_| to)?
            .into_iter()
            .filter_map(|job| {
                let place = place(&base.info, &job.source)?;
                let Origin::Stored(stored) = job.from else { return None };
                let order = place.heads.map_or(RowOrder::AsStored, RowOrder::IntoCheckpoint);
                let from = Origin::Stored(Stored { order, ..stored });
                Some(Job { name: place.name, from, added: -place.added, ..job })
            })
            .collect();
        let listed: Vec<_> =
            jobs.iter().map(|job| (job.name.clone(), to, slowest_first(job))).collect();
        let mut writer = SafetensorsWriter::create(out, &listed)?;
        let tensors = self.run(jobs, Some(&mut merge), &mut |bytes| writer.write(bytes))?;
        Ok(Converted { tensors, file_bytes: writer.finish()?, notes: Vec::new() })
    }

    fn rewrite(
        &mut self,
        gguf: &Gguf,
        jobs: Vec<Job<'_>>,
        merge: Option<&mut Merge<'_>>,
        wanted: Option<Format>,
        notes: Vec<String>,
        out: &Path,
    ) -> Result<Converted> {
        let mut writer = GgufWriter::create(out)?;
        write_metadata(gguf, &mut writer, wanted)?;
        gguf.release_header();
        let listed: Vec<NewTensor> = jobs.iter().map(Job::listed).collect();
        let mut writer = writer.tensors(&listed)?;
        let tensors = self.run(jobs, merge, &mut |bytes| writer.write(bytes))?;
        Ok(Converted { tensors, file_bytes: writer.finish()?, notes })
    }
}

fn merged<'a>(base: &Base, adapter: &'a mut Adapter) -> Result<Merge<'a>> {
    if adapter.is_empty() {
        return Err(Error::setting("there is no adapter to merge; give one with --adapter"));
    }
    Ok(Merge::new(base, adapter))
}

/// Every tensor of the file in its order, as `choose` says; the job that it sees has the tensor's
/// own format.
fn jobs<'a>(gguf: &'a Gguf, choose: impl Fn(&Job<'_>) -> Format) -> Result<Vec<Job<'a>>> {
    let job = |name: &str| -> Result<Job<'a>> {
        let stored = Stored::of(gguf, name)?;
        let format = stored.format;
        let mut job = Job {
            name: name.to_owned(),
            source: name.to_owned(),
            shape: gguf.shape(name)?.to_owned(),
            from: Origin::Stored(stored),
            to: format,
            added: 0.0,
        };
        job.to = choose(&job);
        Ok(job)
    };
    gguf.tensors_in_order().into_iter().map(job).collect()
}

fn slowest_first(job: &Job<'_>) -> Vec<usize> {
    job.shape.iter().rev().map(|&size| size as usize).collect()
}

/// Metadata of the file as they are, but for those that say how tensors are stored.
fn write_metadata(gguf: &Gguf, writer: &mut GgufWriter, wanted: Option<Format>) -> Result<()> {
    let own: &[&str] = match wanted {
        Some(_) => &[ALIGNMENT_KEY, FILE_TYPE_KEY, VERSION_KEY],
        None => &[ALIGNMENT_KEY],
    };
    for key in gguf.keys().filter(|key| !own.contains(key)) {
        writer.copy(gguf, key)?;
    }
    match wanted {
        Some(format) => write_file_type(writer, format),
        None => Ok(()),
    }
}

/// The file's type as llama.cpp numbers it.
pub(super) fn write_file_type(writer: &mut GgufWriter, format: Format) -> Result<()> {
    let number = match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Bf16 => 32,
        Format::Q4_0 => 2,
        Format::Q8_0 => 7,
        other => unreachable!("{other:?} has no encoder"),
    };
    writer.u32(FILE_TYPE_KEY, number)?;
    if format.block_len() > 1 {
        writer.u32(VERSION_KEY, QUANTIZATION_VERSION)?;
    }
    Ok(())
}

/// Tells which tensors could not keep their format.
fn replaced(jobs: &[Job<'_>]) -> Vec<String> {
    let mut counts: BTreeMap<[&str; 2], usize> = BTreeMap::new();
    for job in jobs {
        if let Origin::Stored(stored) = job.from
            && stored.format != job.to
        {
            *counts.entry([stored.format.name(), job.to.name()]).or_default() += 1;
        }
    }
    let note = |([from, to], count): ([&str; 2], usize)| {
        format!("{count} merged tensors were {from}, which is not written, and are {to}")
    };
    counts.into_iter().map(note).collect()
}
