#!/usr/bin/env python3
"""Turn the lines of `countdown eval --json` into Markdown tables: perplexity by rule and sparsity, with the realised sparsity.

    python3 tools/table.py results.jsonl
"""
import json
import sys

rows = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
dense = next(r for r in rows if r["method"] == "dense")
targets = sorted({r["target"] for r in rows if r["method"] != "dense"})
rules = list(dict.fromkeys((r["method"], r["cut"], r["form"]) for r in rows if r["method"] != "dense"))
found = {(r["method"], r["cut"], r["form"], r["target"]): r for r in rows}

print(f"Dense perplexity {dense['perplexity']:.2f} ± {dense['stderr']:.2f} over {dense['tokens']} tokens.\n")
for title, cell in [
    ("perplexity (ratio to dense), realised sparsity", lambda r: f"{r['perplexity']:.1f} ({r['perplexity'] / dense['perplexity']:.2f}), {r['realised']:.3f}"),
    ("KL to dense in nats, share of equal top-1", lambda r: f"{r['kl']:.3f}, {r['top1']:.3f}"),
]:
    print(f"| {title} | " + " | ".join(f"{t:g}" for t in targets) + " |")
    print("|---|" + "---|" * len(targets))
    for rule in rules:
        cells = [cell(found[(*rule, t)]) if (*rule, t) in found else "" for t in targets]
        print(f"| {rule[0]}, {rule[1]} cut, {rule[2]} | " + " | ".join(cells) + " |")
    print()
