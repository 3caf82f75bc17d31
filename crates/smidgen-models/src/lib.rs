//! Model families: what a GGUF file's metadata says of a model, and its blocks as graphs.
//!
//! A family is one file: its configuration, its tensors' names and its blocks. Nothing here
//! knows a training method or an optimiser. To add one, write its file and give it a line in
//! [`open`].

#![forbid(unsafe_code)]

mod blocks;
pub mod checkpoint;
mod config;
mod error;
mod gemma3;
mod llama;
mod opt;
mod qwen2;
pub mod synth;

pub use config::Info;
pub use error::{Error, Result};

use smidgen_graph::{Architecture, Site};
use smidgen_weights::Gguf;

/// The projections of a layer that an adapter may sit on, in the order of a layer: those of all
/// families whose MLP is gated.
const SITES: [Site; 7] = [Q, K, V, O, GATE, UP, DOWN];

/// The projections of each kind of layer that families have, of which [`Info::sites`] is one list.
pub const ALL_SITES: [&[Site]; 2] = [&SITES, &opt::SITES];

/// The families that [`open`] knows.
const FAMILIES: &str = "llama, qwen2, gemma3, opt";

pub(crate) const Q: Site = Site { module: "self_attn.q_proj", tensor: "attn_q" };
pub(crate) const K: Site = Site { module: "self_attn.k_proj", tensor: "attn_k" };
pub(crate) const V: Site = Site { module: "self_attn.v_proj", tensor: "attn_v" };
pub(crate) const O: Site = Site { module: "self_attn.o_proj", tensor: "attn_output" };
pub(crate) const GATE: Site = Site { module: "mlp.gate_proj", tensor: "ffn_gate" };
pub(crate) const UP: Site = Site { module: "mlp.up_proj", tensor: "ffn_up" };
pub(crate) const DOWN: Site = Site { module: "mlp.down_proj", tensor: "ffn_down" };

/// A model of a known family.
#[derive(Debug)]
pub struct Model {
    /// What callers ask of it.
    pub info: Info,
    /// Its blocks.
    pub blocks: Box<dyn Architecture>,
}

/// Reads the metadata of a model file.
///
/// # Errors
/// A family that is not known, or metadata that is missing or makes no sense.
pub fn open(gguf: &Gguf) -> Result<Model> {
    match gguf.str("general.architecture")? {
        "llama" => llama::open(gguf),
        "qwen2" => qwen2::open(gguf),
        "gemma3" => gemma3::open(gguf),
        "opt" => opt::open(gguf),
        other => Err(Error::Family { name: other.to_owned(), known: FAMILIES }),
    }
}
