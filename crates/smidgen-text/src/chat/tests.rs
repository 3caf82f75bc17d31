use serde_json::{Value as Json, json};

use super::*;
use crate::gguf::tests::metadata::Metadata;

#[path = "../../tests/common/bytes.rs"]
mod bytes;

const LIMIT: usize = 1 << 20;

fn golden(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/");
    std::fs::read_to_string(format!("{folder}{name}")).unwrap()
}

fn tokenizer() -> Tokenizer {
    bytes::tokenizer(&["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|end|>", "<|call|>"])
}

fn template(text: &str) -> ChatTemplate {
    ChatTemplate::new(&ChatTemplateSource::new("x.jinja", text).unwrap(), &tokenizer()).unwrap()
}

fn said(roles: &[(&str, &str)]) -> Chat {
    let messages: Vec<_> =
        roles.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    jsonl::chat(&json!({ "messages": messages }).to_string())
}

fn render(
    template: &ChatTemplate,
    chat: &Chat,
    mask: bool,
) -> std::result::Result<Rendering, String> {
    template.render(chat, mask, &tokenizer(), LIMIT, &mut || Ok(())).map_err(|error| match error {
        ChatError::Chat(what) => what,
        other => format!("{other:?}"),
    })
}

/// What is learned of a chat.
fn learned(template: &ChatTemplate, chat: &Chat) -> std::result::Result<Vec<String>, String> {
    let Rendering { text, learned } = render(template, chat, true)?;
    Ok(learned.into_iter().map(|span| text[span].to_owned()).collect())
}

