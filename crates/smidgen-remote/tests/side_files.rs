//! A side network on disk: what was trained is what is loaded, scored and generated with, and what
//! does not belong there is refused.

#[path = "../../smidgen-train/tests/common/mod.rs"]
mod common;
mod side;

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use candle_core::Device;
use common::runs::dataset;
use common::{FAMILIES, Model, Run, golden_batches, golden_json, golden_model, random};
use side::TOKENS;
use smidgen_graph::{Backward, Budget, LoraSpec};
use smidgen_remote::{LocalLink, SideTrainer};
use smidgen_train::{
    Adapter, Evaluator, GenerateConfig, LoraConfig, LossOn, Sequence, SideConfig, SideNetwork,
    SideShape, TapFormat, Tuning,
};

fn shape(model: &Model, format: TapFormat) -> SideShape {
    let config = SideConfig { width: 6, format, ..SideConfig::usual(model.info.layers) };
    SideShape::new(config, model.info.layers, model.info.hidden).expect("a shape")
}

/// A network after some steps, and the loss that the next one would tell of `batch`.
fn trained(model: &Model, format: TapFormat, batch: &[Sequence]) -> (SideNetwork, f64) {
    let shape = shape(model, format);
    let start = SideNetwork::new(shape.clone(), 1.0, shape.start(3));
    let trainer = SideTrainer::new(&start, 0.01, Device::Cpu).expect("a trainer");
    let mut run = side::run(&shape, LocalLink::new(trainer), LossOn::Device, 1, None);
    let lora = LoraSpec { rank: 0, scale: 0.0, dropout: 0.0, modules: Vec::new() };
    let engine = Run::new(lora, model.info.layers, TOKENS);
    let mut engine = model.engine(&Run { backward: Backward::Head, ..engine });
    let batches = [batch.to_vec()];
    let first = side::train(&mut engine, &mut run, &batches, 1..=8, 9, 3e-2)[0];
    let last = side::train(&mut engine, &mut run, &batches, 9..=9, 9, 0.0)[0];
    assert!(last < first - 0.3, "{first} to {last}");
    (run.network().expect("the network"), last)
}

#[test]
fn a_saved_network_is_the_one_that_was_trained() {
    let place = tempfile::tempdir().expect("a folder");
    for family in FAMILIES {
        let model = golden_model(family);
        let batch = &golden_batches(&golden_json(family))[0];
        let (network, loss) = trained(&model, TapFormat::F16, batch);
        let folder = place.path().join(family);
        network.save(&model.base, &folder).expect("saved");
        let (tuning, notes) = Tuning::load(&model.base, &folder).expect("loaded");
        let Tuning::Side(loaded) = &tuning else { panic!("{tuning:?}") };
        assert!(notes.is_empty() && *loaded == network);
        let data = dataset(&model.base, place.path(), batch);
        let mut evaluator =
            Evaluator::new(&model.base, tuning, TOKENS, TOKENS, 2, Budget::Least).expect("a plan");
        let plan = evaluator.plan();
        assert!(plan.rows.iter().any(|row| row.name == "side network"));
        let scored = evaluator.evaluate(&data, &AtomicBool::new(false), &mut |_, _| {});
        let scored = scored.expect("losses").loss;
        assert!((scored - loss).abs() < 1e-5, "{family}: {scored} and {loss}");
    }
}

#[test]
fn few_bits_learn_as_well() {
    let model = golden_model("qwen2");
    let batch = &golden_batches(&golden_json("qwen2"))[0];
    let losses = [TapFormat::F16, TapFormat::Q8, TapFormat::Q4]
        .map(|format| trained(&model, format, batch).1);
    assert!((losses[1] - losses[0]).abs() < 0.05, "{losses:?}");
    assert!((losses[2] - losses[0]).abs() < 0.5, "{losses:?}");
}

