"""Writes a GGUF model as a checkpoint's folder, as a hub has it: config.json, sharded safetensors, tokenizer.json.

    checkpoint_folder.py MODEL.gguf FOLDER [--type bfloat16]

The weights are dequantised, and transformers makes the tokenizer's files from the GGUF file's vocabulary: the folder serves
to test `smidgen quantize FOLDER` on a real vocabulary where no hub can be reached. Where transformers does not know how the
family cuts digits (SmolLM2: one by one), that is put in as the published tokenizer.json has it.
"""

import argparse
import pathlib

import gguf
import torch
import transformers
from tokenizers import pre_tokenizers

from smidgen_gguf import load_model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file of the llama, qwen2 or gemma3 family")
    parser.add_argument("folder")
    parser.add_argument("--type", default="float32", choices=["float32", "float16", "bfloat16"])
    options = parser.parse_args()
    path = pathlib.Path(options.model)
    _, model = load_model(options.model)
    model.to(getattr(torch, options.type)).save_pretrained(options.folder, max_shard_size="200MB")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    cut = gguf.GGUFReader(options.model).get_field("tokenizer.ggml.pre")
    if cut is not None and cut.contents() == "smollm":
        digits, rest = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
    tokenizer.save_pretrained(options.folder)


if __name__ == "__main__":
    main()
