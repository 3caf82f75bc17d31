//! Checkpoints as GGUF files: the tiny models, taken apart into folders as `transformers` saves
//! them, come back with the same logits and token ids.

mod common;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use common::{FAMILIES, bits, numbers, repository, sequences};
use serde_json::{Value, json};
use smidgen_graph::Budget;
use smidgen_train::{
    Adapter, Base, Convert, Converted, Dataset, Evaluator, Format, InitLoraWeights, LoraConfig,
    MemoryBudget, Planned, PrepareOptions, Result, TokenFile, TrainConfig, WindowSpec, prepare,
};
use smidgen_weights::{Gguf, Optional, gguf_rows_to_hf};

const TEXT: &str =
    "The lake is wide, and the boat's 12 small <|endoftext|> things  move\n\n at all: zwölf.";

/// What transformers calls the parts of a layer.
const PARTS: [(&str, &str); 13] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// The same for opt.
const OPT_PARTS: [(&str, &str); 8] = [
    ("attn_norm", "self_attn_layer_norm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.out_proj"),
    ("ffn_norm", "final_layer_norm"),
    ("ffn_up", "fc1"),
    ("ffn_down", "fc2"),
];

fn opt_name(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let rest = match *parts.as_slice() {
        ["token_embd", kind] => format!("embed_tokens.{kind}"),
        ["position_embd", kind] => format!("embed_positions.{kind}"),
        ["output_norm", kind] => format!("final_layer_norm.{kind}"),
        [_, layer, part, kind] => {
            let module = OPT_PARTS.iter().find(|(gguf, _)| *gguf == part).expect("a part").1;
            format!("layers.{layer}.{module}.{kind}")
        }
        _ => panic!("a tensor {name}"),
    };
    format!("model.decoder.{rest}")
}

fn checkpoint_name(family: &str, name: &str) -> String {
    if family == "opt" {
        return opt_name(name);
    }
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".into(),
        "output_norm.weight" => return "model.norm.weight".into(),
        "output.weight" => return "lm_head.weight".into(),
        _ => {}
    }
    let parts: Vec<&str> = name.split('.').collect();
    let module = match (family, parts[2]) {
        ("gemma3", "ffn_norm") => "pre_feedforward_layernorm",
        (_, part) => PARTS.iter().find(|(gguf, _)| *gguf == part).expect("a part of a layer").1,
    };
    format!("model.layers.{}.{module}.{}", parts[1], parts[3])
}

/// A tensor of a checkpoint: name, shape, numbers.
type Tensor = (String, Vec<usize>, Vec<f32>);

/// All tensors of a model as its checkpoint has them.
fn tensors(gguf: &Gguf, family: &str) -> Vec<Tensor> {
    let size = |key: &str| gguf.u64(&format!("{family}.{key}")).expect("a size") as usize;
    let heads = size("attention.head_count");
    let kv_heads = gguf.u64(&format!("{family}.attention.head_count_kv")).optional();
    let kv_heads = kv_heads.expect("a size").map_or(heads, |n| n as usize);
    let tensor = |name: &str| {
        let matrix = gguf.matrix(name).expect("a tensor");
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let mut numbers = vec![0.0; rows * cols];
        for (r, row) in numbers.chunks_exact_mut(cols).enumerate() {
            matrix.format().decode(matrix.row_blocks(r), row);
        }
        if family == "gemma3" && name.ends_with("norm.weight") {
            numbers.iter_mut().for_each(|x| *x -= 1.0);
        }
        for (part, heads) in [("attn_q.", heads), ("attn_k.", kv_heads)] {
            if family == "llama" && name.contains(part) {
                let stored = numbers.clone();
                gguf_rows_to_hf(&stored, &mut numbers, heads, cols);
            }
        }
        let shape = if gguf.shape(name).expect("a shape").len() == 1 {
            vec![cols]
        } else {
            vec![rows, cols]
        };
        (checkpoint_name(family, name), shape, numbers)
    };
    gguf.tensor_names().map(tensor).collect()
}

