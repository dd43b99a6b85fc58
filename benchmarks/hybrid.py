"""Scenes per second of the default estimator: ``python benchmarks/hybrid.py [--json FILE]``.

Default system, K drawn from 1 to 5, noise variance estimated, 256 scenes: K unknown and known, in one thread,
two threads and two processes, beside ``omp`` in the same run; and the time of one scene alone.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from measure import report
from rismusic.hybrid import locate
from rismusic.io import Recording
from rismusic.simulation.simulator import simulate

SCENES, SINGLE = 256, 24
# Torch threads and processes.
WAYS = {"one thread": (1, 1), "two threads": (2, 1), "two processes": (1, 2)}


def rate(
    recording: Recording, n_sources: Tensor | str, threads: int = 1, workers: int = 1, method: str = "hybrid"
) -> float:
    """Scenes per second, after a warm-up."""
    torch.set_num_threads(threads)
    locate(recording[: SCENES // 4], n_sources="auto", method=method)
    start = time.perf_counter()
    locate(recording, n_sources=n_sources, method=method, workers=workers)
    return len(recording) / (time.perf_counter() - start)


def main() -> None:
    rows: dict[str, float | str] = {}
    for snr_db in (10.0, 0.0):
        made = simulate(scenes=SCENES, sources=(1, 5), snr_db=snr_db, seed=3)
        assert made.truth is not None
        count = made.truth.active.sum(-1)
        made = replace(made, noise_variance=None, truth=None)
        for way, (threads, workers) in WAYS.items():
            rows[f"{snr_db:g} dB, K unknown, {way}: scenes/s"] = rate(made, "auto", threads, workers)
            rows[f"{snr_db:g} dB, K known, {way}: scenes/s"] = rate(made, count, threads, workers)
        rows[f"{snr_db:g} dB, K unknown, omp, one thread: scenes/s"] = rate(made, "auto", method="omp")
        torch.set_num_threads(1)
        alone = [made[scene : scene + 1] for scene in range(SINGLE)]
        start = time.perf_counter()
        for scene in alone:
            locate(scene)
        rows[f"{snr_db:g} dB, K unknown, one scene: ms"] = 1e3 * (time.perf_counter() - start) / SINGLE
    report("Default estimator", rows)


if __name__ == "__main__":
    main()
