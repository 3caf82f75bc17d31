#!/usr/bin/env bash
# What Smidgen writes, in llama.cpp and PEFT: adapters, a merged model, a quantised model; see llama_cpp_interop.py.
#     scripts/interop_llama_cpp.sh MODEL.gguf TEXT.txt [FLAGS of llama_cpp_interop.py]
# Needs `cargo build --release` and some GB in the temporary folder; builds llama-cpp-python in the environment of venv.sh
# (SMIDGEN_VENV, default ~/.cache/smidgen/venv) where bench_llama_cpp.sh has not done so before.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${SMIDGEN_VENV:-$HOME/.cache/smidgen/venv}
"$here/venv.sh" "$venv"
CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" "$venv/bin/python" -m pip install --quiet \
    --disable-pip-version-check --no-deps --no-binary llama-cpp-python -r "$here/requirements-llama-cpp.txt"
exec "$venv/bin/python" "$here/llama_cpp_interop.py" "$@"
