//! Ten steps of each method that is not the exact one, on a tiny model of each family, against
//! PyTorch in float64 (`tests/golden/golden_methods.py`), with the same bits for every instruction
//! set, thread and budget. The exact method's ten steps are in `golden`.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use common::runs::{Trained, config, train, ways};
use common::{
    FAMILIES, Model, bits, golden_batches, golden_json, golden_model, gradient, loss, norm,
    numbers, peft_name, peft_order, repository, safetensors, sequences,
};
use serde_json::Value;
use smidgen_kernels::{Kernels, NormalKey};
use smidgen_runtime::Pass;
use smidgen_train::step::{StepSettings, step};
use smidgen_train::{
    Adapter, LayerOrder, Lcsb, LoraConfig, Method, Mezo, Optimizer, OptimizerConfig, Sequence,
    TrainConfig,
};

const LOSSES: f64 = 1e-5;
/// Of the projected gradients, absolute: f32 rounds each of two losses, and 2 eps divides it.
const PROJECTIONS: f64 = 1e-3;
/// Of the last adapter, relative to how far it went.
const LCSB_ADAPTER: f64 = 2e-5;
const MEZO_ADAPTER: f64 = 2e-3;

/// Every so manieth number of a factor stands in the golden file.
const STRIDE: usize = 17;

/// Steps to compare between instruction sets, on both batches and with other layers' turn. The
/// scalar set is a hundred times slower than the others.
const STEPS_ALIKE: usize = 2;

/// Rows of the longest sequence.
const TOKENS: usize = 32;

struct Golden {
    family: &'static str,
    model: Model,
    batches: Vec<Vec<Sequence>>,
    json: Value,
}

impl Golden {
    fn open(family: &'static str) -> Self {
        let text = std::fs::read(repository("tests/golden/methods.json")).expect("a golden file");
        let mut json: Value = serde_json::from_slice(&text).expect("JSON");
        let batches = golden_batches(&golden_json(family));
        Self { family, model: golden_model(family), batches, json: json[family].take() }
    }

    fn adapter_folder(&self) -> PathBuf {
        repository(&format!("tests/golden/{}-adapter", self.family))
    }

    fn adapter(&self) -> Adapter {
        Adapter::load(&self.model.base, &self.adapter_folder()).expect("the start adapter").0
    }

    /// The run of ten steps that `key` names.
    fn config(&self, key: &str, method: Method, optimizer: OptimizerConfig) -> TrainConfig {
        TrainConfig {
            method,
            optimizer,
            init_adapter: Some(self.adapter_folder()),
            learning_rate: self.number(key, "lr"),
            seed: self.json[key]["seed"].as_u64().unwrap_or(0),
            ..config(3, 10)
        }
    }

    fn number(&self, key: &str, name: &str) -> f64 {
        self.json[key][name].as_f64().expect("a number")
    }

    fn list(&self, key: &str, name: &str) -> Vec<f64> {
        let list = self.json[key][name].as_array().expect("a list").iter();
        list.map(|x| x.as_f64().expect("a number")).collect()
    }

    /// The run of `config` in every way, which must be alike.
    fn train(&self, config: &TrainConfig) -> Trained {
        let folder = tempfile::tempdir().expect("a folder");
        let run =
            |config| train(self.model.base.path(), folder.path(), &self.batches.concat(), config);
        let mut ways = ways(config, folder.path()).into_iter();
        let first = run(ways.next().expect("a way"));
        for way in ways {
            let how = format!("{}, {} threads, {:?}", self.family, way.threads, way.memory);
            assert!(run(way) == first, "{how}");
        }
        first
    }

    /// Holds a run against `key`'s numbers.
    fn check(&self, key: &str, trained: &Trained, adapter_tolerance: f64) {
        let losses = worst(&trained.losses, &self.list(key, "losses"));
        let found: Vec<f64> = trained.projections.iter().map(|p| p.gradient).collect();
        let projections = match found.is_empty() {
            true => 0.0,
            false => worst(&found, &self.list(key, "projected_gradients")),
        };
        let adapter = self.adapter_off(key, &trained.numbers);
        println!(
            "{} {key}: losses off {losses:.1e}, projections {projections:.1e}, adapter {adapter:.1e}",
            self.family
        );
        assert!(losses < LOSSES, "{} {key}: losses off {losses:.1e}", self.family);
        assert!(projections < PROJECTIONS, "{} {key}: {projections:.1e}", self.family);
        assert!(adapter < adapter_tolerance, "{} {key}: adapter off {adapter:.1e}", self.family);
    }

