//! The llama family (arXiv 2302.13971): pre-norms, rotation of interleaved pairs as GGUF stores
//! the rows of q and k, grouped heads, SiLU-gated MLP. Llama 3's frequency factors are read
//! where the file has them.

use smidgen_graph::ops::Mlp;
use smidgen_graph::{
    Activation, Architecture, Block, BlockBuilder, LoraSpec, RopeShape, RopeStyle,
};
use smidgen_weights::{Gguf, GgufWriter, Optional};

use crate::config::{Decoder, Info, Norm, position_divisor, write_position_divisor, write_size};
use crate::error::{Error, Result};
use crate::{DOWN, GATE, K, Model, O, Q, UP, V};

/// The tensor of frequencies' factors.
pub(crate) const FACTORS: &str = "rope_freqs.weight";

#[derive(Debug)]
pub(crate) struct Llama {
    config: Decoder,
    position_divisor: f32,
    /// By what each frequency is divided further, one for every pair of a head.
    factors: Option<Vec<f32>>,
}

pub(crate) fn open(gguf: &Gguf) -> Result<Model> {
    let config = Decoder::read(gguf, "llama", Norm::Rms)?;
    let divisor = position_divisor(gguf, "llama")?;
    let factors = gguf.vector_f32(FACTORS).optional()?;
    if let Some(factors) = &factors {
        let fits = factors.len() == config.head_dim / 2 && factors.iter().all(|f| *f > 0.0);
        if !fits {
            return Err(Error::Value {
                key: FACTORS.into(),
                value: format!("{} numbers", factors.len()),
                expected: "there is one positive factor for every pair of a head",
            });
        }
    }
    let blocks = Llama::new(config, divisor, factors);
    Ok(Model { info: blocks.info(), blocks: Box::new(blocks) })
}

impl Llama {
    /// The family's blocks of these sizes. Positions are divided by `position_divisor`, and
    /// frequencies by `factors`, where there are some, one for every pair of a head.
    pub fn new(config: Decoder, position_divisor: f32, factors: Option<Vec<f32>>) -> Self {
        Self { config, position_divisor, factors }
    }

    /// Writes the keys that [`open`] reads; factors are a tensor.
    pub fn write(&self, gguf: &mut GgufWriter) -> smidgen_weights::Result<()> {
        self.config.write(gguf, "llama")?;
        write_size(gguf, "llama.rope.dimension_count", self.config.head_dim)?;
        write_position_divisor(gguf, "llama", self.position_divisor)
    }

    /// What callers ask.
    pub fn info(&self) -> Info {
        self.config.info("llama", true)
    }

    /// By what frequencies are divided beside the position's divisor.
    pub fn factors(&self) -> Option<&[f32]> {
        self.factors.as_deref()
    }
}

impl Architecture for Llama {
    fn layers(&self) -> usize {
        self.config.layers
    }

    fn layer_kind(&self, _: usize) -> usize {
        0
    }

    fn layer_prefix(&self, layer: usize) -> String {
        format!("blk.{layer}.")
    }

    fn other_tensors(&self) -> &[&str] {
        &[FACTORS]
    }

    fn hidden(&self) -> usize {
        self.config.hidden
    }

    fn rope_frequencies(&self) -> Vec<Vec<f32>> {
        let mut frequencies = self.config.own_frequencies();
        frequencies.iter_mut().for_each(|f| *f /= self.position_divisor);
        if let Some(factors) = &self.factors {
            frequencies.iter_mut().zip(factors).for_each(|(f, factor)| *f /= factor);
        }
        vec![frequencies]
    }

    fn embedding_block(&self) -> Block {
        self.config.embedding_block(None)
    }

    fn head_block(&self) -> Block {
        self.config.head_block()
    }

    fn layer_block(&self, _: usize, lora: Option<&LoraSpec>, mlp_tile: usize) -> Block {
        let c = &self.config;
        let mut b = BlockBuilder::new("layer", lora, mlp_tile);
        let x = b.input(c.hidden);
        let n = b.rms_norm("attn_norm", x, "attn_norm.weight", c.hidden, c.eps);
        let q_proj = b.projection(Q, c.hidden, c.query_cols(), false);
        let k_proj = b.projection(K, c.hidden, c.key_cols(), false);
        let v_proj = b.projection(V, c.hidden, c.key_cols(), false);
        let o_proj = b.projection(O, c.query_cols(), c.hidden, false);
        let q = b.linear("q_proj", n, q_proj);
        let k = b.linear("k_proj", n, k_proj);
        let v = b.linear("v_proj", n, v_proj);
        let rope = RopeShape { table: 0, head_dim: c.head_dim, style: RopeStyle::Interleaved };
        let q = b.rope("q_rotated", q, rope);
        let k = b.rope("k_rotated", k, rope);
        let o = b.attention("attention", q, k, v, c.attention(None));
        let o = b.linear("o_proj", o, o_proj);
        let x = b.add("attn_residual", x, o);
        let n = b.rms_norm("ffn_norm", x, "ffn_norm.weight", c.hidden, c.eps);
        let mlp = Mlp {
            gate: b.projection(GATE, c.hidden, c.ffn, false),
            up: b.projection(UP, c.hidden, c.ffn, false),
            down: b.projection(DOWN, c.ffn, c.hidden, false),
            activation: Activation::Silu,
        };
        let y = b.gated_mlp("mlp", n, mlp);
        let y = b.add("output", x, y);
        b.finish(Some(y))
    }
}
