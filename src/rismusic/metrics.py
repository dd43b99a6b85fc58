"""Metrics of estimated sources. No scene is dropped, and no penalty is averaged into an error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.array import wrapped
from rismusic.batch import Batch
from rismusic.crb import Bound
from rismusic.errors import InputError
from rismusic.sources import Sources
from rismusic.text import short_repr

MEDIAN_OF_NORMAL = 0.6744897501960817  # the median of the modulus of a standard normal number


@runtime_checkable
class HasSources(Protocol):
    """Something with sources, such as an :class:`~rismusic.estimation.estimate.Estimate`."""

    @property
    def sources(self) -> Sources:
        """The sources of each scene, [S, K]."""


@dataclass(frozen=True, eq=False)
class Match(Batch):
    """Found sources set against the true ones, scene by scene.

    Args:
        hit: [S, K] true sources with a found one within the gate.
        partner: [S, K] the found source that belongs to each true one, -1 where there is none.
        true_count: [S] number of true sources.
        found_count: [S] number of found sources.
        error: [S, K, 3] found minus true azimuth (rad), elevation (rad) and range (m) of hits, NaN elsewhere.
        inverse_range_error: [S, K] found minus true 1 / range (1/m) of hits, NaN elsewhere.
        gospa: [S] metres.
    """

    hit: Bool[Tensor, "S K"]
    partner: Int64[Tensor, "S K"]
    true_count: Int64[Tensor, "S"]
    found_count: Int64[Tensor, "S"]
    error: Float[Tensor, "S K 3"]
    inverse_range_error: Float[Tensor, "S K"]
    gospa: Float[Tensor, "S"]
    __repr__ = short_repr


@dataclass(frozen=True)
class Score:
    """Metrics over all sources of all scenes.

    A miss is a true source without a found one within the gate; a false alarm is a found source that is no
    true one's. ``*_over_bound`` is the median absolute error over .6745 CRB of the same scene: 1 on the
    bound.
    """

    scenes: int
    misses: float
    false_alarms: float
    precision: float
    recall: float
    f1: float
    count_right: float
    gospa_m: float
    azimuth_error_deg: float
    elevation_error_deg: float
    range_error_m: float
    azimuth_over_bound: float
    elevation_over_bound: float
    inverse_range_over_bound: float


def match(truth: Sources, found: Sources | HasSources, *, gate_deg: float = 5.0) -> Match:
    """Assign found sources to true ones so that as many as possible hit, and these as closely as possible.

    A source is hit when azimuth and elevation are each within the gate. The assignment is Hungarian, on the
    angular distance within the gate.

    Args:
        truth: true sources, [S, K].
        found: an estimate, or its sources, [S, K'], with any K'.
        gate_deg: degrees.

    Raises:
        InputError: another number of scenes in ``found`` than in ``truth``, or no sources in it.

    Example:
        >>> score(match(recording.truth, locate(recording)), recording_crb(recording))
    """
    if not isinstance(found, Sources):
        if not isinstance(found, HasSources):
            raise InputError("found", f"must be an estimate or its sources; got {type(found).__name__}")
        found = found.sources
    if len(truth.azimuth) != len(found.azimuth):
        raise InputError(
            "found", f"must have the {len(truth.azimuth)} scenes of the truth; got {len(found.azimuth)}"
        )
    azimuth, elevation = (
        (getattr(found, name)[:, None, :] - getattr(truth, name)[:, :, None]).double()
        for name in ("azimuth", "elevation")
    )
    azimuth = wrapped(azimuth)
    gate = math.radians(gate_deg)
    inside = (azimuth.abs() <= gate) & (elevation.abs() <= gate)  # NaN is outside
    # A pair outside the gate costs more than all pairs inside it together.
    far = 4.0 * gate * (1 + inside.shape[1])
    cost = torch.where(inside, (azimuth.square() + elevation.square()).sqrt(), far).cpu().numpy()
    from scipy.optimize import linear_sum_assignment  # takes long to import

    partner = np.full(inside.shape[:2], -1, dtype=np.int64)
    for scene, costs in enumerate(cost):
        rows, columns = linear_sum_assignment(costs)
        good = costs[rows, columns] < far
        partner[scene, rows[good]] = columns[good]
    index = torch.from_numpy(partner).to(truth.azimuth.device)
    hit = index >= 0
    error, inverse = [], None
    for name in ("azimuth", "elevation", "range"):
        true, other = getattr(truth, name).double(), getattr(found, name).double()
        other = other.gather(1, index.clamp_min(0)) if other.shape[1] else torch.full_like(true, math.nan)
        off = wrapped(other - true) if name == "azimuth" else other - true
        error.append(torch.where(hit, off, math.nan))
        inverse = torch.where(hit, 1 / other - 1 / true, math.nan)
    assert inverse is not None
    return Match(
        hit=hit,
        partner=index,
        true_count=truth.active.sum(-1),
        found_count=found.active.sum(-1),
        error=torch.stack(error, dim=-1),
        inverse_range_error=inverse,
        gospa=gospa(truth, found),
    )


def gospa(truth: Sources, found: Sources, *, cutoff_m: float = 2.0) -> Float[Tensor, "S"]:
    r"""Generalised optimal sub-pattern assignment, [S] metres, with p = 2 and alpha = 2.

    :math:`\left(\min_\gamma \sum_{(i,j) \in \gamma} d_{ij}^2
    + \tfrac{c^2}{2} (|X| + |Y| - 2 |\gamma|)\right)^{1/2}`, d the distance in metres, c the cutoff.

    Rahmathullah, Garcia-Fernandez, Svensson, "Generalized optimal sub-pattern assignment metric", 2017.
    """
    from scipy.optimize import linear_sum_assignment

    values = []
    for scene in range(len(truth.azimuth)):
        X, Y = (one.position[one.active].double().cpu() for one in (truth[scene], found[scene]))
        # For alpha = 2 a pair at the cutoff costs as much as a miss and a false alarm.
        # So does one with a source in the far field, which has no position.
        near = X.isfinite().all(-1)[:, None] & Y.isfinite().all(-1)
        distance = torch.where(near, torch.cdist(X, Y), cutoff_m)
        squared = distance.clamp_max(cutoff_m).square().numpy()
        assigned = squared[linear_sum_assignment(squared)].sum()
        values.append(math.sqrt(assigned + cutoff_m**2 / 2 * abs(len(X) - len(Y))))
    return torch.tensor(values, dtype=torch.float64)


def score(matched: Match, bound: Bound | None = None) -> Score:
    """Metrics over all scenes; ratios to the bound are NaN without one, errors NaN without a hit.

    Args:
        matched: the result of :func:`match`.
        bound: bound of the same scenes, such as that of :func:`~rismusic.crb.recording_crb`.

    Raises:
        InputError: something else than a result of :func:`match`.
    """
    if not isinstance(matched, Match):
        raise InputError("matched", f"must be match(truth, estimate); got {type(matched).__name__}")
    hits, true, found = (int(n.sum()) for n in (matched.hit, matched.true_count, matched.found_count))
    over = [math.nan] * 3
    if bound is not None:
        least = torch.cat((bound.std[..., :2], bound.inverse_range_std[..., None]), dim=-1)
        errors = torch.cat((matched.error[..., :2], matched.inverse_range_error[..., None]), dim=-1)
        ratio = errors.abs() / (MEDIAN_OF_NORMAL * least.to(errors.device))
        over = ratio.flatten(0, 1).nanmedian(dim=0).values.tolist()
    median = matched.error.abs().flatten(0, 1).nanmedian(dim=0).values
    return Score(
        scenes=len(matched.hit),
        misses=1 - hits / true if true else 0.0,
        false_alarms=1 - hits / found if found else 0.0,
        precision=hits / found if found else 1.0,
        recall=hits / true if true else 1.0,
        f1=2 * hits / (true + found) if true + found else 1.0,
        count_right=float((matched.true_count == matched.found_count).double().mean()),
        gospa_m=float(matched.gospa.mean()),
        azimuth_error_deg=math.degrees(median[0]),
        elevation_error_deg=math.degrees(median[1]),
        range_error_m=float(median[2]),
        azimuth_over_bound=over[0],
        elevation_over_bound=over[1],
        inverse_range_over_bound=over[2],
    )


@dataclass(frozen=True)
class Truth:
    """One true source, and the number of the estimated source that hits it (``None`` if it is missed)."""

    scene: int
    azimuth_deg: float
    elevation_deg: float
    range_m: float
    found: int | None


def truth_rows(truth: Sources, estimated: Sources, *, first_scene: int = 0) -> list[Truth]:
    """A row for each true source, with the estimated one that hits it."""
    partner = match(truth, estimated).partner
    return [
        Truth(
            scene=first_scene + scene,
            azimuth_deg=math.degrees(truth.azimuth[scene, source]),
            elevation_deg=math.degrees(truth.elevation[scene, source]),
            range_m=float(truth.range[scene, source]),
            found=None if partner[scene, source] < 0 else int(partner[scene, source]),
        )
        for scene, source in truth.active.nonzero().tolist()
    ]
