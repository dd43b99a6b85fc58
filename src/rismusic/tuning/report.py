"""Plots of a search, and its HTML report. Each plot takes ``ax=`` and returns the axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from rismusic.plots import COLOURS, MARKERS, new_axes
from rismusic.report.page import Plot, fixed, general, setting_rows, within, write_page
from rismusic.tuning.objective import EPOCHS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rismusic.tuning.results import Final, TuneResult

# Maximum size of the table of trials, in bytes.
_ROWS = 300_000


def plot_history(trials: Sequence[FrozenTrial], *, ax: Axes | None = None) -> Axes:
    """Plot the cost of each trial and the lowest cost so far; pruned and failed trials are ticks on the axis.

    Args:
        trials: the trials that count.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None)[0]
    done = _completed(trials)
    at, costs = [trial.number for trial in done], [float(trial.value or math.nan) for trial in done]
    ax.plot(at, costs, "o", c=COLOURS[0], label="cost")
    best = [min(costs[: place + 1]) for place in range(len(costs))]
    ax.step(at, best, where="post", c=COLOURS[0], lw=1, label="lowest so far")
    for state, label, marker, colour in (
        (TrialState.PRUNED, "pruned", "|", COLOURS[4]),
        (TrialState.FAIL, "failed", "x", COLOURS[1]),
    ):
        some = [trial.number for trial in trials if trial.state == state]
        if some:
            height = [0.02] * len(some)
            ax.plot(some, height, marker, c=colour, transform=ax.get_xaxis_transform(), label=label)
    ax.set(xlabel="trial", ylabel="cost")
    return _decorated(ax, integers=True)


def plot_surrogates(trials: Sequence[FrozenTrial], *, ax: Axes | None = None) -> Axes:
    """Plot the surrogate of each trial over the epochs, with a cross where a trial was pruned.

    Args:
        trials: the trials that count.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None)[0]
    for trial in trials:
        values = [epoch["surrogate"] for epoch in trial.user_attrs.get(EPOCHS, [])]
        pruned = trial.state == TrialState.PRUNED
        at = list(range(1, len(values) + 1))
        ax.plot(at, values, c=COLOURS[4] if pruned else COLOURS[0], lw=0.9, alpha=0.7)
        if pruned:
            ax.plot(at[-1:], values[-1:], "x", c=COLOURS[4])
    ax.plot([], [], c=COLOURS[0], label="not pruned")
    ax.plot([], [], "x-", c=COLOURS[4], label="pruned")
    ax.set(xlabel="epoch", ylabel="surrogate")
    return _decorated(ax, integers=True)


def plot_agreement(
    trials: Sequence[FrozenTrial], correlation: float = math.nan, *, ax: Axes | None = None
) -> Axes:
    """Plot the cost of each completed trial over its surrogate in the last epoch.

    Args:
        trials: the trials that count.
        correlation: rank correlation, for the legend.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None)[0]
    done = _completed(trials)
    values = [trial.user_attrs[EPOCHS][-1]["surrogate"] for trial in done]
    label = "trials" if math.isnan(correlation) else f"rank correlation {correlation:.2f}"
    ax.plot(values, [float(trial.value or math.nan) for trial in done], "o", c=COLOURS[0], label=label)
    ax.set(xlabel="surrogate in the last epoch", ylabel="cost")
    return _decorated(ax)


def plot_overview(result: TuneResult) -> Axes:
    """Plot history, surrogates and agreement side by side; the first axes are returned."""
    axes = new_axes(None, None, None, size=(15.0, 4.0))
    plot_surrogates(result.trials, ax=axes[1])
    plot_agreement(result.trials, result.correlation["surrogate"], ax=axes[2])
    return plot_history(result.trials, ax=axes[0])


