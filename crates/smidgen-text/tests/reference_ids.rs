//! Ids of real tokenizers on real text, against those that transformers gives.

#[path = "common/mod.rs"]
mod common;

use std::sync::atomic::AtomicBool;

use serde_json::Value;
use smidgen_text::{Dataset, PrepareOptions, Sequence, TokenFile, WindowSpec, prepare};

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(common::data(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// `losses` and `gradients` name the model in the two kinds of reference files.
fn check(model: &str, losses: &str, gradients: &str) {
    let tokenizer = common::tokenizer(model);
    let reference = &json("reference/reference_losses.json")[losses];
    let test = common::data("data/wikitext-2/test.txt");
    let whole = tokenizer.encode(&std::fs::read_to_string(&test).unwrap()).unwrap();
    assert_eq!(whole[..40], ids(&reference["first_40_token_ids"]));
    assert_eq!(whole[20 * 256 - 10..20 * 256], ids(&reference["ids_last_10_of_window20"]));
    assert_eq!(Some(whole.len() as u64), reference["total_tokens_test_file"].as_u64());
    assert_eq!(tokenizer.decode(&whole), std::fs::read_to_string(&test).unwrap());

    let valid = std::fs::read_to_string(common::data("data/wikitext-2/valid.txt")).unwrap();
    let valid = tokenizer.encode(&valid).unwrap();
    let gradients = json(&format!("reference/lora_grad_reference_{gradients}.json"));
    assert_eq!(valid[..256], ids(&gradients["token_ids"]));

    let folder = tempfile::tempdir().unwrap();
    for piece_bytes in [1 << 20, 1000, 77] {
        let out = folder.path().join("test.tokens");
        let options = PrepareOptions { piece_bytes, ..PrepareOptions::default() };
        let cancel = AtomicBool::new(false);
        prepare(&test, &tokenizer, None, &options, &out, &mut |_| {}, &cancel).unwrap();
        let spec =
            WindowSpec { max_seq_length: 4096, chunks: None, bos: false, single_token: false };
        let dataset = Dataset::open(TokenFile::open(&out).unwrap(), &spec).unwrap();
        let (mut sequence, mut read) = (Sequence::default(), Vec::new());
        for window in 0..dataset.len() {
            dataset.read(window, &mut sequence).unwrap();
            read.extend_from_slice(&sequence.ids);
        }
        assert!(read == whole, "{model}: pieces of {piece_bytes} bytes change the ids");
    }
}

#[test]
fn all_models_smollm2() {
    check(common::SMOLLM2, "smollm2-135m", "smollm2");
}

#[test]
fn all_models_qwen() {
    check(common::QWEN, "qwen2.5-coder-0.5b", "qwen");
}

#[test]
fn all_models_gemma() {
    check(common::GEMMA, "gemma3-270m", "gemma3");
}
