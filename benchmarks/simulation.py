"""Speed and memory of the simulator: ``python benchmarks/simulation.py [--json FILE]``."""

from __future__ import annotations

import itertools

import numpy as np
import torch

import plain_numpy
from measure import peak_memory_mib, rate, report
from rismusic.simulation.simulator import Simulator
from rismusic.spec import SystemSpec

BATCH = 512
MILLION = 1_000_000


def package(spec: SystemSpec) -> float:
    simulator, start = Simulator(spec), itertools.count(0, BATCH)

    def batch() -> int:
        first = next(start)
        return len(simulator.scenes(first, first + BATCH))

    return rate(batch)


def numpy_form(one_link: bool) -> float:
    generator, p = np.random.default_rng(0), plain_numpy.elements()
    fixed = plain_numpy.link(generator, p)

    def scene() -> int:
        plain_numpy.scene(generator, p, *(fixed if one_link else plain_numpy.link(generator, p)))
        return 1

    return rate(scene, seconds=1.0)


def growth_while_streaming(spec: SystemSpec) -> float:
    """MiB by which the peak grows between the first and the last of a million scenes."""
    before = 0.0
    for number, _ in enumerate(Simulator(spec).stream(BATCH, stop=MILLION)):
        if number == 50:
            before = peak_memory_mib()
    return peak_memory_mib() - before


def phase_error() -> float:
    from rismusic.array import Panel, steering

    generator = torch.Generator().manual_seed(0)
    unit = torch.rand(3, 2000, generator=generator)
    azimuth, elevation, r = (
        (2 * unit[0] - 1) * torch.pi / 3,
        (2 * unit[1] - 1) * torch.pi / 6,
        0.3 * (100 / 0.3) ** unit[2],
    )
    narrow = steering(Panel.uniform_planar(64, 64), azimuth, elevation, r).to(torch.complex128)
    wide = steering(Panel.uniform_planar(64, 64), azimuth.double(), elevation.double(), r.double())
    return float((narrow * wide.conj()).angle().abs().max())


def main() -> None:
    new, one = SystemSpec(), SystemSpec(one_link=True)
    fast = {"new": package(new), "one": package(one)}
    slow = {"new": numpy_form(False), "one": numpy_form(True)}
    report(
        "simulator, default system, float32",
        {
            "scenes/s, a new link per scene": fast["new"],
            "scenes/s, a new link per scene: ratio to plain NumPy": fast["new"] / slow["new"],
            "scenes/s, one link": fast["one"],
            "scenes/s, one link: ratio to plain NumPy": fast["one"] / slow["one"],
            "growth of peak memory over a million scenes, one link (MiB)": growth_while_streaming(one),
            "largest float32 phase error, 64 x 64, 0.3 to 100 m (rad)": phase_error(),
        },
    )


if __name__ == "__main__":
    main()
