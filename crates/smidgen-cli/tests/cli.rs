//! The command line's contract, on the real binary and the demo's model.

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Place, stderr};
use serde_json::Value;

const TEXT: &str = "In the winter the miller mends his wheel. The river is low and the stones are \
                    cold, so he sits by the fire and carves new teeth from the wood of an old \
                    pear tree. When the thaw comes the wheel turns again and the village has \
                    bread. Nobody thanks the pear tree, but the miller keeps one branch of it \
                    above his door and touches it on the first day of every spring.\n";

/// A folder with a text and a set of samples.
fn furnished() -> Place {
    let place = Place::empty();
    place.write("text.txt", &TEXT.repeat(3));
    let samples = [
        r#"{"prompt": "Who mends the wheel?", "completion": " The miller."}"#,
        r#"{"prompt": "What is cold?", "completion": " The stones are cold."}"#,
        r#"{"prompt": "Where is the branch?", "completion": " Above the door."}"#,
    ];
    place.write("samples.jsonl", &samples.join("\n"));
    place
}

const TRAIN: &str = "train -m MODEL --data text.txt --max-seq-length 32 --chunks 8 --iters 6";

#[test]
fn train_evaluate_generate() {
    let place = furnished();
    let trained = place.report(&format!("{TRAIN} -o run --learning-rate 5e-3 --threads 2"));
    assert_eq!(trained["steps"], 6);
    assert_eq!(trained["losses"].as_array().unwrap().len(), 6);
    assert_eq!(trained["loss"], trained["losses"][5]);
    assert_eq!(trained["tokens"], 6 * 32);
    for key in ["planned_peak_bytes", "weight_window_bytes", "prepare_peak_bytes"] {
        assert!(trained[key].as_u64().unwrap() > 0, "{key}");
    }
    assert!(trained["seconds_per_step"].as_f64().unwrap() > 0.0);
    if let Some(measured) = trained["peak_memory_bytes"].as_u64() {
        assert!(measured <= trained["planned_peak_bytes"].as_u64().unwrap());
        assert!(trained["peak_rss_bytes"].as_u64().unwrap() >= measured);
    }
    for file in ["adapter_config.json", "adapter_model.safetensors", "smidgen/train.tokens"] {
        assert!(place.path("run").join(file).is_file(), "{file}");
    }
    let metrics = fs::read_to_string(place.path("run/smidgen/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 6);

    let eval = "eval -m MODEL --data text.txt --max-seq-length 32 --chunks 4";
    let base = place.report(eval);
    assert_eq!(base["window_losses"].as_array().unwrap().len(), 4);
    assert_eq!(base["tokens"], 128);
    assert_eq!(base["targets"], 124);
    let tuned = place.report(&format!("{eval} --adapter run"));
    assert_eq!(tuned["adapter_path"], "run");
    assert!(tuned["loss"].as_f64().unwrap() < base["loss"].as_f64().unwrap());
    let perplexity = tuned["perplexity"].as_f64().unwrap();
    assert!((perplexity.ln() - tuned["loss"].as_f64().unwrap()).abs() < 1e-6);
    // The token file is the text.
    let again = place.report(&eval.replace("text.txt", "run/smidgen/train.tokens"));
    assert_eq!(again["window_losses"], base["window_losses"]);

    let said = place.report("generate -m MODEL --adapter run -p miller -n 5");
    assert_eq!(said["ids"].as_array().unwrap().len(), said["tokens"].as_u64().unwrap() as usize);
    let plain = place.run("generate -m MODEL --adapter run -p miller -n 5");
    let expected = format!("miller{}\n", said["text"].as_str().unwrap());
    assert_eq!(String::from_utf8(plain.stdout).unwrap(), expected);
}

#[test]
fn losses_depend_on_neither_threads_nor_memory() {
    let place = furnished();
    let losses = |flags: &str| {
        let flags = format!("{TRAIN} --batch-size 3 --lora-dropout 0.1 -o run {flags}");
        place.report(&flags)["losses"].clone()
    };
    let expected = losses("--threads 1 --memory unlimited");
    assert_eq!(losses("--threads 2 --memory unlimited"), expected);
    assert_eq!(losses("--threads 2 --memory min"), expected);
    assert_eq!(losses("--threads 1 --memory min"), expected);
    assert_ne!(losses("--threads 2 --seed 1"), expected);
}

#[test]
fn a_scratch_file_saves_memory_and_leaves_nothing() {
    let place = furnished();
    let plan = |flags: &str| {
        let line = format!("plan -m MODEL --memory min --optimizer sgd {flags}");
        place.report(&line)["planned_peak_bytes"].as_u64().unwrap()
    };
    let (with, without) = (plan(""), plan("--no-spool"));
    assert!(with < without, "{with} against {without}");
    fs::create_dir(place.path("disk")).unwrap();
    let losses = |flags: &str| {
        let line = "train -m MODEL --data text.txt --iters 3 --max-seq-length 48 --optimizer sgd";
        let report = place.report(&format!("{line} -o out {flags}"));
        let measured = report["peak_memory_bytes"].as_u64().unwrap();
        assert!(measured <= report["planned_peak_bytes"].as_u64().unwrap(), "{report}");
        fs::read_to_string(place.path("out/smidgen/metrics.jsonl"))
            .unwrap()
            .lines()
            .map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].as_f64().unwrap())
            .collect::<Vec<_>>()
    };
    let all = losses("--memory unlimited");
    assert_eq!(losses("--memory min --spool-dir disk"), all);
    assert_eq!(losses("--memory min --no-spool"), all);
    assert_eq!(fs::read_dir(place.path("disk")).unwrap().count(), 0);
    let said = place.failure("plan -m MODEL --spool-dir none", 2);
    assert!(said.contains("--spool-dir none"), "{said}");
    place.failure("plan -m MODEL --spool-dir disk --no-spool", 2);
}

