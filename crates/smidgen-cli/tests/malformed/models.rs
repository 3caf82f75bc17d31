//! Model files and checkpoints' folders.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::common::Place;
use super::{Case, demo, file, patched};

const TENSOR: &str = "blk.0.attn_q.weight";

fn case(name: &'static str, content: Vec<u8>, told: &'static [&'static str]) -> Case {
    file(name, content, format!("eval -m {name} --data text.txt --chunks 1"), 1, told)
}

/// Broken files of a family with learned positions, and what does not fit a sound one.
pub fn opt_cases() -> Vec<Case> {
    let opt = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/opt.gguf");
    let opt = fs::read(opt).unwrap();
    let put = |key: &str, patch: &[u8]| patched(&opt, key, 4, patch);
    let sound =
        |name, line: &str, told| file(name, opt.clone(), format!("{line} -m {name}"), 2, told);
    vec![
        case(
            "positions.gguf",
            put("opt.context_length", &700_u32.to_le_bytes()),
            &["positions.gguf", "position_embd.weight has 642 x 96", "702 x 96"],
        ),
        case(
            "deviation.gguf",
            put("opt.attention.layer_norm_epsilon", &0f32.to_le_bytes()),
            &["deviation.gguf", "opt.attention.layer_norm_epsilon is 0", "between 0 and 1"],
        ),
        case(
            "bias.gguf",
            patched(&opt, "blk.1.ffn_up.bia", 0, b"z"),
            &["bias.gguf", "no tensor blk.1.ffn_up.bias", "download or convert"],
        ),
        sound(
            "long.gguf",
            "plan --max-seq-length 641",
            &["641 tokens", "640 positions", "--max-seq-length 640"],
        ),
        sound(
            "module.gguf",
            "train --data text.txt -o run --target-modules q_proj,o_proj",
            &["\"o_proj\"", "q_proj, k_proj, v_proj, out_proj, fc1, fc2"],
        ),
    ]
}

pub fn cases() -> Vec<Case> {
    let demo = demo();
    let put = |key: &str, at: usize, patch: &[u8]| patched(&demo, key, at, patch);
    let (u32, u64) = (u32::to_le_bytes, u64::to_le_bytes);
    let dims = |dims: [u64; 2]| put(TENSOR, 4, &[u64(dims[0]), u64(dims[1])].concat());
    vec![
        case("empty.gguf", vec![], &["empty.gguf", "it is empty"]),
        case("cut1.gguf", demo[..3].into(), &["cut1.gguf: byte 0", "downloaded completely?"]),
        case("cut2.gguf", demo[..20].into(), &["cut2.gguf: byte 8", "47 tensors", "download"]),
        case(
            "cut3.gguf",
            demo[..5000].into(),
            &["cut3.gguf: byte", "tokens", "don't fit", "download"],
        ),
        case("cut4.gguf", demo[..29_000].into(), &["cut4.gguf: byte", "a tensor name", "download"]),
        case(
            "cut5.gguf",
            demo[..1_000_000].into(),
            &["cut5.gguf: byte", "which has 1000000 bytes", "downloaded completely?"],
        ),
        case(
            "magic.gguf",
            [b"GGML", &demo[4..]].concat(),
            &["magic.gguf: byte 0", "no GGUF file", "convert the model"],
        ),
        case(
            "version.gguf",
            [&demo[..4], &u32(1), &demo[8..]].concat(),
            &["version.gguf: byte 4", "version 1", "convert the model again"],
        ),
        case(
            "endian.gguf",
            [&demo[..4], &3_u32.to_be_bytes(), &demo[8..]].concat(),
            &["endian.gguf: byte 4", "big-endian", "gguf_convert_endian.py"],
        ),
        case(
            "tensors.gguf",
            [&demo[..8], &u64(1 << 60), &demo[16..]].concat(),
            &["tensors.gguf: byte 8", "can't hold", "download"],
        ),
        case(
            "entries.gguf",
            [&demo[..16], &u64(1 << 60), &demo[24..]].concat(),
            &["entries.gguf: byte 16", "can't hold", "download"],
        ),
        case(
            "array.gguf",
            put("tokenizer.ggml.tokens", 8, &u64(1 << 50)),
            &["array.gguf: byte", "tokenizer.ggml.tokens", "don't fit", "download"],
        ),
        case(
            "value.gguf",
            put("llama.block_count", 0, &u32(99)),
            &["value.gguf: byte", "llama.block_count", "unknown type 99", "download"],
        ),
        case(
            "key.gguf",
            put("llama.embedding_leng", 0, b"tX"),
            &["key.gguf", "no llama.embedding_length", "convert the model again"],
        ),
        case(
            "keytype.gguf",
            put("llama.block_count", 0, &u32(6)),
            &["keytype.gguf", "llama.block_count", "should be u64, not f32", "convert"],
        ),
        case(
            "family.gguf",
            put("general.architecture", 12, b"lamma"),
            &["family.gguf", "\"lamma\"", "llama, qwen2, gemma3, opt"],
        ),
        case(
            "blocks.gguf",
            put("llama.block_count", 4, &u32(6)),
            &["blocks.gguf", "no tensor blk.5.attn_norm.weight", "download or convert"],
        ),
        case(
            "many.gguf",
            put("llama.block_count", 4, &u32(1 << 31)),
            &["many.gguf", "llama.block_count is 2147483648", "between 1 and 2^24"],
        ),
        case(
            "heads.gguf",
            put("llama.attention.head_count", 4, &u32(0)),
            &["heads.gguf", "llama.attention.head_count is 0", "between 1 and 2^24"],
        ),
        case(
            "epsilon.gguf",
            put("llama.attention.layer_norm_rms_epsilon", 4, &f32::NAN.to_le_bytes()),
            &["epsilon.gguf", "is NaN", "between 0 and 1"],
        ),
        case(
            "tensor.gguf",
            put("blk.3.ffn_u", 0, b"q"),
            &["tensor.gguf", "no tensor blk.3.ffn_up.weight", "download or convert"],
        ),
        case(
            "twice.gguf",
            put("blk.", 0, b"1"),
            &["twice.gguf: byte", "blk.1.", "occurs twice", "download"],
        ),
        case("shape.gguf", dims([192, 160]), &["shape.gguf", "160 x 192", "192 x 192"]),
        case(
            "rows.gguf",
            put("token_embd.weight", 12, &u64(512)),
            &["rows.gguf", "1024 tokens", "embedding 512", "convert the model again"],
        ),
        case(
            "zero.gguf",
            dims([0, 192]),
            &["zero.gguf: byte", TENSOR, "is empty", "[0, 192]", "download"],
        ),
        case(
            "huge.gguf",
            dims([1 << 62, 192]),
            &["huge.gguf: byte", TENSOR, "too large", "download"],
        ),
        case(
            "dimensions.gguf",
            put(TENSOR, 0, &u32(9)),
            &["dimensions.gguf: byte", "9 dimensions, not 1 to 4", "download"],
        ),
        case(
            "type.gguf",
            put(TENSOR, 20, &u32(77)),
            &["type.gguf", TENSOR, "unknown type 77", "llama-quantize"],
        ),
        case(
            "iq2.gguf",
            put(TENSOR, 20, &u32(16)),
            &["iq2.gguf", TENSOR, "IQ2_XXS", "llama-quantize"],
        ),
        case(
            "beyond.gguf",
            put(TENSOR, 24, &u64(1 << 40)),
            &["beyond.gguf: byte", TENSOR, "beyond the end", "downloaded completely?"],
        ),
        case(
            "overlap.gguf",
            put(TENSOR, 24, &u64(0)),
            &["overlap.gguf: byte", TENSOR, "token_embd.weight", "overlap", "download"],
        ),
        case(
            "misaligned.gguf",
            put(TENSOR, 24, &u64(208_897)),
            &["misaligned.gguf: byte", "no multiple of the alignment, 32", "download"],
        ),
        case(
            "tokenizer.gguf",
            put("tokenizer.ggml.model", 12, b"gptX"),
            &["tokenizer.gguf", "\"gptX\"", "known: gpt2, llama", "--tokenizer"],
        ),
        case(
            "eos.gguf",
            put("tokenizer.ggml.eos_token_id", 4, &u32(5000)),
            &["eos.gguf", "eos id 5000", "1024 tokens", "--tokenizer"],
        ),
    ]
}

/// A folder with a config.json, changed, and perhaps a file of one tensor.
fn folder(
    name: &'static str,
    change: (&'static str, serde_json::Value),
    tensor: Option<(&'static str, [usize; 2], usize)>,
    told: &'static [&'static str],
) -> Case {
    let mut config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 32, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "hidden_act": "silu"
    });
    config[change.0] = change.1;
    let make = move |place: &Place| {
        fs::create_dir(place.path(name)).unwrap();
        place.write(&format!("{name}/config.json"), &config.to_string());
        if let Some((dtype, shape, bytes)) = tensor {
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [0, bytes]});
            let header = json!({"model.embed_tokens.weight": entry}).to_string();
            let length = (header.len() as u64).to_le_bytes();
            let content = [&length[..], header.as_bytes(), &vec![0; bytes]].concat();
            fs::write(place.path(&format!("{name}/model.safetensors")), content).unwrap();
        }
    };
    Case { name, make: Box::new(make), line: format!("quantize {name} -o q.gguf"), code: 1, told }
}

