//! Lines of all forms on their way to sequences, and what is told of broken ones.

#[path = "common/mod.rs"]
mod common;
#[path = "common/texts.rs"]
mod texts;

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};
use smidgen_text::*;
use texts::Random;

const CONTROLS: [&str; 4] = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"];

/// Two control tokens a message, functions between brackets.
const TEMPLATE: &str = "\
{% if tools %}[{{ tools | tojson }}]{% endif %}
{% for m in messages %}
{{ '<|im_start|>' + m.role + ':' }}
{%- if m.content is string %}{{ m.content }}{% elif m.content is none %}-{% else %}
{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}
{%- for call in m.tool_calls %}({{ call.function.name }} {{ call.function.arguments | tojson }}){% endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}";

fn source() -> ChatTemplateSource {
    ChatTemplateSource::new("x.jinja", TEMPLATE).unwrap()
}

fn run(content: &str, options: &PrepareOptions) -> Result<Dataset> {
    run_with(content, Some(&source()), options)
}

fn run_with(
    content: &str,
    chat: Option<&ChatTemplateSource>,
    options: &PrepareOptions,
) -> Result<Dataset> {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("train.jsonl");
    fs::write(&input, content).unwrap();
    let tokenizer = common::bytes::tokenizer(&CONTROLS);
    let made = prepare_beside(&input, &tokenizer, chat, options);
    if made.is_err() {
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something is left behind");
    }
    Dataset::open(
        made?,
        &WindowSpec { max_seq_length: 1 << 20, chunks: None, bos: false, single_token: false },
    )
}

fn prepare_beside(
    input: &Path,
    tokenizer: &Tokenizer,
    chat: Option<&ChatTemplateSource>,
    options: &PrepareOptions,
) -> Result<TokenFile> {
    let (out, never) = (input.with_extension("tokens"), AtomicBool::new(false));
    prepare(input, tokenizer, chat, options, &out, &mut |_| {}, &never)?;
    TokenFile::open(&out)
}

/// The first sample with what is learned in brackets.
fn shown(content: &str, options: &PrepareOptions) -> String {
    let dataset = run(content, options).unwrap_or_else(|error| panic!("{error}"));
    let tokenizer = common::bytes::tokenizer(&CONTROLS);
    let mut sequence = Sequence::default();
    dataset.read(0, &mut sequence).unwrap();
    let mut text = String::new();
    let mut start = 0;
    for end in 1..=sequence.ids.len() {
        let learned = sequence.targets[start];
        if end == sequence.ids.len() || sequence.targets[end] != learned {
            let run = tokenizer.decode(&sequence.ids[start..end]);
            text += &if learned { format!("⟦{run}⟧") } else { run };
            start = end;
        }
    }
    text
}

fn usual() -> PrepareOptions {
    PrepareOptions::default()
}

fn error(content: &str, options: &PrepareOptions) -> String {
    run(content, options).expect_err(content).to_string()
}

