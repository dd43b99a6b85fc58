"""Timing functions of the benchmarks."""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch


def rate(work: Callable[[], int], seconds: float = 3.0, repeats: int = 3) -> float:
    """Items per second: the median of a few runs of at least ``seconds`` each, after a warm-up.

    Args:
        work: processes some items and returns their number.
        seconds: minimum duration of a run.
        repeats: number of runs.
    """
    work()
    rates = []
    for _ in range(repeats):
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            done += work()
        rates.append(done / (time.perf_counter() - start))
    return sorted(rates)[repeats // 2]


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(name: str, rows: dict[str, float | str]) -> None:
    """Print the figures, and write them as JSON where ``--json FILE`` asks for it."""
    parser = argparse.ArgumentParser(description=name)
    parser.add_argument("--json", type=Path)
    target = parser.parse_known_args()[0].json
    machine = f"{os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"{name} ({platform.machine()}, {machine}, load {os.getloadavg()[0]:.1f})")
    for label, value in rows.items():
        print(f"  {label:<58} {value if isinstance(value, str) else format(value, ',.4g'):>12}")
    if target is not None:
        target.write_text(json.dumps({"machine": machine, **rows}, indent=1) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows with the same columns as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
