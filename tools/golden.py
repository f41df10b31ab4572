#!/usr/bin/env python3
"""Make the tiny random models and golden logits that the engine's tests compare against.

Purpose: the reference is the original framework (Hugging Face transformers on PyTorch, CPU,
float32, eager attention), never this project's own code. The weights are random but lively:
attention is far from uniform and the logits spread over several units, so that a wrong rotary
base, window, scale, bias or head mapping shows up far above rounding.

Run it on a machine with PyTorch and transformers (it needs no GPU and no network):
    python3 tools/golden.py OUTDIR [CASE...]

It writes, for each case, OUTDIR/<case>/ with config.json, model.safetensors (or shards with
model.safetensors.index.json), generation_config.json if the framework writes one, for most cases
f16.gguf and q8_0.gguf (see golden_gguf.py), and golden.safetensors:

- `tokens` int32 [T], `logits` float32 [T, vocab]: of the stored weights, which f16.gguf holds, too;
- `logits_q8_0`: of what the weights are worth in q8_0.gguf;
- `logits_short` [N, vocab], N < T: of the first tokens alone, where the length of a text matters (LongRoPE).

Its metadata names the versions, case, dtypes and attention implementation, and says how large rounding is, as largest differences of
logits: `max_abs_diff_f64` to a run whose every step is in float64 (the scale of float32 rounding); `max_abs_diff_int8` between
logits_q8_0 and a run that rounds the inputs of all products to int8 in blocks of 32, as the engine's steps do; `max_abs_diff_transposed`
between logits_q8_0 and a run whose down projections are rounded once more to Q8_0, along the other side.
A case directory that exists already or is over 1,000,000 bytes a file is an error.

Pinned: torch 2.11.0, transformers 5.17.0, safetensors 0.8.0, gguf 0.19.0 (run with these on Python 3.11).
Other versions only warn. On one machine transformers 4.51.3 and 4.57.1 gave the same weights
and logits bit for bit, with v4's names in config.json, and two runs differed only in the order of
golden.safetensors' metadata; on another processor the logits' last bits may differ.
"""
import contextlib
import copy
import os
import platform
import sys
import zlib
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # set before the import: nothing here comes from a hub

import safetensors
import torch
import transformers
from safetensors.torch import load_file, save_file

import golden_gguf

PINNED = {"torch": "2.11.0", "transformers": "5.17.0", "safetensors": "0.8.0", "gguf": "0.19.0"}
VERSIONS = {m.__name__: m.__version__ for m in (torch, transformers, safetensors)}
VERSIONS["gguf"] = version("gguf")
MAX_BYTES = 1_000_000
# v5, and the last v4 releases, call it `dtype`; before that it was `torch_dtype`.
TF_VERSION = tuple(int(n) for n in transformers.__version__.split(".")[:2])
DTYPE_ARG = "dtype" if TF_VERSION >= (4, 56) else "torch_dtype"

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
DEFAULTS = dict(rms_norm_eps=1e-6, max_position_embeddings=256, num_hidden_layers=3, tie_word_embeddings=False,
                pad_token_id=None, bos_token_id=1, eos_token_id=2)


def case(kind, length, stored=BF16, shard="1GB", gguf=True, short=None, **config):
    """A model of `kind`ForCausalLM and a text of `length` tokens; `short` tokens are computed alone, too."""
    return dict(kind=kind, length=length, stored=stored, shard=shard, gguf=gguf, short=short,
                config={**DEFAULTS, **config})


def sizes(hidden, inter, heads, kv_heads, vocab, head_dim=None):
    given = dict(hidden_size=hidden, intermediate_size=inter, num_attention_heads=heads,
                 num_key_value_heads=kv_heads, vocab_size=vocab)
    return given if head_dim is None else {**given, "head_dim": head_dim}


def rope(kind, theta=10000.0, **others):
    return dict(rope_type=kind, rope_theta=theta, **others)


