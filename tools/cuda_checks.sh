#!/usr/bin/env bash
# Runs all CUDA tests on a machine that has a card, and the small ones again under compute-sanitizer; writes what it saw to docs/results/cuda-checks-last.md.
#
#   tools/cuda_checks.sh [FOLDER]
#
# FOLDER holds the test binaries ffn, joined, step, shortlist, train, model and sampling where they were built elsewhere (a card's machine need not have Rust); otherwise they are built
# here. COMMIT names what was built, where the folder is no checkout of it. CUDA's libraries must be where the loader looks (LD_LIBRARY_PATH).
set -uo pipefail
cd "$(dirname "$0")/.." || exit
folder=${1:-}
commit=${COMMIT:-$(git rev-parse --short=9 HEAD)}
to=docs/results/cuda-checks-last.md

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

folder=$(realpath "$folder")
work=$(mktemp -d)
jobs=${JOBS:-$(nproc)}
count=0
# name, seconds at most, command; checks run side by side
check() {
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
    count=$((count + 1))
    run "$work/$(printf %03d $count)" "$@" &
}
# a file for its row and its log, then as above
run() {
    local to=$1 name=$2 limit=$3 verdict
    shift 3
    # Where cargo would run them.
    local crate=kernels
    case "$*" in *"$folder"/model* | *"$folder"/sampling*) crate=engine ;; esac
    if (cd "crates/$crate" && timeout "$limit" "$@") >"$to.log" 2>&1; then verdict=passed; else verdict="FAILED ($?)"; fi
    grep -q SKIPPED "$to.log" && verdict=skipped
    [ "$verdict" = passed ] || tail -30 "$to.log" >&2
    echo "== $name: $verdict" >&2
    echo "| $name | $verdict | $(grep -oE 'test result:.*passed|ERROR SUMMARY: .*|RACECHECK SUMMARY: .*' "$to.log" | tail -2 | paste -sd';' | sed 's/; 0 failed//') |" >"$to.row"
}
tests_of() { "$1" --list 2>/dev/null | sed -n 's/: test$//p'; }

# The longest first: those of joined launches take minutes, most of it the CPU's.
for s in $(tests_of "$folder/joined"); do check "joined, $s" 900 "$folder/joined" "$s" --exact --nocapture; done
for t in model ffn step shortlist train sampling; do check "$t" 900 "$folder/$t" --nocapture --test-threads=1; done
check "model, a launch for each" 900 env COUNTDOWN_LAUNCHES=apart "$folder/model" --nocapture --test-threads=1
# The sanitizer slows kernels down a hundredfold: shapes of a few columns, and one model.
small=${SMALL:-the_small_shape products_with_a_norm attention_is_its_definition embeddings_norms what_is_not_finite logits_become_slopes slopes_of_products}
if command -v compute-sanitizer >/dev/null; then
    for tool in racecheck memcheck; do
        # What racecheck would take for mistakes is done otherwise there (barrier.cu).
        options=
        [ $tool = racecheck ] && options=-DRACECHECK=1
        for t in joined ffn step shortlist train; do
            for s in $small; do
                tests_of "$folder/$t" | grep -q "$s" || continue
                check "$tool, $t, $s" "${SANITIZER_SECONDS:-900}" env COUNTDOWN_NVRTC=$options compute-sanitizer --tool $tool --error-exitcode 9 "$folder/$t" "$s" --nocapture --test-threads=1
            done
        done
    done
else
    echo "| compute-sanitizer | not on this machine | |" >"$work/999.row"
fi
wait

mkdir -p "$(dirname "$to")"
{
    echo "# CUDA checks, the last run"
    echo
    echo "Written by tools/cuda_checks.sh at $commit: $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1). Runs before it, and what was made of them: [cuda-checks.md](cuda-checks.md)."
    echo
    echo "| check | result | |"
    echo "|---|---|---|"
    cat "$work"/*.row
} >"$to"
cat "$to"
! grep -qE '\| (FAILED|skipped|not on)' "$to"
