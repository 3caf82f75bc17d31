"""Runs `smidgen train` for side_links.sh, and tells what it measured.

    side_links.py find OUT/RUN [--target LOSS] --flags F -- COMMAND...
        at full speed, to the first held-out loss that is no higher than the target, or to its end, and then its lowest counts
    side_links.py time OUT/RUN --group G --namespace N --device D --epoch E --samples C --steps S --flags F [--link MBIT]
                  --like OUT/RUN -- COMMAND...
        held back; seconds and bytes of a few steps of E samples, and the seconds that S steps take of C samples
    side_links.py told OUT/RUN.json KEY
    side_links.py table OUT

find and time write OUT/RUN.json. D is the link's end at the server: what it received went up.
"""
import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time


def lines(run: pathlib.Path, kind: str) -> list[dict]:
    """What the run said of its steps or evaluations up to now; its last line may be half written."""
    path = run / "smidgen/metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    whole = [json.loads(line) for line in text.split("\n")[:-1]]
    return [line for line in whole if line["kind"] == kind]


def start(run: pathlib.Path, command: list[str]) -> subprocess.Popen:
    with open(f"{run}.out", "w") as out, open(f"{run}.err", "w") as err:
        return subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL)


def find(args: argparse.Namespace, command: list[str]) -> dict:
    child = start(args.run, command)
    stopped = False
    try:
        while child.poll() is None:
            time.sleep(0.5)
            losses = [line["loss"] for line in lines(args.run, "evaluation")]
            if not stopped and args.target is not None and any(loss <= args.target for loss in losses):
                child.send_signal(signal.SIGTERM)
                stopped = True
    finally:
        child.kill()
    if child.wait() != 0 and not stopped:
        sys.exit(f"exit code {child.returncode}")
    evaluations = [(line["step"], line["loss"]) for line in lines(args.run, "evaluation")]
    reached = [(step, loss) for step, loss in evaluations if args.target is not None and loss <= args.target]
    lowest = min(evaluations, key=lambda one: one[1])
    # Those that get there come first, by their steps, then the others by how far they came.
    order = f"{reached[0][0] if reached else 1e9} {lowest[1]}"
    return {
        "reached": bool(reached), "steps": (reached[0] if reached else lowest)[0], "aim": args.target if reached else lowest[1],
        "loss": evaluations[-1][1], "order": order, "evaluations": evaluations,
    }


def counters(device: str) -> dict:
    """Bytes up and down, packets' headers among them."""
    folder = pathlib.Path("/sys/class/net") / device / "statistics"
    return {way: int((folder / f"{name}_bytes").read_text()) for way, name in [("up", "rx"), ("down", "tx")]}


def timed(args: argparse.Namespace, command: list[str]) -> dict:
    enter = ["sh", "-c", 'echo $$ > "$1"; shift; exec "$@"', "sh", f"{args.group}/cgroup.procs"]
    enter += ["nsenter", f"--net=/run/netns/{args.namespace}"]
    last = int(command[command.index("--iters") + 1])
    first = min(args.epoch, last)
    late = max(first, last - 3)  # behind the last step comes the network
    marks = {0: counters(args.device)}
    began = time.monotonic()
    child = start(args.run, enter + command)
    try:
        while child.poll() is None:
            time.sleep(0.05)
            done = len(lines(args.run, "step"))
            for step in {first, late}:
                if done >= step and step not in marks:
                    marks[step] = counters(args.device)
        wall = time.monotonic() - began
    finally:
        child.kill()
    if child.returncode != 0:
        sys.exit(f"exit code {child.returncode}")
    report = json.loads(pathlib.Path(f"{args.run}.out").read_text().splitlines()[-1])
    used, end = os.times(), counters(args.device)
    for step in {first, late}:
        marks.setdefault(step, end)
    steps = lines(args.run, "step")
    assert len(steps) == last, f"{len(steps)} of {last} steps"
    seconds = [step["seconds"] for step in steps]
    known = [step["loss"] for step in lines(args.like, "step")][:first]

    # The first step begins those of the window too, and each one after it that of WINDOW steps later: the last ones of an epoch
    # begin steps whose taps the server has.
    is_side = "--server" in command
    window = (int(command[command.index("--window") + 1]) if "--window" in command else 2) if is_side else 0
    paces = [sum(part) / len(part) if part else None for part in (seconds[1:first - window], seconds[first - window:])]
    sending = min(args.steps, args.samples - window) if is_side else args.steps
    needed = seconds[0] + (sending - 1) * paces[0] + ((args.steps - sending) * paces[1] if args.steps > sending else 0)

    def bytes_a_step(begin: int, end: int) -> dict | None:
        return {way: (marks[end][way] - marks[begin][way]) / (end - begin) for way in ("up", "down")} if end > begin else None

    return {
        "link_mbit": args.link, "like": args.like.name, "steps": args.steps, "seconds": needed,
        "first_step_seconds": seconds[0], "seconds_a_step": paces,
        "bytes_a_step": [bytes_a_step(0, first), bytes_a_step(first, late)],
        "bytes_of_last_steps_and_network": {way: end[way] - marks[late][way] for way in ("up", "down")},
        "losses_as_at_full_speed": [step["loss"] for step in steps][:len(known)] == known,
        "peak_memory_bytes": report["peak_memory_bytes"], "wall_seconds": wall,
        "cpu_seconds": used.children_user + used.children_system, "load": os.getloadavg(), "step_seconds": seconds,
    }


