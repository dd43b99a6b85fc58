"""The Cramer-Rao bound over the number of sources, the SNR and swept settings, as a table and as a plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.benchmark.spec import SWEEPS
from rismusic.benchmark.sweep import Value, sweep_points
from rismusic.crb import Bound, recording_crb
from rismusic.errors import InputError
from rismusic.io import Recording
from rismusic.link_budget import compute_link_budget
from rismusic.plots import bound_curves, figure_of, new_axes, print_style
from rismusic.simulation.simulator import Simulator
from rismusic.spec import LinkBudgetSpec, SystemSpec, limits
from rismusic.units import to_db

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Largest number of entries of the bounds of all scenes, and of the largest array of a block of scenes.
_LARGEST_BOUND, _BLOCK = 2**27, 2**24


@dataclass(frozen=True)
class BoundRow:
    """Bounds on the standard deviations over all sources of all scenes, for one K, SNR and swept value.

    Args:
        sources: K.
        snr_db: SNR in dB; from a link budget, the median over the scenes.
        azimuth_std_deg: median bound of the azimuth.
        elevation_std_deg: median bound of the elevation.
        range_std_m: median bound of the range.
        inverse_range_std_per_m: median bound of 1 / range.
        position_error_bound_m: root mean square of the position error bound (3-D) over all sources.
        sweep: names of the swept settings, or empty.
        point: their values, or empty.
        power_dbm: transmit power of each source, if the SNR follows from a link budget.
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
    """Bounds of random scenes.

    Args:
        bound: Cramer-Rao bound of the sources.
        position_error: position error bound of each source in metres, [S, K].
        snr_db: SNR of each scene in dB, [S]; NaN if the system draws it.
    """

    bound: Bound
    position_error: Float[Tensor, "S K"]
    snr_db: Float[Tensor, "S"]


def scene_bounds(
    system: SystemSpec,
    *,
    scenes: int,
    seed: int = 0,
    kind: Literal["conditional", "unconditional"] = "conditional",
    power_dbm: float | None = None,
    budget: LinkBudgetSpec | None = None,
) -> SceneBounds:
    """Bounds of random scenes of a system, at its SNR or at that of a link budget.

    Args:
        system: the system. With ``power_dbm`` its ``snr_db`` is not used, and path loss replaces
            ``scene.power``.
        scenes: number of scenes, S.
        seed: seed of the scenes.
        kind: see :mod:`rismusic.crb`.
        power_dbm: transmit power of each source in dBm. The SNR then follows from the link budget, as
            :func:`rismusic.link_budget.compute_link_budget` describes; F subcarriers share the power
            equally, and the bandwidth of the budget is that of one. None: the SNR is that of the system.
        budget: gains, bandwidth and noise of the link budget.

    Raises:
        InputError: more scenes than memory can hold the bounds of.
    """
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
    bound = Bound(
        *(
            torch.cat([getattr(block.bound, name) for block in blocks])
            for name in ("covariance", "range", "inverse_range_std")
        )
    )
    position_error = torch.cat([block.position_error for block in blocks])
    return SceneBounds(bound, position_error, torch.cat([block.snr_db for block in blocks]))


def _block_bounds(
    recording: Recording,
    system: SystemSpec,
    kind: Literal["conditional", "unconditional"],
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
    kind: Literal["conditional", "unconditional"] = "conditional",
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

    Args:
        rows: from :func:`bound_table`.
        width_mm: printed width of the figure, see :mod:`rismusic.plots`.

    Raises:
        InputError: matplotlib is not installed, or the width cannot be printed.
    """
    power = rows[0].power_dbm is not None
    swept = bool(rows[0].sweep)

    def level(row: BoundRow) -> float:
        return row.snr_db if row.power_dbm is None else row.power_dbm

    curves: dict[str, list[BoundRow]] = {}
    for row in rows:
        label = f"K = {row.sources}"
        if swept:
            label += f", {level(row):g} {'dBm' if power else 'dB'}"
        curves.setdefault(label, []).append(row)
    one = next(iter(curves.values()))
    places = [row.point for row in one] if swept else [level(row) for row in one]
    xlabel = _axis(rows[0].sweep) if swept else "transmit power / dBm" if power else "SNR / dB"
    with print_style(width_mm):
        axes = new_axes(None, None, None, size=(12.6, 3.3), width_mm=width_mm)
        for ax, name, unit in zip(
            axes,
            ("azimuth_std_deg", "range_std_m", "position_error_bound_m"),
            ("azimuth, std. dev. / deg", "range, std. dev. / m", "position error bound / m"),
            strict=True,
        ):
            values = [[getattr(row, name) for row in curve] for curve in curves.values()]
            bound_curves(places, values, [*curves], unit, xlabel=xlabel, ax=ax)
        for ax in axes[1:]:
            ax.get_legend().remove()
    return figure_of(axes[0])


def _axis(sweep: str) -> str:
    """Label of the axis of a swept setting."""
    known = {setting: axis for setting, _, axis in SWEEPS.values()}
    return known.get(sweep, sweep)
