"""Makes methods.json and methods.safetensors: ten steps of LCSB and of MeZO on the models that make_golden.py made.

    scripts/venv.sh DIR && DIR/bin/python tests/golden/golden_methods.py

Both methods are written here from their papers, in float64. The directions of MeZO are counted as
crates/smidgen-kernels/src/normal.rs says: the same words of the same generator, made normal in float64.
"""

import json

import numpy as np
import torch
from make_golden import (
    ADAMW,
    CONFIGS,
    FOLDER,
    STEPS,
    adapter_parameters,
    arithmetic,
    batch_loss,
    load_model,
    with_adapter,
    write_golden,
)
from smidgen_gguf import heads_of, interleave_halves, projections

# Of a layer's factors after the last step, every so manieth number is written.
STRIDE = 17
LCSB = {
    "lcsb_one": {"layers": lambda all: 1, "weight_decay": 0.0},
    "lcsb_one_decay": {"layers": lambda all: 1, "weight_decay": 1.0},
    "lcsb_half": {"layers": lambda all: (all + 1) // 2, "weight_decay": 0.0},
    "lcsb_half_decay": {"layers": lambda all: (all + 1) // 2, "weight_decay": 1.0},
}
MEZO = {
    "mezo": {"samples": 1, "weight_decay": 0.0},
    "mezo_three": {"samples": 3, "weight_decay": 0.0},
    "mezo_three_decay": {"samples": 3, "weight_decay": 4.0},
}
MEZO_SHARED = {"eps": 1e-3, "lr": 5e-3, "seed": 11}


def philox(key, lower, upper):
    """Philox4x32-10 (Salmon et al., 2011): words [4, n] for the counters `lower` [n] + 2**64 upper."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    lower = np.asarray(lower, np.uint64)
    c = [lower & low, lower >> shift, *(np.full_like(lower, word) for word in (upper & 0xFFFFFFFF, upper >> 32))]
    k = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        p, q = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [q >> shift ^ c[1] ^ np.uint64(k[0]), q & low, p >> shift ^ c[3] ^ np.uint64(k[1]), p & low]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c)


def check_philox():
    """The known answers of the authors' own tests (Random123, kat_vectors)."""
    assert [*philox(0, [0], 0)[:, 0]] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 2**64 - 1
    assert [*philox(ones, [ones], ones)[:, 0]] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def normals(seed, sample, count):
    """Numbers 0 to count - 1 of a stream, float64; number 64 g + 16 w + l is normal w of block 16 g + l."""
    a, b, c, d = (int(word[0]) for word in philox(seed, [sample], int.from_bytes(b"normals\0", "little")))
    groups = -(-count // 64)
    words = philox(a | b << 32, np.arange(16 * groups), c | d << 32)
    pairs = []
    for radius, angle in (words[:2], words[2:]):
        # The uniform number of the radius is an f32.
        u = (radius.astype(np.float32) + np.float32(0.5)).astype(np.float64) / 2**32
        r, turn = np.sqrt(-2 * np.log(u)), 2 * np.pi * angle.astype(np.float64) / 2**32
        pairs += [r * np.cos(turn), r * np.sin(turn)]
    return np.stack(pairs).reshape(4, groups, 16).swapaxes(0, 1).reshape(-1)[:count]


def flat_order(family, config, parameters):
    """For each factor in the order of all numbers, (name, its places): layer by layer, module by module, A before B;
    B transposed, [r, out], with its rows in the GGUF file's order."""
    for layer in range(config.num_hidden_layers):
        for module in projections(family):
            for side in "AB":
                part = f".layers.{layer}.", f".{module}.lora_{side}."
                name = next(n for n in parameters if all(p in n for p in part))
                places = np.arange(parameters[name].numel()).reshape(parameters[name].shape)
                if side == "B":
                    if family == "llama" and (heads := heads_of(config, name)):
                        places = interleave_halves(places, heads)
                    places = places.T
                yield name, places.reshape(-1)


def direction(order, seed, sample):
    """z for each factor in the checkpoint's order."""
    z, at, found = normals(seed, sample, sum(len(places) for _, places in order)), 0, {}
    for name, places in order:
        part = np.empty(len(places))
        part[places] = z[at : at + len(places)]
        found[name], at = torch.from_numpy(part), at + len(places)
    return found


class Layers:
    """The layers of a model, of which some are the identity for the backward: out = h + detach(F(h) - h)."""

    def __init__(self, model):
        self.passed_by = set()
        self.count = 0
        for name, module in model.named_modules():
            if name.split(".")[-2:-1] == ["layers"]:
                module.register_forward_hook(self.hook(int(name.split(".")[-1])))
                self.count += 1

    def hook(self, layer):
        def bypass(_, inputs, output):
            assert isinstance(output, torch.Tensor)
            h = inputs[0]
            return output.detach() + (h - h.detach()) if layer in self.passed_by else output

        return bypass


def lcsb(path, batches, taken, weight_decay):
    """Losses before each step, K layers a step in turn, and the adapter at the end."""
    model = with_adapter(load_model(path, torch.float64)[1], torch.float64)
    layers, parameters = Layers(model), adapter_parameters(model)
    optimizer = torch.optim.AdamW(parameters.values(), weight_decay=weight_decay, **ADAMW)
    losses = []
    for step in range(STEPS):
        walked = {(step * taken + i) % layers.count for i in range(taken)}
        layers.passed_by = set(range(layers.count)) - walked
        model.zero_grad()
        loss = batch_loss(model, batches[step % len(batches)])
        loss.backward()
        losses.append(loss.item())
        for name, parameter in parameters.items():
            is_walked = int(name.split(".layers.")[1].split(".")[0]) in walked
            # As what is passed by is the identity, nothing reaches its factors.
            assert is_walked == (parameter.grad is not None and bool(parameter.grad.any()))
            if not is_walked:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    return losses, parameters, {}


def mezo(path, batches, samples, weight_decay, family, eps, lr, seed):
    """Losses, projected gradients, and the adapter at the end."""
    _, model = load_model(path, torch.float64)
    config = model.config
    model = with_adapter(model, torch.float64)
    parameters = adapter_parameters(model)
    order = list(flat_order(family, config, parameters))
    losses, gradients = [], []
    for step in range(STEPS):
        batch, steps = batches[step % len(batches)], []
        losses.append(0.0)
        for sample in range(samples):
            z, pair = direction(order, seed, step * samples + sample), []
            for move in (eps, -2 * eps, eps):  # there, to the other side, and back
                for name, parameter in parameters.items():
                    parameter += move * z[name].reshape(parameter.shape)
                pair.append(batch_loss(model, batch).item())
            losses[-1] += (pair[0] + pair[1]) / (2 * samples)
            gradients.append((pair[0] - pair[1]) / (2 * eps))
            steps.append((gradients[-1], z))
        for name, parameter in parameters.items():
            mean = sum(g * z[name] for g, z in steps) / samples
            parameter -= lr * (mean.reshape(parameter.shape) + weight_decay * parameter)
    return losses, parameters, {"projected_gradients": gradients}


def sampled(parameters):
    return {name: p.detach().numpy().reshape(-1)[::STRIDE].astype(np.float32) for name, p in parameters.items()}


def make_family(family, config, tensors):
    path = FOLDER / f"{family}.gguf"
    batches = json.loads((FOLDER / f"{family}.json").read_text())["batches"]
    report = {}

    def add(key, settings, losses, parameters, more):
        report[key] = settings | {"losses": losses} | more
        tensors.update({f"{family}.{key}.{name}": value for name, value in sampled(parameters).items()})
        print(family, key, *(f"{loss:.5f}" for loss in losses))

    with arithmetic(torch.float64):
        for key, settings in LCSB.items():
            taken, weight_decay = settings["layers"](config.num_hidden_layers), settings["weight_decay"]
            written = ADAMW | {"layers_per_step": taken, "weight_decay": weight_decay}
            add(key, written, *lcsb(path, batches, taken, weight_decay))
        with torch.no_grad():
            for key, settings in MEZO.items():
                add(key, MEZO_SHARED | settings, *mezo(path, batches, family=family, **MEZO_SHARED, **settings))
    return report


def main():
    torch.set_num_threads(1)
    check_philox()
    tensors = {}
    report = {family: make_family(family, config, tensors) for family, config in CONFIGS.items()}
    write_golden("methods", report, tensors)


if __name__ == "__main__":
    main()
