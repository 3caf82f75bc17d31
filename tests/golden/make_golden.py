"""Makes the golden files of this folder; README.md says what each holds.

    scripts/venv.sh DIR && DIR/bin/python tests/golden/make_golden.py

Tiny random models, written as GGUF and read back, so that PyTorch sees exactly the values which the files hold. All
numbers are computed in float64; a second run in float32 measures how far rounding alone moves them.
"""

import contextlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from transformers import Gemma3TextConfig, LlamaConfig, OPTConfig, Qwen2Config

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1] / "scripts"))
from golden_blocks import write_blocks  # noqa: E402
from golden_tokenizers import add_bpe, add_spm  # noqa: E402
from smidgen_gguf import build_model, finish, load_model, projections, write_metadata, write_tensors  # noqa: E402

SEED = 20260
RANK, ALPHA = 4, 8
LENGTHS = [[7, 32, 19], [24, 9, 32]]
STEPS = 10
ADAMW = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8}
SGD = {"lr": 0.5}
MOMENTUM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
LORAPLUS_RATIO = 16.0

SHARED = {"max_position_embeddings": 128, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
ENTRIES = {
    "sequence.base_logits": "[32, V] logits at every position of the sequence, without the adapter",
    "sequence.logits": "[32, V] the same with the adapter",
    "sequence.grad.NAME": "gradient of the sequence's loss for the adapter's tensor NAME: A [r, in], B [out, r]",
    "batch.grad.NAME": "gradient of the first batch's loss",
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
# Widths that are multiples of 32 (a quantised block) but not of 256, an MLP wider than one 256-column tile, and for
# qwen2 a vocabulary that crosses a tile of 1,024.
CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=300, hidden_size=96, intermediate_size=320, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=True, rope_parameters=ROPE, **SHARED,
    ),
    "qwen2": Qwen2Config(
        vocab_size=1100, hidden_size=96, intermediate_size=320, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=1, rms_norm_eps=1e-6, tie_word_embeddings=False,
        rope_parameters=ROPE | {"rope_theta": 1e6}, **SHARED,
    ),
    # Seven layers: the sixth is global, all others see a window of eight tokens.
    "gemma3": Gemma3TextConfig(
        vocab_size=300, hidden_size=96, intermediate_size=288, num_hidden_layers=7, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, query_pre_attn_scalar=32, sliding_window=8, rms_norm_eps=1e-6,
        rope_parameters={"full_attention": ROPE | {"rope_theta": 1e6}, "sliding_attention": ROPE}, **SHARED,
    ),
    # As many positions as the longest sequences of the tests have. A rectifier's gradient jumps where its input is zero: with
    # other sizes or seeds an input may come so near to it that rounding decides, and losses part by 1e-5.
    "opt": OPTConfig(
        vocab_size=300, hidden_size=96, word_embed_proj_dim=96, ffn_dim=288, num_hidden_layers=3,
        num_attention_heads=4, **SHARED | {"max_position_embeddings": 640},
    ),
}  # fmt: skip
# The type of a matrix, by a part of its GGUF name, first match; the last entry is for all others.
TYPES = {
    "llama": [("token_embd", Type.Q8_0), ("blk.0.attn_k", Type.F32), ("attn_v", Type.F16), ("ffn_down", Type.Q4_1),
              ("blk.1.", Type.Q8_0), ("", Type.Q4_0)],
    "qwen2": [("token_embd", Type.Q4_0), ("output.weight", Type.Q8_0), ("attn_v", Type.Q8_0),
              ("blk.2.attn_output", Type.F32), ("ffn_down", Type.Q4_0), ("", Type.Q5_0)],
    "gemma3": [("token_embd", Type.Q8_0), ("blk.5.attn_v", Type.F32), ("attn_v", Type.Q8_0), ("ffn_down", Type.Q5_0),
               ("", Type.Q4_0)],
    "opt": [("token_embd", Type.Q8_0), ("position_embd", Type.F16), ("blk.0.attn_output", Type.F32),
            ("attn_v", Type.Q8_0), ("ffn_down", Type.Q4_1), ("", Type.Q4_0)],
}  # fmt: skip


def random_state(family, config, generator):
    """Checkpoint name -> float64 array: matrices of deviation 0.15, biases 0.2, norms 1 +- 0.2."""
    state = {}
    for name, parameter in build_model(family, config, torch.float32).state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        noise = generator.standard_normal(tuple(parameter.shape))
        if "norm" in name and name.endswith("weight"):
            # Within [0.5, 2], so that gemma3's subtraction of one is exact.
            centre = 0.0 if family == "gemma3" else 1.0
            state[name] = centre + np.clip(0.2 * noise, -0.45, 0.9)
        else:
            state[name] = (0.2 if name.endswith("bias") else 0.15) * noise
    return state


