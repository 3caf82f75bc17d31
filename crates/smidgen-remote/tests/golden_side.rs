//! Ten steps of side tuning on a tiny model of each family, against PyTorch in float64
//! (`tests/golden/golden_side.py`), device and trainer in one process; and the device's own forward
//! of the network against the trainer's.

#[path = "../../smidgen-train/tests/common/mod.rs"]
mod common;
mod side;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use candle_core::Device;
use common::runs::dataset;
use common::{
    FAMILIES, Model, Run, golden_batches, golden_json, golden_model, norm, repository, safetensors,
    sequences,
};
use serde_json::Value;
use side::TOKENS;
use smidgen_graph::{Backward, Budget, LoraSpec};
use smidgen_remote::{LocalLink, SideTrainer};
use smidgen_runtime::Engine;
use smidgen_train::{
    Evaluator, LinkError, LossOn, Sequence, SideConfig, SideGate, SideHead, SideLabel, SideLink,
    SideNetwork, SideRun, SideSample, SideShape, TapFormat,
};

const CASES: [&str; 4] = ["sum", "ladder", "narrow", "narrow_ladder"];
/// Those whose loss the trainer computes.
const TOLD: [&str; 2] = ["sum.told", "narrow_ladder.told"];
/// Of a loss, absolute. The taps are halves on both sides, but of hidden states that f32 rounds
/// otherwise than float64: one in a few hundred becomes another half.
const LOSSES: f64 = 2e-4;
/// Of a tensor's gradient, relative to its norm; the same holds.
const GRADIENTS: f64 = 2e-3;
/// Every so manieth number of a tensor stands in the golden file.
const STRIDE: usize = 17;

/// A link that keeps the gradients of its first step.
#[derive(Debug)]
struct Watched {
    link: LocalLink,
    first: Arc<Mutex<Vec<f32>>>,
}

impl SideLink for Watched {
    fn confirmed(&mut self) -> Result<u64, LinkError> {
        self.link.confirmed()
    }

    fn begin(&mut self, step: u64, samples: &[SideSample]) -> Result<Vec<bool>, LinkError> {
        self.link.begin(step, samples)
    }

    fn taps(&mut self, step: u64, place: usize, bytes: &[u8]) -> Result<(), LinkError> {
        self.link.taps(step, place, bytes)
    }

    fn labels(
        &mut self,
        step: u64,
        place: usize,
        scale: f32,
        labels: &[SideLabel],
    ) -> Result<(), LinkError> {
        self.link.labels(step, place, scale, labels)
    }

    fn output(&mut self, step: u64, place: usize, output: &mut [f32]) -> Result<(), LinkError> {
        self.link.output(step, place, output)
    }

    fn gradient(&mut self, step: u64, place: usize, gradient: &[f32]) -> Result<(), LinkError> {
        self.link.gradient(step, place, gradient)
    }

    fn update(&mut self, step: u64, rate: f64) -> Result<(), LinkError> {
        if step == 1 {
            self.link.learn(step)?;
            *self.first.lock().expect("no panic") = self.link.trainer().gradients()?;
        }
        self.link.update(step, rate)
    }

    fn confirm(&mut self, step: u64) -> Result<Option<f64>, LinkError> {
        self.link.confirm(step)
    }

    fn numbers(&mut self, take: &mut dyn FnMut(&[f32])) -> Result<(), LinkError> {
        self.link.numbers(take)
    }
}

/// A case of a family: the settings, the model and its batches.
struct Case {
    model: Model,
    batches: Vec<Vec<Sequence>>,
    json: Value,
    shape: SideShape,
    loss: LossOn,
}

