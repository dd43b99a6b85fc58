r"""How good a trained network is after everything that inference does with it: one number for the search.

.. math:: \text{cost} = (1 - F_1) + \text{GOSPA} / c, \qquad c = 2\,\mathrm m.

F1 counts which sources were found within 5 deg, and does not see how well, nor their range; GOSPA sees the
distance in space, but is blind beyond its cutoff c. Each is of order 1 over the SNR that is searched, and
neither can be bought with much of the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from rismusic.hybrid import locate
from rismusic.io import Recording
from rismusic.metrics import match
from rismusic.simulation.simulator import Simulator
from rismusic.spec import LocateSpec, SystemSpec, limits

Number = TypeVar("Number", float, np.ndarray)
CUTOFF_M = 2.0
# Where the scenes that judge begin in their split: far beyond those that a training validates on.
_KNOBS, _OBJECTIVE = 2**40, 2**41


@dataclass(frozen=True)
class Judged:
    """What was found in each scene.

    Args:
        hits: true sources that were found.
        true: true sources.
        found: found sources.
        gospa_m: metres.
    """

    hits: tuple[int, ...]
    true: tuple[int, ...]
    found: tuple[int, ...]
    gospa_m: tuple[float, ...]

    @property
    def f1(self) -> float:
        """Over all sources of all scenes."""
        return 2 * sum(self.hits) / max(1, sum(self.true) + sum(self.found))

    @property
    def mean_gospa_m(self) -> float:
        """Over the scenes, metres."""
        return float(np.mean(self.gospa_m))

    @property
    def cost(self) -> float:
        """See the head of this module."""
        return cost(self.f1, self.mean_gospa_m)


def cost(f1: Number, gospa_m: Number) -> Number:
    """See the head of this module; of numbers or of arrays.

    Args:
        f1: 0 to 1.
        gospa_m: metres.
    """
    return 1 - f1 + gospa_m / CUTOFF_M


def knob_scenes(system: SystemSpec, seed: int, scenes: int, device: str) -> Recording:
    """Scenes on which settings of inference are compared."""
    return Simulator(system, seed=seed, split="validation", device=device).scenes(_KNOBS, _KNOBS + scenes)


def objective_scenes(system: SystemSpec, seed: int, scenes: int, device: str) -> Recording:
    """Scenes on which trials are judged."""
    return Simulator(system, seed=seed, split="validation", device=device).scenes(
        _OBJECTIVE, _OBJECTIVE + scenes
    )


def fresh_scenes(system: SystemSpec, seed: int, scenes: int, device: str) -> Recording:
    """Scenes that nothing is chosen by."""
    return Simulator(system, seed=seed, split="test", device=device).scenes(0, scenes)


def locate_in(system: SystemSpec, spec: LocateSpec, weights: Path) -> LocateSpec:
    """Settings of inference for the scenes of a system and some weights."""
    return spec.replace(
        weights=str(weights),
        sources_max=limits(system.sources)[1],
        azimuth_max_deg=system.scene.azimuth_max_deg,
        elevation_max_deg=system.scene.elevation_max_deg,
        range_min_m=system.scene.range_min_m,
        range_max_m=system.scene.range_max_m,
    )


@torch.no_grad()
def judge(recording: Recording, spec: LocateSpec) -> Judged:
    """Locate the sources of every scene, and compare them with the truth.

    Args:
        recording: scenes with their truth.
        spec: settings of inference, with the weights.
    """
    assert recording.truth is not None
    matched = match(recording.truth, locate(recording, spec=spec).sources)
    return Judged(
        hits=tuple(matched.hit.sum(-1).tolist()),
        true=tuple(matched.true_count.tolist()),
        found=tuple(matched.found_count.tolist()),
        gospa_m=tuple(matched.gospa.tolist()),
    )
