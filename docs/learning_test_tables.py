"""Tables and figure of the learning tests, from the results of ``benchmarks/learning_tests.py``."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markdown_table import table
from rismusic.plots import COLOURS, new_axes

MEASURED = Path(__file__).parent / "measured"
Row = dict[str, Any]


def learning_figures() -> str:
    """Requirement, result and cost of every learning test."""
    lines = []
    for name, asked in (
        ("litmus", ("fall of the loss in five steps", "fall", "least_fall", "at least")),
        ("overfit", ("training loss after 30 epochs", "training_loss", "training_below", "below")),
        ("overfit", ("validation loss, same scenes", "validation_loss", "validation_below", "below")),
        ("overfit_continued", ("error of R_pred", "error_predicted", "error_below", "below")),
        ("overfit_continued", ("F1, MUSIC on R_pred alone", "f1_predicted", "f1_above", "above")),
        ("generalise", ("misses over those of MUSIC on R_samp", "ratio", "ratio_at_most", "at most")),
    ):
        figures = _figures(name)
        what, measured, limit, relation = asked
        lines.append(
            [
                f"`{name}`",
                what,
                f"{relation} {figures[limit]:g}",
                f"{figures[measured]:.3f}",
                "yes" if figures["passed"] else "**no**",
                _took(figures),
            ]
        )
    return table(["test", "quantity", "required", "measured", "passed", "scenes seen; processor time"], lines)


def learning_misses() -> str:
    """Misses on unseen scenes: R_samp, untrained and trained network, without and with NF-MLE."""
    figures = _figures("generalise")
    lines = [
        [
            name,
            *(
                "{:.3f} ({:.3f} to {:.3f})".format(row["misses" + end], *row["interval" + end])
                for end in ("", "_with_nfmle")
            ),
        ]
        for name, row in figures["misses"].items()
    ]
    return table(["MUSIC on", "without NF-MLE", "with NF-MLE"], lines)


def learning_curves() -> Any:
    """Losses and scores of the learning tests by epoch."""
    axes = new_axes(None, None, None, size=(12.0, 3.8))
    fixed = _rows("overfit") + _rows("overfit_continued")
    for ax, rows in ((axes[0], fixed), (axes[2], _rows("generalise"))):
        at = range(1, len(rows) + 1)
        for colour, name in zip(COLOURS, ("training_loss", "validation_loss"), strict=False):
            label = name.replace("_", " ")
            ax.plot(at, [float(row[name]) for row in rows], c=colour, label=label)
        ax.plot(
            at, [float(row["error_predicted"]) for row in rows], c=COLOURS[2], label="error of R$_{pred}$"
        )
        ax.set(xlabel="epoch", ylabel="loss", yscale="log")
    at = range(1, len(fixed) + 1)
    for colour, name, label in (
        (COLOURS[0], "f1_predicted", "F1, MUSIC on R$_{pred}$"),
        (COLOURS[1], "count_right", "number of sources right"),
    ):
        axes[1].plot(at, [float(row[name]) for row in fixed], c=colour, label=label)
    axes[1].set(xlabel="epoch", ylabel="share", ylim=(0, 1.02))
    titles = "512 fixed scenes: losses", "512 fixed scenes: scores", "tiny, new scenes: losses"
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, fontsize=8)
    for ax in axes[:2]:
        ax.axvline(len(_rows("overfit")) + 0.5, c="0.7", lw=1)
    return axes[0]


def _took(figures: Row) -> str:
    if "scenes" not in figures:
        return "a few seconds"
    return f"{figures['scenes']:,}; {figures['processor_s'] / 60:.1f} min"


def _figures(test: str) -> Row:
    return json.loads((MEASURED / f"learning_test_{test}.json").read_text(encoding="utf-8"))


def _rows(test: str) -> list[Row]:
    with (MEASURED / f"learning_test_{test}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


TABLES: tuple[Callable[[], str], ...] = (learning_figures, learning_misses)
