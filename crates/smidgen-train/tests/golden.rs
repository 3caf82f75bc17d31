//! Logits, losses, every gradient and ten optimiser steps of a tiny model of each family, against
//! PyTorch, transformers and PEFT (`tests/golden`), for every instruction set and with the same
//! bits for all of them.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use common::{
    FAMILIES, Model, bits, golden_batches, golden_json, golden_model, golden_sequence, gradient,
    loss, numbers, peft_name, peft_order, relative, repository, safetensors,
};
use serde_json::Value;
use smidgen_graph::Budget;
use smidgen_kernels::{Isa, Kernels};
use smidgen_runtime::Pass;
use smidgen_train::step::{StepSettings, step};
use smidgen_train::{Adapter, Evaluator, Optimizer, OptimizerConfig, Sequence};

const LOGITS: f64 = 1e-5;
const GRADIENTS: f64 = 3e-5;
const LOSSES: f64 = 5e-6;
const ADAMW_LOSSES: f64 = 1e-5;
/// Of 8-bit AdamW's losses against those of f32 AdamW, relative.
const EIGHT_BIT_LOSSES: f64 = 3e-3;
const SGD_LOSSES: f64 = 1e-4;
const MOMENTUM_LOSSES: f64 = 1e-5;
const LORAPLUS_LOSSES: f64 = 5e-5;

/// Rows a pass: a batch's three sequences fit into one pass, fill two, or take one each.
const TOKENS: [usize; 3] = [65, 41, 32];

/// Steps to compare between ways: the third loss follows updates from both batches, with moments.
const STEPS_ALIKE: usize = 3;

/// What the files of one family hold.
struct Golden {
    family: &'static str,
    model: Model,
    json: Value,
    tensors: BTreeMap<String, Vec<f32>>,
}

impl Golden {
    fn open(family: &'static str) -> Self {
        Self {
            family,
            model: golden_model(family),
            json: golden_json(family),
            tensors: safetensors(&repository(&format!("tests/golden/{family}.safetensors"))),
        }
    }

    fn adapter_folder(&self) -> PathBuf {
        repository(&format!("tests/golden/{}-adapter", self.family))
    }

    fn adapter(&self) -> Adapter {
        Adapter::load(&self.model.base, &self.adapter_folder()).expect("the start adapter").0
    }

    fn sequence(&self) -> Sequence {
        golden_sequence(&self.json["sequence"])
    }

    fn batches(&self) -> Vec<Vec<Sequence>> {
        golden_batches(&self.json)
    }

    /// Checks every gradient against those named `prefix`; returns the worst distance.
    fn check_gradients(&self, prefix: &str, adapter: &Adapter, gradients: &[f32]) -> f64 {
        let mut worst: f64 = 0.0;
        let mut checked = 0;
        for (layer, module, factor, range) in adapter.shape().factors() {
            let name = peft_name(&self.model.info, layer, module, factor);
            let found = peft_order(
                &self.model.info,
                module,
                factor,
                &gradients[range],
                adapter.config().rank,
            );
            let off = relative(&found, &self.tensors[&format!("{prefix}.grad.{name}")]);
            assert!(off < GRADIENTS, "{} {prefix} {name}: {off:.1e}", self.family);
            worst = worst.max(off);
            checked += 1;
        }
        let all = self.tensors.keys().filter(|k| k.starts_with(&format!("{prefix}.grad.")));
        assert_eq!(checked, all.count(), "every gradient of {}", self.family);
        worst
    }
}

fn check_loss(what: &str, found: f64, expected: &Value, tolerance: f64) -> f64 {
    let expected = expected.as_f64().expect("a loss");
    let off = (found - expected).abs();
    assert!(off < tolerance, "{what}: {found} against {expected}, off {off:.1e}");
    off
}

fn check_logits(golden: &Golden, adapter: Adapter, name: &str) {
    let ids = golden.sequence().ids;
    let vocabulary = golden.model.info.vocabulary;
    let mut evaluator =
        Evaluator::new(&golden.model.base, adapter, ids.len(), ids.len(), 2, Budget::Unlimited)
            .expect("a plan");
    let mut logits = vec![0.0; ids.len() * vocabulary];
    let visit = &mut |first: usize, tile: smidgen_kernels::MatRef<'_>| {
        for row in 0..tile.rows() {
            logits[row * vocabulary + first..][..tile.cols()].copy_from_slice(tile.row(row));
        }
    };
    evaluator.logits(&ids, visit).expect("logits");
    let off = relative(&logits, &golden.tensors[name]);
    println!("{} {name}: off {off:.1e}", golden.family);
    assert!(off < LOGITS, "{} {name}: {off:.1e}", golden.family);
}

