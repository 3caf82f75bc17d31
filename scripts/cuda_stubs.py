"""Makes the CUDA build of PyTorch importable on a machine that has no CUDA libraries.

PyTorch's wheel for x86-64 Linux is linked against about 1.5 GB of GPU libraries that it needs only to be loaded,
never to be called, when everything runs on the CPU. This writes one small shared library that defines every
symbol which PyTorch's own libraries ask of them, and links it under each missing library's name in `torch/lib`,
the last entry of PyTorch's search path. Each function returns 100, CUDA's "no device", so
`torch.cuda.is_available()` is false and nothing else is ever called.

Needs a C compiler and binutils (`cc`, `nm`, `readelf`). Does nothing where `import torch` already works.
"""

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

GPU_LIBRARY = re.compile(r"^lib(cu|nv|nccl)[A-Za-z_]*\.so")
GPU_SYMBOL = re.compile(r"^(cu|nccl|nv)[A-Za-z0-9_]+$")
STUB = "libsmidgen_cuda_stub.so"


def lines(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def torch_imports():
    return subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0


def needed(library):
    return [m[1] for line in lines("readelf", "-d", library) if (m := re.search(r"\(NEEDED\).*\[(.+)\]", line))]


def undefined_symbols(library):
    """(name, version) of the undefined symbols that a GPU library versions, or that nothing does (version "")."""
    for line in lines("nm", "-D", "--undefined-only", library):
        name, _, version = line.split()[-1].partition("@")
        version = version.lstrip("@")
        if version == "NVSHMEM" or GPU_LIBRARY.match(version) or (not version and GPU_SYMBOL.match(name)):
            yield name, version


def defined_symbols(library):
    return {line.split()[-1].partition("@")[0] for line in lines("nm", "-D", "--defined-only", library)}


def build_stub(symbols, target):
    """symbols: name -> version. The loader insists that a versioned symbol's library names that version."""
    versions = {}
    for name, version in sorted(symbols.items()):
        if version:
            versions.setdefault(version, []).append(name)
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder) / "stub.c", Path(folder) / "stub.map"
        source.write_text("".join(f"int {name}(void) {{ return 100; }}\n" for name in sorted(symbols)))
        nodes = (f"{version} {{ global: {'; '.join(names)}; }};\n" for version, names in versions.items())
        script.write_text("".join(nodes))
        flags = ["-shared", "-fPIC", "-fno-builtin", "-w", "-nostdlib", f"-Wl,--version-script={script}"]
        subprocess.run(["cc", *flags, "-o", target, source], check=True)


def main():
    if torch_imports():
        return
    # Found without importing it: the import is what fails.
    lib = Path(importlib.util.find_spec("torch").origin).parent / "lib"
    own = [path for path in lib.glob("*.so*") if path.is_file() and not path.is_symlink() and path.name != STUB]
    present = {path.name for path in own}
    libraries, wanted, defined = set(), {}, set()
    for path in own:
        libraries.update(n for n in needed(path) if GPU_LIBRARY.match(n) and n not in present)
        wanted.update(undefined_symbols(path))
        defined |= defined_symbols(path)
    build_stub({name: version for name, version in wanted.items() if name not in defined}, lib / STUB)
    for name in libraries:
        link = lib / name
        link.unlink(missing_ok=True)
        link.symlink_to(STUB)
    if not torch_imports():
        sys.exit("PyTorch cannot be imported, with or without stand-ins for its CUDA libraries")


if __name__ == "__main__":
    main()
