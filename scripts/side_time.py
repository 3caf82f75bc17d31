"""Seconds a step of side tuning on the device, beside a step of the exact method at its least memory, in rounds.

    scripts/side_time.py MODEL.gguf DATA OUT [--steps 12] [--rounds 3] [--flags '--tap-bits 8']...

DATA is a folder with GSM8K's train.jsonl. The device has the first core, one thread and, if `--flags` don't say otherwise,
`--memory min`; the server has the other cores. Seconds are those of all of a run's steps over their number; CPU seconds those of
the whole process, model and plan included. `--flags` adds a run, `--only-flags` leaves out those with the least memory. The
table it prints is in docs/side-tuning.md. Needs `cargo build --release`.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from bench_machine import machine

REPOSITORY = Path(__file__).resolve().parent.parent
SMIDGEN = os.environ.get("SMIDGEN", str(REPOSITORY / "target/release/smidgen"))
PORT = 7744


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def train(args, name, flags):
    """Runs it on the first core: wall seconds a step, CPU seconds of the process, peak."""
    line = [
        *["taskset", "-c", "0", SMIDGEN, "train", "-m", args.model, "--data", str(Path(args.data) / "train.jsonl")],
        *["--prompt-feature", "question", "--completion-feature", "answer", "--max-seq-length", "256", "--no-shuffle"],
        *["--chunks", str(args.steps), "--iters", str(args.steps), "--threads", "1", "--json"],
        *([] if "--memory" in flags else ["--memory", "min"]),
        *["-o", str(Path(args.out) / name), *flags],
    ]
    shutil.rmtree(Path(args.out) / name, ignore_errors=True)
    before = cpu_seconds()
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(line)}: {done.stderr}")
    report = json.loads(done.stdout)
    metrics = (Path(args.out) / name / "smidgen/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in metrics]
    seconds = sum(step["seconds"] for step in steps if step["kind"] == "step") / args.steps
    return seconds, cpu_seconds() - before, report["peak_memory_bytes"], report["planned_peak_bytes"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flags", action="append", default=[])
    parser.add_argument("--only-flags", action="store_true")
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    token = subprocess.run(
        [SMIDGEN, "serve", "--state", str(out / "server"), "--new-token", f"time{time.time_ns()}"],
        check=True, capture_output=True, text=True,
    )
    (out / "token").write_text(token.stdout)
    others = f"1-{os.cpu_count() - 1}"
    serve = ["--listen", f"127.0.0.1:{PORT}", "-m", args.model, "--sessions", "1000", "--workers", str(os.cpu_count() - 1)]
    server = subprocess.Popen(
        ["taskset", "-c", others, SMIDGEN, "serve", "--state", str(out / "server"), *serve],
        stderr=(out / "server.log").open("w"),
    )
    time.sleep(1)
    side = ["--method", "side", "--server", f"http://127.0.0.1:{PORT}", "--server-token", str(out / "token")]
    ways = {"exact": []}
    usual = [] if args.only_flags else ["--loss-on device", "--loss-on server"]
    for flags in [*usual, *args.flags]:
        ways[flags] = [*side, *flags.split()]
    found = {name: [] for name in ways}
    try:
        for round in range(args.rounds):
            for at, (name, flags) in enumerate(ways.items()):
                found[name].append(train(args, f"run-{at}", flags))
                print(json.dumps({"round": round, "run": name, "found": found[name][-1]}), flush=True)
    finally:
        server.terminate()
        server.wait()
    print(f"\n{machine()}\n")
    print("| run | seconds a step | of exact's | CPU seconds | of exact's | planned MB | measured MB | of exact's |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    middle = {name: [statistics.median(run[i] for run in runs) for i in range(4)] for name, runs in found.items()}
    exact = middle["exact"]
    for name, (seconds, cpu, peak, planned) in middle.items():
        # Each round's own ratio: machines drift.
        ratio = statistics.median(run[0] / base[0] for run, base in zip(found[name], found["exact"]))
        cells = [f"{seconds:.2f}", f"{ratio:.2f}", f"{cpu:.1f}", f"{cpu / exact[1]:.2f}"]
        cells += [f"{planned / 1e6:.2f}", f"{peak / 1e6:.2f}", f"{peak / exact[2]:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
