//! `smidgen bench` on the demo's model, and `smidgen bench synth`: flags and refusals.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

fn command(folder: &TempDir, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smidgen"));
    command.current_dir(folder.path()).args(line.split_whitespace()).stdin(Stdio::null());
    command
}

fn run(folder: &TempDir, line: &str) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command(folder, line).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn bare_bench_prints_its_help() {
    let (code, out, _) = run(&tempfile::tempdir().unwrap(), "bench");
    assert_eq!(code, Some(0));
    assert!(out.contains("smidgen bench") && out.contains("synth"), "{out}");
}

/// The model that the demo brings.
fn demo_model() -> String {
    format!("{}/../../assets/demo/demo.gguf", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_case_is_measured_and_its_phases_make_up_the_step() {
    let folder = tempfile::tempdir().unwrap();
    let line = format!(
        "bench --model {} --max-seq-length 16,48 --lora-rank 4 --threads 1,2 --memory min,unlimited \
         --rounds 3 --json",
        demo_model()
    );
    let (code, out, said) = run(&folder, &line);
    assert_eq!(code, Some(0), "{said}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let number = |key: &str| case[key].as_f64().unwrap_or_else(|| panic!("{key}: {case}"));
        let phases = case["phases"].as_array().unwrap();
        assert_eq!(phases.len(), 7);
        let shares: f64 = phases.iter().map(|p| p["share"].as_f64().unwrap()).sum();
        assert!((0.5..1.001).contains(&shares), "shares of {shares}: {case}");
        let flops: u64 = phases.iter().map(|p| p["flops"].as_u64().unwrap()).sum();
        assert_eq!(Some(flops), case["flops"].as_u64());
        // A forward and a backward through every matrix, but for the lowest layer's input.
        assert!(number("flops") > 1.5 * number("linear_flops"), "{case}");
        let recomputed = phases.iter().find(|p| p["phase"] == "recompute").unwrap();
        let gemm = recomputed["gemm_seconds"].as_f64().unwrap();
        assert_eq!(gemm > 0.0, case["memory"] == "min", "{case}");
        assert!(number("step_seconds") > 0.0 && number("gemm_rate_gflops") > 0.0);
        assert!(number("step_seconds_least") <= number("step_seconds_most"));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is written");
    let (code, out, said) = run(&folder, &format!("bench --model {} --rounds 1", demo_model()));
    assert_eq!(code, Some(0), "{said}");
    for word in ["tokens/s", "of GEMM rate", "dequantisation", "recompute", "paging"] {
        assert!(out.contains(word), "{word}: {out}");
    }
}

#[test]
fn a_bench_that_cannot_be_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = demo_model();
    for (flags, code, wanted) in [
        ("--rounds 0", 2, "--rounds"),
        ("--max-seq-length 1", 2, "--max-seq-length"),
        ("--threads 0", 2, "--threads"),
        ("--memory 1GBB", 2, "1GBB"),
        ("--memory 1MB", 3, "smallest plan"),
        ("--lora-rank 0", 2, "rank"),
    ] {
        let (found, out, said) = run(&folder, &format!("bench --model {model} {flags}"));
        assert_eq!(found, Some(code), "{flags}: {said}");
        assert!(said.contains(wanted) && !said.contains("panicked"), "{flags}: {said}");
        assert!(!out.contains("tokens/s"), "{out}");
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("there.gguf"), "before").unwrap();
    for (flags, code, wanted) in [
        ("--preset gemma3-1b", 2, "--out"),
        ("--out new.gguf", 2, "--preset"),
        ("--preset gemma3-2b --out new.gguf", 2, "gemma3-1b"),
        ("--preset gemma3-1b --out new.gguf --seed -1", 2, "-1"),
        ("--preset gemma3-1b --out there.gguf", 2, "something already"),
        ("--preset gemma3-1b --out .", 2, "something already"),
        ("--preset gemma3-1b --out no/new.gguf", 1, "no/new.gguf.tmp"),
    ] {
        let (found, out, said) = run(&folder, &format!("bench synth {flags}"));
        assert_eq!(found, Some(code), "{flags}: {said}");
        assert!(said.contains(wanted) && !said.contains("panicked"), "{flags}: {said}");
        assert!(out.is_empty(), "{out}");
    }
    assert_eq!(fs::read(folder.path().join("there.gguf")).unwrap(), b"before");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let line = "bench synth --preset qwen2.5-3b --out new.gguf";
    let mut child = command(&folder, line).stderr(Stdio::null()).spawn().unwrap();
    let partial = folder.path().join("new.gguf.tmp");
    let begin = Instant::now();
    while !partial.exists() {
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing is written");
        std::thread::sleep(Duration::from_millis(5));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
