"""How many sources: re-fits with 0, 1, 2, ... of them, compared by the unconditional likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields

import torch
from jaxtyping import Int64
from torch import Tensor

from rismusic.estimate.nfmle import Fit
from rismusic.recording import Recording
from rismusic.scene import Sources

# Unknowns of a source: three coordinates and a power.
_UNKNOWNS = 4
# A scene is done when so many further sources in a row have not paid.
_PATIENCE = 2


def choose_count(recording: Recording, fit: Callable[[Recording, Int64[Tensor, "_"]], Fit], most: int) -> Fit:
    r"""The fit whose number of sources explains each scene best, from none to ``most``.

    Minimises :math:`-\log p(Y | \hat\theta_K) + \tfrac12 \cdot 4 K \log(2 L M)` (Schwarz, "Estimating the
    dimension of a model", 1978), p the unconditional likelihood: its number of unknowns does not grow with
    the snapshots, which that of the conditional one does. Numbers are tried upwards; a scene that two more
    sources have not improved is not tried with a third.

    Args:
        recording: S scenes.
        fit: fits so many sources to each scene of a recording.
        most: largest number that is tried.

    Returns:
        The best fits, padded to the largest number that was chosen (one place at least).
    """
    _, L, M = recording.snapshots.shape
    device = recording.snapshots.device
    penalty = 0.5 * _UNKNOWNS * math.log(2 * L * M)
    scenes = torch.arange(len(recording), device=device)
    best = fit(recording, torch.zeros_like(scenes))
    value, since = best.likelihood.clone(), torch.zeros_like(scenes)
    for count in range(1, most + 1):
        left = scenes[since < _PATIENCE]
        if len(left) == 0:
            break
        tried = fit(recording[left], torch.full_like(left, count))
        cost = tried.likelihood + penalty * count
        better = cost < value[left]
        value[left] = torch.where(better, cost, value[left])
        since[left] = torch.where(better, 0, since[left] + 1)
        best = _replaced(best, left[better], tried, better)
    return best


def _replaced(best: Fit, scenes: Int64[Tensor, "_"], tried: Fit, better: Tensor) -> Fit:
    """``best`` with some scenes taken from ``tried``; both padded to the wider one's places."""
    width = max(best.sources.azimuth.shape[1], tried.sources.azimuth.shape[1])

    def put(old: Tensor, new: Tensor) -> Tensor:
        changed = _padded(old, width) if old.ndim > 1 else old.clone()
        changed[scenes] = (_padded(new, width) if new.ndim > 1 else new)[better]
        return changed

    sources = {
        f.name: put(getattr(best.sources, f.name), getattr(tried.sources, f.name)) for f in fields(Sources)
    }
    rest = {
        f.name: put(getattr(best, f.name), getattr(tried, f.name)) for f in fields(Fit) if f.name != "sources"
    }
    return Fit(sources=Sources(**sources), **rest)


def _padded(value: Tensor, width: int) -> Tensor:
    missing = (len(value), width - value.shape[1], *value.shape[2:])
    return torch.cat((value, value.new_full(missing, math.nan)), dim=1)
