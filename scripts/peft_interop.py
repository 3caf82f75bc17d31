"""Compares Smidgen with transformers and PEFT on the same GGUF weights and the same PEFT adapter.

Make an adapter with PEFT (all seven projections, random non-zero B):
    peft_interop.py MODEL.gguf --make-adapter DIR
Print the next-token distribution that PEFT gives:
    peft_interop.py MODEL.gguf --adapter DIR --ids 3717,446,12928
Compare with logits that Smidgen wrote (safetensors: `ids` int32 [T], `logits` float32 [T, V]):
    peft_interop.py MODEL.gguf --adapter DIR --logits FILE
The comparison prints KL(PEFT || Smidgen) over the positions, in nats, and fails above `--max-kl`.
"""

import argparse
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is local; PEFT would look up the base model's name

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from smidgen_gguf import load_model, projections


def make_adapter(family, model, options):
    settings = LoraConfig(
        r=options.rank, lora_alpha=options.alpha, target_modules=projections(family), task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, settings)
    generator = torch.Generator().manual_seed(options.seed)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
        elif "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    model.save_pretrained(options.make_adapter, save_embedding_layers=False)
    print(f"wrote {options.make_adapter}")


def log_probabilities(model, ids):
    """[T, V], float64."""
    with torch.no_grad():
        logits = model(input_ids=ids.long()[None]).logits[0]
    return logits.double().log_softmax(-1)


def print_next(log_probability, count=10):
    top = log_probability.exp().topk(count)
    for probability, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        print(f"{token:8d}  {probability:.6f}")


def compare(expected, logits, max_kl):
    """expected: log-probabilities [T, V]; logits: Smidgen's [T, V]. True if they agree."""
    if logits.shape != expected.shape:
        sys.exit(f"logits are {list(logits.shape)}, the model gives {list(expected.shape)}")
    found = logits.double().log_softmax(-1)
    divergence = (expected.exp() * (expected - found)).sum(-1)
    worst = int(divergence.argmax())
    same = int((expected.argmax(-1) == found.argmax(-1)).sum())
    print(f"positions {len(divergence)}, same most likely token {same}")
    print(f"KL mean {divergence.mean():.3e}, max {divergence[worst]:.3e} at position {worst}")
    print(f"largest difference of a log-probability {(expected - found).abs().max():.3e}")
    return bool(divergence[worst] <= max_kl)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file of the llama, qwen2 or gemma3 family")
    parser.add_argument("--adapter", help="a PEFT adapter's folder")
    parser.add_argument("--max-kl", type=float, default=1e-6, help="nats, at the worst position (default 1e-6)")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--make-adapter", metavar="DIR")
    action.add_argument("--ids", type=lambda text: torch.tensor([int(n) for n in text.split(",")]))
    action.add_argument("--logits", metavar="FILE")
    return parser.parse_args()


def main():
    options = arguments()
    family, model = load_model(options.model)
    if options.make_adapter:
        make_adapter(family, model, options)
        return
    if options.adapter:
        model = PeftModel.from_pretrained(model, options.adapter).eval()
    if options.ids is not None:
        print_next(log_probabilities(model, options.ids)[-1])
        return
    written = load_file(options.logits)
    if not compare(log_probabilities(model, written["ids"]), written["logits"], options.max_kl):
        sys.exit(f"the largest KL is above {options.max_kl}")


if __name__ == "__main__":
    main()
