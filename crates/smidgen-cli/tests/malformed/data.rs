//! Data, token files, chat templates and tokenizers.

use super::{Case, file};

/// Of a file of lines; a template is at hand.
fn lines(name: &'static str, content: impl Into<Vec<u8>>, told: &'static [&'static str]) -> Case {
    let line = format!("data {name} -m MODEL --chat-template plain.jinja --out out.tokens");
    file(name, content, line, 1, told)
}

const FORMS: &str = "expected an object on each line";
const SAMPLE: &str = "{\"prompt\": \"Hi\", \"completion\": \" Good day!\"}\n";

pub fn cases() -> Vec<Case> {
    let after = |line: &str| format!("{SAMPLE}{line}\n");
    let deep = format!("{{\"text\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let train = |name: &str| format!("train -m MODEL --data {name} -o new");
    let long = format!("{{\"text\": \"{}\"}}", "x".repeat(3_000_000));
    vec![
        lines("cut.jsonl", after("{\"prompt\": \"a\""), &["cut.jsonl:2", "EOF", FORMS]),
        lines("list.jsonl", "[]", &["list.jsonl:1", "no object", FORMS]),
        lines(
            "key.jsonl",
            after("{\"text\": \"a\", \"answr\": 1}"),
            &["key.jsonl:2", "\"answr\"", "known: text", "--ignore-features"],
        ),
        lines(
            "type.jsonl",
            after("{\"prompt\": 3, \"completion\": \"b\"}"),
            &["type.jsonl:2", "\"prompt\" is a number", "a string is expected", FORMS],
        ),
        lines(
            "twice.jsonl",
            "{\"prompt\": \"a\", \"prompt\": \"b\"}",
            &["twice.jsonl:1", "duplicate key", FORMS],
        ),
        lines(
            "mask.jsonl",
            after("{\"prompt\": \"a\", \"completion\": \"\"}"),
            &["mask.jsonl:2", "the completion is empty", FORMS],
        ),
        lines(
            "unanswered.jsonl",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}",
            &["unanswered.jsonl:1", "no token is left for the loss", FORMS],
        ),
        lines("empty.jsonl", "", &["empty.jsonl", "the file is empty", "give one with"]),
        lines("blank.jsonl", "\n\n  \n", &["blank.jsonl:1", "the line is empty", FORMS]),
        lines(
            "bytes.jsonl",
            [SAMPLE.as_bytes(), b"{\"text\": \"\xff\xfe\"}\n"].concat(),
            &["bytes.jsonl:2", "utf-8", FORMS],
        ),
        lines("zeros.jsonl", after("\0\0\0"), &["zeros.jsonl:2", FORMS]),
        lines("deep.jsonl", deep, &["deep.jsonl:1", "recursion limit", FORMS]),
        lines("silent.jsonl", "{\"messages\": []}", &["silent.jsonl:1", "no messages", FORMS]),
        lines(
            "role.jsonl",
            "{\"messages\": [{\"role\": \"wizard\", \"content\": \"a\"}]}",
            &["role.jsonl:1", "message 1", "\"wizard\"", "known: system"],
        ),
        lines(
            "tools.jsonl",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"tools\": 3}",
            &["tools.jsonl:1", "\"tools\" is a number", "a list is expected"],
        ),
        file(
            "long.jsonl",
            long,
            "data long.jsonl -m MODEL --memory 20MB --out out.tokens",
            3,
            &["long.jsonl: line 1", "larger budget", "shorter samples"],
        ),
        file(
            "short.txt",
            "a",
            train("short.txt"),
            1,
            &["short.txt", "too short: it has 1 token", "give a longer text"],
        ),
        file(
            "empty.txt",
            "",
            train("empty.txt"),
            1,
            &["empty.txt", "the file is empty", "give one with"],
        ),
        file(
            "bytes.txt",
            b"abc \xff\xfe".repeat(50),
            train("bytes.txt"),
            1,
            &["bytes.txt: byte 4", "UTF-8", "convert the file"],
        ),
        file(
            "data.csv",
            "a,b",
            train("data.csv"),
            1,
            &["data.csv", "expected a .txt or .jsonl file"],
        ),
        file("folder/notes.md", "a", train("folder"), 1, &["folder", "none of train.jsonl"]),
        file("x", "", train("nothing.txt"), 1, &["nothing.txt", "No such file", "check the path"]),
    ]
}

pub fn token_files(good: &[u8]) -> Vec<Case> {
    let case = |name: &'static str, content: Vec<u8>, told| {
        file(name, content, format!("train -m MODEL --data {name} -o new"), 1, told)
    };
    let mut flipped = good.to_vec();
    flipped[good.len() - 40] ^= 1;
    let mut other = good.to_vec();
    // The tokenizer's fingerprint.
    other[40] ^= 1;
    vec![
        case("none.tokens", vec![], &["none.tokens", "0 bytes", "smidgen data --out"]),
        case(
            "cut.tokens",
            good[..good.len() / 2].into(),
            &["cut.tokens", "not what its header describes", "smidgen data --out"],
        ),
        case(
            "magic.tokens",
            [b"XXXX", &good[4..]].concat(),
            &["magic.tokens", "SMDGTOK", "smidgen data --out"],
        ),
        case("flipped.tokens", flipped, &["flipped.tokens", "checksum", "smidgen data --out"]),
        case("other.tokens", other, &["other.tokens", "tokens"]),
    ]
}

