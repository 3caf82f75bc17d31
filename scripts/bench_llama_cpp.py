"""Smidgen's forward against llama.cpp's prompt processing: the same GGUF file, tokens and threads, in interleaved pairs.

    scripts/bench_llama_cpp.sh MODEL.gguf TEXT.txt [--pairs 7] [--length 256] [--all-logits] [--json FILE]

llama.cpp evaluates one window of the text as one batch from an empty cache; unless --all-logits is given it computes the
logits of the last token only, while Smidgen's side, `smidgen eval`, computes every token's and their losses. A side's time
in a pair is that of a window: the median of a few for llama.cpp, the mean of as many for `smidgen eval`.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import llama_cpp

from bench_machine import machine, settle, spread
from smidgen_tokens import windows


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file of the llama, qwen2 or gemma3 family")
    parser.add_argument("text", help="a .txt file")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--windows", type=int, default=3, help="windows of a side in a pair (default 3)")
    parser.add_argument("--length", type=int, default=256, help="tokens of a window (default 256)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", default="1GB", help="budget of Smidgen's side (default 1GB)")
    parser.add_argument("--all-logits", action="store_true", help="llama.cpp computes every token's logits too")
    parser.add_argument("--flash-attention", action="store_true", help="llama.cpp's flash attention")
    parser.add_argument("--busy", action="store_true", help="measure though other processes take processor time")
    parser.add_argument("--json", metavar="FILE", help="write every measured time there")
    target = os.environ.get("CARGO_TARGET_DIR", pathlib.Path(__file__).resolve().parent.parent / "target")
    parser.add_argument("--smidgen", default=str(pathlib.Path(target) / "release" / "smidgen"))
    return parser.parse_args()


def make_llama(options):
    return llama_cpp.Llama(
        options.model,
        n_ctx=options.length,
        n_batch=options.length,
        n_ubatch=options.length,
        n_threads=options.threads,
        n_threads_batch=options.threads,
        logits_all=options.all_logits,
        flash_attn=options.flash_attention,
        verbose=False,
    )


def prompt_seconds(llama, ids):
    """Seconds to evaluate `ids` from an empty cache."""
    llama.reset()
    begin = time.perf_counter()
    llama.eval(ids)
    llama_cpp.llama_synchronize(llama.ctx)
    return time.perf_counter() - begin


def eval_seconds(options, tokens):
    """Seconds a window of `smidgen eval`."""
    command = [options.smidgen, "eval", "-m", options.model, "--data", str(tokens), "--json"]
    command += ["--chunks", str(options.windows), "--max-seq-length", str(options.length)]
    command += ["--memory", options.memory, "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)["seconds"] / options.windows


def measure(options, tokens):
    """Seconds a window of each side, pair by pair, and the cores that others took."""
    sequences = windows(tokens, options.length, options.windows).tolist()
    llama = make_llama(options)
    prompt_seconds(llama, sequences[0])
    times, others = {"llama.cpp": [], "smidgen": []}, []
    sides = {
        "llama.cpp": lambda: statistics.median(prompt_seconds(llama, ids) for ids in sequences),
        "smidgen": lambda: eval_seconds(options, tokens),
    }
    for pair in range(options.pairs):
        for name in list(sides)[:: -1 if pair % 2 else 1]:
            others.append(settle(options.busy))
            times[name].append(sides[name]())
        shown = ", ".join(f"{name} {seconds[-1]:.3f} s" for name, seconds in times.items())
        print(f"pair {pair + 1} of {options.pairs}: {shown}", flush=True)
    return times, others


def main():
    options = arguments()
    before = machine() | {"llama-cpp-python": llama_cpp.__version__}
    print(json.dumps(before))
    print(llama_cpp.llama_print_system_info().decode())
    with tempfile.TemporaryDirectory() as folder:
        tokens = pathlib.Path(folder) / "text.tokens"
        make = [options.smidgen, "data", options.text, "-m", options.model, "--out", str(tokens)]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times, others = measure(options, tokens)
    ratios = [theirs / ours for theirs, ours in zip(times["llama.cpp"], times["smidgen"], strict=True)]
    print(f"\n{options.length} tokens    s/window   [min max]")
    for name, seconds in times.items():
        print(f"{name:12}  {spread(seconds)}")
    print(f"Smidgen's speed over llama.cpp's {spread(ratios)}")
    if options.json:
        found = {"machine": before, "options": vars(options), "seconds": times, "cores_of_others": others}
        pathlib.Path(options.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
