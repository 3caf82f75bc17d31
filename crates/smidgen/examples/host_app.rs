//! Training inside a host application: in slices of five seconds between the host's other work,
//! with the memory given back when the system is short of it, a cancel button, and a save after
//! each slice.
//!
//! ```text
//! cargo run --release -p smidgen --example host_app [MODEL.gguf DATA.jsonl OUT_DIR]
//! ```
//!
//! Without arguments it trains the demo model in a temporary folder.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use smidgen::{
    Base, DataOptions, Error, FeatureNames, Flow, Kind, Length, MemoryBudget, Outcome, Planned,
    Session, TrainConfig, WindowSpec, open_data,
};

/// How long the host lets the run have the processor at a time.
const SLICE: Duration = Duration::from_secs(5);

/// After this long the user of the app has seen enough.
const PATIENCE: Duration = Duration::from_secs(17);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let scratch = tempfile::tempdir()?;
    let (model, text, out) = files(scratch.path());
    let cancel = Arc::new(AtomicBool::new(false));

    let base = Base::open(model)?;
    let window = WindowSpec { max_seq_length: 64, chunks: None, bos: false, single_token: false };
    let memory = MemoryBudget::Bytes(200_000_000);
    let features = FeatureNames::default();
    let options = DataOptions { window, mask_prompt: None, features, memory };
    let tokens = scratch.path().join("train.tokens");
    let data = open_data(&base, &text, &options, &tokens, &cancel, &mut |_| {})?.dataset;
    let config = TrainConfig {
        length: Length::Epochs(1000),
        batch_size: 4,
        learning_rate: 3e-3,
        memory,
        ..TrainConfig::default()
    };
    let planned = Planned::new(base, data, 0, config)?;
    let (steps, peak) = (planned.steps(), planned.plan().peak_bytes);
    println!("{steps} steps ahead, {:.1} MB at the most", peak as f64 / 1e6);

    press_cancel_later(Arc::clone(&cancel));
    let mut session = planned.start()?;
    for slice in 1.. {
        let outcome = train_for_a_slice(&mut session, slice, &cancel)?;
        session.save(&out)?;
        let done = session.steps_done();
        println!("slice {slice}: {outcome:?} after step {done}, saved to {}", out.display());
        match outcome {
            Slice::Done | Slice::Cancelled => break,
            Slice::Paused => the_host_works(),
        }
    }
    println!("{:.1} MB at the most, as measured", session.peak_bytes() as f64 / 1e6);
    Ok(())
}

/// How a slice ended.
#[derive(Debug)]
enum Slice {
    Done,
    Paused,
    Cancelled,
}

/// Trains until the slice is over, the run is done, the memory is needed elsewhere or the user
/// cancels. Whatever happens, the session stays as it was after its last whole step.
fn train_for_a_slice(
    session: &mut Session,
    slice: u32,
    cancel: &AtomicBool,
) -> Result<Slice, Error> {
    let mut last = None;
    let outcome = session.run(Some(SLICE), cancel, &mut |session, report| {
        last = Some((report.loss, report.memory_bytes));
        let cancelled = cancel.load(Ordering::Relaxed);
        let short_of_memory = slice == 2 && session.steps_done().is_multiple_of(50);
        Ok(match (cancelled, short_of_memory) {
            (true, _) => Flow::Pause,
            (_, true) => Flow::Release,
            _ => Flow::Continue,
        })
    });
    if let Some((loss, memory)) = last {
        let megabytes = memory.unwrap_or(0) as f64 / 1e6;
        println!("  loss {loss:.4}, {megabytes:.1} MB in use");
    }
    match outcome {
        Ok(Outcome::Finished) => Ok(Slice::Done),
        Ok(Outcome::Paused) if cancel.load(Ordering::Relaxed) => Ok(Slice::Cancelled),
        Ok(Outcome::Paused) => Ok(Slice::Paused),
        Err(error) if error.kind() == Kind::Cancelled => Ok(Slice::Cancelled),
        Err(error) => Err(error),
    }
}

/// The button of the app, pressed on another thread than the one that trains.
fn press_cancel_later(cancel: Arc<AtomicBool>) {
    let begin = Instant::now();
    thread::spawn(move || {
        while begin.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(100));
        }
        println!("  (the user presses cancel)");
        cancel.store(true, Ordering::Relaxed);
    });
}

fn the_host_works() {
    let counted = smidgen::memory::usage().map_or(0, |u| u.counted);
    println!("  the host works, {:.1} MB in use", counted as f64 / 1e6);
    thread::sleep(Duration::from_millis(300));
}

/// The files of the command line, or those of the demo.
fn files(scratch: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let given: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    match <[PathBuf; 3]>::try_from(given) {
        Ok([model, text, out]) => (model, text, out),
        Err(_) => {
            let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo");
            (demo.join("demo.gguf"), demo.join("train.jsonl"), scratch.join("adapter"))
        }
    }
}
