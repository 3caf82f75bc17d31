//! Templates that would take all memory, or the stack, or never end: each fails with a message, on a
//! thread's usual stack of 2 MB and within 64 MB, which a counting allocator holds it to.

#[path = "common/mod.rs"]
mod common;
#[path = "common/heap.rs"]
mod heap;

use std::time::Instant;

use heap::counted;
use smidgen_text::{ChatTemplate, ChatTemplateSource, Message};

/// Bytes that a rendering may hold.
const MOST: u64 = 64 << 20;

/// What is told of a template, when it is parsed or when it renders a short chat; none where it
/// renders it.
fn told(text: &str) -> Option<String> {
    let tokenizer = common::bytes::tokenizer(&["<s>", "</s>"]);
    let begin = Instant::now();
    let source = ChatTemplateSource::new("x.jinja", text).unwrap();
    let said = |role: &str| Message { role: role.into(), content: "Why is the sky blue?".into() };
    let (result, most, _) = counted(|| {
        ChatTemplate::new(&source, &tokenizer)
            .and_then(|template| template.prompt(&[said("user"), said("assistant")], None))
    });
    let start = &text[..text.len().min(120)];
    assert!(most < MOST, "{most} bytes: {start}");
    assert!(begin.elapsed().as_secs() < 60, "{:?}: {start}", begin.elapsed());
    let error = result.err()?.to_string();
    assert!(error.len() < 1000, "{} bytes are told: {start}", error.len());
    Some(error)
}

fn refused(text: &str, because: &[&str]) {
    let start = &text[..text.len().min(120)];
    let error = told(text).unwrap_or_else(|| panic!("it is taken: {start}"));
    assert!(error.starts_with("x.jinja: "), "{error}");
    assert!(because.iter().any(|part| error.contains(part)), "{error}: {start}");
}

/// What a template may say again and again.
fn again(what: &str) -> String {
    format!("{{% set ns = namespace(x='ab') %}}{{% for i in range(9999) %}}{what}{{% endfor %}}")
}

const ROOM: &str = "far larger values than such a chat needs";

#[test]
fn strings_that_double() {
    for expression in [
        "ns.x ~ ns.x",
        "ns.x + ns.x",
        "ns.x ~ 'a' ~ ns.x ~ 1",
        "ns.x * 2",
        "2 * ns.x",
        "ns.x|replace('a', 'aa')|replace('b', 'bb')",
        "ns.x.replace('a', 'aa').replace('b', 'bb')",
        "ns.x|replace('', ns.x)",
        "[ns.x, ns.x]|join",
        "[ns.x, ns.x]|join(d=ns.x)",
        "ns.x.join([ns.x, ns.x])",
        "ns.x|join(ns.x)",
        "[ns.x, ns.x]|string",
        "[ns.x, ns.x]|tojson",
        "[ns.x, ns.x]|tojson(indent=16)",
        "[1, 1]|tojson(separators=[ns.x, ns.x])",
        "[ns.x, ns.x]|sum(start='')",
        "[ns.x, ns.x]|trim",
        "'%s%s'|format(ns.x, ns.x)",
        "'{0}{0}'.format(ns.x)",
        "ns.x|escape ~ '<&>'|e ~ ns.x",
        "(ns.x ~ '\\n')|indent(9, true) ~ ns.x",
        "ns.x[:] ~ ns.x[::-1]",
    ] {
        refused(&again(&format!("{{% set ns.x = {expression} %}}")), &[ROOM]);
    }
}

#[test]
fn strings_that_are_huge_at_once() {
    for expression in [
        "'a' * 1000000000",
        "'a' * 90000000",
        "('a' * 90000) * 90000",
        "'a' * 99999999999999999999999999",
        "[0] * 100000000",
        "(0, 1) * 100000000",
        "([0] * 1000) * 100000",
        "range(99999) * 100000",
        "'%1000000000d'|format(1)",
        "'%*d'|format(1000000000, 1)",
        "'%.1000000000f'|format(1.5)",
        "'{:>1000000000}'.format(1)",
        "'{:1000000000}'.format('a')",
        "'a\\nb'|indent(1000000000)",
        "'a\\nb'|indent(width=1000000000, first=true)",
        "[1]|batch(1000000000, 0)",
        "[1]|slice(1000000000)",
        "('a,' * 2000000).split(',')",
        "('a,' * 2000000)|list",
        "('a\\n' * 2000000).splitlines()",
        "1.5|round(99999999999)",
        "9 ** 999999",
        "range(99999999)",
        "range(-9223372036854775807, 9223372036854775807, -1)",
    ] {
        let text = format!("{{% set x = {expression} %}}{{{{ x|length }}}}");
        refused(&text, &[ROOM, "fails"]);
    }
}

