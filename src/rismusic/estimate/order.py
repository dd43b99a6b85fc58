"""How many sources: fits with 0, 1, 2, ... of them, and how probable each number is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.estimate.nfmle import Fit
from rismusic.scene import Sources

# A scene is done when so many further sources in a row have not paid.
_PATIENCE = 2


@dataclass(frozen=True, eq=False)
class Chosen:
    """The most probable number of sources of S scenes.

    Args:
        fit: with that number, padded to the largest of any scene (one place at least).
        log_evidence: [S, most + 1] of 0, 1, ... sources, in nats, with what was known beforehand; minus
            infinity where it was not tried.
    """

    fit: Fit
    log_evidence: Float[Tensor, "S counts"]

    @property
    def probability(self) -> Float[Tensor, "S counts"]:
        """[S, most + 1] probability of each number, equally probable beforehand if nothing else was said."""
        return self.log_evidence.softmax(dim=1)


def choose_count(
    scenes: Int64[Tensor, "S"],
    fit: Callable[[Int64[Tensor, "_"], int], tuple[Fit, Float[Tensor, "_"]]],
    most: int,
    prior: Float[Tensor, "S counts"] | None = None,
) -> Chosen:
    """The fits whose number of sources has the greatest evidence, scene by scene.

    Numbers are tried upwards; a scene that two more sources have not improved is not tried with a third.

    Args:
        scenes: 0 to S - 1.
        fit: fits so many sources to each of some scenes, and says how evident that number is (nats).
        most: largest number that is tried.
        prior: [S, most + 1] logarithm of how probable each number is beforehand; where it is minus infinity
            the number is not tried (but 0, which costs nothing). Equal if none is given.
    """
    best, evidence = fit(scenes, 0)
    if prior is None:
        prior = evidence.new_zeros(len(scenes), most + 1)
    all_evidence = torch.full_like(prior, -math.inf)
    value, since = evidence + prior[:, 0], torch.zeros_like(scenes)
    all_evidence[:, 0] = value
    for count in range(1, most + 1):
        left = scenes[(since < _PATIENCE) & (prior[:, count] > -math.inf)]
        if len(left) == 0:
            continue
        tried, evidence = fit(left, count)
        evidence = evidence + prior[left, count]
        all_evidence[left, count] = evidence
        better = evidence > value[left]
        value[left] = torch.where(better, evidence, value[left])
        since[left] = torch.where(better, 0, since[left] + 1)
        best = replaced(best, left[better], tried[better])
    return Chosen(best, all_evidence)


def replaced(best: Fit, scenes: Int64[Tensor, "_"], tried: Fit) -> Fit:
    """``best`` with some scenes taken from another fit; both padded to the wider one's places.

    Args:
        best: of S scenes.
        scenes: numbers of the scenes of the other fit.
        tried: the other fit, of these scenes.
    """
    width = max(best.sources.azimuth.shape[1], tried.sources.azimuth.shape[1])

    def put(old: Tensor, new: Tensor) -> Tensor:
        changed = _padded(old, width) if old.ndim > 1 else old.clone()
        changed[scenes] = _padded(new, width) if new.ndim > 1 else new
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
