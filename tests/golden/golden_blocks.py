"""Random blocks of every GGUF type that Smidgen reads, with the values that the `gguf` package gives them."""

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

BLOCKS = 64
# Byte offsets of the float16 scales (and minima) within one block.
SCALES = {
    Type.Q8_0: [0],
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
}


def random_halves(generator, count):
    """Moderate float16 numbers of both signs; the first three are 0, -0 and a subnormal."""
    halves = (0.05 * generator.standard_normal(count)).astype(np.float16)
    halves[:3] = [0.0, -0.0, 3e-6]
    return halves


def random_blocks(kind, generator):
    """[BLOCKS, bytes of a block] uint8; the plain types take rows of 32 numbers for a block."""
    if kind == Type.F32:
        return (3 * generator.standard_normal((BLOCKS, 32))).astype(np.float32).view(np.uint8)
    if kind == Type.F16:
        return random_halves(generator, BLOCKS * 32).reshape(BLOCKS, 32).view(np.uint8)
    if kind == Type.BF16:
        values = (3 * generator.standard_normal((BLOCKS, 32))).astype(np.float32)
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    raw = generator.integers(0, 256, (BLOCKS, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for offset in SCALES[kind]:
        raw[:, offset : offset + 2] = random_halves(generator, BLOCKS).view(np.uint8).reshape(BLOCKS, 2)
    return raw


def write_blocks(path, seed):
    """`{type}.raw` uint8 [64, bytes of a block] and `{type}.values` float32 [64, numbers of a block]."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for kind in [Type.F32, Type.F16, Type.BF16, *SCALES]:
        raw = np.ascontiguousarray(random_blocks(kind, generator))
        data = raw.view({Type.F32: np.float32, Type.F16: np.float16}.get(kind, np.uint8))
        values = gguf.quants.dequantize(data, kind)
        assert np.isfinite(values).all()
        tensors[f"{kind.name}.raw"] = raw
        tensors[f"{kind.name}.values"] = np.ascontiguousarray(values, dtype=np.float32)
    save_file(tensors, path)
