//! Runs that are killed at random moments and resumed end with the adapter that they would have
//! ended with.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const KILLS: usize = 100;

const TEXT: &str = "The lamp man came at dusk with his ladder and lit the nine lamps of the street, \
                    and at dawn he came again and put them out. One night in March he did not \
                    come, and the baker's daughter, who had watched him every evening from her \
                    window, took the ladder from his yard and lit all nine.\n";

struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("text.txt"), TEXT.repeat(6)).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, line: &str) -> Command {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/qwen2.gguf");
        let mut command = Command::new(env!("CARGO_BIN_EXE_smidgen"));
        command.current_dir(self.folder.path()).args(["train", "-m"]).arg(model);
        command.args(line.split_whitespace()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn finished(&self, line: &str) -> Value {
        let output = self.run(&format!("{line} --json"));
        assert!(output.status.success(), "{line}: {}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn refused(&self, line: &str, code: i32) -> String {
        let output = self.run(line);
        assert_eq!(output.status.code(), Some(code), "{line}: {}", said(&output));
        said(&output)
    }

    /// All that a run leaves, but for times and memory.
    fn result(&self, run: &str) -> (Vec<u8>, Vec<(u64, String)>) {
        let adapter = fs::read(self.path(run).join("adapter_model.safetensors")).unwrap();
        let metrics = fs::read_to_string(self.path(run).join("smidgen/metrics.jsonl")).unwrap();
        let line = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            (line["step"].as_u64().unwrap(), line["loss"].to_string())
        };
        (adapter, metrics.lines().map(line).collect())
    }
}

fn same(run: &(Vec<u8>, Vec<(u64, String)>), whole: &(Vec<u8>, Vec<(u64, String)>)) {
    assert_eq!(run.1, whole.1, "the metrics differ");
    assert!(run.0 == whole.0, "the adapters differ");
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const RUN: &str = "--data text.txt --valid-data text.txt --max-seq-length 24 --iters 16 --lora-rank 2 \
                   --lora-dropout 0.1 --learning-rate 2e-3 --lr-schedule cosine --steps-per-eval 7 \
                   --assume-rates reference --threads 1";

#[test]
fn a_hundred_kills() {
    let place = Place::new();
    let begin = Instant::now();
    place.finished(&format!("{RUN} -o whole"));
    let whole = place.result("whole");
    let duration = begin.elapsed();
    let (mut kills, mut runs, mut random) = (0, 0, 1u64);
    while kills < KILLS {
        runs += 1;
        let out = format!("run-{runs}");
        // Saving often means being killed while saving, too.
        let line = format!("{RUN} --save-every {} --resume -o {out}", 1 + runs % 4);
        loop {
            let mut child = place.command(&line).spawn().unwrap();
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let after = Duration::from_nanos((random >> 33) % (duration.as_nanos() as u64));
            std::thread::sleep(after);
            if child.try_wait().unwrap().is_some() {
                let output = child.wait_with_output().unwrap();
                assert!(output.status.success(), "{}", said(&output));
                break;
            }
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            kills += usize::from(output.status.code().is_none());
        }
        same(&place.result(&out), &whole);
    }
    println!("{kills} kills, {runs} runs, each ended as the run that was left alone");
}

#[test]
fn interrupted_and_resumed_elsewhere() {
    let place = Place::new();
    place.finished(&format!("{RUN} -o whole"));
    let child = place.command(&format!("{RUN} --save-every 1 -o run")).spawn().unwrap();
    let metrics = place.path("run/smidgen/metrics.jsonl");
    let begin = Instant::now();
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 5 {
        assert!(begin.elapsed() < Duration::from_secs(60), "too few steps were made");
        std::thread::sleep(Duration::from_millis(2));
    }
    let locked = place.refused(&format!("{RUN} -o run --resume"), 1);
    assert!(locked.contains("another run is at work"), "{locked}");
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("--resume goes on"), "{text}");

    // Nothing is lost by mistake.
    let unfinished = place.refused(&format!("{RUN} -o run"), 2);
    assert!(unfinished.contains("--resume") && unfinished.contains("--force"), "{unfinished}");
    let other = place.refused(&format!("{RUN} -o run --resume --seed 3"), 2);
    assert!(other.contains("--seed was 0 and is 3"), "{other}");
    fs::write(place.path("other.txt"), TEXT.repeat(7)).unwrap();
    let data = RUN.replace("--data text.txt", "--data other.txt");
    let other = place.refused(&format!("{data} -o run --resume"), 2);
    assert!(other.contains("the data was"), "{other}");

    let line = RUN.replace("--threads 1", "--threads 2");
    let report = place.finished(&format!("{line} -o run --resume --memory min"));
    assert!(report["resumed_steps"].as_u64().unwrap() >= 4, "{report}");
    assert_eq!(report["steps"], 16);
    same(&place.result("run"), &place.result("whole"));

    // A finished run has nothing left to do, and gives way to a new one.
    let again = place.finished(&format!("{RUN} -o run --resume"));
    assert_eq!(again["losses"].as_array().unwrap().len(), 0);
    same(&place.result("run"), &place.result("whole"));
    place.finished(&format!("{RUN} -o run"));
}

#[test]
fn a_damaged_state_is_told() {
    let place = Place::new();
    place.finished(&format!("{RUN} -o run"));
    let state = place.path("run/smidgen/run.state");
    let mut bytes = fs::read(&state).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 4;
    fs::write(&state, bytes).unwrap();
    for line in [format!("{RUN} -o run --resume"), format!("{RUN} -o run")] {
        let error = place.refused(&line, 1);
        assert!(error.contains("run.state") && error.contains("--force"), "{error}");
    }
    place.finished(&format!("{RUN} -o run --force"));
}
