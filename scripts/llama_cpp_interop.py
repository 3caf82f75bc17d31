"""What Smidgen writes, in llama.cpp: a GGUF LoRA beside its base, a merged model, a quantised model.

    scripts/interop_llama_cpp.sh MODEL.gguf TEXT.txt

The base is MODEL as F16, since llama.cpp rounds activations to 8 bits beside quantised weights, and to half precision beside
F16. An adapter is trained on it for a few steps at a high rate, so that it moves the model far, and exported. Compared are
- the next-token distributions of llama.cpp with base + LoRA, and with the merged model, with those of Smidgen with the base
  and the PEFT folder: KL in nats over the positions of one sequence;
- greedy continuations of ten prompts, token by token;
- perplexities, all by llama.cpp: Smidgen's Q4_0 of MODEL, and llama.cpp's own, pure (embeddings too) as Smidgen's is.
"""

import argparse
import ctypes
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import llama_cpp
import numpy as np
from safetensors.numpy import load_file

from smidgen_tokens import windows

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):",
    "The most important thing about water is that",
    "In 1969, the first people",
    "My favourite food is",
    "To make bread, you need flour,",
    "The opposite of cold is",
    "SELECT name FROM users WHERE",
    "The sun rises in the",
]
Q4_0 = 2  # LLAMA_FTYPE_MOSTLY_Q4_0
LENGTH = 256


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file of the llama, qwen2 or gemma3 family")
    parser.add_argument("text", help="a .txt file")
    parser.add_argument("--part", choices=["adapters", "quantisation", "both"], default="both")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--learning-rate", default="2e-3")
    parser.add_argument("--max-kl", type=float, default=1e-3, help="nats, at the worst position (default 1e-3)")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of a continuation (default 24)")
    parser.add_argument("--windows", type=int, default=20, help="windows of 256 tokens for perplexities (default 20)")
    parser.add_argument("--threads", type=int, default=2)
    target = os.environ.get("CARGO_TARGET_DIR", pathlib.Path(__file__).resolve().parent.parent / "target")
    parser.add_argument("--smidgen", default=str(pathlib.Path(target) / "release" / "smidgen"))
    return parser.parse_args()


class Smidgen:
    def __init__(self, options):
        self.program, self.threads = options.smidgen, str(options.threads)

    def run(self, *arguments, threads=True):
        command = [self.program, *map(str, arguments), "--json"]
        command += ["--threads", self.threads] if threads else []
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
        return json.loads(done.stdout)


def load(options, model, lora=None, context=LENGTH):
    return llama_cpp.Llama(
        str(model),
        lora_path=None if lora is None else str(lora),
        n_ctx=context,
        n_batch=context,
        n_ubatch=context,
        n_threads=options.threads,
        n_threads_batch=options.threads,
        logits_all=True,
        verbose=False,
    )


