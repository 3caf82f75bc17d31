#!/bin/sh
# Makes the Python environment of the golden files and of the scripts beside this one, or brings it up to date.
#     scripts/venv.sh DIR        then: DIR/bin/python tests/golden/make_golden.py
# Needs python3 (3.11 or newer), cc and binutils. A second run with nothing changed takes no time.
set -eu
[ $# -eq 1 ] || { echo "usage: scripts/venv.sh DIR" >&2; exit 2; }
dir=$1
here=$(cd "$(dirname "$0")" && pwd)
wanted=$(cat "$here/requirements.txt" "$here/cuda_stubs.py" "$0" | cksum)
if [ -f "$dir/smidgen-stamp" ] && [ "$(cat "$dir/smidgen-stamp")" = "$wanted" ]; then
    exit 0
fi
[ -x "$dir/bin/python" ] || python3 -m venv "$dir"
"$dir/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$here/requirements.txt"
"$dir/bin/python" "$here/cuda_stubs.py"
"$dir/bin/python" -c "import torch, transformers, peft, gguf"
echo "$wanted" > "$dir/smidgen-stamp"
