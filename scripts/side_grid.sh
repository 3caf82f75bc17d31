#!/usr/bin/env bash
# Side tuning on GSM8K's answers, a run for each set of flags, all on one server that knows the samples again. The tables it
# prints are in docs/side-tuning.md; OUT/*.json has all that a run says at its end.
#     scripts/side_grid.sh MODEL.gguf DATA OUT STEPS HELD_OUT 'FLAGS OF A RUN'...
# DATA is a folder with train.jsonl and test.jsonl; the first HELD_OUT answers of the second are held out. Needs
# `cargo build --release`.
set -euo pipefail
[ $# -ge 6 ] || { echo "usage: scripts/side_grid.sh MODEL.gguf DATA OUT STEPS HELD_OUT 'FLAGS OF A RUN'..." >&2; exit 2; }
repository=$(cd "$(dirname "$0")/.." && pwd)
smidgen=${SMIDGEN:-${CARGO_TARGET_DIR:-$repository/target}/release/smidgen}
model=$1 data=$2 out=$3 steps=$4 held_out=$5
shift 5
mkdir -p "$out"
port=${PORT:-7741}
[ -f "$out/token" ] || "$smidgen" serve --state "$out/server" --new-token grid > "$out/token"
"$smidgen" serve --state "$out/server" --listen "127.0.0.1:$port" --sessions 64 ${SERVE_FLAGS:-} 2> "$out/server.log" &
server=$!
trap 'kill $server' EXIT
sleep 1
for flags in "$@"; do
    name=$(printf '%s' "$flags" | tr -c 'a-zA-Z0-9.\n' '_')
    if [ ! -s "$out/$name.json" ]; then
        rm -rf "${out:?}/$name"
        # shellcheck disable=SC2086 # the flags of a run are words
        "$smidgen" train -m "$model" --data "$data/train.jsonl" --chunks "$steps" --valid-data "$data/test.jsonl" \
            --valid-chunks "$held_out" --prompt-feature question --completion-feature answer --max-seq-length 512 --no-shuffle \
            --iters "$steps" --steps-per-eval "$steps" --lr-schedule linear --method side --server "http://127.0.0.1:$port" \
            --server-token "$out/token" --device-secret "$out/secret" --json -o "$out/$name" $flags \
            > "$out/$name.tmp" 2> "$out/$name.err" || { echo "$flags: failed, see $out/$name.err" >&2; continue; }
        mv "$out/$name.tmp" "$out/$name.json"
    fi
    python3 - "$out/$name.json" "$flags" <<'PY'
import json, sys
last = json.loads(open(sys.argv[1]).readlines()[-1])
held_out = " ".join(f"{v['step']}: {v['loss']:.4f}" for v in last["valid"])
print(f"held out {held_out} | {last['seconds_per_step']:.2f} s a step, {last['peak_memory_bytes'] / 1e6:.1f} MB | {sys.argv[2]}", flush=True)
PY
done
