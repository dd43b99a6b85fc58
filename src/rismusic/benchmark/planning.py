"""The Cramer-Rao bound of systems as a table and a plot, and the smallest systems that reach a target.

:func:`bound_table` goes over the number of sources, the SNR and swept settings. The search of :func:`plan`
assumes that the position error bound falls with each of four sizes: rows of the panel, antennas, snapshots
and bits. A system that reaches the target then decides all larger ones, and one that misses it decides all
smaller ones, so that few bounds are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.array import to_db
from rismusic.batch import concatenate
from rismusic.benchmark.spec import Value, axis_label, sweep_points
from rismusic.crb import Bound, BoundKind, recording_crb
from rismusic.errors import InputError, check_choice
from rismusic.io import Recording
from rismusic.link_budget import compute_link_budget
from rismusic.plots import bound_curves, figure_of, new_axes, print_style
from rismusic.simulation.simulator import Simulator
from rismusic.spec import LinkBudgetSpec, SystemSpec, limits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Largest number of entries of the bounds of all scenes, and of the largest array of a block of scenes.
_LARGEST_BOUND, _BLOCK = 2**27, 2**24


@dataclass(frozen=True)
class BoundRow:
    """Median bounds on the standard deviations over all sources of all scenes, for one K, SNR and point.

    The position error bound (3-D) is the root mean square. From a link budget, with the transmit power of
    each source, the SNR is the median over the scenes. Without a sweep, ``sweep`` and ``point`` are empty.
    """

    sources: int
    snr_db: float
    azimuth_std_deg: float
    elevation_std_deg: float
    range_std_m: float
    inverse_range_std_per_m: float
    position_error_bound_m: float
    sweep: str = ""
    point: str = ""
    power_dbm: float | None = None


@dataclass(frozen=True, eq=False)
class SceneBounds:
    """Bounds of the sources of random scenes, the position error bound in metres, and the SNR in dB.

    The SNR is NaN if the system draws it.
    """

    bound: Bound
    position_error: Float[Tensor, "S K"]
    snr_db: Float[Tensor, "S"]


def scene_bounds(
    system: SystemSpec,
    *,
    scenes: int,
    seed: int = 0,
    kind: BoundKind = "conditional",
    power_dbm: float | None = None,
    budget: LinkBudgetSpec | None = None,
) -> SceneBounds:
    """Bounds of random scenes of a system, at its SNR or at that of a link budget.

    ``power_dbm`` is the transmit power of each source in dBm, from which the SNR follows as
    :func:`rismusic.link_budget.compute_link_budget` describes. Path loss then replaces ``scene.power``, F
    subcarriers share the power equally, and the bandwidth of the budget is that of one.
    """
    check_choice("kind", kind, get_args(BoundKind))
    numbers = scenes * (3 * limits(system.sources)[1]) ** 2
    if numbers > _LARGEST_BOUND:
        raise InputError(
            "scenes",
            f"the bounds of {scenes:,} scenes are {numbers:,} numbers; the limit is {_LARGEST_BOUND:,}",
        )
    if power_dbm is not None:
        system = system.replace(snr_db=0.0, scene=system.scene.replace(power="equal"))
        # The subcarriers share the power of a source.
        power_dbm -= 10 * math.log10(system.wideband.subcarriers)
    simulator = Simulator(system, seed=seed, split="test")
    channel, N = system.channel, system.panel.rows * system.panel.columns
    M = N if channel.kind == "direct" else channel.antennas
    step = max(1, _BLOCK // (N * (M + system.codebook.snapshots) * system.wideband.subcarriers))
    blocks = [
        _block_bounds(simulator.scenes(start, min(start + step, scenes)), system, kind, power_dbm, budget)
        for start in range(0, scenes, step)
    ]
    return SceneBounds(
        concatenate([block.bound for block in blocks]),
        torch.cat([block.position_error for block in blocks]),
        torch.cat([block.snr_db for block in blocks]),
    )


def _block_bounds(
    recording: Recording,
    system: SystemSpec,
    kind: BoundKind,
    power_dbm: float | None,
    budget: LinkBudgetSpec | None,
) -> SceneBounds:
    """Bounds of a block of simulated scenes; see :func:`scene_bounds`."""
    scenes = len(recording)
    truth = recording.truth
    assert truth is not None
    assert truth.power is not None
    assert truth.symbols is not None
    if power_dbm is None:
        low, high = limits(system.snr_db)
        snr_db = torch.full((scenes,), low if low == high else torch.nan)
    else:
        azimuth, elevation, distance = truth.filled()
        gain = compute_link_budget(
            distance,
            power_dbm,
            azimuth_deg=azimuth.rad2deg(),
            elevation_deg=elevation.rad2deg(),
            system=system,
            budget=budget,
        )
        power = truth.power * gain.power
        symbols = truth.symbols * gain.power.sqrt()[..., None]
        truth = replace(truth, power=power, symbols=symbols.to(truth.symbols.dtype))
        recording = replace(recording, truth=truth, noise_variance=torch.ones(scenes))
        snr_db = to_db(power.nansum(-1) / gain.outputs)
    bound = recording_crb(recording, kind)
    return SceneBounds(bound, bound.position_error(truth.elevation.double()), snr_db)


def bound_table(
    spec: SystemSpec | None = None,
    *,
    sources: Sequence[int] = (1, 2, 3, 5),
    snr_db: Sequence[float] = (0.0, 5.0, 10.0, 20.0),
    power_dbm: Sequence[float] = (),
    sweep: Mapping[str, Sequence[Value]] | None = None,
    budget: LinkBudgetSpec | None = None,
    scenes: int = 200,
    seed: int = 0,
    kind: BoundKind = "conditional",
    progress: Callable[[], None] = lambda: None,
) -> list[BoundRow]:
    """Cramer-Rao bound for each K, SNR and value of a swept setting; as ``rismusic bound`` prints it.

    All SNRs use the same scenes, so that the bound falls smoothly with the SNR.

    Args:
        spec: the system; its ``sources`` and ``snr_db`` are replaced by those below.
        sources: numbers of sources, K.
        snr_db: SNRs in dB. The SNR is the same at each point of a sweep.
        power_dbm: transmit powers of each source in dBm, in place of SNRs; see :func:`scene_bounds`.
        sweep: values of each swept setting, such as ``{"panel.rows": (8, 12, 16)}``. Values of several
            settings are paired in order.
        budget: gains, bandwidth and noise of the link budget.
        scenes: number of scenes for each cell.
        seed: seed of the scenes.
        kind: see :mod:`rismusic.crb`.
        progress: called after each cell.

    Raises:
        InputError: an unknown setting, an invalid value, or settings with different numbers of values.

    Example:
        >>> rows = bound_table(sources=[1], snr_db=[10.0], sweep={"codebook.snapshots": (8, 32)}, scenes=5)
        >>> [row.point for row in rows]
        ['8', '32']
    """
    sweep = sweep or {}
    points = sweep_points(sweep, spec or SystemSpec(), budget)
    levels: list[tuple[float | None, float | None]] = [(snr, None) for snr in snr_db]
    if power_dbm:
        levels = [(None, power) for power in power_dbm]
    rows = []
    for K in sources:
        for snr, power in levels:
            for point in points:
                cell = point.system.replace(sources=K, snr_db=0.0 if snr is None else float(snr))
                found = scene_bounds(
                    cell, scenes=scenes, seed=seed, kind=kind, power_dbm=power, budget=point.budget
                )
                azimuth, elevation, distance = found.bound.std.flatten(0, 1).nanmedian(dim=0).values
                rows.append(
                    BoundRow(
                        sources=K,
                        snr_db=float(found.snr_db.median()) if snr is None else snr,
                        azimuth_std_deg=azimuth.rad2deg().item(),
                        elevation_std_deg=elevation.rad2deg().item(),
                        range_std_m=distance.item(),
                        inverse_range_std_per_m=found.bound.inverse_range_std.nanmedian().item(),
                        position_error_bound_m=found.position_error.square().nanmean().sqrt().item(),
                        sweep=", ".join(sweep),
                        point=point.label,
                        power_dbm=power,
                    )
                )
                progress()
    return rows


def bound_figure(rows: Sequence[BoundRow], *, width_mm: float | None = None) -> Figure:
    """The bounds on azimuth, range and position over the swept setting, or over SNR or transmit power.

    Each number of sources has a curve; with a sweep, each number of sources at each SNR or power.
    """
    power = rows[0].power_dbm is not None
    sweep, swept = rows[0].sweep, bool(rows[0].sweep)

    def level(row: BoundRow) -> float:
        return row.snr_db if row.power_dbm is None else row.power_dbm

    curves: dict[str, list[BoundRow]] = {}
    for row in rows:
        label = f"K = {row.sources}"
        if swept:
            label += f", {level(row):g} {'dBm' if power else 'dB'}"
        curves.setdefault(label, []).append(row)
    one = next(iter(curves.values()))
    x_values = [row.point for row in one] if swept else [level(row) for row in one]
    xlabel = axis_label(sweep) if sweep else "transmit power / dBm" if power else "SNR / dB"
    with print_style(width_mm):
        axes = new_axes(None, None, None, size=(12.6, 3.3), width_mm=width_mm)
        for ax, name, unit in zip(
            axes,
            ("azimuth_std_deg", "range_std_m", "position_error_bound_m"),
            ("azimuth, std. dev. / deg", "range, std. dev. / m", "position error bound / m"),
            strict=True,
        ):
            values = [[getattr(row, name) for row in curve] for curve in curves.values()]
            bound_curves(x_values, values, [*curves], unit, xlabel=xlabel, ax=ax)
        for ax in axes[1:]:
            ax.get_legend().remove()
    return figure_of(axes[0])


MAX_CANDIDATES = 100_000
"""Largest number of candidates of a search."""

_Cell = tuple[int, ...]


@dataclass(frozen=True)
class PlannedSystem:
    """A candidate, with the medians of its SNR over all scenes and of its position error bound (3-D).

    ``bits`` is None with direct sampling.
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
    kind: BoundKind = "conditional",
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

    def evaluate(cell: _Cell) -> PlannedSystem:
        side, M, L, resolution = (values[index] for values, index in zip(axes, cell, strict=True))
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
    evaluate: Callable[[_Cell], PlannedSystem],
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
    evaluated: dict[_Cell, PlannedSystem] = {}
    cell: _Cell = tuple(length - 1 for length in shape)
    while True:
        one = evaluated[cell] = evaluate(cell)
        if one.position_error_bound_m <= target_m:
            larger = tuple(slice(index, None) for index in cell)
            reaches[larger] |= ~known[larger]
            known[larger] = True
        else:
            known[tuple(slice(0, index + 1) for index in cell)] = True
        progress(int(known.sum()), known.size)
        if known.all():
            break
        open_ = (~known).astype(int)
        decides = np.minimum(_cumulated(open_), np.flip(_cumulated(np.flip(open_))))
        decides = np.where(known, 0, decides)
        best = np.lexsort((cost.ravel(), -decides.ravel()))[0]
        cell = tuple(int(index) for index in np.unravel_index(best, shape))
    smallest = [
        one for cell, one in evaluated.items() if reaches[cell] and not _smaller_reaches(reaches, cell)
    ]
    smallest.sort(key=lambda one: (one.elements, one.antennas, one.snapshots, one.bits or 0))
    return PlanResult(smallest, evaluated[tuple(length - 1 for length in shape)], len(evaluated))


def _cumulated(values: np.ndarray) -> np.ndarray:
    """Sum over all cells that are not larger along any axis."""
    for axis in range(values.ndim):
        values = values.cumsum(axis)
    return values


def _smaller_reaches(reaches: np.ndarray, cell: _Cell) -> bool:
    """Whether a neighbour that is smaller along one axis reaches the target."""
    return any(
        index > 0 and bool(reaches[(*cell[:axis], index - 1, *cell[axis + 1 :])])
        for axis, index in enumerate(cell)
    )
