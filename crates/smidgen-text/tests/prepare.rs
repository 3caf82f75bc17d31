//! From files to sequences.

#[path = "common/mod.rs"]
mod common;
#[path = "common/texts.rs"]
mod texts;

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use smidgen_text::*;
use texts::Random;

fn run(input: &Path, tokenizer: &Tokenizer, options: PrepareOptions) -> Result<TokenFile> {
    let out = input.with_extension("tokens");
    let cancel = AtomicBool::new(false);
    prepare(input, tokenizer, None, &options, &out, &mut |_| {}, &cancel)?;
    TokenFile::open(&out)
}

fn ids(file: &TokenFile) -> Vec<u32> {
    let mut ids = Vec::new();
    file.for_each_token(0..file.header().tokens, |id, _| ids.push(id)).unwrap();
    ids
}

/// The ids of a text must not depend on the pieces it is read in.
fn check_pieces(model: &str) {
    let tokenizer = common::tokenizer(model);
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("text.txt");
    let mut random = Random(7);
    for round in 0..40 {
        let text = format!("x{}", random.text(2 + 4 * round));
        fs::write(&input, &text).unwrap();
        let whole = tokenizer.encode(&text).unwrap();
        for piece_bytes in [1, 3, 17, 64, 1000] {
            let options = PrepareOptions { piece_bytes, ..PrepareOptions::default() };
            let file = run(&input, &tokenizer, options).unwrap();
            assert_eq!(ids(&file), whole, "{model}, pieces of {piece_bytes}: {text:?}");
        }
    }
}

#[test]
fn pieces_smollm2() {
    check_pieces(common::SMOLLM2);
}

#[test]
fn all_models_pieces_qwen() {
    check_pieces(common::QWEN);
}

#[test]
fn all_models_pieces_gemma() {
    check_pieces(common::GEMMA);
}

#[test]
fn all_models_completions_are_masked() {
    let tokenizer = common::tokenizer(common::QWEN);
    let eos = tokenizer.eos().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("train.jsonl");
    let lines = [
        r#"{"prompt": "2 + 2 = ", "completion": "4"}"#,
        r#"{"completion": "5<|im_end|>", "prompt": "2 + 3 = "}"#,
        r#"{"text": "Four é"}"#,
    ];
    fs::write(&input, lines.join("\n")).unwrap();
    let spec = WindowSpec { max_seq_length: 64, chunks: None, bos: false, single_token: false };
    let tokens = |text: &str| tokenizer.encode(text).unwrap();
    let prompt = tokens("2 + 2 = ").len();
    for mask_prompt in [true, false] {
        let options = PrepareOptions { mask_prompt, ..PrepareOptions::default() };
        let file = run(&input, &tokenizer, options).unwrap();
        assert_eq!((file.header().samples, file.header().mask_prompt), (3, mask_prompt));
        let dataset = Dataset::open(file, &spec).unwrap();
        let mut sequence = Sequence::default();
        dataset.read(0, &mut sequence).unwrap();
        assert_eq!(sequence.ids, [tokens("2 + 2 = "), tokens("4"), vec![eos]].concat());
        for (place, &target) in sequence.targets.iter().enumerate() {
            assert_eq!(target, place > 0 && (!mask_prompt || place >= prompt));
        }
        dataset.read(1, &mut sequence).unwrap();
        assert_eq!(sequence.ids, [tokens("2 + 3 = "), tokens("5"), vec![eos]].concat());
        dataset.read(2, &mut sequence).unwrap();
        assert_eq!(sequence.ids, [tokens("Four é"), vec![eos]].concat());
        assert_eq!(sequence.target_count(), sequence.ids.len() - 1);
    }
}

