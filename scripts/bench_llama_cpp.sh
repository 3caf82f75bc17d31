#!/usr/bin/env bash
# Smidgen's forward against llama.cpp's prompt processing on one GGUF model, in interleaved pairs.
#     scripts/bench_llama_cpp.sh MODEL.gguf TEXT.txt [FLAGS of bench_llama_cpp.py]
# Builds the release binary, and llama-cpp-python for this processor (cmake comes with it; a C++ compiler is needed; once,
# some ten minutes on two cores) in the environment of venv.sh (SMIDGEN_VENV, default ~/.cache/smidgen/venv).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${SMIDGEN_VENV:-$HOME/.cache/smidgen/venv}
cargo build --release --quiet --manifest-path "$here/../Cargo.toml" -p smidgen-cli
"$here/venv.sh" "$venv"
CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" "$venv/bin/python" -m pip install --quiet \
    --disable-pip-version-check --no-deps --no-binary llama-cpp-python -r "$here/requirements-llama-cpp.txt"
exec "$venv/bin/python" "$here/bench_llama_cpp.py" "$@"
