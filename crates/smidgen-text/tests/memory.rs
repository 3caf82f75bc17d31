//! What preparing takes of the heap, by a counting allocator: no more than was told beforehand, and
//! not much less.

#[path = "common/mod.rs"]
mod common;
#[path = "common/heap.rs"]
mod heap;

use std::fs;
use std::sync::atomic::AtomicBool;

use common::Metadata;
use heap::counted;
use smidgen_text::{
    ChatTemplateSource, PREPARE_BYTES, PrepareOptions, SHORT_PIECE_BYTES, Tokenizer, prepare,
};

const TEXT: &str = "The lighthouse keeper counts 17 ships; \"none\", she writes, \"came back\". \
                    Über den Wellen — 海は静かだ — летят чайки.\n\tfn main() { println!(\"{}\", 0x2a); }\n";

/// Chats of about `bytes` bytes a line: in English, with many short turns, with schemas, as one word,
/// and as little else than brackets.
fn chats(bytes: usize) -> [(&'static str, String); 5] {
    let turn = |role: &str, said: &str| format!("{{\"role\": \"{role}\", \"content\": {said:?}}}");
    let line = |turns: &[String], tools: &str| {
        format!("{{\"messages\": [{}], \"tools\": [{tools}]}}\n", turns.join(", "))
    };
    let english = TEXT.repeat(bytes / 2 / TEXT.len());
    let short = [turn("user", "Who is it?"), turn("assistant", "The keeper.")];
    let schema = "{\"type\": \"function\", \"function\": {\"name\": \"count\", \"parameters\": {\"type\": \
                  \"object\", \"properties\": {\"what\": {\"type\": \"string\"}}, \"required\": []}}}";
    let schemas = vec![schema; bytes / (schema.len() + 2)].join(", ");
    let word = "海は静かだ".repeat(bytes / 15);
    [
        ("english", line(&[turn("user", &english), turn("assistant", &english)], "")),
        ("turns", line(&vec![short.clone(); (bytes / 90).min(300)].concat(), "")),
        ("schemas", line(&short, &schemas)),
        ("word", line(&[turn("user", ""), turn("assistant", &word)], "")),
        ("brackets", line(&short, &vec!["{\"a\": [[], 0]}"; bytes / 16].join(","))),
    ]
}

/// What chats take: short lines no more than is told, long ones no more than a byte's share.
fn check_chats(name: &str, tokenizer: &Tokenizer, chat: &ChatTemplateSource) {
    let folder = tempfile::tempdir().unwrap();
    let (input, out) = (folder.path().join("chats.jsonl"), folder.path().join("tokens"));
    for bytes in [SHORT_PIECE_BYTES - 600, 200_000] {
        for (form, line) in chats(bytes) {
            fs::write(&input, line.repeat(if bytes < 10_000 { 50 } else { 2 })).unwrap();
            let (options, never) = (PrepareOptions::default(), AtomicBool::new(false));
            let (made, took, _) = counted(|| {
                prepare(&input, tokenizer, Some(chat), &options, &out, &mut |_| {}, &never)
            });
            let made = made.unwrap();
            println!(
                "{name}: {} tokens of {form}, lines of {}, took {took}",
                made.tokens,
                line.len()
            );
            let is_long = ["word", "brackets"].contains(&form) || line.len() > SHORT_PIECE_BYTES;
            let room = if is_long { tokenizer.piece_memory() * line.len() as u64 } else { 0 };
            let told = PREPARE_BYTES + chat.prepare_bytes() + room;
            assert!(took <= told, "{name}: {form} took {took} of {told}");
        }
    }
}

fn check(name: &str, file: &Metadata, chat: &ChatTemplateSource) {
    let folder = tempfile::tempdir().unwrap();
    file.packed(|file| {
        let told = file.memory().unwrap();
        let (tokenizer, took, kept) = counted(|| Tokenizer::from_gguf(file).unwrap());
        println!("{name}: told {told}, took {took}, kept {kept}");
        assert!(took <= told, "{name}: took {took} of {told}");
        assert!(told as f64 <= 1.15 * took as f64, "{name}: told {told}, took {took}");
        assert_eq!(tokenizer.fingerprint(), file.fingerprint());
        let lines = |n: usize| format!("{{\"text\": {:?}}}\n", TEXT.repeat(n));
        let word = "海は静かだ".repeat(40_000);
        for (form, content) in [
            ("txt", TEXT.repeat(5_000)),
            ("word.txt", word.clone()),
            ("jsonl", lines(1).repeat(5_000)),
            ("long.jsonl", lines(45).repeat(100)),
        ] {
            let input = folder.path().join(format!("text.{form}"));
            fs::write(&input, content).unwrap();
            let (out, options) = (folder.path().join("tokens"), PrepareOptions::default());
            let never = AtomicBool::new(false);
            let (made, took, _) =
                counted(|| prepare(&input, &tokenizer, None, &options, &out, &mut |_| {}, &never));
            println!("{name}: {} tokens of {form} took {took}", made.unwrap().tokens);
            let room =
                if form == "word.txt" { tokenizer.piece_memory() * word.len() as u64 } else { 0 };
            assert!(took <= PREPARE_BYTES + room, "{name}: {form} took {took}");
        }
        check_chats(name, &tokenizer, chat);
    });
}

#[test]
fn smollm2() {
    let chat = common::chat_template(common::SMOLLM2);
    check(common::SMOLLM2, &common::metadata(common::SMOLLM2), &chat);
}

#[test]
fn all_models_qwen() {
    let chat = common::chat_template(common::QWEN);
    check(common::QWEN, &common::metadata(common::QWEN), &chat);
}

#[test]
fn all_models_gemma() {
    // The base model has no template.
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/chat/turns.jinja");
    let chat = ChatTemplateSource::new("turns", fs::read_to_string(path).unwrap()).unwrap();
    check(common::GEMMA, &common::metadata(common::GEMMA), &chat);
}
