//! Names of tensors in checkpoints.

use std::collections::BTreeSet;

use smidgen_weights::Checkpoint;

use crate::config::Info;
use crate::error::{Error, Result};
use crate::llama::FACTORS;

/// What stands before the text model's tensors and before its head. Checkpoints that see images
/// have the text model as a part, opt's the decoder.
const PREFIXES: [Prefix; 4] = [
    Prefix { model: "model.", head: "lm_head.weight" },
    Prefix { model: "language_model.model.", head: "language_model.lm_head.weight" },
    Prefix { model: "model.language_model.", head: "lm_head.weight" },
    Prefix { model: "model.decoder.", head: "lm_head.weight" },
];

/// Parts beside the text model.
const OTHER_PARTS: [&str; 4] = [
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
];

const EMBEDDING: &str = "embed_tokens.weight";

#[derive(Clone, Copy, Debug)]
pub(super) struct Prefix {
    model: &'static str,
    head: &'static str,
}

/// The prefix of the checkpoint's names.
pub(super) fn prefix(checkpoint: &Checkpoint) -> Result<Prefix> {
    let has_embedding = |prefix: &&Prefix| {
        let name = format!("{}{EMBEDDING}", prefix.model);
        checkpoint.tensor_names().any(|found| found == name)
    };
    PREFIXES.iter().find(has_embedding).copied().ok_or_else(|| Error::Checkpoint {
        path: checkpoint.folder().to_owned(),
        what: format!("there is no tensor model.{EMBEDDING}; this is no model of text"),
    })
}

impl Prefix {
    /// Whether there is a head beside the embedding.
    pub fn has_head(&self, checkpoint: &Checkpoint) -> bool {
        checkpoint.tensor_names().any(|name| name == self.head)
    }

    /// Where the checkpoint of a model has a tensor of its GGUF file; none for factors of
    /// frequencies, which config.json gives.
    pub fn place(&self, info: &Info, tensor: &str) -> Option<Place> {
        let is_norm = tensor.ends_with("norm.weight");
        let added = if is_norm && info.family == "gemma3" { 1.0 } else { 0.0 };
        let (name, heads) = match tensor {
            FACTORS => return None,
            "token_embd.weight" => (format!("{}{EMBEDDING}", self.model), None),
            "position_embd.weight" => (format!("{}embed_positions.weight", self.model), None),
            "output_norm.weight" | "output_norm.bias" => {
                let (_, kind) = tensor.split_at("output_norm.".len());
                let norm = if info.family == "opt" { "final_layer_norm" } else { "norm" };
                (format!("{}{norm}.{kind}", self.model), None)
            }
            "output.weight" => (self.head.to_owned(), None),
            _ => {
                let (layer, part, kind) = split(tensor);
                let (module, heads) = module(info, part);
                (format!("{}layers.{layer}.{module}.{kind}", self.model), heads)
            }
        };
        Some(Place { name, heads, added })
    }

    /// Refuses tensors that nothing reads, and tells of those of other parts.
    pub fn check_rest(
        &self,
        checkpoint: &Checkpoint,
        used: &BTreeSet<String>,
    ) -> Result<Vec<String>> {
        let mut others = 0;
        for name in checkpoint.tensor_names().filter(|name| !used.contains(*name)) {
            // A tied head is the embedding once more; angles are made anew.
            if name == self.head || name.ends_with(".rotary_emb.inv_freq") {
                continue;
            }
            if !OTHER_PARTS.iter().any(|part| name.starts_with(part)) {
                return Err(Error::Checkpoint {
                    path: checkpoint.folder().to_owned(),
                    what: format!("tensor {name} is of no model that is known, and would be lost"),
                });
            }
            others += 1;
        }
        let note = || format!("{others} tensors are of what sees images and are left out");
        Ok((others > 0).then(note).into_iter().collect())
    }
}

/// `blk.LAYER.PART.KIND`.
fn split(tensor: &str) -> (&str, &str, &str) {
    let parts = tensor.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let parts = parts.and_then(|(layer, rest)| Some((layer, rest.rsplit_once('.')?)));
    let (layer, (part, kind)) = parts.expect("blocks name their tensors so");
    (layer, part, kind)
}

/// The module that a part of a layer is, and the heads by which its rows are permuted.
fn module(info: &Info, part: &str) -> (&'static str, Option<usize>) {
    if let Some(site) = info.sites.iter().find(|site| site.tensor == part) {
        return (site.module, info.permutation(*site));
    }
    let module = match part {
        "attn_norm" if info.family == "opt" => "self_attn_layer_norm",
        "ffn_norm" if info.family == "opt" => "final_layer_norm",
        "attn_norm" => "input_layernorm",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" if info.family == "gemma3" => "pre_feedforward_layernorm",
        "ffn_norm" | "post_attention_norm" => "post_attention_layernorm",
        "post_ffw_norm" => "post_feedforward_layernorm",
        other => unreachable!("no block has a tensor {other}"),
    };
    (module, None)
}

/// How a checkpoint holds a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Its rows lie in the checkpoint's order of so many heads, not in GGUF's.
    pub heads: Option<usize>,
    /// What is added to every number on the way into a GGUF file.
    pub added: f32,
}

/// Where a checkpoint of the model `info` has a tensor of the model's GGUF file; none for what
/// config.json says there.
pub fn place(info: &Info, tensor: &str) -> Option<Place> {
    let layers = |prefix: &&Prefix| format!("{}layers", prefix.model) == info.layers_path;
    PREFIXES.iter().find(layers).expect("a family's layers have a path").place(info, tensor)
}