#[test]
fn logits_match() {
    for golden in FAMILIES.map(Golden::open) {
        check_logits(&golden, Adapter::none(&golden.model.base), "sequence.base_logits");
        check_logits(&golden, golden.adapter(), "sequence.logits");
    }
}

#[test]
fn sequence_loss_and_gradients_match() {
    for golden in FAMILIES.map(Golden::open) {
        let (adapter, sequences) = (golden.adapter(), [golden.sequence()]);
        let run = golden.model.run(&adapter, sequences[0].ids.len());
        let mut engine = golden.model.engine(&run);
        let (found, gradients) = gradient(&mut engine, numbers(&adapter), &sequences, None);
        let evaluated = loss(&mut engine, numbers(&adapter), &sequences, None);
        assert_eq!(found.to_bits(), evaluated.to_bits(), "training and evaluation");
        let off = check_loss(golden.family, found, &golden.json["sequence"]["loss"], LOSSES);
        let worst = golden.check_gradients("sequence", &adapter, &gradients);
        println!("{}: loss off {off:.1e}, worst gradient off {worst:.1e}", golden.family);
    }
}

#[test]
fn batch_loss_and_gradients_match_with_the_same_bits_for_every_set_thread_and_pass() {
    for golden in FAMILIES.map(Golden::open) {
        let (adapter, batch) = (golden.adapter(), &golden.batches()[0]);
        let mut first: Option<(u64, Vec<u32>)> = None;
        for (kernels, threads, tokens) in ways() {
            let mut run = golden.model.run(&adapter, tokens);
            (run.kernels, run.threads) = (kernels, threads);
            let mut engine = golden.model.engine(&run);
            let (found, gradients) = gradient(&mut engine, numbers(&adapter), batch, None);
            let this = (found.to_bits(), bits(&gradients));
            if let Some(first) = &first {
                let how = format!("{:?}, {threads} threads, {tokens}", kernels.isa());
                assert!(*first == this, "{}: {how}", golden.family);
                continue;
            }
            let off = check_loss(golden.family, found, &golden.json["batch_loss"], LOSSES);
            let worst = golden.check_gradients("batch", &adapter, &gradients);
            println!("{}: loss off {off:.1e}, worst gradient off {worst:.1e}", golden.family);
            first = Some(this);
        }
    }
}

/// Instruction sets, threads and rows a pass to compute the same with. The scalar set, a hundred
/// times slower than the others, takes one way.
fn ways() -> Vec<(Kernels, usize, usize)> {
    let mut ways = Vec::new();
    for kernels in fast_sets() {
        for threads in 1..=3 {
            ways.extend(TOKENS.map(|tokens| (kernels, threads, tokens)));
        }
    }
    ways.push((Kernels::scalar(), 2, TOKENS[0]));
    ways
}

/// As many of the ways as show each set, number of threads and rows a pass once: what the optimiser
/// adds to a gradient that is alike for all of them. An emulated processor has no time for more.
fn steps_ways() -> Vec<(Kernels, usize, usize)> {
    let mut ways = Vec::new();
    for kernels in fast_sets() {
        ways.extend((1..=3).zip(TOKENS).map(|(threads, tokens)| (kernels, threads, tokens)));
    }
    ways.push((Kernels::scalar(), 2, TOKENS[0]));
    ways
}

fn fast_sets() -> impl Iterator<Item = Kernels> {
    Kernels::all().into_iter().filter(|kernels| kernels.isa() != Isa::Scalar)
}

/// Losses of so many steps, each before its update, on the two batches in turn.
fn losses(
    golden: &Golden,
    (kernels, threads, tokens): (Kernels, usize, usize),
    config: OptimizerConfig,
    (rate, ratio): (f64, f64),
    steps: usize,
) -> Vec<f64> {
    let mut adapter = golden.adapter();
    let mut run = golden.model.run(&adapter, tokens);
    (run.kernels, run.threads) = (kernels, threads);
    let mut engine = golden.model.engine(&run);
    let optimizer = Optimizer::new(config, &engine.plan().param_ranges()).expect("memory");
    let mut optimizer = optimizer.with_loraplus(ratio, adapter.shape());
    let (batches, mut pass) = (golden.batches(), Pass::default());
    let one = |s: usize| {
        let settings = StepSettings { number: s as u64 + 1, rate, clip: None, seed: 0 };
        let (sequences, never) = (&batches[s % 2], AtomicBool::new(false));
        let adapter = &mut adapter;
        step(&mut engine, adapter, &mut optimizer, sequences, &settings, &mut pass, &never)
            .expect("a step")
            .loss
    };
    (0..steps).map(one).collect()
}