#[test]
fn lists_that_grow_or_nest() {
    for expression in [
        "ns.x|list + ns.x|list",
        "[ns.x]",
        "[ns.x, ns.x]",
        "(ns.x, ns.x)",
        "{'a': ns.x, 'b': ns.x}",
        "dict(a=ns.x, b=ns.x)",
        "[ns.x]|batch(1)",
        "[ns.x]|slice(1)",
        "[ns.x]|map('list')|list",
        "{'a': ns.x}|items",
        "{'a': ns.x}.items()",
        "{'a': ns.x}|dictsort",
        "[{'a': ns.x}]|groupby('a')",
    ] {
        let what = [ROOM, "lists in each other", "fails", "may never end"];
        refused(&again(&format!("{{% set ns.x = {expression} %}}")), &what);
        // The same few times, and then written out, compared, sorted.
        let few = format!(
            "{{% set ns = namespace(x='ab') %}}{{% for i in range(60) %}}{{% set ns.x = \
             {expression} %}}{{% endfor %}}{{{{ ns.x == [ns.x] }}}}{{{{ [ns.x, ns.x]|sort }}}}{{{{ \
             ns.x }}}}{{{{ ns.x|tojson }}}}"
        );
        if expression.contains(", ") {
            refused(&few, &[ROOM, "lists in each other"]);
        } else {
            told(&few);
        }
    }
    // Chains of slices, sums and reversals, which an engine may put off.
    for expression in ["ns.x[0:]", "ns.x|reverse", "ns.x + []", "ns.x[::-1]", "ns.x|list"] {
        let begin = again(&format!("{{% set ns.x = {expression} %}}"));
        told(&format!("{}{{{{ ns.x|length }}}}", begin.replace("x='ab'", "x=[1]")));
    }
}

#[test]
fn what_holds_itself() {
    let begin = "{% set ns = namespace(x=1) %}";
    for store in [
        "{% set ns.x = ns %}",
        "{% set ns.x = [ns] %}",
        "{% set ns.x = (1, ns) %}",
        "{% set ns.x = {'a': ns} %}",
        "{% set ns.x = dict(a=ns) %}",
        "{% set other = namespace(a=ns) %}{% set ns.x = other %}",
        "{% set ns.x = [ns]|first %}",
        "{% set (a, ns.x) = (1, ns) %}",
        "{% set ns.x | default(ns, true) %}{% endset %}",
        "{% for i in [1] %}{% set ns.x = loop %}{% endfor %}",
        "{% for i in [1] %}{% for j in [loop] %}{% endfor %}{% endfor %}",
    ] {
        let written = "{{ ns }}{{ ns == ns }}{{ ns.x }}{{ ns|tojson }}";
        refused(&format!("{begin}{store}{written}"), &["can't be part of another value", "fails"]);
    }
    let namespaces = "{% set n = namespace(x=n) %}".repeat(9999);
    refused(&format!("{begin}{{% set n = ns %}}{namespaces}"), &["can't be part"]);
}

#[test]
fn texts_in_variables() {
    let long = "x".repeat(100_000);
    for text in [
        format!("{{% set x %}}{{% for i in range(9999) %}}{long}{{% endfor %}}{{% endset %}}"),
        format!("{{% macro m() %}}{long}{{% endmacro %}}{{% for i in range(9999) %}}{{% set x = m() %}}{{% endfor %}}"),
        format!("{{% filter upper %}}{{% for i in range(9999) %}}{long}{{% endfor %}}{{% endfilter %}}"),
        format!("{{% macro m() %}}{{{{ caller() }}}}{{% endmacro %}}{{% for i in range(9999) %}}{{% call m() %}}{long}{{% endcall %}}{{% endfor %}}"),
        format!("{{% for a in [[[]]] recursive %}}{long}{{% for i in range(9999) %}}{{% set x = loop(a) %}}{{% endfor %}}{{% endfor %}}"),
        "{% macro m(x) %}{{ m(x ~ x) }}{% endmacro %}{{ m('ab') }}".into(),
        "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = m(ns.x) %}{% endfor %}".into(),
        "{% for x in ['ab'] recursive %}{{ loop([x ~ x]) }}{% endfor %}".into(),
        "{% set a = 'ab' %}".to_owned() + &"{% set a = a ~ a %}".repeat(60),
        "{% set a %}ab{% endset %}".to_owned() + &"{% set a %}{{ a }}{{ a }}{% endset %}".repeat(60),
        "{% with a = 'ab' %}".to_owned() + &"{% with b = a ~ a, a = b %}".repeat(40) + &"{% endwith %}".repeat(41),
        format!("{{% set a = '{long}' %}}{{{{ {} }}}}", ["a"; 400].join(" ~ ")),
        "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{{ m() }}".into(),
        "{% macro m(f) %}{{ [f(f)] | join | upper }}{% endmacro %}{{ m(m) }}".into(),
        "{% for x in [1] recursive %}{{ [loop([1])] | join }}{% endfor %}".into(),
        "{{ raise_exception('a' * 9000000 ~ 'a' * 9000000) }}".into(),
        "{{ 'ab' | map('replace', '', 'x' * 9000000) | list }}".into(),
    ] {
        refused(&text, &[ROOM, "fails", "may never end"]);
    }
}

