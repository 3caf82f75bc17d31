//! Models and adapters as other files: an adapter as a GGUF LoRA, a model with smaller numbers, a
//! model with an adapter merged into it.
//!
//! Tensors are read, changed and written in bands of rows, past the map: what it takes is a few
//! megabytes, whatever the model's size. A file appears under its name when it is complete.

mod checkpoint;
mod export;
mod job;
mod merge;
mod recode;
mod rewrite;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use smidgen_kernels::Format;
use smidgen_weights::{Gguf, Optional};

pub use export::export_gguf;
pub(crate) use export::tensor_name;
pub(crate) use recode::{RowOrder, Stored, row_bytes};

/// Rewrites models: [`Convert::quantize`], [`Convert::quantize_checkpoint`], [`Convert::fuse`],
/// [`Convert::fuse_safetensors`].
pub struct Convert<'a> {
    /// Threads; what is written does not depend on them.
    pub threads: usize,
    /// Ends the work where it is set; what was at the new file's name is then as it was.
    pub cancel: &'a AtomicBool,
    /// Hears how many of the tensors' bytes are written, and of how many.
    pub progress: &'a mut dyn FnMut(u64, u64),
}

/// A model that was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    /// Its tensors, in the file's order.
    pub tensors: Vec<ConvertedTensor>,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// What is worth telling.
    pub notes: Vec<String>,
}

/// A tensor that was written.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvertedTensor {
    /// Its name in the file.
    pub name: String,
    /// Size of each dimension, the row length first.
    pub shape: Vec<u64>,
    /// How its numbers were stored.
    pub from: Format,
    /// How they are stored now.
    pub to: Format,
    /// Bytes that they took.
    pub bytes_before: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Root of the sum of squared differences between what was to be written and what stands in
    /// the file, over that of the squares; 0 where nothing was lost.
    pub relative_error: f64,
}

impl Converted {
    /// Bytes that the tensors took.
    pub fn bytes_before(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes_before).sum()
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes).sum()
    }
}

/// What a GGUF file holds, by its `general.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufKind {
    /// A model, which needs no `general.type`.
    Model,
    /// An adapter.
    Adapter,
}

impl GgufKind {
    /// What the file at `path` holds; `None` where it is no sound GGUF file or of another kind.
    pub fn of(path: &Path) -> Option<Self> {
        let gguf = Gguf::open(path).ok()?;
        match gguf.str("general.type").optional().ok()? {
            None | Some("model") => Some(Self::Model),
            Some("adapter") => Some(Self::Adapter),
            Some(_) => None,
        }
    }
}
