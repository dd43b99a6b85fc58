"""Errors over the Cramer-Rao bound for every signal model, with the number of sources known.

``python benchmarks/signal_models.py [--scenes 200] [--cells fresnel qpsk] [--csv FILE]`` prints one CSV row
per model and SNR; ``--scenes 4`` is a quick run. ``ok`` says whether the median errors of azimuth, elevation
and inverse range of the hits are all within 1.15 of their bound.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from rismusic.array import Panel
from rismusic.crb import Bound, recording_crb
from rismusic.hybrid import locate
from rismusic.io import Recording
from rismusic.metrics import Match, match, score
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources

SNRS_DB = (10.0, 20.0)
LIMIT = 1.15
BLOCK = 25
DIRECT = {"channel": {"kind": "direct"}}
NEAR = {"range_min_m": 0.5, "range_max_m": 4.0}


@dataclass(frozen=True)
class Cell:
    """One model.

    Args:
        settings: of the system; two sources unless they say otherwise.
        locate: further settings of ``locate``.
        panel: replaces the panel of the system.
        azimuth_only: whether the true elevations are 0, for a line of elements.
        coloured: whether the noise has a random covariance, which the recording states.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    locate: dict[str, Any] = field(default_factory=dict)
    panel: Callable[[], Panel] | None = None
    azimuth_only: bool = False
    coloured: bool = False


def symbols(kind: str, antennas: int, snapshots: int) -> dict[str, Any]:
    """Settings of constant or known symbols."""
    return {
        "scene": {"symbols": kind},
        "channel": {"antennas": antennas},
        "codebook": {"snapshots": snapshots},
    }


def wideband(subcarriers: int) -> dict[str, Any]:
    """Settings of an OFDM signal of 100 MHz at 3.5 GHz with one snapshot per subcarrier."""
    return {
        "panel": {"wavelength_m": 299792458.0 / 3.5e9},
        "codebook": {"snapshots": 1},
        "wideband": {"subcarriers": subcarriers, "bandwidth_hz": 100e6},
        "scene": {"range_min_m": 0.5, "range_max_m": 3.0},
    }


IMPULSES = {"impulses": {"fraction": 0.02, "power_db": 30.0}}

CELLS = {
    **{wave: Cell({"panel": {"wave": wave}}) for wave in ("spherical", "uniform", "fresnel", "paraxial")},
    "constant, M=1, L=64": Cell(symbols("constant", 1, 64)),
    "constant, M=16, L=16": Cell(symbols("constant", 16, 16)),
    "known, M=1, L=64": Cell(symbols("pilots", 1, 64)),
    "known, M=16, L=16": Cell(symbols("pilots", 16, 16)),
    "correlated .9": Cell({"scene": {"correlation": 0.9}}),
    "correlated .9, fitted as independent": Cell({"scene": {"correlation": 0.9}}, {"symbols": "independent"}),
    "independent, fitted as correlated": Cell({}, {"symbols": "correlated"}),
    "qpsk": Cell({"scene": {"symbols": "qpsk"}}),
    "F=16": Cell(wideband(16)),
    "F=64": Cell(wideband(64)),
    "ULA-16": Cell(DIRECT | {"scene": NEAR}, panel=lambda: Panel.uniform_linear(16), azimuth_only=True),
    "circle-16": Cell(DIRECT | {"scene": NEAR}, panel=lambda: Panel.uniform_circular(16)),
    "8 x 8 direct": Cell(DIRECT | {"panel": {"rows": 8, "columns": 8}}),
    "impulses": Cell(IMPULSES, {"noise": "impulsive"}),
    "impulses, fitted as Gaussian noise": Cell(IMPULSES),
    "Gaussian noise, fitted with impulses": Cell({}, {"noise": "impulsive"}),
    "coloured": Cell(coloured=True),
    "coloured, 8 x 8 direct": Cell(DIRECT | {"panel": {"rows": 8, "columns": 8}}, coloured=True),
}


def made(cell: Cell, snr_db: float, scenes: int) -> Recording:
    """The recording of a cell, with truth and noise variance."""
    settings = {"sources": 2} | cell.settings
    panel = None if cell.panel is None else cell.panel()
    own: dict[str, Any] = dict(settings)
    if panel is not None:
        own["panel"] = panel
    if cell.azimuth_only:
        drawn = simulate(scenes=scenes, seed=1, **own).truth
        assert drawn is not None
        truth = Sources(azimuth=_apart(drawn.azimuth), elevation=0 * drawn.elevation, range=drawn.range)
        own["sources"] = truth
    if not cell.coloured:
        return simulate(scenes=scenes, seed=1, snr_db=snr_db, **own)
    return _coloured(simulate(scenes=scenes, seed=1, snr_db=200.0, dtype=torch.float64, **own), snr_db)


