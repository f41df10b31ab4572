#!/usr/bin/env python3
"""Make the tiny random models and golden logits that the engine's tests compare against.

Purpose: the reference is the original framework (Hugging Face transformers on PyTorch, CPU,
float32, eager attention), never this project's own code. The weights are random but lively:
attention is far from uniform and the logits spread over several units, so that a wrong rotary
base, window, scale, bias or head mapping shows up far above rounding.

Run it on a machine with PyTorch and transformers (it needs no GPU and no network):
    python3 tools/golden.py OUTDIR

It writes, for each case, OUTDIR/<case>/ with config.json, model.safetensors (or shards with
model.safetensors.index.json), generation_config.json if the framework writes one, and
golden.safetensors: `tokens` int32 [T] and `logits` float32 [T, vocab]. Its metadata names the
versions, case, dtypes and attention implementation, and holds `max_abs_diff_f64`: the largest
difference between these logits and a run whose every step is in float64, that is, the scale of
float32 rounding. A case directory that exists already or is over 1,000,000 bytes is an error.

Pinned: torch 2.11.0, transformers 5.17.0, safetensors 0.8.0 (run with these on Python 3.11).
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
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # set before the import: nothing here comes from a hub

import safetensors
import torch
import transformers
from safetensors.torch import load_file, save_file

PINNED = {"torch": "2.11.0", "transformers": "5.17.0", "safetensors": "0.8.0"}
VERSIONS = {m.__name__: m.__version__ for m in (torch, transformers, safetensors)}
MAX_BYTES = 1_000_000
# v5, and the last v4 releases, call it `dtype`; before that it was `torch_dtype`.
TF_VERSION = tuple(int(n) for n in transformers.__version__.split(".")[:2])
DTYPE_ARG = "dtype" if TF_VERSION >= (4, 56) else "torch_dtype"

# name: (config class, model class, stored dtype, T, max_shard_size, config arguments).
# rope_theta and rope_local_base_freq are passed by their v4 names: v5 moves them to
# rope_parameters by itself, and check_config() makes sure that they arrived.
DEFAULTS = dict(rms_norm_eps=1e-6, max_position_embeddings=256)
CASES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", torch.bfloat16, 32, "1GB", dict(
        hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=1, head_dim=32, vocab_size=131, rope_theta=100000.0,
        rms_norm_eps=1e-5, tie_word_embeddings=True)),
    "llama_untied": ("LlamaConfig", "LlamaForCausalLM", torch.float16, 28, "1GB", dict(
        hidden_size=72, intermediate_size=100, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=1, head_dim=24, vocab_size=101, rope_theta=10000.0,
        tie_word_embeddings=False, attention_bias=False)),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", torch.float32, 24, "1GB", dict(
        hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=97, rope_theta=1e6, tie_word_embeddings=False)),
    "qwen2_tied": ("Qwen2Config", "Qwen2ForCausalLM", torch.bfloat16, 36, "120KB", dict(
        hidden_size=96, intermediate_size=128, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, vocab_size=113, rope_theta=1e6, tie_word_embeddings=True)),
    # Seven layers, so that the sixth is global; T crosses the window of 8 several times.
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", torch.bfloat16, 40, "1GB", dict(
        hidden_size=80, intermediate_size=56, num_hidden_layers=7, num_attention_heads=4,
        num_key_value_heads=1, head_dim=48, vocab_size=150, rope_theta=1e6,
        rope_local_base_freq=10000.0, query_pre_attn_scalar=32, sliding_window=8,
        attn_logit_softcapping=None, final_logit_softcapping=None, tie_word_embeddings=True)),
}


def check(ok, message):
    if not ok:
        sys.exit(f"golden.py: FAILED: {message}")


def check_config(case, config, args):
    """The loaded config must say what was asked for, wherever this version keeps it."""
    rope = getattr(config, "rope_parameters", None)  # v5
    for key, want in args.items():
        if key == "rope_theta" and rope is not None:
            got = rope.get("full_attention", rope)["rope_theta"]
        elif key == "rope_local_base_freq" and rope is not None:
            got = rope["sliding_attention"]["rope_theta"]
        else:
            got = getattr(config, key)
        check(got == want, f"{case}: {key} is {got}, not {want}")
    if case == "gemma3":
        kinds = getattr(config, "layer_types", None)  # else an early v4, with the pattern
        check([k == "full_attention" for k in kinds] == [i == 5 for i in range(7)] if kinds
              else config.sliding_window_pattern == 6, f"{case}: the sixth layer is not global")


def redraw(model, case):
    """Lively weights, each seeded by case and name, so that their order does not matter."""
    for name, p in model.named_parameters():  # a tied head is not listed twice
        g = torch.Generator().manual_seed(zlib.crc32(f"{case}/{name}".encode()))
        x = torch.randn(p.shape, generator=g, dtype=torch.float32)
        if name.endswith("bias"):
            x *= 0.3
        elif p.dim() == 1:  # norms: Gemma multiplies by 1 + w
            x = 0.2 * x if case == "gemma3" else 1 + 0.2 * x
        elif "embed_tokens" in name:
            x *= 0.1 if case == "gemma3" else 1.0
        else:
            x *= p.shape[1] ** -0.5
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
        for name in ("rotary_emb", "rotary_emb_local"):  # v4's Gemma has two
            old = getattr(model.model, name, None)
            if old:
                setattr(model.model, name, type(old)(old.config))
        return model(input_ids=tokens[None], use_cache=False).logits[0]


def make(case, out):
    config_class, model_class, dtype, length, shard, args = CASES[case]
    out.mkdir(parents=True)  # an error if it exists: stale shards must not survive
    model_class = getattr(transformers, model_class)
    args = {**DEFAULTS, **args}
    model = model_class(getattr(transformers, config_class)(**args))
    redraw(model, case)
    model.to(dtype).save_pretrained(out, max_shard_size=shard)

    stored = {n: t for path in out.glob("*.safetensors") for n, t in load_file(path).items()}
    check(all(t.dtype == dtype for t in stored.values()), f"{case}: not all stored as {dtype}")
    check(("lm_head.weight" in stored) != args["tie_word_embeddings"], f"{case}: lm_head")
    biases = [t.float().std() > 0.15 for n, t in stored.items() if n.endswith("bias")]
    check(all(biases) and len(biases) == ("qwen2" in case) * 3 * args["num_hidden_layers"],
          f"{case}: biases")
    shards = len(list(out.glob("model*.safetensors")))
    check((shards >= 2) == (out / "model.safetensors.index.json").exists() == (shard != "1GB"),
          f"{case}: {shards} shards")

    # From the files, so that the rounding of the stored dtype is in the weights.
    model = model_class.from_pretrained(
        out, attn_implementation="eager", **{DTYPE_ARG: torch.float32}).eval()
    check(all(p.dtype == torch.float32 for p in model.parameters()), f"{case}: not float32")
    check_config(case, model.config, args)
    g = torch.Generator().manual_seed(zlib.crc32(f"{case}/tokens".encode()))
    tokens = torch.randint(0, args["vocab_size"], (length,), generator=g)
    with torch.no_grad():
        run = model(input_ids=tokens[None], use_cache=False, output_attentions=True)
        logits = run.logits[0].contiguous()
        exact = logits_f64(model, tokens)
    check(exact.dtype == torch.float64, f"{case}: the float64 run gave {exact.dtype}")
    diff, scale = (exact - logits.double()).abs().max().item(), logits.abs().max().item()
    # The mean largest attention weight from position 8 on; uniform would give at most 0.125.
    peak = torch.stack(run.attentions)[..., 8:, :].amax(-1).mean().item()
    spread = (logits.amax(-1) - logits.amin(-1)).mean().item()
    check(diff <= 1e-4 * scale, f"{case}: float32 and float64 differ by {diff} of {scale}")
    check(peak > 0.2 and spread > 3, f"{case}: dull: peak {peak}, spread {spread}")
    save_file({"tokens": tokens.to(torch.int32), "logits": logits}, out / "golden.safetensors", {
        "case": case, "dtype": str(dtype)[6:], "compute_dtype": "float32",
        "attn_implementation": model.config._attn_implementation,
        "max_abs_diff_f64": repr(diff), "max_abs_logit": repr(scale), **VERSIONS})

    sizes = {p.name: p.stat().st_size for p in sorted(out.iterdir())}
    print(f"\n== {case}\n{(out / 'config.json').read_text()}")
    print(f"T {length}, logit std {logits.std():.3f}, spread {spread:.2f}, largest {scale:.2f}, "
          f"attention peak {peak:.3f}, float64 differs by {diff:.2e}")
    print(f"total {sum(sizes.values())} bytes: {sizes}")
    check(sum(sizes.values()) <= MAX_BYTES, f"{case}: over {MAX_BYTES} bytes")


def main():
    check(len(sys.argv) == 2, "usage: python3 tools/golden.py OUTDIR")
    print("python", platform.python_version(), VERSIONS)
    for name, want in PINNED.items():
        if VERSIONS[name].split("+")[0] != want:
            print(f"WARNING: {name} is {VERSIONS[name]}, pinned is {want}", file=sys.stderr)
    torch.set_num_threads(1)  # one order of summation
    torch.use_deterministic_algorithms(True)
    for case in CASES:
        make(case, Path(sys.argv[1]) / case)
    print("\nall cases written")


if __name__ == "__main__":
    main()
