"""Speed and memory of the classical estimators: ``python benchmarks/estimators.py [--json FILE]``.

K = 3 known, 10 dB, default system, noise variance estimated, 256 scenes, 2 threads; with a link per scene
and with one link for all. OMP is compared with a plain NumPy version: scene by scene, with the dense
dictionary G_l A, greedy search by projections, then SciPy's least squares on the projected residual. Memory
is the peak of a separate process that locates four times as many scenes.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import least_squares

import plain_numpy as plain
from measure import peak_memory_mib, report
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.hybrid import locate
from rismusic.io import Recording
from rismusic.simulation.simulator import simulate
from rismusic.spec import LocateSpec

SCENES, SOURCES, BY_NUMPY = 256, 3, 4
METHODS = ("omp", "omp conditional", "relax", "sbl", "best", "music")


def made(scenes: int, *, one_link: bool) -> Recording:
    recording = simulate(scenes=scenes, sources=SOURCES, snr_db=10.0, one_link=one_link)
    return replace(recording, noise_variance=None, truth=None)


def run(recording: Recording, name: str) -> None:
    method, _, criterion = name.partition(" ")
    locate(recording, n_sources=SOURCES, method=method, criterion=criterion or "unconditional")


def scenes_per_second(recording: Recording, name: str) -> float:
    """The better of two runs, after a short one."""
    run(recording[:8], name)
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        run(recording, name)
        best = min(best, time.perf_counter() - start)
    return len(recording) / best


def residual(x: np.ndarray, p: np.ndarray, G: np.ndarray, y: np.ndarray) -> np.ndarray:
    """P_perp(G_l A) y_l of all snapshots as real numbers."""
    A = np.stack([plain.steering(p, *position) for position in x.reshape(-1, 3)], axis=1)
    left = []
    for C, one in zip(G @ A, y, strict=True):
        Q = np.linalg.qr(C)[0]
        left.append(one - Q @ (Q.conj().T @ one))
    r = np.concatenate(left)
    return np.concatenate((r.real, r.imag))


def numpy_omp(p: np.ndarray, H: np.ndarray, codes: np.ndarray, y: np.ndarray, points: np.ndarray) -> None:
    G = H[None] * codes[:, None, :]
    A = np.stack([plain.steering(p, *point) for point in points], axis=1)
    fields = G @ A  # [L, M, P]
    energy = (np.abs(fields) ** 2).sum(1)
    x = np.zeros(0)
    low, high = points.min(0), points.max(0)
    for k in range(1, SOURCES + 1):
        gain = 0.0
        C = None if k == 1 else G @ np.stack([plain.steering(p, *s) for s in x.reshape(-1, 3)], axis=1)
        for i, one in enumerate(y):
            Q = np.zeros((len(one), 0)) if C is None else np.linalg.qr(C[i])[0]
            left = one - Q @ (Q.conj().T @ one)
            rest = energy[i] - (np.abs(Q.conj().T @ fields[i]) ** 2).sum(0)
            gain = gain + np.abs(fields[i].conj().T @ left) ** 2 / np.maximum(rest, 1e-3 * energy[i])
        x = np.concatenate((x, points[np.argmax(gain)]))
        bounds = (np.tile(low - 1e-9, k), np.tile(high + 1e-9, k))
        x = least_squares(residual, x, args=(p, G, y), bounds=bounds, x_scale=np.tile((0.01, 0.01, 0.3), k)).x


def numpy_scenes_per_second(recording: Recording) -> float:
    grid = SearchGrid.cover(recording.panel, Volume.from_spec(LocateSpec()), LocateSpec().oversampling)
    coordinates = torch.stack((grid.azimuth, grid.elevation, grid.range), dim=-1)
    points = coordinates[grid.inside].numpy()
    p = recording.elements.double().numpy()
    assert recording.channel is not None
    assert recording.codes is not None
    start = time.perf_counter()
    H, codes, y = (v.numpy() for v in (recording.channel, recording.codes, recording.snapshots))
    for i in range(BY_NUMPY):
        numpy_omp(p, H[i], codes[i], y[i], points)
    return BY_NUMPY / (time.perf_counter() - start)


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--memory":
        torch.set_num_threads(2)
        recording = made(int(sys.argv[3]), one_link=False)
        before = peak_memory_mib()
        run(recording, sys.argv[2])
        print(f"{peak_memory_mib():.0f} {before:.0f}")
        return
    torch.set_num_threads(2)
    rows: dict[str, float | str] = {}
    own, one = made(SCENES, one_link=False), made(SCENES, one_link=True)
    slow = numpy_scenes_per_second(own)
    rows["omp conditional, plain NumPy: scenes/s"] = slow
    for name in METHODS:
        rates = scenes_per_second(own, name), scenes_per_second(one, name)
        rows[f"{name}, own links: scenes/s"] = rates[0]
        rows[f"{name}, one link: scenes/s"] = rates[1]
        rows[f"{name}, one link over own links"] = rates[1] / rates[0]
        if name == "omp conditional":
            rows[f"{name}, over plain NumPy"] = rates[0] / slow
    for name in ("omp", "sbl"):
        for scenes in (SCENES, 4 * SCENES):
            command = [sys.executable, __file__, "--memory", name, str(scenes)]
            words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            rows[f"{name}, {scenes} scenes: peak memory, MiB (of it before: {words[1]})"] = float(words[0])
    report("Locators", rows)


if __name__ == "__main__":
    main()
