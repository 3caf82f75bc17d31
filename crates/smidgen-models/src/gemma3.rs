//! The gemma3 family, text part (arXiv 2503.19786): norms before and after attention and MLP,
//! norms of every query and key head, local layers with a window and a rotation of their own
//! beside global ones, an embedding scaled by sqrt(hidden), GELU-gated MLP.

use smidgen_graph::ops::Mlp;
use smidgen_graph::{
    Activation, Architecture, Block, BlockBuilder, LoraSpec, RopeShape, RopeStyle,
};
use smidgen_weights::{Gguf, GgufWriter, Optional};

use crate::config::{
    Decoder, Info, Norm, optional_size, position_divisor, write_position_divisor, write_size,
};
use crate::error::{Error, Result};
use crate::{DOWN, GATE, K, Model, O, Q, UP, V};

/// The rotation's base of local layers, which files do not carry.
pub(crate) const LOCAL_ROPE_BASE: f32 = 10_000.0;

/// Every sixth layer is global, where the file does not say otherwise.
pub(crate) const PATTERN: usize = 6;

/// The largest model, 62 layers, scales its scores by 1 / sqrt(hidden / heads).
const LARGEST_MODEL_LAYERS: usize = 62;

/// Kinds of layer, which are also the numbers of their tables of angles.
const GLOBAL: usize = 0;
const LOCAL: usize = 1;

/// The key of local layers' window.
const WINDOW_KEY: &str = "gemma3.attention.sliding_window";

/// The key of the number of layers from one global layer to the next.
const PATTERN_KEY: &str = "gemma3.attention.sliding_window_pattern";

#[derive(Debug)]
pub(crate) struct Gemma3 {
    config: Decoder,
    window: usize,
    pattern: usize,
    position_divisor: f32,
    scale: f32,
}

pub(crate) fn open(gguf: &Gguf) -> Result<Model> {
    let config = Decoder::read(gguf, "gemma3", Norm::Rms)?;
    let window = optional_size(gguf, WINDOW_KEY)?.ok_or_else(|| Error::Value {
        key: WINDOW_KEY.into(),
        value: "missing".into(),
        expected: "local layers have a window",
    })?;
    let pattern = optional_size(gguf, PATTERN_KEY)?.unwrap_or(PATTERN);
    let soft_cap = "gemma3.final_logit_softcapping";
    if let Some(value) = gguf.f32(soft_cap).optional()?.filter(|v| *v != 0.0) {
        let expected = "capped logits are not supported";
        return Err(Error::Value { key: soft_cap.into(), value: value.to_string(), expected });
    }
    let divisor = position_divisor(gguf, "gemma3")?;
    let blocks = Gemma3::new(config, window, divisor).with_pattern(pattern);
    Ok(Model { info: blocks.info(), blocks: Box::new(blocks) })
}

impl Gemma3 {
    /// The family's blocks of these sizes, every sixth layer global; there, positions are divided
    /// by `position_divisor`.
    pub fn new(config: Decoder, window: usize, position_divisor: f32) -> Self {
        let width = if config.layers == LARGEST_MODEL_LAYERS {
            config.hidden / config.heads
        } else {
            config.head_dim
        };
        let scale = 1.0 / (width as f32).sqrt();
        Self { config, window, pattern: PATTERN, position_divisor, scale }
    }

    /// The same with `pattern` layers from one global layer to the next.
    pub fn with_pattern(self, pattern: usize) -> Self {
        Self { pattern, ..self }
    }

    /// What callers ask.
    pub fn info(&self) -> Info {
        self.config.info("gemma3", false)
    }

    /// What scores are multiplied by.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Writes the keys that [`open`] reads.
    pub fn write(&self, gguf: &mut GgufWriter) -> smidgen_weights::Result<()> {
        self.config.write(gguf, "gemma3")?;
        write_size(gguf, WINDOW_KEY, self.window)?;
        write_size(gguf, PATTERN_KEY, self.pattern)?;
        write_position_divisor(gguf, "gemma3", self.position_divisor)
    }
}

impl Architecture for Gemma3 {
    fn layers(&self) -> usize {
        self.config.layers
    }

    fn layer_kind(&self, layer: usize) -> usize {
        if (layer + 1).is_multiple_of(self.pattern) { GLOBAL } else { LOCAL }
    }

    fn layer_prefix(&self, layer: usize) -> String {
        format!("blk.{layer}.")
    }

    fn hidden(&self) -> usize {
        self.config.hidden
    }

    fn rope_frequencies(&self) -> Vec<Vec<f32>> {
        let mut global = self.config.own_frequencies();
        global.iter_mut().for_each(|f| *f /= self.position_divisor);
        vec![global, self.config.frequencies(LOCAL_ROPE_BASE)]
    }

    fn embedding_block(&self) -> Block {
        self.config.embedding_block(Some((self.config.hidden as f32).sqrt()))
    }

    fn head_block(&self) -> Block {
        self.config.head_block()
    }

    fn layer_block(&self, kind: usize, lora: Option<&LoraSpec>, mlp_tile: usize) -> Block {
        let c = &self.config;
        let name = if kind == LOCAL { "local layer" } else { "global layer" };
        let mut b = BlockBuilder::new(name, lora, mlp_tile);
        let x = b.input(c.hidden);
        let n = b.rms_norm("attn_norm", x, "attn_norm.weight", c.hidden, c.eps);
        let q_proj = b.projection(Q, c.hidden, c.query_cols(), false);
        let k_proj = b.projection(K, c.hidden, c.key_cols(), false);
        let v_proj = b.projection(V, c.hidden, c.key_cols(), false);
        let o_proj = b.projection(O, c.query_cols(), c.hidden, false);
        let q = b.linear("q_proj", n, q_proj);
        let k = b.linear("k_proj", n, k_proj);
        let v = b.linear("v_proj", n, v_proj);
        let q = b.rms_norm("q_norm", q, "attn_q_norm.weight", c.head_dim, c.eps);
        let k = b.rms_norm("k_norm", k, "attn_k_norm.weight", c.head_dim, c.eps);
        let rope = RopeShape { table: kind, head_dim: c.head_dim, style: RopeStyle::Halves };
        let q = b.rope("q_rotated", q, rope);
        let k = b.rope("k_rotated", k, rope);
        let window = (kind == LOCAL).then_some(self.window);
        let mut shape = c.attention(window);
        shape.scale = self.scale;
        let o = b.attention("attention", q, k, v, shape);
        let o = b.linear("o_proj", o, o_proj);
        let o = b.rms_norm("attn_post", o, "post_attention_norm.weight", c.hidden, c.eps);
        let x = b.add("attn_residual", x, o);
        let n = b.rms_norm("ffn_norm", x, "ffn_norm.weight", c.hidden, c.eps);
        let mlp = Mlp {
            gate: b.projection(GATE, c.hidden, c.ffn, false),
            up: b.projection(UP, c.hidden, c.ffn, false),
            down: b.projection(DOWN, c.ffn, c.hidden, false),
            activation: Activation::GeluTanh,
        };
        let y = b.gated_mlp("mlp", n, mlp);
        let y = b.rms_norm("ffn_post", y, "post_ffw_norm.weight", c.hidden, c.eps);
        let y = b.add("output", x, y);
        b.finish(Some(y))
    }
}
