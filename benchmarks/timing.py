"""What the benchmarks share: turns and medians, options, and conditions."""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import time

import numpy as np


def medians(calls, x, rounds):
    """Median seconds of each call on x, taking turns in changing orders."""
    seconds = {name: [] for name in calls}
    rng = np.random.default_rng(0)
    for call in calls.values():
        for _ in range(3):
            call(x)
    names = [*calls]
    for _ in range(rounds):
        for index in rng.permutation(len(names)):
            name = names[index]
            call = calls[name]
            start = time.perf_counter()
            call(x)
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def parser(description, **numbers):
    """An ArgumentParser with options that are whole numbers: their defaults."""
    result = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, default in numbers.items():
        flag = "--" + name.replace("_", "-")
        result.add_argument(flag, type=int, default=default)
    return result


def add_jit(options):
    options.add_argument("--jit", action="store_true", help="jit_compile=True")


def conditions(args, packages=("tensorflow", "keras")):
    """How, where and with what the figures below were measured."""
    parts = [
        getattr(args, "policy", "float32"),
        f"median of {args.rounds}; {processor()}",
        *(f"{name} {importlib.metadata.version(name)}" for name in packages),
    ]
    if getattr(args, "jit", False):
        parts.append("jit_compile=True")
    return ", ".join(parts) + "\n"


def processor():
    """Name and number of the processors, as far as the system tells."""
    name, path = platform.processor(), pathlib.Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(": ")[1]
    return f"{name}, {os.cpu_count()} cores"