#[test]
fn plan_sums_to_its_peak() {
    let place = furnished();
    let sum = |report: &Value| -> u64 {
        report["rows"].as_array().unwrap().iter().map(|r| r["bytes"].as_u64().unwrap()).sum()
    };
    let flags = "-m MODEL --data text.txt --max-seq-length 32 --iters 6 --threads 1";
    let plan = place.report(&format!("plan {flags}"));
    assert_eq!(sum(&plan), plan["planned_peak_bytes"].as_u64().unwrap());
    assert_eq!(plan["steps"], 6);
    let dry = place.report(&format!("train {flags} --dry-run -o run"));
    assert_eq!(sum(&dry), dry["planned_peak_bytes"].as_u64().unwrap());
    assert!(!place.path("run").exists());
    // Without data it is planned for the longest sequence there may be.
    let ahead = place.report("plan -m MODEL --max-seq-length 64 --threads 1");
    assert_eq!(sum(&ahead), ahead["planned_peak_bytes"].as_u64().unwrap());
    let table = String::from_utf8(place.run(&format!("plan {flags}")).stdout).unwrap();
    assert!(table.contains("LoRA weights") && table.contains("weight window"), "{table}");
}

#[test]
fn data_is_shown_and_prepared() {
    let place = furnished();
    let shown = place.report("data samples.jsonl -m MODEL --out samples.tokens");
    assert_eq!(shown["sequences"], 3);
    assert!(shown["targets"].as_u64().unwrap() < shown["tokens"].as_u64().unwrap());
    let ids = shown["first_ids"].as_array().unwrap();
    assert_eq!(ids.len() as u64, shown["tokens"].as_u64().unwrap().min(40));
    let again = place.report("data samples.tokens -m MODEL");
    assert_eq!(again["first_ids"], shown["first_ids"]);
    let text = String::from_utf8(place.run("data samples.jsonl -m MODEL").stdout).unwrap();
    assert!(text.contains("- Who mends the wheel?") && text.contains("+  The miller."), "{text}");
    assert!(!text.contains('\x1b'));
    let mask = "train -m MODEL --data samples.tokens -o run --iters 1 --no-mask-prompt";
    assert!(place.failure(mask, 2).contains("left out of the loss"));
}

