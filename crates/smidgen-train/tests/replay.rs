//! The adapter of a MeZO run, rebuilt from its history alone: bit for bit, whatever the run began
//! with and however often it was killed; and what is told of a history that is not whole.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::runs::{NEVER, config, numbers, planned};
use common::{Model, bits, golden_model, repository, sequences};
use smidgen_train::{
    Adapter, Base, Kind, LoraConfig, MemoryBudget, Method, Mezo, OptimizerConfig, RunFolder,
    RunState, Session, Shape, TrainConfig, replay,
};

const STEPS: u64 = 12;

fn mezo() -> TrainConfig {
    TrainConfig {
        method: Method::Mezo(Mezo { eps: 1e-3, samples: 2 }),
        optimizer: OptimizerConfig::sgd(0.3),
        lora: LoraConfig { rank: 3, num_layers: Some(2), ..LoraConfig::default() },
        learning_rate: 3e-3,
        schedule: Shape::Cosine,
        warmup: 3,
        seed: 8,
        ..config(2, STEPS)
    }
}

struct Place {
    folder: tempfile::TempDir,
    model: Model,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), model: golden_model("llama") }
    }

    fn start(&self, config: TrainConfig, state: Option<RunState>) -> Session {
        let data = sequences(self.model.info.vocabulary, &[30, 12, 25]);
        let base = Base::open(self.model.base.path()).expect("a model");
        let planned = planned(base, self.folder.path(), &data, config);
        let planned = match state {
            Some(state) => planned.resume(state, false).expect("the same run"),
            None => planned,
        };
        planned.start().expect("a session")
    }

    /// A whole run into `name`: its history, and the adapter as bits.
    fn run(&self, name: &str, config: TrainConfig) -> (PathBuf, Vec<u32>) {
        let mut folder = RunFolder::create(&self.folder.path().join(name)).expect("a folder");
        let mut session = self.start(config, None);
        steps(&mut session, &mut folder, STEPS);
        (folder.mezo(), bits(&numbers(&mut session)))
    }
}

/// Takes steps up to `last`.
fn steps(session: &mut Session, folder: &mut RunFolder, last: u64) {
    while session.steps_done() < last {
        let report = session.step(&NEVER).expect("a step");
        folder.step(session, &report).expect("a line");
    }
}

fn replayed(base: &Base, history: &Path, init_adapter: Option<&Path>) -> Vec<u32> {
    let (adapter, done) = replay(base, history, init_adapter).expect("an adapter");
    assert_eq!(done, STEPS);
    bits(common::numbers(&adapter))
}

#[test]
fn a_history_gives_the_adapter() {
    let place = Place::new();
    let base = &place.model.base;
    let (history, adapter) = place.run("seed", mezo());
    assert!(replayed(base, &history, None) == adapter, "from a seed");
    let start = Adapter::new(base, &mezo().lora, 8).expect("an adapter");
    assert!(bits(common::numbers(&start)) != adapter, "nothing was trained");

    let start = repository("tests/golden/llama-adapter");
    let from = TrainConfig { init_adapter: Some(start.clone()), ..mezo() };
    let (history, adapter) = place.run("from", from.clone());
    assert!(replayed(base, &history, Some(&start)) == adapter, "from an adapter");

    let paged = TrainConfig {
        memory: MemoryBudget::Min,
        spool: Some(place.folder.path().to_owned()),
        threads: 2,
        ..from
    };
    let (history, small) = place.run("small", paged);
    assert!(small == adapter && replayed(base, &history, Some(&start)) == adapter, "in a file");
}