const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + \
                      '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ \
                      '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn renderings_are_those_of_transformers() {
    let golden_file: Json = serde_json::from_str(&golden("chat.json")).unwrap();
    let strings = |list: &Json| -> Vec<String> {
        list.as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    let tokenizer = bytes::tokenizer(&strings(&golden_file["controls"]));
    let render = |template: &ChatTemplate, chat: &Chat, mask| {
        template.render(chat, mask, &tokenizer, LIMIT, &mut || Ok(()))
    };
    for (name, cases) in golden_file["templates"].as_object().unwrap() {
        let source = ChatTemplateSource::new(name, golden(&format!("chat/{name}.jinja"))).unwrap();
        let template = ChatTemplate::new(&source, &tokenizer).unwrap();
        for case in cases.as_array().unwrap() {
            let line = case["line"].as_str().unwrap();
            let chat = jsonl::chat(line);
            if let Some(refused) = case["refused"].as_str() {
                let Err(ChatError::Chat(what)) = render(&template, &chat, false) else {
                    panic!("{name} takes {line}");
                };
                assert!(what.contains(refused), "{name}: {what} for {line}");
                continue;
            }
            let whole = render(&template, &chat, false).unwrap();
            assert_eq!(whole.text, case["text"].as_str().unwrap(), "{name}: {line}");
            let mut prompt = template.text(&chat, true, LIMIT).unwrap();
            generation::take_spans(&mut prompt).unwrap();
            assert_eq!(prompt, case["prompt"].as_str().unwrap(), "{name}: {line}");
            match (render(&template, &chat, true), &case["learned"]) {
                (Err(ChatError::Chat(what)), Json::Null) => {
                    assert!(what.contains("--no-mask-prompt") || what.contains("fails"), "{what}");
                }
                (Ok(Rendering { text, learned }), wanted) => {
                    let learned: Vec<_> = learned.into_iter().map(|s| text[s].to_owned()).collect();
                    assert_eq!(learned, strings(wanted), "{name}: {line}");
                }
                (Err(error), _) => panic!("{name}: {error:?} for {line}"),
            }
        }
    }
}

#[test]
fn ends_of_turns_and_prompts() {
    let tokenizer = tokenizer();
    let end =
        |text: &str| template(text).end_of_turn(&tokenizer).map(|id| tokenizer.token(id).unwrap());
    for (name, wanted) in [("inst", "</s>"), ("closing", "<|end|>"), ("calls", "<|im_end|>")] {
        assert_eq!(end(&golden(&format!("chat/{name}.jinja"))).as_deref(), Some(wanted), "{name}");
    }
    assert_eq!(end("{{ messages[1].content }} the end"), None);
    assert_eq!(end("{{ raise_exception('no') }}"), None);
    let ask = [Message { role: "user".into(), content: "Why?".into() }];
    let chatml = template(CHATML);
    let prompt = chatml.prompt(&ask, None).unwrap();
    assert_eq!(prompt, "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n");
    let calls = template(&golden("chat/calls.jinja"));
    let prompt = calls.prompt(&ask, Some(r#"[{"name": "tides"}]"#)).unwrap();
    assert!(prompt.contains("<tools>\n{\"name\": \"tides\"}\n</tools>"), "{prompt}");
    assert!(calls.prompt(&ask, Some("{}")).is_err());
    let error = template("{{ raise_exception('not ' ~ messages[0].role) }}").prompt(&ask, None);
    assert_eq!(error.unwrap_err().to_string(), "x.jinja: the chat template refuses it: not user");
}

#[test]
#[allow(clippy::single_range_in_vec_init)]
fn answers_by_difference() {
    let chatml = template(CHATML);
    let chat = said(&[("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d")]);
    assert_eq!(learned(&chatml, &chat).unwrap(), ["b<|im_end|>", "c<|im_end|>"]);
    let unmasked = render(&chatml, &chat, false).unwrap();
    assert_eq!(unmasked.learned, [0..unmasked.text.len()]);
    // Only what a completion adds.
    let chat = Chat { learned_from: 2, ..chat };
    assert_eq!(learned(&chatml, &chat).unwrap(), ["c<|im_end|>"]);
    // A chat that the assistant begins.
    let chat = said(&[("assistant", "b"), ("user", "a")]);
    assert_eq!(learned(&chatml, &chat).unwrap(), ["b<|im_end|>"]);
    // No control token: the whole difference.
    let plain = template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}");
    let chat = said(&[("user", "a"), ("assistant", "b")]);
    assert_eq!(learned(&plain, &chat).unwrap(), ["assistant: b\n"]);
    // Earlier turns that are written anew, in the middle and at the beginning.
    for text in [
        "{% for m in messages %}<{{ m.content if loop.last else '-' }}>{% endfor %}",
        "{{ messages | length }}{% for m in messages %}<{{ m.content }}>{% endfor %}",
    ] {
        let chat = said(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
        let what = learned(&template(text), &chat).unwrap_err();
        assert!(what.starts_with("message 2, the assistant's, can't be told"), "{what}");
        assert!(render(&template(text), &chat, false).is_ok());
    }
}

#[test]
fn marked_answers() {
    let text = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content \
                }}<|im_end|>\n{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    let chat = said(&[("user", "a"), ("assistant", "é"), ("user", "c"), ("assistant", "d")]);
    assert_eq!(learned(&template(text), &chat).unwrap(), ["é<|im_end|>", "d<|im_end|>"]);
    assert!(!has_sentinel(&render(&template(text), &chat, false).unwrap().text));
    let completion = Chat { learned_from: 2, ..chat.clone() };
    assert_eq!(learned(&template(text), &completion).unwrap(), ["d<|im_end|>"]);
    // The template decides, even against the role.
    let odd = "{% generation %}{{ messages[0].content }}{% endgeneration %}<|im_end|>";
    assert_eq!(learned(&template(odd), &chat).unwrap(), ["a"]);
    let open = "{% generation %}{% if false %}{% endgeneration %}{% endif %}";
    let broken = ChatTemplateSource::new("x.jinja", open).unwrap();
    match ChatTemplate::new(&broken, &tokenizer()) {
        Ok(template) => assert!(learned(&template, &chat).unwrap_err().contains("do not pair")),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn templates_for_tools() {
    let source = ChatTemplateSource::new("x", "plain").unwrap().with_tool_use("tools").unwrap();
    let template = ChatTemplate::new(&source, &tokenizer()).unwrap();
    let text = |line: &str| render(&template, &jsonl::chat(line), false).unwrap().text;
    let messages = r#""messages": [{"role": "user", "content": "a"}]"#;
    assert_eq!(text(&format!("{{{messages}}}")), "plain");
    assert_eq!(text(&format!("{{{messages}, \"tools\": [{{}}]}}")), "tools");
}

#[test]
fn broken_templates() {
    for (text, what) in [
        ("a\n{% if %}", "in its line 2"),
        ("{% for m in messages %}", "x.jinja: the chat template is broken"),
        ("{% unknown %}", "unknown"),
        ("{{ a.b( }}", "broken"),
        ("\u{fdd0}", "U+FDD0"),
        (&"{{ (".repeat(100_000), "broken"),
        (&"{% if true %}".repeat(2_000), "broken"),
    ] {
        let source = ChatTemplateSource::new("x.jinja", text).unwrap();
        let error = ChatTemplate::new(&source, &tokenizer()).unwrap_err().to_string();
        assert!(error.contains(what), "{error} does not tell {what}");
    }
    let chat = said(&[("user", "a")]);
    for (text, what) in [
        ("\n{{ missing.name }}", "fails, in its line 2"),
        ("{{ 'a' | nothing }}", "nothing"),
        ("{{ nothing() }}", "nothing"),
        ("{{ messages[0].content / 2 }}", "fails"),
        ("{{ 1 // 0 }}", "fails"),
        ("{{ strftime_now('%Q') }}", "unknown format %Q"),
        ("{{ messages | tojson(indent=99) }}", "indentation"),
        ("{{ nothing | tojson }}", "no JSON form"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "fails"),
    ] {
        let source = ChatTemplateSource::new("x.jinja", text).unwrap();
        let what_is_told = match ChatTemplate::new(&source, &tokenizer()) {
            Ok(template) => render(&template, &chat, false).unwrap_err(),
            Err(error) => error.to_string(),
        };
        assert!(what_is_told.contains(what), "{what_is_told} does not tell {what}");
    }
}

#[test]
fn work_is_bounded() {
    let chat = said(&[("user", "a"), ("assistant", "b")]);
    let mut endless =
        template("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}");
    endless.fuel(&chat);
    let begin = std::time::Instant::now();
    let what = render(&endless, &chat, true).unwrap_err();
    assert!(what.contains("may never end"), "{what}");
    assert!(begin.elapsed().as_secs() < 5);
    // Lists within lists, which are taken apart by recursion.
    let (open, close) = ("[".repeat(40), "]".repeat(40));
    let mut deep = template(&format!(
        "{{% set ns = namespace(x=1) %}}{{% for i in range(9999) %}}{{% set ns.x = {open}ns.x{close} %}}{{% endfor %}}"
    ));
    deep.fuel(&chat);
    assert!(render(&deep, &chat, true).unwrap_err().contains("lists in each other"));
    let long = template("{% for a in range(99) %}{{ messages[0].content * 1000 }}{% endfor %}");
    let tokenizer = tokenizer();
    for (limit, fits) in [(99_000, true), (98_999, false), (0, false)] {
        let made = long.render(&chat, false, &tokenizer, limit, &mut || Ok(()));
        assert_eq!(matches!(made, Err(ChatError::TooLong)), !fits, "{limit}");
    }
    // A long chat asks whether to go on.
    let turns: Vec<_> = (0..400).map(|i| (["user", "assistant"][i % 2], "x")).collect();
    let mut ticks = 0;
    let mut tick = || {
        ticks += 1;
        if ticks == 3 { Err(TextError::Cancelled) } else { Ok(()) }
    };
    let made = template(CHATML).render(&said(&turns), true, &tokenizer, LIMIT, &mut tick);
    assert!(matches!(made, Err(ChatError::Stopped(TextError::Cancelled))));
}