def plot_importance(importance: Mapping[str, float], *, ax: Axes | None = None) -> Axes:
    """Plot the importance of each setting, the most important one at the top.

    Args:
        importance: importance of each setting; they add up to 1.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None, size=(6.5, 1.2 + 0.28 * max(3, len(importance))))[0]
    names = sorted(importance, key=lambda name: importance[name])
    ax.barh(names, [100 * importance[name] for name in names], color=COLOURS[0])
    ax.set(xlabel="importance / %")
    ax.grid(axis="x", alpha=0.3)
    return ax


def plot_finals(finals: Sequence[Final], *, ax: Axes | None = None) -> Axes:
    """Plot the cost on test scenes of every training of the final evaluation, and the mean of each setting.

    Args:
        finals: results of the final evaluation.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None)[0]
    for place, final in enumerate(finals):
        for seed, test in enumerate(final.test):
            marker, colour = MARKERS[seed % len(MARKERS)], COLOURS[seed % len(COLOURS)]
            label = None if place else f"seed {seed}"
            ax.plot([place], [test.cost], marker, c=colour, label=label, alpha=0.8)
        ax.hlines(final.test_cost, place - 0.3, place + 0.3, color="0.2")
    names = [final.name.replace(", ", ",\n") for final in finals]
    ax.set_xticks(range(len(finals)), names)
    ax.set(ylabel="cost on test scenes")
    return _decorated(ax)


def write_tune_report(
    path: Path,
    result: TuneResult,
    rows: Sequence[Mapping[str, Any]],
    importance: Mapping[str, float],
    *,
    made: datetime | None = None,
    overwrite: bool = False,
) -> None:
    """Write the report of a search as one HTML file below 1 MB.

    Args:
        path: an ``.html`` file.
        result: the result of the search.
        rows: rows of the trials, see :func:`~rismusic.tuning.results.trial_rows`.
        importance: importance of each setting.
        made: date of the report; now if none.
        overwrite: whether an existing file may be replaced.

    Raises:
        InputError: the packages for reports are not installed, or the file cannot be written.
    """
    cells = [[_cell(value) for value in row.values()] for row in rows]
    shown = cells[: len(within(("".join(line) + 20 * "-" for line in cells), _ROWS))]
    spec = result.spec
    write_page(
        path,
        "tuning.html.j2",
        overwrite=overwrite,
        command=result.command,
        made=made,
        trials=len(rows),
        sentences=result.sentences(),
        finals=[
            (
                final.name,
                final is result.best,
                fixed(final.cost, 4),
                fixed(final.test_cost, 4),
                fixed(final.test_mean("f1"), 3),
                fixed(final.test_mean("mean_gospa_m"), 3),
            )
            for final in result.finals
        ],
        seeds=spec.final_seeds,
        epochs=spec.long_epochs,
        test_scenes=spec.test_scenes,
        correlations=[(name, fixed(value, 2)) for name, value in result.correlation.items()],
        plots=_plots(result, importance),
        columns=list(rows[0]),
        rows=shown,
        left_rows=len(cells) - len(shown),
        best=setting_rows(result.training),
        locate=setting_rows(result.locate),
        settings=setting_rows(spec.replace(training=spec.short_training())),
    )


def _plots(result: TuneResult, importance: Mapping[str, float]) -> list[Plot]:
    def axes(height: float = 3.6) -> Any:
        return new_axes(None, size=(5.6, height))[0]

    trials, correlation = result.trials, result.correlation["surrogate"]
    plots = [
        Plot.of(plot_finals(result.finals, ax=axes()), "Cost on test scenes in the final evaluation."),
        Plot.of(plot_history(trials, ax=axes()), "Cost of the trials."),
        Plot.of(plot_surrogates(trials, ax=axes()), "Surrogate, by which trials are pruned."),
        Plot.of(plot_agreement(trials, correlation, ax=axes()), "Agreement of surrogate and cost."),
    ]
    if importance:
        height = 1.2 + 0.26 * len(importance)
        plots.append(Plot.of(plot_importance(importance, ax=axes(height)), "Importance of each setting."))
    return plots


def _completed(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


def _cell(value: object) -> str:
    if value is None:
        return ""
    return general(value) if isinstance(value, float) else str(value)


def _decorated(ax: Axes, *, integers: bool = False) -> Axes:
    if integers:
        ax.locator_params(axis="x", integer=True)
    ax.grid(which="both", alpha=0.3)
    ax.legend(frameon=False, fontsize="small")
    return ax
