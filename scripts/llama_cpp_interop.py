"""What Smidgen writes, in llama.cpp and in PEFT: an adapter beside its base, a merged model, a quantised model.

    scripts/interop_llama_cpp.sh MODEL.gguf TEXT.txt

The base is MODEL as F32, since llama.cpp rounds activations to 8 bits beside quantised weights, and to half precision beside
F16. An adapter is trained on it for a few steps at a high rate, so that it moves the model far, and exported. Compared are
- the next-token distributions of llama.cpp with base + GGUF LoRA, and with the merged model, and of transformers and PEFT in
  fp32 with the same weights and the PEFT folder, with those of Smidgen: KL in nats over the positions of one sequence;
- greedy continuations of ten prompts by llama.cpp and by PEFT, token by token;
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

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is local; PEFT would look up the base model's name

import llama_cpp
import numpy as np
import peft
import torch
from safetensors.numpy import load_file

from smidgen_gguf import load_model
from smidgen_tokens import windows

# transformers asks this while it makes masks; PyTorch's answer comes from the CUDA libraries, which cuda_stubs.py may only
# stand in for.
if not torch.cuda.is_available():
    torch.cuda.is_current_stream_capturing = lambda: False

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
        type_k=llama_cpp.GGML_TYPE_F32,  # its default is f16, which decides near ties
        type_v=llama_cpp.GGML_TYPE_F32,
        logits_all=True,
        verbose=False,
    )


def normalised(logits):
    """Log-probabilities [T, V] of logits, float64."""
    logits = np.array(logits, dtype=np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def log_probabilities(llama, ids):
    """[T, V], float64."""
    llama.reset()
    llama.eval(ids)
    return normalised(llama.scores[: len(ids)])


def divergence(expected, found):
    return (np.exp(expected) * (expected - found)).sum(axis=-1)


def compare(what, expected, found, max_kl=None):
    """Tells KL(expected || found); True where the worst position is within `max_kl`."""
    kl = divergence(expected, found)
    same = int((expected.argmax(-1) == found.argmax(-1)).sum())
    print(f"{what}: KL mean {kl.mean():.2e}, max {kl.max():.2e}; same most likely token {same} of {len(kl)}", flush=True)
    return max_kl is None or bool(kl.max() <= max_kl)


class ByLlamaCpp:
    """Base + GGUF LoRA."""

    name = "llama.cpp, base + GGUF LoRA"

    def __init__(self, options, base, adapter, lora):
        self.llama = load(options, base, lora)

    def log_probabilities(self, ids):
        return log_probabilities(self.llama, ids)

    def greedy(self, ids, count, stop):
        self.llama.reset()
        made = []
        while len(made) < count:
            self.llama.eval(ids)
            token = int(np.argmax(self.llama.scores[self.llama.n_tokens - 1]))
            if token == stop:
                break
            made.append(token)
            ids = [token]
        return made


class ByPeft:
    """The same weights in fp32 + the PEFT folder."""

    name = "transformers + PEFT"

    def __init__(self, options, base, adapter, lora):
        torch.set_num_threads(options.threads)
        self.model = peft.PeftModel.from_pretrained(load_model(str(base))[1], str(adapter)).eval()

    def log_probabilities(self, ids):
        with torch.no_grad():
            return normalised(self.model(input_ids=torch.tensor(ids)[None]).logits[0].numpy())

    def greedy(self, ids, count, stop):
        made, cache = [], None
        with torch.no_grad():
            while len(made) < count:
                out = self.model(input_ids=torch.tensor(ids)[None], past_key_values=cache, use_cache=True)
                token, cache = int(out.logits[0, -1].argmax()), out.past_key_values
                if token == stop:
                    break
                made.append(token)
                ids = [token]
        return made


def continuations(options, smidgen, base, adapter):
    """For each prompt its ids, as llama.cpp's tokenizer gives them, and how Smidgen goes on; and the token that ends."""
    llama, found = load(options, base), []
    stop = llama.token_eos()
    add_bos = bool(llama_cpp.llama_vocab_get_add_bos(llama_cpp.llama_model_get_vocab(llama.model)))
    for prompt in PROMPTS:
        made = smidgen.run("generate", "-m", base, "--adapter", adapter, "-p", prompt, "-n", options.tokens)["ids"]
        made = made[:-1] if made and made[-1] == stop else made
        found.append((prompt, llama.tokenize(prompt.encode(), add_bos=add_bos), made))
    return found, stop


def goes_on_alike(options, other, expected, stop):
    """True if all continuations are the same; tells of the others where they part."""
    same = 0
    for prompt, ids, made in expected:
        found = other.greedy(ids, options.tokens, stop)
        same += made == found
        if made != found:
            at = next((i for i, pair in enumerate(zip(made, found)) if pair[0] != pair[1]), min(len(made), len(found)))
            print(f"  {prompt!r}: parts after {at} tokens: {made[at : at + 3]} here, {found[at : at + 3]} there")
    print(f"{other.name}: greedy continuations of {options.tokens} tokens: {same} of {len(expected)} the same", flush=True)
    return same == len(expected)


def adapters(options, smidgen, place):
    base, adapter, lora, fused = (place / name for name in ["base.gguf", "adapter", "lora.gguf", "fused.gguf"])
    smidgen.run("quantize", options.model, "-o", base, "--type", "f32")
    train = ["train", "-m", base, "--data", options.text, "-o", adapter, "--max-seq-length", LENGTH, "--no-shuffle"]
    losses = smidgen.run(*train, "--iters", options.steps, "--learning-rate", options.learning_rate)["losses"]
    print(f"trained {len(losses)} steps: loss {losses[0]:.3f} to {losses[-1]:.3f}")
    smidgen.run("export", "-m", base, "--adapter", adapter, "--format", "gguf", "-o", lora, threads=False)
    smidgen.run("fuse", "-m", base, "--adapter", adapter, "-o", fused, "--type", "f32")
    logits = place / "logits.safetensors"
    evaluate = ["eval", "-m", base, "--adapter", adapter, "--data", options.text, "--max-seq-length", LENGTH]
    smidgen.run(*evaluate, "--chunks", 1, "--logits", logits)
    written = load_file(logits)
    ids, ours = written["ids"].tolist(), normalised(written["logits"])
    expected, stop = continuations(options, smidgen, base, adapter)
    compare("base alone in llama.cpp", ours, log_probabilities(load(options, base), ids))
    good = compare("merged model (F32)", ours, log_probabilities(load(options, fused), ids), options.max_kl)
    for other in [ByLlamaCpp, ByPeft]:
        other = other(options, base, adapter, lora)
        good &= compare(other.name, ours, other.log_probabilities(ids), options.max_kl)
        good &= goes_on_alike(options, other, expected, stop)
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
            sys.exit(f"a KL is above {options.max_kl}, or a continuation is another")
    with tempfile.TemporaryDirectory() as folder:
        if options.part != "adapters" and not quantisation(options, smidgen, pathlib.Path(folder)):
            sys.exit("llama.cpp's own Q4_0 has the lower perplexity")


if __name__ == "__main__":
    main()