#[test]
fn exit_codes() {
    let place = furnished();
    for usage in [
        "train",
        "train -m MODEL",
        "train -m MODEL --data text.txt -o run --frobnicate 3",
        "train -m MODEL --data text.txt -o run --iters 1 --epochs 1",
        "train -m MODEL --data text.txt -o run --lora-rank 0",
        "train -m MODEL --data text.txt -o run --batch-size 0",
        "train -m MODEL --data text.txt -o run --weight-decay -1",
        "train -m MODEL --data text.txt -o run --batch-size 2000000",
        "train -m MODEL --data text.txt -o run --num-layers 99",
        "train -m MODEL --data text.txt -o run --lora-dropout 1",
        "train -m MODEL --data text.txt -o run --learning-rate nan",
        "train -m MODEL --data text.txt -o run --momentum 0.9",
        "train -m MODEL --data text.txt -o run --optimizer sgd --momentum 1",
        "train -m MODEL --data text.txt -o run --loraplus-ratio 0",
        "train -m MODEL --data text.txt -o run --init-lora-weights loftq",
        "train -m MODEL --data text.txt -o run --loftq-source MODEL",
        "train -m MODEL --data text.txt -o run --target-modules nose",
        "train -m MODEL --data text.txt -o run --memory 3XB",
        "train -m MODEL --data text.txt -o run --steps-per-eval 2",
        "train -m MODEL --data text.txt -o run --max-seq-length 1",
        "train -m . --data text.txt -o run",
        "train -m some/model --data text.txt -o run",
    ] {
        place.failure(usage, 2);
    }
    assert!(!place.path("run").exists());
    let missing = place.failure("eval -m nothing.gguf --data text.txt", 1);
    assert!(missing.contains("nothing.gguf"), "{missing}");
    place.failure("eval -m MODEL --data nothing.txt", 1);
    fs::write(place.path("broken.gguf"), "GGUF and nothing").unwrap();
    place.failure("eval -m broken.gguf --data text.txt", 1);
    fs::write(place.path("broken.jsonl"), "{\"prompt\": 3}").unwrap();
    assert!(place.failure("data broken.jsonl -m MODEL", 1).contains("broken.jsonl:1"));
    assert!(place.run("--help").status.success());
    assert!(place.run("train --help").status.success());
}

/// The demo's weights in four bits, corrected from those of the demo.
#[test]
fn loftq_tells_what_it_corrected() {
    let place = furnished();
    assert!(place.run("quantize MODEL -o small.gguf --type q4_0").status.success());
    let flags = "-m small.gguf --data text.txt --max-seq-length 32 --iters 2 --threads 1 --lora-rank 4 \
                 --init-lora-weights loftq --optimizer sgd --momentum 0.9 --loraplus-ratio 4 \
                 --use-rslora";
    let run = place.run(&format!("train {flags} --loftq-source MODEL -o run"));
    let text = String::from_utf8(run.stdout).unwrap();
    assert!(run.status.success(), "{text}");
    let line = text.lines().find(|line| line.starts_with("loftq     ")).expect("what it did");
    let numbers: Vec<f64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [_, before, after, taken, planned] = numbers[..] else { panic!("{line}") };
    assert!(after < before && taken <= planned, "{line}");
    assert!(text.contains("over the root of the rank") && text.contains("SGD momentum"), "{text}");
    let settings = fs::read_to_string(place.path("run/adapter_config.json")).unwrap();
    assert!(settings.contains("\"use_rslora\": true"), "{settings}");
    let other = format!("train {flags} --loftq-source text.txt -o other");
    assert!(place.failure(&other, 1).contains("text.txt"));
    let both = "train -m small.gguf --data text.txt -o other --init-adapter run \
                --init-lora-weights gaussian";
    assert!(place.failure(both, 2).contains("leave --init-lora-weights out"));
}

