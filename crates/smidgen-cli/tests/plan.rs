//! Plans of the demo's model: what every budget gives, what a refusal offers, the machine's rates,
//! and limits of the scratch file.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

const TEXT: &str = "The lighthouse keeper writes down the wind every hour. On the last page of the \
                    year he adds the hours of calm and finds fourteen, all of them in June.\n";

/// A folder with a text, and with a cache folder of its own.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("text.txt"), TEXT.repeat(12)).expect("a text");
        Self(folder)
    }

    fn run(&self, line: &str) -> Output {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo/demo.gguf");
        let mut command = Command::new(env!("CARGO_BIN_EXE_smidgen"));
        command.current_dir(self.0.path()).stdin(Stdio::null());
        command.env("XDG_CACHE_HOME", self.0.path().join("cache"));
        for word in line.split_whitespace() {
            match word {
                "MODEL" => command.arg(&model),
                word => command.arg(word),
            };
        }
        command.output().expect("the program")
    }

    fn report(&self, line: &str) -> Value {
        let output = self.run(&format!("{line} --json"));
        assert!(output.status.success(), "{line}: {}", said(&output));
        serde_json::from_slice(&output.stdout).expect("a report")
    }

    fn failure(&self, line: &str, code: i32) -> String {
        let output = self.run(line);
        assert_eq!(output.status.code(), Some(code), "{line}: {}", said(&output));
        said(&output)
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn number(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_else(|| panic!("{key} in {report}"))
}

#[test]
fn the_curve_is_what_budgets_give() {
    let place = Place::new();
    let line = "plan -m MODEL --assume-rates reference";
    let report = place.report(&format!("{line} --curve curve.svg"));
    let points = report["curve"].as_array().expect("points");
    let seconds = |p: &Value| p["predicted_seconds_per_step"].as_f64().expect("seconds");
    assert!(points.len() >= 10, "{} points", points.len());
    for pair in points.windows(2) {
        assert!(number(&pair[0], "peak_bytes") < number(&pair[1], "peak_bytes"));
        assert!(seconds(&pair[0]) > seconds(&pair[1]));
    }
    for point in points.iter().step_by(points.len() / 4) {
        // The line "process" is measured, and another process's differs by steps of 64 KiB.
        let budget = number(point, "peak_bytes") + (256 << 10);
        let plan = place.report(&format!("{line} --memory {budget}"));
        assert!(number(&plan, "planned_peak_bytes") <= budget);
        assert!(seconds(&plan) <= seconds(point) * 1.001, "{plan} under {budget}");
    }
    let picture = fs::read_to_string(place.0.path().join("curve.svg")).expect("a picture");
    assert!(picture.starts_with("<svg") && picture.contains("seconds a step"));
    let output = place.run(&format!("{line} --curve"));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("budget") && table.contains("plans that some budget gives"), "{table}");
}

#[test]
fn a_refusal_says_what_would_do() {
    let place = Place::new();
    for command in ["plan", "train --data text.txt -o out"] {
        let line = format!("{command} -m MODEL --no-spool --max-seq-length 256 --memory 1MB");
        let said = place.failure(&line, 3);
        for change in [
            "the smallest plan needs",
            "with --max-seq-length 128: ",
            "with --lora-rank 4: ",
            "with --target-modules q_proj,v_proj: ",
            "with --optimizer sgd: ",
            "with a scratch file (no --no-spool): ",
        ] {
            assert!(said.contains(change), "{change:?} in {said}");
        }
    }
    assert!(!place.0.path().join("out").exists() && !place.0.path().join("cache").exists());
}

#[test]
fn rates_are_measured_once() {
    let place = Place::new();
    let file = place.0.path().join("cache/smidgen/rates.json");
    let line = "plan -m MODEL --memory unlimited --threads 1";
    let first = place.report(line);
    let text = fs::read_to_string(&file).expect("remembered rates");
    assert_eq!(
        place.report(line)["predicted_seconds_per_step"],
        first["predicted_seconds_per_step"]
    );
    assert_eq!(fs::read_to_string(&file).expect("the same"), text);
    let mut all: Value = serde_json::from_str(&text).expect("JSON");
    let machine = all.as_object_mut().expect("machines").values_mut().next().expect("one");
    machine["products"] = json!(1e6);
    fs::write(&file, all.to_string()).expect("a slow machine");
    let slow = place.report(line)["predicted_seconds_per_step"].as_f64().expect("seconds");
    assert!(slow > 10.0 * first["predicted_seconds_per_step"].as_f64().expect("seconds"));
    // What bench prints is what --assume-rates takes, and a file that is no such thing is refused.
    let output = place.run("bench rates --threads 1");
    assert!(output.status.success(), "{}", said(&output));
    fs::write(place.0.path().join("rates.json"), &output.stdout).expect("rates");
    place.report(&format!("{line} --assume-rates rates.json"));
    let rates: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for (key, rate) in [("products", json!(0)), ("gemm", json!(1)), ("products", json!("fast"))] {
        let mut wrong = rates.clone();
        wrong[key] = rate;
        fs::write(place.0.path().join("wrong.json"), wrong.to_string()).expect("wrong rates");
        let said = place.failure(&format!("{line} --assume-rates wrong.json"), 2);
        assert!(said.contains("wrong.json") && said.contains("smidgen bench rates"), "{said}");
    }
    place.failure(&format!("{line} --assume-rates none.json"), 2);
}

#[test]
fn the_scratch_file_has_a_limit_and_a_type() {
    let place = Place::new();
    let common =
        "-m MODEL --data text.txt --max-seq-length 64 --assume-rates reference --memory min";
    let written = |flags: &str| {
        number(&place.report(&format!("plan {common} {flags}")), "spool_written_bytes")
    };
    let all = written("");
    assert!(all > 0);
    assert_eq!(written("--spool-limit 0"), 0);
    assert!(written(&format!("--spool-limit {}", all / 2)) <= all / 2);
    assert!(written("--spool-type bf16") < all);
    place.failure(&format!("plan {common} --spool-limit min"), 2);
    place.failure(&format!("plan {common} --spool-limit 1MB --no-spool"), 2);
    let loss = |flags: &str| {
        let report = place.report(&format!("train {common} --iters 4 -o out {flags}"));
        report["loss"].as_f64().expect("a loss")
    };
    let exact = loss("");
    assert_eq!(loss("--spool-limit 0"), exact);
    let rounded = loss("--spool-type bf16");
    assert!(rounded != exact && (rounded - exact).abs() < 0.05, "{rounded} against {exact}");
}