#[test]
fn every_form_and_its_mask() {
    let ask = "<|im_start|>user:Why?<|im_end|>\n<|im_start|>assistant:";
    let answered = format!("{ask}⟦So.<|im_end|>⟧\n");
    let strict = "<|im_start|>system:Be brief.<|im_end|>\n";
    let cases = [
        // The first token is never predicted.
        (r#"{"text": "abc"}"#, "a⟦bc</s>⟧".to_owned()),
        (r#"{"text": "abc</s>", "messages": null}"#, "a⟦bc</s>⟧".into()),
        (r#"{"prompt": "ab", "completion": "c"}"#, "ab⟦c</s>⟧".into()),
        (
            r#"{"messages": [{"role": "user", "content": "Why?"},
                {"role": "assistant", "content": "So."}]}"#,
            answered.clone(),
        ),
        (
            r#"{"messages": [{"role": "user", "content": "Why?"},
                {"role": "assistant", "content": "So."}, {"role": "user", "content": "Oh."},
                {"role": "assistant", "content": "Yes.", "name": "x"}]}"#,
            format!(
                "{answered}<|im_start|>user:Oh.<|im_end|>\n<|im_start|>assistant:⟦Yes.<|im_end|>⟧\n"
            ),
        ),
        (
            r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "Wh"},
                {"type": "text", "text": "y?"}]}, {"role": "assistant", "content": null,
                "tool_calls": [{"function": {"name": "f", "arguments": {"z": 1, "a": "é<"}}}]},
                {"role": "tool", "content": "3"}, {"role": "assistant", "content": "So."}],
                "tools": [{"name": "f", "b": {}, "a": []}]}"#,
            "[[{\"name\": \"f\", \"b\": {}, \"a\": []}]]<|im_start|>user:Why?<|im_end|>\n\
             <|im_start|>assistant:⟦-(f {\"z\": 1, \"a\": \"é<\"})<|im_end|>⟧\n\
             <|im_start|>tool:3<|im_end|>\n<|im_start|>assistant:⟦So.<|im_end|>⟧\n"
                .into(),
        ),
        (
            r#"{"prompt": [{"role": "user", "content": "Why?"}],
                "completion": [{"role": "assistant", "content": "So."}]}"#,
            answered.clone(),
        ),
        (
            r#"{"prompt": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."},
                {"role": "user", "content": "Why?"}],
                "completion": [{"role": "assistant", "content": "So."}]}"#,
            format!("{ask}So.<|im_end|>\n{answered}"),
        ),
        (
            r#"{"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}],
                "system": "Be brief."}"#,
            format!("{strict}{answered}"),
        ),
        (
            r#"{"conversations": [{"from": "system", "value": "Be brief."},
                {"from": "user", "value": "Why?"},
                {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"a\": 1}}"},
                {"from": "observation", "value": "3"}, {"from": "assistant", "value": "So."}],
                "tools": "[{\"name\": \"f\"}]"}"#,
            format!(
                "[[{{\"name\": \"f\"}}]]{strict}{ask}⟦(f {{\"a\": 1}})<|im_end|>⟧\n\
                 <|im_start|>tool:3<|im_end|>\n<|im_start|>assistant:⟦So.<|im_end|>⟧\n"
            ),
        ),
        (
            r#"{"conversations": [{"role": "user", "content": "Why?"},
                {"role": "assistant", "content": "So."}]}"#,
            answered.clone(),
        ),
        (r#"{"instruction": "Why?", "input": "", "output": "So."}"#, answered.clone()),
        (
            r#"{"instruction": "Why", "input": "?", "output": "So.", "system": "Be brief.",
                "history": [["Why?", "So."]]}"#,
            format!("{strict}{answered}{}", answered.replace("Why?", "Why\n\n?")),
        ),
    ];
    for (line, wanted) in cases {
        let line = line.replace('\n', " ");
        assert_eq!(shown(&line, &usual()), wanted, "{line}");
        // Unmasked, all is learned but the first token, which nothing stands before.
        let all = shown(&line, &PrepareOptions { mask_prompt: false, ..usual() });
        let plain = |text: &str| text.replace(['⟦', '⟧'], "");
        assert_eq!(plain(&all), plain(&wanted));
        assert_eq!((all.matches('⟦').count(), all.ends_with('⟧')), (1, true), "{all}");
    }
}