# Windows are a few positions, so that texts cross them several times.
CASES = {
    "llama": case("Llama", 32, **sizes(64, 64, 4, 1, 131, 24), rope_theta=100000.0, rms_norm_eps=1e-5,
                  tie_word_embeddings=True),
    "llama_untied": case("Llama", 28, stored=F16, gguf=False, **sizes(72, 100, 3, 1, 101, 24)),
    # Waves of all three kinds: kept, stretched, in between. All biases.
    "llama3": case("Llama", 40, **sizes(64, 64, 4, 2, 97, 24), num_hidden_layers=2, attention_bias=True, mlp_bias=True,
                   rope_parameters=rope("llama3", 500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                        original_max_position_embeddings=64)),
    "mistral": case("Mistral", 30, **sizes(64, 64, 4, 2, 99, 24), sliding_window=7),
    "mistral_yarn": case("Mistral", 40, **sizes(64, 64, 4, 1, 77, 16), num_hidden_layers=2, sliding_window=None,
                         rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "qwen2": case("Qwen2", 24, stored=F32, gguf=False, **sizes(64, 88, 4, 2, 97), num_hidden_layers=2, rope_theta=1e6),
    "qwen2_tied": case("Qwen2", 38, shard="60KB", **sizes(64, 96, 8, 2, 113), num_hidden_layers=2, rope_theta=1e6,
                       tie_word_embeddings=True),
    "qwen2_window": case("Qwen2", 30, gguf=False, **sizes(48, 70, 3, 1, 83), rope_theta=1e6, use_sliding_window=True,
                         sliding_window=6, max_window_layers=1),
    "qwen3": case("Qwen3", 32, **sizes(64, 64, 4, 2, 103, 24), rope_theta=1e6),
    "gemma": case("Gemma", 32, **sizes(64, 64, 2, 1, 150, 48), tie_word_embeddings=True),
    "gemma2": case("Gemma2", 40, **sizes(64, 64, 4, 2, 139, 24), query_pre_attn_scalar=24, sliding_window=8,
                   attn_logit_softcapping=4.0, final_logit_softcapping=6.0, tie_word_embeddings=True),
    "gemma2_scaled": case("Gemma2", 24, gguf=False, **sizes(56, 76, 2, 1, 89, 36), query_pre_attn_scalar=20, sliding_window=5,
                          attn_logit_softcapping=9.0, final_logit_softcapping=None, tie_word_embeddings=True),
    # Seven layers, so that the sixth is global.
    "gemma3": case("Gemma3", 40, **sizes(32, 64, 4, 1, 150, 24), num_hidden_layers=7, query_pre_attn_scalar=24, sliding_window=8,
                   attn_logit_softcapping=None, final_logit_softcapping=None, tie_word_embeddings=True,
                   rope_parameters=dict(full_attention=rope("linear", 1e6, factor=8.0), sliding_attention=rope("default"))),
    # Nine pairs of a head of 24 are rotated.
    "phi3": case("Phi3", 40, short=24, **sizes(96, 64, 4, 2, 107), num_hidden_layers=2, original_max_position_embeddings=24,
                 rope_parameters=rope("longrope", partial_rotary_factor=0.75,
                                      short_factor=[1.0 + 0.05 * i for i in range(9)],
                                      long_factor=[1.0 + 0.9 * i for i in range(9)])),
    "phi3_window": case("Phi3", 30, gguf=False, **sizes(56, 76, 4, 2, 91), sliding_window=7),
    # The fourth layer does not know positions.
    "smollm3": case("SmolLM3", 32, **sizes(32, 64, 2, 1, 121), num_hidden_layers=5, rope_theta=50000.0, tie_word_embeddings=True),
    "olmo2": case("Olmo2", 32, **sizes(64, 64, 4, 2, 98), rope_theta=500000.0),
    "granite": case("Granite", 32, **sizes(64, 64, 4, 2, 109), embedding_multiplier=6.0, attention_multiplier=0.3,
                    residual_multiplier=0.4, logits_scaling=3.0, tie_word_embeddings=True),
}


def check(ok, message):
    if not ok:
        sys.exit(f"golden.py: FAILED: {message}")


def check_config(case, config, args):
    """The loaded config must say what was asked for, wherever this version keeps it."""
    rope = config.rope_parameters
    for key, want in args.items():
        if key == "rope_theta":
            got = rope[key]
        elif key == "rope_parameters":
            # Versions add defaults of their own.
            got = {k: {**rope[k], **v} if isinstance(v, dict) else v for k, v in want.items()}
            want, got = {**rope, **got}, rope
        else:
            got = getattr(config, key)
        check(got == want, f"{case}: {key} is {got}, not {want}")
    if case == "gemma3":
        check([k == "full_attention" for k in config.layer_types] == [i == 5 for i in range(7)],
              f"{case}: the sixth layer is not global")


def redraw(model, case):
    """Lively weights, each seeded by case and name, so that their order does not matter."""
    for name, p in model.named_parameters():  # a tied head is not listed twice
        g = torch.Generator().manual_seed(zlib.crc32(f"{case}/{name}".encode()))
        x = torch.randn(p.shape, generator=g, dtype=torch.float32)
        if name.endswith("bias"):
            x *= 0.3
        elif p.dim() == 1:  # norms: Gemma multiplies by 1 + w
            x = 0.2 * x if "gemma" in case else 1 + 0.2 * x
            if case in ("qwen3", "olmo2") and ("q_norm" in name or "k_norm" in name):
                x *= 1.6
        elif "embed_tokens" in name:
            x *= {"gemma": 0.1, "grani": 0.15}.get(case[:5], 1.0)
        else:
            x *= p.shape[1] ** -0.5
        # What f16 could not hold to the last bit of bf16.
        x[x.abs() < 2.0 ** -15] = 0
        p.data.copy_(x)


@contextlib.contextmanager
def float32_means_float64():
    """The models' code forces norms, softmax and rotary angles to float32, in float64 runs too.
    While this holds, those casts give float64, so that the reference is float64 throughout."""
    saved = torch.float32, torch.float, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = saved


def logits_f64(model, tokens):
    model = copy.deepcopy(model).double()
    with float32_means_float64():
        old = model.model.rotary_emb
        model.model.rotary_emb = type(old)(old.config)
        return model(input_ids=tokens[None], use_cache=False).logits[0]


def in_blocks(x):
    """Activations as the engine's steps round them where weights are quantised."""
    blocks = x.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    levels = torch.where(scale > 0, blocks / scale, 0).round()
    return (levels * scale).flatten(-2)


def logits_int8(model, tokens):
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    hooks = [m.register_forward_pre_hook(lambda _, x: (in_blocks(x[0]),)) for m in linears]
    logits = model(input_ids=tokens[None], use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    return logits


def quantised(model, tokens, out, stored):
    """Writes the GGUF files; logits of the quantised one, and how large rounding is there."""
    for name, worth in golden_gguf.write(out / "f16.gguf", model.config, stored).items():
        check(torch.equal(worth, stored[name].float()), f"{name}: f16 is not exact")
    worth = golden_gguf.write(out / "q8_0.gguf", model.config, stored)
    model = copy.deepcopy(model)
    model.load_state_dict(worth, strict=False)
    logits = model(input_ids=tokens[None], use_cache=False).logits[0]
    diffs = {"max_abs_diff_int8": logits_int8(model, tokens)}
    for name, p in model.named_parameters():
        if "down_proj.weight" in name:
            again = golden_gguf.gguf.GGMLQuantizationType.Q8_0
            packed = golden_gguf.gguf.quantize(p.data.T.contiguous().numpy(), again)
            p.data.copy_(torch.from_numpy(golden_gguf.gguf.dequantize(packed, again)).T)
    diffs["max_abs_diff_transposed"] = model(input_ids=tokens[None], use_cache=False).logits[0]
    diffs = {name: (logits - other).abs().max().item() for name, other in diffs.items()}
    scale = logits.abs().max().item()
    check(all(0 < diff < 0.1 * scale for diff in diffs.values()), f"int8 differs by {diffs} of {scale}")
    return logits.contiguous(), diffs


def make(case, out):
    of = CASES[case]
    args, dtype, length = of["config"], of["stored"], of["length"]
    out.mkdir(parents=True)  # an error if it exists: stale shards must not survive
    model_class = getattr(transformers, f"{of['kind']}ForCausalLM")
    config_class = getattr(transformers, "Gemma3TextConfig" if of["kind"] == "Gemma3" else f"{of['kind']}Config")
    model = model_class(config_class(**copy.deepcopy(args)))
    redraw(model, case)
    model.to(dtype).save_pretrained(out, max_shard_size=of["shard"])

    stored = {n: t for path in out.glob("*.safetensors") for n, t in load_file(path).items()}
    check(all(t.dtype == dtype for t in stored.values()), f"{case}: not all stored as {dtype}")
    check(("lm_head.weight" in stored) != args["tie_word_embeddings"], f"{case}: lm_head")
    biases = [t.float().std() > 0.1 for n, t in stored.items() if n.endswith("bias")]
    per_layer = 3 * ("qwen2" in case) + 4 * args.get("attention_bias", 0) + 3 * args.get("mlp_bias", 0)
    check(all(biases) and len(biases) == per_layer * args["num_hidden_layers"], f"{case}: biases")
    shards = len(list(out.glob("model*.safetensors")))
    is_sharded = of["shard"] != "1GB"
    check((shards >= 2) == (out / "model.safetensors.index.json").exists() == is_sharded, f"{case}: {shards} shards")

    # From the files, so that the rounding of the stored dtype is in the weights.
    model = model_class.from_pretrained(
        out, attn_implementation="eager", **{DTYPE_ARG: torch.float32}).eval()
    check(all(p.dtype == torch.float32 for p in model.parameters()), f"{case}: not float32")
    check_config(case, model.config, args)
    g = torch.Generator().manual_seed(zlib.crc32(f"{case}/tokens".encode()))
    tokens = torch.randint(0, args["vocab_size"], (length,), generator=g)
    tensors, diffs = {"tokens": tokens.to(torch.int32)}, {}
    with torch.no_grad():
        run = model(input_ids=tokens[None], use_cache=False, output_attentions=True)
        logits = tensors["logits"] = run.logits[0].contiguous()
        exact = logits_f64(model, tokens)
        if of["gguf"]:
            tensors["logits_q8_0"], diffs = quantised(model, tokens, out, stored)
        if of["short"]:
            short = model(input_ids=tokens[None, :of["short"]], use_cache=False).logits[0]
            check((short - logits[:of["short"]]).abs().max() > 0.05, f"{case}: the length does not matter")
            tensors["logits_short"] = short.contiguous()
    check(exact.dtype == torch.float64, f"{case}: the float64 run gave {exact.dtype}")
    diff, scale = (exact - logits.double()).abs().max().item(), logits.abs().max().item()
    # The mean largest attention weight from position 8 on; uniform would give at most 0.125.
    peak = torch.stack(run.attentions)[..., 8:, :].amax(-1).mean().item()
    spread = (logits.amax(-1) - logits.amin(-1)).mean().item()
    check(diff <= 1e-4 * scale, f"{case}: float32 and float64 differ by {diff} of {scale}")
    check(peak > 0.2 and spread > 3, f"{case}: dull: peak {peak}, spread {spread}")
    save_file(tensors, out / "golden.safetensors", {
        "case": case, "dtype": str(dtype)[6:], "compute_dtype": "float32",
        "attn_implementation": model.config._attn_implementation,
        "max_abs_diff_f64": repr(diff), "max_abs_logit": repr(scale),
        **{name: repr(value) for name, value in diffs.items()}, **VERSIONS})

    sizes = {p.name: p.stat().st_size for p in sorted(out.iterdir())}
    print(f"\n== {case}\n{(out / 'config.json').read_text()}")
    print(f"T {length}, logit std {logits.std():.3f}, spread {spread:.2f}, largest {scale:.2f}, "
          f"attention peak {peak:.3f}, float64 differs by {diff:.2e}, others by {diffs}")
    print(f"total {sum(sizes.values())} bytes: {sizes}")
    check(max(sizes.values()) <= MAX_BYTES, f"{case}: over {MAX_BYTES} bytes")


def main():
    check(len(sys.argv) >= 2, "usage: python3 tools/golden.py OUTDIR [CASE...]")
    print("python", platform.python_version(), VERSIONS)
    for name, want in PINNED.items():
        if VERSIONS[name].split("+")[0] != want:
            print(f"WARNING: {name} is {VERSIONS[name]}, pinned is {want}", file=sys.stderr)
    torch.set_num_threads(1)  # one order of summation
    torch.use_deterministic_algorithms(True)
    for case in sys.argv[2:] or CASES:
        make(case, Path(sys.argv[1]) / case)
    print("\nall cases written")


if __name__ == "__main__":
    main()