impl Case {
    fn open(family: &str, case: &str) -> Self {
        let text = std::fs::read(repository("tests/golden/side.json")).expect("a golden file");
        let mut json: Value = serde_json::from_slice(&text).expect("JSON");
        let json = json[family][case].take();
        let model = golden_model(family);
        let number = |name: &str| json[name].as_u64().expect("a number") as usize;
        let config = SideConfig {
            first_tap: number("first_tap"),
            every: number("every"),
            width: number("width"),
            reduction: number("reduction"),
            gate: if json["gate"] == "ladder" { SideGate::Ladder } else { SideGate::Sum },
            format: TapFormat::F16,
        };
        let shape = SideShape::new(config, model.info.layers, model.info.hidden).expect("a shape");
        let loss = if case.ends_with(".told") { LossOn::Trainer } else { LossOn::Device };
        Self { batches: golden_batches(&golden_json(family)), model, json, shape, loss }
    }

    /// The start that the golden script makes by its formula.
    fn start(&self) -> SideNetwork {
        let mut numbers = vec![0.0; self.shape.len()];
        for (index, tensor) in self.shape.tensors().enumerate() {
            let amplitude = if tensor.name.ends_with("up.weight") { 0.02 } else { 0.1 };
            for (i, x) in numbers[tensor.range.clone()].iter_mut().enumerate() {
                *x = (amplitude * (0.37 * i as f64 + index as f64).sin()) as f32;
            }
        }
        SideNetwork::new(self.shape.clone(), 1.0, numbers)
    }

    fn link(&self) -> LocalLink {
        let decay = self.json["weight_decay"].as_f64().expect("decay");
        let trainer = SideTrainer::new(&self.start(), decay, Device::Cpu).expect("a trainer");
        match self.loss {
            LossOn::Device => LocalLink::new(trainer),
            LossOn::Trainer => {
                let head = SideHead::new(&self.model.base, 1).expect("a head");
                LocalLink::with_head(trainer, head)
            }
        }
    }

    fn engine(&self, threads: usize, budget: Budget) -> Engine {
        self.engine_of(TOKENS, threads, budget)
    }

    /// An engine for sequences of up to so many tokens.
    fn engine_of(&self, tokens: usize, threads: usize, budget: Budget) -> Engine {
        let lora = LoraSpec { rank: 0, scale: 0.0, dropout: 0.0, modules: Vec::new() };
        let run = Run::new(lora, self.model.info.layers, tokens);
        let backward = match self.loss {
            LossOn::Device => Backward::Head,
            LossOn::Trainer => Backward::Nothing,
        };
        self.model.engine(&Run { backward, threads, budget, ..run })
    }

    /// Losses before each of ten steps, of eleven.
    fn train(&self, engine: &mut Engine, run: &mut SideRun) -> Vec<f64> {
        let rate = self.json["lr"].as_f64().expect("a rate");
        side::train(engine, run, &self.batches, 1..=10, 11, rate)
    }

    fn run(&self, link: impl SideLink + 'static) -> SideRun {
        side::run(&self.shape, link, self.loss, 1, None)
    }
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    let golden = safetensors(&repository("tests/golden/side.safetensors"));
    for family in FAMILIES {
        for name in CASES.into_iter().chain(TOLD) {
            let case = Case::open(family, name);
            let first = Arc::new(Mutex::new(Vec::new()));
            let watched = Watched { link: case.link(), first: Arc::clone(&first) };
            let mut run = case.run(watched);
            let losses = case.train(&mut case.engine(1, Budget::Unlimited), &mut run);
            let expected = case.json["losses"].as_array().expect("losses").iter();
            for (loss, expected) in losses.iter().zip(expected) {
                let error = (loss - expected.as_f64().expect("a loss")).abs();
                assert!(error < LOSSES, "{family} {name}: {losses:?}, {error:e}");
            }
            let network = run.network().expect("the network");
            let scale = case.json["scale"].as_f64().expect("a scale");
            assert!((f64::from(network.scale()) / scale - 1.0).abs() < 1e-6, "{family} {name}");
            let gradients = first.lock().expect("no panic");
            for tensor in case.shape.tensors() {
                let expected = &golden[&format!("{family}.{name}.grad.{}", tensor.name)];
                let found = &gradients[tensor.range.clone()];
                let apart: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
                let error = norm(&apart) / norm(expected).max(1e-12);
                assert!(error < GRADIENTS, "{family} {name} {}: {error:e}", tensor.name);
                let Some(end) = golden.get(&format!("{family}.{name}.end.{}", tensor.name)) else {
                    assert!(TOLD.contains(&name), "{family} {name}");
                    continue;
                };
                let found = network.numbers()[tensor.range.clone()].iter().step_by(STRIDE);
                let error = found.zip(end).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(error < 2e-3, "{family} {name} {} at the end: {error:e}", tensor.name);
            }
        }
    }
}

