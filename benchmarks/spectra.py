"""Speed of the spectra over the default grid: ``python benchmarks/spectra.py [--json FILE]``.

256 scenes, each with its own link, on 2 threads. Times run from the covariance to the values of the
spectrum (eigenvectors or inverse included). The reference product is A^H V alone, of all scenes in
complex64 with the same number of columns. The NumPy version processes one scene after the other: dense
covariance, ``eigh`` or inverse, then the quadratic form at every point.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from measure import report
from rismusic.covariance import recording_covariance
from rismusic.estimation.grid import SearchGrid, Volume, find_peaks
from rismusic.estimation.spectra import Spectrum, bartlett, music, mvdr, newton, rap_music, soft_music
from rismusic.simulation.simulator import simulate
from rismusic.spec import SceneSpec

SCENES, SOURCES, BY_NUMPY = 256, 3, 16
Array = np.ndarray[tuple[int, ...], np.dtype[np.complex64]]


def seconds(works: list[Callable[[], object]], repeats: int = 30) -> list[float]:
    """Best times, taken in turns, so that a busy machine is as busy for each."""
    best = [float("inf")] * len(works)
    for _ in range(repeats):
        for i, work in enumerate(works):
            start = time.perf_counter()
            work()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def numpy_music(R: Array, A: Array) -> object:
    U = np.linalg.eigh(R)[1][:, -SOURCES:]
    return 1 / np.maximum(1 - (np.abs(A.conj().T @ U) ** 2).sum(1), 1e-6)


def numpy_mvdr(R: Array, A: Array) -> object:
    return 1 / (A.conj() * (np.linalg.inv(R) @ A)).sum(0).real


def numpy_bartlett(R: Array, A: Array) -> object:
    return (A.conj() * (R @ A)).sum(0).real


def whole(build: Callable[[], Spectrum], grid: SearchGrid) -> object:
    return build().on_grid(grid)


def one_by_one(plain: Callable[[Array, Array], object], covariances: Array, A: Array) -> object:
    return [plain(R, A) for R in covariances]


def main() -> None:
    torch.set_num_threads(2)
    recording = simulate(scenes=SCENES, sources=SOURCES, snr_db=10.0)
    grid = SearchGrid.cover(recording.panel, Volume.from_spec(SceneSpec()))
    R = recording_covariance(recording)
    A, dense = grid.steering(), R[:BY_NUMPY].dense().numpy()
    product = torch.empty(SCENES * R.rank, len(grid), dtype=A.dtype)
    spectra: dict[str, tuple[Callable[[], Spectrum], Callable[[Array, Array], object]]] = {
        "MUSIC": (lambda: music(R, SOURCES), numpy_music),
        "soft MUSIC": (lambda: soft_music(R, SOURCES), numpy_music),
        "MVDR": (lambda: mvdr(R), numpy_mvdr),
        "Bartlett": (lambda: bartlett(R), numpy_bartlett),
    }
    rows: dict[str, float | str] = {}
    for name, (build, plain) in spectra.items():
        spectrum = build()
        flat = spectrum.vectors.mH.reshape(-1, R.size).contiguous()
        took, prepared, bare = seconds(
            [
                partial(whole, build, grid),
                partial(spectrum.on_grid, grid),
                partial(torch.mm, flat, A, out=product[: len(flat)]),
            ]
        )
        # Apart from the others, on whose threads its own would wait.
        (by_numpy,) = seconds([partial(one_by_one, plain, dense, A.numpy())], 3)
        rows[f"{name}: scenes/s"] = SCENES / took
        rows[f"{name}: rate, in units of the bare product's"] = bare / took
        rows[f"{name}: the same, eigenvectors or inverse given"] = bare / prepared
        rows[f"{name}: ratio to plain NumPy, scene by scene"] = by_numpy / BY_NUMPY * SCENES / took
    spectrum = music(R, SOURCES)
    explained = spectrum.explained_on_grid(grid)
    peaks = find_peaks(explained, grid, SOURCES)
    place = (peaks.azimuth, peaks.elevation, peaks.range)
    parts: dict[str, Callable[[], object]] = {
        "R_samp, finished": lambda: recording_covariance(recording),
        "peaks": lambda: find_peaks(explained, grid, SOURCES),
        "Newton": lambda: newton(spectrum, recording.panel, grid.volume, *place),
        "MUSIC, sources in turn": lambda: rap_music(spectrum, grid, SOURCES),
    }
    for name, best in zip(parts, seconds(list(parts.values()), 5), strict=True):
        rows[f"{name}: scenes/s"] = SCENES / best
    report(f"Spectra, {SCENES} scenes, K = {SOURCES}, grid {grid.shape}", rows)


if __name__ == "__main__":
    main()
