//! Real files: what is in them, and what reading them costs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use smidgen_kernels::Format::{self, *};
use smidgen_weights::{Gguf, release_free_heap};

fn model(file_name: &str) -> Gguf {
    let folder = std::env::var_os("SMIDGEN_TEST_MODELS").expect(
        "set SMIDGEN_TEST_MODELS to the folder of the test models; `cargo xtask models` brings them",
    );
    let gguf = Gguf::open(PathBuf::from(folder).join(file_name)).unwrap();
    assert_eq!(resident(&gguf), 0, "bytes resident after opening");
    gguf
}

/// Checks a file whose matrices have these formats, and the cost of its fingerprint.
fn check(gguf: &Gguf, architecture: &str, tensors: usize, formats: &[(Format, usize)]) {
    assert_eq!(gguf.str("general.architecture").unwrap(), architecture);
    assert_eq!(gguf.tensor_names().len(), tensors);
    gguf.check_readable().unwrap();
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for name in gguf.tensor_names() {
        let tensor = gguf.tensor(name).unwrap();
        *found.entry(format!("{:?}", tensor.format)).or_default() += 1;
        assert_eq!(gguf.view(&tensor).rows(), tensor.rows);
    }
    let expected = formats.iter().map(|(format, count)| (format!("{format:?}"), *count)).collect();
    assert_eq!(found, expected);

    let fingerprint = gguf.fingerprint().unwrap();
    let began = Instant::now();
    assert_eq!(gguf.fingerprint().unwrap(), fingerprint);
    println!("{architecture}: fingerprint {fingerprint} in {:?}", began.elapsed());
}

/// Bytes of the file that are resident; 0 where the system doesn't tell.
fn resident(gguf: &Gguf) -> usize {
    gguf.map().resident_bytes(0..gguf.map().bytes().len()).unwrap_or(0)
}

/// Reads the vocabulary and checks that its pages don't stay resident.
fn check_vocabulary(gguf: &Gguf, tokens: usize) {
    let strings = gguf.strings("tokenizer.ggml.tokens").unwrap();
    assert_eq!(strings.len(), tokens);
    assert_eq!(strings.map(Result::unwrap).filter(|token| !token.is_empty()).count(), tokens);
    assert_eq!(gguf.i32s("tokenizer.ggml.token_type").unwrap().len(), tokens);
    gguf.release_header();
    release_free_heap();
    assert!(resident(gguf) <= 64 << 10, "{} bytes after reading", resident(gguf));
}

#[test]
fn smollm2() {
    let gguf = model("SmolLM2-135M-Instruct.Q4_1.gguf");
    check(&gguf, "llama", 272, &[(F32, 61), (Q4_1, 210), (Q8_0, 1)]);
    check_vocabulary(&gguf, 49_152);
    assert_eq!(gguf.u32("llama.block_count").unwrap(), 30);
    assert_eq!(gguf.u32("llama.attention.head_count_kv").unwrap(), 3);
    assert_eq!(gguf.f32("llama.rope.freq_base").unwrap(), 100_000.0);
    assert_eq!(gguf.strings("tokenizer.ggml.merges").unwrap().len(), 48_900);
    let down = gguf.tensor("blk.29.ffn_down.weight").unwrap();
    assert_eq!((down.format, down.rows, down.cols), (Q4_1, 576, 1536));
    let norm = gguf.vector_f32("output_norm.weight").unwrap();
    assert_eq!(norm.len(), 576);
    assert!(norm.iter().all(|weight| weight.is_finite() && weight.abs() < 100.0));
}

#[test]
fn smollm2_pages_in_and_out() {
    let gguf = model("SmolLM2-135M-Instruct.Q4_1.gguf");
    let range = gguf.tensor("token_embd.weight").unwrap().range;
    gguf.map().prefetch(range.clone()).unwrap();
    if let Some(resident) = gguf.map().resident_bytes(range.clone()) {
        assert!(resident >= range.len(), "{resident} of {} bytes", range.len());
    }
    gguf.map().release(range.clone());
    if let Some(resident) = gguf.map().resident_bytes(range) {
        assert_eq!(resident, 0);
    }
}

#[test]
fn all_models_gemma3() {
    let gguf = model("gemma-3-270m-Q4_K_M.gguf");
    check(&gguf, "gemma3", 236, &[(F32, 109), (Q5_0, 81), (Q4K, 27), (Q8_0, 10), (Q6K, 9)]);
    check_vocabulary(&gguf, 262_144);
    assert_eq!(gguf.u32("gemma3.attention.sliding_window").unwrap(), 512);
    assert!(!gguf.bool("tokenizer.ggml.add_space_prefix").unwrap());
    assert_eq!(gguf.f32s("tokenizer.ggml.scores").unwrap().next(), Some(-1000.0));
}

#[test]
fn all_models_qwen2() {
    let gguf = model("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf");
    check(&gguf, "qwen2", 291, &[(Q5_0, 133), (F32, 121), (Q8_0, 13), (Q6K, 12), (Q4K, 12)]);
    check_vocabulary(&gguf, 151_936);
    assert_eq!(gguf.u32("qwen2.feed_forward_length").unwrap(), 4864);
    assert_eq!(gguf.vector_f32("blk.0.attn_q.bias").unwrap().len(), 896);
}