def write_model(family, config, path):
    generator = np.random.default_rng([SEED, *family.encode()])
    writer = gguf.GGUFWriter(path, family)
    write_metadata(writer, family, config, f"Smidgen golden {family}", "MIT OR Apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    if family == "gemma3":
        add_spm(writer, config.vocab_size)
    else:
        add_bpe(writer, config.vocab_size, "qwen2" if family == "qwen2" else "smollm")

    def type_of(name):
        return next(kind for part, kind in TYPES[family] if part in name)

    write_tensors(writer, family, config, random_state(family, config, generator), type_of)
    finish(writer)


def random_sequence(length, vocabulary, generator, full):
    """ids and mask; mask[t] says whether token t is a target. Token 0 never is: nothing predicts it."""
    ids = generator.integers(0, vocabulary, length).tolist()
    mask = [0] + [1 if full else int(bit) for bit in generator.random(length - 1) < 0.6]
    mask[-1] = 1
    return {"ids": ids, "mask": mask}


@contextlib.contextmanager
def arithmetic(dtype):
    """With float64, makes transformers' own casts to float32 (norms, softmax, rotary angles) casts to float64."""
    saved = torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    if dtype == torch.float64:
        torch.float32 = torch.float = torch.float64
        torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = saved[:3]
        torch.set_default_dtype(saved[3])


def formula(rows, columns, layer, index, amplitude, rate, wave):
    """README.md, "The adapter": float64, rounded to float32."""
    argument = rate * np.arange(rows * columns, dtype=np.float64) + layer + 0.1 * index
    return torch.from_numpy((amplitude * wave(argument)).astype(np.float32).reshape(rows, columns))


def with_adapter(model, dtype):
    modules = projections(model.config.model_type)
    settings = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(modules), task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, settings, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            continue
        parts = name.split(".")
        layer, index = int(parts[parts.index("layers") + 1]), modules.index(parts[-4])
        wave = (0.02, 0.37, np.sin) if "lora_A" in name else (0.01, 0.11, np.cos)
        parameter.data = formula(*parameter.shape, layer, index, *wave).to(dtype)
    return model.eval()


def save_adapter(model, base_name, folder):
    """As PEFT saves it, but for the model card and for the order of `target_modules`, which varies from run to run."""
    settings = model.peft_config["default"]
    settings.base_model_name_or_path = base_name
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    config = folder / "adapter_config.json"
    written = json.loads(config.read_text())
    written["target_modules"].sort()
    config.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")


def saved_name(name):
    """A parameter's name as PEFT saves it."""
    return name.replace(".default.", ".")


def adapter_parameters(model):
    return {saved_name(name): p for name, p in model.named_parameters() if p.requires_grad}


def batch_loss(model, batch):
    """Sum over unmasked targets / their number in the whole batch; each sequence by itself, so without padding."""
    count = sum(sum(sequence["mask"]) for sequence in batch)
    total = 0.0
    for sequence in batch:
        logits = model(input_ids=torch.tensor([sequence["ids"]])).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(sequence["ids"][1:]), reduction="none")
        total = total + (losses * torch.tensor(sequence["mask"][1:])).sum() / count
    return total


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = batch_loss(model, batch)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in adapter_parameters(model).items()}


def check_gradient(model, batch, gradients):
    """Along its own direction the gradient must be the loss's central difference: proof that all is in float64."""
    norm = torch.sqrt(sum((g**2).sum() for g in gradients.values()))
    losses = []
    with torch.no_grad():
        for step in (1e-4, -2e-4, 1e-4):  # there, to the other side, and back
            for name, parameter in adapter_parameters(model).items():
                parameter += step * gradients[name] / norm
            losses.append(batch_loss(model, batch).item())
    slope = (losses[0] - losses[1]) / 2e-4
    assert abs(slope / norm.item() - 1) < 1e-6, (slope, norm.item())


def loraplus_groups(parameters):
    """LoRA+ (arXiv:2402.12354): every B has a rate of its own."""
    a, b = ([p for name, p in parameters.items() if factor in name] for factor in ("lora_A", "lora_B"))
    return [{"params": a}, {"params": b, "lr": ADAMW["lr"] * LORAPLUS_RATIO}]


def descend(path, dtype, batches, optimizer):
    """The loss before each of ten steps on the batches in turn."""
    model = with_adapter(load_model(path, dtype)[1], dtype)
    optimizer = optimizer(adapter_parameters(model))
    losses = []
    for step in range(STEPS):
        losses.append(loss_and_gradients(model, batches[step % len(batches)])[0])
        optimizer.step()
    return losses