/// Of a template; the chat is `chat.jsonl`.
fn template(name: &'static str, text: impl Into<Vec<u8>>, told: &'static [&'static str]) -> Case {
    let line = format!("data chat.jsonl -m MODEL --chat-template {name} --out out.tokens");
    file(name, text, line, 1, told)
}

pub fn templates() -> Vec<Case> {
    let bomb = "{% set ns = namespace(x='ab') %}{% for i in range(999) %}{% set ns.x = ns.x ~ ns.x %}\
                {% endfor %}";
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    vec![
        template(
            "broken.jinja",
            "a\n{% if %}",
            &["broken.jinja", "broken, in its line 2", "--chat-template"],
        ),
        template("deep.jinja", "{{ (".repeat(10_000), &["deep.jinja", "broken", "--chat-template"]),
        template(
            "endless.jinja",
            endless,
            &["chat.jsonl:1", "far more steps", "may never end", "--chat-template"],
        ),
        template(
            "bomb.jinja",
            bomb,
            &["chat.jsonl:1", "in its line 1", "far larger values", "--chat-template"],
        ),
        template(
            "refuses.jinja",
            "{{ raise_exception('roles must alternate') }}",
            &["chat.jsonl:1", "refuses it: roles must alternate"],
        ),
        template(
            "filter.jinja",
            "\n{{ messages|frobnicate }}",
            &["chat.jsonl:1", "in its line 2", "frobnicate", "--chat-template"],
        ),
        template("bytes.jinja", b"\xff\xfe", &["bytes.jinja", "UTF-8", "another kind or damaged"]),
        template(
            "long.jinja",
            "x".repeat(2_000_000),
            &["long.jinja", "too many", "--chat-template"],
        ),
        template(
            "config.json",
            "{\"chat_template\": 3}",
            &["config.json", "expected a string, or a list"],
        ),
        file(
            "x",
            "",
            "data chat.jsonl -m MODEL",
            1,
            &["chat.jsonl:1", "no chat template", "--chat-template"],
        ),
    ]
}

pub fn tokenizers() -> Vec<Case> {
    let case = |name: &'static str, content: &str, code, told| {
        file(
            name,
            content,
            format!("data text.txt -m MODEL --tokenizer {name} --out out.tokens"),
            code,
            told,
        )
    };
    let large = "{\"version\": \"1.0\", \"truncation\": null, \"padding\": null, \"added_tokens\": [], \
                 \"normalizer\": null, \"pre_tokenizer\": null, \"post_processor\": null, \"decoder\": \
                 null, \"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 9999}, \"merges\": []}}";
    vec![
        case(
            "cut.json",
            "{\"version\": ",
            1,
            &["cut.json", "line 1 column", "give the one that belongs"],
        ),
        case(
            "kind.json",
            "{\"version\": \"1.0\", \"model\": {\"type\": \"Magic\"}}",
            1,
            &["kind.json", "line 1 column", "give the one that belongs"],
        ),
        case(
            "large.json",
            large,
            2,
            &["large.json has 10000 tokens and the model 1024", "give the tokenizer.json"],
        ),
    ]
}
