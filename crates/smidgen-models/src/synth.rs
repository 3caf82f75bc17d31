//! Models of true shapes with random weights: for measuring speed and memory, where only the sizes
//! matter.
//!
//! What is written is what the family opens: keys and tensors come from the family's own
//! configuration and blocks. Matrices, the embedding included, are Q4_0 with mean 0 and variance
//! 1 / columns, so that a product with a normed input has variance 1; norms are 1, but for the last
//! one, which keeps logits small; positions are F32: the loss of any text is ln(vocabulary) within some hundredths.

mod presets;
mod vocabulary;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use smidgen_graph::{Architecture, WeightSlot};
use smidgen_weights::{Format, GgufWriter, NewTensor, RandomTensors, TensorWriter};

pub use presets::Preset;

use crate::blocks::weights;
use crate::config::{Decoder, Norm};
use crate::error::{Error, Result};
use crate::gemma3::Gemma3;
use crate::opt::Opt;
use crate::qwen2::Qwen2;

/// Q4_0 blocks that are made at a time: 72 kB.
const CHUNK_BLOCKS: usize = 4096;
/// Every number of the final norm: the standard deviation of logits.
const FINAL_NORM: f32 = 0.125;
/// Biases are uniform within this of 0.
const BIAS_BOUND: f32 = 0.1;
/// The table of learned positions, whose rows are as large as the embedding's.
const POSITIONS: &str = "position_embd.weight";

/// The sizes of a model; [`Preset::shape`] gives those of published models.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// general.name.
    pub name: String,
    /// What kind of layers, and which tokenizer.
    pub family: Family,
    /// Layers.
    pub layers: usize,
    /// Numbers a token in the hidden state, a multiple of 32.
    pub hidden: usize,
    /// Width of the MLP's hidden layer, a multiple of 32.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of the query heads.
    pub kv_heads: usize,
    /// Columns of a head, even; those of all query heads are a multiple of 32.
    pub head_dim: usize,
    /// Rows of the embedding, which is the head too, and tokens of the tokenizer.
    pub vocabulary: usize,
    /// The longest sequence.
    pub context_length: usize,
}

/// A family, with what only its own models have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Family {
    /// qwen2, with byte-level BPE.
    Qwen2,
    /// gemma3, with SentencePiece BPE.
    Gemma3 {
        /// Positions that a local layer sees.
        window: usize,
        /// What positions of global layers are divided by.
        position_divisor: f32,
    },
    /// opt, with byte-level BPE.
    Opt,
}

/// The model of a shape, as its family has it.
enum Blocks {
    Qwen2(Qwen2),
    Gemma3(Gemma3),
    Opt(Opt),
}

impl Shape {
    /// Writes the model to `path`, under a temporary name beside it until it is complete, and gives
    /// the file's bytes. A seed gives one file, bit for bit. `progress` hears how many of the
    /// tensors' bytes are written, and of how many.
    ///
    /// # Errors
    /// The file can't be written; rows of a matrix that are no whole Q4_0 blocks; `cancel` was set.
    /// What was at `path` is then as it was.
    ///
    /// # Panics
    /// If the vocabulary has no room for the bytes and the special tokens of the family's
    /// tokenizer, or is larger than its scheme of spellings; if a size is 0 or above 2^24.
    pub fn write(
        &self,
        path: &Path,
        seed: u64,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<u64> {
        let blocks = self.blocks();
        let mut gguf = GgufWriter::create(path)?;
        blocks.write_keys(&mut gguf)?;
        match self.family {
            Family::Qwen2 | Family::Opt => {
                vocabulary::write_byte_level(&mut gguf, self.vocabulary)?
            }
            Family::Gemma3 { .. } => vocabulary::write_sentence_piece(&mut gguf, self.vocabulary)?,
        }
        let tensors = tensors(blocks.architecture());
        let len = |tensor: &NewTensor| tensor.byte_len().unwrap_or(0) as u64;
        let total = tensors.iter().map(len).sum();
        let out = gguf.tensors(&tensors)?;
        let random = RandomTensors::new(seed);
        let mut data = Data { out, random, cancel, progress, written: 0, total };
        for (number, tensor) in (0..).zip(&tensors) {
            data.tensor(number, tensor)?;
        }
        Ok(data.out.finish()?)
    }

    fn blocks(&self) -> Blocks {
        let config = self.config();
        match self.family {
            Family::Qwen2 => Blocks::Qwen2(Qwen2::new(config, 1.0)),
            Family::Gemma3 { window, position_divisor } => {
                Blocks::Gemma3(Gemma3::new(config, window, position_divisor))
            }
            Family::Opt => Blocks::Opt(Opt::new(config)),
        }
    }

    fn config(&self) -> Decoder {
        let (norm, eps, rope_base) = match self.family {
            Family::Qwen2 | Family::Gemma3 { .. } => (Norm::Rms, 1e-6, Some(1e6)),
            Family::Opt => (Norm::Layer, 1e-5, None),
        };
        Decoder {
            name: self.name.clone(),
            layers: self.layers,
            hidden: self.hidden,
            ffn: self.ffn,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            vocabulary: self.vocabulary,
            context_length: self.context_length,
            norm,
            eps,
            rope_base,
            tied: true,
        }
    }
}

impl Blocks {
    fn architecture(&self) -> &dyn Architecture {
        match self {
            Self::Qwen2(blocks) => blocks,
            Self::Gemma3(blocks) => blocks,
            Self::Opt(blocks) => blocks,
        }
    }

