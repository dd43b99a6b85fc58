"""The report of a search: what was found, every trial, plots and settings as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rismusic.plots import new_axes
from rismusic.report.page import Plot, fixed, general, setting_rows, within, write_page
from rismusic.tuning.outcome import Tuned
from rismusic.tuning.plots import (
    plot_agreement,
    plot_finals,
    plot_history,
    plot_importance,
    plot_surrogates,
)

# Bytes for the rows of the trials.
_ROWS = 300_000


def write_tune_report(
    path: Path,
    tuned: Tuned,
    rows: Sequence[Mapping[str, Any]],
    importance: Mapping[str, float],
    *,
    made: datetime | None = None,
    overwrite: bool = False,
) -> None:
    """Write what came of a search as one HTML file below 1 MB.

    Args:
        path: an ``.html`` file.
        tuned: what came of it.
        rows: of the trials, see :func:`~rismusic.tuning.results.trial_rows`.
        importance: of each setting.
        made: when; now, if not given.
        overwrite: whether an existing file may be replaced.

    Raises:
        InputError: the packages that reports need are not installed, or the file cannot be written.
    """
    cells = [[_shown(value) for value in row.values()] for row in rows]
    shown = cells[: len(within(("".join(line) + 20 * "-" for line in cells), _ROWS))]
    write_page(
        path,
        "tuning.html.j2",
        overwrite=overwrite,
        command=tuned.command,
        made=made,
        trials=len(rows),
        sentences=tuned.sentences(),
        finals=[
            (
                final.name,
                final is tuned.best,
                fixed(final.cost, 4),
                fixed(final.fresh_cost, 4),
                fixed(final.fresh_mean("f1"), 3),
                fixed(final.fresh_mean("mean_gospa_m"), 3),
            )
            for final in tuned.finals
        ],
        seeds=tuned.spec.final_seeds,
        epochs=tuned.spec.long_epochs,
        fresh=tuned.spec.fresh_scenes,
        correlations=[(name, fixed(value, 2)) for name, value in tuned.correlation.items()],
        plots=_plots(tuned, importance),
        columns=list(rows[0]),
        rows=shown,
        left_rows=len(cells) - len(shown),
        best=setting_rows(tuned.training),
        locate=setting_rows(tuned.locate),
        settings=setting_rows(tuned.spec.replace(training=tuned.spec.short_training())),
    )


def _plots(tuned: Tuned, importance: Mapping[str, float]) -> list[Plot]:
    """All plots."""

    def axes(height: float = 3.6) -> Any:
        return new_axes(None, size=(5.6, height))[0]

    correlation = tuned.correlation["surrogate"]
    drawn = [
        Plot.of(plot_finals(tuned.finals, ax=axes()), "Cost on fresh scenes after the second stage."),
        Plot.of(plot_history(tuned.trials, ax=axes()), "Cost of the trials of the first stage."),
        Plot.of(plot_surrogates(tuned.trials, ax=axes()), "What the pruner was told."),
        Plot.of(plot_agreement(tuned.trials, correlation, ax=axes()), "What it is worth."),
    ]
    if importance:
        height = 1.2 + 0.26 * len(importance)
        drawn.append(Plot.of(plot_importance(importance, ax=axes(height)), "How much each setting matters."))
    return drawn


def _shown(value: object) -> str:
    """A cell of the table of trials."""
    if value is None:
        return ""
    return general(value) if isinstance(value, float) else str(value)
