#!/usr/bin/env bash
# Planned and measured peak, and seconds a step, of the test models at some budgets: a Markdown table.
#     scripts/measure_memory.sh MODELS_FOLDER TEXT.txt
# Needs `cargo build --release`; MODELS_FOLDER as `cargo xtask models` fills it.
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: scripts/measure_memory.sh MODELS_FOLDER TEXT.txt" >&2; exit 2; }
models=$1 text=$2
here=$(cd "$(dirname "$0")" && pwd)
smidgen="${CARGO_TARGET_DIR:-$here/../target}/release/smidgen"
work=$(mktemp -d -p "${TMPDIR:-/var/tmp}") # on a disk: the scratch file goes there
trap 'rm -rf "$work"' EXIT

echo "| model | settings | planned MB | measured MB | planned / measured | seconds a step |"
echo "|---|---|---:|---:|---:|---:|"
run() {
    local name=$1 file=$2; shift 2
    "$smidgen" train -m "$models/$file" --data "$text" --max-seq-length 256 --chunks 5 --no-shuffle -o "$work/out" --json "$@" 2>/dev/null |
        python3 -c '
import json, sys
r = json.load(sys.stdin)
planned, measured, seconds = r["planned_peak_bytes"], r["peak_memory_bytes"], r["seconds_per_step"]
print(f"| {sys.argv[1]} | `{sys.argv[2]}` | {planned/1e6:.1f} | {measured/1e6:.1f} | {planned/measured:.3f} | {seconds:.2f} |")
' "$name" "$*"
}
for settings in "--memory min --optimizer sgd" "--memory min --optimizer sgd --no-spool" "--memory min" "--memory 150MB" "--memory unlimited"; do
    run "SmolLM2-135M Q4_1" SmolLM2-135M-Instruct.Q4_1.gguf $settings
    run "Gemma 3 270M Q4_K_M" gemma-3-270m-Q4_K_M.gguf $settings
    run "Qwen2.5-Coder-0.5B Q4_K_M" qwen2.5-coder-0.5b-instruct-q4_k_m.gguf $settings
done