def run(path, dtype, sequence, batches, adapter_folder=None):
    with arithmetic(dtype):
        model = load_model(path, dtype)[1]
        with torch.no_grad():
            base = model(input_ids=torch.tensor([sequence["ids"]])).logits[0]
        model = with_adapter(model, dtype)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([sequence["ids"]])).logits[0]
        loss, gradients = loss_and_gradients(model, [sequence])
        total, batch_gradients = loss_and_gradients(model, batches[0])
        if dtype == torch.float64:
            check_gradient(model, batches[0], batch_gradients)
        optimizers = {
            "adamw_decay": lambda p: torch.optim.AdamW(p.values(), weight_decay=0.01, **ADAMW),
            "adamw": lambda p: torch.optim.AdamW(p.values(), weight_decay=0.0, **ADAMW),
            "adamw_loraplus": lambda p: torch.optim.AdamW(loraplus_groups(p), weight_decay=0.01, **ADAMW),
            "sgd": lambda p: torch.optim.SGD(p.values(), **SGD),
            "sgd_momentum": lambda p: torch.optim.SGD(p.values(), **MOMENTUM),
        }
        steps = {name: descend(path, dtype, batches, optimizer) for name, optimizer in optimizers.items()}
    if adapter_folder:
        model = with_adapter(load_model(path)[1], torch.float32)
        save_adapter(model, path.name, adapter_folder)
    tensors = {"sequence.base_logits": base, "sequence.logits": logits}
    tensors |= {f"sequence.grad.{name}": g for name, g in gradients.items()}
    tensors |= {f"batch.grad.{name}": g for name, g in batch_gradients.items()}
    return {name: t.numpy() for name, t in tensors.items()}, {"sequence": loss, "batch": total, "steps": steps}


def rounding(exact, rounded):
    """How far float32 moves the numbers: for tensors the largest ||x - y|| / ||y||, for losses the largest |x - y|."""
    tensors, losses = {}, {}
    for name, value in exact[0].items():
        kind = ".".join(name.split(".")[:2])
        error = float(np.linalg.norm(rounded[0][name] - value) / np.linalg.norm(value))
        tensors[kind] = max(error, tensors.get(kind, 0.0))
    for name in ("sequence", "batch"):
        losses[name] = abs(exact[1][name] - rounded[1][name])
    for name, values in exact[1]["steps"].items():
        losses[name] = max(abs(a - b) for a, b in zip(values, rounded[1]["steps"][name], strict=True))
    return {"relative_norm": tensors, "loss": losses}


def write_golden(name, report, tensors):
    """NAME.json and NAME.safetensors."""
    (FOLDER / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    path = FOLDER / f"{name}.safetensors"
    save_file(tensors, path)
    path.chmod(0o644)  # safetensors writes files that only their owner may read


def make_family(family, config):
    path = FOLDER / f"{family}.gguf"
    write_model(family, config, path)
    generator = np.random.default_rng([SEED, 1, *family.encode()])
    sequence = random_sequence(32, config.vocab_size, generator, full=True)
    batches = [[random_sequence(n, config.vocab_size, generator, full=False) for n in row] for row in LENGTHS]
    exact = run(path, torch.float64, sequence, batches, FOLDER / f"{family}-adapter")
    rounded = run(path, torch.float32, sequence, batches)
    losses = exact[1]
    settings = {"adamw_decay": ADAMW | {"weight_decay": 0.01}, "adamw": ADAMW | {"weight_decay": 0.0}}
    settings |= {"adamw_loraplus": ADAMW | {"weight_decay": 0.01, "loraplus_ratio": LORAPLUS_RATIO}}
    settings |= {"sgd": SGD, "sgd_momentum": MOMENTUM}
    report = {
        "family": family,
        "seed": SEED,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "gguf", "numpy")},
        "entries": ENTRIES,
        "lora": {"r": RANK, "alpha": ALPHA},
        "sequence": sequence | {"loss": losses["sequence"]},
        "batches": batches,
        "batch_loss": losses["batch"],
        "steps": {name: settings[name] | {"losses": values} for name, values in losses["steps"].items()},
        "float32_error": rounding(exact, rounded),
    }
    write_golden(family, report, {name: value.astype(np.float32) for name, value in exact[0].items()})
    print(family, path.stat().st_size, json.dumps(report["float32_error"], indent=1))


def main():
    torch.set_num_threads(1)
    write_blocks(FOLDER / "blocks.safetensors", SEED)
    for family, config in CONFIGS.items():
        make_family(family, config)
    for path in FOLDER.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files that only their owner may read


if __name__ == "__main__":
    main()
