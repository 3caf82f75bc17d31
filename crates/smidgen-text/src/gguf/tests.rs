use super::*;

#[path = "../../tests/common/metadata.rs"]
pub(crate) mod metadata;

use metadata::Metadata;

/// `<end>` (control, EOS), the letters `a` to `d`, and more of byte-level spelling.
fn byte_level() -> Metadata {
    let tokens = ["<end>", "a", "b", "c", "d", "Ġ", "Ċ", "ab", "Ġc", "abd"];
    Metadata {
        model: "gpt2".into(),
        pre: Some("smollm".into()),
        tokens: tokens.map(str::to_owned).to_vec(),
        token_types: vec![3, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        merges: ["a b", "Ġ c", "ab d"].map(str::to_owned).to_vec(),
        eos: Some(0),
        ..Metadata::default()
    }
}

/// The 256 bytes, `▁`, `a`, `b`, `\n` and `▁▁` (user-defined), `ab`, `▁a`, and EOS.
fn sentence_piece() -> Metadata {
    let mut tokens: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
    tokens.extend(["▁", "a", "b", "\n", "  ", "ab", "▁a", "<end>"].map(str::to_owned));
    let mut scores = vec![0.0; 256];
    scores.extend([-9.0, -9.0, -9.0, -1000.0, -1000.0, -2.0, -1.0, -1000.0]);
    let mut token_types = vec![6; 256];
    token_types.extend([1, 1, 1, 4, 4, 1, 1, 3]);
    Metadata {
        model: "llama".into(),
        tokens,
        scores,
        token_types,
        eos: Some(263),
        add_space_prefix: Some(false),
        ..Metadata::default()
    }
}

/// A byte-level tokenizer of ten tokens with EOS 0 and no BOS.
pub(crate) fn tiny() -> Tokenizer {
    byte_level().build().unwrap()
}

#[test]
fn byte_level_ids() {
    let tokenizer = tiny();
    let ids = |text: &str| tokenizer.encode(text).unwrap();
    assert_eq!(ids("abd c\n<end>ba"), [9, 8, 6, 0, 2, 1]);
    assert_eq!(ids("aébz"), [7], "bytes without a token are left out");
    assert_eq!(tokenizer.decode(&[9, 8, 6, 0, 2, 1, 77]), "abd c\n<end>ba\u{fffd}");
    assert_eq!((tokenizer.eos(), tokenizer.bos(), tokenizer.vocab_size()), (Some(0), None, 10));
    assert_eq!(tokenizer.token_id("<end>"), Some(0));
}

#[test]
fn sentence_piece_ids() {
    let tokenizer = sentence_piece().build().unwrap();
    let ids = |text: &str| tokenizer.encode(text).unwrap();
    assert_eq!(ids("ab"), [261]);
    assert_eq!(ids(" ab"), [262, 258], "the best-scored token is made first");
    assert_eq!(ids("  ab\n<end>"), [260, 261, 259, 263], "user-defined tokens come before all");
    assert_eq!(ids("é"), [0xc3, 0xa9]);
    assert_eq!(tokenizer.decode(&ids("  aé b▁\n")), "  aé b \n");
    let mut decoder = tokenizer.stream_decoder();
    assert_eq!([0x61, 0xc3, 0xa9, 0xc3].map(|id| decoder.push(id)), ["a", "", "é", ""]);
    assert_eq!(decoder.finish(), "\u{fffd}");
}

#[test]
fn fingerprints_tell_vocabularies_apart() {
    let base = byte_level().build().unwrap().fingerprint();
    assert_eq!(base, byte_level().build().unwrap().fingerprint());
    assert_eq!(base.to_string().len(), 32);
    let mut other = byte_level();
    other.tokens.swap(3, 4);
    assert_ne!(base, other.build().unwrap().fingerprint());
}

#[test]
fn kinds_that_are_not_known_are_named() {
    let refused = |change: fn(&mut Metadata), wanted: &[&str]| {
        let mut file = byte_level();
        change(&mut file);
        let error = file.build().unwrap_err().to_string();
        assert!(wanted.iter().all(|word| error.contains(word)), "{error}");
    };
    refused(|file| file.pre = Some("tekken".into()), &["tekken", "smollm", "qwen2"]);
    refused(|file| file.pre = None, &["tokenizer.ggml.pre"]);
    refused(|file| file.model = "bert".into(), &["bert", "gpt2", "llama"]);
    refused(|file| file.model = "llama".into(), &["add_space_prefix"]);
}

#[test]
fn contradictions_are_refused() {
    type Change = fn(&mut Metadata);
    let both: &[Change] = &[
        |file| file.tokens.clear(),
        |file| file.token_types.clear(),
        |file| file.token_types.push(1),
        |file| file.token_types[1] = 9,
        |file| file.bos = Some(1 << 20),
        |file| file.eos = Some(u32::MAX),
        |file| file.pad = Some(1 << 20),
        |file| file.unk = Some(1 << 20),
    ];
    let byte_level_only: &[Change] = &[
        |file| file.merges.clear(),
        |file| file.merges[0] = "ab".into(),
        |file| file.merges[0] = "a zz".into(),
        |file| file.merges[0] = "a c".into(),
        |file| file.merges[0] = "a b c".into(),
        |file| file.merges[0] = String::new(),
    ];
    let sentence_piece_only: &[Change] = &[
        |file| file.scores.clear(),
        |file| file.scores[3] = f32::NAN,
        |file| file.tokens[65] = "A".into(),
    ];
    for (make, changes) in [
        (byte_level as fn() -> Metadata, [both, byte_level_only].concat()),
        (sentence_piece, [both, sentence_piece_only].concat()),
    ] {
        for (number, change) in changes.iter().enumerate() {
            let mut file = make();
            change(&mut file);
            let error = file.build().err();
            assert!(matches!(error, Some(TextError::BadVocabulary(_))), "{number}: {error:?}");
        }
    }
}
