//! The built-in tokenizers against the `tokenizers` crate on the same vocabularies, id for id.

#[path = "common/mod.rs"]
mod common;
#[path = "common/texts.rs"]
mod texts;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

use common::Metadata;
use serde_json::{Value, json};
use smidgen_text::{
    ChatTemplate, ChatTemplateSource, PrepareOptions, TokenFile, Tokenizer, prepare,
};
use texts::Random;

/// The `tokenizer.json` that describes the same tokenizer as `file`.
fn tokenizer_json(file: &Metadata) -> Value {
    let sentence_piece = file.model == "llama";
    let spelled = |id: usize| {
        let token = &file.tokens[id];
        let spaces = file.token_types[id] == 4 && token.bytes().all(|byte| byte == b' ');
        if spaces { token.replace(' ', "▁") } else { token.clone() }
    };
    let tokens: Vec<String> = (0..file.tokens.len()).map(spelled).collect();
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().zip(0..).map(|(token, id): (_, u32)| (token.clone(), id.into())).collect();
    let added: Vec<Value> = (0..tokens.len())
        .filter(|&id| (2..=4).contains(&file.token_types[id]))
        .map(|id| {
            json!({"id": id, "content": tokens[id], "special": file.token_types[id] == 3,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
        })
        .collect();
    let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let byte_level = |use_regex: bool| {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": use_regex})
    };
    let sequence = |first, second| json!({"type": "Sequence", "pretokenizers": [first, second]});
    let (normalizer, pre_tokenizer) = match file.pre.as_deref() {
        _ if sentence_piece => (
            json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
            json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                "invert": false}),
        ),
        Some("qwen2") => (json!({"type": "NFC"}), sequence(split(QWEN2), byte_level(false))),
        _ => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (Value::Null, sequence(digits, byte_level(true)))
        }
    };
    let decoder = if sentence_piece {
        json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]})
    } else {
        byte_level(true)
    };
    let merges: Vec<[String; 2]> =
        if sentence_piece { merges_by_score(file, &tokens) } else { merges_by_rank(file) };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": decoder,
        "model": {
            "type": "BPE", "dropout": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": sentence_piece, "byte_fallback": sentence_piece,
            "unk_token": if sentence_piece { "<unk>".into() } else { Value::Null },
            "vocab": vocab, "merges": merges,
        },
    })
}

const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn merges_by_rank(file: &Metadata) -> Vec<[String; 2]> {
    let pair = |merge: &String| {
        let (left, right) = merge.split_once(' ').unwrap();
        [left.to_owned(), right.to_owned()]
    };
    file.merges.iter().map(pair).collect()
}

/// Every way to make a token of two, user-defined tokens first, then by falling score.
fn merges_by_score(file: &Metadata, tokens: &[String]) -> Vec<[String; 2]> {
    let ids: HashMap<&str, usize> = tokens.iter().map(String::as_str).zip(0..).collect();
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    let key = |id: usize| (file.token_types[id] != 4, -file.scores[id]);
    order.sort_by(|&a, &b| key(a).partial_cmp(&key(b)).unwrap());
    let mut merges = Vec::new();
    for id in order {
        let token = tokens[id].as_str();
        let mut pairs: Vec<(usize, usize)> = (token.char_indices().skip(1))
            .filter_map(|(at, _)| Some((*ids.get(&token[..at])?, *ids.get(&token[at..])?)))
            .collect();
        pairs.sort_unstable();
        merges.extend(pairs.iter().map(|&(l, r)| [tokens[l].clone(), tokens[r].clone()]));
    }
    merges
}

fn check(model: &str) {
    let file = common::metadata(model);
    let oracle = Tokenizer::from_json(tokenizer_json(&file).to_string().as_bytes()).unwrap();
    let ours = file.build().unwrap();
    assert_eq!(ours.vocab_size(), oracle.vocab_size());
    let mut random = Random(2026);
    for round in 0..3000 {
        let text = random.text(1 + round % 30);
        let ids = oracle.encode(&text).unwrap();
        assert_eq!(ours.encode(&text).unwrap(), ids, "{model}: {text:?}");
        assert_eq!(ours.decode(&ids), oracle.decode(&ids), "{model}: {text:?}");
        for tokenizer in [&ours, &oracle] {
            let mut decoder = tokenizer.stream_decoder();
            let mut streamed: String = ids.iter().map(|&id| decoder.push(id)).collect();
            streamed.push_str(&decoder.finish());
            assert_eq!(streamed, tokenizer.decode(&ids), "{model}: {text:?}");
        }
    }
    let oracle = oracle.with_bos_eos(ours.bos(), ours.eos()).unwrap();
    let [ours, oracle] = [ours, oracle].map(chat);
    assert_eq!(ours, oracle, "{model}");
    assert_eq!(ours.1.iter().filter(|(_, target)| *target).count(), 4 + 1, "{model}: {ours:?}");
}

/// The end of a turn, and the tokens and targets of a chat whose turns end with EOS.
fn chat(tokenizer: Tokenizer) -> (Option<u32>, Vec<(u32, bool)>) {
    const TEMPLATE: &str = "{% for m in messages %}{{ m.role + \": \" + m.content + eos_token }}\n\n\
                            {% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    const LINE: &str = r#"{"messages": [{"role": "user", "content": "Why"}, {"role": "assistant", "content": "x x x x"}]}"#;
    let folder = tempfile::tempdir().unwrap();
    let [input, out] = ["a.jsonl", "a.tokens"].map(|name| folder.path().join(name));
    std::fs::write(&input, LINE).unwrap();
    let source = ChatTemplateSource::new("x", TEMPLATE).unwrap();
    let template = ChatTemplate::new(&source, &tokenizer).unwrap();
    let (options, never) = (PrepareOptions::default(), AtomicBool::new(false));
    prepare(&input, &tokenizer, Some(&source), &options, &out, &mut |_| {}, &never).unwrap();
    let (file, mut tokens) = (TokenFile::open(&out).unwrap(), Vec::new());
    file.for_each_token(0..file.header().tokens, |id, target| tokens.push((id, target))).unwrap();
    assert_eq!(template.end_of_turn(&tokenizer), tokenizer.eos());
    (template.end_of_turn(&tokenizer), tokens)
}

#[test]
fn smollm2() {
    check(common::SMOLLM2);
}

#[test]
fn all_models_qwen() {
    check(common::QWEN);
}

#[test]
fn all_models_gemma() {
    check(common::GEMMA);
}