fn write_safetensors(path: &Path, tensors: &[Tensor]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, numbers) in tensors {
        let start = data.len();
        data.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
        let offsets = [start, data.len()];
        header
            .insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}));
    }
    let header = Value::Object(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(path, [&length, header.as_bytes(), &data].concat()).expect("a file");
}

fn config(gguf: &Gguf, family: &str, tensors: &[Tensor]) -> Value {
    let size = |key: &str| gguf.u64(&format!("{family}.{key}")).expect("a size");
    let number = |key: &str| f64::from(gguf.f32(&format!("{family}.{key}")).expect("a number"));
    if family == "opt" {
        return json!({
            "model_type": "opt", "hidden_size": size("embedding_length"),
            "ffn_dim": size("feed_forward_length"), "num_hidden_layers": size("block_count"),
            "num_attention_heads": size("attention.head_count"),
            "vocab_size": tensors.iter().find(|t| t.0.ends_with("embed_tokens.weight")).map(|t| t.1[0]),
            "max_position_embeddings": size("context_length"), "word_embed_proj_dim": size("embedding_length"),
            "do_layer_norm_before": true, "activation_function": "relu", "_remove_final_layer_norm": false,
            "eos_token_id": gguf.u32("tokenizer.ggml.eos_token_id").expect("an id"),
        });
    }
    let head_dim = gguf.u64(&format!("{family}.attention.key_length")).optional().expect("a size");
    let head_dim = head_dim.unwrap_or(size("embedding_length") / size("attention.head_count"));
    let rows = |name: &str| tensors.iter().find(|t| t.0 == name).map(|t| t.1[0]);
    let mut config = json!({
        "model_type": if family == "gemma3" { "gemma3_text" } else { family },
        "hidden_size": size("embedding_length"), "intermediate_size": size("feed_forward_length"),
        "num_hidden_layers": size("block_count"),
        "num_attention_heads": size("attention.head_count"),
        "num_key_value_heads": size("attention.head_count_kv"),
        "head_dim": head_dim,
        "vocab_size": rows("model.embed_tokens.weight"),
        "max_position_embeddings": size("context_length"),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": rows("lm_head.weight").is_none(),
        "eos_token_id": [gguf.u32("tokenizer.ggml.eos_token_id").expect("an id"), 0],
    });
    let base = number("rope.freq_base");
    match family {
        "gemma3" => {
            config["hidden_activation"] = json!("gelu_pytorch_tanh");
            config["query_pre_attn_scalar"] = json!(head_dim);
            config["sliding_window"] = json!(size("attention.sliding_window"));
            config["rope_parameters"] = json!({
                "full_attention": {"rope_type": "default", "rope_theta": base},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            });
        }
        _ => config["rope_theta"] = json!(base),
    }
    config
}

