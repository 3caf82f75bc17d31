//! Losses and gradients of real models against PyTorch's.
//!
//! Needs the test models (SMIDGEN_TEST_MODELS, brought by `cargo xtask models`) and the
//! reference data (SMIDGEN_TEST_DATA).

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::Value;
use smidgen_graph::{Budget, Factor};
use smidgen_train::{
    Adapter, Base, Dataset, Evaluation, Evaluator, PrepareOptions, TokenFile, WindowSpec, prepare,
};

fn folder(variable: &str, how: &str) -> PathBuf {
    let set = std::env::var_os(variable).filter(|v| !v.is_empty());
    PathBuf::from(set.unwrap_or_else(|| panic!("{variable} is not set: {how}")))
}

fn model(file: &str) -> Base {
    let folder = folder("SMIDGEN_TEST_MODELS", "run `cargo xtask test --all-models`");
    Base::open(folder.join(file)).expect("a test model")
}

fn data(file: &str) -> PathBuf {
    folder("SMIDGEN_TEST_DATA", "set it to the folder with reference/ and data/").join(file)
}

fn json(file: &str) -> Value {
    let text = std::fs::read(data(file)).expect("a reference file");
    serde_json::from_slice(&text).expect("JSON")
}

/// The token file of a text under a model, made once.
fn tokens(base: &Base, text: &str, scratch: &Path) -> PathBuf {
    let out = scratch.join("text.tokens");
    let never = AtomicBool::new(false);
    prepare(base, &data(text), &PrepareOptions::default(), &out, &never, &mut |_| {})
        .expect("a token file");
    out
}

fn windows(base: &Base, tokens: &Path, chunks: usize, bos: bool) -> Evaluation {
    let spec = WindowSpec { max_seq_length: 256, chunks: Some(chunks), bos };
    let data = Dataset::open(TokenFile::open(tokens).expect("tokens"), &spec).expect("windows");
    let rows = data.max_len();
    let adapter = Adapter::none(base);
    let mut evaluator =
        Evaluator::new(base, adapter, rows, rows, 2, Budget::Unlimited).expect("a plan");
    evaluator.evaluate(&data, &AtomicBool::new(false), &mut |_, _| {}).expect("losses")
}

fn check_windows(file: &str, key: &str, bos: bool) {
    let base = model(file);
    let reference = &json("reference/reference_losses.json")[key];
    let reference = if bos { &reference["with_bos_prepended"] } else { reference };
    let scratch = tempfile::tempdir().expect("a folder");
    let path = tokens(&base, "data/wikitext-2/test.txt", scratch.path());
    let losses = windows(&base, &path, 20, bos).window_losses;
    let expected = reference["per_window_nats"].as_array().expect("losses");
    assert_eq!(losses.len(), expected.len());
    for (i, (loss, expected)) in losses.iter().zip(expected).enumerate() {
        let expected = expected.as_f64().expect("a number");
        let off = (loss - expected).abs();
        println!("window {i}: {loss:.6} against {expected:.6}, off {off:.1e}");
        assert!(off < 2e-3, "window {i}: {loss} against {expected}");
    }
}

#[test]
fn smollm2_losses() {
    check_windows("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m", false);
}

#[test]
fn all_models_qwen_losses() {
    check_windows("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "qwen2.5-coder-0.5b", false);
}

#[test]
fn all_models_gemma3_losses() {
    check_windows("gemma-3-270m-Q4_K_M.gguf", "gemma3-270m", false);
    check_windows("gemma-3-270m-Q4_K_M.gguf", "gemma3-270m", true);
}

/// The formula of the reference files for A and B, in the checkpoint's order of rows.
fn start(layer: usize, k: usize, factor: Factor, index: usize) -> f32 {
    let phase = layer as f64 + 0.1 * k as f64;
    match factor {
        Factor::A => (0.02 * (0.37 * index as f64 + phase).sin()) as f32,
        Factor::B => (0.01 * (0.11 * index as f64 + phase).cos()) as f32,
    }
}
