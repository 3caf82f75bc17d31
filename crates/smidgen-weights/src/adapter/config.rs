//! `adapter_config.json` as PEFT writes it, for plain LoRA.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::CONFIG_FILE;
use crate::error::{Error, Result};

/// Highest rank taken for meant.
const MAX_RANK: u64 = 65_536;

/// Keys whose values don't change what the saved matrices mean: how they were made, where they
/// sit (their keys say that too), or names for people.
const WITHOUT_EFFECT: &[&str] = &[
    "auto_mapping",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    "task_type",
];

/// The settings of a plain LoRA adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// The base model's name, as `transformers` would load it.
    pub base_model_name_or_path: Option<String>,
    /// The base model's revision.
    pub revision: Option<String>,
    /// Rank of every module.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Probability, in training, that an input of A is dropped.
    pub lora_dropout: f64,
    /// Which modules of the base have LoRA.
    pub target_modules: TargetModules,
    /// Whether the scale is alpha / sqrt(r) instead of alpha / r (rank-stabilised LoRA,
    /// arXiv:2312.03732).
    pub use_rslora: bool,
}

/// The modules of the base that have LoRA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Every linear layer but the head.
    AllLinear,
    /// The modules whose path ends in one of these names.
    Names(Vec<String>),
}

impl AdapterConfig {
    /// What the product B A is multiplied by.
    pub fn scale(&self) -> f64 {
        let rank = self.r as f64;
        self.lora_alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Reads the settings in an adapter's folder.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`]; [`Error::Adapter`] where they ask for anything but plain
    /// LoRA, or are incomplete.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join(CONFIG_FILE);
        let fields =
            crate::json::read_optional::<BTreeMap<String, Value>>(&path)?.ok_or_else(|| {
                let what =
                    format!("there is no {CONFIG_FILE}; give a folder that holds a PEFT adapter");
                Error::adapter(folder.as_ref(), what)
            })?;
        Self::from_fields(fields).map_err(|what| Error::adapter(&path, what))
    }

    /// The file's content: PEFT's keys, sorted, indented by two.
    pub(super) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let target_modules = match &self.target_modules {
            TargetModules::AllLinear => json!("all-linear"),
            TargetModules::Names(names) => {
                let mut names = names.clone();
                names.sort();
                json!(names)
            }
        };
        serde_json::to_vec_pretty(&BTreeMap::from([
            ("alpha_pattern", json!({})),
            ("base_model_name_or_path", json!(self.base_model_name_or_path)),
            ("bias", json!("none")),
            ("fan_in_fan_out", json!(false)),
            ("inference_mode", json!(true)),
            ("init_lora_weights", json!(true)),
            ("layers_pattern", Value::Null),
            ("layers_to_transform", Value::Null),
            ("lora_alpha", number(self.lora_alpha)),
            ("lora_dropout", json!(self.lora_dropout)),
            ("modules_to_save", Value::Null),
            ("peft_type", json!("LORA")),
            ("r", json!(self.r)),
            ("rank_pattern", json!({})),
            ("revision", json!(self.revision)),
            ("target_modules", target_modules),
            ("task_type", json!("CAUSAL_LM")),
            ("use_dora", json!(false)),
            ("use_rslora", json!(self.use_rslora)),
        ]))
    }

    fn from_fields(mut fields: BTreeMap<String, Value>) -> std::result::Result<Self, String> {
        let mut take = |key: &str| fields.remove(key).unwrap_or(Value::Null);
        let peft_type = take("peft_type");
        if peft_type != "LORA" {
            return Err(format!(
                "peft_type is {peft_type}; only \"LORA\" adapters are readable, so train one"
            ));
        }
        let bias = take("bias");
        if !matches!(bias.as_str(), None | Some("none")) {
            return Err(format!(
                "bias is {bias}; only adapters with bias \"none\" are readable, so train one"
            ));
        }
        let init = take("init_lora_weights");
        let keeps_base = ["gaussian", "eva", "orthogonal"];
        if init.as_str().is_some_and(|init| !keeps_base.contains(&init)) {
            return Err(format!(
                "init_lora_weights is {init}, which changes the base's weights; convert the adapter \
                 to plain LoRA with save_pretrained's path_initial_model_for_weight_conversion"
            ));
        }
        let r = take("r");
        let lora_alpha = take("lora_alpha");
        let lora_dropout = take("lora_dropout");
        let config = Self {
            r: rank(&r).ok_or_else(|| format!("r is {r}, not a rank from 1 to {MAX_RANK}"))?,
            lora_alpha: lora_alpha
                .as_f64()
                .ok_or_else(|| format!("lora_alpha is {lora_alpha}, not a number"))?,
            lora_dropout: match &lora_dropout {
                Value::Null => 0.0,
                value => value
                    .as_f64()
                    .filter(|p| (0.0..1.0).contains(p))
                    .ok_or_else(|| format!("lora_dropout is {value}, not a number in [0, 1)"))?,
            },
            base_model_name_or_path: text("base_model_name_or_path", &mut take)?,
            revision: text("revision", &mut take)?,
            use_rslora: match take("use_rslora") {
                Value::Null => false,
                Value::Bool(use_rslora) => use_rslora,
                other => return Err(format!("use_rslora is {other}, not true or false")),
            },
            target_modules: target_modules(take("target_modules"))?,
        };
        match fields.iter().find(|(key, value)| has_effect(key, value)) {
            None => Ok(config),
            Some((key, value)) => Err(format!(
                "{key} is {value}, but only plain LoRA is readable; train the adapter without it"
            )),
        }
    }
}