fn tokenizer(gguf: &Gguf) -> Value {
    let tokens: Vec<&str> =
        gguf.strings("tokenizer.ggml.tokens").expect("tokens").map(|t| t.expect("UTF-8")).collect();
    let types: Vec<i32> = gguf.i32s("tokenizer.ggml.token_type").expect("types").collect();
    let (mut vocab, mut added) = (serde_json::Map::new(), Vec::new());
    for (id, (token, token_type)) in tokens.iter().zip(&types).enumerate() {
        match token_type {
            2 | 3 => added.push(json!({"id": id, "content": token, "special": true})),
            5 if token.starts_with("[PAD") => continue,
            _ => {}
        }
        vocab.insert((*token).into(), json!(id));
    }
    let merges: Vec<Value> = match gguf.strings("tokenizer.ggml.merges") {
        Ok(merges) => {
            merges.map(|m| json!(m.expect("UTF-8").split(' ').collect::<Vec<_>>())).collect()
        }
        Err(_) => Vec::new(),
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
    let qwen2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let (pre_tokenizer, normalizer) = match gguf.str("tokenizer.ggml.pre").expect("a name") {
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (json!({"type": "Sequence", "pretokenizers": [digits, byte_level]}), Value::Null)
        }
        "qwen2" => {
            let split =
                json!({"type": "Split", "pattern": {"Regex": qwen2}, "behavior": "Isolated"});
            (
                json!({"type": "Sequence", "pretokenizers": [split, byte_level]}),
                json!({"type": "NFC"}),
            )
        }
        _ => {
            let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
            (Value::Null, replace)
        }
    };
    let byte_fallback = merges.is_empty();
    let model = json!({"type": "BPE", "unk_token": if byte_fallback { json!("<unk>") } else { Value::Null },
        "byte_fallback": byte_fallback, "vocab": vocab, "merges": merges});
    json!({"version": "1.0", "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "model": model})
}

/// The golden model of a family as a folder, its tensors in `shards` files.
fn write_folder(family: &str, folder: &Path, shards: usize) {
    let gguf = Gguf::open(repository(&format!("tests/golden/{family}.gguf"))).expect("a model");
    let tensors = tensors(&gguf, family);
    let write = |name: &str, value: Value| {
        std::fs::write(folder.join(name), value.to_string()).expect("a file");
    };
    write("config.json", config(&gguf, family, &tensors));
    write("tokenizer.json", tokenizer(&gguf));
    if shards == 1 {
        return write_safetensors(&folder.join("model.safetensors"), &tensors);
    }
    let mut map = serde_json::Map::new();
    for (i, part) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
        let name = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
        write_safetensors(&folder.join(&name), part);
        map.extend(part.iter().map(|t| (t.0.clone(), json!(name))));
    }
    write("model.safetensors.index.json", json!({"metadata": {}, "weight_map": map}));
}

fn quantise(folder: &Path, to: Format, out: &Path) -> Result<Converted> {
    let never = AtomicBool::new(false);
    let mut convert = Convert { threads: 2, cancel: &never, progress: &mut |_, _| {} };
    convert.quantize_checkpoint(folder, to, out)
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |largest, (a, b)| largest.max((a - b).abs()))
}

fn logits(base: &Base, adapter: Adapter) -> Vec<f32> {
    let ids = &sequences(base.info().vocabulary, &[24])[0].ids;
    let rows = ids.len();
    let mut evaluator =
        Evaluator::new(base, adapter, rows, rows, 1, Budget::Unlimited).expect("a plan");
    let mut all = Vec::new();
    let mut visit = |_: usize, tile: smidgen_kernels::MatRef<'_>| {
        (0..rows).for_each(|position| all.extend_from_slice(tile.row(position)));
    };
    evaluator.logits(ids, &mut visit).expect("logits");
    all
}

#[test]
fn checkpoints_come_back_with_the_same_logits_and_ids() {
    for (family, shards) in FAMILIES.into_iter().zip([1, 3, 2, 2]) {
        let folder = tempfile::tempdir().expect("a folder");
        write_folder(family, folder.path(), shards);
        let out = folder.path().join("model.gguf");
        let golden =
            Base::open(repository(&format!("tests/golden/{family}.gguf"))).expect("a model");
        let expected = logits(&golden, Adapter::none(&golden));
        for (to, most) in [(Format::F32, 2e-6), (Format::F16, 0.05), (Format::Q4_0, f32::INFINITY)]
        {
            let written = quantise(folder.path(), to, &out).expect("a file");
            assert!(written.notes.is_empty(), "{:?}", written.notes);
            let base = Base::open(&out).expect("a model");
            let off = largest_difference(&logits(&base, Adapter::none(&base)), &expected);
            println!("{family} {to:?}: logits off by {off:e}");
            assert!(off <= most, "{family} {to:?}: {off}");
            let [found, expected] = [&base, &golden].map(|base| {
                let tokenizer = base.tokenizer().expect("a tokenizer");
                (tokenizer.encode(TEXT).expect("ids"), tokenizer.eos())
            });
            assert_eq!(found, expected, "{family}");
        }
    }
}

