"""What the comparing benches share: the machine's description, waiting for it to be quiet, medians with their spread."""

import contextlib
import datetime
import os
import pathlib
import platform
import statistics
import sys
import time

QUIET_CORES = 0.2  # what other processes may take before a side starts
QUIET_TRIES = 60  # seconds


def busy_seconds():
    """Processor time of all processes so far, over all cores; None where the system does not tell."""
    try:
        fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def settle(busy_allowed):
    """Waits until a second passes in which others take little, and returns how many cores they took in it."""
    for _ in range(QUIET_TRIES):
        before, begin = busy_seconds(), time.perf_counter()
        time.sleep(1)
        if before is None:
            return None
        cores = (busy_seconds() - before) / (time.perf_counter() - begin)
        if busy_allowed or cores <= QUIET_CORES:
            return cores
    sys.exit(f"other processes take {cores:.1f} cores; end them, or give --busy and do not publish the ratio")


def spread(values):
    return f"{statistics.median(values):7.3f}  [{min(values):.3f} {max(values):.3f}]"


def cpu():
    """The processor's name; the architecture's where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def machine():
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load_average": os.getloadavg(),
    }
