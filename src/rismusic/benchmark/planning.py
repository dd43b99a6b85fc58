"""The smallest systems whose position error bound reaches a target.

The search assumes that the position error bound falls with each of four sizes: rows of the panel, antennas,
snapshots and bits. A system that reaches the target then decides all larger ones, and one that misses it
decides all smaller ones, so that few bounds are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rismusic.benchmark.bound_table import scene_bounds
from rismusic.errors import InputError
from rismusic.spec import LinkBudgetSpec, SystemSpec

MAX_CANDIDATES = 100_000
"""Largest number of candidates of a search."""

_Place = tuple[int, ...]


@dataclass(frozen=True)
class PlannedSystem:
    """A candidate and its position error bound.

    Args:
        rows: number of rows of the panel.
        columns: number of columns.
        elements: number of elements, N.
        antennas: number of receiver outputs, M.
        snapshots: L.
        bits: phase resolution; None with direct sampling.
        snr_db: median SNR over the scenes in dB.
        position_error_bound_m: median position error bound over all sources of all scenes (3-D).
    """

    rows: int
    columns: int
    elements: int
    antennas: int
    snapshots: int
    bits: int | None
    snr_db: float
    position_error_bound_m: float

    def __str__(self) -> str:
        bits = "" if self.bits is None else f", {self.bits} bits"
        return f"{self.rows} x {self.columns}, M = {self.antennas}, L = {self.snapshots}{bits}"


@dataclass(frozen=True)
class PlanResult:
    """Outcome of :func:`plan`.

    Args:
        systems: the smallest systems that reach the target, by N, M, L and bits; empty if none does.
        largest: the largest candidate.
        evaluated: number of candidates whose bound was computed.
    """

    systems: list[PlannedSystem]
    largest: PlannedSystem
    evaluated: int


def plan(
    target_m: float,
    range_m: float,
    *,
    rows: Sequence[int] = (4, 6, 8, 10, 12, 16, 20, 24, 32),
    antennas: Sequence[int] = (4, 8, 16, 32),
    snapshots: Sequence[int] = (4, 8, 16, 32, 64),
    bits: Sequence[int] = (1, 2, 3),
    sources: int = 1,
    power_dbm: float = 0.0,
    snr_db: float | None = None,
    system: SystemSpec | None = None,
    budget: LinkBudgetSpec | None = None,
    scenes: int = 30,
    seed: int = 0,
    kind: Literal["conditional", "unconditional"] = "conditional",
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> PlanResult:
    """Find the smallest systems whose median position error bound reaches a target at a range.

    A system is listed if it reaches the target and no candidate does that is smaller in rows, antennas,
    snapshots or bits and larger in none of them. The counterpart of ``rismusic plan``.

    Args:
        target_m: position error bound to reach, in metres.
        range_m: range of the sources in metres; their directions are drawn as ``system.scene`` says.
        rows: candidates; the panels are square.
        antennas: candidates; not used with direct sampling.
        snapshots: candidates.
        bits: candidates; not used with direct sampling.
        sources: number of sources, K.
        power_dbm: transmit power of each source in dBm. The SNR follows from the link budget.
        snr_db: SNR of every candidate, in place of the link budget.
        system: all other settings.
        budget: gains, bandwidth and noise of the link budget.
        scenes: number of scenes of each candidate.
        seed: seed of the scenes.
        kind: see :mod:`rismusic.crb`.
        progress: called with the number of candidates that are decided, and of all.

    Raises:
        InputError: a value that is not positive, no candidates or more than 100,000, or an impossible
            setting.

    Example:
        >>> found = plan(0.1, 2.0, snr_db=20, rows=[8, 12], antennas=[8], snapshots=[16, 32], bits=[2])
        >>> [str(one) for one in found.systems]
        ['12 x 12, M = 8, L = 16, 2 bits']
    """
    for name, value in (("target_m", target_m), ("range_m", range_m)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(name, f"must be positive and finite, in metres; got {value:g}")
    base = system or SystemSpec()
    direct = base.channel.kind == "direct"
    if direct:
        antennas, bits = antennas[:1], bits[:1]
    axes = [sorted(set(values)) for values in (rows, antennas, snapshots, bits)]
    for name, values in zip(("rows", "antennas", "snapshots", "bits"), axes, strict=True):
        if not values:
            raise InputError(name, "give at least one candidate")
    candidates = math.prod(map(len, axes))
    if candidates > MAX_CANDIDATES:
        raise InputError(
            "rows, antennas, snapshots, bits",
            f"the limit is {MAX_CANDIDATES:,} candidates; got {candidates:,}. Give fewer values",
        )

    def evaluate(place: _Place) -> PlannedSystem:
        side, M, L, resolution = (values[index] for values, index in zip(axes, place, strict=True))
        candidate = base.replace(
            sources=sources,
            snr_db=0.0 if snr_db is None else float(snr_db),
            scene=base.scene.replace(range_min_m=range_m, range_max_m=range_m),
            panel=base.panel.replace(rows=side, columns=side),
            channel=base.channel.replace(antennas=M),
            codebook=base.codebook.replace(snapshots=L, bits=resolution),
        )
        found = scene_bounds(
            candidate,
            scenes=scenes,
            seed=seed,
            kind=kind,
            power_dbm=power_dbm if snr_db is None else None,
            budget=budget,
        )
        return PlannedSystem(
            rows=side,
            columns=side,
            elements=side**2,
            antennas=side**2 if direct else M,
            snapshots=L,
            bits=None if direct else resolution,
            snr_db=float(found.snr_db.median()),
            position_error_bound_m=float(found.position_error.nanmedian()),
        )

    return _search(evaluate, target_m, axes, progress)


def _search(
    evaluate: Callable[[_Place], PlannedSystem],
    target_m: float,
    axes: Sequence[Sequence[int]],
    progress: Callable[[int, int], None],
) -> PlanResult:
    """Evaluate candidates until all are decided, each time one that decides many whatever its outcome."""
    shape = tuple(map(len, axes))
    reaches = np.zeros(shape, bool)
    known = np.zeros(shape, bool)
    # The cost of a candidate breaks ties.
    cost = np.ones(shape)
    for axis, values in enumerate(axes):
        by_axis = np.asarray(values, float).reshape([-1 if i == axis else 1 for i in range(len(axes))])
        cost = cost * (by_axis**2 if axis == 0 else by_axis)
    evaluated: dict[_Place, PlannedSystem] = {}
    place: _Place = tuple(length - 1 for length in shape)
    while True:
        one = evaluated[place] = evaluate(place)
        if one.position_error_bound_m <= target_m:
            larger = tuple(slice(index, None) for index in place)
            reaches[larger] |= ~known[larger]
            known[larger] = True
        else:
            known[tuple(slice(0, index + 1) for index in place)] = True
        progress(int(known.sum()), known.size)
        if known.all():
            break
        open_ = (~known).astype(int)
        decides = np.minimum(_cumulated(open_), np.flip(_cumulated(np.flip(open_))))
        decides = np.where(known, 0, decides)
        best = np.lexsort((cost.ravel(), -decides.ravel()))[0]
        place = tuple(int(index) for index in np.unravel_index(best, shape))
    smallest = [
        one for place, one in evaluated.items() if reaches[place] and not _smaller_reaches(reaches, place)
    ]
    smallest.sort(key=lambda one: (one.elements, one.antennas, one.snapshots, one.bits or 0))
    return PlanResult(smallest, evaluated[tuple(length - 1 for length in shape)], len(evaluated))


def _cumulated(values: np.ndarray) -> np.ndarray:
    """Sum over all places that are not larger along any axis."""
    for axis in range(values.ndim):
        values = values.cumsum(axis)
    return values


def _smaller_reaches(reaches: np.ndarray, place: _Place) -> bool:
    """Whether a neighbour that is smaller along one axis reaches the target."""
    return any(
        index > 0 and bool(reaches[(*place[:axis], index - 1, *place[axis + 1 :])])
        for axis, index in enumerate(place)
    )
