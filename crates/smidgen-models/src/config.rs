//! What all decoder families have in common: sizes read from the metadata and checked.

use smidgen_graph::{AttentionShape, Block, BlockBuilder, Site};
use smidgen_weights::{Gguf, GgufWriter, Optional};

use crate::error::{Error, Result};

/// What callers ask of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// general.name, or the file's family where it has none.
    pub name: String,
    /// general.architecture.
    pub family: &'static str,
    /// Layers.
    pub layers: usize,
    /// Numbers a token in the hidden state.
    pub hidden: usize,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// The longest sequence that the model was trained for.
    pub context_length: usize,
    /// Numbers in a layer's keys for one position.
    pub key_cols: usize,
    /// Positions that a token may have; none where any can be rotated to.
    pub positions: Option<usize>,
    /// The projections of a layer that an adapter may sit on, in the order of a layer.
    pub sites: &'static [Site],
    /// What checkpoints' names of a layer begin with, before its number: `model.layers`.
    pub layers_path: &'static str,
    /// Rows of q and k lie in GGUF's order for interleaved rotation, not in the checkpoint's:
    /// the number of query and of key heads. None where the orders are the same.
    pub permuted_heads: Option<(usize, usize)>,
}

impl Info {
    /// Heads by which a site's output rows are permuted against the checkpoint's order.
    pub fn permutation(&self, site: Site) -> Option<usize> {
        let (heads, kv_heads) = self.permuted_heads?;
        match site {
            crate::Q => Some(heads),
            crate::K => Some(kv_heads),
            _ => None,
        }
    }
}

/// The most columns of a head: what attention's scratch has room for.
const MAX_HEAD_DIM: usize = 1024;

/// Sizes of a decoder.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    pub name: String,
    pub layers: usize,
    pub hidden: usize,
    pub ffn: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocabulary: usize,
    pub context_length: usize,
    pub norm: Norm,
    pub eps: f32,
    /// Of the rotation's frequencies; none where positions are learned.
    pub rope_base: Option<f32>,
    /// Whether the head is the embedding.
    pub tied: bool,
}

/// What stands before attention, before the MLP and before the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norm {
    /// RMSNorm, in families that rotate queries and keys.
    Rms,
    /// LayerNorm with a bias, in those that learn positions.
    Layer,
}

impl Norm {
    /// The key of eps, without the family.
    fn eps_key(self) -> &'static str {
        match self {
            Self::Rms => "attention.layer_norm_rms_epsilon",
            Self::Layer => "attention.layer_norm_epsilon",
        }
    }
}

/// No model has a size beyond this; products of two such sizes fit 64 bits with room.
pub(crate) const LARGEST: usize = 1 << 24;

impl Decoder {
    /// Reads the keys that begin with `family`.
    pub fn read(gguf: &Gguf, family: &'static str, norm: Norm) -> Result<Self> {
        let size = |name: &str| size(gguf, &format!("{family}.{name}"));
        let hidden = size("embedding_length")?;
        let heads = size("attention.head_count")?;
        let kv_heads = optional_size(gguf, &format!("{family}.attention.head_count_kv"))?;
        let kv_heads = kv_heads.unwrap_or(heads);
        let head_dim = optional_size(gguf, &format!("{family}.attention.key_length"))?;
        let embedding = gguf.tensor("token_embd.weight")?;
        let rope_base = match norm {
            Norm::Rms => gguf.f32(&format!("{family}.rope.freq_base")).optional()?,
            Norm::Layer => None,
        };
        let decoder = Self {
            name: gguf.str("general.name").optional()?.unwrap_or(family).to_owned(),
            layers: size("block_count")?,
            hidden,
            ffn: size("feed_forward_length")?,
            heads,
            kv_heads,
            head_dim: head_dim.unwrap_or(hidden / heads),
            vocabulary: embedding.rows,
            context_length: size("context_length")?,
            norm,
            eps: gguf.f32(&format!("{family}.{}", norm.eps_key()))?,
            rope_base: (norm == Norm::Rms).then(|| rope_base.unwrap_or(10_000.0)),
            tied: gguf.tensor("output.weight").optional()?.is_none(),
        };
        decoder.check_sizes(family)?;
        decoder.check_keys(gguf, family)?;
        Ok(decoder)
    }

