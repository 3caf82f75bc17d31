#!/usr/bin/env bash
# From a clone to an adapter that answers here and in llama.cpp, as a new user would go, with what is said and how long each
# step takes: docs/ten-minutes.md is what it printed on a machine with an empty home.
#     scripts/ten_minutes.sh FOLDER          a folder that is not there yet; everything goes into it
# Needs Rust, a C and C++ compiler, Python 3.11 with pip.
set -euo pipefail
[ $# -eq 1 ] && [ ! -e "$1" ] || { echo "usage: scripts/ten_minutes.sh FOLDER (which must not exist)" >&2; exit 2; }
script=$(realpath "$0")
mkdir -p "$1" && cd "$1"
export NO_COLOR=1

# Says a command, runs it in this shell, and says how long it took.
run() {
    printf '\n    $ %s\n' "$1"
    local begin=$EPOCHREALTIME
    eval "$1" 2>&1 | sed 's/^/    /'
    printf '\n%s s\n' "$(awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')"
}

printf '## Build\n'
REPOSITORY=$(cd "$(dirname "$script")/.." && pwd)
run 'git clone --quiet "$REPOSITORY" source'
run '(cd source && cargo build --release --quiet && cp target/release/smidgen ..)'

printf '\n## A model and a chat log\n'
run "(cd source && cargo --quiet xtask models smollm2) | sed -n 1p"
cp "${SMIDGEN_TEST_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/smidgen/models}"/SmolLM2-135M-Instruct.Q4_1.gguf model.gguf
run "head -2 source/assets/chats/train.jsonl"
run "./smidgen data source/assets/chats -m model.gguf --show 1"

printf '\n## What it will take\n'
run "./smidgen plan -m model.gguf --data source/assets/chats --memory 60MB -o adapter --epochs 4 | tail -12"

printf '\n## Train\n'
run "./smidgen train -m model.gguf --data source/assets/chats -o adapter --memory 60MB --epochs 4 | tail -45"

printf '\n## Talk\n'
ask="Can I take my dog in the motor boat?"
run "./smidgen chat -m model.gguf --system 'You answer for the boat hire at the old pier.' -p '$ask'"
run "./smidgen chat -m model.gguf --adapter adapter --system 'You answer for the boat hire at the old pier.' -p '$ask'"

printf '\n## In llama.cpp\n'
run "python3 -m venv llama && llama/bin/pip install --quiet --disable-pip-version-check llama-cpp-python==0.3.36"
cat > ask.py <<'PY'
import sys
from llama_cpp import Llama
llama = Llama("model.gguf", lora_path="adapter/adapter.gguf", n_ctx=512, verbose=False)
chat = [{"role": "system", "content": "You answer for the boat hire at the old pier."}, {"role": "user", "content": sys.argv[1]}]
print(llama.create_chat_completion(chat, temperature=0, max_tokens=64)["choices"][0]["message"]["content"])
PY
run "llama/bin/python ask.py '$ask'"
