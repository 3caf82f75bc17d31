//! A run that is resumed takes the steps that it would have taken, bit for bit, whatever budget and
//! threads it is resumed with; a state that was changed in any byte is noticed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use smidgen_train::{
    Base, Dataset, Error, InitLoraWeights, Kind, Length, LoraConfig, MemoryBudget, OptimizerConfig,
    Planned, PrepareOptions, RunFolder, RunState, Session, Shape, TargetModules, TokenFile,
    TrainConfig, WindowSpec, prepare,
};

static NEVER: AtomicBool = AtomicBool::new(false);

const STEPS: u64 = 7;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A run of the demo's model over its samples, in epochs of three steps and a short one.
fn planned(folder: &Path, config: TrainConfig) -> Planned {
    let base = Base::open(repository("assets/demo/demo.gguf")).expect("the demo's model");
    let tokens = folder.join("train.tokens");
    if !tokens.exists() {
        prepare(
            &base,
            &repository("assets/demo/train.jsonl"),
            &PrepareOptions::default(),
            MemoryBudget::Unlimited,
            &tokens,
            &NEVER,
            &mut |_| {},
        )
        .expect("tokens");
    }
    let window =
        WindowSpec { max_seq_length: 64, chunks: Some(13), bos: false, single_token: false };
    let data = Dataset::open(TokenFile::open(&tokens).unwrap(), &window).expect("sequences");
    Planned::new(base, data, 0, config).expect("a plan")
}

fn config() -> TrainConfig {
    TrainConfig {
        lora: LoraConfig { rank: 2, dropout: 0.1, ..LoraConfig::default() },
        length: Length::Iters(STEPS),
        batch_size: 2,
        grad_accumulation_steps: 2,
        learning_rate: 3e-3,
        schedule: Shape::Cosine,
        warmup: 2,
        clip: Some(1.0),
        memory: MemoryBudget::Unlimited,
        threads: 1,
        ..TrainConfig::default()
    }
}

/// Losses of the steps that are left, and the adapter after them.
fn finish(mut session: Session) -> (Vec<u64>, Vec<u32>) {
    let mut losses = Vec::new();
    while !session.is_finished() {
        losses.push(session.step(&NEVER).expect("a step").loss.to_bits());
    }
    let mut adapter = session.finish().1.expect("an adapter");
    let shape = adapter.shape().clone();
    let mut numbers = Vec::new();
    for (.., range) in shape.factors() {
        let piece = adapter.values().piece(range).expect("numbers");
        numbers.extend(piece.iter().map(|x| x.to_bits()));
    }
    (losses, numbers)
}

fn resumed(folder: &Path, config: TrainConfig, state: &Path) -> Session {
    let state = RunState::open(state).expect("a whole state").expect("a state");
    let planned = planned(folder, config).resume(state, false).expect("the same run");
    planned.start().expect("a session")
}

#[test]
fn a_resumed_run_takes_the_same_steps() {
    let folder = tempfile::tempdir().unwrap();
    let small = |config: TrainConfig| TrainConfig {
        memory: MemoryBudget::Min,
        spool: Some(folder.path().to_owned()),
        threads: 2,
        ..config
    };
    let per_block =
        TrainConfig { batch_size: 1, grad_accumulation_steps: 1, clip: None, ..config() };
    let configs = [
        config(),
        TrainConfig { optimizer: OptimizerConfig::adamw_8bit(0.01), ..per_block.clone() },
        TrainConfig { optimizer: OptimizerConfig::sgd(0.1), ..config() },
        TrainConfig { pack: true, ..per_block.clone() },
        TrainConfig {
            optimizer: OptimizerConfig::Sgd { momentum: 0.9, weight_decay: 0.1 },
            learning_rate: 1e-2,
            ..config()
        },
        TrainConfig {
            optimizer: OptimizerConfig::adamw_8bit(0.01),
            loraplus_ratio: 16.0,
            init_lora_weights: InitLoraWeights::Gaussian,
            ..per_block.clone()
        },
        per_block,
    ];
    for config in configs {
        let whole = finish(planned(folder.path(), config.clone()).start().expect("a session"));
        // Where it is saved, and where it goes on: in memory, or in a scratch file.
        let ways =
            [(config.clone(), small(config.clone())), (small(config.clone()), config.clone())];
        for (number, (before, after)) in ways.into_iter().enumerate() {
            let mut session = planned(folder.path(), before).start().expect("a session");
            for done in 0..STEPS {
                let path = folder.path().join(format!("{number}.state"));
                session.save_state(&path).expect("a state");
                let (losses, numbers) = finish(resumed(folder.path(), after.clone(), &path));
                assert!(losses == whole.0[done as usize..], "losses after {done} steps");
                assert!(numbers == whole.1, "the adapter, resumed after {done} steps");
                session.step(&NEVER).expect("a step");
            }
        }
    }
}