#[test]
fn a_merged_checkpoint_is_the_base_with_its_adapter() {
    for family in FAMILIES {
        let folder = tempfile::tempdir().expect("a folder");
        write_folder(family, folder.path(), 1);
        let model = common::golden_model(family);
        let mut adapter = model.adapter(&LoraConfig::default());
        let never = AtomicBool::new(false);
        let weights = folder.path().join("model.safetensors");
        let mut convert = Convert { threads: 1, cancel: &never, progress: &mut |_, _| {} };
        convert.fuse_safetensors(&model.base, &mut adapter, Format::F32, &weights).expect("a file");
        let expected = logits(&model.base, adapter);
        let out = folder.path().join("model.gguf");
        quantise(folder.path(), Format::F32, &out).expect("a file");
        let base = Base::open(&out).expect("a model");
        let off = largest_difference(&logits(&base, Adapter::none(&base)), &expected);
        println!("{family}: off by {off:e}");
        assert!(off < 1e-4, "{family}: {off}");
    }
}

#[test]
fn folders_that_cannot_be_written_say_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("model.gguf");
    let refused = |because: &str| {
        let error = quantise(folder.path(), Format::Q8_0, &out).expect_err(because).to_string();
        assert!(error.contains(because), "{error} does not say {because}");
        assert!(!out.exists());
    };
    refused("there is no config.json");
    write_folder("llama", folder.path(), 1);
    let path = |name: &str| folder.path().join(name);
    let read = |name: &str| std::fs::read_to_string(path(name)).expect("a file");
    let (config, tokenizer) = (read("config.json"), read("tokenizer.json"));
    let parsed: Value = serde_json::from_str(&config).expect("JSON");
    for (key, value, because) in [
        ("model_type", json!("mamba"), "mamba"),
        ("hidden_size", json!(97), "is what config.json says"),
        ("hidden_size", json!(-1), "sizes lie between"),
        ("hidden_size", Value::Null, "every model has it"),
        ("num_key_value_heads", json!(3), "divide the number of heads"),
        ("num_attention_heads", json!(1u64 << 40), "sizes lie between"),
        ("num_hidden_layers", json!(4), "there is no tensor model.layers.3."),
        ("num_hidden_layers", json!(2), "would be lost"),
        ("num_hidden_layers", json!(1 << 20), "4096 layers"),
        ("hidden_act", json!("relu"), "only silu is known"),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4}), "only linear and llama3"),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 0.1}), "at least 1"),
        ("head_dim", json!(7), "even number"),
        ("rms_norm_eps", json!("small"), "it is a number"),
    ] {
        let mut changed = parsed.clone();
        changed[key] = value;
        std::fs::write(path("config.json"), changed.to_string()).expect("a file");
        refused(because);
    }
    std::fs::write(path("config.json"), &config).expect("a file");
    for (from, to, because) in [
        (
            "individual_digits\":true",
            "individual_digits\":false,\"pattern\":{\"Regex\":\"x\"}",
            "no name",
        ),
        ("ByteLevel", "Whitespace", "neither byte-level"),
        ("\"id\":", "\"id\":9999", "the embedding 300 rows"),
        ("\"merges\":[[", "\"merges\":[[1,", "tokenizer.json"),
    ] {
        assert!(tokenizer.contains(from), "{from} in {tokenizer}");
        std::fs::write(path("tokenizer.json"), tokenizer.replace(from, to)).expect("a file");
        refused(because);
    }
    std::fs::remove_file(path("tokenizer.json")).expect("a file");
    refused("AutoTokenizer");
    std::fs::remove_file(path("model.safetensors")).expect("a file");
    refused("save_pretrained");
    let index = json!({"weight_map": {"x": "../model.safetensors"}});
    std::fs::write(path("model.safetensors.index.json"), index.to_string()).expect("a file");
    refused("no file of it");
}

