//! A run whose process takes more than its budget, by made-up readings of the meter: it stops before
//! the next step, names the phase, and what was trained can be saved.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use smidgen_train::memory::{BudgetCrossed, Meter, RunPhase};
use smidgen_train::{
    Adapter, Base, Dataset, Error, Flow, Kind, Length, MemoryBudget, Outcome, Planned,
    PrepareOptions, Session, TokenFile, TrainConfig, WindowSpec, prepare,
};

const BUDGET: u64 = 64_000_000;
static NEVER: AtomicBool = AtomicBool::new(false);

fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo").join(name)
}

/// A run of four steps whose process takes what is stored.
fn session(folder: &Path, counted: &Arc<AtomicU64>) -> (Session, Dataset) {
    let reading = Arc::clone(counted);
    let meter = Meter::new(move || Some(reading.load(Ordering::Relaxed)));
    let base = Base::open(demo("demo.gguf")).expect("the demo's model").with_meter(meter);
    let tokens = folder.join("train.tokens");
    prepare(
        &base,
        &demo("train.jsonl"),
        &PrepareOptions::default(),
        MemoryBudget::Unlimited,
        &tokens,
        &NEVER,
        &mut |_| {},
    )
    .expect("tokens");
    let window =
        WindowSpec { max_seq_length: 64, chunks: Some(8), bos: false, single_token: false };
    let data = || Dataset::open(TokenFile::open(&tokens).unwrap(), &window).expect("sequences");
    let config = TrainConfig {
        length: Length::Iters(4),
        memory: MemoryBudget::Bytes(BUDGET),
        threads: 1,
        ..TrainConfig::default()
    };
    let longest = data().max_len();
    let planned = Planned::new(base, data(), longest, config).expect("a plan");
    (planned.start().expect("a session"), data())
}

fn crossed(error: Error) -> BudgetCrossed {
    assert_eq!(error.kind(), Kind::Budget);
    match error {
        Error::BudgetCrossed(crossed) => crossed,
        other => panic!("{other}"),
    }
}

#[test]
fn a_run_that_crosses_its_budget_stops_with_its_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let counted = Arc::new(AtomicU64::new(20_000_000));
    let (mut session, data) = session(folder.path(), &counted);
    let mut seen = Vec::new();
    let ended = session.run(None, &NEVER, &mut |_, step| {
        seen.push((step.step, step.memory_bytes));
        // A library of the host takes more while the third step runs.
        if step.step == 2 {
            counted.store(BUDGET + 1, Ordering::Relaxed);
        }
        Ok(Flow::Continue)
    });
    let found = crossed(ended.unwrap_err());
    let expected = BudgetCrossed { phase: RunPhase::Training, counted: BUDGET + 1, budget: BUDGET };
    assert_eq!(found, expected);
    let calm = Some(20_000_000);
    assert_eq!(seen, [(1, calm), (2, calm), (3, Some(BUDGET + 1))]);
    assert_eq!(session.steps_done(), 3);
    // It stays stopped, even if the process has let go since.
    counted.store(20_000_000, Ordering::Relaxed);
    assert_eq!(crossed(session.step(&NEVER).unwrap_err()), expected);
    assert_eq!(crossed(session.evaluate(&data, &NEVER).unwrap_err()), expected);
    let saved = folder.path().join("adapter");
    session.save(&saved).expect("an adapter");
    let trained = session.trainable();
    let (base, _) = session.finish();
    let (adapter, _) = Adapter::load(&base, &saved).expect("a whole adapter");
    assert_eq!(adapter.len(), trained);
}

#[test]
fn the_last_step_counts_too() {
    let folder = tempfile::tempdir().unwrap();
    let counted = Arc::new(AtomicU64::new(20_000_000));
    let (mut session, _) = session(folder.path(), &counted);
    let ended = session.run(None, &NEVER, &mut |_, step| {
        // Above the budget from the third on, which the look after the fourth sees.
        counted.store(22_000_000 * step.step, Ordering::Relaxed);
        Ok(Flow::Continue)
    });
    assert_eq!(crossed(ended.unwrap_err()).phase, RunPhase::Training);
    assert!(session.is_finished());
}

#[test]
fn every_phase_has_its_peak() {
    let folder = tempfile::tempdir().unwrap();
    let counted = Arc::new(AtomicU64::new(20_000_000));
    let (mut session, data) = session(folder.path(), &counted);
    session.meter().begin_trace();
    let at = |mb: u64| counted.store(mb * 1_000_000, Ordering::Relaxed);
    at(30);
    session.step(&NEVER).unwrap();
    at(40);
    session.evaluate(&data, &NEVER).unwrap();
    at(25);
    let ended = session.run(None, &NEVER, &mut |_, _| Ok(Flow::Continue)).unwrap();
    assert_eq!(ended, Outcome::Finished);
    at(26);
    session.save(&folder.path().join("adapter")).unwrap();
    let expected = [
        // The look on the way to a phase belongs to both.
        (RunPhase::Starting, 30_000_000),
        (RunPhase::Training, 40_000_000),
        (RunPhase::Evaluating, 40_000_000),
        (RunPhase::Saving, 26_000_000),
    ];
    assert_eq!(session.meter().peaks(), expected);
    assert_eq!(session.peak_bytes(), 40_000_000);
    let trace = session.meter().take_trace().unwrap();
    let steps: Vec<u64> = trace.samples().iter().map(|sample| sample.step).collect();
    assert!(steps.is_sorted() && steps.last() == Some(&4), "{steps:?}");
}
