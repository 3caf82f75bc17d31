//! GGUF files, read through a map and written as a stream, checkpoints' folders, and PEFT adapter
//! folders.
//!
//! Whatever a file holds, reading it ends in a value or an [`Error`] that names the file: lengths
//! are checked before they are used to allocate or to index.

#![deny(unsafe_code)]

mod adapter;
mod checkpoint;
mod error;
mod gguf;
mod json;
#[allow(unsafe_code)] // Mapping files and advising the system on the map's pages.
mod mapped;
mod new_file;
mod random;
mod safetensors;
mod tensor_file;

pub use adapter::{
    Adapter, AdapterConfig, AdapterWriter, BaseModel, Factor, LoraShape, TargetModules, gguf_row,
    gguf_rows_to_hf, hf_row, hf_rows_to_gguf, put_in_place,
};
pub use checkpoint::{Checkpoint, CheckpointTensor};
pub use error::{Error, Optional, Result};
pub use gguf::{
    Fingerprint, Gguf, GgufWriter, NewTensor, NoFingerprint, Strings, Tensor, TensorWriter,
};
pub use json::read as read_json;
pub use mapped::{Mapped, release_free_heap};
pub use new_file::NewFile;
pub use random::RandomTensors;
pub use safetensors::SafetensorsWriter;
pub use smidgen_kernels::Format;
pub use tensor_file::TensorFile;
