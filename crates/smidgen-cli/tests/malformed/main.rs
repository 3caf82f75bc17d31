//! What a person is told of inputs that are broken: a table of them, each with the command that
//! reads it, its exit code and what the message must hold. None panics, none writes to stdout, none
//! leaves a file behind or touches an adapter that was there.

#[path = "../common/mod.rs"]
mod common;

mod adapters;
mod data;
mod flags;
mod models;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{Place, stderr};

/// A broken input.
pub struct Case {
    name: &'static str,
    /// Makes it in the folder.
    make: Box<dyn Fn(&Place)>,
    line: String,
    code: i32,
    /// What the message holds: the file, the line in it, what was expected, what to do next.
    told: &'static [&'static str],
}

/// A case whose input is one file of that name.
pub fn file(
    name: &'static str,
    content: impl Into<Vec<u8>>,
    line: impl Into<String>,
    code: i32,
    told: &'static [&'static str],
) -> Case {
    let content = content.into();
    let make = move |place: &Place| {
        let path = place.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &content).unwrap();
    };
    Case { name, make: Box::new(make), line: line.into(), code, told }
}

/// A case that needs no file beside those that are there.
pub fn line(line: &'static str, code: i32, told: &'static [&'static str]) -> Case {
    Case { name: line, make: Box::new(|_| ()), line: line.into(), code, told }
}

/// The demo's model.
pub fn demo() -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo/demo.gguf")).unwrap()
}

/// `bytes` with `patch` in place of what begins `at` bytes behind the first `key`.
pub fn patched(bytes: &[u8], key: &str, at: usize, patch: &[u8]) -> Vec<u8> {
    let key = key.as_bytes();
    let begin = bytes.windows(key.len()).position(|window| window == key).unwrap();
    let begin = begin + key.len() + at;
    [&bytes[..begin], patch, &bytes[begin + patch.len()..]].concat()
}

/// Every file below a folder, with its content.
fn files(folder: &Path, into: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else {
            into.insert(path.display().to_string(), fs::read(&path).unwrap());
        }
    }
}

/// Runs a case in a folder with a text, a chat, and a run that was saved after two steps. Gives what
/// is wrong with how it ended.
fn wrong(case: &Case, furnished: &Place) -> Option<String> {
    let place = Place::empty();
    copy(&furnished.path(""), &place.path(""));
    (case.make)(&place);
    let mut before = BTreeMap::new();
    files(&place.path(""), &mut before);
    let output = place.run(&format!("{} --json", case.line));
    let said = stderr(&output);
    let mut after = BTreeMap::new();
    files(&place.path(""), &mut after);
    let changed: Vec<_> =
        after.iter().filter(|(name, content)| before.get(*name) != Some(*content)).collect();
    let lacks: Vec<_> = case.told.iter().filter(|part| !said.contains(**part)).collect();
    let what = if output.status.code() != Some(case.code) {
        format!("ends with {:?}, not {}", output.status.code(), case.code)
    } else if said.contains("panicked") || said.contains("RUST_BACKTRACE") {
        "panics".into()
    } else if !output.stdout.is_empty() {
        format!("writes {:?}", String::from_utf8_lossy(&output.stdout))
    } else if !lacks.is_empty() {
        format!("does not tell {lacks:?}")
    } else if !changed.is_empty() || before.len() != after.len() {
        let names: Vec<_> = changed.iter().map(|(name, _)| name).collect();
        format!("changes files: {} were there and {} are, new {names:?}", before.len(), after.len())
    } else {
        return None;
    };
    Some(format!("{}: {what}\n  {}\n  {}", case.name, case.line, said.trim()))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Trains in the folder of the run that is there.
pub const RUN: &str = "train -m MODEL --data text.txt --max-seq-length 32 --lora-rank 4 -o run";

#[test]
fn broken_inputs_are_told_of() {
    let furnished = Place::empty();
    let text = "The miller mends his wheel, and the village has bread again. ".repeat(12);
    furnished.write("text.txt", &text);
    let chat = r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good day!"}]}"#;
    furnished.write("chat.jsonl", chat);
    furnished
        .write("plain.jinja", "{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}{% endfor %}");
    furnished.report(&format!("{RUN} --iters 2 --save-every 1"));
    furnished.report("data text.txt -m MODEL --out text.tokens");

    let adapter = fs::read(furnished.path("run/adapter_model.safetensors")).unwrap();
    let config = fs::read_to_string(furnished.path("run/adapter_config.json")).unwrap();
    let state = fs::read(furnished.path("run/smidgen/run.state")).unwrap();
    let tokens = fs::read(furnished.path("text.tokens")).unwrap();
    let cases = [
        models::cases(),
        models::opt_cases(),
        models::folders(),
        data::cases(),
        data::token_files(&tokens),
        data::templates(),
        data::tokenizers(),
        adapters::cases(&config, &adapter),
        adapters::states(&state),
        flags::cases(),
        flags::files(),
        flags::places(),
    ];
    let cases: Vec<Case> = cases.into_iter().flatten().collect();
    assert!(cases.len() >= 50, "{} cases", cases.len());
    let wrong: Vec<_> = cases.iter().filter_map(|case| wrong(case, &furnished)).collect();
    println!("{} broken inputs", cases.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
