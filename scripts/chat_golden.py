"""Writes tests/golden/chat.json: what transformers makes of chats, with the templates of tests/golden/chat
and, given GGUF files, with those files' own.

    python scripts/chat_golden.py [MODEL.gguf ...]

A case holds the chat, its rendering with and without the beginning of an answer, and the stretches that are
learned. Of a model's template the file holds hashes and what is learned, but not the text. The clock stands at
12:00 on 26 July 2024, as the library's does.
"""

import datetime
import hashlib
import json
import re
import sys
from pathlib import Path

from jinja2.exceptions import TemplateError
from transformers.utils import chat_template_utils

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
BOS, EOS = "<s>", "</s>"

# Control tokens of the test's tokenizer; the library ends a learned stretch behind the last one in it.
CONTROLS = [
    BOS, EOS, "<|im_start|>", "<|im_end|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|eot_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "<|endoftext|>",
]  # fmt: skip


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26, 12)


chat_template_utils.datetime = Clock


def said(*contents, system=None):
    """A chat of user and assistant in turn."""
    messages = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return messages + [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


TIDES = {
    "type": "function",
    "function": {
        "name": "tides",
        "description": "High water at a harbour, é<&>'",
        "parameters": {
            "type": "object",
            "properties": {"harbour": {"type": "string"}, "days": {"type": "integer", "default": 1}, "any": {}},
            "required": ["harbour"],
        },
    },
}


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


CALLED = [
    {"role": "user", "content": "When is high water at Whitby?"},
    {"role": "assistant", "content": "", "tool_calls": [call("tides", {"harbour": "Whitby", "scale": 0.5})]},
    {"role": "tool", "content": '{"high": "04:12"}'},
    {"role": "assistant", "content": "At 04:12."},
]
TWICE = [
    {"role": "system", "content": "You know the sea."},
    {"role": "user", "content": "And at Whitby and Hull?"},
    {
        "role": "assistant",
        "content": "Both, then.",
        "tool_calls": [call("tides", {"harbour": "Whitby"}), call("tides", {"harbour": "Hull", "days": 2})],
    },
    {"role": "tool", "content": "04:12"},
    {"role": "tool", "content": "06:40\n"},
    {"role": "assistant", "content": "04:12 and 06:40."},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Fair winds!"},
]
PLAIN = [
    said("What floats?", "A boat."),
    said("What floats?", "A boat.\n", "  What else? ", "  Ice, and\n\nwood.  ", system="Say little."),
    said("Ein Ätzendes 海 🙂?", "Ja: \u2028<b>&amp;</b> \"'{{ x }}{% y %}"),
]

THINKING = [
    said("Why is the sea salt?", "<think>\nRivers bring it.\n</think>\n\nRivers bring salt to it."),
    [*said("Why?"), {"role": "assistant", "content": "So.", "reasoning_content": "Think\n\nhard."}],
    [*said("Why?"), {"role": "assistant", "content": "So.", "thinking": "Hard."}],
    # The earlier answer is written without its thought when more follows.
    said("Why?", "<think>\nA\n</think>\n\nSo.", "And?", "Thus."),
]

PARTS = [
    {"role": "user", "content": [{"type": "text", "text": " What is this? "}, {"type": "image", "url": "a.png"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A heron."}]},
]

ODD = [
    [*said("one\ntwo", "three", system="é"), {"role": "user", "content": None}, {"role": "user", "content": 7}],
    said("a"),
    [{"role": "system", "content": "alone"}],
]

CASES = {
    "headers": [(chat, None) for chat in PLAIN] + [(CALLED, [TIDES]), (TWICE, [TIDES])],
    "inst": [(chat, None) for chat in PLAIN] + [(said("a", "b", "c", "d")[1:], None), (CALLED, None)],
    "closing": [(chat, None) for chat in PLAIN],
    "calls": [(chat, None) for chat in PLAIN] + [(CALLED, [TIDES, TIDES]), (TWICE, [TIDES]), (CALLED, None)],
    "thoughts": [(chat, None) for chat in PLAIN + THINKING],
    "turns": [(chat, None) for chat in [PLAIN[0], PLAIN[1][1:], PLAIN[1], PARTS, said("a", "b")[1:]]],
    "marked": [(chat, None) for chat in PLAIN] + [(said("a", "tags", "", ""), None)],
    "tight": [(chat, None) for chat in PLAIN],
    "oddities": [(ODD[0], [TIDES["function"]]), (ODD[1], None), (ODD[2], None)],
}

MODEL_CASES = [(chat, None) for chat in PLAIN] + [(CALLED, [TIDES]), (TWICE, [TIDES])]


def render(template, chat, tools, spans=False, prompt=False, bos=BOS, eos=EOS):
    """The rendering and, if asked for, the stretches within {% generation %}."""
    texts, marks = chat_template_utils.render_jinja_template(
        [chat],
        tools=tools,
        chat_template=template,
        return_assistant_tokens_mask=spans,
        add_generation_prompt=prompt,
        bos_token=bos,
        eos_token=eos,
    )
    return texts[0], marks[0] if spans else None


def up_to_last_control(text):
    """The stretch up to its last control token, if only white space follows that."""
    ends = [text.rfind(token) + len(token) for token in CONTROLS if token in text]
    end = max(ends, default=len(text))
    return text[:end] if not text[end:].strip() else text


def only_controls(text):
    for token in CONTROLS:
        text = text.replace(token, "")
    return not text.strip()


def learned(template, chat, tools, **tokens):
    """The stretches that are learned; none where answers can't be told from the rest."""
    text, spans = render(template, chat, tools, spans=True, **tokens)
    if re.search(r"\{%[-+]?\s*endgeneration", template):
        return [up_to_last_control(text[start:end]) for start, end in spans if start < end]
    stretches = []
    for i, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        before, _ = render(template, chat[:i], tools, prompt=True, **tokens)
        until, _ = render(template, chat[: i + 1], tools, **tokens)
        if not text.startswith(before):
            return None
        if not text.startswith(until):
            # A template may close a chat with a token that stands nowhere else.
            same = next(k for k in range(len(until)) if text[k : k + 1] != until[k])
            found = [(text.rfind(token, len(before), same), token) for token in CONTROLS]
            end = max((at + len(token) for at, token in found if at >= 0), default=None)
            if end is None or not only_controls(until[end:]):
                return None
            until = until[:end]
        stretches.append(up_to_last_control(until[len(before) :]))
    return [stretch for stretch in stretches if stretch]


def case(template, chat, tools, **tokens):
    # A string, since the order of keys counts.
    made = {"line": json.dumps({"messages": chat, "tools": tools}, ensure_ascii=False)}
    try:
        made["text"], _ = render(template, chat, tools, **tokens)
        made["prompt"], _ = render(template, chat, tools, prompt=True, **tokens)
    except TemplateError as error:
        return {**made, "refused": str(error) if type(error) is TemplateError else ""}
    try:
        made["learned"] = learned(template, chat, tools, **tokens)
    except TemplateError:
        made["learned"] = None
    return made


def gguf_template(path):
    """A model's template and the spellings of its BOS and EOS."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    if "tokenizer.chat_template" not in fields:
        return None
    token = fields["tokenizer.ggml.tokens"]
    spelling = lambda key: bytes(token.parts[token.data[int(fields[key].parts[-1][0])]]).decode()
    template = fields["tokenizer.chat_template"].contents()
    return template, spelling("tokenizer.ggml.bos_token_id"), spelling("tokenizer.ggml.eos_token_id")


def hashed(made):
    sha = {key: hashlib.sha256(made.pop(key).encode()).hexdigest() for key in ("text", "prompt") if key in made}
    return {**made, "sha256": sha}


def main():
    golden = {"controls": CONTROLS, "templates": {}, "models": {}}
    for name, cases in CASES.items():
        template = (GOLDEN / "chat" / f"{name}.jinja").read_text()
        golden["templates"][name] = [case(template, chat, tools) for chat, tools in cases]
    for path in map(Path, sys.argv[1:]):
        if found := gguf_template(path):
            template, bos, eos = found
            cases = [case(template, chat, tools, bos=bos, eos=eos) for chat, tools in MODEL_CASES]
            golden["models"][path.name] = [hashed(made) for made in cases]
    text = json.dumps(golden, ensure_ascii=False, indent=1)
    (GOLDEN / "chat.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
