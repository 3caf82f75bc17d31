//! `smidgen compare` on the real binary: methods from one start on the same data.

mod common;

use std::fs;

use common::Place;
use serde_json::Value;

const COMMON: &str = "compare -m MODEL --data DATA --valid-data DATA --valid-chunks 4 --iters 6 \
                      --learning-rate 1e-3 --steps-per-eval 3 --no-shuffle";

fn report(place: &Place, runs: &[&str], out: &str) -> Value {
    let runs = runs.iter().map(|run| format!(" --run {}", run.replace(' ', "~")));
    place.report(&format!("{COMMON} -o {out}{}", runs.collect::<String>()))
}

fn text(place: &Place, name: &str) -> String {
    fs::read_to_string(place.path(name)).unwrap()
}

#[test]
fn runs_stand_side_by_side() {
    let place = Place::empty();
    let runs =
        ["exact", "lcsb --layers-per-step 2", "mezo --iters 12 --learning-rate 1e-5", "mesp"];
    let found = report(&place, &runs, "out");
    let all = found["runs"].as_array().unwrap();
    assert_eq!(all.iter().map(|run| run["run"].as_str().unwrap()).collect::<Vec<_>>(), runs);
    let start = &all[0]["held_out"][0]["loss"];
    for (run, steps) in all.iter().zip([6, 6, 12, 6]) {
        assert_eq!(run["steps"], steps);
        assert_eq!(&run["held_out"][0]["loss"], start, "all begin alike: {run}");
        let points = run["held_out"].as_array().unwrap();
        let at: Vec<_> = points.iter().map(|point| point["step"].as_u64().unwrap()).collect();
        assert_eq!(at, (0..=steps).step_by(3).collect::<Vec<u64>>());
        assert_eq!(run["losses"].as_array().unwrap().len() as u64, steps);
        assert!(run["peak_memory_bytes"].as_u64() <= run["planned_peak_bytes"].as_u64());
    }
    // What mesp stands for changes no number.
    assert_eq!(all[0]["losses"], all[3]["losses"]);
    assert!(all[0]["cosine"].is_null());
    assert!(all[1]["cosine"]["cosine"].as_f64().unwrap() < 1.0);
    let mezo = &all[2]["cosine"];
    let (mean, theory) = (mezo["mean"].as_f64().unwrap(), mezo["theory"].as_f64().unwrap());
    let error = mezo["standard_error"].as_f64().unwrap();
    assert!((mean - theory).abs() < 4.0 * error, "{mezo}");
    // The shortest run's end: every run has a loss there.
    assert!(all.iter().all(|run| run["loss_at_equal_seconds"].is_number()), "{found}");
    let page = text(&place, "out/compare.html");
    assert!(page.contains("<svg") && page.contains("lcsb --layers-per-step 2"));
    assert!(
        !page.replace("http://www.w3.org/2000/svg", "").contains("http"),
        "nothing from elsewhere"
    );
    let written: Value = serde_json::from_str(&text(&place, "out/compare.json")).unwrap();
    assert_eq!(written["runs"], found["runs"]);
}

#[test]
fn the_exact_run_is_trains() {
    let place = Place::empty();
    let found = report(&place, &["exact"], "out");
    let train = COMMON.replacen("compare", "train", 1) + " -o alone --sample-prompts 0";
    let alone = place.report(&train);
    let losses = |report: &Value| -> Vec<f64> {
        report["losses"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    for (a, b) in losses(&found["runs"][0]).iter().zip(losses(&alone)) {
        assert!((a - b).abs() < 1e-8, "{a} {b}");
    }
    assert_eq!(
        fs::read(place.path("out/run-1/adapter_model.safetensors")).unwrap(),
        fs::read(place.path("alone/adapter_model.safetensors")).unwrap()
    );
}

#[test]
fn a_run_that_cannot_be_is_named() {
    let place = Place::empty();
    let refused =
        |run: &str| place.failure(&format!("{COMMON} -o out --run {}", run.replace(' ', "~")), 2);
    let wrong = refused("mezo --itres 5");
    assert!(wrong.contains("--run \"mezo --itres 5\"") && wrong.contains("--itres"), "{wrong}");
    let unknown = refused("mezzo");
    assert!(unknown.contains("mezzo"), "{unknown}");
    let both = refused("mesp --memory 20MB");
    assert!(both.contains("leave --memory out"), "{both}");
    let flag = refused("exact --zo-eps 1");
    assert!(flag.contains("--method mezo"), "{flag}");
    let other = refused("exact --data OTHER");
    assert!(other.contains("--data is the same for all runs"), "{other}");
    for flag in ["--resume", "--save-every 2", "--memory-trace a.svg", "--sample-prompts 1"] {
        let idle = place.failure(&format!("{COMMON} -o out --run exact {flag}"), 2);
        let name = flag.split(' ').next().unwrap();
        assert!(idle.contains(name) && idle.contains("leave it out"), "{idle}");
    }
    let none = place.failure("compare -m MODEL --data DATA -o out --run exact", 2);
    assert!(none.contains("--valid-data"), "{none}");
}

#[test]
fn a_run_that_diverges_ends_alone() {
    let place = Place::empty();
    let found = report(&place, &["exact --optimizer sgd --learning-rate 1e30", "exact"], "out");
    let (diverged, whole) = (&found["runs"][0], &found["runs"][1]);
    let at = diverged["diverged_at_step"].as_u64().unwrap();
    assert!((2..=6).contains(&at) && diverged["steps"] == at - 1, "{diverged}");
    assert!(whole["diverged_at_step"].is_null() && whole["steps"] == 6);
    assert_eq!(found["equal_seconds"], whole["seconds"], "it is not the shortest run that counts");
    assert!(text(&place, "out/compare.html").contains(&format!("diverged at step {at}")));
    assert!(!place.path("out/run-1/adapter_model.safetensors").exists());
    assert!(place.path("out/run-2/adapter_model.safetensors").exists());
}
