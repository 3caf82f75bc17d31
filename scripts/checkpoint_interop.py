"""A model's GGUF file against the GGUF file that Smidgen makes of its checkpoint.

    checkpoint_interop.py MODEL.gguf TEXT.txt

transformers saves the model (its weights as they are in MODEL.gguf, in float32 or, with --half, float16; in shards) and its tokenizer as a folder; `smidgen
quantize FOLDER` makes a GGUF file of it. Token ids of TEXT.txt and losses must be those of MODEL.gguf.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoTokenizer

from smidgen_gguf import load_model
from smidgen_tokens import read_tokens


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file of the llama, qwen2 or gemma3 family")
    parser.add_argument("text", help="a .txt file")
    parser.add_argument("--half", action="store_true", help="save float16 instead of float32")
    parser.add_argument("--max-loss", type=float, default=1e-3, help="nats between the losses (default 1e-3)")
    target = os.environ.get("CARGO_TARGET_DIR", pathlib.Path(__file__).resolve().parent.parent / "target")
    parser.add_argument("--smidgen", default=str(pathlib.Path(target) / "release" / "smidgen"))
    return parser.parse_args()


def main():
    options = arguments()

    def smidgen(*arguments):
        done = subprocess.run([options.smidgen, *map(str, arguments), "--json"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"smidgen {' '.join(map(str, arguments))} failed:\n{done.stderr}")
        return json.loads(done.stdout)

    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        folder, out = place / "checkpoint", place / "model.gguf"
        _, model = load_model(options.model, torch.float16 if options.half else torch.float32)
        model.save_pretrained(folder, max_shard_size="200MB")
        del model
        source = pathlib.Path(options.model)
        AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(folder)
        print("files:", ", ".join(sorted(f.name for f in folder.iterdir())))
        told = smidgen("quantize", folder, "-o", out, "--type", "f16")
        print(f"quantised {told['tensor_bytes_before'] / 1e6:.0f} MB in {told['seconds']:.1f} s, "
              f"peak {told['peak_rss_bytes'] / 1e6:.1f} MB resident")
        ids, losses = [], []
        for name, model in [("before", source), ("after", out)]:
            tokens = place / f"{name}.tokens"
            smidgen("data", options.text, "-m", model, "--out", tokens)
            ids.append(read_tokens(tokens))
            losses.append(smidgen("eval", "-m", model, "--data", options.text, "--chunks", 4)["loss"])
        same = len(ids[0]) == len(ids[1]) and bool((ids[0] == ids[1]).all())
        print(f"{len(ids[0])} token ids, {'identical' if same else 'different'}; loss {losses[0]:.6f} and {losses[1]:.6f}")
        if not same or abs(losses[0] - losses[1]) > options.max_loss:
            sys.exit("they differ")


if __name__ == "__main__":
    main()
