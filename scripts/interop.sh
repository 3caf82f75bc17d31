#!/usr/bin/env bash
# Adapters both ways between Smidgen and PEFT on one GGUF model: one made by PEFT is read here, one trained here is read
# by PEFT; each time the next-token distributions at every position are compared (KL, in nats).
#     scripts/interop.sh MODEL.gguf TEXT.txt [VENV]
# Needs `cargo build --release` and the environment of scripts/venv.sh (default ~/.cache/smidgen/venv).
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: scripts/interop.sh MODEL.gguf TEXT.txt [VENV]" >&2; exit 2; }
model=$1 text=$2 venv=${3:-$HOME/.cache/smidgen/venv}
here=$(cd "$(dirname "$0")" && pwd)
smidgen="${CARGO_TARGET_DIR:-$here/../target}/release/smidgen"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"

compare() {
    "$smidgen" eval -m "$model" --data "$text" --adapter "$1" --max-seq-length 256 --chunks 1 --logits "$work/logits.safetensors"
    "$venv/bin/python" "$here/peft_interop.py" "$model" --adapter "$1" --logits "$work/logits.safetensors" --max-kl 1e-4
}

echo "== an adapter made by PEFT, read here"
"$venv/bin/python" "$here/peft_interop.py" "$model" --make-adapter "$work/peft"
compare "$work/peft"
echo "== an adapter trained here, read by PEFT"
"$smidgen" train -m "$model" --data "$text" -o "$work/ours" --max-seq-length 256 --chunks 5 --no-shuffle --learning-rate 1e-3
compare "$work/ours"
