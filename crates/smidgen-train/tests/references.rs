//! Losses and gradients of real models against PyTorch's.
//!
//! Needs the test models (SMIDGEN_TEST_MODELS, brought by `cargo xtask models`) and the
//! reference data (SMIDGEN_TEST_DATA).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::Value;
use smidgen_graph::plan::{Request, Traffic, plan};
use smidgen_graph::{Backward, Budget, Factor, Gradients, Rates, WeightPages};
use smidgen_kernels::Kernels;
use smidgen_runtime::memory::Meter;
use smidgen_runtime::{Engine, Numbers, Pass, Settings, SpoolFormat};
use smidgen_train::{
    Adapter, Base, Dataset, Evaluation, Evaluator, Flow, LoraConfig, MemoryBudget, OptimizerConfig,
    Outcome, Planned, PrepareOptions, TokenFile, TrainConfig, WindowSpec, prepare,
};
use smidgen_weights::{gguf_rows_to_hf, hf_rows_to_gguf};

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
    prepare(
        base,
        &data(text),
        &PrepareOptions::default(),
        MemoryBudget::Unlimited,
        &out,
        &never,
        &mut |_| {},
    )
    .expect("a token file");
    out
}

fn windows(base: &Base, tokens: &Path, chunks: usize, bos: bool) -> Evaluation {
    let spec = WindowSpec { max_seq_length: 256, chunks: Some(chunks), bos, single_token: false };
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
fn all_models_smollm2_losses() {
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

/// The adapter that the reference files start from. Their rows are in the checkpoint's order;
/// here B is held transposed and, for llama, in GGUF's order.
fn reference_adapter(base: &Base) -> Adapter {
    let mut adapter = Adapter::new(base, &LoraConfig::default(), 0).expect("an adapter");
    let places: Vec<_> =
        adapter.shape().factors().map(|(l, m, f, r)| (l, m.to_owned(), f, r)).collect();
    for (layer, module, factor, range) in places {
        let k = base.info().sites.iter().position(|s| s.module == module).expect("a projection");
        let numbers = adapter.values().piece_mut(range).expect("numbers");
        let hf: Vec<f32> = (0..numbers.len()).map(|i| start(layer, k, factor, i)).collect();
        numbers.copy_from_slice(&from_checkpoint(base, k, factor, &hf));
    }
    adapter
}

/// The formula of the reference files for A and B.
fn start(layer: usize, k: usize, factor: Factor, index: usize) -> f32 {
    let phase = layer as f64 + 0.1 * k as f64;
    match factor {
        Factor::A => (0.02 * (0.37 * index as f64 + phase).sin()) as f32,
        Factor::B => (0.01 * (0.11 * index as f64 + phase).cos()) as f32,
    }
}

const RANK: usize = 8;

/// From PEFT's order, B `[outputs, rank]`, to ours.
fn from_checkpoint(base: &Base, k: usize, factor: Factor, hf: &[f32]) -> Vec<f32> {
    if factor == Factor::A {
        return hf.to_vec();
    }
    let mut rows = hf.to_vec();
    if let Some(heads) = base.info().permutation(base.info().sites[k]) {
        hf_rows_to_gguf(hf, &mut rows, heads, RANK);
    }
    let outputs = rows.len() / RANK;
    (0..rows.len()).map(|i| rows[i % outputs * RANK + i / outputs]).collect()
}

/// The other way.
fn to_checkpoint(base: &Base, k: usize, factor: Factor, ours: &[f32]) -> Vec<f32> {
    if factor == Factor::A {
        return ours.to_vec();
    }
    let outputs = ours.len() / RANK;
    let rows: Vec<f32> = (0..ours.len()).map(|i| ours[i % RANK * outputs + i / RANK]).collect();
    let mut hf = rows.clone();
    if let Some(heads) = base.info().permutation(base.info().sites[k]) {
        gguf_rows_to_hf(&rows, &mut hf, heads, RANK);
    }
    hf
}

/// Loss and all gradients of one sequence.
fn gradients(base: &Base, adapter: &Adapter, ids: &[u32], counts: &[bool]) -> (f64, Vec<f32>) {
    let settings = Settings {
        kernels: Kernels::detect(),
        threads: 2,
        positions: ids.len(),
        spool_folder: None,
        spool_format: SpoolFormat::F32,
        meter: Meter::default(),
    };
    let request = Request {
        tokens: ids.len(),
        lora: adapter.shape().spec().clone(),
        first_trained: adapter.shape().first_layer(),
        gradients: Gradients::Whole,
        optimizer_state: vec![],
        backward: Backward::Layers,
        walked_back: 1.0,
        budget: Budget::Least,
        spool: false,
        spool_limit: None,
        spool_number: 4,
        own_traffic: Traffic::default(),
        passes: 1,
        rates: Rates::REFERENCE,
        fixed: vec![],
        weights: WeightPages::default(),
    };
    let plan = Arc::new(plan(base.blocks(), &request).expect("a plan"));
    let weights = Arc::clone(base.weights());
    let mut engine = Engine::new(base.blocks(), weights, plan, &settings).expect("an engine");
    let targets = counts.iter().filter(|c| **c).count();
    let mut pass = Pass { weight: 1.0 / targets as f32, ..Pass::default() };
    pass.push(ids, counts, 0);
    let mut values = Numbers::from(adapter.held().expect("in memory").to_vec());
    let never = AtomicBool::new(false);
    let losses = engine.train(&pass, &mut values, &never, &mut |_, _, _| Ok(())).expect("a step");
    let loss = losses[0].sum / losses[0].targets as f64;
    (loss, engine.gradients().to_vec())
}

fn norm(numbers: &[f32]) -> f64 {
    numbers.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

fn check_gradients(file: &str, reference: &str, bos: bool) {
    let base = model(file);
    let all = json(reference);
    let ids: Vec<u32> = serde_json::from_value(all["token_ids"].clone()).expect("ids");
    let (ids, reference) = match bos {
        true => ([&[2], ids.as_slice()].concat(), &all["with_bos_prepended"]),
        false => (ids, &all),
    };
    let counts: Vec<bool> = (0..ids.len()).map(|p| p > usize::from(bos)).collect();
    let adapter = reference_adapter(&base);
    let (loss, gradients) = gradients(&base, &adapter, &ids, &counts);
    let expected = reference["loss"].as_f64().expect("a loss");
    println!("loss {loss:.6} against {expected:.6}");
    assert!((loss - expected).abs() < 1e-3, "loss {loss} against {expected}");
    let (mut worst_norm, mut worst_entry, mut checked) = (0.0f64, 0.0f64, 0);
    for (layer, module, factor, range) in adapter.shape().factors() {
        let sites = base.info().sites;
        let k = sites.iter().position(|s| s.module == module).expect("a projection");
        let entry = &reference["grads"][layer * sites.len() + k];
        let short = module.rsplit('.').next().expect("a name").trim_end_matches("_proj");
        assert_eq!(entry["layer"].as_u64(), Some(layer as u64));
        assert_eq!(entry["proj"].as_str(), Some(short));
        let ours = to_checkpoint(&base, k, factor, &gradients[range]);
        let letter = if factor == Factor::A { "A" } else { "B" };
        let fro = entry[format!("grad{letter}_fro")].as_f64().expect("a norm");
        let off = (norm(&ours) / fro - 1.0).abs();
        assert!(off < 5e-3, "layer {layer} {module} {letter}: norm {} against {fro}", norm(&ours));
        worst_norm = worst_norm.max(off);
        let typical = fro / (ours.len() as f64).sqrt();
        let first = entry[format!("grad{letter}_first8")].as_array().expect("numbers");
        for (x, y) in ours.iter().zip(first) {
            let off = (f64::from(*x) - y.as_f64().expect("a number")).abs() / typical;
            assert!(off < 0.02, "layer {layer} {module} {letter}: {x} against {y}");
            worst_entry = worst_entry.max(off);
        }
        checked += 1;
    }
    println!(
        "{checked} factors: norms off {worst_norm:.1e}, entries off {worst_entry:.1e} of typical"
    );
}

#[test]
fn all_models_smollm2_gradients() {
    let file = "SmolLM2-135M-Instruct.Q4_1.gguf";
    check_gradients(file, "reference/lora_grad_reference_smollm2.json", false);
}

#[test]
fn all_models_qwen_gradients() {
    let file = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";
    check_gradients(file, "reference/lora_grad_reference_qwen.json", false);
}

#[test]
fn all_models_gemma3_gradients() {
    let file = "gemma-3-270m-Q4_K_M.gguf";
    check_gradients(file, "reference/lora_grad_reference_gemma3.json", false);
    check_gradients(file, "reference/lora_grad_reference_gemma3.json", true);
}

/// Ten AdamW steps from the same start on consecutive windows of the validation file.
#[test]
fn all_models_qwen_curve() {
    let base = model("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf");
    let reference = json("reference/peft_curve_qwen.json");
    let scratch = tempfile::tempdir().expect("a folder");
    let path = tokens(&base, "data/wikitext-2/valid.txt", scratch.path());
    let spec =
        WindowSpec { max_seq_length: 256, chunks: Some(10), bos: false, single_token: false };
    let start = scratch.path().join("start");
    reference_adapter(&base).save(&base, &start).expect("an adapter");
    let mut curves = Vec::new();
    for threads in [2, 1] {
        let base = model("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf");
        let data = Dataset::open(TokenFile::open(&path).expect("tokens"), &spec).expect("windows");
        let config = TrainConfig {
            init_adapter: Some(start.clone()),
            optimizer: OptimizerConfig::adamw(0.0),
            learning_rate: 1e-4,
            shuffle: false,
            memory: MemoryBudget::Min,
            threads,
            ..TrainConfig::default()
        };
        let mut session =
            Planned::new(base, data, 0, config).expect("a plan").start().expect("a session");
        let never = AtomicBool::new(false);
        let mut losses = Vec::new();
        let outcome = session.run(None, &never, &mut |_, report| {
            println!(
                "{threads} threads, step {}: {:.6}, {:.2} s",
                report.step, report.loss, report.seconds
            );
            losses.push(report.loss);
            Ok(Flow::Continue)
        });
        assert_eq!(outcome.expect("a run"), Outcome::Finished);
        curves.push(losses);
    }
    let expected = reference["losses"].as_array().expect("losses");
    for (loss, expected) in curves[0].iter().zip(expected) {
        let expected = expected.as_f64().expect("a number");
        assert!((loss - expected).abs() < 5e-3, "{loss} against {expected}");
    }
    assert_eq!(curves[0], curves[1], "one thread and two");
}
