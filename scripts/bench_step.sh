#!/usr/bin/env bash
# Training steps of Smidgen against PyTorch + PEFT (fp32, sdpa) on one GGUF model, in interleaved pairs.
#     scripts/bench_step.sh MODEL.gguf TEXT.txt [FLAGS of bench_step.py]
# Builds the release binary, and the pinned environment of venv.sh (SMIDGEN_VENV, default ~/.cache/smidgen/venv).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${SMIDGEN_VENV:-$HOME/.cache/smidgen/venv}
cargo build --release --quiet --manifest-path "$here/../Cargo.toml" -p smidgen-cli
"$here/venv.sh" "$venv"
exec "$venv/bin/python" "$here/bench_step.py" "$@"