#[test]
fn a_killed_run_leaves_a_whole_history() {
    let place = Place::new();
    let base = &place.model.base;
    let (_, whole) = place.run("whole", mezo());
    for (saved, reached, half) in [(0, 3, true), (5, 5, false), (5, 9, true), (11, 12, false)] {
        let at = place.folder.path().join(format!("{saved}-{reached}"));
        let mut folder = RunFolder::create(&at).expect("a folder");
        let mut session = place.start(mezo(), None);
        steps(&mut session, &mut folder, saved);
        folder.sync().expect("the history on the disk");
        session.save_state(&folder.state()).expect("a state");
        steps(&mut session, &mut folder, reached);
        drop((session, folder));
        let mut folder = RunFolder::create(&at).expect("a folder");
        if half {
            let text = fs::read(folder.mezo()).expect("a history");
            fs::write(folder.mezo(), &text[..text.len() - 20]).expect("half a line");
        }
        let state = RunState::open(&folder.state()).expect("a whole state").expect("a state");
        folder.resume(state.steps_done(), STEPS).expect("metrics");
        let mut session = place.start(mezo(), Some(state));
        steps(&mut session, &mut folder, STEPS);
        assert!(bits(&numbers(&mut session)) == whole, "{saved}, {reached}: the run");
        assert!(replayed(base, &folder.mezo(), None) == whole, "{saved}, {reached}: its replay");
    }
}

#[test]
fn a_history_that_is_not_whole_is_refused() {
    let place = Place::new();
    let base = &place.model.base;
    let (history, _) = place.run("run", mezo());
    let good = fs::read_to_string(&history).expect("a history");
    let lines: Vec<&str> = good.lines().collect();
    assert_eq!(lines.len() as u64, STEPS + 1);
    let refused = |bytes: &[u8], line: usize, said: &str| {
        fs::write(&history, bytes).expect("a history");
        let error = replay(base, &history, None).expect_err(said);
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        let error = error.to_string();
        let place = format!("mezo.jsonl, line {line}: ");
        assert!(error.contains(&place) && error.contains(said), "{error}");
        assert!(error.contains("give the mezo.jsonl that train --method mezo wrote"), "{error}");
    };
    let join = |lines: &[&str]| lines.join("\n") + "\n";
    refused(b"", 1, "empty");
    refused(&good.as_bytes()[..good.len() - 30], 13, "no step");
    refused(join(&lines[1..]).as_bytes(), 1, "no beginning of a run");
    refused(join(&[&lines[..4], &lines[5..]].concat()).as_bytes(), 5, "step 5 stands where step 4");
    let repeated = [&lines[..5], &lines[4..]].concat();
    refused(join(&repeated).as_bytes(), 6, "step 4 stands where step 5");
    refused(&[good.as_bytes(), b"{\"step\":13,"].concat(), 14, "no step");
    // Any bit of any line.
    let mut start = 0;
    for (number, line) in lines.iter().enumerate() {
        for at in (0..line.len()).step_by(3) {
            let mut bad = good.as_bytes().to_vec();
            bad[start + at] ^= 1 << (at % 8);
            // A line that was cut in two says so in its first part.
            refused(&bad, number + 1, "");
        }
        start += line.len() + 1;
    }
    fs::write(&history, &good).expect("a history");
    assert_eq!(replay(base, &history, None).expect("an adapter").1, STEPS);
}

#[test]
fn another_model_or_another_start_is_refused() {
    let place = Place::new();
    let base = &place.model.base;
    let refused = |base: &Base, history: &Path, start: Option<&Path>, said: &str| {
        let error = replay(base, history, start).expect_err(said);
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        let error = error.to_string();
        assert!(error.contains("mezo.jsonl, line 1: ") && error.contains(said), "{error}");
    };
    let start = repository("tests/golden/llama-adapter");
    let (new, _) = place.run("new", mezo());
    let from = TrainConfig { init_adapter: Some(start.clone()), ..mezo() };
    let (from, _) = place.run("from", from);
    refused(&golden_model("qwen2").base, &new, None, "give that model");
    refused(base, &new, Some(&start), "leave --init-adapter out");
    refused(base, &from, None, "name its folder with --init-adapter");
    let other = place.folder.path().join("new-adapter");
    let mut adapter = Adapter::new(base, &mezo().lora, 1).expect("an adapter");
    adapter.save(base, &other).expect("an adapter");
    refused(base, &from, Some(&other), "is not the adapter that the run started from");
}