    /// Writes the keys that [`Decoder::read`] reads, but for those that the tensors tell.
    pub fn write(&self, gguf: &mut GgufWriter, family: &str) -> smidgen_weights::Result<()> {
        gguf.str("general.architecture", family)?;
        gguf.str("general.type", "model")?;
        gguf.str("general.name", &self.name)?;
        for (name, size) in [
            ("block_count", self.layers),
            ("context_length", self.context_length),
            ("embedding_length", self.hidden),
            ("feed_forward_length", self.ffn),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
        ] {
            write_size(gguf, &format!("{family}.{name}"), size)?;
        }
        gguf.f32(&format!("{family}.{}", self.norm.eps_key()), self.eps)?;
        match self.rope_base {
            Some(base) => gguf.f32(&format!("{family}.rope.freq_base"), base),
            None => Ok(()),
        }
    }

    /// Refuses sizes that make no model; `family` begins the names of their keys.
    pub fn check_sizes(&self, family: &str) -> Result<()> {
        let wrong = |name: &str, value: String, expected| {
            Err(Error::Value { key: format!("{family}.{name}"), value, expected })
        };
        let sizes = [
            ("embedding_length", self.hidden),
            ("feed_forward_length", self.ffn),
            ("vocab_size", self.vocabulary),
        ];
        if let Some((name, value)) = sizes.into_iter().find(|(_, value)| *value < 2) {
            return wrong(name, value.to_string(), "no model has a size below 2 there");
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (name, value) = ("attention.head_count_kv", self.kv_heads.to_string());
            return wrong(name, value, "it must divide the number of heads");
        }
        let (name, value) = ("attention.key_length", self.head_dim.to_string());
        if self.head_dim > MAX_HEAD_DIM {
            return wrong(name, value, "heads have at most 1,024 columns");
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return wrong(name, value, "heads have an even number of columns");
        }
        if !(self.eps > 0.0 && self.eps < 1.0) {
            let name = self.norm.eps_key();
            return wrong(name, self.eps.to_string(), "it must lie between 0 and 1");
        }
        if let Some(base) = self.rope_base.filter(|base| !(*base > 1.0 && base.is_finite())) {
            return wrong("rope.freq_base", base.to_string(), "it must be above 1");
        }
        if self.layers > 4096 {
            let expected = "no model has more than 4096 layers";
            return wrong("block_count", self.layers.to_string(), expected);
        }
        Ok(())
    }

    /// Refuses values that are as wide as no key, and heads that are rotated in part.
    fn check_keys(&self, gguf: &Gguf, family: &str) -> Result<()> {
        for (name, expected) in [
            ("attention.value_length", "values are as wide as keys"),
            ("rope.dimension_count", "whole heads are rotated"),
        ] {
            let key = format!("{family}.{name}");
            if let Some(value) = optional_size(gguf, &key)?.filter(|&v| v != self.head_dim) {
                return Err(Error::Value { key, value: value.to_string(), expected });
            }
        }
        Ok(())
    }

    /// What callers ask.
    pub fn info(&self, family: &'static str, permuted: bool) -> Info {
        Info {
            name: self.name.clone(),
            family,
            layers: self.layers,
            hidden: self.hidden,
            vocabulary: self.vocabulary,
            context_length: self.context_length,
            key_cols: self.kv_heads * self.head_dim,
            positions: None,
            sites: &crate::SITES,
            layers_path: "model.layers",
            permuted_heads: permuted.then_some((self.heads, self.kv_heads)),
        }
    }