/// Whether a setting that is not read asks for something other than plain LoRA.
fn has_effect(key: &str, value: &Value) -> bool {
    let asks = match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    };
    asks && !WITHOUT_EFFECT.contains(&key)
}

fn rank(value: &Value) -> Option<usize> {
    let rank = value.as_u64().filter(|rank| (1..=MAX_RANK).contains(rank))?;
    usize::try_from(rank).ok()
}

fn text(
    key: &str,
    take: &mut impl FnMut(&str) -> Value,
) -> std::result::Result<Option<String>, String> {
    match take(key) {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        other => Err(format!("{key} is {other}, not a string")),
    }
}

fn target_modules(value: Value) -> std::result::Result<TargetModules, String> {
    let expected = "not a list of names or \"all-linear\" (a regular expression is not readable; \
                    list the names it matches)";
    match value {
        Value::String(name) if name == "all-linear" => Ok(TargetModules::AllLinear),
        Value::Array(names) => names
            .into_iter()
            .map(|name| match name {
                Value::String(name) => Ok(name),
                other => Err(format!("target_modules holds {other}, {expected}")),
            })
            .collect::<std::result::Result<_, _>>()
            .map(TargetModules::Names),
        other => Err(format!("target_modules is {other}, {expected}")),
    }
}

/// A whole number without a fraction, as PEFT writes alpha.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e9 { json!(value as i64) } else { json!(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: Value) -> std::result::Result<AdapterConfig, String> {
        AdapterConfig::from_fields(serde_json::from_value(json).unwrap())
    }

    /// The keys a recent PEFT writes.
    fn from_peft() -> Value {
        json!({
            "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null,
            "auto_mapping": null, "base_model_name_or_path": "org/base", "bias": "none",
            "corda_config": null, "ensure_weight_tying": false, "eva_config": null,
            "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
            "init_lora_weights": true, "layer_replication": null, "layers_pattern": null,
            "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 32, "lora_bias": false,
            "lora_dropout": 0.05, "megatron_config": null, "megatron_core": "megatron.core",
            "modules_to_save": null, "peft_type": "LORA", "peft_version": "0.18.0",
            "qalora_group_size": 16, "r": 4, "rank_pattern": {}, "revision": null,
            "target_modules": ["v_proj", "q_proj"], "target_parameters": null,
            "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_dora": false,
            "use_qalora": false, "use_rslora": true
        })
    }

    #[test]
    fn reads_what_peft_writes() {
        let config = parse(from_peft()).unwrap();
        assert_eq!(config.base_model_name_or_path.as_deref(), Some("org/base"));
        assert_eq!((config.r, config.lora_dropout), (4, 0.05));
        assert_eq!(config.scale(), 16.0);
        let names = vec!["v_proj".to_owned(), "q_proj".to_owned()];
        assert_eq!(config.target_modules, TargetModules::Names(names));
    }

    #[test]
    fn refuses_all_but_plain_lora_and_says_why() {
        for (key, value) in [
            ("peft_type", json!("IA3")),
            ("bias", json!("all")),
            ("use_dora", json!(true)),
            ("lora_bias", json!(true)),
            ("modules_to_save", json!(["lm_head"])),
            ("rank_pattern", json!({"q_proj": 2})),
            ("alpha_pattern", json!({"q_proj": 2})),
            ("fan_in_fan_out", json!(true)),
            ("init_lora_weights", json!("pissa")),
            ("a_key_of_tomorrow", json!(3)),
            ("target_modules", json!(".*_proj")),
            ("target_modules", json!([1])),
            ("target_modules", Value::Null),
            ("r", json!(0)),
            ("r", json!(-1)),
            ("r", json!(1e300)),
            ("lora_alpha", json!("16")),
            ("lora_dropout", json!(1.0)),
            ("use_rslora", json!("yes")),
            ("revision", json!(7)),
        ] {
            let mut fields = from_peft();
            fields[key] = value;
            let what = parse(fields).unwrap_err();
            assert!(what.contains(key), "{key}: {what}");
        }
    }

    #[test]
    fn writes_sorted_keys_that_read_back() {
        let config = AdapterConfig {
            base_model_name_or_path: None,
            revision: None,
            r: 8,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::AllLinear,
            use_rslora: false,
        };
        let json = String::from_utf8(config.to_json().unwrap()).unwrap();
        assert!(json.starts_with("{\n  \"alpha_pattern\": {},\n  \"base_model_name"), "{json}");
        assert!(json.contains("\n  \"lora_alpha\": 16,\n"), "{json}");
        assert_eq!(parse(serde_json::from_str(&json).unwrap()).unwrap(), config);
        assert_eq!(config.scale(), 2.0);
    }
}
