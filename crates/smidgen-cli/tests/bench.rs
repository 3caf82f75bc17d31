//! `smidgen bench synth`: its flags and what it refuses.

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