    /// How far the last adapter is from the golden one, in the distance that it went.
    fn adapter_off(&self, key: &str, numbers: &[f32]) -> f64 {
        let start = self.adapter();
        let tensors = golden_adapters();
        let (mut off, mut way) = (Vec::new(), Vec::new());
        for (layer, module, factor, range) in start.shape().factors() {
            let info = &self.model.info;
            let name = format!("{}.{key}.{}", self.family, peft_name(info, layer, module, factor));
            let order = |x: &[f32]| {
                let all = peft_order(&self.model.info, module, factor, x, start.config().rank);
                all.into_iter().step_by(STRIDE).collect::<Vec<f32>>()
            };
            let (found, before) =
                (order(&numbers[range.clone()]), order(&common::numbers(&start)[range]));
            let expected = &tensors[&name];
            assert_eq!(found.len(), expected.len(), "{name}");
            off.extend(found.iter().zip(expected).map(|(x, y)| x - y));
            way.extend(before.iter().zip(expected).map(|(x, y)| x - y));
        }
        norm(&off) / norm(&way)
    }
}

fn golden_adapters() -> BTreeMap<String, Vec<f32>> {
    safetensors(&repository("tests/golden/methods.safetensors"))
}

/// The largest distance.
fn worst(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

/// Losses and adapter of so many LCSB steps of an engine of ours, whose layers' turns are counted
/// here again.
fn lcsb_steps(golden: &Golden, key: &str, kernels: Kernels, steps: usize) -> (Vec<f64>, Vec<u32>) {
    let mut adapter = golden.adapter();
    let run = common::Run { kernels, threads: 2, ..golden.model.run(&adapter, TOKENS) };
    let mut engine = golden.model.engine(&run);
    let optimizer = OptimizerConfig::adamw(golden.number(key, "weight_decay"));
    let mut optimizer = Optimizer::new(optimizer, &engine.plan().param_ranges()).expect("memory");
    let (layers, rate) = (golden.model.info.layers, golden.number(key, "lr"));
    let taken = golden.number(key, "layers_per_step") as usize;
    let mut pass = Pass::default();
    let one = |s: usize| {
        pass.bypassed = vec![true; layers];
        (0..taken).for_each(|i| pass.bypassed[(s * taken + i) % layers] = false);
        let settings = StepSettings { number: s as u64 + 1, rate, clip: None, seed: 0 };
        let (sequences, never) = (&golden.batches[s % 2], AtomicBool::new(false));
        let adapter = &mut adapter;
        step(&mut engine, adapter, &mut optimizer, sequences, &settings, &mut pass, &never)
            .expect("a step")
            .loss
    };
    let losses = (0..steps).map(one).collect();
    (losses, bits(numbers(&adapter)))
}

#[test]
fn ten_lcsb_steps_match() {
    for golden in FAMILIES.map(Golden::open) {
        for key in ["lcsb_one", "lcsb_one_decay", "lcsb_half", "lcsb_half_decay"] {
            let lcsb = Lcsb {
                layers_per_step: golden.number(key, "layers_per_step") as usize,
                order: LayerOrder::Cyclic,
            };
            let optimizer = OptimizerConfig::adamw(golden.number(key, "weight_decay"));
            let trained = golden.train(&golden.config(key, Method::Lcsb(lcsb), optimizer));
            golden.check(key, &trained, LCSB_ADAPTER);
            let whole = lcsb_steps(&golden, key, Kernels::detect(), 10);
            assert!(whole == (trained.losses.clone(), bits(&trained.numbers)), "{key}");
        }
        let key = "lcsb_half_decay";
        let few = lcsb_steps(&golden, key, Kernels::detect(), STEPS_ALIKE);
        for kernels in Kernels::all() {
            let again = lcsb_steps(&golden, key, kernels, STEPS_ALIKE);
            assert!(again == few, "{} {key}: {:?}", golden.family, kernels.isa());
        }
    }
}

/// Losses, projected gradients and the adapter of so many MeZO steps, with a whole copy of the
/// adapter moved at once.
fn mezo_steps(golden: &Golden, key: &str, kernels: Kernels, steps: usize) -> Trained {
    let adapter = golden.adapter();
    let run = common::Run { kernels, threads: 2, ..golden.model.run(&adapter, TOKENS) };
    let mut engine = golden.model.engine(&run);
    let mut found =
        Trained { losses: vec![], projections: vec![], numbers: numbers(&adapter).to_vec() };
    let [eps, rate, decay] = ["eps", "lr", "weight_decay"].map(|name| golden.number(key, name));
    let (eps, samples) = (eps as f32, golden.number(key, "samples") as usize);
    for s in 0..steps {
        let mut sum = 0.0;
        let step = found.projections.len();
        for sample in 0..samples {
            let seed = golden.json[key]["seed"].as_u64().expect("a seed");
            let key = NormalKey { seed, sample: (s * samples + sample) as u64 };
            let mut loss_at = |scale| {
                let mut moved = vec![0.0; found.numbers.len()];
                kernels.perturb(key, 0, scale, &found.numbers, &mut moved);
                loss(&mut engine, &moved, &golden.batches[s % 2], None)
            };
            let (above, below) = (loss_at(eps), loss_at(-eps));
            let gradient = (above - below) / (2.0 * f64::from(eps));
            found.projections.push(smidgen_train::Projection { key, gradient });
            sum += 0.5 * (above + below);
        }
        found.losses.push(sum / samples as f64);
        for (i, projection) in found.projections[step..].iter().enumerate() {
            let descent = (rate / samples as f64 * projection.gradient) as f32;
            let decay = if i == 0 { (rate * decay) as f32 } else { 0.0 };
            kernels.descend_normals(projection.key, 0, descent, decay, &mut found.numbers);
        }
    }
    found
}

#[test]
fn ten_mezo_steps_match() {
    for golden in FAMILIES.map(Golden::open) {
        for key in ["mezo", "mezo_three", "mezo_three_decay"] {
            let (eps, samples) = (golden.number(key, "eps"), golden.number(key, "samples"));
            let mezo = Mezo { eps, samples: samples as usize };
            let optimizer = OptimizerConfig::sgd(golden.number(key, "weight_decay"));
            let trained = golden.train(&golden.config(key, Method::Mezo(mezo), optimizer));
            golden.check(key, &trained, MEZO_ADAPTER);
            assert!(mezo_steps(&golden, key, Kernels::detect(), 10) == trained, "{key}");
        }
        let key = "mezo_three_decay";
        let few = mezo_steps(&golden, key, Kernels::detect(), STEPS_ALIKE);
        for kernels in Kernels::all() {
            let again = mezo_steps(&golden, key, kernels, STEPS_ALIKE);
            assert!(again == few, "{} {key}: {:?}", golden.family, kernels.isa());
        }
    }
}

#[test]
fn a_step_back_through_all_layers_is_the_exact_one() {
    for golden in FAMILIES.map(Golden::open) {
        let layers = golden.model.info.layers;
        let adapter = golden.adapter();
        let mut engine = golden.model.engine(&golden.model.run(&adapter, TOKENS));
        let exact = gradient(&mut engine, numbers(&adapter), &golden.batches[0], None);
        let mut pass = Pass { bypassed: vec![false; layers], ..Pass::default() };
        let walked =
            common::pass_gradient(&mut engine, numbers(&adapter), &golden.batches[0], &mut pass);
        assert!(bits(&walked) == bits(&exact.1), "{}", golden.family);

        let optimizer = OptimizerConfig::adamw(0.01);
        let exact = golden.train(&golden.config("lcsb_one", Method::Exact, optimizer));
        for order in [LayerOrder::Cyclic, LayerOrder::Random] {
            let method = Method::Lcsb(Lcsb { layers_per_step: layers, order });
            let all = golden.train(&golden.config("lcsb_one", method, optimizer));
            assert!(all == exact, "{} {order:?}", golden.family);
        }
    }
}

/// With dropout, one sequence a step and so an update in the walk, or gradients held whole: the
/// clip never bites.
#[test]
fn plans_change_nothing_of_lcsb() {
    for golden in FAMILIES.map(Golden::open) {
        let layers = golden.model.info.layers;
        let data = sequences(golden.model.info.vocabulary, &[40, 3, 70, 33]);
        let folder = tempfile::tempdir().expect("a folder");
        let methods =
            [(1, LayerOrder::Random), (2, LayerOrder::Cyclic), (layers - 1, LayerOrder::Random)];
        for (layers_per_step, order) in methods {
            let run = TrainConfig {
                method: Method::Lcsb(Lcsb { layers_per_step, order }),
                lora: LoraConfig { rank: 4, dropout: 0.1, ..LoraConfig::default() },
                learning_rate: 3e-3,
                seed: 4,
                ..config(1, 6)
            };
            let mut first: Option<Trained> = None;
            for clip in [None, Some(1e9)] {
                for way in ways(&TrainConfig { clip, ..run.clone() }, folder.path()) {
                    let (threads, memory) = (way.threads, way.memory);
                    let path = golden.model.base.path();
                    let found = train(path, folder.path(), &data, way);
                    let how = format!("{} {order:?} {threads} {memory:?}", golden.family);
                    match &first {
                        Some(first) => assert!(found == *first, "{how}"),
                        None => first = Some(found),
                    }
                }
            }
        }
    }
}
