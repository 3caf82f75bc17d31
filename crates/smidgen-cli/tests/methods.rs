//! Methods that are not the exact one, by way of the real binary: runs that are killed, resumed and
//! rebuilt from their history, and histories that are not whole.

use std::fs;
use std::time::Duration;

use common::Place;

mod common;

const RUN: &str = "train -m MODEL --data text.txt --max-seq-length 24 --batch-size 2 --iters 12 \
                   --lora-rank 2 --method mezo --zo-samples 2 --weight-decay 0.2 \
                   --learning-rate 2e-3 --lr-schedule cosine --seed 4 --assume-rates reference";

const TEXT: &str = "The lamp man came at dusk with his ladder and lit the nine lamps of the street, \
                    and at dawn he came again and put them out.\n";

fn place() -> Place {
    let place = Place::empty();
    place.write("text.txt", &TEXT.repeat(8));
    place
}

fn adapter(place: &Place, run: &str) -> Vec<u8> {
    fs::read(place.path(run).join("adapter_model.safetensors")).unwrap()
}

#[test]
fn a_replayed_run_is_the_run() {
    let place = place();
    place.report(&format!("{RUN} -o whole"));
    let report = place.report("replay whole/smidgen/mezo.jsonl -m MODEL -o again");
    assert_eq!(report["steps"], 12);
    assert!(adapter(&place, "again") == adapter(&place, "whole"));

    // From an adapter, with as little memory as can be.
    place.report(&format!("{RUN} --init-adapter whole -o next --memory min --threads 2"));
    place.report("replay next/smidgen/mezo.jsonl -m MODEL --init-adapter whole -o again");
    assert!(adapter(&place, "again") == adapter(&place, "next"));
    assert!(adapter(&place, "again") != adapter(&place, "whole"));
}

#[cfg(unix)]
#[test]
fn a_killed_and_resumed_run_has_a_whole_history() {
    let place = place();
    place.report(&format!("{RUN} -o whole"));
    let line = format!("{RUN} --save-every 1 --resume -o run");
    let mut kills = 0;
    for tries in 1..=60 {
        let mut child = place.command(&line).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(20 + 7 * tries));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    println!("{kills} kills");
    assert!(kills > 0);
    place.report(&line);
    assert!(adapter(&place, "run") == adapter(&place, "whole"));
    place.report("replay run/smidgen/mezo.jsonl -m MODEL -o again");
    assert!(adapter(&place, "again") == adapter(&place, "whole"));
}

#[test]
fn a_history_that_is_not_whole_is_told_with_its_line() {
    let place = place();
    place.report(&format!("{RUN} -o run"));
    let path = place.path("run/smidgen/mezo.jsonl");
    let good = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let missing = [&lines[..6], &lines[7..]].concat().join("\n");
    let repeated = [&lines[..7], &lines[6..]].concat().join("\n");
    let changed = good.replacen("\"step\":9,", "\"step\":7,", 1);
    let half = good[..good.len() - 30].to_owned();
    for (text, line, said) in [
        (missing, 7, "step 7 stands where step 6 should"),
        (repeated, 8, "step 6 stands where step 7 should"),
        (changed, 10, "its checksum is that of another line"),
        (half, 13, "no step"),
    ] {
        fs::write(&path, text).unwrap();
        let error = place.failure("replay run/smidgen/mezo.jsonl -m MODEL -o again", 2);
        let place = format!("run/smidgen/mezo.jsonl, line {line}: ");
        assert!(error.contains(&place) && error.contains(said), "{error}");
        assert!(error.contains("give the mezo.jsonl that train --method mezo wrote"), "{error}");
    }
    assert!(!place.path("again").exists(), "a refused replay leaves nothing");
}

#[test]
fn lcsb_runs_of_all_layers_are_exact_ones() {
    let place = place();
    let run = "train -m MODEL --data text.txt --max-seq-length 24 --iters 4 --lora-rank 2 \
               --learning-rate 2e-3 --assume-rates reference";
    let exact = place.report(&format!("{run} -o exact"));
    let layers = fs::read_to_string(place.path("exact/adapter_config.json")).unwrap();
    assert!(layers.contains("target_modules"), "{layers}");
    for method in ["mesp", "exact --memory min"] {
        let same = place.report(&format!("{run} --method {method} -o same"));
        assert_eq!(same["losses"], exact["losses"], "{method}");
        assert!(adapter(&place, "same") == adapter(&place, "exact"), "{method}");
    }
    let one = place.report(&format!("{run} --method lcsb --layers-per-step 1 -o one"));
    assert_eq!(one["losses"][0], exact["losses"][0]);
    assert_ne!(one["losses"][3], exact["losses"][3]);
    let error = place.failure(&format!("{run} --method lcsb --layers-per-step 99 -o none"), 2);
    assert!(error.contains("--layers-per-step 99: ") && error.contains("give 1 to"), "{error}");
}
