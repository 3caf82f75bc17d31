"""Trains on the answers of a jsonl file here and with PyTorch + PEFT, from the same start and in the same order.

    scripts/venv.sh DIR; DIR/bin/python scripts/train_with_peft.py MODEL.gguf TRAIN.jsonl TEST.jsonl \\
        --prompt-feature question --completion-feature answer --json FILE

Both sides get PEFT's own start (A uniform after Kaiming, B zero) on all seven projections, the same token file, whose mask
leaves prompts out, the samples in the file's order, and AdamW. PyTorch works in fp32 on the weights of the same GGUF file,
dequantised. What is compared is the mean loss of a held-out answer's token, in nats, before and after; the run fails where the
two are further apart than `--within`, or where it did not fall.

Training is chaotic: two ways of rounding drift apart by a factor a step, and AdamW's first steps, which divide numbers near zero
by their own size, make the most of it. `--spread` shows how far: PEFT trains a second time, from a start that differs by one
part in a million.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
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
from smidgen_tokens import samples

FEATURES = ["prompt", "completion", "text", "chat"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file of the llama, qwen2 or gemma3 family")
    parser.add_argument("train", help="a .jsonl file")
    parser.add_argument("test", help="a .jsonl file")
    for feature in FEATURES:
        parser.add_argument(f"--{feature}-feature")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--held-out", type=int, default=200, help="samples of TEST, from its first (default 200)")
    parser.add_argument("--max-seq-length", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--lr-schedule", default="constant", choices=["constant", "linear", "cosine"])
    parser.add_argument("--warmup", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--spread", action="store_true", help="PEFT against itself, from a start moved by 1e-6")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--within", type=float, default=0.01, help="of the loss after training (default 0.01)")
    parser.add_argument("--memory", default="300MB")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", help="write every loss there")
    target = os.environ.get("CARGO_TARGET_DIR", pathlib.Path(__file__).resolve().parent.parent / "target")
    parser.add_argument("--smidgen", default=str(pathlib.Path(target) / "release" / "smidgen"))
    return parser.parse_args()


def smidgen(options, *words):
    command = [options.smidgen, *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def prepare(options, source, out, chunks):
    """Writes the first `chunks` samples of `source` as tokens; what they are in figures."""
    flags = ["--max-seq-length", options.max_seq_length, "--chunks", chunks]
    for feature in FEATURES:
        if key := getattr(options, f"{feature}_feature"):
            flags += [f"--{feature}-feature", key]
    return smidgen(options, "data", source, "-m", options.model, "--out", out, *flags)


def here(options, place, start):
    """(losses of the steps, held-out loss before, after, seconds)."""
    machine = ["--memory", options.memory, "--threads", options.threads]
    cut = ["--max-seq-length", options.max_seq_length]
    score = ["eval", "-m", options.model, "--data", place / "test.tokens", *cut, *machine, "--chunks", options.held_out]
    before = smidgen(options, *score)["loss"]
    flags = ["--learning-rate", options.learning_rate, "--weight-decay", options.weight_decay, "--iters", options.steps]
    flags += ["--lr-schedule", options.lr_schedule, "--warmup", options.warmup, "--batch-size", options.batch_size]
    train = ["train", "-m", options.model, "--data", place / "train.tokens", "-o", place / "adapter", *cut, *machine]
    begin = time.perf_counter()
    report = smidgen(options, *train, *flags, "--no-shuffle", "--init-adapter", start)
    seconds = time.perf_counter() - begin
    return report["losses"], before, smidgen(options, *score, "--adapter", place / "adapter")["loss"], seconds


def loss_of(model, ids, targets):
    """Sum of the cross-entropy over the targets."""
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    chosen = targets[1:]
    return torch.nn.functional.cross_entropy(logits[chosen], ids[1:][chosen], reduction="sum")


def score(model, data):
    """Mean over all targets."""
    model.eval()
    with torch.no_grad():
        total = sum(loss_of(model, *sample).double().item() for sample in data)
    model.train()
    return total / sum(int(targets[1:].sum()) for _, targets in data)


def read(path, options, count):
    pairs = samples(path, options.max_seq_length, count)
    return [(torch.from_numpy(ids), torch.from_numpy(targets)) for ids, targets in pairs]


def with_peft(options, model, place):
    """The same as `here`, by PyTorch."""
    samples_trained = options.steps * options.batch_size
    train, test = (read(place / name, options, n) for name, n in
                   [("train.tokens", samples_trained), ("test.tokens", options.held_out)])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=options.weight_decay)
    schedule = transformers.get_scheduler(options.lr_schedule, optimizer, options.warmup, options.steps)
    losses, before, begin = [], score(model, test), time.perf_counter()
    for step in range(options.steps):
        batch = [train[(step * options.batch_size + i) % len(train)] for i in range(options.batch_size)]
        count = sum(targets[1:].sum() for _, targets in batch)
        optimizer.zero_grad(set_to_none=True)
        losses.append(0.0)
        for sample in batch:
            loss = loss_of(model, *sample) / count
            loss.backward()
            losses[-1] += loss.item()
        optimizer.step()
        schedule.step()
        if (step + 1) % 25 == 0:
            print(f"PEFT: step {step + 1}, loss {losses[-1]:.4f}", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - begin
    return losses, before, score(model, test), seconds


def main():
    options = arguments()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        prepared = prepare(options, options.train, place / "train.tokens", options.steps * options.batch_size)
        prepare(options, options.test, place / "test.tokens", options.held_out)
        print(f"{options.steps} steps, {prepared['sequences']} samples, {prepared['targets']} targets", file=sys.stderr)
        family, model = load_model(options.model)
        settings = peft.LoraConfig(
            r=options.rank, lora_alpha=options.alpha, target_modules=projections(family), task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(model, settings)
        model.save_pretrained(place / "start", save_embedding_layers=False)
        ours = here(options, place, place / "start")
        start = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
        theirs = with_peft(options, model, place)
        names = ["losses", "held_out_before", "held_out_after", "seconds"]
        report = {"smidgen": dict(zip(names, ours)), "peft": dict(zip(names, theirs))}
        if options.spread:
            with torch.no_grad():
                for name, value in model.named_parameters():
                    if name in start:
                        value.copy_(start[name] * (1 + 1e-6))
            report["peft, start moved by 1e-6"] = dict(zip(names, with_peft(options, model, place)))
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(report))
    worst = max(abs(a - b) for a, b in zip(ours[0], theirs[0]))
    print(f"losses of {options.steps} steps: the furthest apart by {worst:.2e}")
    for name, side in report.items():
        print(f"{name}: held-out loss {side['held_out_before']:.5f} before, {side['held_out_after']:.5f} after, "
              f"{side['seconds']:.0f} s")
    if options.spread:
        moved = report["peft, start moved by 1e-6"]["held_out_after"] / theirs[2] - 1
        print(f"held-out loss of PEFT against itself: {100 * moved:+.3f} %")
    apart = ours[2] / theirs[2] - 1
    print(f"held-out loss here against PEFT's: {100 * apart:+.3f} %")
    if abs(apart) > options.within or ours[2] >= ours[1]:
        sys.exit("further apart than asked, or not fallen")


if __name__ == "__main__":
    main()
