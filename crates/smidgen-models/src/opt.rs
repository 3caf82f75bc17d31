//! The opt family (arXiv 2205.01068), of the sizes that norm before attention and MLP: LayerNorm,
//! learned positions, biases on all projections, an MLP of two projections with a rectifier.
//!
//! llama.cpp has no such architecture, so files of it have a layout of our own: keys as GGUF has
//! them for others, under `opt.`, and the tensors' names of its GPT-2.

use smidgen_graph::{Architecture, Block, BlockBuilder, LoraSpec, Site};
use smidgen_weights::{Gguf, GgufWriter};

use crate::config::{Decoder, Info, Norm};
use crate::error::Result;
use crate::{K, Model, Q, V};

/// Rows of the table of positions before that of the first position.
pub(crate) const FIRST_POSITION: usize = 2;

const OUT: Site = Site { module: "self_attn.out_proj", tensor: "attn_output" };
const FC1: Site = Site { module: "fc1", tensor: "ffn_up" };
const FC2: Site = Site { module: "fc2", tensor: "ffn_down" };

/// The projections of a layer, in its order.
pub(crate) const SITES: [Site; 6] = [Q, K, V, OUT, FC1, FC2];

#[derive(Debug)]
pub(crate) struct Opt {
    config: Decoder,
}

pub(crate) fn open(gguf: &Gguf) -> Result<Model> {
    let blocks = Opt::new(Decoder::read(gguf, "opt", Norm::Layer)?);
    Ok(Model { info: blocks.info(), blocks: Box::new(blocks) })
}

impl Opt {
    /// The family's blocks of these sizes.
    pub fn new(config: Decoder) -> Self {
        Self { config }
    }

    /// What callers ask.
    pub fn info(&self) -> Info {
        Info {
            positions: Some(self.config.context_length),
            sites: &SITES,
            layers_path: "model.decoder.layers",
            ..self.config.info("opt", false)
        }
    }

    /// Writes the keys that [`open`] reads.
    pub fn write(&self, gguf: &mut GgufWriter) -> smidgen_weights::Result<()> {
        self.config.write(gguf, "opt")
    }
}

impl Architecture for Opt {
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
        vec![]
    }

    fn embedding_block(&self) -> Block {
        let c = &self.config;
        let mut b = BlockBuilder::new("embedding", None, smidgen_graph::GRAIN);
        let x = b.embedding("token_embd.weight", c.vocabulary, c.hidden);
        let (table, count) = ("position_embd.weight", c.context_length);
        let x = b.positions("placed embedding", x, table, FIRST_POSITION, count);
        b.finish(Some(x))
    }

    fn head_block(&self) -> Block {
        self.config.head_block()
    }

    fn layer_block(&self, _: usize, lora: Option<&LoraSpec>, mlp_tile: usize) -> Block {
        let c = &self.config;
        let mut b = BlockBuilder::new("layer", lora, mlp_tile);
        let x = b.input(c.hidden);
        let n = b.layer_norm("attn_norm", x, "attn_norm", c.eps);
        let q_proj = b.projection(Q, c.hidden, c.query_cols(), true);
        let k_proj = b.projection(K, c.hidden, c.key_cols(), true);
        let v_proj = b.projection(V, c.hidden, c.key_cols(), true);
        let out_proj = b.projection(OUT, c.query_cols(), c.hidden, true);
        let q = b.linear("q_proj", n, q_proj);
        let k = b.linear("k_proj", n, k_proj);
        let v = b.linear("v_proj", n, v_proj);
        let o = b.attention("attention", q, k, v, c.attention(None));
        let o = b.linear("out_proj", o, out_proj);
        let x = b.add("attn_residual", x, o);
        let n = b.layer_norm("ffn_norm", x, "ffn_norm", c.eps);
        let fc1 = b.projection(FC1, c.hidden, c.ffn, true);
        let fc2 = b.projection(FC2, c.ffn, c.hidden, true);
        let y = b.plain_mlp("mlp", n, fc1, fc2);
        let y = b.add("output", x, y);
        b.finish(Some(y))
    }
}