#[test]
fn other_kinds_of_opt_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    write_folder("opt", folder.path(), 1);
    let (path, out) = (folder.path().join("config.json"), folder.path().join("model.gguf"));
    let config = std::fs::read_to_string(&path).expect("a file");
    let parsed: Value = serde_json::from_str(&config).expect("JSON");
    for (key, value, because) in [
        ("do_layer_norm_before", json!(false), "norm before attention"),
        ("enable_bias", json!(false), "with all biases"),
        ("word_embed_proj_dim", json!(48), "as wide as their hidden state"),
        ("_remove_final_layer_norm", json!(true), "not supported"),
        ("activation_function", json!("gelu"), "only relu is known"),
        ("max_position_embeddings", json!(641), "643 x 96 is what config.json says"),
        ("ffn_dim", Value::Null, "every model has it"),
        ("num_attention_heads", json!(96), "even number"),
    ] {
        let mut changed = parsed.clone();
        changed[key] = value;
        std::fs::write(&path, changed.to_string()).expect("a file");
        let error = quantise(folder.path(), Format::Q8_0, &out).expect_err(because).to_string();
        assert!(error.contains(because), "{error} does not say {because}");
    }
}

#[test]
fn llama3_scaling_becomes_a_tensor_of_factors() {
    let folder = tempfile::tempdir().expect("a folder");
    write_folder("llama", folder.path(), 1);
    let path = folder.path().join("config.json");
    let mut config: Value =
        serde_json::from_str(&std::fs::read_to_string(&path).expect("a file")).expect("JSON");
    config["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 256});
    std::fs::write(&path, config.to_string()).expect("a file");
    let out = folder.path().join("model.gguf");
    quantise(folder.path(), Format::F16, &out).expect("a file");
    Base::open(&out).expect("a model");
    let gguf = Gguf::open(&out).expect("a file");
    let factors = gguf.vector_f32("rope_freqs.weight").expect("factors");
    assert_eq!(factors.len(), 12);
    // The shortest wave has 256 / 2 pi periods in the context; the longest less than one.
    assert_eq!((factors[0], factors[11]), (1.0, 8.0));
    assert!(factors.is_sorted() && factors.iter().any(|f| *f > 1.0 && *f < 8.0), "{factors:?}");
}

/// A folder's q and k have their rows in another order than the base's.
#[test]
fn loftq_takes_a_folder_as_its_source() {
    let folder = tempfile::tempdir().expect("a folder");
    write_folder("llama", folder.path(), 2);
    let [exact, small] =
        [("exact.gguf", Format::F32), ("small.gguf", Format::Q4_0)].map(|(name, to)| {
            let path = folder.path().join(name);
            quantise(folder.path(), to, &path).expect("a file");
            path
        });
    let (text, tokens) = (folder.path().join("text.txt"), folder.path().join("train.tokens"));
    std::fs::write(&text, TEXT).expect("a file");
    let never = AtomicBool::new(false);
    let start = |source: &Path| {
        let base = Base::open(&small).expect("a model");
        let memory = MemoryBudget::Unlimited;
        let options = PrepareOptions::default();
        prepare(&base, &text, &options, memory, &tokens, &never, &mut |_| {}).expect("tokens");
        let window =
            WindowSpec { max_seq_length: 16, chunks: Some(1), bos: false, single_token: false };
        let tokens = TokenFile::open(&tokens).expect("tokens");
        let config = TrainConfig {
            init_lora_weights: InitLoraWeights::Loftq { source: source.to_owned() },
            memory,
            ..TrainConfig::default()
        };
        let data = Dataset::open(tokens, &window).expect("data");
        let session = Planned::new(base, data, 0, config).and_then(Planned::start);
        let session = session.expect("a session");
        let tensors = session.loftq().expect("LoftQ").tensors.clone();
        let adapter = session.finish().1.expect("an adapter");
        (tensors, bits(numbers(&adapter)))
    };
    let [from_folder, from_file] = [folder.path(), exact.as_path()].map(start);
    assert!(from_folder == from_file);
    let (tensors, _) = from_folder;
    assert!(tensors.iter().all(|t| t.error_after <= t.error_before));
    // Others were Q4_0 before.
    assert!(tensors.iter().any(|t| 0.0 < t.error_after && t.error_after < 0.99 * t.error_before));
}
