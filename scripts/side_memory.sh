#!/usr/bin/env bash
# What side tuning takes on the device by the length of sequences and their number a step, with both losses, beside what the
# exact method takes: planned and measured, each with `--memory min`. The table it prints is in docs/side-tuning.md.
#     scripts/side_memory.sh MODEL.gguf TEXT.txt OUT
# Settings, from the environment: LENGTHS='128 256 512 1024' BATCHES='1 16' LOSSES='device server' THREADS=1. Needs
# `cargo build --release`.
set -euo pipefail
[ $# -eq 3 ] || { sed -n '4,6p' "$0" >&2; exit 2; }
repository=$(cd "$(dirname "$0")/.." && pwd)
smidgen=${SMIDGEN:-${CARGO_TARGET_DIR:-$repository/target}/release/smidgen}
model=$1 text=$2 out=$3 port=${PORT:-7742}
rm -rf "$out"
mkdir -p "$out"
"$smidgen" serve --state "$out/server" --new-token memory > "$out/token"
"$smidgen" serve --state "$out/server" --listen "127.0.0.1:$port" -m "$model" --sessions 1000 --cache 1MB 2> "$out/server.log" &
server=$!
trap 'kill $server' EXIT
sleep 1
# What a run of so many sequences of a length takes.
run() {
    local name=$1 length=$2 batch=$3
    shift 3
    "$smidgen" train -m "$model" --data "$text" --max-seq-length "$length" --chunks "$batch" --batch-size "$batch" --iters 1 \
        --memory min --threads "${THREADS:-1}" --json -o "$out/$name" "$@" > "$out/$name.json" 2> "$out/$name.err"
    python3 - "$out/$name.json" "$name" "$length" "$batch" <<'PY'
import json, sys
report, (name, length, batch) = json.load(open(sys.argv[1])), sys.argv[2:]
planned, measured = (report[key] / 1e6 for key in ["planned_peak_bytes", "peak_memory_bytes"])
print(f"| {name.split('-')[0]} | {length} | {batch} | {planned:.2f} | {measured:.2f} |", flush=True)
PY
}
echo "| loss on | tokens | sequences | planned MB | measured MB |"
echo "|---|---:|---:|---:|---:|"
for loss in ${LOSSES:-device server}; do
    for length in ${LENGTHS:-128 256 512 1024}; do
        for batch in ${BATCHES:-1 16}; do
            run "$loss-$length-$batch" "$length" "$batch" --method side --server "http://127.0.0.1:$port" \
                --server-token "$out/token" --loss-on "$loss"
        done
    done
done
for length in ${LENGTHS:-128 256 512 1024}; do
    run "exact-$length-1" "$length" 1
done
