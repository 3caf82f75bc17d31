//! `config.json`: the sizes of a model and what kind of layers it has.

use std::f64::consts::TAU;
use std::path::{Path, PathBuf};

use serde_json::Value;
use smidgen_graph::Architecture;
use smidgen_weights::{Checkpoint, GgufWriter};

use crate::FAMILIES;
use crate::config::{Decoder, Info, LARGEST, Norm};
use crate::error::{Error, Result};
use crate::gemma3::{self, Gemma3};
use crate::llama::Llama;
use crate::opt::Opt;
use crate::qwen2::Qwen2;

/// A model of a checkpoint, as its family has it.
#[derive(Debug)]
pub(super) enum Family {
    Llama(Llama),
    Qwen2(Qwen2),
    Gemma3(Gemma3),
    Opt(Opt),
}

impl Family {
    /// Reads the configuration; `has_head` says whether there is a head beside the embedding.
    pub fn read(checkpoint: &Checkpoint, has_head: bool) -> Result<Self> {
        let path = checkpoint.folder().join("config.json");
        let mut fields = Fields { path: &path, fields: checkpoint.config() };
        let model_type = fields.text("model_type").unwrap_or_default().to_owned();
        if let Some(text) = checkpoint.config().get("text_config") {
            fields.fields = text;
        }
        if model_type == "opt" {
            return fields.opt(checkpoint.folder(), has_head).map(Self::Opt);
        }
        let is_gemma = matches!(model_type.as_str(), "gemma3" | "gemma3_text");
        let config = fields.decoder(checkpoint.folder(), has_head, is_gemma)?;
        match model_type.as_str() {
            "llama" => {
                fields.expect("hidden_act", &["silu"])?;
                let (divisor, factors) = fields.rope_scaling(&config)?;
                Ok(Self::Llama(Llama::new(config, divisor, factors)))
            }
            "qwen2" => {
                fields.expect("hidden_act", &["silu"])?;
                fields.refuse("use_sliding_window")?;
                let (divisor, _) = fields.linear_scaling()?;
                Ok(Self::Qwen2(Qwen2::new(config, divisor)))
            }
            "gemma3" | "gemma3_text" => fields.gemma3(config).map(Self::Gemma3),
            other => Err(Error::Family { name: other.to_owned(), known: FAMILIES }),
        }
    }

    /// Writes the keys that the family reads.
    pub fn write(&self, gguf: &mut GgufWriter) -> Result<()> {
        Ok(match self {
            Self::Llama(llama) => llama.write(gguf),
            Self::Qwen2(qwen2) => qwen2.write(gguf),
            Self::Gemma3(gemma3) => gemma3.write(gguf),
            Self::Opt(opt) => opt.write(gguf),
        }?)
    }

    /// By what frequencies are divided, where that is a tensor of the file.
    pub fn rope_factors(&self) -> Option<&[f32]> {
        match self {
            Self::Llama(llama) => llama.factors(),
            Self::Qwen2(_) | Self::Gemma3(_) | Self::Opt(_) => None,
        }
    }

    /// What the family's own file would tell.
    pub fn info(&self) -> Info {
        match self {
            Self::Llama(llama) => llama.info(),
            Self::Qwen2(qwen2) => qwen2.info(),
            Self::Gemma3(gemma3) => gemma3.info(),
            Self::Opt(opt) => opt.info(),
        }
    }

    /// The model's blocks.
    pub fn architecture(&self) -> &dyn Architecture {
        match self {
            Self::Llama(blocks) => blocks,
            Self::Qwen2(blocks) => blocks,
            Self::Gemma3(blocks) => blocks,
            Self::Opt(blocks) => blocks,
        }
    }
}