#[test]
fn a_finished_run_may_go_on_at_a_constant_rate() {
    let folder = tempfile::tempdir().unwrap();
    let constant =
        |steps| TrainConfig { schedule: Shape::Constant, length: Length::Iters(steps), ..config() };
    let whole = finish(planned(folder.path(), constant(STEPS)).start().unwrap());
    let mut session = planned(folder.path(), constant(3)).start().unwrap();
    while !session.is_finished() {
        session.step(&NEVER).unwrap();
    }
    let path = folder.path().join("run.state");
    session.save_state(&path).unwrap();
    assert_eq!(finish(resumed(folder.path(), constant(STEPS), &path)).1, whole.1);
    // Not beyond its end, and not with a rate that depends on it.
    let refused = |config: TrainConfig| {
        let state = RunState::open(&path).unwrap().unwrap();
        planned(folder.path(), config).resume(state, false).expect_err("another run").to_string()
    };
    assert!(refused(constant(2)).contains("3 steps into its run"), "{}", refused(constant(2)));
    assert!(refused(config()).contains("--lr-schedule was constant and is cosine"));
}

#[test]
fn another_run_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.state");
    let mut session = planned(folder.path(), config()).start().unwrap();
    session.save_state(&path).unwrap();
    let others: [(&str, TrainConfig); 10] = [
        ("--learning-rate was 0.003 and is 0.001", TrainConfig { learning_rate: 1e-3, ..config() }),
        ("--seed was 0 and is 1", TrainConfig { seed: 1, ..config() }),
        ("--pack was false and is true", TrainConfig { pack: true, ..config() }),
        ("--no-shuffle was false and is true", TrainConfig { shuffle: false, ..config() }),
        ("--iters was 7 and is 8", TrainConfig { length: Length::Iters(8), ..config() }),
        ("--max-grad-norm was 1 and is none", TrainConfig { clip: None, ..config() }),
        ("--loraplus-ratio was 1 and is 4", TrainConfig { loraplus_ratio: 4.0, ..config() }),
        (
            "--init-lora-weights was default and is gaussian",
            TrainConfig { init_lora_weights: InitLoraWeights::Gaussian, ..config() },
        ),
        (
            "--use-rslora was false and is true",
            TrainConfig { lora: LoraConfig { use_rslora: true, ..config().lora }, ..config() },
        ),
        ("sequences a step was 4 and is 6", TrainConfig { grad_accumulation_steps: 3, ..config() }),
    ];
    for (said, config) in others {
        let state = || RunState::open(&path).unwrap().unwrap();
        let error = planned(folder.path(), config.clone()).resume(state(), false).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        let Error::OtherRun { differences, .. } = &error else { panic!("{error}") };
        assert_eq!(differences.0.len(), 1, "{error}");
        assert!(
            error.to_string().contains(said) && error.to_string().contains("--force"),
            "{error}"
        );
        planned(folder.path(), config).resume(state(), true).expect("it was forced");
    }
    // What does not fit can't be forced.
    let rank = LoraConfig { rank: 3, ..config().lora };
    let state = RunState::open(&path).unwrap().unwrap();
    let other = planned(folder.path(), TrainConfig { lora: rank, ..config() });
    let error = other.resume(state, true).unwrap_err().to_string();
    assert!(error.contains("numbers of an adapter"), "{error}");
}

#[test]
fn every_changed_byte_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let lora = LoraConfig {
        rank: 1,
        targets: TargetModules::Names(vec!["k_proj".into()]),
        num_layers: Some(1),
        ..LoraConfig::default()
    };
    let path = folder.path().join("run.state");
    let mut session = planned(folder.path(), TrainConfig { lora, ..config() }).start().unwrap();
    session.step(&NEVER).unwrap();
    session.save_state(&path).unwrap();
    let good = fs::read(&path).unwrap();
    assert!(RunState::open(&path).unwrap().is_some_and(|state| state.steps_done() == 1));
    let noticed = |bytes: &[u8], what: String| {
        fs::write(&path, bytes).unwrap();
        let Err(error) = RunState::open(&path) else { panic!("{what} was not noticed") };
        assert_eq!(error.kind(), Kind::Failed);
        assert!(error.to_string().contains("--force"), "{error}");
    };
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        noticed(&bad, format!("byte {at} of {}", good.len()));
    }
    for len in [0, 7, 15, 47, 48, 200, good.len() - 1] {
        noticed(&good[..len], format!("a file of {len} bytes"));
    }
    noticed(&[&good[..], b"x"].concat(), "a longer file".into());
    fs::remove_file(&path).unwrap();
    assert!(RunState::open(&path).unwrap().is_none());
}

#[test]
fn a_folder_has_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let first = RunFolder::create(folder.path()).expect("the folder is free");
    let second = RunFolder::create(folder.path()).expect_err("the folder is in use");
    assert!(second.to_string().contains("another run is at work"), "{second}");
    drop(first);
    fs::write(folder.path().join("smidgen/.train.tokens.1.partial"), "half").unwrap();
    RunFolder::create(folder.path()).expect("it is free again");
    assert!(!folder.path().join("smidgen/.train.tokens.1.partial").exists());
}
