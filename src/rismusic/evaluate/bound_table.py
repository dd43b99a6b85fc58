"""The bound as a table over the number of sources and the SNR: what physics allows a system."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rismusic.crb import recording_crb
from rismusic.simulation.simulator import Simulator
from rismusic.spec import SystemSpec


@dataclass(frozen=True)
class BoundRow:
    """Median over all sources of all scenes of the least standard deviations, for one K and SNR."""

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
    """Median Cramer-Rao bound for each number of sources and each SNR; the twin of ``rismusic bound``.

    The same scenes serve every SNR, so that a column falls smoothly.

    Args:
        spec: the system; its ``sources`` and ``snr_db`` are those of the table instead.
        sources: rows, K.
        snr_db: columns, dB.
        scenes: scenes for each cell.
        seed: of the scenes.
        kind: see :mod:`rismusic.crb`.
        progress: called once for each cell done.
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