#[test]
fn flags_from_a_file() {
    let place = furnished();
    let yaml = "data: text.txt\nmax_seq_length: 32\niters: 2\nlora-rank: 4\noutput: run\n\
                target_modules: [q_proj, attn_v]\nmask-prompt: true\n";
    fs::write(place.path("run.yaml"), yaml).unwrap();
    let report = place.report("train -m MODEL -c run.yaml --iters 3");
    assert_eq!(report["steps"], 3);
    let config = fs::read_to_string(place.path("run/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["r"], 4);
    assert_eq!(config["target_modules"], serde_json::json!(["q_proj", "v_proj"]));
    fs::write(place.path("wrong.yaml"), "learning_rat: 1e-3\n").unwrap();
    let said = place.failure("train -m MODEL -c wrong.yaml", 2);
    assert!(said.contains("\"learning-rate\""), "{said}");
    place.failure("train -m MODEL -c nothing.yaml", 2);
}

#[test]
fn underscores_and_aliases() {
    let place = furnished();
    let line = "train -m MODEL --data text.txt --max_seq_length 32 --chunks 8 --iters 2 --batch_size=2 \
                --adapter_path run --lora_r 2 --method mebp";
    assert_eq!(place.report(line)["tokens"], 2 * 2 * 32);
    let go_on = line.replace("run", "more").replace("--lora_r 2", "--resume_adapter_file run");
    assert_eq!(place.report(&go_on)["steps"], 2);
}

#[test]
fn an_adapter_to_start_from() {
    let place = furnished();
    place.report(&format!("{TRAIN} -o first --lora-rank 4 --num-layers 2 --target-modules q_proj"));
    let go_on = format!("{TRAIN} -o second --init-adapter first");
    let said = place.failure(&format!("{go_on} --lora-rank 8"), 2);
    assert!(said.contains("--lora-rank 8") && said.contains("which has 4"), "{said}");
    let said = place.failure(&format!("{go_on} --target-modules all-linear"), 2);
    assert!(said.contains("self_attn.q_proj"), "{said}");
    place.failure(&format!("{go_on} --num-layers 5"), 2);
    place.report(&format!("{go_on} --lora-rank 4 --target-modules attn_q --num-layers 2"));
    let again = place.report(&format!("{go_on} --lora-alpha 16"));
    assert!(again["notes"].to_string().contains("replaces"), "{}", again["notes"]);
    place.failure(&format!("{TRAIN} -o third --init-adapter nothing"), 1);
}

#[test]
fn valid_data_of_a_folder() {
    let place = furnished();
    fs::create_dir(place.path("set")).unwrap();
    fs::copy(place.path("text.txt"), place.path("set/train.txt")).unwrap();
    fs::write(place.path("set/valid.txt"), TEXT).unwrap();
    let line = TRAIN.replace("text.txt", "set");
    let report = place.report(&format!("{line} -o run --steps-per-eval 4 --save-every 2"));
    let steps: Vec<&Value> =
        report["valid"].as_array().unwrap().iter().map(|v| &v["step"]).collect();
    assert_eq!(steps, [4, 6]);
    let scored = place.report("eval -m MODEL --data set --adapter run --max-seq-length 32");
    let last = report["valid"][1]["loss"].as_f64().unwrap();
    assert!((scored["loss"].as_f64().unwrap() - last).abs() < 1e-6);
}

#[test]
fn logits_are_written() {
    let place = furnished();
    place.report("eval -m MODEL --data text.txt --max-seq-length 16 --chunks 1 --logits l.st");
    let bytes = fs::read(place.path("l.st")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    assert_eq!(header["ids"]["shape"], serde_json::json!([16]));
    assert_eq!(header["logits"]["shape"], serde_json::json!([16, 1024]));
    assert_eq!(bytes.len(), 8 + length + 4 * 16 + 4 * 16 * 1024);
    let first = 8 + length + 4 * 16;
    let logits = bytes[first..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    assert!(logits.clone().all(f32::is_finite) && logits.clone().any(|l| l != 0.0));
}

#[test]
fn sampling_follows_its_seed() {
    let place = furnished();
    let ids = |seed: u32| {
        let line = "generate -m MODEL -p miller -n 12 --temperature 1 --top-p 0.9";
        place.report(&format!("{line} --seed {seed}"))["ids"].clone()
    };
    assert_eq!(ids(1), ids(1));
    assert_ne!(ids(1), ids(2));
    // The end of the context ends the text.
    let long = place.report("generate -m MODEL -p miller -n 1000000");
    if let Some(peak) = long["peak_memory_bytes"].as_u64() {
        assert!(peak <= long["planned_peak_bytes"].as_u64().unwrap());
    }
    assert!(long["tokens"].as_u64().unwrap() < 256);
}

#[test]
fn the_demo_learns() {
    let place = furnished();
    let report = place.report("demo");
    assert!(report["loss"].as_f64().unwrap() < 0.5, "{}", report["loss"]);
    let answers = report["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 3);
    for answer in &answers[..2] {
        assert!(!answer["before"].as_str().unwrap().contains("Good day!"));
        assert!(answer["after"].as_str().unwrap().ends_with("Good day!"), "{answer}");
    }
    if let Some(peak) = report["peak_memory_bytes"].as_u64() {
        assert!(peak <= report["planned_peak_bytes"].as_u64().unwrap());
    }
}

/// Bad settings and a budget that no data would fit are refused before the data is looked at.
#[test]
fn refusals_come_before_the_data() {
    let place = furnished();
    let train = "train -m MODEL --data nothing.txt -o run";
    let said = place.failure(&format!("{train} --learning-rate -1"), 2);
    assert!(said.contains("--learning-rate -1: it is at least 0"), "{said}");
    place.failure(&format!("{train} --lora-rank 0"), 2);
    place.failure("plan -m MODEL --data nothing.txt --lora-alpha -3", 2);
    let said = place.failure(&format!("{train} --memory 1MB"), 3);
    assert!(said.contains("at least") && said.contains("up to 256 tokens"), "{said}");
    place.failure("plan -m MODEL --data nothing.txt --memory 1MB", 3);
    place.failure(train, 1);
    assert!(!place.path("run").exists());
}

/// What a run made before it was refused goes, and nothing else does.
#[test]
fn a_refused_run_leaves_nothing() {
    let place = furnished();
    let needed = |length: u32| {
        let plan = format!("plan -m MODEL --memory min --threads 1 --max-seq-length {length}");
        place.report(&plan)["planned_peak_bytes"].as_u64().unwrap()
    };
    let between = (needed(2) + needed(256)) / 2;
    let train = format!("train -m MODEL --threads 1 --data text.txt --memory {between}");
    let said = place.failure(&format!("{train} -o new/run"), 3);
    assert!(said.contains("at least"), "{said}");
    assert!(!place.path("new").exists());
    fs::create_dir_all(place.path("old/smidgen")).unwrap();
    fs::write(place.path("old/smidgen/metrics.jsonl"), "").unwrap();
    place.failure(&format!("{train} -o old"), 3);
    let kept: Vec<_> = fs::read_dir(place.path("old/smidgen")).unwrap().collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    fs::write(place.path("broken.jsonl"), "[]").unwrap();
    let said = place.failure("train -m MODEL --data broken.jsonl -o new/run", 1);
    assert!(said.contains("broken.jsonl:1") && said.contains("expected an object"), "{said}");
    assert!(!place.path("new").exists());
}

/// Preparing is refused before anything is read or written; a token file trains within the budget.
/// A tokenizer.json takes far more than the model's own tokenizer: here more than training does.
#[test]
fn preparing_keeps_the_budget_too() {
    let place = furnished();
    let vocab: Vec<_> = TEXT.chars().filter(char::is_ascii_alphabetic).collect();
    let (mut sorted, none) = (vocab, Value::Null);
    sorted.sort_unstable();
    sorted.dedup();
    let ids: serde_json::Map<_, _> =
        sorted.iter().zip(0..).map(|(c, id): (_, u32)| (c.to_string(), id.into())).collect();
    let json = serde_json::json!({"version": "1.0", "truncation": none, "padding": none,
        "added_tokens": [], "normalizer": none, "pre_tokenizer": none, "post_processor": none,
        "decoder": none, "model": {"type": "BPE", "vocab": ids, "merges": []}});
    // What it may take is told from its size.
    let json = format!("{json}{}", " ".repeat(600_000));
    fs::write(place.path("tokenizer.json"), json).unwrap();
    let flags = "-m MODEL --tokenizer tokenizer.json --max-seq-length 16";
    let plan = place.report(&format!("plan {flags} --memory min --threads 1"));
    let number = |report: &Value, key: &str| report[key].as_u64().unwrap();
    let (training, preparing) =
        (number(&plan, "planned_peak_bytes"), number(&plan, "prepare_planned_bytes"));
    assert!(training + 4_000_000 < preparing, "{training} and {preparing}");
    let budget = (training + preparing) / 2;
    let machine = format!("--memory {budget} --threads 1");
    for line in [
        format!("train {flags} {machine} --data text.txt -o run"),
        format!("plan {flags} {machine} --data text.txt"),
        format!("data text.txt {flags} --memory {budget} --out text.tokens"),
        format!("eval {flags} {machine} --data text.txt"),
    ] {
        let said = place.failure(&line, 3);
        assert!(said.contains("preparing text.txt takes") && said.contains("at least"), "{said}");
    }
    assert!(!place.path("run").exists() && !place.path("text.tokens").exists());
    let data = place.report(&format!("data text.txt {flags} --memory 400MB --out text.tokens"));
    assert!(number(&data, "prepare_peak_bytes") <= 400_000_000);
    let train = format!("train {flags} {machine} --data text.tokens -o run --iters 2");
    let report = place.report(&train);
    assert!(number(&report, "peak_memory_bytes") <= budget);
    assert!(report["prepare_planned_bytes"].is_null() && report["prepare_peak_bytes"].is_null());
    // The model's own tokenizer fits.
    let own = "-m MODEL --max-seq-length 16 --iters 1";
    let report = place.report(&format!("train {own} {machine} --data text.txt -o own"));
    let (told, took) =
        (number(&report, "prepare_planned_bytes"), number(&report, "prepare_peak_bytes"));
    assert!(took <= told && told <= budget, "told {told}, took {took} of {budget}");
}

#[test]
fn too_little_data() {
    let place = furnished();
    fs::write(place.path("one.txt"), "a").unwrap();
    let said = place.failure("eval -m MODEL --data one.txt", 1);
    assert!(said.contains("one.txt: the text is too short: it has 1 token,"), "{said}");
    let said = place.failure("eval -m MODEL --data text.txt --chunks 1 --max-seq-length 5000", 1);
    assert!(said.contains("text.txt: the text is too short"), "{said}");
    for line in [
        "eval -m MODEL --data text.txt --max-seq-length 64 --chunks 100",
        "data text.txt -m MODEL --max-seq-length 64 --chunks 100",
        "plan -m MODEL --data text.txt --max-seq-length 64 --chunks 100",
        "train -m MODEL --data samples.jsonl -o run --iters 1 --chunks 100",
    ] {
        let output = place.run(line);
        assert!(stderr(&output).contains("note: --chunks 100: the data has "), "{line}");
        let notes = place.report(line)["notes"].to_string();
        assert!(notes.contains("--chunks 100: the data has "), "{line}: {notes}");
    }
}

#[test]
fn every_key_of_the_contract_is_there() {
    let place = furnished();
    let prepared = place.report(&format!("{TRAIN} -o run"));
    let from_tokens = TRAIN.replace("text.txt", "run/smidgen/train.tokens");
    let trained = place.report(&format!("{from_tokens} -o more"));
    let valid = place.report(&format!("{from_tokens} -o more --valid-data text.txt"));
    let scored = place.report("eval -m MODEL --data run/smidgen/train.tokens --chunks 1");
    let keys = "loss losses window_losses perplexity accuracy tokens steps seconds_per_step \
                planned_peak_bytes peak_memory_bytes weight_window_bytes peak_rss_bytes \
                prepare_peak_bytes adapter_path";
    for report in [&prepared, &trained, &valid, &scored] {
        for key in keys.split_whitespace() {
            assert!(report.get(key).is_some(), "{key}: {report}");
        }
    }
    assert!(trained["accuracy"].is_null() && trained["window_losses"].is_null());
    assert!(scored["losses"].is_null() && scored["adapter_path"].is_null());
    assert!(trained["prepare_peak_bytes"].is_null());
    assert_eq!(valid["prepare_peak_bytes"].is_null(), prepared["prepare_peak_bytes"].is_null());
}

/// A signal during the evaluation after the last step: the adapter is saved all the same.
#[cfg(unix)]
#[test]
fn a_signal_during_the_last_evaluation() {
    let place = furnished();
    fs::write(place.path("long.txt"), TEXT.repeat(3000)).unwrap();
    let line = format!("{TRAIN} --threads 1 --valid-data long.txt -o run");
    let mut command = place.command(&line);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_steps(&place, 6);
    interrupt(&child, "INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("Trained 6 steps") && said.contains("was cut short"), "{said}");
    assert!(place.path("run/adapter_model.safetensors").is_file());
}

/// Waits until the run in the folder `run` has made some steps.
#[cfg(unix)]
fn wait_for_steps(place: &Place, steps: usize) {
    let metrics = place.path("run/smidgen/metrics.jsonl");
    let begin = Instant::now();
    while fs::read_to_string(&metrics).map_or(0, |t| t.lines().count()) < steps {
        assert!(begin.elapsed() < Duration::from_secs(60), "too few steps were made");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(unix)]
fn interrupt(child: &std::process::Child, signal: &str) {
    let sent = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// The first signal ends the run and saves; here on both kinds.
#[cfg(unix)]
#[test]
fn signals_save() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let place = furnished();
        let line =
            "train -m MODEL --data text.txt --max-seq-length 32 --iters 1000000 -o run --json";
        let mut command = place.command(line);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for_steps(&place, 3);
        interrupt(&child, signal);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["steps"].as_u64().unwrap() >= 3);
        assert!(stderr(&output).contains("Interrupted after"), "{}", stderr(&output));
        assert!(place.path("run/adapter_model.safetensors").is_file());
        place.report("eval -m MODEL --data text.txt --chunks 1 --adapter run");
    }
}

#[test]
fn a_run_draws_what_it_took() {
    let place = furnished();
    let files = "--memory-trace run.svg --memory-trace run.csv --memory-trace run.jsonl";
    let line = format!("{TRAIN} -o run --memory 50MB --valid-data text.txt {files}");
    let report = place.report(&line);
    if report["peak_memory_bytes"].is_null() {
        return;
    }
    let read = |name: &str| fs::read_to_string(place.path(name)).unwrap();
    let svg = read("run.svg");
    assert!(svg.starts_with("<svg") && svg.contains("plan ") && svg.contains("training "));
    let (csv, jsonl) = (read("run.csv"), read("run.jsonl"));
    assert_eq!(csv.lines().count(), jsonl.lines().count() + 1);
    let lines: Vec<Value> = jsonl.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let phases = report["phase_peak_bytes"].as_object().unwrap();
    for (phase, peak) in phases {
        let counted = lines.iter().filter(|line| line["phase"] == **phase);
        let largest = counted.map(|line| line["counted_bytes"].as_u64().unwrap()).max();
        assert!(largest <= peak.as_u64(), "{phase}");
    }
    for phase in ["preparing", "starting", "training", "evaluating", "saving"] {
        assert!(lines.iter().any(|line| line["phase"] == phase), "{phase}: {jsonl}");
    }
    assert_eq!(lines.last().unwrap()["budget_bytes"], 50_000_000);
    let said = place.failure(&format!("{TRAIN} -o run --memory-trace run.png"), 2);
    assert!(said.contains(".svg, .csv or .jsonl"), "{said}");
}

/// Words of the demo's model in a template that any text model takes.
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}assistant:{% endif %}";

#[test]
fn a_conversation_remembers_what_was_said() {
    let place = furnished();
    let none = place.failure("chat -m MODEL -p hello", 2);
    assert!(none.contains("--chat-template"), "{none}");
    fs::write(place.path("chat.jinja"), TEMPLATE).unwrap();
    let chat = "chat -m MODEL --chat-template chat.jinja -n 6";
    let once = place.report(&format!("{chat} -p miller"));
    assert_eq!(once["prompt"], "miller");
    assert_eq!(once["ids"].as_array().unwrap().len(), once["tokens"].as_u64().unwrap() as usize);

    // What a line is answered with is what the whole conversation is answered with.
    let said = talk(&place, chat, "miller\nwheel\n");
    let first = once["text"].as_str().unwrap();
    let second = said.strip_prefix(&format!("{first}\n")).unwrap().trim_end_matches('\n');
    let whole = format!("user: miller\nassistant: {first}\nuser: wheel\nassistant:");
    let mut command = place.command("generate -m MODEL -n 6 --no-bos --json -p");
    let output = command.arg(&whole).output().unwrap();
    let whole: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(second, whole["text"].as_str().unwrap());

    assert_eq!(talk(&place, chat, "miller\n/clear\n\nmiller\n"), format!("{first}\n{first}\n"));
    let short = talk(&place, &format!("{chat} --context 24"), "miller\nwheel and stone and fire\n");
    assert!(short.starts_with(first), "{short}");
}

/// What `smidgen chat` prints for these lines.
fn talk(place: &Place, line: &str, lines: &str) -> String {
    fs::write(place.path("lines"), lines).unwrap();
    let mut command = place.command(line);
    let output = command.stdin(fs::File::open(place.path("lines")).unwrap()).output().unwrap();
    assert!(output.status.success(), "{line}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn answers_a_page_and_events() {
    let place = furnished();
    let flags = "--data samples.jsonl --valid-data samples.jsonl --iters 4 --sample-tokens 5";
    let report = place.report(&format!("train -m MODEL {flags} --tensorboard -o run"));
    let answers = report["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[0]["prompt"], "Who mends the wheel?");
    assert!(answers[0]["expected"].as_str().unwrap().contains("The miller."));
    let page = fs::read_to_string(place.path("run/smidgen/report.html")).unwrap();
    assert!(page.contains("Who mends the wheel?") && page.contains("LoRA weights"), "{page}");
    assert_eq!(fs::read_dir(place.path("run/smidgen/tensorboard")).unwrap().count(), 1);
    let gguf = fs::read(place.path("run/adapter.gguf")).unwrap();
    assert!(gguf.starts_with(b"GGUF"));
    let quiet = place.report(&format!("train -m MODEL {flags} --sample-prompts 0 -o quiet"));
    assert!(quiet.get("answers").is_none());
}

#[test]
fn shells_complete_flags() {
    let place = furnished();
    for shell in ["bash", "zsh", "fish"] {
        let output = place.run(&format!("completions {shell}"));
        assert!(String::from_utf8_lossy(&output.stdout).contains("max-seq-length"), "{shell}");
    }
}
