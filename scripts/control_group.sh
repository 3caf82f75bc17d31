#!/usr/bin/env bash
# Trains from raw text inside a memory control group: every page that the run touches, the model's pages in the file
# cache included, is charged to a group of LIMIT bytes, without swap. Once cold, once warm.
#     scripts/control_group.sh MODEL.gguf TEXT.txt LIMIT_BYTES BUDGET [train's flags...]
#     scripts/control_group.sh gemma3-4b.gguf text.txt 300000000 120MB --optimizer sgd --iters 2
# cold  the model's pages are evicted first, and fincore must find none. The group reads the file, so its cache is the
#       group's own, to be dropped when the limit is reached: a peak at the limit and a failcnt above 0 are no fault.
# warm  the file is read outside the group first: its pages belong to the group around, and charge this one nothing.
# An OOM kill or a failed run ends the script with 1. Needs root, `cargo build --release` (or SMIDGEN=program), fincore
# (util-linux) and python3; control groups of version 1 or 2.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
model=$1 text=$2 limit=$3 budget=$4; shift 4
fail() { echo "error: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "control groups need root: run it under sudo"
here=$(cd "$(dirname "$0")" && pwd)
smidgen="${SMIDGEN:-${CARGO_TARGET_DIR:-$here/../target}/release/smidgen}"
[ -x "$smidgen" ] || fail "$smidgen: no such program; cargo build --release"

# The group hangs off the hierarchy's root, so that no other group's limit or count mixes in.
if [ -e /sys/fs/cgroup/memory/memory.limit_in_bytes ]; then
    version=1 root=/sys/fs/cgroup/memory limit_file=memory.limit_in_bytes peak_file=memory.max_usage_in_bytes
else
    version=2 root=/sys/fs/cgroup limit_file=memory.max peak_file=memory.peak
    grep -qsw memory $root/cgroup.subtree_control || fail "no control groups for memory: $root/cgroup.subtree_control lacks it"
fi
group=$root/smidgen.$$
work=$(mktemp -d -p "${TMPDIR:-/var/tmp}") # on a disk: the scratch file goes there
remove_group() {
    [ -d "$group" ] || return 0
    for _ in 1 2 3 4 5 6 7 8 9 10; do rmdir "$group" 2>/dev/null && return 0; sleep 0.1; done
    echo "warning: $group is still there" >&2
}
trap 'remove_group; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

make_group() {
    mkdir "$group"
    echo "$limit" > "$group/$limit_file"
    if [ $version = 1 ]; then
        # In version 1 a limit on memory and swap together is there only where the kernel accounts for swap.
        echo 0 > "$group/memory.swappiness"
        if [ -e "$group/memory.memsw.limit_in_bytes" ]; then echo "$limit" > "$group/memory.memsw.limit_in_bytes"; fi
        swap="swappiness $(cat "$group/memory.swappiness"), memory+swap limit $(cat "$group/memory.memsw.limit_in_bytes" 2>/dev/null || echo none)"
    elif [ -e "$group/memory.swap.max" ]; then
        echo 0 > "$group/memory.swap.max"
        swap="memory.swap.max $(cat "$group/memory.swap.max")"
    else
        swap="not accounted for by this kernel"
    fi
    swap="$swap; the machine has $(awk '/^SwapTotal/ { print $2 * 1024 }' /proc/meminfo) bytes of swap"
}

resident() { fincore --bytes --noheadings --output RES "$1" | tr -d ' '; }

evict() { # FILE
    sync "$1" # dirty pages are not dropped
    dd if="$1" iflag=nocache count=0 status=none
    local left; left=$(resident "$1")
    [ "$left" = 0 ] || fail "$left bytes of $1 are still in the file cache: is another process mapping it?"
}

value() { awk -v name="$2" '$1 == name { print $2 }' "$group/$1"; }

report_group() {
    echo "    group's peak   $(cat "$group/$peak_file" 2>/dev/null || echo 'not kept by this kernel') bytes of $limit"
    if [ $version = 1 ]; then
        kills=$(value memory.oom_control oom_kill)
        # Seen at 0 after an OOM kill under Linux 6.18: there only a peak at the limit tells that it was reached.
        echo "    failcnt        $(cat "$group/memory.failcnt"), with swap $(cat "$group/memory.memsw.failcnt" 2>/dev/null || echo none)" \
            "(times at the limit: file cache was dropped, or else a kill)"
        echo "    OOM            under_oom $(value memory.oom_control under_oom), oom_kill $kills"
    else
        kills=$(value memory.events oom_kill)
        echo "    memory.events  $(tr '\n' ' ' < "$group/memory.events")"
    fi
    echo "    at the end     $(awk '$1 ~ /^(rss|cache|anon|file|shmem)$/ { printf "%s %s  ", $1, $2 }' "$group/memory.stat")"
}

run() { # cold|warm
    make_group
    local code=0
    # The shell moves itself into the group and becomes the program: all of it is charged there.
    sh -c 'echo $$ > "$1/cgroup.procs"; shift; exec "$@"' sh "$group" "$smidgen" train -m "$model" --data "$text" \
        --memory "$budget" --json -o "$work/$1" "${flags[@]}" >"$work/report" 2>"$work/log" || code=$?
    echo "$1: exit code $code; swap: $swap"
    report_group
    [ "$code" = 0 ] && python3 - "$work/report" <<'PYTHON'
import json, sys
r = json.load(open(sys.argv[1]))
print(f"    program's peak measured {r['peak_memory_bytes']:,} bytes, planned {r['planned_peak_bytes']:,}, preparing "
      f"{r['prepare_peak_bytes'] or 0:,}; weight window {r['weight_window_bytes']:,}")
print(f"    steps          {r['steps']}, {r['seconds_per_step']:.2f} s each (median), {r['seconds']:.1f} s in all; losses {r['losses']}")
PYTHON
    if [ "$code" != 0 ]; then tail -n 5 "$work/log" >&2; fi
    remove_group
    [ "$code" = 0 ] && [ "${kills:-0}" = 0 ] || fail "$1: exit code $code, ${kills:-0} OOM kills"
}

flags=("$@")
echo "$(basename "$model"), $(stat -c %s "$model") bytes; limit $limit, budget $budget; ${flags[*]}; control groups version $version"
# What the program and the text take of the cache is charged outside.
cat "$smidgen" "$text" >/dev/null
evict "$model"
echo "evicted: fincore finds $(resident "$model") bytes of the model in the file cache"
run cold
cat "$model" >/dev/null
echo "read outside the group: fincore finds $(resident "$model") bytes of the model in the file cache"
run warm
