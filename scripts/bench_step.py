"""Training steps of Smidgen against PyTorch + PEFT: the same model, text, threads, rank and optimiser, in interleaved pairs.

    scripts/bench_step.sh MODEL.gguf TEXT.txt [--pairs 7] [--memory 1GB --memory min] [--length 256] [--json FILE]

A pair is a few PyTorch steps in one process that lives all the time, and for each --memory a run of `smidgen train` with one
step more, whose first step is left out; the two sides take turns at going first. A side's time in a pair is the median of
its steps. Before the pairs, PyTorch makes one step that is not timed. The losses of the first step must agree: both sides
start with B = 0, on the same window.

Other processes distort the ratio in Smidgen's favour: OpenMP's threads wait for each other spinning, so on two cores a third
busy process makes a PyTorch step several times slower. A side therefore starts only once the machine is quiet, and the run
ends with an error if it does not become so.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from bench_machine import machine, settle, spread

HERE = pathlib.Path(__file__).resolve().parent
MAX_LOSS_DIFFERENCE = 2e-3  # nats
PEAKS = ("planned_peak_bytes", "peak_memory_bytes", "peak_rss_bytes")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file of the llama, qwen2 or gemma3 family")
    parser.add_argument("text", help="a .txt file")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a side in a pair (default 3)")
    parser.add_argument("--memory", action="append", help="budget of Smidgen's side, may be repeated (default 1GB)")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence (default 256)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", action="store_true", help="measure though other processes take processor time")
    parser.add_argument("--json", metavar="FILE", help="write every measured time there")
    target = os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")
    parser.add_argument("--smidgen", default=str(pathlib.Path(target) / "release" / "smidgen"))
    return parser.parse_args()


class PyTorch:
    """The process of bench_pytorch.py."""

    def __init__(self, options, tokens):
        command = [sys.executable, str(HERE / "bench_pytorch.py"), options.model, str(tokens)]
        command += ["--length", str(options.length), "--windows", str(options.steps + 1)]
        command += ["--rank", str(options.rank), "--threads", str(options.threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.versions = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit("bench_pytorch.py ended early")
        return json.loads(line)

    def step(self):
        print(file=self.process.stdin, flush=True)
        return self.answer()

    def finish(self):
        """Peak resident bytes."""
        self.process.stdin.close()
        peak = self.answer()["peak_rss_bytes"]
        self.process.wait()
        return peak

    def kill(self):
        self.process.kill()
        self.process.wait()


def train(options, tokens, memory, out):
    """(losses and seconds of every step, the run's report) of one `smidgen train`."""
    command = [options.smidgen, "train", "-m", options.model, "--data", str(tokens), "-o", str(out), "--json"]
    command += ["--iters", str(options.steps + 1), "--no-shuffle", "--max-seq-length", str(options.length)]
    command += ["--lora-rank", str(options.rank), "--lora-alpha", "16", "--learning-rate", "1e-4"]
    command += ["--memory", memory, "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    lines = map(json.loads, (out / "smidgen" / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "step"], json.loads(done.stdout)


def check_losses(pytorch, smidgen):
    difference = abs(pytorch - smidgen)
    print(f"loss of the first step: PyTorch {pytorch:.6f}, Smidgen {smidgen:.6f}", flush=True)
    if not difference <= MAX_LOSS_DIFFERENCE:
        sys.exit(f"the losses differ by {difference:.2e}: the sides do not do the same job")


def measure(options, tokens, out, pytorch):
    """Seconds of each side, {"pytorch": [pairs], MEMORY: [pairs]...}, its peak bytes, and the cores that others took."""
    first = pytorch.step()
    times, peaks, others = {}, {}, []

    def run_pytorch():
        steps = [pytorch.step()["seconds"] for _ in range(options.steps)]
        times.setdefault("pytorch", []).append(statistics.median(steps))

    def run_smidgen():
        for memory in options.memory:
            steps, report = train(options, tokens, memory, out)
            if memory not in times:
                check_losses(first["loss"], steps[0]["loss"])
            times.setdefault(memory, []).append(statistics.median(step["seconds"] for step in steps[1:]))
            peaks[memory] = {key: report.get(key) for key in PEAKS}

    for pair in range(options.pairs):
        for side in (run_pytorch, run_smidgen)[:: -1 if pair % 2 else 1]:
            others.append(settle(options.busy))
            side()
        shown = ", ".join(f"{name} {seconds[-1]:.3f} s" for name, seconds in times.items())
        print(f"pair {pair + 1} of {options.pairs}: {shown}", flush=True)
    return times, peaks, others


def summary(times, peaks):
    print("\nside              s/step   [min max]         ratio   [min max]         peak RSS, MB")
    for name, seconds in times.items():
        side = "PyTorch + PEFT" if name == "pytorch" else f"smidgen {name}"
        ratios = [ours / theirs for ours, theirs in zip(seconds, times["pytorch"], strict=True)]
        peak = peaks[name].get("peak_rss_bytes") or 0
        print(f"{side:16} {spread(seconds)}  {spread(ratios)}  {peak / 1e6:10.0f}")


def main():
    options = arguments()
    options.memory = options.memory or ["1GB"]
    before = machine()
    print(json.dumps(before))
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        tokens = work / "text.tokens"
        make = [options.smidgen, "data", options.text, "-m", options.model, "--out", str(tokens)]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        pytorch = PyTorch(options, tokens)
        try:
            print(json.dumps(pytorch.versions))
            times, peaks, others = measure(options, tokens, work / "adapter", pytorch)
            peaks["pytorch"] = {"peak_rss_bytes": pytorch.finish()}
        finally:
            pytorch.kill()
    summary(times, peaks)
    seen = [cores for cores in others if cores is not None]
    print(f"cores that others took before a side: at most {max(seen):.2f}" if seen else "load of others unknown")
    if options.json:
        found = {"machine": before, "versions": pytorch.versions, "options": vars(options)}
        found |= {"seconds": times, "peaks": peaks, "cores_of_others": others}
        pathlib.Path(options.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
