"""GGUF files of the golden models, for golden.py: by the `gguf` package alone.

The package's own map from Hugging Face's tensor names, its writer and its quantiser, so that nothing of what the engine knows about
GGUF is used to test it. What files of a family hold beyond that (permuted rows of q and k, norms with the one added,
divisors of rope frequencies) is written out here from the format's conventions.

Pinned: gguf 0.19.0.
"""
import math

import gguf
import numpy as np
import torch

# The permutation that interleaved rope needs, and norms that files of these families store less one.
PERMUTED = {"llama", "mistral3", "smollm3", "granite"}
LESS_ONE = {"gemma", "gemma2", "gemma3"}
TYPES = {"f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}


def arch_of(config):
    """Mistral's files go by Llama's name, or by mistral3 where the rope is scaled by YaRN."""
    if config.model_type == "mistral":
        return "mistral3" if config.rope_parameters["rope_type"] == "yarn" else "llama"
    return {"gemma3_text": "gemma3"}.get(config.model_type, config.model_type)


def permuted(w, heads):
    """Rows of a head from halves to turns."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)


def divisors(rope, dims):
    """Tensors that divide rope frequencies, and the magnitude that goes with them."""
    if rope["rope_type"] == "llama3":
        frequencies = rope["rope_theta"] ** -(np.arange(0, dims, 2, dtype=np.float64) / dims)
        waves = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        kept = np.clip((waves - low) / (high - low), 0, 1)
        return {"rope_freqs.weight": 1 / ((1 - kept) / rope["factor"] + kept)}
    if rope["rope_type"] == "longrope":
        return {f"rope_factors_{n}.weight": rope[f"{n}_factor"] for n in ("long", "short")}
    return {}


def add_metadata(w, c):
    """What the keys of the format say about a config of transformers v5."""
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    rope = c.rope_parameters.get("full_attention", c.rope_parameters)
    dims = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_vocab_size(c.vocab_size)
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    w.add_rope_dimension_count(dims)
    w.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(rope["factor"])
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        scale = c.max_position_embeddings / original
        w.add_rope_scaling_orig_ctx_len(original)
        w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
    optional = {
        "sliding_window": w.add_sliding_window,
        "attn_logit_softcapping": w.add_attn_logit_softcapping,
        "final_logit_softcapping": w.add_final_logit_softcapping,
        "embedding_multiplier": w.add_embedding_scale,
        "attention_multiplier": w.add_attention_scale,
        "residual_multiplier": w.add_residual_scale,
        "logits_scaling": w.add_logit_scale,
    }
    for name, add in optional.items():
        value = getattr(c, name, None)
        if value is not None:
            add(value)
    w.add_tokenizer_model("no_vocab")
    return divisors(rope, dims)


def write(path, config, tensors):
    """Writes tensors (by their Hugging Face names) as the type that `path` is named after; returns what they are worth there."""
    kind = TYPES[path.stem]
    arch = arch_of(config)
    names = gguf.get_tensor_name_map(
        {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch], config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, arch)
    extra = add_metadata(writer, config)
    worth = {}
    for name, tensor in tensors.items():
        data = tensor.float().numpy()
        stored = data
        if arch in LESS_ONE and name.endswith("norm.weight"):
            stored = data + np.float32(1)
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if arch in PERMUTED and f".{part}." in name:
                stored = permuted(data, heads)
        to = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert to is not None, name
        if data.ndim == 1:
            writer.add_tensor(to, stored)
            worth[name] = tensor.float()
            continue
        packed = gguf.quantize(np.ascontiguousarray(stored), kind)
        writer.add_tensor(to, packed, raw_dtype=kind)
        worth[name] = torch.from_numpy(gguf.dequantize(gguf.quantize(data, kind), kind))
    for name, values in extra.items():
        writer.add_tensor(name, np.array(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return worth
