#!/usr/bin/env bash
# Everything that must hold before a change lands: format, lints, documentation, and all tests on every instruction set
# that this machine's CPU has. Installs nothing outside the project's target folder.
set -euo pipefail
cd "$(dirname "$0")"

say() { printf '\n== %s\n' "$*"; }

tools="${CARGO_TARGET_DIR:-target}/tools"
export PATH="$PWD/$tools/bin:$PATH"
if ! cargo nextest --version >/dev/null 2>&1; then
  say "installing cargo-nextest into $tools (once)"
  cargo install --locked --root "$tools" cargo-nextest --version 0.9.143
fi

say "format"
cargo fmt --all --check

say "lints"
cargo clippy --workspace --all-targets -- -D warnings

if command -v cargo-deny >/dev/null 2>&1; then
  say "licences, bans and sources of dependencies"
  cargo deny --offline check bans licenses sources
else
  say "licences, bans and sources: skipped (cargo install --locked cargo-deny to check them)"
fi

say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
cargo test --workspace --doc --quiet

# The instruction sets besides the best one, for everything that runs a model; kernels' own tests loop over all of them.
say "tests of the engine on every instruction set"
best=$(cargo run --quiet --package countdown-cli -- doctor --json | sed -n 's/.*"isa": *"\([a-z0-9]*\)".*/\1/p' | head -n 1)
for isa in scalar neon avx2 avx512; do
  [ "$isa" = "$best" ] && continue
  if COUNTDOWN_ISA=$isa cargo run --quiet --package countdown-cli -- doctor >/dev/null 2>&1; then
    say "COUNTDOWN_ISA=$isa"
    COUNTDOWN_ISA=$isa cargo nextest run --package countdown --test golden --test sparse
  fi
done

say "all tests (best instruction set: ${best:-unknown})"
cargo nextest run --workspace
