#!/usr/bin/env bash
# Runs all CUDA tests on a machine that has a card, and the small ones again under compute-sanitizer; writes what it saw to docs/results/cuda-checks.md.
#
#   tools/cuda_checks.sh [FOLDER]
#
# FOLDER holds the test binaries ffn, joined, step, shortlist, train, model and sampling where they were built elsewhere (a card's machine need not have Rust); otherwise they are built
# here. COMMIT names what was built, where the folder is no checkout of it. CUDA's libraries must be where the loader looks (LD_LIBRARY_PATH).
set -uo pipefail
cd "$(dirname "$0")/.." || exit
folder=${1:-}
commit=${COMMIT:-$(git rev-parse --short=9 HEAD)}
to=docs/results/cuda-checks.md
log=$(mktemp)

if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    build() {
        cargo test --release --no-run -p "$2" --test "$3" --message-format=json |
            grep -o '"executable":"[^"]*"' | tail -1 | cut -d'"' -f4 | xargs -I{} cp {} "$folder/$1" || exit
    }
    build ffn countdown-kernels cuda
    build joined countdown-kernels cuda_joined
    build step countdown-kernels cuda_step
    build shortlist countdown-kernels cuda_shortlist
    build train countdown-kernels cuda_train
    build model countdown cuda
    build sampling countdown cuda_sampling
fi

good=0
rows=""
# name, seconds at most, command
check() {
    local name=$1 limit=$2 verdict
    shift 2
    if timeout "$limit" "$@" >"$log" 2>&1; then verdict=passed; else verdict="FAILED ($?)"; good=1; fi
    grep -q SKIPPED "$log" && { verdict=skipped; good=1; }
    echo "== $name: $verdict"
    [ "$verdict" = passed ] || tail -30 "$log"
    rows+="| $name | $verdict | $(grep -oE 'test result:.*passed|ERROR SUMMARY: .*|RACECHECK SUMMARY: .*' "$log" | tail -2 | paste -sd';' | sed 's/; 0 failed//') |"$'\n'
}

for t in ffn joined step shortlist train model sampling; do check "$t" 400 "$folder/$t" --nocapture --test-threads=1; done
COUNTDOWN_LAUNCHES=apart check "model, a launch for each" 400 "$folder/model" --nocapture --test-threads=1
# The sanitizer slows kernels down a hundredfold: shapes of a few columns, and one model.
small=${SMALL:-the_small_shape products_with_a_norm attention_is_its_definition embeddings_norms what_is_not_finite logits_become_slopes slopes_of_products}
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        # What racecheck would take for mistakes is done otherwise there (barrier.cu).
        [ $tool = racecheck ] && export COUNTDOWN_NVRTC=-DRACECHECK=1
        for s in $small; do
            for t in ffn joined step shortlist train; do
                "$folder/$t" --list 2>/dev/null | grep -q "$s" || continue
                check "$tool, $s" "${SANITIZER_SECONDS:-400}" compute-sanitizer --tool "$tool" --error-exitcode 9 "$folder/$t" "$s" --nocapture --test-threads=1
            done
        done
    done
else
    rows+="| compute-sanitizer | not on this machine | |"$'\n'
fi

mkdir -p "$(dirname "$to")"
{
    echo "# CUDA checks"
    echo
    echo "Written by tools/cuda_checks.sh at $commit: $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1)."
    echo
    echo "| check | result | |"
    echo "|---|---|---|"
    printf '%s' "$rows"
} >"$to"
cat "$to"
exit $good