#[test]
fn generating_goes_token_by_token_as_scoring_does_at_once() {
    let model = golden_model("llama");
    let batch = &golden_batches(&golden_json("llama"))[0];
    let (network, _) = trained(&model, TapFormat::F16, batch);
    let ids = &batch[1].ids[..12];
    let mut evaluator =
        Evaluator::new(&model.base, network.clone(), 12, 12, 1, Budget::Unlimited).expect("a plan");
    let mut best: Vec<(f32, u32)> = vec![(f32::NEG_INFINITY, 0); ids.len()];
    evaluator
        .logits(ids, &mut |first, tile| {
            for (row, best) in best.iter_mut().enumerate() {
                for (token, &logit) in (first as u32..).zip(tile.row(row)) {
                    *best = if logit > best.0 { (logit, token) } else { *best };
                }
            }
        })
        .expect("logits");
    let mut evaluator =
        Evaluator::to_generate(&model.base, network, 5, 16, 2, Budget::Unlimited).expect("a plan");
    let too_many = evaluator.logits(&[1; 6], &mut |_, _| {}).expect_err("more than planned");
    assert!(too_many.to_string().contains("does not fit"), "{too_many}");
    let mut conversation = evaluator.conversation().expect("room");
    let config = GenerateConfig { max_tokens: 1, ..GenerateConfig::default() };
    for end in [1, 5, 6, 12] {
        let cancel = AtomicBool::new(false);
        let made = evaluator.reply(&mut conversation, &ids[..end], &config, &cancel, &mut |_| {});
        assert_eq!(made.expect("a token"), [best[end - 1].1], "after {end} tokens");
    }
}

#[test]
fn what_does_not_belong_there_is_refused() {
    let model = golden_model("qwen2");
    let place = tempfile::tempdir().expect("a folder");
    let folder = place.path().join("side");
    let shape = shape(&model, TapFormat::Q8);
    let mut numbers = vec![0.0; shape.len()];
    random(1, 0.1, &mut numbers);
    let network = SideNetwork::new(shape.clone(), 2.5, numbers.clone());
    network.save(&model.base, &folder).expect("saved");
    let refused = |folder: &Path, base: &Model| {
        Tuning::load(&base.base, folder).map(|_| ()).expect_err("refused").to_string()
    };
    let other = golden_model("llama");
    assert!(refused(&folder, &other).contains("give that model"));
    assert!(Adapter::load(&model.base, &folder).is_err_and(|e| e.to_string().contains("eval,")));

    let config = folder.join("side_config.json");
    let good = fs::read_to_string(&config).expect("settings");
    let changes = [
        ("\"version\": 1", "\"version\": 2", "version 2"),
        ("\"tap_bits\": 8", "\"tap_bits\": 7", "16, 8 or 4"),
        ("\"width\": 6", "\"width\": 7", "ask for [7, 96]"),
        ("\"width\": 6", "\"width\": 0", "--side-width"),
        ("\"width\": 6", "\"breadth\": 6", "breadth"),
        ("\"gate\": \"sum\"", "\"gate\": \"all\"", "all"),
        ("\"gate\": \"sum\"", "\"gate\": \"ladder\"", "tensors"),
        ("\"reduction\": 1", "\"reduction\": 5", "divides"),
        ("\"first_tap\": 1", "\"first_tap\": 99", "--first-tap"),
        ("\"layers\": 3", "\"layers\": 4", "give that model"),
        ("\"scale\": 2.5", "\"scale\": 1e99", "out of range"),
    ];
    for (from, to, expected) in changes {
        assert!(good.contains(from), "{from} in {good}");
        fs::write(&config, good.replace(from, to)).expect("written");
        let said = refused(&folder, &model);
        assert!(said.contains(expected), "{to}: {said}");
    }
    fs::write(&config, &good).expect("written");
    let weights = folder.join("side_model.safetensors");
    let whole = fs::read(&weights).expect("numbers");
    fs::write(&weights, &whole[..whole.len() - 4]).expect("written");
    assert!(refused(&folder, &model).contains("side_model.safetensors"));
    let mut wrong = whole.clone();
    let end = wrong.len();
    wrong[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, wrong).expect("written");
    assert!(refused(&folder, &model).contains("not finite"));
    fs::write(&weights, whole).expect("written");

    // Numbers that are not finite leave what was saved before.
    numbers[7] = f32::INFINITY;
    let broken = SideNetwork::new(shape, 2.5, numbers);
    assert!(broken.save(&model.base, &folder).is_err());
    assert!(Tuning::load(&model.base, &folder).is_ok());

    let mut lora = Adapter::new(&model.base, &LoraConfig::default(), 0).expect("an adapter");
    lora.save(&model.base, &folder).expect("saved");
    assert!(refused(&folder, &model).contains("and a side network"));
}