/// Checkpoints' folders.
pub fn folders() -> Vec<Case> {
    let same = || ("hidden_size", json!(64));
    let quantize = |name: &str| format!("quantize {} -o q.gguf", name.split('/').next().unwrap());
    let unsharded =
        json!({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}});
    vec![
        file(
            "no_config/x",
            "",
            quantize("no_config"),
            1,
            &["no_config", "no config.json", "give a model's folder"],
        ),
        file(
            "broken_config/config.json",
            "{",
            quantize("broken_config"),
            1,
            &["broken_config/config.json", "line 1", "download"],
        ),
        folder(
            "no_weights",
            same(),
            None,
            &["no_weights", "neither model.safetensors", "save_pretrained"],
        ),
        folder(
            "unknown",
            ("model_type", json!("mamba")),
            Some(("F32", [32, 64], 8192)),
            &["unknown", "mamba", "llama, qwen2, gemma3"],
        ),
        folder(
            "dtype",
            same(),
            Some(("I64", [32, 64], 16_384)),
            &["dtype/model.safetensors", "I64", "not F32, F16 or BF16"],
        ),
        folder(
            "lacking",
            same(),
            Some(("F32", [32, 64], 8192)),
            &["lacking", "no tensor model.layers.0.input_layernorm.weight"],
        ),
        folder(
            "shaped",
            same(),
            Some(("F32", [64, 32], 8192)),
            &["shaped", "[64, 32]", "32 x 64 is what config.json says"],
        ),
        folder(
            "overfull",
            same(),
            Some(("F32", [32, 64], 100)),
            &["overfull/model.safetensors: byte", "can't take the bytes", "download"],
        ),
        Case {
            name: "no shard",
            make: Box::new(move |place| {
                fs::create_dir(place.path("sharded")).unwrap();
                place.write("sharded/config.json", r#"{"model_type": "llama"}"#);
                place.write("sharded/model.safetensors.index.json", &unsharded.to_string());
            }),
            line: quantize("sharded"),
            code: 1,
            told: &["sharded", "model-00001-of-00002.safetensors", "download all shards"],
        },
    ]
}