#[test]
fn remapped_and_ignored_keys() {
    let features = FeatureNames {
        text: "body".into(),
        prompt: "instruction".into(),
        completion: "output".into(),
        chat: Some("dialogue".into()),
        ignored: vec!["id".into(), "text".into()],
    };
    let options = PrepareOptions { features, ..usual() };
    assert_eq!(shown(r#"{"body": "ab", "id": 3, "text": []}"#, &options), "a⟦b</s>⟧");
    assert_eq!(shown(r#"{"instruction": "ab", "output": "c"}"#, &options), "ab⟦c</s>⟧");
    let chat = r#"{"dialogue": [{"from": "human", "value": "a", "id": 7}, {"from": "gpt", "value": "b"}]}"#;
    assert!(shown(chat, &options).ends_with("⟦b<|im_end|>⟧\n"));
    let unknown = error(r#"{"prompt": "a", "completion": "b"}"#, &options);
    assert!(
        unknown.contains("the key \"prompt\" is unknown; known: body, instruction"),
        "{unknown}"
    );
    assert!(unknown.contains("--ignore-features") && unknown.contains("{\"body\""), "{unknown}");
    let header = |options| run(r#"{"body": "ab"}"#, options).unwrap().file().header().clone();
    assert_eq!(header(&options).features, options.features.fingerprint());
    assert_eq!(header(&options).chat_template, None, "no chat, no template");
    let chat = run(r#"{"messages": [{"role": "assistant", "content": "b"}]}"#, &usual()).unwrap();
    assert_eq!(chat.file().header().chat_template, Some(source().fingerprint()));
    assert_eq!(chat.file().header().features, None);
}

#[test]
fn broken_lines_are_told() {
    let good = r#"{"text": "good"}"#;
    let user = r#"{"role": "user", "content": "a"}"#;
    let answer = r#"{"role": "assistant", "content": "b"}"#;
    for (line, what) in [
        (r#"{"messages": []}"#.to_owned(), "the chat has no messages"),
        (r#"{"messages": {}}"#.into(), "\"messages\" is an object, and a list is expected"),
        (r#"{"messages": [3]}"#.into(), "message 1 of \"messages\": this is a number"),
        (r#"{"messages": [{}]}"#.into(), "message 1 of \"messages\": it has no \"role\""),
        (r#"{"messages": [{"role": 1}]}"#.into(), "\"role\" is a number"),
        (format!("{{\"messages\": [{user}]}}"), "no token is left for the loss in {\"messages\""),
        (
            format!("{{\"messages\": [{user}, {{\"role\": \"asistant\"}}]}}"),
            "message 2: the role \"asistant\" is unknown; known: system",
        ),
        (
            format!("{{\"messages\": [{answer}], \"text\": \"a\"}}"),
            "the keys do not make one sample: \"messages\"",
        ),
        (format!("{{\"messages\": [{answer}], \"conversations\": []}}"), "says again"),
        (format!("{{\"messages\": [{answer}], \"tools\": 3}}"), "\"tools\" is a number"),
        (format!("{{\"messages\": [{answer}], \"tools\": \"[\"}}"), "\"tools\": column 1: EOF"),
        (
            format!(
                "{{\"messages\": [{{\"role\": \"system\", \"content\": \"x\"}}, {answer}], \"system\": \"y\"}}"
            ),
            "is another",
        ),
        (
            format!("{{\"prompt\": [{user}], \"completion\": \"b\"}}"),
            "\"completion\" is a string, and a list",
        ),
        (
            format!("{{\"prompt\": \"a\", \"completion\": [{answer}]}}"),
            "\"completion\" is a list, and a string",
        ),
        (format!("{{\"prompt\": [{user}], \"completion\": []}}"), "the completion is empty"),
        (
            r#"{"conversations": [{"from": "robot", "value": "a"}]}"#.into(),
            "from \"robot\", which is unknown; known: human",
        ),
        (
            r#"{"conversations": [{"from": "gpt", "value": "a", "weight": 0}]}"#.into(),
            "\"weight\" is unknown; known: from, value",
        ),
        (r#"{"conversations": [{"from": "gpt"}]}"#.into(), "\"value\" is missing"),
        (
            r#"{"conversations": [{"from": "function_call", "value": "f()"}]}"#.into(),
            "a call is {\"name\"",
        ),
        (
            r#"{"instruction": "a", "output": "b", "history": ["c"]}"#.into(),
            "\"history\" is a string",
        ),
        (
            r#"{"instruction": "a", "output": "b", "history": [["c"]]}"#.into(),
            "pairs of a question",
        ),
        (r#"{"instruction": "a"}"#.into(), "the keys do not make one sample: \"instruction\""),
        (r#"{"messages": [{"role": "user", "role": "user"}]}"#.into(), "duplicate key \"role\""),
        (r#"{"text": "\ud800"}"#.into(), "hex escape"),
        (format!("{{\"messages\": {}", "[".repeat(1 << 20)), "recursion limit exceeded"),
        (
            format!(
                "{{\"messages\": [{user}, {{\"role\": \"assistant\", \"content\": \"\\ufdd0\"}}]}}"
            ),
            "U+FDD0",
        ),
    ] {
        let said = error(&format!("{good}\n{line}\n"), &usual());
        assert!(said.contains("train.jsonl:2: ") && said.contains("; expected "), "{said}");
        assert!(said.contains(what), "{said} does not tell {what}");
    }
    // NUL is a character like others.
    let nul = format!(
        "{{\"messages\": [{user}, {{\"role\": \"assistant\", \"content\": \"\\u0000\"}}]}}"
    );
    assert!(shown(&nul, &usual()).ends_with("⟦\0<|im_end|>⟧\n"));
}

#[test]
fn templates_that_fail() {
    let chat = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let text = r#"{"text": "good"}"#;
    let error = |content: &str, template: Option<&str>| {
        let source = template.map(|text| ChatTemplateSource::new("x.jinja", text).unwrap());
        run_with(content, source.as_ref(), &usual()).unwrap_err().to_string()
    };
    let none = error(&format!("{text}\n{chat}"), None);
    assert!(none.contains("train.jsonl:2: ") && none.contains("--chat-template"), "{none}");
    let refused = error(chat, Some("{{ raise_exception('no ' + messages[1].role + 's') }}"));
    assert!(refused.contains(":1: the chat template refuses it: no assistants"), "{refused}");
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    assert!(error(chat, Some(endless)).contains("may never end"));
    assert_eq!(
        error(chat, Some("{% if")).split(", ").next().unwrap(),
        "x.jinja: the chat template is broken"
    );
    // Nothing is said of a template that is not used.
    let broken = ChatTemplateSource::new("x.jinja", "{% if").unwrap();
    assert_eq!(run_with(text, Some(&broken), &usual()).unwrap().len(), 1);
    // A role that only this template knows.
    let critic = chat.replace("user", "critic");
    assert!(run(&critic, &usual()).is_err());
    let knows = ChatTemplateSource::new("x.jinja", format!("{TEMPLATE}{{% set r = 'critic' %}}"));
    assert_eq!(run_with(&critic, Some(&knows.unwrap()), &usual()).unwrap().len(), 1);
}

#[test]
fn long_lines() {
    let line = |content: &str| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"a\"}}, {{\"role\": \"assistant\", \"content\": {content:?}}}]}}"
        )
    };
    let frame = line("").len();
    let longest = line(&"b".repeat(MAX_PIECE_BYTES - frame));
    let dataset = run(&longest, &usual()).unwrap();
    let frame_tokens = 4 + "user:a\nassistant:\n".len();
    assert_eq!(dataset.file().header().tokens as usize, MAX_PIECE_BYTES - frame + frame_tokens);
    let said = error(&format!("{longest} "), &usual());
    assert!(said.contains(":1: the line is longer than 16777216 bytes"), "{said}");
    let tight = PrepareOptions { longest_piece_bytes: 1000, ..usual() };
    let said = error(&line(&"b".repeat(1000)), &tight);
    assert!(said.contains("line 1 goes on for more than the 1000 bytes"), "{said}");
    let wide = ChatTemplateSource::new(
        "x.jinja",
        "{% for m in messages %}{{ m.content * 99 }}{% endfor %}",
    );
    let said = run_with(&line(&"b".repeat(900)), Some(&wide.unwrap()), &tight).unwrap_err();
    assert!(matches!(said, TextError::NoRoom { bytes: 9192, .. }), "{said}");
    assert!(said.to_string().contains("the chat of line 1 goes on for more than"), "{said}");
}

/// Puts `new` in place of value number `number` of the tree; counts down to it.
fn replace(tree: &mut Value, number: &mut usize, new: &Value) {
    if *number == 0 {
        *tree = new.clone();
    }
    *number = number.wrapping_sub(1);
    match tree {
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, number, new)),
        Value::Object(items) => items.values_mut().for_each(|item| replace(item, number, new)),
        _ => {}
    }
}

/// The line with some of its values changed, or some of its letters.
fn mutated(line: &str, random: &mut Random) -> String {
    const PARTS: [&str; 12] =
        ["{", "}", "[", "]", "\"", ",", "null", "-1e9", "\\ud800", "\\ufdd0", "<|im_end|>", "é"];
    if random.below(3) > 0 {
        let mut tree: Value = serde_json::from_str(line).unwrap();
        for _ in 0..1 + random.below(2) {
            let new = match random.below(8) {
                0 => Value::Null,
                1 => json!(random.below(9)),
                2 => json!([]),
                3 => json!({"role": "assistant", "content": random.text(3)}),
                4 => json!(["{}", {"name": "f"}]),
                _ => json!(random.text(4)),
            };
            replace(&mut tree, &mut random.below(12), &new);
        }
        return tree.to_string();
    }
    let mut line = line.to_owned();
    let mut place = || (0..=random.below(line.len() + 1)).rfind(|&at| line.is_char_boundary(at));
    let (from, to) = (place().unwrap(), place().unwrap());
    if from < to && to - from < 20 {
        line.replace_range(from..to, "");
    } else {
        line.insert_str(from, PARTS[random.below(PARTS.len())]);
    }
    line
}

/// Whatever becomes of a line, it makes a sample or an error with its number.
#[test]
fn mutated_lines_never_panic() {
    let lines = [
        r#"{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}], "tools": [{"a": 1}]}"#,
        r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f"}}]}]}"#,
        r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{\"name\": \"f\"}"}], "system": "s"}"#,
        r#"{"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]}"#,
        r#"{"prompt": "a", "completion": "b"}"#,
    ];
    let tokenizer = common::bytes::tokenizer(&CONTROLS);
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("train.jsonl");
    let mut random = Random(11);
    let (mut made, mut refused) = (0, 0);
    for round in 0..4000 {
        let line = mutated(lines[round % lines.len()], &mut random);
        fs::write(&input, &line).unwrap();
        match prepare_beside(&input, &tokenizer, Some(&source()), &usual()) {
            Ok(_) => made += 1,
            Err(error) => {
                refused += 1;
                assert!(error.to_string().contains("train.jsonl"), "{error}: {line}");
            }
        }
    }
    println!("{made} samples, {refused} errors");
    assert!(made > 400 && refused > 400);
}

/// A model's own template with its own tokenizer, against what transformers writes.
fn check_model(model: &str) {
    use sha2::{Digest, Sha256};
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/chat.json");
    let golden: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let (tokenizer, chat) = (common::tokenizer(model), common::chat_template(model));
    let template = ChatTemplate::new(&chat, &tokenizer).unwrap();
    let end = template.end_of_turn(&tokenizer).and_then(|id| tokenizer.token(id));
    assert_eq!(end.as_deref(), Some("<|im_end|>"), "{model}");
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("train.jsonl");
    let cases = golden["models"][model].as_array().expect("scripts/chat_golden.py makes them");
    for case in cases {
        let line = case["line"].as_str().unwrap();
        fs::write(&input, line).unwrap();
        let file = prepare_beside(&input, &tokenizer, Some(&chat), &usual());
        if let Some(refused) = case["refused"].as_str() {
            assert!(file.unwrap_err().to_string().contains(refused));
            continue;
        }
        let (mut ids, mut runs, mut before) = (Vec::new(), Vec::new(), false);
        let file = file.unwrap();
        file.for_each_token(0..file.header().tokens, |id, target| {
            ids.push(id);
            if target && !before {
                runs.push(Vec::new());
            }
            if target {
                runs.last_mut().unwrap().push(id);
            }
            before = target;
        })
        .unwrap();
        let text = tokenizer.decode(&ids);
        let sha: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(case["sha256"]["text"], sha.as_str(), "{model} writes {text:?}");
        let learned: Vec<_> = runs.iter().map(|ids| tokenizer.decode(ids)).collect();
        assert_eq!(Value::from(learned), case["learned"], "{model}: {line}");
    }
}

#[test]
fn smollm2() {
    check_model(common::SMOLLM2);
}

#[test]
fn all_models_qwen() {
    check_model(common::QWEN);
}
