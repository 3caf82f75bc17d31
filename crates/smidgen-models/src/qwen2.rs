//! The qwen2 family (arXiv 2407.10671): as llama, with biases on q, k and v, and pairs rotated as
//! halves of a head.

use smidgen_graph::ops::Mlp;
use smidgen_graph::{
    Activation, Architecture, Block, BlockBuilder, LoraSpec, RopeShape, RopeStyle,
};
use smidgen_weights::{Gguf, GgufWriter};

use crate::config::{Decoder, Info, Norm, position_divisor, write_position_divisor};
use crate::error::Result;
use crate::{DOWN, GATE, K, Model, O, Q, UP, V};

#[derive(Debug)]
pub(crate) struct Qwen2 {
    config: Decoder,
    position_divisor: f32,
}

pub(crate) fn open(gguf: &Gguf) -> Result<Model> {
    let config = Decoder::read(gguf, "qwen2", Norm::Rms)?;
    let position_divisor = position_divisor(gguf, "qwen2")?;
    let blocks = Qwen2::new(config, position_divisor);
    Ok(Model { info: blocks.info(), blocks: Box::new(blocks) })
}

impl Qwen2 {
    /// The family's blocks of these sizes; positions are divided by `position_divisor`.
    pub fn new(config: Decoder, position_divisor: f32) -> Self {
        Self { config, position_divisor }
    }

    /// What callers ask.
    pub fn info(&self) -> Info {
        self.config.info("qwen2", false)
    }

    /// Writes the keys that [`open`] reads.
    pub fn write(&self, gguf: &mut GgufWriter) -> smidgen_weights::Result<()> {
        self.config.write(gguf, "qwen2")?;
        write_position_divisor(gguf, "qwen2", self.position_divisor)
    }
}

impl Architecture for Qwen2 {
    fn layers(&self) -> usize {
        self.config.layers
    }

    fn layer_kind(&self, _: usize) -> usize {
        0
    }

    fn layer_prefix(&self, layer: usize) -> String {
        format!("blk.{layer}.")
    }

    fn hidden(&self) -> usize {
        self.config.hidden
    }

    fn rope_frequencies(&self) -> Vec<Vec<f32>> {
        let mut frequencies = self.config.own_frequencies();
        frequencies.iter_mut().for_each(|f| *f /= self.position_divisor);
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
        let q_proj = b.projection(Q, c.hidden, c.query_cols(), true);
        let k_proj = b.projection(K, c.hidden, c.key_cols(), true);
        let v_proj = b.projection(V, c.hidden, c.key_cols(), true);
        let o_proj = b.projection(O, c.query_cols(), c.hidden, false);
        let q = b.linear("q_proj", n, q_proj);
        let k = b.linear("k_proj", n, k_proj);
        let v = b.linear("v_proj", n, v_proj);
        let rope = RopeShape { table: 0, head_dim: c.head_dim, style: RopeStyle::Halves };
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
