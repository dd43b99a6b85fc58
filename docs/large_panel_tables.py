"""Time, memory and hits on large panels, measured by ``benchmarks/large_panels.py``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from markdown_table import table
from rismusic.plots import COLOURS, new_axes

Row = dict[str, str]

MEASURED = Path(__file__).parent / "measured" / "large_panels.csv"
COLUMN_MM = 88.9


def rows() -> list[Row]:
    with MEASURED.open(newline="") as file:
        return list(csv.DictReader(file))


def large_panel_times() -> str:
    """One line per cell; cells that passed the time limit have no figures."""
    head = ("panel", "M, L", "method", "search", "scenes a call", "first, s", "further, s each", "peak, MiB")
    lines = []
    for row in rows():
        pilot = ", constant pilot" if row["constant"] == "True" else ""
        done = bool(row["cpu_s"])
        figures = [f"{float(row[name]):.2f}" if done else "over the limit" for name in ("first_s", "cpu_s")]
        lines.append(
            (
                f"{row['side']} x {row['side']}{pilot}",
                f"{row['antennas']}, {row['snapshots']}",
                row["method"],
                row["search"],
                row["together"],
                *figures,
                f"{float(row['peak_mib']):,.0f}" if done else "",
                f"{row['hits']} of {row['sources_total']}, {row['false_alarms']}" if done else "",
            )
        )
    return table((*head, "hits, false alarms"), lines)


def exponent(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of log y over log x, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def large_panel_growth() -> Any:
    """Processor time over the numbers of elements, snapshots and scenes, with exponents."""
    by_elements, by_snapshots, by_scenes = new_axes(None, None, None, size=(13.2, 3.6), width_mm=COLUMN_MM)
    some = [row for row in rows() if row["method"] == "omp" and row["constant"] == "False" and row["cpu_s"]]
    for search, colour, marker in (("dictionary", COLOURS[1], "s"), ("subarrays", COLOURS[0], "o")):
        line = [
            (float(row["side"]) ** 2, float(row["cpu_s"]))
            for row in some
            if (row["search"], row["snapshots"], row["together"]) == (search, "16", "1")
        ]
        x, y = np.array(line).T
        # A panel of 16 x 16 elements is searched by its dictionary in both.
        name = f"{search}, $N^{{{exponent(x[1:], y[1:]):.1f}}}$" if len(x) > 3 else search
        by_elements.loglog(x, y, marker + "-", c=colour, ms=4, lw=1.2, label=name)
    line = [
        (float(row["snapshots"]), float(row["cpu_s"]))
        for row in some
        if (row["side"], row["search"], row["together"]) == ("32", "subarrays", "1")
    ]
    x, y = np.array(line).T
    name = f"32 x 32, $L^{{{exponent(x, y):.1f}}}$"
    by_snapshots.loglog(x, y, "o-", c=COLOURS[0], ms=4, lw=1.2, label=name)
    line = [
        (float(row["together"]), float(row["together"]) * float(row["cpu_s"]))
        for row in some
        if (row["side"], row["search"], row["snapshots"]) == ("32", "subarrays", "16")
    ]
    x, y = np.array(line).T
    name = f"32 x 32, $S^{{{exponent(x, y):.1f}}}$"
    by_scenes.loglog(x, y, "o-", c=COLOURS[0], ms=4, lw=1.2, label=name)
    sides, lengths, numbers = (16, 24, 32, 48, 64), (16, 32, 64, 128), (1, 2, 4, 8, 16)
    by_elements.set_xticks([side**2 for side in sides], labels=[f"{side} x {side}" for side in sides])
    by_elements.tick_params("x", labelsize=8)
    by_snapshots.set_xticks(lengths, labels=map(str, lengths))
    by_scenes.set_xticks(numbers, labels=map(str, numbers))
    by_scenes.set(xlabel="scenes S of one call", ylabel="s", ylim=(0.1, 50))
    by_elements.set(xlabel="elements N", ylabel="s per scene", ylim=(0.1, 50))
    by_snapshots.set(xlabel="snapshots L", ylabel="s per scene", ylim=(0.1, 10))
    for ax in (by_elements, by_snapshots, by_scenes):
        ax.set_xticks([], minor=True)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, fontsize=8)
    return by_elements
