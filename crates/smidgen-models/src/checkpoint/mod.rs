//! Checkpoints of `transformers` as GGUF files: which family, which keys, which tensor becomes
//! which.
//!
//! What is written is what the family opens: keys and tensors come from its own configuration and
//! blocks. A GGUF file differs from a checkpoint in names; in the order of the rows of llama's q
//! and k (see [`Info::permuted_heads`]); and in gemma3's norms, which are stored as 1 + w.

mod config;
mod names;
mod tokenizer;

use std::collections::BTreeSet;

use smidgen_weights::{Checkpoint, CheckpointTensor, GgufWriter};

use crate::blocks::weights;
use crate::config::Info;
use crate::error::{Error, Result};
use crate::llama::FACTORS;
use config::Family;

pub use names::{Place, place};

/// A checkpoint that can be written as a GGUF file of a known family.
#[derive(Debug)]
pub struct Convertible<'a> {
    checkpoint: &'a Checkpoint,
    family: Family,
    info: Info,
    tensors: Vec<ConvertibleTensor<'a>>,
    notes: Vec<String>,
}

/// A tensor on its way from a checkpoint to a GGUF file.
#[derive(Clone, Debug)]
pub struct ConvertibleTensor<'a> {
    /// Its name in the GGUF file.
    pub name: String,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Numbers in a row.
    pub cols: usize,
    /// Where its numbers come from.
    pub source: Source<'a>,
}

/// Where a tensor's numbers come from.
#[derive(Clone, Debug)]
pub enum Source<'a> {
    /// A tensor of the checkpoint, and how it is held there.
    Stored(CheckpointTensor<'a>, Place),
    /// Numbers that the configuration gives.
    Made(Vec<f32>),
}

impl<'a> Convertible<'a> {
    /// Reads the configuration, and finds every tensor of the family's blocks.
    ///
    /// # Errors
    /// A family or variant that is not known; tensors that lack, have another shape or that the
    /// family does not have.
    pub fn new(checkpoint: &'a Checkpoint) -> Result<Self> {
        let prefix = names::prefix(checkpoint)?;
        let family = Family::read(checkpoint, prefix.has_head(checkpoint))?;
        let info = family.info();
        let (mut tensors, mut used) = (Vec::new(), BTreeSet::new());
        for slot in weights(family.architecture()) {
            let (name, rows, cols) = (slot.tensor, slot.rows, slot.cols);
            let place = prefix.place(&info, &name).expect("blocks name no factors");
            used.insert(place.name.clone());
            let source = Source::Stored(find(checkpoint, &place.name, [rows, cols])?, place);
            tensors.push(ConvertibleTensor { name, rows, cols, source });
        }
        if let Some(factors) = family.rope_factors() {
            let (name, cols) = (FACTORS.to_owned(), factors.len());
            let source = Source::Made(factors.to_vec());
            tensors.push(ConvertibleTensor { name, rows: 1, cols, source });
        }
        let notes = prefix.check_rest(checkpoint, &used)?;
        Ok(Self { checkpoint, family, info, tensors, notes })
    }

    /// The tensors, in the order of the model.
    pub fn tensors(&self) -> &[ConvertibleTensor<'a>] {
        &self.tensors
    }

    /// What is worth telling.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Writes all metadata but the file's type: the model's, then the tokenizer's.
    ///
    /// # Errors
    /// A tokenizer that can't be read or is of no known kind; the file can't be written.
    pub fn write_metadata(&self, gguf: &mut GgufWriter) -> Result<()> {
        self.family.write(gguf)?;
        // Where neither of the tokenizer's files says so.
        let adds_bos = self.info.family == "gemma3";
        tokenizer::write(self.checkpoint, adds_bos, self.info.vocabulary, gguf)
    }
}

/// A tensor of the checkpoint that must be there in this shape.
fn find<'a>(
    checkpoint: &'a Checkpoint,
    name: &str,
    [rows, cols]: [usize; 2],
) -> Result<CheckpointTensor<'a>> {
    let wrong = |what: String| Error::Checkpoint { path: checkpoint.folder().to_owned(), what };
    let found = checkpoint.tensor(name)?;
    let found = found.ok_or_else(|| wrong(format!("there is no tensor {name}")))?;
    let fits = match *found.shape {
        [n] => rows == 1 && n == cols,
        [outputs, inputs] => [outputs, inputs] == [rows, cols],
        _ => false,
    };
    if fits {
        return Ok(found);
    }
    let shape = found.shape;
    Err(wrong(format!("tensor {name} is {shape:?}; {rows} x {cols} is what config.json says")))
}
