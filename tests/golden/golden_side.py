"""Makes side.json and side.safetensors: ten steps of side tuning on the models that make_golden.py made.

    scripts/venv.sh DIR && DIR/bin/python tests/golden/golden_side.py

The network is written here from its definition in crates/smidgen-train/src/side.rs, in float64. Taps are what a device
sends: rows of hidden states over their root mean square, rounded to halves.
"""

import json

import numpy as np
import torch
from make_golden import ADAMW, CONFIGS, FOLDER, STEPS, arithmetic, load_model, write_golden
from torch.nn.functional import cross_entropy, silu

RATE = 1e-2
WEIGHT_DECAY = 0.01
# Of a tensor after the last step, every so manieth number is written.
STRIDE = 17
CASES = {
    "sum": {"first_tap": 1, "every": 1, "width": 5, "reduction": 1, "gate": "sum"},
    "ladder": {"first_tap": 0, "every": 2, "width": 8, "reduction": 1, "gate": "ladder"},
    "narrow": {"first_tap": 0, "every": 1, "width": 5, "reduction": 4, "gate": "sum"},
    "narrow_ladder": {"first_tap": 1, "every": 1, "width": 8, "reduction": 2, "gate": "ladder"},
}
# Cases whose loss is computed by who trains the network, too.
TOLD = ["sum", "narrow_ladder"]


def formula(shape, index, amplitude, rate):
    """amplitude sin(rate i + index) along all numbers of a tensor, as a float32 holds it."""
    at = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return (amplitude * torch.sin(rate * at + index)).reshape(shape).to(torch.float32).to(torch.float64)


def tap(h):
    """Rows as they are sent, and what they are divided by."""
    rms = h.square().mean(-1, keepdim=True).sqrt()
    return (h / rms).to(torch.float16).to(torch.float64), rms


class Side(torch.nn.Module):
    def __init__(self, layers, hidden, first_tap, every, width, reduction, gate):
        super().__init__()
        self.tapped = [*range(first_tap, layers - 1, every), layers - 1]
        self.ladder, self.narrow = gate == "ladder", hidden // reduction
        self.numbers = torch.nn.ParameterDict()

        def tensor(name, *shape, amplitude=0.1):
            value = formula(shape, len(self.numbers), amplitude, 0.37)
            self.numbers[name.replace(".", "/")] = torch.nn.Parameter(value)

        for layer in self.tapped:
            if reduction > 1:
                tensor(f"taps.{layer}.reduce.weight", self.narrow, hidden)
            if self.ladder:
                tensor(f"taps.{layer}.gate", 1, 1)
            tensor(f"taps.{layer}.down.weight", width, self.narrow)
            tensor(f"taps.{layer}.up.weight", self.narrow, width, amplitude=0.02)
        if reduction > 1:
            tensor("expand.weight", hidden, self.narrow)

    def forward(self, hidden_states):
        """E s_L of hidden states behind each layer, [T, d]."""
        number = lambda name: self.numbers[name.replace(".", "/")]
        s = hidden_states[0].new_zeros(hidden_states[0].shape[0], self.narrow)
        for layer in self.tapped:
            x = tap(hidden_states[layer])[0]
            if f"taps/{layer}/reduce/weight" in self.numbers:
                x = x @ number(f"taps.{layer}.reduce.weight").T
            if self.ladder:
                m = torch.sigmoid(10 * number(f"taps.{layer}.gate"))
                u = m * x + (1 - m) * s
            else:
                u = x + s
            s = s + silu(u @ number(f"taps.{layer}.down.weight").T) @ number(f"taps.{layer}.up.weight").T
        return s @ number("expand.weight").T if "expand/weight" in self.numbers else s


class Backbone:
    """The frozen model: hidden states behind each layer, and the loss of a last hidden state."""

    def __init__(self, path):
        _, self.model = load_model(path, torch.float64)
        self.model.requires_grad_(False)
        inner = self.model.model
        self.inner = inner.decoder if self.model.config.model_type == "opt" else inner
        self.norm = self.inner.final_layer_norm if self.inner is not inner else self.inner.norm
        self.states = []
        for layer in self.inner.layers:
            layer.register_forward_hook(lambda _, __, out: self.states.append(out[0] if out.ndim == 3 else out))

    def hidden_states(self, ids):
        self.states.clear()
        with torch.no_grad():
            self.model(torch.tensor([ids]))
        return [*self.states]

    def logits(self, last):
        return self.model.lm_head(self.norm(last))


def targets_of(ids, mask):
    """Rows that have a target, and their targets."""
    rows = [t - 1 for t in range(1, len(ids)) if mask[t]]
    return rows, torch.tensor([ids[t + 1] for t in rows])


def run(path, batches, settings, told):
    backbone = Backbone(path)
    layers = len(backbone.inner.layers)
    scale = None
    net = Side(layers, backbone.model.config.hidden_size, **settings)
    adamw = {k: tuple(v) if isinstance(v, list) else v for k, v in ADAMW.items()} | {"lr": RATE}
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=WEIGHT_DECAY, **adamw)
    losses, gradients = [], None
    for step in range(STEPS):
        batch = batches[step % len(batches)]
        sequences = [(backbone.hidden_states(s["ids"]), *targets_of(s["ids"], s["mask"])) for s in batch]
        if scale is None:
            rows = torch.cat([states[-1][wanted] for states, wanted, _ in sequences])
            scale = rows.square().mean().sqrt().to(torch.float32).to(torch.float64)
        optimizer.zero_grad()
        count = sum(len(targets) for *_, targets in sequences)
        loss = 0
        for states, wanted, targets in sequences:
            states = [h[wanted] for h in states]
            last = states[-1]
            if told:
                x, rms = tap(last)
                last = x * rms.to(torch.float32).to(torch.float64)
            logits = backbone.logits(last + scale * net(states))
            loss = loss + cross_entropy(logits, targets, reduction="sum") / count
        loss.backward()
        losses.append(loss.item())
        if gradients is None:
            gradients = {name: p.grad.clone() for name, p in net.numbers.items()}
        optimizer.step()
    end = {name: p.detach().reshape(-1)[::STRIDE] for name, p in net.numbers.items()}
    return losses, scale.item(), {"grad": gradients, "end": end}


def main():
    torch.set_num_threads(1)
    report, tensors = {}, {}
    for family, config in CONFIGS.items():
        batches = json.loads((FOLDER / f"{family}.json").read_text())["batches"]
        report[family] = {}
        with arithmetic(torch.float64):
            for case, settings in CASES.items():
                for told in [False, True] if case in TOLD else [False]:
                    losses, scale, numbers = run(FOLDER / f"{family}.gguf", batches, settings, told)
                    more = {"lr": RATE, "weight_decay": WEIGHT_DECAY, "scale": scale, "losses": losses}
                    name = f"{case}.told" if told else case
                    report[family][name] = settings | more
                    for kind, of_kind in numbers.items():
                        if told and kind == "end":
                            continue
                        for tensor, value in of_kind.items():
                            key = f"{family}.{name}.{kind}.{tensor.replace('/', '.')}"
                            tensors[key] = value.numpy().astype(np.float32)
                    print(family, name, *(f"{loss:.5f}" for loss in losses))
    write_golden("side", report, tensors)


if __name__ == "__main__":
    main()
