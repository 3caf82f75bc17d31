//! Fine-tune a language model inside a memory budget you name.
#![forbid(unsafe_code)]
pub use smidgen_train::*;