fn check_ten_losses(key: &str, config: OptimizerConfig, tolerance: f64) {
    for golden in FAMILIES.map(Golden::open) {
        let steps = &golden.json["steps"][key];
        let ratio = steps["loraplus_ratio"].as_f64().unwrap_or(1.0);
        let rates = (steps["lr"].as_f64().expect("a rate"), ratio);
        let first = losses(&golden, (Kernels::detect(), 1, TOKENS[0]), config, rates, 10);
        let expected = steps["losses"].as_array().expect("losses");
        assert_eq!(first.len(), expected.len());
        let mut worst: f64 = 0.0;
        for (s, (found, expected)) in first.iter().zip(expected).enumerate() {
            let what = format!("{} {key} step {s}", golden.family);
            worst = worst.max(check_loss(&what, *found, expected, tolerance));
        }
        println!("{} {key}: worst loss off {worst:.1e}", golden.family);
        for way in steps_ways() {
            let again = losses(&golden, way, config, rates, STEPS_ALIKE);
            assert_eq!(again, first[..STEPS_ALIKE], "{} {way:?}", golden.family);
        }
    }
}

#[test]
fn ten_adamw_losses_match() {
    check_ten_losses("adamw", OptimizerConfig::adamw(0.0), ADAMW_LOSSES);
}

#[test]
fn ten_adamw_losses_with_weight_decay_match() {
    check_ten_losses("adamw_decay", OptimizerConfig::adamw(0.01), ADAMW_LOSSES);
}

#[test]
fn fifty_eight_bit_adamw_losses_stay_close_to_f32_ones() {
    for golden in FAMILIES.map(Golden::open) {
        let rate = golden.json["steps"]["adamw"]["lr"].as_f64().expect("a rate");
        let way = (Kernels::detect(), 1, TOKENS[0]);
        let of = |config| losses(&golden, way, config, (rate, 1.0), 50);
        let wide = of(OptimizerConfig::adamw(0.01));
        let small = of(OptimizerConfig::adamw_8bit(0.01));
        let off = |(wide, small): (&f64, &f64)| ((small - wide) / wide).abs();
        let worst = wide.iter().zip(&small).map(off).fold(0.0, f64::max);
        println!(
            "{}: loss {:.4} at first, {:.4} after 50 steps, {:.4} in 8 bits, worst {worst:.1e}",
            golden.family, wide[0], wide[49], small[49]
        );
        assert!(worst < EIGHT_BIT_LOSSES, "{}: {worst:e}", golden.family);
    }
}

#[test]
fn ten_sgd_losses_match() {
    check_ten_losses("sgd", OptimizerConfig::sgd(0.0), SGD_LOSSES);
}

#[test]
fn ten_momentum_losses_match() {
    let config = OptimizerConfig::Sgd { momentum: 0.9, weight_decay: 0.01 };
    check_ten_losses("sgd_momentum", config, MOMENTUM_LOSSES);
}

#[test]
fn ten_loraplus_losses_match() {
    check_ten_losses("adamw_loraplus", OptimizerConfig::adamw(0.01), LORAPLUS_LOSSES);
}

#[test]
fn a_saved_adapter_is_the_one_that_was_loaded() {
    for golden in FAMILIES.map(Golden::open) {
        let mut adapter = golden.adapter();
        let scratch = tempfile::tempdir().expect("a folder");
        let folder = scratch.path().join("saved");
        adapter.save(&golden.model.base, &folder).expect("a saved adapter");
        let (again, notes) = Adapter::load(&golden.model.base, &folder).expect("an adapter");
        assert_eq!(bits(numbers(&again)), bits(numbers(&adapter)));
        assert!(notes.is_empty(), "{notes:?}");
        let tensors = |folder: PathBuf| safetensors(&folder.join("adapter_model.safetensors"));
        let (saved, start) = (tensors(folder), tensors(golden.adapter_folder()));
        assert!(saved == start, "{}: names or numbers differ", golden.family);
    }
}