def table(out: pathlib.Path) -> None:
    def told(name: str) -> dict:
        return json.loads((out / f"{name}.json").read_text())

    def sent(sums: dict | None) -> str:
        return "; ".join(f"{sums[way] / 1e6:.3f}" for way in ("up", "down")) if sums else ""

    runs = [told(path.stem) for path in sorted(out.glob("time_*.json"), key=lambda path: path.stat().st_mtime)]
    lora = next(run for run in runs if run["link_mbit"] is None)
    print("| link, Mbit/s | flags | loss | steps | seconds | LoRA's steps | LoRA's seconds | LoRA's / side's "
          "| s a step, first epoch; cached | MB up; down a step, first epoch | cached | device's peak, MB |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for run in runs:
        peak = f"{run['peak_memory_bytes'] / 1e6:.1f}"
        pace = "; ".join(f"{pace:.2f}" for pace in run["seconds_a_step"] if pace is not None)
        if run is lora:
            print(f"| none | {run['flags']} | {told(run['like'])['loss']:.3f} | | | {run['steps']} | {run['seconds']:.0f} | | {pace} "
                  f"| | | {peak} |")
            continue
        found = told(run["like"])
        steps = next(step for step, loss in told(lora["like"])["evaluations"] if loss <= found["aim"]) if not found["reached"] \
            else lora["steps"]
        seconds = lora["first_step_seconds"] + (steps - 1) * lora["seconds_a_step"][0]
        first, cached = map(sent, run["bytes_a_step"])
        print(f"| {run['link_mbit']:g} | `{run['flags']}` | {found['aim']:.3f}{'' if found['reached'] else ', its lowest'} "
              f"| {run['steps']} | {run['seconds']:.0f} | {steps} | {seconds:.0f} | {seconds / run['seconds']:.2f} | {pace} "
              f"| {first} | {cached} | {peak} |")
    print("\nHeld-out losses by steps, at full speed:")
    for path in [*sorted(out.glob("lora_*.json")), *sorted(out.glob("find_*.json"))]:
        print(f"- `{path.stem}`: " + ", ".join(f"{step}: {loss:.3f}" for step, loss in told(path.stem)["evaluations"]))
    for run in runs:
        if not run["losses_as_at_full_speed"]:
            print(f"\n{run['link_mbit'] or 'no'} link, {run['flags']}: its losses are not those of the run at full speed!")


def main() -> None:
    if sys.argv[1] == "told":
        print(json.loads(pathlib.Path(sys.argv[2]).read_text())[sys.argv[3]])
        return
    if sys.argv[1] == "table":
        table(pathlib.Path(sys.argv[2]))
        return
    own, command = sys.argv[1:sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1:]
    parser = argparse.ArgumentParser()
    parser.add_argument("how", choices=["find", "time"])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--flags")
    parser.add_argument("--target", type=float)
    parser.add_argument("--group")
    parser.add_argument("--namespace")
    parser.add_argument("--device")
    parser.add_argument("--epoch", type=int)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--link", type=float)
    parser.add_argument("--like", type=pathlib.Path)
    args = parser.parse_args(own)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    measured = {"flags": args.flags, "command": command} | (find if args.how == "find" else timed)(args, command)
    part = pathlib.Path(f"{args.run}.json.part")
    part.write_text(json.dumps(measured) + "\n")
    part.rename(f"{args.run}.json")


main()
