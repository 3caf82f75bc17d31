//! A checkpoint of `transformers` as a GGUF file.

use std::path::Path;

use smidgen_kernels::Format;
use smidgen_models::checkpoint::{Convertible, ConvertibleTensor, Source};
use smidgen_weights::{Checkpoint, GgufWriter, NewTensor};

use super::job::{Job, Origin, fitting, misfits};
use super::recode::{RowOrder, Stored};
use super::rewrite::write_file_type;
use super::{Convert, Converted};
use crate::error::{Error, Result};

impl Convert<'_> {
    /// Writes the model of a folder as `transformers` saves it (config.json, safetensors in one
    /// file or in shards, tokenizer.json) to the GGUF file `out`, with its matrices as `to`.
    /// Vectors become F32, and matrices whose rows are no whole blocks F16.
    ///
    /// # Errors
    /// A folder that can't be read or holds no model or tokenizer of a known kind; those of
    /// [`Convert::quantize`].
    ///
    /// # Panics
    /// If `to` has no encoder.
    pub fn quantize_checkpoint(
        &mut self,
        folder: &Path,
        to: Format,
        out: &Path,
    ) -> Result<Converted> {
        assert!(to.has_encoder(), "{to:?} can be written");
        let checkpoint = Checkpoint::open(folder)?;
        let model = Convertible::new(&checkpoint).map_err(Error::in_file(folder))?;
        let jobs: Vec<Job<'_>> = model.tensors().iter().map(|tensor| job(tensor, to)).collect();
        let mut notes = misfits(&jobs, to);
        notes.extend(model.notes().iter().cloned());
        let mut writer = GgufWriter::create(out)?;
        model.write_metadata(&mut writer)?;
        smidgen_weights::release_free_heap();
        write_file_type(&mut writer, to)?;
        let listed: Vec<NewTensor> = jobs.iter().map(Job::listed).collect();
        let mut writer = writer.tensors(&listed)?;
        let tensors = self.run(jobs, None, &mut |bytes| writer.write(bytes))?;
        Ok(Converted { tensors, file_bytes: writer.finish()?, notes })
    }
}

fn job<'a>(tensor: &'a ConvertibleTensor<'a>, to: Format) -> Job<'a> {
    let ConvertibleTensor { rows, cols, .. } = *tensor;
    let shape = if rows == 1 { vec![cols as u64] } else { vec![cols as u64, rows as u64] };
    let (source, from, added) = match &tensor.source {
        Source::Made(numbers) => (&tensor.name, Origin::Made(numbers), 0.0),
        Source::Stored(found, place) => {
            let order = place.heads.map_or(RowOrder::AsStored, RowOrder::IntoGguf);
            let (file, format, start) = (found.file, found.format, found.start);
            let stored = Stored { file, format, start, rows, cols, order };
            (&place.name, Origin::Stored(stored), place.added)
        }
    };
    let (name, source, to) = (tensor.name.clone(), source.clone(), fitting(to, &shape));
    Job { name, source, shape, from, to, added }
}
