"""GGUF files on one side, transformers' models on the other: names, metadata, row orders, quantised values.

The families are `llama`, `qwen2`, `gemma3` and `opt`, which llama.cpp does not have: its files are of a layout of our
own, keys and names as GGUF has them for others. A GGUF file differs from a checkpoint in three ways:
- tensor names (`blk.0.attn_q.weight` for `model.layers.0.self_attn.q_proj.weight`);
- llama: within each head the rows of q and k are interleaved, (x0, x_half, x1, x_half+1, ...), because GGUF's
  rotary embedding turns neighbours where a checkpoint's turns halves;
- gemma3: every norm weight is stored as 1 + w.
"""

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.initialization import no_init_weights

MODELS = {
    "llama": LlamaForCausalLM,
    "qwen2": Qwen2ForCausalLM,
    "gemma3": Gemma3ForCausalLM,
    "opt": OPTForCausalLM,
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OPT_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
LOCAL_ROPE_BASE = 10000.0  # gemma3's local layers; the file gives the global layers' base
LOCAL_PERIOD = 6  # gemma3: every sixth layer is global

GLOBAL_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Gemma 3 norms the outputs of attention and MLP too, and so names the norm before the MLP otherwise.
GEMMA3_BLOCK_NAMES = BLOCK_NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


OPT_GLOBAL_NAMES = {
    "model.decoder.embed_tokens.weight": "token_embd.weight",
    "model.decoder.embed_positions.weight": "position_embd.weight",
    "model.decoder.final_layer_norm.weight": "output_norm.weight",
    "model.decoder.final_layer_norm.bias": "output_norm.bias",
}
OPT_BLOCK_NAMES = {
    "self_attn_layer_norm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_output",
    "final_layer_norm": "ffn_norm",
    "fc1": "ffn_up",
    "fc2": "ffn_down",
}


def projections(family):
    """The projections of a layer, in its order."""
    return OPT_PROJECTIONS if family == "opt" else PROJECTIONS


def gguf_name(family, name):
    """GGUF's name of a checkpoint's tensor."""
    if family == "opt" and name != "lm_head.weight":
        if name in OPT_GLOBAL_NAMES:
            return OPT_GLOBAL_NAMES[name]
        layer, rest = name.removeprefix("model.decoder.layers.").split(".", 1)
        module, kind = rest.rsplit(".", 1)
        return f"blk.{layer}.{OPT_BLOCK_NAMES[module]}.{kind}"
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    names = GEMMA3_BLOCK_NAMES if family == "gemma3" else BLOCK_NAMES
    return f"blk.{layer}.{names[module]}.{kind}"


def interleave_halves(rows, heads):
    """Checkpoint's order of q or k rows -> GGUF's (llama)."""
    shape = rows.shape
    return rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def split_halves(rows, heads):
    """GGUF's order of q or k rows -> checkpoint's (llama)."""
    shape = rows.shape
    return rows.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def heads_of(config, name):
    """Number of heads in a q or k projection's rows, or None for any other tensor."""
    if ".q_proj." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in name else None


def to_gguf(family, config, name, value):
    """A checkpoint's array as GGUF holds it, before quantisation."""
    if family == "llama" and (heads := heads_of(config, name)):
        return interleave_halves(value, heads)
    return value + 1 if family == "gemma3" and "norm" in name else value


def from_gguf(family, config, name, value):
    """Inverse of `to_gguf`."""
    if family == "llama" and (heads := heads_of(config, name)):
        return split_halves(value, heads)
    return value - 1 if family == "gemma3" and "norm" in name else value


def read_config(reader):
    """(family, transformers' configuration) from a GGUF file's metadata."""

    def field(key, default=None):
        found = reader.get_field(key)
        return found.contents() if found else default

    family = field("general.architecture")
    tensors = {t.name: t for t in reader.tensors}
    heads = field(f"{family}.attention.head_count")
    width = field(f"{family}.embedding_length")
    if family == "opt":
        return family, OPTConfig(
            vocab_size=int(tensors["token_embd.weight"].shape[1]),
            hidden_size=width,
            word_embed_proj_dim=width,
            ffn_dim=field("opt.feed_forward_length"),
            num_hidden_layers=field("opt.block_count"),
            num_attention_heads=heads,
            max_position_embeddings=field("opt.context_length"),
            tie_word_embeddings="output.weight" not in tensors,
            dropout=0.0,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
    base = field(f"{family}.rope.freq_base", 10000.0)
    shared = {
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "hidden_size": width,
        "intermediate_size": field(f"{family}.feed_forward_length"),
        "num_hidden_layers": field(f"{family}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field(f"{family}.attention.head_count_kv", heads),
        "max_position_embeddings": field(f"{family}.context_length"),
        "rms_norm_eps": field(f"{family}.attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "pad_token_id": None,
    }
    head_dim = field(f"{family}.attention.key_length", width // heads)
    rope = {"rope_type": "default", "rope_theta": base}
    if family == "llama":
        return family, LlamaConfig(**shared, head_dim=head_dim, rope_parameters=rope)
    if family == "qwen2":
        return family, Qwen2Config(**shared, rope_parameters=rope)
    if family == "gemma3":
        layers = range(shared["num_hidden_layers"])
        return family, Gemma3TextConfig(
            **shared,
            head_dim=head_dim,
            query_pre_attn_scalar=head_dim,
            sliding_window=field("gemma3.attention.sliding_window"),
            layer_types=["sliding_attention" if (n + 1) % LOCAL_PERIOD else "full_attention" for n in layers],
            rope_parameters={
                "full_attention": rope,
                "sliding_attention": {"rope_type": "default", "rope_theta": LOCAL_ROPE_BASE},
            },
        )
    raise ValueError(f"unknown architecture {family!r}")


def build_model(family, config, dtype):
    """A model whose parameters hold nothing yet; its buffers (rotary frequencies, embedding scale) are in `dtype`."""
    config._attn_implementation = "eager"
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights():
            return MODELS[family](config).eval()
    finally:
        torch.set_default_dtype(default)


def load_model(path, dtype=torch.float32):
    """(family, model): transformers' model with the file's dequantised weights, eager attention, evaluation mode."""
    reader = gguf.GGUFReader(path)
    family, config = read_config(reader)
    tensors = {t.name: t for t in reader.tensors}
    model = build_model(family, config, dtype)
    state = {}
    for name, parameter in model.state_dict().items():
        stored = gguf_name(family, name)
        if name == "lm_head.weight" and stored not in tensors:
            continue
        value = gguf.quants.dequantize(tensors[stored].data, tensors[stored].tensor_type)
        value = from_gguf(family, config, name, value).reshape(tuple(parameter.shape))
        state[name] = torch.tensor(value, dtype=dtype)
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"tensors do not match: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return family, model.requires_grad_(False)


def write_metadata(writer, family, config, name, licence):
    """The keys that llama.cpp's converter writes for these families, in its order; for opt those that it would."""
    heads = config.num_attention_heads
    writer.add_type("model")
    writer.add_name(name)
    writer.add_license(licence)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    if family == "opt":
        writer.add_feed_forward_length(config.ffn_dim)
        writer.add_head_count(heads)
        writer.add_layer_norm_eps(1e-5)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    if family == "gemma3":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    else:
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if family == "llama":
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head_dim)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def write_tensors(writer, family, config, state, type_of):
    """state: checkpoint name -> float array. type_of(GGUF name) -> the type of a matrix; vectors stay F32."""
    for name, value in state.items():
        stored = gguf_name(family, name)
        value = to_gguf(family, config, name, np.asarray(value, dtype=np.float64)).astype(np.float32)
        kind = type_of(stored) if value.ndim == 2 else Type.F32
        data = value if kind == Type.F32 else gguf.quants.quantize(value, kind)
        writer.add_tensor(stored, np.ascontiguousarray(data), raw_dtype=kind)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