/// An object of the file.
#[derive(Clone, Copy)]
struct Fields<'a> {
    path: &'a Path,
    fields: &'a Value,
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_str()
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = self.get(key).map_or("missing".to_owned(), Value::to_string);
        let found = found.chars().take(100).collect::<String>();
        let path: PathBuf = self.path.to_owned();
        Error::Checkpoint { path, what: format!("{key} is {found}, but {expected}") }
    }

    /// A size that need not be there.
    fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        let size = size.filter(|size| (1..=LARGEST).contains(size));
        size.map(Some).ok_or_else(|| self.wrong(key, "sizes lie between 1 and 2^24"))
    }

    fn needed(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.wrong(key, "every model has it"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|number| number.is_finite());
        number.map(Some).ok_or_else(|| self.wrong(key, "it is a number"))
    }

    /// Checks a setting that need not be there.
    fn expect(&self, key: &str, known: &[&str]) -> Result<()> {
        match self.get(key) {
            Some(value) if !value.as_str().is_some_and(|text| known.contains(&text)) => {
                Err(self.wrong(key, &format!("only {} is known", known.join(" or "))))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a setting that is there and not false.
    fn refuse(&self, key: &str) -> Result<()> {
        match self.get(key) {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(_) => Err(self.wrong(key, "that is not supported")),
        }
    }

    /// The object under `key`, if it is one.
    fn within(&self, key: &str) -> Option<Self> {
        let fields = self.get(key).filter(|value| value.is_object())?;
        Some(Self { fields, ..*self })
    }

    fn decoder(&self, folder: &Path, has_head: bool, is_gemma: bool) -> Result<Decoder> {
        let (hidden, heads) = (self.needed("hidden_size")?, self.needed("num_attention_heads")?);
        let tied = match self.get("tie_word_embeddings") {
            Some(Value::Bool(tied)) => *tied,
            _ => is_gemma,
        };
        let rope_base = match self.rope("full_attention") {
            Some(rope) => rope.number("rope_theta")?,
            None => None,
        };
        let rope_base = rope_base.or(self.number("rope_theta")?);
        let default_base = if is_gemma { 1e6 } else { 1e4 };
        let decoder = Decoder {
            name: name_of(folder),
            layers: self.needed("num_hidden_layers")?,
            hidden,
            ffn: self.needed("intermediate_size")?,
            heads,
            kv_heads: self.size("num_key_value_heads")?.unwrap_or(heads),
            head_dim: self.size("head_dim")?.unwrap_or(hidden / heads),
            vocabulary: self.needed("vocab_size")?,
            context_length: self.needed("max_position_embeddings")?,
            norm: Norm::Rms,
            eps: self.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope_base: Some(rope_base.unwrap_or(default_base) as f32),
            tied: tied || !has_head,
        };
        decoder.check_sizes("config.json")?;
        Ok(decoder)
    }

    /// Rotation of a kind of layers: newer files have an object, perhaps one for each kind.
    fn rope(&self, kind: &str) -> Option<Self> {
        let rope = self.within("rope_parameters")?;
        Some(rope.within(kind).unwrap_or(rope))
    }

    /// By what positions are divided, and the object that says so.
    fn linear_scaling(&self) -> Result<(f32, Option<Self>)> {
        let Some(scaling) = self.rope("full_attention").or(self.within("rope_scaling")) else {
            return Ok((1.0, None));
        };
        let kind = scaling.text("rope_type").or(scaling.text("type")).unwrap_or("default");
        match kind {
            "default" => Ok((1.0, None)),
            "linear" => {
                let factor = scaling.number("factor")?.filter(|factor| *factor >= 1.0);
                let factor = factor.ok_or_else(|| scaling.wrong("factor", "it is at least 1"))?;
                Ok((factor as f32, None))
            }
            "llama3" => Ok((1.0, Some(scaling))),
            _ => Err(scaling.wrong("rope_type", "only linear and llama3 scaling are known")),
        }
    }

    /// By what positions are divided, and by what each frequency is (Llama 3.1's scaling): those of
    /// long waves by `factor`, those of short ones by 1, those between by something between.
    fn rope_scaling(&self, config: &Decoder) -> Result<(f32, Option<Vec<f32>>)> {
        let (divisor, llama3) = self.linear_scaling()?;
        let Some(scaling) = llama3 else { return Ok((divisor, None)) };
        let number = |key| {
            let number = scaling.number(key)?.filter(|number| *number > 0.0);
            number.ok_or_else(|| scaling.wrong(key, "llama3 scaling needs a number above 0"))
        };
        let (factor, low) = (number("factor")?, number("low_freq_factor")?);
        let (high, context) =
            (number("high_freq_factor")?, number("original_max_position_embeddings")?);
        if high <= low {
            return Err(scaling.wrong("high_freq_factor", "it is above low_freq_factor"));
        }
        let of = |frequency: f32| {
            let waves = context * f64::from(frequency) / TAU;
            let short = ((waves - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - short) / factor + short)) as f32
        };
        Ok((1.0, Some(config.own_frequencies().into_iter().map(of).collect())))
    }

    /// OPT as transformers has it, of which one size norms behind attention and MLP, with a hidden
    /// state that is not as wide as its embedding.
    fn opt(&self, folder: &Path, has_head: bool) -> Result<Opt> {
        const EXPECTED: &str = "only models that norm before attention and MLP are supported, whose \
                                embedding is as wide as their hidden state, with all biases and norms";
        let (hidden, heads) = (self.needed("hidden_size")?, self.needed("num_attention_heads")?);
        self.expect("activation_function", &["relu"])?;
        self.refuse("_remove_final_layer_norm")?;
        for key in ["do_layer_norm_before", "enable_bias", "layer_norm_elementwise_affine"] {
            if !matches!(self.get(key), None | Some(Value::Bool(true))) {
                return Err(self.wrong(key, EXPECTED));
            }
        }
        if self.size("word_embed_proj_dim")?.is_some_and(|width| width != hidden) {
            return Err(self.wrong("word_embed_proj_dim", EXPECTED));
        }
        let tied = !matches!(self.get("tie_word_embeddings"), Some(Value::Bool(false)));
        let decoder = Decoder {
            name: name_of(folder),
            layers: self.needed("num_hidden_layers")?,
            hidden,
            ffn: self.needed("ffn_dim")?,
            heads,
            kv_heads: heads,
            head_dim: hidden / heads,
            vocabulary: self.needed("vocab_size")?,
            context_length: self.needed("max_position_embeddings")?,
            norm: Norm::Layer,
            eps: 1e-5,
            rope_base: None,
            tied: tied || !has_head,
        };
        decoder.check_sizes("config.json")?;
        Ok(Opt::new(decoder))
    }

    fn gemma3(&self, config: Decoder) -> Result<Gemma3> {
        self.expect("hidden_activation", &["gelu_pytorch_tanh"])?;
        self.refuse("attention_bias")?;
        self.refuse("final_logit_softcapping")?;
        self.refuse("attn_logit_softcapping")?;
        self.refuse("use_bidirectional_attention")?;
        let local = self.within("rope_parameters").and_then(|r| r.within("sliding_attention"));
        let local = match local {
            Some(local) => local.number("rope_theta")?,
            None => self.number("rope_local_base_freq")?,
        };
        if local.is_some_and(|base| base as f32 != gemma3::LOCAL_ROPE_BASE) {
            return Err(self.wrong("rope_local_base_freq", "only 10000 is known"));
        }
        let (divisor, llama3) = self.linear_scaling()?;
        if llama3.is_some() {
            return Err(self.wrong("rope_scaling", "only linear scaling is known here"));
        }
        let window = self.needed("sliding_window")?;
        let pattern = self.pattern(config.layers)?;
        let gemma3 = Gemma3::new(config, window, divisor).with_pattern(pattern);
        let scalar = self.number("query_pre_attn_scalar")?.unwrap_or(256.0);
        if 1.0 / (scalar as f32).sqrt() != gemma3.scale() {
            let expected = "scores are divided by the root of head_dim (27B: of hidden / heads)";
            return Err(self.wrong("query_pre_attn_scalar", expected));
        }
        Ok(gemma3)
    }

    /// Layers from one global layer to the next.
    fn pattern(&self, layers: usize) -> Result<usize> {
        let Some(Value::Array(kinds)) = self.get("layer_types") else {
            return Ok(self.size("sliding_window_pattern")?.unwrap_or(gemma3::PATTERN));
        };
        let is_global: Vec<bool> = kinds.iter().map(|k| k == "full_attention").collect();
        let first = is_global.iter().position(|global| *global);
        let pattern = first.map_or(gemma3::PATTERN.max(layers + 1), |first| first + 1);
        let fits = |(i, global): (usize, &bool)| *global == (i + 1).is_multiple_of(pattern);
        if kinds.len() != layers || !is_global.iter().enumerate().all(fits) {
            return Err(self.wrong("layer_types", "every so-many-th layer is global"));
        }
        Ok(pattern)
    }
}

/// What a model is called that lies in a folder.
fn name_of(folder: &Path) -> String {
    let given = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    given.unwrap_or_else(|| "model".to_owned())
}
