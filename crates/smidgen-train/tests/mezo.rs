//! MeZO's directions against the exact gradient, what a step that fails leaves behind, and the
//! memory that a run is planned to take.

mod common;

use std::f64::consts::PI;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use common::runs::{NEVER, config, finish, numbers, own_windows, planned, real_model, train, ways};
use common::{FAMILIES, Model, Run, SMOOTH, bits, golden_model, gradient, norm, sequences};
use smidgen_kernels::{Kernels, NormalKey};
use smidgen_train::memory::Meter;
use smidgen_train::{
    Adapter, Base, Kind, LoraConfig, MemoryBudget, Method, Mezo, OptimizerConfig, Projection,
    Sequence, TrainConfig, plan_ahead,
};

const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const QWEN: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";

fn mezo(eps: f64, samples: usize, config: TrainConfig) -> TrainConfig {
    TrainConfig {
        method: Method::Mezo(Mezo { eps, samples }),
        optimizer: OptimizerConfig::sgd(0.0),
        seed: 3,
        ..config
    }
}

/// An adapter with numbers in A and in B, in a folder, and its exact gradient on `batch`.
fn gradient_of(model: &Model, folder: &Path, batch: &[Sequence]) -> (Adapter, Vec<f32>) {
    let lora = LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::default() };
    let mut adapter = model.adapter(&lora);
    adapter.save(&model.base, folder).expect("an adapter");
    let longest = batch.iter().map(|s| s.ids.len()).max().expect("sequences");
    let run = Run { threads: 2, ..model.run(&adapter, longest) };
    let mut engine = model.engine(&run);
    let (_, gradients) = gradient(&mut engine, common::numbers(&adapter), batch, None);
    (adapter, gradients)
}

/// The worst |g - gradient . z| over the gradient's norm, which is what |gradient . z| is on
/// average, for each eps, over so many directions of a run that does not move.
fn projections_off(model: &Model, batch: &[Sequence], directions: usize, eps: &[f64]) -> Vec<f64> {
    let folder = tempfile::tempdir().expect("a folder");
    let start = folder.path().join("start");
    let (_, gradients) = gradient_of(model, &start, batch);
    let size = norm(&gradients);
    let kernels = Kernels::detect();
    let off = |eps: &f64| {
        let still = TrainConfig {
            init_adapter: Some(start.clone()),
            learning_rate: 0.0,
            threads: 2,
            ..mezo(*eps, directions, config(batch.len(), 1))
        };
        let found = train(model.base.path(), folder.path(), batch, still);
        assert_eq!(found.projections.len(), directions);
        let off =
            |p: &Projection| (p.gradient - kernels.dot_normals(p.key, 0, &gradients)).abs() / size;
        let worst = found.projections.iter().map(off).fold(0.0, f64::max);
        println!("{}: eps {eps:.0e}: off {worst:.1e}", model.info.family);
        worst
    };
    eps.iter().map(off).collect()
}

/// A larger eps leaves more of the loss's third derivative, a smaller one more of its rounding.
#[test]
fn a_projected_gradient_is_the_gradient_along_its_direction() {
    for family in SMOOTH {
        let model = golden_model(family);
        let batch = sequences(model.info.vocabulary, &[40, 23]);
        let off = projections_off(&model, &batch, 16, &[3e-3, 1e-3, 3e-4]);
        assert!(off[1] < 1e-3, "{family}: {off:?}");
    }
}

#[test]
fn smollm2_projected_gradients_are_the_gradient_along_their_directions() {
    let model = Model::open(&real_model(SMOLLM2));
    let batch = own_windows(&model.base, 64, 1);
    let off = projections_off(&model, &batch, 4, &[1e-3, 3e-4]);
    assert!(off[0] < 1e-3, "{off:?}");
}

/// |cos| of a direction drawn at random and any other one has the mean sqrt(2 / (pi d)).
#[test]
fn directions_lie_to_the_gradient_as_random_ones_do() {
    const DIRECTIONS: u64 = 400;
    let folder = tempfile::tempdir().expect("a folder");
    for family in FAMILIES {
        let model = golden_model(family);
        let batch = sequences(model.info.vocabulary, &[40, 23]);
        let (_, gradients) = gradient_of(&model, &folder.path().join(family), &batch);
        let kernels = Kernels::detect();
        let mut z = vec![0.0; gradients.len()];
        let mut cosine = |sample: u64| {
            let key = NormalKey { seed: 3, sample };
            kernels.normals(key, 0, &mut z);
            (kernels.dot_normals(key, 0, &gradients) / (norm(&gradients) * norm(&z))).abs()
        };
        let mean = (0..DIRECTIONS).map(&mut cosine).sum::<f64>() / DIRECTIONS as f64;
        let (d, n) = (gradients.len() as f64, DIRECTIONS as f64);
        let (expected, deviation) = ((2.0 / (PI * d)).sqrt(), ((1.0 - 2.0 / PI) / d).sqrt());
        let off = (mean - expected) / (deviation / n.sqrt());
        println!("{family}: d {d}, mean {mean:.3e}, expected {expected:.3e}, {off:.2} sigma off");
        assert!(off.abs() < 3.0, "{family}: mean {mean:e}, expected {expected:e}");
    }
}

