//! Flags, files of flags, budgets and places to write to.

use super::{Case, file, line};

const HELP: &str = "try '--help'";

fn train(flags: &'static str, code: i32, told: &'static [&'static str]) -> Case {
    let mut case = line(flags, code, told);
    case.line = format!("train -m MODEL --data text.txt -o new {flags}");
    case
}

pub fn cases() -> Vec<Case> {
    vec![
        train("--iters 0", 2, &["'0' for '--iters <N>'", "not in 1..", HELP]),
        train("--iters -3", 2, &["-3", HELP]),
        train("--iters 99999999999999999999", 2, &["--iters <N>", "too large", HELP]),
        train("--learning-rate nan", 2, &["--learning-rate NaN", "at least 0, and finite"]),
        train("--learning-rate 1e400", 2, &["--learning-rate inf", "at least 0, and finite"]),
        train("--lora-rank 0", 2, &["--lora-rank 0", "between 1 and 1024"]),
        train("--lora-rank 100000000", 2, &["--lora-rank 100000000", "between 1 and 1024"]),
        train("--lora-alpha inf", 2, &["--lora-alpha inf"]),
        train("--batch-size 0", 2, &["--batch-size 0", "at least 1"]),
        train(
            "--max-seq-length 99999999",
            2,
            &["--max-seq-length <L>", "not in 2..=1048576", HELP],
        ),
        train("--method magic", 2, &["'magic' for '--method <NAME>'", "possible values", HELP]),
        train("--optimizer adamw9", 2, &["'adamw9'", "possible values: adamw", HELP]),
        train("--target-modules nose", 2, &["\"nose\"", "all-linear or some of q_proj"]),
        train("--num-layers 99", 2, &["--num-layers 99", "5 layers"]),
        train("--threads 0", 2, &["--threads <N>", "not in 1..=1024", HELP]),
        train("--memory 3XB", 2, &["\"3XB\" is no amount of memory", "write 300MB"]),
        train("--memory nan", 2, &["\"nan\" is no amount of memory", "write 300MB"]),
        train(
            "--memory 1MB",
            3,
            &["smallest plan needs", "the budget is 1.0 MB", "Give at least", "--lora-rank"],
        ),
        train("--memory 0", 3, &["smallest plan needs", "Give at least"]),
        train("--lerning-rate 1", 2, &["--lerning-rate", "--learning-rate"]),
    ]
}

/// Files of flags.
pub fn files() -> Vec<Case> {
    let case = |name: &'static str, content: &'static [u8], told| {
        file(name, content, format!("train -m MODEL --data text.txt -o new -c {name}"), 2, told)
    };
    vec![
        case(
            "key.yaml",
            b"\nlearning_rat: 1e-3\n",
            &["key.yaml: line 2", "\"learning-rat\"", "nearest is \"learning-rate\""],
        ),
        case(
            "type.yaml",
            b"seed: 1\niters: many\n",
            &["type.yaml: line 2", "'many' for '--iters <N>'"],
        ),
        case("syntax.yaml", b"seed: 1\niters: ]\n", &["syntax.yaml", "line 2"]),
        case(
            "list.yaml",
            b"- iters\n",
            &["list.yaml: line 1", "expected lines such as `lora-rank: 8`"],
        ),
        case(
            "nested.yaml",
            b"iters:\n  a: 1\n",
            &["nested.yaml: line 2", "expected lines such as"],
        ),
        case("twice.yaml", b"iters: 1\niters: 2\n", &["twice.yaml: line 2", "iters stands twice"]),
        case("bytes.yaml", b"\xff\xfe\0", &["bytes.yaml", "UTF-8"]),
    ]
}

/// Places that can't be read or written.
pub fn places() -> Vec<Case> {
    vec![
        file(
            "taken",
            "x",
            "train -m MODEL --data text.txt --iters 1 -o taken",
            1,
            &["taken", "Not a directory", "name another place"],
        ),
        file(
            "taken",
            "x",
            "train -m MODEL --data text.txt --iters 1 -o taken/deep",
            1,
            &["taken/deep", "name another place"],
        ),
        line(
            "data text.txt -m MODEL --out none/such/x.tokens",
            1,
            &["none/such/x.tokens", "No such file", "check the path"],
        ),
        line("data text.txt -m MODEL --out x.txt", 2, &["--out x.txt", "ends in .tokens"]),
        line(
            "quantize MODEL -o text.txt",
            2,
            &["--output text.txt", "no GGUF model", "give another name"],
        ),
        line(
            "eval -m MODEL --data text.txt --chunks 1 --logits /dev/full",
            1,
            &["/dev/full", "No space left", "make room there"],
        ),
        line(
            "train -m MODEL --data text.txt --iters 1 -o /proc/none",
            1,
            &["/proc", "name another"],
        ),
        line(
            "eval -m run --data text.txt",
            2,
            &["--model run", "a GGUF file is expected and this is a folder", "quantize"],
        ),
        line(
            "eval -m nothing.gguf --data text.txt",
            1,
            &["nothing.gguf", "No such file", "check the path"],
        ),
        line(
            "eval -m MODEL --data text.txt --adapter nowhere",
            1,
            &["nowhere", "no adapter_config.json", "PEFT adapter"],
        ),
    ]
}
