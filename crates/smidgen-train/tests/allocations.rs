//! Once a run has started, no step allocates: a counting allocator watches steps under plans of all
//! kinds. What a step takes for lists of tasks and messages stays below 64 KB at any moment.

#[path = "common/heap.rs"]
mod heap;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use heap::Watch;
use smidgen_train::{
    Base, Dataset, Length, MemoryBudget, OptimizerConfig, Planned, PrepareOptions, TokenFile,
    TrainConfig, WindowSpec, prepare,
};

/// The most that may live beside what was there when the run started, and the largest block.
const MOST: usize = 64_000;

static NEVER: AtomicBool = AtomicBool::new(false);

/// A model and what is read for it.
struct Case {
    model: PathBuf,
    max_seq_length: usize,
    steps: u64,
}

fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo").join(name)
}

fn smollm2() -> PathBuf {
    let folder = std::env::var_os("SMIDGEN_TEST_MODELS").filter(|v| !v.is_empty());
    let folder = PathBuf::from(folder.expect("SMIDGEN_TEST_MODELS is not set: `cargo xtask test`"));
    folder.join("SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// The most that lived during a step beyond what lived before the first one, and the largest block.
fn watch(case: &Case, config: &TrainConfig, folder: &Path) -> (isize, usize) {
    let base = Base::open(&case.model).expect("a model");
    let tokens = folder.join("train.tokens");
    let options = PrepareOptions::default();
    let whole = MemoryBudget::Unlimited;
    prepare(&base, &demo("train.jsonl"), &options, whole, &tokens, &NEVER, &mut |_| {})
        .expect("tokens");
    let window = WindowSpec {
        max_seq_length: case.max_seq_length,
        chunks: None,
        bos: false,
        single_token: false,
    };
    let data = Dataset::open(TokenFile::open(&tokens).expect("tokens"), &window);
    let config = TrainConfig { length: Length::Iters(case.steps), ..config.clone() };
    let planned = Planned::new(base, data.expect("data"), 0, config).expect("a plan");
    let mut session = planned.start().expect("a session");
    let watch = Watch::begin();
    for _ in 0..case.steps {
        session.step(&NEVER).expect("a step");
    }
    watch.most()
}

#[test]
fn no_step_allocates() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = Some(folder.path().to_owned());
    let plain = TrainConfig { threads: 2, ..TrainConfig::default() };
    let configs = [
        TrainConfig { memory: MemoryBudget::Min, spool: spool.clone(), ..plain.clone() },
        TrainConfig { memory: MemoryBudget::Min, spool, pack: true, ..plain.clone() },
        TrainConfig { memory: MemoryBudget::Min, ..plain.clone() },
        TrainConfig { memory: MemoryBudget::Unlimited, ..plain.clone() },
        TrainConfig {
            memory: MemoryBudget::Min,
            optimizer: OptimizerConfig::sgd(0.0),
            batch_size: 2,
            grad_accumulation_steps: 2,
            clip: Some(1.0),
            ..plain
        },
    ];
    let cases = [
        Case { model: demo("demo.gguf"), max_seq_length: 256, steps: 6 },
        Case { model: smollm2(), max_seq_length: 128, steps: 3 },
    ];
    for case in &cases {
        for config in &configs {
            let (grown, largest) = watch(case, config, folder.path());
            let (name, packs) = (case.model.display(), if config.pack { ", packs" } else { "" });
            let what = format!("{name} with {:?}{packs}", config.memory);
            println!("{what}: {grown} bytes beside what lived, {largest} in the largest block");
            assert!(grown <= MOST as isize, "{what}: {grown} bytes");
            assert!(largest <= MOST, "{what}: a block of {largest} bytes");
        }
    }
}
