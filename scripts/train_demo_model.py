"""Trains assets/demo/demo.gguf: a llama of two million parameters on the King James Bible, in 20 minutes on one thread.

    scripts/venv.sh ~/.cache/smidgen/venv
    nice -n 15 ~/.cache/smidgen/venv/bin/python scripts/train_demo_model.py assets/demo/demo.gguf

The text comes from the Debian packages bible-kjv and bible-kjv-text (`apt-get download`, no installation); with
`--text FILE` a text of your own is used, documents separated by lines that hold nothing but a form feed.
Every random choice is seeded.
"""

import argparse
import json
import math
import re
import subprocess
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from smidgen_gguf import finish, write_metadata, write_tensors

SEED = 1611
END = "<|endoftext|>"
VOCABULARY = 1024
CONTEXT = 256
BATCH = 8
PEAK_RATE = 4e-3
WARMUP_STEPS = 60


def fetch_text():
    """One document a chapter, one verse a line."""
    with tempfile.TemporaryDirectory() as folder:
        download = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", "bible-kjv", "bible-kjv-text"]
        subprocess.run(download, cwd=folder, check=True)
        for package in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
        command = [f"{folder}/usr/bin/bible", "-p", f"{folder}/usr/lib", "-l100000", "gen1:1-rev22:21"]
        dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # A chapter starts with its name on a line of its own; verses are indented and numbered.
    chapters = re.split(r"^\S.* \d+$", dump, flags=re.MULTILINE)
    verses = [re.findall(r"^ +\d+ (.+?)\s*$", chapter, flags=re.MULTILINE) for chapter in chapters]
    return ["\n".join(lines) + "\n" for lines in verses if lines]


def train_tokenizer(documents):
    """Byte-level BPE with the pre-tokenizer that llama.cpp calls "smollm": digits apart, then GPT-2's pattern."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def configuration(vocabulary):
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def initialise(model):
    """Normal, and smaller by the depth where a branch joins the residual stream (GPT-2's rule)."""
    depth = 2 * model.config.num_hidden_layers
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            joins = "o_proj" in name or "down_proj" in name
            torch.nn.init.normal_(parameter, std=0.04 / math.sqrt(depth) if joins else 0.04)


def batches(ids, steps):
    """[BATCH, CONTEXT + 1] windows; each pass over the text starts at its own offset and has its own order."""
    generator = torch.Generator().manual_seed(SEED)
    order = []
    for _ in range(steps):
        if len(order) < BATCH:
            offset = int(torch.randint(CONTEXT, (1,), generator=generator))
            windows = (len(ids) - offset - 1) // CONTEXT
            order = (torch.randperm(windows, generator=generator) * CONTEXT + offset).tolist()
        starts, order = order[:BATCH], order[BATCH:]
        yield torch.stack([ids[start : start + CONTEXT + 1] for start in starts])


def train(model, ids, steps):
    decayed = [p for p in model.parameters() if p.ndim == 2]
    kept = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))
    started, recent = time.time(), []
    for step, batch in enumerate(batches(ids, steps)):
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        rate = PEAK_RATE * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = model(input_ids=batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            mean = sum(recent) / len(recent)
            print(f"step {step + 1} of {steps}: loss {mean:.3f}, {time.time() - started:.0f} s", flush=True)
            recent.clear()


def write_gguf(path, model, tokenizer):
    writer = gguf.GGUFWriter(path, "llama")
    write_metadata(writer, "llama", model.config, "Smidgen demo 2M", "MIT OR Apache-2.0")
    writer.add_description("A tiny byte-level-BPE llama trained on the King James Bible (public domain)")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    kinds = [gguf.TokenType.CONTROL if token == END else gguf.TokenType.NORMAL for token in vocabulary]
    writer.add_token_types(kinds)
    writer.add_token_merges(merges_of(tokenizer))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    state = {name: value.float().numpy() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    write_tensors(writer, "llama", model.config, state, lambda name: Type.Q8_0)
    finish(writer)


def merges_of(tokenizer):
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [" ".join(pair) for pair in merges]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    documents = options.text.read_text().split("\n\f\n") if options.text else fetch_text()
    tokenizer = train_tokenizer(documents)
    end = tokenizer.token_to_id(END)
    ids = np.concatenate([[end, *encoding.ids] for encoding in tokenizer.encode_batch(documents)])
    model = LlamaForCausalLM(configuration(tokenizer.get_vocab_size()))
    initialise(model)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(documents)} documents, {len(ids)} tokens, {parameters} parameters", flush=True)
    train(model, torch.from_numpy(ids), options.steps)
    write_gguf(options.output, model.eval(), tokenizer)
    print(f"wrote {options.output}, {options.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