    fn write_keys(&self, gguf: &mut GgufWriter) -> smidgen_weights::Result<()> {
        match self {
            Self::Qwen2(blocks) => blocks.write(gguf),
            Self::Gemma3(blocks) => blocks.write(gguf),
            Self::Opt(blocks) => blocks.write(gguf),
        }
    }
}

/// Every tensor that the blocks name: matrices as Q4_0, vectors and positions as F32.
fn tensors(model: &dyn Architecture) -> Vec<NewTensor> {
    let tensor = |slot: WeightSlot| {
        let (name, rows, cols) = (slot.tensor, slot.rows as u64, slot.cols as u64);
        match rows {
            1 => NewTensor { name, format: Format::F32, shape: vec![cols] },
            _ if name == POSITIONS => {
                NewTensor { name, format: Format::F32, shape: vec![cols, rows] }
            }
            _ => NewTensor { name, format: Format::Q4_0, shape: vec![cols, rows] },
        }
    };
    weights(model).into_iter().map(tensor).collect()
}

/// The tensors' bytes on their way into the file.
struct Data<'a> {
    out: TensorWriter,
    random: RandomTensors,
    cancel: &'a AtomicBool,
    progress: &'a mut dyn FnMut(u64, u64),
    written: u64,
    total: u64,
}

impl Data<'_> {
    /// Writes a tensor. Its number in the list is that of its random numbers.
    fn tensor(&mut self, number: u64, tensor: &NewTensor) -> Result<()> {
        let cols = tensor.shape[0] as usize;
        let deviation = 1.0 / (cols as f32).sqrt();
        if tensor.name == POSITIONS {
            return self.positions(number, cols, tensor.shape[1], deviation);
        }
        if tensor.format == Format::F32 {
            let mut vector = vec![1.0; cols];
            if tensor.name == "output_norm.weight" {
                vector.fill(FINAL_NORM);
            } else if tensor.name.ends_with(".bias") {
                self.random.uniform(number, 0, BIAS_BOUND, &mut vector);
            }
            return self.numbers(&vector);
        }
        let block_bytes = Format::Q4_0.block_bytes();
        let blocks = cols / Format::Q4_0.block_len() * tensor.shape[1] as usize;
        let mut chunk = vec![0; CHUNK_BLOCKS * block_bytes];
        for first in (0..blocks).step_by(CHUNK_BLOCKS) {
            let chunk = &mut chunk[..CHUNK_BLOCKS.min(blocks - first) * block_bytes];
            self.random.q4_0(number, first as u64, deviation, chunk);
            self.put(chunk)?;
        }
        Ok(())
    }

    /// Writes a table of `rows` rows of uniform numbers.
    fn positions(&mut self, number: u64, cols: usize, rows: u64, deviation: f32) -> Result<()> {
        let bound = deviation * 3.0f32.sqrt();
        let mut row = vec![0.0; cols];
        for r in 0..rows {
            self.random.uniform(number, r * cols as u64, bound, &mut row);
            self.numbers(&row)?;
        }
        Ok(())
    }

    fn numbers(&mut self, numbers: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.put(&bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        self.out.write(bytes)?;
        self.written += bytes.len() as u64;
        (self.progress)(self.written, self.total);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