/// Cancelled behind each of a step's passes in turn: the meter, which is read after every pass, sets
/// the flag.
#[test]
fn a_step_that_ends_early_moves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = golden_model("gemma3");
    let data = sequences(model.info.vocabulary, &[40, 3, 70, 33]);
    let run = TrainConfig { learning_rate: 1e-3, ..mezo(1e-3, 3, config(4, 3)) };
    let whole = train(model.base.path(), folder.path(), &data, run.clone());
    for way in ways(&run, folder.path()) {
        let (left, cancel) = (Arc::new(AtomicI64::new(i64::MAX)), Arc::new(AtomicBool::new(false)));
        let (looks, flag) = (Arc::clone(&left), Arc::clone(&cancel));
        let meter = Meter::new(move || {
            if looks.fetch_sub(1, Ordering::Relaxed) == 1 {
                flag.store(true, Ordering::Relaxed);
            }
            Some(0)
        });
        let base = Base::open(model.base.path()).expect("a model").with_meter(meter);
        let mut session = planned(base, folder.path(), &data, way).start().expect("a session");
        session.step(&NEVER).expect("a step");
        let before = bits(&numbers(&mut session));
        let mut cancelled = 0;
        loop {
            left.store(cancelled + 1, Ordering::Relaxed);
            cancel.store(false, Ordering::Relaxed);
            let Err(error) = session.step(&cancel) else { break };
            assert_eq!(error.kind(), Kind::Cancelled, "{error}");
            assert!(bits(&numbers(&mut session)) == before, "after {cancelled} looks");
            cancelled += 1;
        }
        // Three directions, two losses each, of three passes, behind the last of which nothing stops.
        assert!(cancelled >= 17, "{cancelled}");
        finish(&mut session);
        let numbers = bits(&numbers(&mut session));
        assert!(numbers == bits(&whole.numbers), "it went on as if nothing had been");
    }
}

/// Directions that lead to infinite losses.
#[test]
fn a_step_that_fails_moves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = golden_model("llama");
    let data = sequences(model.info.vocabulary, &[40, 3]);
    let base = Base::open(model.base.path()).expect("a model");
    let run = mezo(1e30, 2, config(2, 1));
    let mut session = planned(base, folder.path(), &data, run).start().expect("a session");
    let before = bits(&numbers(&mut session));
    let error = session.step(&NEVER).expect_err("an infinite loss").to_string();
    assert!(error.contains("the loss is"), "{error}");
    assert!(bits(&numbers(&mut session)) == before);
    assert_eq!(session.steps_done(), 0);
}

/// Holds the least plan against that of the exact method with the same settings, with a folder for
/// scratch files and without. The line of what the process holds already, which is measured, is
/// left out.
fn check_least_plan(base: &Base, length: usize) {
    for spool in [None, Some(std::env::temp_dir())] {
        for sequences in [1, 4] {
            let exact = TrainConfig {
                memory: MemoryBudget::Min,
                optimizer: OptimizerConfig::sgd(0.01),
                spool: spool.clone(),
                ..config(sequences, 1)
            };
            let mezo = TrainConfig { method: Method::Mezo(Mezo::default()), ..exact.clone() };
            let [exact, mezo] = [exact, mezo].map(|config| {
                let plan = plan_ahead(base, length, &config).expect("a plan");
                let process = plan.rows.iter().find(|row| row.name == "process");
                plan.peak_bytes - process.expect("its line").bytes
            });
            let what = format!("{}, {sequences} x {length}", base.info().family);
            println!("{what}, spool {}: mezo {mezo}, exact {exact}", spool.is_some());
            assert!(mezo <= exact, "{what}: {mezo} > {exact}");
        }
    }
}

#[test]
fn the_least_plan_is_below_the_exact_methods() {
    FAMILIES.iter().for_each(|family| check_least_plan(&golden_model(family).base, 64));
    check_least_plan(&Base::open(real_model(SMOLLM2)).expect("a model"), 256);
}

#[test]
fn all_models_qwen_least_plan_is_below_the_exact_methods() {
    check_least_plan(&Base::open(real_model(QWEN)).expect("a model"), 256);
}