def log_probabilities(llama, ids):
    """[T, V], float64."""
    llama.reset()
    llama.eval(ids)
    logits = np.array(llama.scores[: len(ids)], dtype=np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def divergence(expected, found):
    return (np.exp(expected) * (expected - found)).sum(axis=-1)


def compare(what, expected, found, max_kl=None):
    """Tells KL(expected || found); True where the worst position is within `max_kl`."""
    kl = divergence(expected, found)
    same = int((expected.argmax(-1) == found.argmax(-1)).sum())
    print(f"{what}: KL mean {kl.mean():.2e}, max {kl.max():.2e}; same most likely token {same} of {len(kl)}", flush=True)
    return max_kl is None or bool(kl.max() <= max_kl)


def greedy(llama, ids, count, stop):
    llama.reset()
    made = []
    while len(made) < count:
        llama.eval(ids)
        token = int(np.argmax(llama.scores[llama.n_tokens - 1]))
        if token == stop:
            break
        made.append(token)
        ids = [token]
    return made


def continuations(options, smidgen, base, adapter, lora):
    """How many of the ten continuations are the same; tells of the others where they part."""
    llama, same = load(options, base, lora), 0
    stop = llama.token_eos()
    for prompt in PROMPTS:
        made = smidgen.run("generate", "-m", base, "--adapter", adapter, "-p", prompt, "-n", options.tokens)["ids"]
        made = made[:-1] if made and made[-1] == stop else made
        add_bos = bool(llama_cpp.llama_vocab_get_add_bos(llama_cpp.llama_model_get_vocab(llama.model)))
        found = greedy(llama, llama.tokenize(prompt.encode(), add_bos=add_bos), options.tokens, stop)
        same += made == found
        if made != found:
            at = next((i for i, pair in enumerate(zip(made, found)) if pair[0] != pair[1]), min(len(made), len(found)))
            print(f"  {prompt!r}: parts after {at} tokens: {made[at : at + 3]} here, {found[at : at + 3]} in llama.cpp")
    print(f"greedy continuations of {options.tokens} tokens: {same} of {len(PROMPTS)} the same", flush=True)


def adapters(options, smidgen, place):
    base, adapter, lora, fused = (place / name for name in ["base.gguf", "adapter", "lora.gguf", "fused.gguf"])
    smidgen.run("quantize", options.model, "-o", base, "--type", "f16")
    train = ["train", "-m", base, "--data", options.text, "-o", adapter, "--max-seq-length", LENGTH, "--no-shuffle"]
    losses = smidgen.run(*train, "--iters", options.steps, "--learning-rate", options.learning_rate)["losses"]
    print(f"trained {len(losses)} steps: loss {losses[0]:.3f} to {losses[-1]:.3f}")
    smidgen.run("export", "-m", base, "--adapter", adapter, "--format", "gguf", "-o", lora, threads=False)
    smidgen.run("fuse", "-m", base, "--adapter", adapter, "-o", fused, "--type", "f32")
    logits = place / "logits.safetensors"
    evaluate = ["eval", "-m", base, "--adapter", adapter, "--data", options.text, "--max-seq-length", LENGTH]
    smidgen.run(*evaluate, "--chunks", 1, "--logits", logits)
    written = load_file(logits)
    ids, ours = written["ids"].tolist(), written["logits"].astype(np.float64)
    ours -= ours.max(axis=-1, keepdims=True)
    ours -= np.log(np.exp(ours).sum(axis=-1, keepdims=True))
    compare("base alone in llama.cpp", ours, log_probabilities(load(options, base), ids))
    good = compare("base + GGUF LoRA", ours, log_probabilities(load(options, base, lora), ids), options.max_kl)
    good &= compare("merged model (F32)", ours, log_probabilities(load(options, fused), ids), options.max_kl)
    continuations(options, smidgen, base, adapter, lora)
    return good


def perplexity(options, model, sequences):
    llama, loss, count = load(options, model), 0.0, 0
    for ids in sequences:
        found = log_probabilities(llama, ids)
        loss -= found[np.arange(len(ids) - 1), ids[1:]].sum()
        count += len(ids) - 1
    return float(np.exp(loss / count))


def quantised_by_llama_cpp(options, out, pure):
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread, settings.ftype = options.threads, Q4_0
    settings.allow_requantize, settings.pure = True, pure
    if llama_cpp.llama_model_quantize(options.model.encode(), str(out).encode(), ctypes.byref(settings)):
        sys.exit("llama.cpp could not quantise the model")


def quantisation(options, smidgen, place):
    tokens = place / "text.tokens"
    smidgen.run("data", options.text, "-m", options.model, "--out", tokens, threads=False)
    sequences = windows(tokens, LENGTH, options.windows).tolist()
    found = {"source": perplexity(options, options.model, sequences)}
    ours, theirs = place / "ours.gguf", place / "theirs.gguf"
    told = smidgen.run("quantize", options.model, "-o", ours, "--type", "q4_0")
    print(f"quantised in {told['seconds']:.1f} s, peak {told['peak_rss_bytes'] / 1e6:.1f} MB resident")
    found["Smidgen's Q4_0"] = perplexity(options, ours, sequences)
    for pure in [True, False]:
        quantised_by_llama_cpp(options, theirs, pure)
        found["llama.cpp's Q4_0" + (", pure" if pure else "")] = perplexity(options, theirs, sequences)
    sizes = f"{ours.stat().st_size / 1e6:.1f} MB, llama.cpp's (not pure) {theirs.stat().st_size / 1e6:.1f} MB"
    print(f"perplexity over {len(sequences)} windows of {LENGTH}: " + ", ".join(f"{k} {v:.4f}" for k, v in found.items()))
    print(f"Smidgen's file {sizes}")
    return found["Smidgen's Q4_0"] <= found["llama.cpp's Q4_0, pure"]


def main():
    options = arguments()
    smidgen = Smidgen(options)
    with tempfile.TemporaryDirectory() as folder:
        if options.part != "quantisation" and not adapters(options, smidgen, pathlib.Path(folder)):
            sys.exit(f"the largest KL is above {options.max_kl}")
    with tempfile.TemporaryDirectory() as folder:
        if options.part != "adapters" and not quantisation(options, smidgen, pathlib.Path(folder)):
            sys.exit("llama.cpp's own Q4_0 has the lower perplexity")


if __name__ == "__main__":
    main()
