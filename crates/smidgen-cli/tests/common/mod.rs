//! The real binary in a folder of its own, on the demo's model.

#![allow(dead_code)] // Every test file takes what it needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A folder for a test.
pub struct Place(TempDir);

impl Place {
    /// An empty one.
    pub fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    /// Runs `line` in the folder; MODEL stands for the demo's model, DATA for its data, and ~ for a
    /// space inside a word.
    pub fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    pub fn command(&self, line: &str) -> Command {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo");
        let mut command = Command::new(env!("CARGO_BIN_EXE_smidgen"));
        command.current_dir(self.0.path()).stdin(Stdio::null());
        for word in line.split_whitespace() {
            match word {
                "MODEL" => command.arg(demo.join("demo.gguf")),
                "DATA" => command.arg(demo.join("train.jsonl")),
                word => command.arg(word.replace('~', " ")),
            };
        }
        command
    }

    /// The report of a command that must succeed.
    pub fn report(&self, line: &str) -> Value {
        let output = self.run(&format!("{line} --json"));
        assert!(output.status.success(), "{line}: {}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), 1, "one object on stdout: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Checks the exit code of a command that must fail, and gives what it says.
    pub fn failure(&self, line: &str, code: i32) -> String {
        let output = self.run(line);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{line}: {said}");
        assert!(!said.contains("panicked"), "{line}: {said}");
        said
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