#[test]
fn what_the_parser_would_go_under_with() {
    let deep = |open: &str, close: &str, count: usize| {
        format!("{{{{ {}1{} }}}}", open.repeat(count), close.repeat(count))
    };
    let tag = |part: &str, count: usize| format!("{{{{ 1{} }}}}", part.repeat(count));
    let broken = ["the chat template is broken"];
    for count in [400, 30_000] {
        for (open, close) in [("(", ")"), ("[", "]"), ("{1:", "}"), ("a(", ")"), ("a[", "]")] {
            refused(&deep(open, close, count), &broken);
        }
    }
    for part in
        [" + 1", " ~ 1", " - 1", " * 1", "|string", ".a", "[0]", "()", " and 1", " if 1 else 1"]
    {
        refused(&tag(part, (ChatTemplateSource::LONGEST - 9) / part.len()), &broken);
        // As many as there may be.
        told(&tag(part, 300));
    }
    for part in ["not ", "-", "- -", "1 if 1 else "] {
        refused(&deep(part, "", 60_000), &broken);
        told(&deep(part, "", 240));
    }
    for (open, close) in [
        ("{% if 1 %}", "{% endif %}"),
        ("{% for a in [1] %}", "{% endfor %}"),
        ("{% set a %}", "{% endset %}"),
        ("{% filter upper %}", "{% endfilter %}"),
        ("{% macro m() %}", "{% endmacro %}"),
    ] {
        refused(&(open.repeat(10_000) + &close.repeat(10_000)), &broken);
        told(&(open.repeat(140) + &close.repeat(140)));
    }
    let branches =
        |count: usize| format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(count));
    refused(&branches(50_000), &["branches of elif"]);
    assert_eq!(told(&branches(200)), None);
    assert_eq!(told(&"\n".repeat(1 << 20)), None);
    for other in ["include 'default'", "extends 'default'", "import 'default' as a", "block a"] {
        refused(&format!("{{% {other} %}}"), &broken);
    }
    refused("{{ self.a() }}{{ super() }}", &["fails"]);
}

#[test]
fn odd_numbers() {
    for text in [
        "{{ 'abc'[9223372036854775807:] }}{{ 'abc'[-9223372036854775807:] }}",
        "{{ 'abc'[::-9223372036854775807] }}{{ 'abc'[1:9:9223372036854775807] }}",
        "{{ [1, 2][::-9223372036854775807 - 1] }}{{ [1, 2][3:1:-1] }}{{ ''[::-1] }}",
        "{{ 170141183460469231731687303715884105727 * 2 }}",
        "{{ 170141183460469231731687303715884105727 + 1 }}",
        "{{ (0 - 170141183460469231731687303715884105727 - 1) // -1 }}",
        "{{ (0 - 170141183460469231731687303715884105727 - 1)|abs }}",
        "{{ -(0 - 170141183460469231731687303715884105727 - 1) }}",
        "{{ 1e308 * 10 }}{{ 1e999 }}{{ 1e999|int }}{{ (1e999 - 1e999)|int }}",
        "{{ 1 / 0 }}",
        "{{ 1 % 0 }}",
        "{{ 1.5|round(-400) }}{{ 15|round(-40) }}",
        "{{ '9' * 60 }}{{ ('9' * 60)|int }}",
        "{{ range(5, 0, -9223372036854775807) }}",
        "{{ range(0, 5, 0) }}",
        "{{ '\\uD800' }}",
        "{{ 'a'|int(base=1) }}{{ '-'|int(0, 16) }}",
        "{{ strftime_now('%') }}",
        "{{ messages[99] }}{{ messages['a'].b.c }}",
        "{{ none + 1 }}",
        "{{ [1, 'a', none, {}, 1.5]|sort }}{{ [1, 'a']|min }}{{ {}|first }}",
        "{{ {[1]: 2, (1, 2): {}} }}{{ {none: 1}|tojson }}",
        "{% set loop = 1 %}",
        "{{ loop }}{{ caller() }}",
        "{{ [1, 2]|map(attribute='a.b.0')|list }}",
    ] {
        told(text);
    }
}
