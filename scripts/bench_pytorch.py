"""Times training steps of PyTorch + PEFT on a GGUF model: the other side of bench_step.py.

    bench_pytorch.py MODEL.gguf FILE.tokens

fp32, sdpa attention, LoRA on all seven projections, AdamW, one sequence a step, no checkpointing, no dropout. Each line on
stdin asks for one step; the answer is one JSON object on stdout: {"step", "seconds", "loss"}. A step is zeroing gradients,
forward, loss, backward and update; reading the model and making windows is not part of it. Before the first step comes
{"ready": true, ...versions}; when stdin ends, {"peak_rss_bytes"}.
"""

import argparse
import itertools
import json
import os
import resource
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is local; PEFT would look up the base model's name

import peft
import torch
import transformers

# transformers asks this while it makes masks; PyTorch's answer comes from the CUDA libraries, which cuda_stubs.py may only
# stand in for.
if not torch.cuda.is_available():
    torch.cuda.is_current_stream_capturing = lambda: False

from smidgen_gguf import load_model, projections
from smidgen_tokens import windows


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file of the llama, qwen2 or gemma3 family")
    parser.add_argument("tokens", help="a token file of that model")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence (default 256)")
    parser.add_argument("--windows", type=int, default=4, help="sequences, taken in turn (default 4)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def make_model(options):
    family, model = load_model(options.model)
    model.set_attn_implementation("sdpa")
    settings = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=0.0,
        target_modules=projections(family),
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, settings).train()


def say(answer):
    print(json.dumps(answer), flush=True)


def step(model, optimizer, ids):
    """(seconds, loss before the update) of one step on ids [1, T]."""
    begin = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    optimizer.step()
    return time.perf_counter() - begin, loss.item()


def main():
    options = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    model = make_model(options)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=0.01)
    sequences = torch.from_numpy(windows(options.tokens, options.length, options.windows))
    say(
        {
            "ready": True,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "threads": torch.get_num_threads(),
            "trained_numbers": sum(parameter.numel() for parameter in trained),
        }
    )
    for number, (_, ids) in enumerate(zip(sys.stdin, itertools.cycle(sequences), strict=False), start=1):
        seconds, loss = step(model, optimizer, ids[None])
        say({"step": number, "seconds": seconds, "loss": loss})
    say({"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})


if __name__ == "__main__":
    main()
