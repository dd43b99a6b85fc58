"""Table of the compared architectures, from ``docs/measured/architectures.csv``."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from markdown_table import table

MEASURED = Path(__file__).parent / "measured" / "architectures.csv"
NAMES = {
    "fixed_point": "fixed-point steps",
    "convolutions": "3-D convolutions",
    "attention": "attention",
}
Row = dict[str, str]


def architectures() -> str:
    """Size and result of each architecture after the same training time."""
    lines = [
        [
            NAMES[row["architecture"]],
            f"{int(row['parameters']):,}",
            f"{float(row['scenes_per_s']):.0f}",
            f"{int(row['scenes_seen']):,}",
            f"{float(row['validation_loss']):.3f}",
            f"{float(row['validation_heat_map']):.3f}",
            f"{float(row['validation_count']):.3f}",
            f"{float(row['validation_covariance']):.3f}",
            f"{float(row['validation_covariance_predicted']):.3f}",
        ]
        for row in {row["architecture"]: row for row in _rows()}.values()
    ]
    head = [
        "",
        "parameters",
        "scenes/s",
        "scenes seen",
        "loss",
        "heat map",
        "count",
        "error of R_blend",
        "of R_pred",
    ]
    return table(head, lines)


def architecture_misses() -> str:
    """Sources missed by the hybrid estimator with each network, and by MUSIC on its blend alone."""
    kept: dict[tuple[str, str], dict[str, str]] = {}
    for row in _rows():
        cell = f"K = {row['sources']}, {float(row['snr_db']):g} dB"
        value, low, high = (100 * float(row[name]) for name in ("misses", "misses_low", "misses_high"))
        line = kept.setdefault((row["method"], NAMES[row["architecture"]]), {})
        line[cell] = f"{value:.1f} ({low:.0f} to {high:.0f})"
    cells = list(dict.fromkeys(cell for line in kept.values() for cell in line))
    methods = dict.fromkeys(method for method, _ in kept)
    ordered = sorted(kept, key=lambda key: list(methods).index(key[0]))
    lines = [
        [
            f"`{method.partition(' ')[0]}`{method[len(method.partition(' ')[0]) :]}",
            name,
            *kept[method, name].values(),
        ]
        for method, name in ordered
    ]
    return table(["method", "network", *cells], lines)


TABLES: tuple[Callable[[], str], ...] = (architectures, architecture_misses)


def _rows() -> list[Row]:
    with MEASURED.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
