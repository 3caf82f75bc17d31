//! Preparing text within a budget: told beforehand, kept, refused with nothing left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use smidgen_train::memory::{Meter, RunPhase};
use smidgen_train::{
    Base, Error, Kind, MemoryBudget, PrepareOptions, PrepareReport, plan_prepare, prepare,
};
use tempfile::TempDir;

static NEVER: AtomicBool = AtomicBool::new(false);

const TEXT: &str = "A heron stands in the shallow water and waits; by noon it has caught three \
                    fish, and the children on the bridge have counted every one of them.\n";

fn demo() -> Base {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo/demo.gguf");
    Base::open(file).expect("the demo's model")
}

/// A folder with `name` in it.
fn place(name: &str, content: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join(name);
    fs::write(&input, content).unwrap();
    (folder, input)
}

fn run(base: &Base, input: &Path, memory: MemoryBudget) -> Result<PrepareReport, Error> {
    let out = input.with_extension("tokens");
    prepare(base, input, &PrepareOptions::default(), memory, &out, &NEVER, &mut |_| {})
}

/// The error of a kind that a larger budget helps, and nothing but the input in the folder.
fn refused(base: &Base, input: &Path, memory: MemoryBudget) -> Error {
    let error = run(base, input, memory).expect_err("too small a budget");
    assert_eq!(error.kind(), Kind::Budget, "{error}");
    assert_eq!(fs::read_dir(input.parent().unwrap()).unwrap().count(), 1, "something is left");
    error
}

#[test]
fn what_is_told_is_kept_and_a_byte_less_refused() {
    let (_folder, input) = place("text.txt", &TEXT.repeat(5000));
    let base = demo();
    let told = plan_prepare(&base, &input, MemoryBudget::Min).unwrap();
    // Some room, since other tests of this process take memory too.
    let budget = told + 4_000_000;
    let report = run(&base, &input, MemoryBudget::Bytes(budget)).unwrap();
    assert!(report.peak_bytes <= budget && report.header.tokens > 100_000);
    fs::remove_file(input.with_extension("tokens")).unwrap();
    let below = base.prepare_bytes(None).unwrap();
    let error = refused(&base, &input, MemoryBudget::Bytes(below));
    let Error::PrepareOverBudget(over) = &error else { panic!("{error}") };
    assert!(over.needed > below && over.budget == below);
    for words in ["text.txt", "give at least", "--out train.tokens"] {
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// By made-up readings: something else takes memory while the text is prepared.
#[test]
fn a_crossing_stops_it() {
    let (_folder, input) = place("text.txt", &TEXT.repeat(5000));
    static LOOKS: AtomicU64 = AtomicU64::new(0);
    let meter = Meter::new(|| match LOOKS.fetch_add(1, Ordering::Relaxed) {
        0..4 => Some(1_000_000),
        _ => Some(60_000_001),
    });
    let error = refused(&demo().with_meter(meter), &input, MemoryBudget::Bytes(60_000_000));
    let Error::BudgetCrossed(crossed) = error else { panic!("{error}") };
    assert_eq!((crossed.phase, crossed.counted), (RunPhase::Preparing, 60_000_001));
    assert!(LOOKS.load(Ordering::Relaxed) <= 6, "it went on");
}

/// A line is taken if the budget has room for it; without a budget, always.
#[test]
fn long_lines_need_room() {
    let line = format!("{{\"text\": {:?}}}\n", TEXT.repeat(2000));
    let (_folder, input) = place("train.jsonl", &format!("{{\"text\": {TEXT:?}}}\n{line}"));
    let base = demo().with_meter(Meter::new(|| Some(1_000_000)));
    let told = plan_prepare(&base, &input, MemoryBudget::Min).unwrap();
    let error = refused(&base, &input, MemoryBudget::Bytes(told + 1_000_000)).to_string();
    assert!(error.contains("train.jsonl: line 2 goes on for more than"), "{error}");
    let word = "x".repeat(200_000);
    let (_folder, long) = place("text.txt", &word);
    let error = refused(&base, &long, MemoryBudget::Bytes(told + 1_000_000)).to_string();
    assert!(error.contains("from byte 0 on"), "{error}");
    for memory in [MemoryBudget::Min, MemoryBudget::Unlimited, MemoryBudget::Bytes(told * 50)] {
        for input in [&input, &long] {
            run(&base, input, memory).unwrap();
        }
    }
}
