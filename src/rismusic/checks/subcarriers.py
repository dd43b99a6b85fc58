r"""Subcarriers that were stored as snapshots of one wavelength.

Snapshot l then has the frequency :math:`f_0 (1 + b\,t_l)`, :math:`t_l = l / (L - 1) - 1/2`, with the unknown
relative bandwidth b (negative for descending frequencies). For fixed positions the conditional cost is a
function of b alone. It is computed for bandwidths in geometric steps, and around the best of them again.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rismusic.array import SPEED_OF_LIGHT
from rismusic.estimation.classical import fit_known
from rismusic.estimation.grid import Volume, searched_grid
from rismusic.estimation.likelihood import conditional_cost, sufficient_statistics
from rismusic.estimation.maximum_likelihood import ROUGH, refine, unpack
from rismusic.io import Recording
from rismusic.spec import LocateSpec

# Fewer snapshots than these cannot tell; scenes that estimate the bandwidth; its least and largest value.
_SNAPSHOTS, _SCENES, _LEAST, _MOST = 4, 4, 1e-3, 0.4
# Geometric steps of each sign, and rounds of five points around the best one.
_STEPS, _ROUNDS = 11, 6
_SETTINGS = LocateSpec(method="omp", criterion="conditional", oversampling=1.6, range_max_m=math.inf)


def as_subcarriers(recording: Recording) -> Recording | None:
    """The recording with each snapshot as a subcarrier, at the most likely bandwidth.

    None if that does not apply: behind a RIS, where the channels of the subcarriers would be needed, with
    other than independent symbols, or with few snapshots.
    """
    L = recording.snapshots.shape[-2]
    stated = recording.has_coherent_symbols or recording.frequencies is not None
    if stated or recording.channel is not None or recording.codes is not None or L < _SNAPSHOTS:
        return None
    return with_bandwidth(recording, _bandwidth(recording[:_SCENES]))


def with_bandwidth(recording: Recording, bandwidth: float) -> Recording:
    """The recording with snapshots as subcarriers of this relative bandwidth around its wavelength."""
    L = recording.snapshots.shape[-2]
    middle = SPEED_OF_LIGHT / recording.wavelength
    place = torch.linspace(-0.5, 0.5, L, dtype=torch.float64, device=recording.snapshots.device)
    return replace(
        recording, snapshots=recording.snapshots.unsqueeze(2), frequencies=middle * (1 + bandwidth * place)
    )


def _bandwidth(recording: Recording) -> float:
    """The most likely bandwidth for the true sources, or for one that is searched without truth."""
    bare = replace(recording, noise_variance=None)
    if recording.truth is None:
        one = torch.ones(len(bare), dtype=torch.int64, device=bare.snapshots.device)
        sources = fit_known(bare.stacked(), one, searched_grid(bare, _SETTINGS), _SETTINGS).sources
    else:
        sources = recording.truth
    positions, active = unpack(sources, bare)
    steps = torch.logspace(0, 1, _STEPS, base=_MOST / _LEAST, dtype=torch.float64) * _LEAST
    tried = torch.cat((-steps, steps)).tolist()
    ratio = float(steps[1] / steps[0])
    best = 0.0
    for _ in range(_ROUNDS):
        best = min(tried, key=lambda bandwidth: _cost(bare, bandwidth, positions, active))
        if recording.truth is None:
            # The best positions for one wavelength are not those for this bandwidth.
            form = with_bandwidth(bare, best).stacked()
            positions = refine(form, positions, active, Volume.from_spec(_SETTINGS), options=ROUGH).positions
        tried = [best * ratio**power for power in (-1.0, -0.5, 0.0, 0.5, 1.0)]
        ratio = ratio**0.5
    return best


def _cost(
    recording: Recording, bandwidth: float, positions: Float[Tensor, "S K 3"], active: Bool[Tensor, "S K"]
) -> float:
    """Minus the conditional log-likelihood, up to a constant factor."""
    stacked = with_bandwidth(recording, bandwidth).stacked()
    return float(conditional_cost(sufficient_statistics(stacked, positions, active)).log().sum())
