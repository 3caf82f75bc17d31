//! Ten steps of side tuning on a tiny model of each family, against PyTorch in float64
//! (`tests/golden/golden_side.py`), device and trainer in one process; and the device's own forward
//! of the network against the trainer's.

#[path = "../../smidgen-train/tests/common/mod.rs"]
mod common;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use candle_core::Device;
use common::runs::dataset;
use common::{
    FAMILIES, Model, Run, golden_batches, golden_json, golden_model, norm, repository, safetensors,
};
use serde_json::Value;
use smidgen_graph::{Backward, Budget, LoraSpec};
use smidgen_remote::{LocalLink, SideTrainer};
use smidgen_runtime::{Engine, Pass};
use smidgen_train::step::StepSettings;
use smidgen_train::{
    Evaluator, LinkError, Sequence, SideConfig, SideGate, SideLink, SideNetwork, SideRun,
    SideShape, TapFormat,
};

const CASES: [&str; 4] = ["sum", "ladder", "narrow", "narrow_ladder"];
/// Of a loss, absolute. The taps are halves on both sides, but of hidden states that f32 rounds
/// otherwise than float64: one in a few hundred becomes another half.
const LOSSES: f64 = 2e-4;
/// Of a tensor's gradient, relative to its norm; the same holds.
const GRADIENTS: f64 = 2e-3;
/// Rows of the longest sequence.
const TOKENS: usize = 32;
/// Every so manieth number of a tensor stands in the golden file.
const STRIDE: usize = 17;

/// A link that keeps the gradients of its first step.
#[derive(Debug)]
struct Watched {
    link: LocalLink,
    first: Arc<Mutex<Vec<f32>>>,
}

impl SideLink for Watched {
    fn taps(&mut self, sample: u64, rows: usize, bytes: &[u8]) -> Result<(), LinkError> {
        self.link.taps(sample, rows, bytes)
    }

    fn output(&mut self, sample: u64, output: &mut [f32]) -> Result<(), LinkError> {
        self.link.output(sample, output)
    }

    fn gradient(&mut self, sample: u64, gradient: &[f32]) -> Result<(), LinkError> {
        self.link.gradient(sample, gradient)
    }

    fn update(&mut self, number: u64, rate: f64) -> Result<(), LinkError> {
        if number == 1 {
            *self.first.lock().expect("no panic") = self.link.trainer().gradients()?;
        }
        self.link.update(number, rate)
    }

    fn numbers(&mut self) -> Result<Vec<f32>, LinkError> {
        self.link.numbers()
    }
}

/// A case of a family: the settings, the model and its batches.
struct Case {
    model: Model,
    batches: Vec<Vec<Sequence>>,
    json: Value,
    shape: SideShape,
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
        Self { batches: golden_batches(&golden_json(family)), model, json, shape }
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
        LocalLink::new(SideTrainer::new(&self.start(), decay, Device::Cpu).expect("a trainer"))
    }

    fn engine(&self, threads: usize, budget: Budget) -> Engine {
        let lora = LoraSpec { rank: 0, scale: 0.0, dropout: 0.0, modules: Vec::new() };
        let run = Run::new(lora, self.model.info.layers, TOKENS);
        self.model.engine(&Run { backward: Backward::Head, threads, budget, ..run })
    }

    /// Losses before each of ten steps.
    fn train(&self, engine: &mut Engine, run: &mut SideRun) -> Vec<f64> {
        let rate = self.json["lr"].as_f64().expect("a rate");
        let (mut pass, cancel) = (Pass::default(), AtomicBool::new(false));
        let mut step = |number: u64| {
            let batch = &self.batches[(number - 1) as usize % self.batches.len()];
            let samples: Vec<u64> = (0..batch.len() as u64).collect();
            let settings = StepSettings { number, rate, clip: None, seed: 0 };
            let done = run.step(engine, batch, &samples, &settings, &mut pass, &cancel);
            done.expect("a step").loss
        };
        (1..=10).map(&mut step).collect()
    }
}

fn run(case: &Case, link: impl SideLink + 'static) -> SideRun {
    SideRun::new(case.shape.clone(), Box::new(link), TOKENS, 0).expect("a run")
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    let golden = safetensors(&repository("tests/golden/side.safetensors"));
    for family in FAMILIES {
        for name in CASES {
            let case = Case::open(family, name);
            let first = Arc::new(Mutex::new(Vec::new()));
            let watched = Watched { link: case.link(), first: Arc::clone(&first) };
            let mut run = run(&case, watched);
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
                let end = &golden[&format!("{family}.{name}.end.{}", tensor.name)];
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
            let mut run = run(&case, case.link());
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
            let next = {
                let settings = StepSettings { number: 11, rate: 0.0, clip: None, seed: 0 };
                let samples: Vec<u64> = (0..batch.len() as u64).collect();
                let (mut pass, cancel) = (Pass::default(), AtomicBool::new(false));
                let done = run.step(&mut engine, batch, &samples, &settings, &mut pass, &cancel);
                done.expect("a step").loss
            };
            let error = (scored - next).abs();
            assert!(error < 1e-5, "{family} {name}: {next} after {losses:?}, {error:e}");
        }
    }
}

#[test]
fn losses_depend_on_neither_threads_nor_budget() {
    let case = Case::open("qwen2", "sum");
    let ways = [(1, Budget::Unlimited), (3, Budget::Unlimited), (2, Budget::Least)];
    let losses = ways.map(|(threads, budget)| {
        let mut run = run(&case, case.link());
        case.train(&mut case.engine(threads, budget), &mut run)
    });
    assert_eq!(losses[0], losses[1]);
    assert_eq!(losses[0], losses[2]);
}
