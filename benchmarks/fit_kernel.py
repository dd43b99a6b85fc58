"""The compiled fits against the torch form: ``python benchmarks/fit_kernel.py [--json FILE]``.

Processor time of one thread per scene, which the load of the machine hardly changes: fits alone (K = 3,
10 dB, from 1 degree off) and the hybrid estimator. Both forms take turns on the same scenes of the default
system, with the noise variance estimated. Then how the two forms' estimates agree.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar
from unittest.mock import patch

import torch

from measure import report
from rismusic.estimation import maximum_likelihood
from rismusic.estimation.estimate import Estimate
from rismusic.estimation.grid import Volume
from rismusic.estimation.maximum_likelihood import refine, unpack, values_without_each
from rismusic.hybrid import locate
from rismusic.io import Recording
from rismusic.simulation.simulator import simulate
from rismusic.spec import LocateSpec

T = TypeVar("T")
SINGLE = 5
WIDE = 8  # scenes of several subcarriers


def in_turns(works: Sequence[Callable[[], T]]) -> tuple[list[list[T]], list[float]]:
    """Results, and median processor time (ms), of the torch form and of the compiled one."""
    ends: list[list[T]] = [[], []]
    times: list[list[float]] = [[], []]
    for work in works:
        for form in range(2):
            kernel = (lambda: None) if form == 0 else maximum_likelihood._kernel
            with patch.object(maximum_likelihood, "_kernel", kernel):
                start = time.process_time()
                ends[form].append(work())
                times[form].append(1e3 * (time.process_time() - start))
    return ends, [sorted(each)[len(each) // 2] for each in times]


def agreement(torch_form: Estimate, compiled: Estimate) -> tuple[float, float]:
    """Shares of scenes with the same number of sources, and with all positions within .01 error bars."""
    same = torch_form.sources.active.sum(-1) == compiled.sources.active.sum(-1)
    width = min(torch_form.sources.active.shape[1], compiled.sources.active.shape[1])
    near = same.clone()
    for axis, name in enumerate(("azimuth", "elevation", "range")):
        one, other = (getattr(each.sources, name)[:, :width] for each in (torch_form, compiled))
        std = torch_form.covariance[:, :width, axis, axis].sqrt()
        near &= ((one - other).abs() <= 0.01 * std).logical_or(one.isnan()).all(-1)
    return float(same.double().mean()), float(near.double().mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenes", type=int, default=128)
    scenes = parser.parse_known_args()[0].scenes
    torch.set_num_threads(1)
    rows: dict[str, float | str] = {}

    def compare(name: str, works: Sequence[Callable[[], T]], count: int) -> list[list[T]]:
        works[0]()
        ends, (before, after) = in_turns(works)
        rows[f"{name}, torch: ms"] = before / count
        rows[f"{name}, compiled: ms"] = after / count
        rows[f"{name}: ratio"] = before / after
        return ends

    def simulated(sources: int | tuple[int, int], snr_db: float) -> Recording:
        return replace(simulate(scenes=scenes, sources=sources, snr_db=snr_db), noise_variance=None)

    recording = simulated(3, 10.0)
    positions, active = unpack(recording.truth, recording)  # type: ignore[arg-type]
    positions = positions + 0.02 * torch.randn(
        positions.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    volume = Volume.from_spec(LocateSpec())
    for criterion in ("conditional", "unconditional"):
        fit = partial(refine, volume=volume, criterion=criterion)
        compare(f"fit, {criterion}", [partial(fit, recording, positions, active)] * 2, scenes)
        single = [
            partial(fit, recording[i : i + 1], positions[i : i + 1], active[i : i + 1]) for i in range(SINGLE)
        ]
        compare(f"fit, {criterion}, one scene", single, 1)
    without = partial(values_without_each, recording, positions, active, "unconditional")
    compare("values without each source", [without] * 2, scenes)
    for snr_db in (10.0, 0.0):
        for sources, label in (((1, 5), "K unknown"), (3, "K = 3 known")):
            recording = replace(simulated(sources, snr_db), truth=None)
            told = sources if isinstance(sources, int) else "auto"
            run = partial(locate, n_sources=told, method="hybrid")
            name = f"locate, {label}, {snr_db:g} dB"
            ends = compare(name, [partial(run, recording)], scenes)
            same, near = agreement(ends[0][0], ends[1][0])
            rows[f"{name}: same number of sources"] = same
            rows[f"{name}: within .01 error bars"] = near
            if snr_db > 0:
                compare(f"{name}, one scene", [partial(run, recording[i : i + 1]) for i in range(SINGLE)], 1)
    for subcarriers in (4, 16):
        recording = simulate(
            scenes=WIDE,
            sources=2,
            snr_db=10.0,
            wideband={"subcarriers": subcarriers, "bandwidth_hz": 100e6},
        )
        recording = replace(recording, noise_variance=None, truth=None)
        run = partial(locate, recording)
        name = f"locate, {subcarriers} subcarriers, K = 2 unknown"
        ends = compare(name, [run], WIDE)
        same, near = agreement(ends[0][0], ends[1][0])
        rows[f"{name}: same number of sources"] = same
        rows[f"{name}: within .01 error bars"] = near
    report("Compiled fits", rows)


if __name__ == "__main__":
    main()