def _apart(azimuth: Tensor) -> Tensor:
    """Azimuths [S, 2] at least 8 deg apart: for sources that were apart in elevation."""
    first, second = azimuth.unbind(-1)
    least = math.radians(8.0)
    gap = second - first
    return torch.stack(
        (first, torch.where(gap.abs() < least, first - 2 * least * first.sign(), second)), dim=-1
    )


def _coloured(clean: Recording, snr_db: float) -> Recording:
    """The recording with noise of one random covariance, 6 dB between its strongest and weakest antenna."""
    generator = torch.Generator().manual_seed(0)
    y = clean.snapshots
    M = y.shape[-1]
    mix = torch.randn(M, M, dtype=y.dtype, generator=generator) / (2 * M**0.5)
    root = torch.diag(torch.linspace(0.7, 1.4, M, dtype=torch.float64)).to(y.dtype) @ (
        torch.eye(M, dtype=y.dtype) + mix
    )
    covariance = root @ root.mH
    covariance = covariance / covariance.diagonal().real.mean()
    variance = y.abs().square().mean((1, 2)) / 10 ** (snr_db / 10)
    white = torch.randn(y.shape, dtype=y.dtype, generator=generator)
    noise = white @ torch.linalg.cholesky(covariance).mT
    return replace(
        clean,
        snapshots=y + variance.sqrt()[:, None, None] * noise,
        noise_variance=variance,
        noise_covariance=covariance,
    )


def row(name: str, snr_db: float, scenes: int, method: str) -> dict[str, object]:
    """One row of the table."""
    recording = made(CELLS[name], snr_db, scenes)
    truth = recording.truth
    assert truth is not None
    K = truth.azimuth.shape[-1]
    start = time.perf_counter()
    parts = [
        locate(recording[i : i + BLOCK], n_sources=K, method=method, **CELLS[name].locate)
        for i in range(0, scenes, BLOCK)
    ]
    seconds = (time.perf_counter() - start) / scenes
    found = Sources(
        **{
            n: torch.cat([getattr(part.sources, n) for part in parts])
            for n in ("azimuth", "elevation", "range")
        }
    )
    matched, bound = match(truth, found), recording_crb(recording)
    result = score(matched, bound)
    medians = (result.azimuth_over_bound, result.elevation_over_bound, result.inverse_range_over_bound)
    squares = _rms(matched, bound)
    known = [value for value in medians if math.isfinite(value) and value > 0]
    return {
        "model": name,
        "snr_db": snr_db,
        "scenes": scenes,
        "sources": K,
        "misses": f"{result.misses:.4f}",
        **{f"median_{n}_over_bound": f"{value:.3f}" for n, value in zip(COORDINATES, medians, strict=True)},
        **{f"rms_{n}_over_bound": f"{value:.3f}" for n, value in zip(COORDINATES, squares, strict=True)},
        "ok": bool(known) and max(known) <= LIMIT,
        "seconds_per_scene": f"{seconds:.3f}",
    }


COORDINATES = ("azimuth", "elevation", "inverse_range")


def _rms(matched: Match, bound: Bound) -> list[float]:
    """Root mean square of error over bound of the hits, for each coordinate that has a bound."""
    least = torch.cat((bound.std[..., :2], bound.inverse_range_std[..., None]), dim=-1)
    errors = torch.cat((matched.error[..., :2], matched.inverse_range_error[..., None]), dim=-1)
    ratio = (errors / least).flatten(0, 1)
    return [float(value) for value in ratio.square().nanmean(dim=0).sqrt()]


def write_table(names: list[str], scenes: int, method: str, file: TextIO) -> None:
    """Write the rows as they come."""
    writer = None
    for name in names:
        for snr_db in SNRS_DB:
            values = row(name, snr_db, scenes, method)
            if writer is None:
                writer = csv.DictWriter(file, list(values), lineterminator="\n")
                writer.writeheader()
            writer.writerow(values)
            file.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS), metavar="CELL")
    parser.add_argument("--method", default="relax")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    if given.csv is None:
        write_table(given.cells, given.scenes, given.method, sys.stdout)
        return
    with given.csv.open("w", newline="", encoding="utf-8") as file:
        write_table(given.cells, given.scenes, given.method, file)


if __name__ == "__main__":
    main()
