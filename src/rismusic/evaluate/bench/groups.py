"""Rows arranged for tables and plots: methods down, SNR or the values of a sweep across."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rismusic.evaluate.bench.sweeps import AXES, NONE
from rismusic.evaluate.bench.table import BenchRow


@dataclass(frozen=True)
class Group:
    """Rows of one K over SNR, or of one K and SNR over the values of a sweep.

    Args:
        sweep: what is varied; ``none``: the SNR.
        title: what they have in common.
        axis: what is across, with its unit.
        heads: [C] the values across.
        rows: C rows of each method.
    """

    sweep: str
    title: str
    axis: str
    heads: tuple[str, ...]
    rows: dict[str, tuple[BenchRow, ...]]


def groups(rows: Sequence[BenchRow]) -> list[Group]:
    """All groups, in the order of the rows."""
    kept: dict[tuple[str, int, float | None], list[BenchRow]] = {}
    for row in rows:
        key = (row.sweep, row.sources, None if row.sweep == NONE else row.snr_db)
        kept.setdefault(key, []).append(row)
    result = []
    for (sweep, sources, snr_db), some in kept.items():
        methods: dict[str, list[BenchRow]] = {}
        for row in some:
            methods.setdefault(row.method, []).append(row)
        first = next(iter(methods.values()))
        grid = snr_db is None
        result.append(
            Group(
                sweep=sweep,
                title=f"K = {sources}" if snr_db is None else f"K = {sources}, {snr_db:g} dB",
                axis="SNR / dB" if grid else AXES.get(sweep, sweep),
                heads=tuple(f"{row.snr_db:g} dB" if grid else row.point for row in first),
                rows={name: tuple(line) for name, line in methods.items()},
            )
        )
    return result