#[test]
fn the_device_computes_the_network_that_was_trained() {
    let place = tempfile::tempdir().expect("a folder");
    for family in FAMILIES {
        for name in CASES {
            let case = Case::open(family, name);
            let mut engine = case.engine(2, Budget::Least);
            let mut run = case.run(case.link());
            let losses = case.train(&mut engine, &mut run);
            let network = run.network().expect("the network");
            // What the next step will say before it moves anything.
            let batch = &case.batches[0];
            let base = &case.model.base;
            let data = dataset(base, place.path(), batch);
            let mut evaluator =
                Evaluator::new(base, network, TOKENS, TOKENS, 2, Budget::Least).expect("a plan");
            let scored = evaluator.evaluate(&data, &AtomicBool::new(false), &mut |_, _| {});
            let scored = scored.expect("losses").loss;
            // Batches come in turn, and this one is not the first's turn.
            let steps = std::slice::from_ref(batch);
            let next = side::train(&mut engine, &mut run, steps, 11..=11, 11, 0.0)[0];
            let error = (scored - next).abs();
            assert!(error < 1e-5, "{family} {name}: {next} after {losses:?}, {error:e}");
        }
    }
}

#[test]
fn losses_depend_on_neither_threads_nor_budget_nor_window_nor_what_is_kept() {
    let place = tempfile::tempdir().expect("a folder");
    for name in ["sum", "sum.told"] {
        let case = Case::open("qwen2", name);
        let ways = [
            (1, Budget::Unlimited, 0, None),
            (3, Budget::Unlimited, 1, Some(place.path())),
            (2, Budget::Least, 3, None),
            (1, Budget::Least, 30, Some(place.path())),
        ];
        let losses = ways.map(|(threads, budget, window, folder)| {
            let mut run = side::run(&case.shape, case.link(), case.loss, window, folder);
            case.train(&mut case.engine(threads, budget), &mut run)
        });
        assert!(losses.iter().all(|found| *found == losses[0]), "{name}: {losses:?}");
    }
}

/// With the least memory, the layers and the head are passed in bands of 128 rows.
#[test]
fn bands_and_pieces_of_the_head_change_no_loss() {
    let tokens = 300;
    for name in ["sum", "sum.told"] {
        let case = Case::open("qwen2", name);
        let batch = sequences(case.model.info.vocabulary, &[tokens, 40, 201]);
        let ways = [(Budget::Unlimited, None, tokens), (Budget::Least, Some(128), 128)];
        let losses = ways.map(|(budget, row_tile, head_rows)| {
            let mut engine = case.engine_of(tokens, 2, budget);
            let plan = engine.plan();
            assert_eq!(plan.row_tile, row_tile, "{name}");
            if case.loss == LossOn::Device {
                assert_eq!(plan.head_rows, head_rows, "{name}");
            }
            let link = Box::new(case.link());
            let mut run = side::run_of(tokens, &case.shape, link, case.loss, 1, None);
            side::train(&mut engine, &mut run, std::slice::from_ref(&batch), 1..=4, 4, 1e-2)
        });
        assert!(losses[0] == losses[1], "{name}: {losses:?}");
        assert!(losses[0][3] < losses[0][0], "{name}: {losses:?}");
    }
}
