"""The Cramer-Rao bound over the number of sources and the SNR, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rismusic.crb import recording_crb
from rismusic.plots import bound_curves, figure_of, new_axes, print_style
from rismusic.simulation.simulator import Simulator
from rismusic.spec import SystemSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class BoundRow:
    """Median bounds on the standard deviations over all sources of all scenes, for one K and SNR."""

    sources: int
    snr_db: float
    azimuth_std_deg: float
    elevation_std_deg: float
    range_std_m: float
    inverse_range_std_per_m: float


def bound_table(
    spec: SystemSpec | None = None,
    *,
    sources: Sequence[int] = (1, 2, 3, 5),
    snr_db: Sequence[float] = (0.0, 5.0, 10.0, 20.0),
    scenes: int = 200,
    seed: int = 0,
    kind: Literal["conditional", "unconditional"] = "conditional",
    progress: Callable[[], None] = lambda: None,
) -> list[BoundRow]:
    """Median Cramer-Rao bound for each number of sources and each SNR; as ``rismusic bound`` prints it.

    All SNRs use the same scenes, so that the bound falls smoothly with the SNR.

    Args:
        spec: the system; its ``sources`` and ``snr_db`` are replaced by those below.
        sources: numbers of sources, K.
        snr_db: SNRs in dB.
        scenes: number of scenes for each cell.
        seed: seed of the scenes.
        kind: see :mod:`rismusic.crb`.
        progress: called after each cell.
    """
    rows = []
    base = spec or SystemSpec()
    for K in sources:
        for level in snr_db:
            cell = base.replace(sources=K, snr_db=float(level))
            bound = recording_crb(Simulator(cell, seed=seed, split="test").scenes(0, scenes), kind)
            azimuth, elevation, distance = bound.std.flatten(0, 1).nanmedian(dim=0).values
            inverse = bound.inverse_range_std.nanmedian()
            angles = azimuth.rad2deg().item(), elevation.rad2deg().item()
            rows.append(BoundRow(K, level, *angles, distance.item(), inverse.item()))
            progress()
    return rows


def bound_figure(rows: Sequence[BoundRow], *, width_mm: float | None = None) -> Figure:
    """The bounds on azimuth and range over the SNR, a curve for each number of sources.

    Args:
        rows: from :func:`bound_table`.
        width_mm: printed width of the figure, see :mod:`rismusic.plots`.

    Raises:
        InputError: matplotlib is not installed, or the width cannot be printed.
    """
    sources, snr_db = ([*dict.fromkeys(getattr(row, name) for row in rows)] for name in ("sources", "snr_db"))
    labels = [f"K = {K}" for K in sources]
    with print_style(width_mm):
        axes = new_axes(None, None, size=(9.0, 3.8), width_mm=width_mm)
        for ax, name, unit in zip(
            axes,
            ("azimuth_std_deg", "range_std_m"),
            ("azimuth, standard deviation / deg", "range, standard deviation / m"),
            strict=True,
        ):
            curves = [[getattr(row, name) for row in rows if row.sources == K] for K in sources]
            bound_curves(snr_db, curves, labels, unit, ax=ax)
        axes[1].get_legend().remove()
    return figure_of(axes[0])