    /// Attention with the usual factor 1 / sqrt(head_dim).
    pub fn attention(&self, window: Option<usize>) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            window,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
        }
    }

    /// Inverse frequencies base^(-2i / head_dim), i below head_dim / 2.
    pub fn frequencies(&self, base: f32) -> Vec<f32> {
        let d = self.head_dim as f64;
        let exponents = (0..self.head_dim / 2).map(|i| 2.0 * i as f64 / d);
        exponents.map(|e| f64::from(base).powf(-e) as f32).collect()
    }

    /// The same of the model's own base; none where positions are learned.
    pub fn own_frequencies(&self) -> Vec<f32> {
        self.rope_base.map_or(vec![], |base| self.frequencies(base))
    }

    /// Columns of the queries.
    pub fn query_cols(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of the keys, and of the values.
    pub fn key_cols(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The embedding table, multiplied by `scale` where there is one.
    pub fn embedding_block(&self, scale: Option<f32>) -> Block {
        let mut b = BlockBuilder::new("embedding", None, smidgen_graph::GRAIN);
        let mut x = b.embedding("token_embd.weight", self.vocabulary, self.hidden);
        if let Some(factor) = scale {
            x = b.scale("scaled embedding", x, factor);
        }
        b.finish(Some(x))
    }

    /// The final norm and the head.
    pub fn head_block(&self) -> Block {
        let mut b = BlockBuilder::new("head", None, smidgen_graph::GRAIN);
        let x = b.input(self.hidden);
        let x = match self.norm {
            Norm::Rms => b.rms_norm("final norm", x, "output_norm.weight", self.hidden, self.eps),
            Norm::Layer => b.layer_norm("final norm", x, "output_norm", self.eps),
        };
        let tensor = if self.tied { "token_embd.weight" } else { "output.weight" };
        b.head(x, tensor, self.vocabulary);
        b.finish(None)
    }
}

fn size(gguf: &Gguf, key: &str) -> Result<usize> {
    let value = gguf.u64(key)?;
    let fits = usize::try_from(value).ok().filter(|v| (1..=LARGEST).contains(v));
    fits.ok_or_else(|| Error::Value {
        key: key.to_owned(),
        value: value.to_string(),
        expected: "sizes lie between 1 and 2^24",
    })
}

pub(crate) fn write_size(
    gguf: &mut GgufWriter,
    key: &str,
    size: usize,
) -> smidgen_weights::Result<()> {
    assert!((1..=LARGEST).contains(&size), "{key} is {size}");
    gguf.u32(key, size as u32)
}

pub(crate) fn optional_size(gguf: &Gguf, key: &str) -> Result<Option<usize>> {
    match size(gguf, key) {
        Err(Error::Weights(error)) => Ok(Err(error).optional()?),
        other => other.map(Some),
    }
}

/// Writes the keys that [`position_divisor`] reads; 1 needs none.
pub(crate) fn write_position_divisor(
    gguf: &mut GgufWriter,
    family: &str,
    divisor: f32,
) -> smidgen_weights::Result<()> {
    if divisor == 1.0 {
        return Ok(());
    }
    gguf.str(&format!("{family}.rope.scaling.type"), "linear")?;
    gguf.f32(&format!("{family}.rope.scaling.factor"), divisor)
}

/// The factor by which positions are divided before they are rotated (linear scaling), 1 for
/// none.
pub(crate) fn position_divisor(gguf: &Gguf, family: &str) -> Result<f32> {
    let key = format!("{family}.rope.scaling.type");
    let factor_key = format!("{family}.rope.scaling.factor");
    let factor = gguf.f32(&factor_key).optional()?;
    let valid = |f: f32| f.is_finite() && f >= 1.0;
    match (gguf.str(&key).optional()?, factor) {
        (None | Some("none"), _) => Ok(1.0),
        (Some("linear"), Some(factor)) if valid(factor) => Ok(factor),
        (Some("linear"), other) => Err(Error::Value {
            key: factor_key,
            value: format!("{other:?}"),
            expected: "linear scaling needs a factor of at least 1",
        }),
        (Some(other), _) => {
            let expected = "only linear scaling of positions is known";
            Err(Error::Value { key, value: other.to_owned(), expected })
        }
    }
}