#[test]
fn broken_lines_are_named() {
    let tokenizer = common::tokenizer(common::SMOLLM2);
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("train.jsonl");
    for (line, what) in [
        ("", "empty"),
        ("{", "EOF"),
        ("[]", "this is no object; expected an object"),
        (r#"["a", null, null]"#, "this is no object"),
        ("hello", "this is no object"),
        (r#"{"text": 3}"#, "\"text\" is a number, and a string is expected"),
        (r#"{"text": "a", "extra": 1}"#, "the key \"extra\" is unknown; known: text, prompt"),
        (r#"{"question": "a", "answer": "b"}"#, "the key \"question\" is unknown"),
        (r#"{"prompt": "a"}"#, "keys"),
        (r#"{"text": "a", "prompt": "b", "completion": "c"}"#, "keys"),
        ("{}", "keys"),
        (r#"{"prompt": "a", "completion": ""}"#, "completion is empty"),
        (r#"{"text": ""}"#, "no token"),
        (r#"{"text": "<|im_end|>"}"#, "no token"),
        (r#"{"text": "a", "text": "b"}"#, "duplicate"),
    ] {
        fs::write(&input, format!("{{\"text\": \"good\"}}\n{line}\n")).unwrap();
        let error = run(&input, &tokenizer, PrepareOptions::default()).unwrap_err().to_string();
        assert!(error.contains("train.jsonl:2: "), "{error}");
        assert!(error.contains(what) && error.contains(r#"{"text": "…"}"#), "{error}");
    }
    let mut line = b"{\"text\": \"good\"}\n".to_vec();
    line.resize(MAX_PIECE_BYTES + 40, b'a');
    fs::write(&input, &line).unwrap();
    let error = run(&input, &tokenizer, PrepareOptions::default()).unwrap_err().to_string();
    assert!(error.contains(":2: the line is longer than 16777216 bytes"), "{error}");
    fs::write(&input, b"{\"text\": \"a\xff\"}\n").unwrap();
    let error = run(&input, &tokenizer, PrepareOptions::default()).unwrap_err().to_string();
    assert!(error.contains(":1: ") && error.contains("utf-8"), "{error}");
}

#[test]
fn texts_that_are_refused() {
    let tokenizer = common::tokenizer(common::SMOLLM2);
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("train.txt");
    let refused = |content: &[u8], what: &str| {
        fs::write(&input, content).unwrap();
        let options = PrepareOptions { piece_bytes: 1 << 22, ..PrepareOptions::default() };
        let error = run(&input, &tokenizer, options).unwrap_err().to_string();
        assert!(error.contains("train.txt") && error.contains(what), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something is left behind");
    };
    refused(b"", "empty");
    refused(b"abc \xff def", "byte 4 is not");
    refused(b"abc \xe2\x96", "byte 4 is not");
    refused(&vec![b'a'; MAX_PIECE_BYTES + 1], "from byte 0 on");
    fs::rename(&input, folder.path().join("train.csv")).unwrap();
    let error =
        run(&folder.path().join("train.csv"), &tokenizer, PrepareOptions::default()).unwrap_err();
    assert!(error.to_string().contains(".jsonl"), "{error}");
}

#[test]
fn progress_and_cancelling() {
    let tokenizer = common::tokenizer(common::SMOLLM2);
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("train.txt");
    fs::write(&input, "one two three\n".repeat(1000)).unwrap();
    let out = folder.path().join("out.tokens");
    let options = PrepareOptions { piece_bytes: 1000, ..PrepareOptions::default() };
    let cancel = AtomicBool::new(false);
    let mut seen = Vec::new();
    let mut progress = |progress: Progress| seen.push(progress);
    let header = prepare(&input, &tokenizer, None, &options, &out, &mut progress, &cancel).unwrap();
    assert!(seen.len() > 10 && seen.is_sorted_by_key(|progress| progress.bytes));
    let last = seen.last().unwrap();
    assert_eq!((last.bytes, last.bytes_total, last.tokens), (14000, 14000, header.tokens));
    fs::remove_file(&out).unwrap();
    let mut progress = |progress: Progress| {
        cancel.store(progress.bytes > 5000, std::sync::atomic::Ordering::Relaxed);
    };
    let result = prepare(&input, &tokenizer, None, &options, &out, &mut progress, &cancel);
    assert!(matches!(result, Err(TextError::Cancelled)));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Opening a pipe without a writer would wait for ever.
#[test]
fn only_regular_files_are_read() {
    let tokenizer = common::tokenizer(common::SMOLLM2);
    let folder = tempfile::tempdir().unwrap();
    for name in ["pipe.txt", "pipe.jsonl", "pipe.tokens"] {
        let pipe = folder.path().join(name);
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let error = match name.ends_with(".tokens") {
            true => TokenFile::open(&pipe).map(|_| ()),
            false => run(&pipe, &tokenizer, PrepareOptions::default()).map(|_| ()),
        };
        let error = error.unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("not a regular file"), "{error}");
    }
}
