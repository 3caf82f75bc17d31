//! `--pack` of data, plan and train, on the demo's model.

mod common;

use common::{Place, stderr};
use serde_json::Value;

/// Nine samples of about ten tokens, by a question and its answer.
fn furnished() -> Place {
    let place = Place::empty();
    let sample = |i: usize| {
        let (question, answer) = ("What rings?", &" The bell in the old tower."[..10 + 2 * i]);
        format!("{}\n", serde_json::json!({ "prompt": question, "completion": answer }))
    };
    place.write("samples.jsonl", &(0..9).map(sample).collect::<String>());
    place.write("text.txt", &"The bell in the old tower rings at noon. ".repeat(20));
    place
}

fn number(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_else(|| panic!("{key} in {report}"))
}

#[test]
fn data_tells_how_samples_fit() {
    let place = furnished();
    let line = "data samples.jsonl -m MODEL --max-seq-length 48 --show 0";
    assert!(place.report(line)["packed"].is_null());
    let report = place.report(&format!("{line} --pack"));
    let packed = &report["packed"];
    let (packs, tokens) = (number(packed, "packs"), number(packed, "tokens"));
    assert!((2..9).contains(&packs), "{packed}");
    assert!(number(&report, "tokens") == tokens && number(packed, "capacity") == 48);
    let filled = packed["filled_share"].as_f64().expect("a share");
    assert!((filled - tokens as f64 / (packs * 48) as f64).abs() < 1e-9, "{packed}");
    let said = String::from_utf8(place.run(&format!("{line} --pack")).stdout).expect("text");
    assert!(said.contains(&format!("9 samples into {packs} packs of 48 tokens, ")), "{said}");
}

#[test]
fn a_run_takes_packs() {
    let place = furnished();
    let data = "-m MODEL --data samples.jsonl --max-seq-length 48 --threads 2 --no-shuffle";
    let packs = place.report("data samples.jsonl -m MODEL --max-seq-length 48 --pack");
    let packs = number(&packs["packed"], "packs");
    let least = place.report(&format!("train {data} --pack -o least --memory min"));
    assert_eq!(number(&least, "steps"), packs);
    assert_eq!(
        number(&least, "tokens"),
        number(&place.report("data samples.jsonl -m MODEL"), "tokens")
    );
    let planned = place.report(&format!("plan {data} --pack"));
    assert_eq!(number(&planned, "steps"), packs);
    place.write("run.yaml", "pack: true\nmemory: unlimited\nthreads: 1\n");
    let line = format!("train -c run.yaml {}", data.replace("--threads 2", "")) + " -o most";
    let most = place.report(&line);
    assert_eq!(most["losses"], least["losses"]);
    let said = stderr(&place.run(&format!("{line} --json --force")));
    assert!(said.contains("packed    9 samples into"), "{said}");
    assert!(said.contains("; 0 truncated, 0 left out"), "{said}");
    if let Some(peak) = least["peak_memory_bytes"].as_u64() {
        assert!(peak <= number(&least, "planned_peak_bytes"));
    }
}

#[test]
fn plans_without_data() {
    let place = furnished();
    let held = |flags: &str| {
        let report = place.report(&format!("plan -m MODEL {flags}"));
        let rows = report["rows"].as_array().expect("rows");
        number(rows.iter().find(|row| row["name"] == "sequences").expect("a line"), "bytes")
    };
    // Room for the lists of as many samples as a pack may have.
    assert!(held("--pack") > held(""));
    let said = String::from_utf8(place.run("plan -m MODEL --pack").stdout).expect("text");
    assert!(said.contains("planned for packs of 256 tokens"), "{said}");
}

#[test]
fn a_text_has_nothing_to_pack() {
    let place = furnished();
    for line in [
        "data text.txt -m MODEL --pack",
        "plan -m MODEL --data text.txt --pack",
        "train -m MODEL --data text.txt --pack -o run",
    ] {
        let said = place.failure(line, 2);
        assert!(said.contains("leave --pack out"), "{said}");
    }
    place.report("data text.txt -m MODEL --out text.tokens");
    for line in
        ["data text.tokens -m MODEL --pack", "train -m MODEL --data text.tokens --pack -o run"]
    {
        let said = place.failure(line, 1);
        assert!(said.contains("leave --pack out"), "{said}");
    }
    assert!(!place.path("run").exists());
}
