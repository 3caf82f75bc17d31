//! PEFT folders and the state of a run.

use std::fs;

use serde_json::{Value, json};

use super::common::Place;
use super::{Case, RUN, file};

/// A folder of a good adapter but for what `change` does to its two files.
fn folder(
    name: &'static str,
    (config, weights): (&str, &[u8]),
    told: &'static [&'static str],
) -> Case {
    let (config, weights) = (config.to_owned(), weights.to_vec());
    let make = move |place: &Place| {
        fs::create_dir(place.path(name)).unwrap();
        place.write(&format!("{name}/adapter_config.json"), &config);
        fs::write(place.path(&format!("{name}/adapter_model.safetensors")), &weights).unwrap();
    };
    let line = format!("eval -m MODEL --data text.txt --chunks 1 --adapter {name}");
    Case { name, make: Box::new(make), line, code: 1, told }
}

pub fn cases(config: &str, weights: &[u8]) -> Vec<Case> {
    let with = |key: &str, value: Value| {
        let mut config: Value = serde_json::from_str(config).unwrap();
        config[key] = value;
        config.to_string()
    };
    let length = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let (header, numbers) = weights[8..].split_at(length);
    let header = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let mut header: Value = serde_json::from_slice(header).unwrap();
        change(header.as_object_mut().unwrap());
        let header = header.to_string();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), numbers].concat()
    };
    const FIRST: &str = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight";
    let mut nan = weights.to_vec();
    nan[8 + length..8 + length + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let of_config = |name, key, value, told| folder(name, (&with(key, value), weights), told);
    let of_weights = |name, content: &[u8], told| folder(name, (config, content), told);
    let eval = |name: &str| format!("eval -m MODEL --data text.txt --adapter {name}");
    vec![
        file(
            "bare/x",
            "",
            eval("bare"),
            1,
            &["bare", "no adapter_config.json", "holds a PEFT adapter"],
        ),
        file(
            "half/adapter_config.json",
            config,
            eval("half"),
            1,
            &["half", "no adapter_model.safetensors", "holds a PEFT adapter"],
        ),
        folder(
            "json",
            ("{\"r\": ", weights),
            &["json/adapter_config.json", "line 1 column", "again"],
        ),
        of_config(
            "rank",
            "r",
            json!(8),
            &["rank/adapter_model.safetensors", "lora_A [4, 512]", "rank 8 wants", "two adapters"],
        ),
        of_config(
            "zero",
            "r",
            json!(0),
            &["zero/adapter_config.json", "r is 0", "from 1 to 65536"],
        ),
        of_config(
            "alpha",
            "lora_alpha",
            json!("x"),
            &["alpha/adapter_config.json", "lora_alpha is \"x\", not a number"],
        ),
        of_config(
            "dora",
            "use_dora",
            json!(true),
            &["dora/adapter_config.json", "use_dora is true", "train the adapter without it"],
        ),
        of_config(
            "bias",
            "bias",
            json!("all"),
            &["bias/adapter_config.json", "bias is \"all\"", "train one"],
        ),
        of_config(
            "saved",
            "modules_to_save",
            json!(["lm_head"]),
            &["saved/adapter_config.json", "modules_to_save", "train the adapter without it"],
        ),
        of_config(
            "kind",
            "peft_type",
            json!("IA3"),
            &["kind/adapter_config.json", "\"IA3\"", "only \"LORA\"", "train one"],
        ),
        of_weights(
            "nan",
            &nan,
            &["nan/adapter_model.safetensors", FIRST, "not finite", "take a save from before"],
        ),
        of_weights(
            "shape",
            &header(&|h| h[FIRST]["shape"] = json!([2, 384])),
            &["shape/adapter_model.safetensors", FIRST, "again"],
        ),
        of_weights(
            "dtype",
            &header(&|h| h[FIRST]["dtype"] = json!("I32")),
            &["dtype/adapter_model.safetensors", "I32", "not F32, F16 or BF16"],
        ),
        of_weights(
            "lacking",
            &header(&|h| drop(h.remove(FIRST))),
            &["lacking/adapter_model.safetensors", "downloaded completely?"],
        ),
        of_weights(
            "named",
            &header(&|h| {
                let first = h.remove(FIRST).unwrap();
                h.insert("base_model.model.nose.lora_A.weight".into(), first);
            }),
            &["named/adapter_model.safetensors", "lacks its lora_A", "save the adapter again"],
        ),
        of_weights(
            "cut",
            &weights[..weights.len() / 2],
            &["cut/adapter_model.safetensors: byte", "again"],
        ),
        of_weights(
            "header",
            &[&(1_u64 << 40).to_le_bytes(), &weights[8..]].concat(),
            &["header/adapter_model.safetensors: byte 0", "doesn't fit", "again"],
        ),
    ]
}

/// What a run was saved as.
pub fn states(state: &[u8]) -> Vec<Case> {
    let path = "run/smidgen/run.state";
    let resume = format!("{RUN} --iters 4 --resume");
    let mut flipped = state.to_vec();
    flipped[60] ^= 1;
    let mut cases = vec![
        file(path, flipped, &*resume, 1, &["run/smidgen/run.state", "checksum", "--force"]),
        file(path, &state[..state.len() / 2], &*resume, 1, &["run/smidgen/run.state", "--force"]),
        file(
            path,
            [b"XXXX", &state[4..]].concat(),
            &*resume,
            1,
            &["run/smidgen/run.state", "SMDGRUN", "--force"],
        ),
        file(path, "", &*resume, 1, &["run/smidgen/run.state", "--force"]),
    ];
    let other = resume.replace("--lora-rank 4", "--lora-rank 2");
    let told = &["run/smidgen/run.state", "--lora-rank was 4 and is 2", "give what that run had"];
    cases.push(file(path, state, other, 2, told));
    cases
}
