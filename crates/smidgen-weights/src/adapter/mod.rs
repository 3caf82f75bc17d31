//! LoRA adapters as PEFT folders: `adapter_config.json` and `adapter_model.safetensors`, with our
//! record of the base model beside them in `smidgen/base.json`.
//!
//! Tensors are read and written one at a time; an adapter is never whole in memory here.

mod base;
mod config;
mod read;
mod rows;
mod write;

pub use base::BaseModel;
pub use config::{AdapterConfig, TargetModules};
pub use read::Adapter;
pub use rows::{gguf_row, gguf_rows_to_hf, hf_row, hf_rows_to_gguf};
pub use write::{AdapterWriter, put_in_place};

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What PEFT puts before the path of a module in the model.
const KEY_PREFIX: &str = "base_model.model.";

/// One of the two matrices of a LoRA module, whose product B A is added to the base's weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Factor {
    /// `lora_A`, `[rank, inputs]`.
    A,
    /// `lora_B`, `[outputs, rank]`.
    B,
}

impl Factor {
    const ALL: [Self; 2] = [Self::A, Self::B];

    /// What stands after the module's path in a key.
    fn key_suffix(self) -> &'static str {
        match self {
            Self::A => ".lora_A.weight",
            Self::B => ".lora_B.weight",
        }
    }

    /// The key of this matrix of the module with that path, as PEFT writes it.
    fn key(self, module: &str) -> String {
        format!("{KEY_PREFIX}{module}{}", self.key_suffix())
    }
}

/// The sizes of a LoRA module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoraShape {
    /// Rows of A and columns of B.
    pub rank: usize,
    /// Columns of A: inputs of the base's projection.
    pub inputs: usize,
    /// Rows of B: outputs of the base's projection.
    pub outputs: usize,
}

impl LoraShape {
    /// Rows and columns of one of the matrices.
    pub fn dims(self, factor: Factor) -> [usize; 2] {
        match factor {
            Factor::A => [self.rank, self.inputs],
            Factor::B => [self.outputs, self.rank],
        }
    }
}
