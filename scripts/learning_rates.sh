#!/usr/bin/env bash
# The learning rates behind the defaults: a grid of them on chats, answers and plain text. The tables it prints are in
# docs/defaults.md; OUT/*/compare.json has every loss.
#     scripts/learning_rates.sh MODEL.gguf DATA OUT
# DATA is a folder with gsm8k/{train,test}.jsonl and wikitext-2/{valid,test}.txt. Needs `cargo build --release`.
set -euo pipefail
[ $# -eq 3 ] || { echo "usage: scripts/learning_rates.sh MODEL.gguf DATA OUT" >&2; exit 2; }
repository=$(cd "$(dirname "$0")/.." && pwd)
smidgen=${CARGO_TARGET_DIR:-$repository/target}/release/smidgen
model=$1 data=$2 out=$3
runs=()
for rate in 3e-5 1e-4 3e-4 5e-4 1e-3 3e-3; do runs+=(--run "exact --learning-rate $rate"); done
sgd=()
for rate in 0.1 1; do sgd+=(--run "exact --optimizer sgd --learning-rate $rate"); done

sweep() {
    printf '== %s\n' "$1"
    "$smidgen" compare -m "$model" -o "$out/$1" --memory unlimited "${@:2}" 2>&1 | sed -n '/^run  /,$p'
}

sweep chats --data "$repository/assets/chats" --epochs 2 --steps-per-eval 48 "${runs[@]}" "${sgd[@]}"
sweep gsm8k --data "$data/gsm8k/train.jsonl" --chunks 100 --valid-data "$data/gsm8k/test.jsonl" --valid-chunks 30 \
    --prompt-feature question --completion-feature answer --max-seq-length 512 --iters 100 --steps-per-eval 50 "${runs[@]}"
sweep wikitext-2 --data "$data/wikitext-2/valid.txt" --chunks 60 --valid-data "$data/wikitext-2/test.txt" --valid-chunks 16 \
    --iters 60 --steps-per-eval 30 "${runs[@]}"
