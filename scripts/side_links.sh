#!/usr/bin/env bash
# Seconds to the held-out loss that LoRA on the device reaches in STEPS steps: LoRA itself (--method exact --memory min) against
# side tuning over links of some rates, with the bytes that go both ways. The device is held to a share of a core by a CPU quota
# and sits in a network namespace, both ends of whose link have a token bucket (no delay is added); the server has what is left
# of the machine, and a certificate of a throw-away authority. The table it prints is in docs/side-tuning.md; OUT/*.json has
# what each run measured, and what is there is not measured again.
#     scripts/side_links.sh MODEL.gguf DATA OUT
# DATA is a folder with train.jsonl and valid.jsonl, as assets/chats. Settings, from the environment:
#     STEPS=100 CHUNKS=48 LENGTH=128   LoRA's steps; samples of the training data, which is an epoch; tokens of the longest
#     HELD_OUT=12 EVERY=12 MOST=600    held-out samples; side tuning's steps between their losses; the most that it may take
#     TIMED=48 QUOTA=25000             samples on the clock; microseconds of a core the device gets of every 100,000
#     LORA_RATES='1e-3 5e-4' SIDE_RATES='1e-3 3e-4'   learning rates, of which the best are taken (side tuning's by its first row)
#     ROWS='LINKS: FLAGS' a line       links in Mbit/s, flags of side tuning
#     KEYS='--prompt-feature question --completion-feature answer'   what the data's lines are called, for GSM8K
# Losses depend on neither quota nor link, so steps and rates are found at full speed. The clock runs for the first TIMED samples,
# without evaluations: LoRA once over them, side tuning once and half of them again, from the server's cache. Seconds to the loss
# are the first step's, and for each further step the mean of its kind. Where side tuning does not get to LoRA's loss, both are
# timed to the lowest that it came to. Needs root, `cargo build --release` (or SMIDGEN=program), iproute2, util-linux, openssl,
# python3.
set -euo pipefail
[ $# = 3 ] || { sed -n '7,14p' "$0" >&2; exit 2; }
model=$1 data=$2 out=$3
steps=${STEPS:-100} chunks=${CHUNKS:-48} length=${LENGTH:-128} held_out=${HELD_OUT:-12} every=${EVERY:-12} most=${MOST:-600}
timed=${TIMED:-48} quota=${QUOTA:-25000} keys=${KEYS:-}
rows=${ROWS:-'10 50 1000: --tap-bits 16
10 50 1000: --tap-bits 8
10 50 1000: --tap-bits 4
10 50 1000: --tap-bits 16 --loss-on server
10 50 1000: --tap-bits 8 --loss-on server
10 50 1000: --tap-bits 4 --loss-on server'}
lora_rates=${LORA_RATES:-1e-3 5e-4} side_rates=${SIDE_RATES:-1e-3 3e-4}
fail() { echo "error: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "quotas and namespaces need root: run it under sudo"
for tool in ip tc nsenter openssl python3; do
    command -v "$tool" > /dev/null || fail "no $tool (iproute2 has ip and tc, util-linux nsenter)"
done
here=$(cd "$(dirname "$0")" && pwd)
smidgen=${SMIDGEN:-${CARGO_TARGET_DIR:-$here/../target}/release/smidgen}
[ -x "$smidgen" ] || fail "$smidgen: no such program; cargo build --release"
mkdir -p "$out"
settings="$(basename "$model") $steps $chunks $length $held_out $every $most $timed $quota $lora_rates, $side_rates"
[ -f "$out/settings" ] || echo "$settings" > "$out/settings"
[ "$(cat "$out/settings")" = "$settings" ] || fail "$out holds what was measured with other settings: $(cat "$out/settings")"

group='' server='' helper=''
name=sl$$ device_end=sl$$d server_end=sl$$s
clean_up() {
    set +e
    [ -z "$helper" ] || kill "$helper" 2>/dev/null # it ends the program that it runs
    [ -z "$server" ] || kill "$server" 2>/dev/null
    wait
    ip link del "$server_end" 2>/dev/null
    ip netns del "$name" 2>/dev/null
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        [ -n "$group" ] && [ -d "$group" ] || return
        xargs -r kill -9 < "$group/cgroup.procs"
        rmdir "$group" 2>/dev/null
        sleep 0.1
    done
    echo "warning: $group is still there" >&2
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

# The quota, in control groups of version 1 or 2.
if [ -e /sys/fs/cgroup/cpu/cpu.cfs_quota_us ]; then
    group=/sys/fs/cgroup/cpu/$name
    mkdir "$group"
    echo 100000 > "$group/cpu.cfs_period_us"
    echo "$quota" > "$group/cpu.cfs_quota_us"
else
    grep -qsw cpu /sys/fs/cgroup/cgroup.subtree_control || fail "no control groups for the CPU"
    group=/sys/fs/cgroup/$name
    mkdir "$group"
    echo "$quota 100000" > "$group/cpu.max"
fi

# The link. 198.18.0.0/15 is for measurements (RFC 2544); nothing else of this machine may be there.
address=198.18.77.1
[ -z "$(ip route show match "$address" | grep -v '^default')" ] || fail "this machine has a route to $address already"
ip netns add "$name"
ip link add "$server_end" type veth peer name "$device_end" netns "$name"
ip addr add "$address/30" dev "$server_end"
ip link set "$server_end" up
ip -n "$name" addr add 198.18.77.2/30 dev "$device_end"
ip -n "$name" link set "$device_end" up
shape() { # MBIT: each way
    local bucket="root tbf rate ${1}mbit burst 64kb latency 50ms"
    # shellcheck disable=SC2086 # words
    tc qdisc replace dev "$server_end" $bucket
    # shellcheck disable=SC2086
    tc -n "$name" qdisc replace dev "$device_end" $bucket
}

# The server, with a certificate for its address.
pems=$out/pems
if [ ! -f "$pems/server.pem" ]; then
    mkdir -p "$pems"
    new_key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    # shellcheck disable=SC2086
    openssl req -x509 $new_key -keyout "$pems/ca.key" -out "$pems/ca.pem" -days 30 -subj /CN=side_links \
        -addext keyUsage=critical,keyCertSign 2> "$pems/log"
    # shellcheck disable=SC2086
    openssl req -new $new_key -keyout "$pems/server.key" -out "$pems/server.csr" -subj "/CN=$address" 2>> "$pems/log"
    openssl x509 -req -in "$pems/server.csr" -CA "$pems/ca.pem" -CAkey "$pems/ca.key" -CAcreateserial -days 30 \
        -out "$pems/server.pem" -extfile <(printf 'basicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName=IP:%s\n' "$address") \
        2>> "$pems/log"
fi
url=https://$address:${PORT:-7743}
[ -s "$out/token" ] || "$smidgen" serve --state "$out/server" --new-token links > "$out/token"
"$smidgen" serve --state "$out/server" -m "$model" --listen "${url#https://}" --sessions 256 --tls-cert "$pems/server.pem" \
    --tls-key "$pems/server.key" 2> "$out/server.log" &
server=$!
for _ in $(seq 50); do
    if grep -q 'serves at' "$out/server.log"; then break; fi
    sleep 0.1
done
kill -0 "$server" 2>/dev/null || fail "the server did not start: $(tail -n 1 "$out/server.log")"

# Runs train under the helper, in the background so that a signal is heard at once.
measure() { # NAME find|time [the helper's flags...] -- [train's flags...]
    local run=$1 how=$2
    shift 2
    [ ! -s "$out/$run.json" ] || return 0
    local of_helper=()
    while [ "$1" != -- ]; do of_helper+=("$1"); shift; done
    shift
    rm -rf "${out:?}/$run"
    echo "$(date +%T) $run" >&2
    # Every run finds the files in the cache.
    cat "$smidgen" "$model" "$data/train.jsonl" "$data/valid.jsonl" > /dev/null
    # shellcheck disable=SC2086 # words
    python3 "$here/side_links.py" "$how" "$out/$run" "${of_helper[@]}" -- "$smidgen" train -m "$model" --data "$data/train.jsonl" \
        $keys --max-seq-length "$length" --no-shuffle --lr-schedule constant --memory min --json -o "$out/$run" "$@" &
    helper=$!
    wait "$helper" || fail "$run: see $out/$run.err"
    helper=''
}
evaluated=(--chunks "$chunks" --valid-data "$data/valid.jsonl" --valid-chunks "$held_out" --sample-prompts 0)
side=(--method side --server "$url" --server-ca "$pems/ca.pem" --server-token "$out/token" --retry-for 60)
held=(--group "$group" --namespace "$name" --device "$server_end" --epoch "$timed" --samples "$chunks")
told() { python3 "$here/side_links.py" told "$out/$1.json" "$2"; }
words() { tr -c 'a-zA-Z0-9.\n' '_' <<< "$1"; }

# What LoRA reaches, and how long that takes.
for rate in $lora_rates; do
    measure "lora_$rate" find --flags "exact, learning rate $rate" -- "${evaluated[@]}" --iters "$steps" \
        --steps-per-eval $((steps < 20 ? 1 : steps / 20)) --learning-rate "$rate"
done
lora_rate=$(for rate in $lora_rates; do echo "$(told "lora_$rate" loss) $rate"; done | sort -g | awk 'NR == 1 { print $2 }')
target=$(told "lora_$lora_rate" loss)
# The machine's rates for one thread, which plans are made with, are measured at full speed too, and remembered.
# shellcheck disable=SC2086
"$smidgen" train -m "$model" --data "$data/train.jsonl" --chunks 1 $keys \
    --max-seq-length "$length" --memory min --threads 1 --dry-run -o "$out/time_lora" > /dev/null 2>&1
measure time_lora time "${held[@]}" --flags "exact, learning rate $lora_rate" --steps "$steps" --like "$out/lora_$lora_rate" -- \
    --chunks "$timed" --iters "$timed" --learning-rate "$lora_rate" --threads 1

# The steps to there for each row's flags. Runs at full speed share a secret, so that a sample's taps are sent once for them all;
# those on the clock have their own.
side_rate=''
while IFS=: read -r _ flags; do
    flags=${flags# }
    for rate in ${side_rate:-$side_rates}; do
        # shellcheck disable=SC2086 # the flags of a run are words
        measure "find_$(words "$flags")_$rate" find --flags="$flags" --target "$target" -- "${evaluated[@]}" "${side[@]}" \
            --device-secret "$out/secret" --iters "$most" --steps-per-eval "$every" --learning-rate "$rate" $flags
    done
    side_rate=${side_rate:-$(for rate in $side_rates; do
        echo "$(told "find_$(words "$flags")_$rate" order) $rate"
    done | sort -g -k1,1 -k2,2 | awk 'NR == 1 { print $3 }')}
done <<< "$rows"

while IFS=: read -r links flags; do
    flags=${flags# }
    found=find_$(words "$flags")_$side_rate
    reached=$(told "$found" steps)
    for link in $links; do
        shape "$link"
        # shellcheck disable=SC2086
        measure "time_$(words "$flags")_$link" time "${held[@]}" --flags="$flags" --link "$link" --steps "$reached" \
            --like "$out/$found" -- "${side[@]}" --chunks "$timed" --iters $((timed + timed / 2)) --learning-rate "$side_rate" --threads 1 $flags
    done
done <<< "$rows"

echo "$(lscpu | sed -n 's/^Model name: *//p'), $(nproc) cores; $(date '+%d %B %Y'); the files were read beforehand."
echo "$(basename "$model"); $chunks samples of up to $length tokens; the device has $quota of every 100,000 microseconds of a core." \
    "LoRA at $lora_rate, $steps steps: held-out loss $target. Side tuning at $side_rate, a loss every $every steps, $most at most."
echo
python3 "$here/side_links.py" table "$out"
