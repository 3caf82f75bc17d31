//! How LCSB's gradient lies to the exact one, by the number of layers K that a step walks back
//! through: `cargo run --release -p smidgen-train --example lcsb_cosine -- MODEL.gguf TEXT.txt`.
//!
//! A new adapter is trained for some steps by the exact gradient, so that B is not zero. Then, for
//! windows that it has not seen and for each place of the cycle, the mean of two cosines: of the
//! step's gradient, with zeros for the layers that were passed by, and of its part in the layers
//! that were walked back through, each against the exact gradient.

use std::path::Path;

use common::runs::{NEVER, text_windows};
use common::{Model, Run, bits, numbers, pass_gradient};
use smidgen_runtime::{Engine, Pass};
use smidgen_train::step::{StepSettings, step};
use smidgen_train::{
    Adapter, LayerOrder, Lcsb, LoraConfig, Optimizer, OptimizerConfig, Sequence, cosine,
};

#[path = "../tests/common/mod.rs"]
mod common;

/// Tokens a window.
const LENGTH: usize = 128;
/// Windows that the adapter is trained on, one a step, and windows behind them to measure on.
const TRAINED: usize = 16;
const MEASURED: usize = 4;
const RATE: f64 = 2e-3;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, text] = args.as_slice() else { panic!("give MODEL.gguf TEXT.txt") };
    let model = Model::open(Path::new(model));
    let windows = text_windows(&model.base, Path::new(text), LENGTH, TRAINED + MEASURED);
    let (trained, measured) = windows.split_at(TRAINED);
    let mut adapter = Adapter::new(&model.base, &LoraConfig::default(), 0).expect("an adapter");
    let run = Run { threads: 2, ..model.run(&adapter, LENGTH) };
    let mut engine = model.engine(&run);
    train(&mut engine, &mut adapter, trained);
    println!("| K of {} | all layers | layers walked back through |", model.info.layers);
    println!("|---:|---:|---:|");
    let layers = model.info.layers;
    let exact: Vec<_> = measured
        .iter()
        .map(|window| gradient(&mut engine, &adapter, window, vec![false; layers]))
        .collect();
    for taken in [layers, layers / 2, layers.div_ceil(4), 4, 2, 1] {
        let (mut all, mut part, mut count) = (0.0, 0.0, 0.0);
        for (window, exact) in measured.iter().zip(&exact) {
            for bypassed in places(layers, taken) {
                let found = gradient(&mut engine, &adapter, window, bypassed.clone());
                assert!(
                    taken < layers || bits(&found) == bits(exact),
                    "all layers are the exact step"
                );
                all += cosine(&found, exact);
                part += cosine(&found, &without(exact, &adapter, &bypassed));
                count += 1.0;
            }
        }
        println!("| {taken} | {:.3} | {:.3} |", all / count, part / count);
    }
}

/// A step by the exact gradient on each window.
fn train(engine: &mut Engine, adapter: &mut Adapter, windows: &[Sequence]) {
    let optimizer = OptimizerConfig::adamw(0.01);
    let mut optimizer = Optimizer::new(optimizer, &engine.plan().param_ranges()).expect("memory");
    let mut pass = Pass::default();
    for (number, window) in (1..).zip(windows) {
        let settings = StepSettings { number, rate: RATE, clip: None, seed: 0 };
        let window = std::slice::from_ref(window);
        step(engine, adapter, &mut optimizer, window, &settings, &mut pass, &NEVER)
            .expect("a step");
    }
}

/// Which layers are passed by, at each place of the cycle.
fn places(layers: usize, taken: usize) -> Vec<Vec<bool>> {
    let cycle =
        (1..=layers).find(|steps| (steps * taken).is_multiple_of(layers)).expect("it closes");
    let lcsb = Lcsb { layers_per_step: taken, order: LayerOrder::Cyclic };
    let place = |step: usize| {
        let mut bypassed = Vec::new();
        lcsb.choose(0..layers, step as u64, 0, &mut bypassed);
        bypassed
    };
    (1..=cycle).map(place).collect()
}

fn gradient(
    engine: &mut Engine,
    adapter: &Adapter,
    window: &Sequence,
    bypassed: Vec<bool>,
) -> Vec<f32> {
    let mut pass = Pass { bypassed, ..Pass::default() };
    pass_gradient(engine, numbers(adapter), std::slice::from_ref(window), &mut pass)
}

/// A gradient with zeros for the layers that are passed by.
fn without(gradient: &[f32], adapter: &Adapter, bypassed: &[bool]) -> Vec<f32> {
    let mut rest = gradient.to_vec();
    for (layer, .., range) in adapter.shape().factors() {
        if bypassed[layer] {
            rest[range].fill(0.0);
        }
    }
    rest
}
