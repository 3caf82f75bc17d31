//! Chats through the command line, on the real binary and the demo's model, which has no template.

mod common;

use common::Place;
use serde_json::Value;

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n\
                        {% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

const CHATS: &str = r#"{"messages": [{"role": "user", "content": "Who mends it?"}, {"role": "assistant", "content": "The miller."}]}
{"conversations": [{"from": "human", "value": "What is cold?"}, {"from": "gpt", "value": "The stones."}]}
{"instruction": "Where is it?", "output": "Above the door."}
"#;

/// A folder with chats, templates, and a checkpoint's settings with a template in them.
fn furnished() -> Place {
    let place = Place::empty();
    place.write("chats.jsonl", CHATS);
    place.write("chat.jinja", TEMPLATE);
    place.write("other.jinja", &format!("{TEMPLATE} "));
    let config = serde_json::json!({"eos_token": "x", "chat_template": TEMPLATE});
    place.write("tokenizer_config.json", &config.to_string());
    place
}

#[test]
fn chats_are_shown() {
    let place = furnished();
    let none = place.failure("data chats.jsonl -m MODEL", 1);
    assert!(none.contains("chats.jsonl:1: ") && none.contains("--chat-template"), "{none}");
    let shown = place.report("data chats.jsonl -m MODEL --chat-template chat.jinja");
    assert_eq!((&shown["sequences"], &shown["chat_template"]), (&3.into(), &"chat.jinja".into()));
    let share = shown["targets_share"].as_f64().unwrap();
    assert!(share > 0.1 && share < 0.6, "{share}");
    let config = place.report("data chats.jsonl -m MODEL --chat-template tokenizer_config.json");
    assert_eq!(config["first_ids"], shown["first_ids"]);
    assert_eq!(config["chat_template_fingerprint"], shown["chat_template_fingerprint"]);
    let all = place.report("data chats.jsonl -m MODEL --chat-template chat.jinja --no-mask-prompt");
    assert!(all["targets_share"].as_f64().unwrap() > 0.9);
    let text = place.run("data chats.jsonl -m MODEL --chat-template chat.jinja").stdout;
    let text = String::from_utf8(text).unwrap();
    for line in
        ["- user: Who mends it?", "+ The miller.", "template of chat.jinja", "to be learned ("]
    {
        assert!(text.contains(line), "{text}");
    }
    let missing = place.failure("data chats.jsonl -m MODEL --chat-template no.jinja", 1);
    assert!(missing.contains("no.jinja"), "{missing}");
}

#[test]
fn token_files_keep_their_template() {
    let place = furnished();
    place.report("data chats.jsonl -m MODEL --chat-template chat.jinja --out chats.tokens");
    let train = "train -m MODEL --data chats.tokens -o run --iters 2";
    assert_eq!(place.report(train)["steps"], 2);
    assert_eq!(place.report(&format!("{train} --chat-template chat.jinja"))["steps"], 2);
    let other = place.failure(&format!("{train} --chat-template other.jinja"), 2);
    assert!(other.contains("another chat template") && other.contains("prepare"), "{other}");
    let names = place.failure(&format!("{train} --text-feature body"), 2);
    assert!(names.contains("other names of keys"), "{names}");
    let scored = place.report("eval -m MODEL --data chats.jsonl --chat-template chat.jinja");
    assert!(scored["loss"].as_f64().unwrap() > 0.0);
    let planned = place.report("plan -m MODEL --data chats.jsonl --chat-template chat.jinja");
    assert!(planned["prepare_planned_bytes"].as_u64() >= planned["prepare_peak_bytes"].as_u64());
}

#[test]
fn keys_are_remapped() {
    let place = furnished();
    place.write("renamed.jsonl", r#"{"q": "Who mends it?", "a": " The miller.", "id": 1, "n": 2}"#);
    let unknown = place.failure("data renamed.jsonl -m MODEL", 1);
    assert!(unknown.contains("the key \"q\" is unknown; known: text, prompt"), "{unknown}");
    assert!(unknown.contains("--ignore-features"), "{unknown}");
    let flags = "--prompt-feature q --completion-feature a --ignore-features id,n";
    let shown = place.report(&format!("data renamed.jsonl -m MODEL {flags}"));
    assert_eq!((&shown["sequences"], &shown["chat_template"]), (&1.into(), &Value::Null));
    place.write("run.yaml", "prompt-feature: q\ncompletion_feature: a\nignore-features: [id, n]\n");
    let train = "train -c run.yaml -m MODEL --data renamed.jsonl -o run --iters 1";
    assert_eq!(place.report(train)["steps"], 1);
}
