//! `export`, `fuse` and `quantize` on the real binary and the demo's model.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A folder with a text, and with an adapter of the demo's model in `run`.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let text = "The miller mends his wheel, and the village has bread again. ".repeat(12);
        std::fs::write(place.path("text.txt"), text).unwrap();
        let train = "train -m MODEL --data text.txt --max-seq-length 32 --iters 4 --lr 5e-3 -o run";
        place.report(train);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `line` in the folder; MODEL stands for the demo's model.
    fn run(&self, line: &str) -> Output {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo/demo.gguf");
        let mut command = Command::new(env!("CARGO_BIN_EXE_smidgen"));
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        for word in line.split_whitespace() {
            match word {
                "MODEL" => command.arg(&model),
                word => command.arg(word),
            };
        }
        command.output().unwrap()
    }

    fn report(&self, line: &str) -> Value {
        let output = self.run(&format!("{line} --json"));
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn refused(&self, line: &str, because: &str) {
        let output = self.run(line);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{line}: {said}");
        assert!(said.contains(because), "{line}: {said}");
    }

    fn loss(&self, what: &str) -> f64 {
        let line = format!("eval {what} --data text.txt --max-seq-length 32 --chunks 4");
        self.report(&line)["loss"].as_f64().unwrap()
    }
}

#[test]
fn an_adapter_is_exported_merged_and_the_model_quantised() {
    let place = Place::new();
    let exported = place.report("export -m MODEL --adapter run --format gguf -o lora.gguf");
    let bytes = std::fs::metadata(place.path("lora.gguf")).unwrap().len();
    assert_eq!(exported["bytes"], bytes);

    let tuned = place.loss("-m MODEL --adapter run");
    let fused = place.report("fuse -m MODEL --adapter run -o fused.gguf --type f32 --threads 1");
    assert_eq!(fused["adapter_path"], "run");
    assert!((place.loss("-m fused.gguf") - tuned).abs() < 1e-5);
    place.report("fuse -m MODEL --adapter run -o fused.gguf");
    assert!((place.loss("-m fused.gguf") - tuned).abs() < 0.1);

    let base = place.loss("-m MODEL");
    for (name, most) in [("f16", 1e-3), ("q8_0", 0.02), ("q4_0", 0.5)] {
        let told = place.report(&format!("quantize MODEL -o small.gguf --type {name}"));
        assert_eq!(told["tensors"][0]["shape"].as_array().unwrap().len(), 2);
        assert!(told["tensor_bytes"].as_u64().unwrap() < told["bytes"].as_u64().unwrap());
        let loss = place.loss("-m small.gguf");
        assert!((loss - base).abs() < most, "{name}: {loss} and {base}");
    }
    let text = place.run("quantize MODEL -o small.gguf --type q4_0");
    let text = String::from_utf8(text.stdout).unwrap();
    for part in ["token_embd.weight", "Q4_0", "error", "MB/s", "written"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn files_of_other_kinds_are_not_replaced() {
    let place = Place::new();
    place.report("export -m MODEL --adapter run -o lora.gguf");
    place.report("quantize MODEL -o small.gguf");
    // Files of the same kind are.
    place.report("export -m MODEL --adapter run -o lora.gguf");
    place.report("quantize MODEL -o small.gguf");
    place.refused("export -m MODEL --adapter run -o text.txt", "no GGUF adapter");
    place.refused("export -m MODEL --adapter run -o small.gguf", "no GGUF adapter");
    place.refused("quantize MODEL -o lora.gguf", "no GGUF model");
    place.refused("quantize small.gguf -o ./small.gguf", "the file that is read");
    place.refused("fuse -m small.gguf --adapter run -o small.gguf", "the file that is read");
    place.refused("quantize MODEL -o run", "not a file's name");
    place.refused("fuse -m run --adapter run -o x.gguf", "smidgen quantize run");
    assert!(!place.path("x.gguf").exists());
}

#[test]
fn a_merged_checkpoint_is_written_once() {
    let place = Place::new();
    let told = place.report("fuse -m MODEL --adapter run -o model.safetensors");
    assert_eq!(told["tensors"][0]["to"], "F16");
    let bytes = std::fs::metadata(place.path("model.safetensors")).unwrap().len();
    assert_eq!(told["bytes"], bytes);
    place.refused("fuse -m MODEL --adapter run -o model.safetensors", "something already");
    place.refused("fuse -m MODEL --adapter run -o x.safetensors --type q4_0", "f16 or f32");
}
