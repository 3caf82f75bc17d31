//! Where a model's chat template is found.

use std::fs;
use std::path::Path;

use smidgen_train::{Base, Error, Kind};

fn demo() -> Base {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo/demo.gguf");
    Base::open(file).expect("the demo's model")
}

/// The template's text, and the name of the file it stands in.
fn found(base: &Base) -> Option<(String, String)> {
    let source = base.chat_template_source().unwrap()?;
    let file = Path::new(source.origin()).file_name().unwrap().to_string_lossy().into_owned();
    Some((source.text().to_owned(), file))
}

#[test]
fn the_nearest_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let pair = |text: &str, file: &str| Some((text.to_owned(), file.to_owned()));
    let base = || demo().with_tokenizer_json(at("tokenizer.json"));
    assert_eq!(found(&demo()), None);
    assert_eq!(found(&base()), None);
    fs::write(at("tokenizer_config.json"), "{}").unwrap();
    assert_eq!(found(&base()), None);
    fs::write(at("tokenizer_config.json"), r#"{"chat_template": "b"}"#).unwrap();
    assert_eq!(found(&base()), pair("b", "tokenizer_config.json"));
    fs::write(at("chat_template.jinja"), "c").unwrap();
    assert_eq!(found(&base()), pair("c", "chat_template.jinja"));
    let plain = base().chat_template_source().unwrap().unwrap();
    fs::create_dir(at("additional_chat_templates")).unwrap();
    fs::write(at("additional_chat_templates/tool_use.jinja"), "d").unwrap();
    assert_eq!(found(&base()), pair("c", "chat_template.jinja"));
    assert_ne!(base().chat_template_source().unwrap().unwrap().fingerprint(), plain.fingerprint());
    fs::write(at("mine.jinja"), "e").unwrap();
    assert_eq!(found(&base().with_chat_template(at("mine.jinja"))), pair("e", "mine.jinja"));
    assert_eq!(
        found(&demo().with_chat_template(at("tokenizer_config.json"))),
        pair("b", "tokenizer_config.json")
    );
}

#[test]
fn files_without_a_template() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("empty.json"), "{}").unwrap();
    fs::write(at("broken.json"), "{").unwrap();
    fs::write(at("bytes.jinja"), b"\xff").unwrap();
    for (name, kind) in [
        ("missing.jinja", Kind::Failed),
        ("empty.json", Kind::Usage),
        ("broken.json", Kind::Failed),
        ("bytes.jinja", Kind::Failed),
        (".", Kind::Usage),
    ] {
        let base = demo().with_chat_template(at(name));
        let error: Error = base.chat_template_source().unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
    // A broken one beside the tokenizer is not passed over.
    fs::write(at("tokenizer_config.json"), "{").unwrap();
    assert!(demo().with_tokenizer_json(at("tokenizer.json")).chat_template_source().is_err());
}
