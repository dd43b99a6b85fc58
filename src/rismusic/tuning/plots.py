"""Plots of a search. Each takes ``ax=`` and returns it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from rismusic.plots import COLOURS, MARKERS, new_axes
from rismusic.tuning.outcome import Final, epochs_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_history(trials: Sequence[FrozenTrial], *, ax: Axes | None = None) -> Axes:
    """Cost of each trial and the lowest so far; trials without one stand on the axis.

    Args:
        trials: those that count.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None)[0]
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    at, costs = [trial.number for trial in done], [float(trial.value or math.nan) for trial in done]
    ax.plot(at, costs, "o", c=COLOURS[0], label="cost")
    best = [min(costs[: place + 1]) for place in range(len(costs))]
    ax.step(at, best, where="post", c=COLOURS[0], lw=1, label="lowest so far")
    for state, marker, colour in (
        (TrialState.PRUNED, "|", COLOURS[4]),
        (TrialState.FAIL, "x", COLOURS[1]),
    ):
        some = [trial.number for trial in trials if trial.state == state]
        if some:
            ax.plot(
                some,
                [0.02] * len(some),
                marker,
                c=colour,
                transform=ax.get_xaxis_transform(),
                label={"PRUNED": "pruned", "FAIL": "failed"}[state.name],
            )
    ax.set(xlabel="trial", ylabel="cost")
    return _finished(ax, whole=True)


def plot_surrogates(trials: Sequence[FrozenTrial], *, ax: Axes | None = None) -> Axes:
    """What each trial told the pruner, epoch by epoch; a cross where it was stopped.

    Args:
        trials: those that count.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None)[0]
    for trial in trials:
        told = [epoch["surrogate"] for epoch in epochs_of(trial)]
        pruned = trial.state == TrialState.PRUNED
        colour = COLOURS[4] if pruned else COLOURS[0]
        at = list(range(1, len(told) + 1))
        ax.plot(at, told, c=colour, lw=0.9, alpha=0.7)
        if pruned and told:
            ax.plot(at[-1:], told[-1:], "x", c=COLOURS[4])
    ax.plot([], [], c=COLOURS[0], label="not stopped")
    ax.plot([], [], "x-", c=COLOURS[4], label="pruned")
    ax.set(xlabel="epoch", ylabel="surrogate")
    return _finished(ax, whole=True)


def plot_agreement(
    trials: Sequence[FrozenTrial], correlation: float = math.nan, *, ax: Axes | None = None
) -> Axes:
    """Cost of each trial over its surrogate in the last epoch.

    Args:
        trials: those that count.
        correlation: rank correlation, to be written on the plot.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None)[0]
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    told = [epochs_of(trial)[-1]["surrogate"] for trial in done]
    label = "trials" if math.isnan(correlation) else f"rank correlation {correlation:.2f}"
    ax.plot(told, [float(trial.value or math.nan) for trial in done], "o", c=COLOURS[0], label=label)
    ax.set(xlabel="surrogate in the last epoch", ylabel="cost")
    return _finished(ax)


def plot_importance(importance: Mapping[str, float], *, ax: Axes | None = None) -> Axes:
    """How much each setting matters, the most at the top.

    Args:
        importance: of each setting, adding up to 1.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None, size=(6.5, 1.2 + 0.28 * max(3, len(importance))))[0]
    names = sorted(importance, key=lambda name: importance[name])
    ax.barh(names, [100 * importance[name] for name in names], color=COLOURS[0])
    ax.set(xlabel="importance / %")
    ax.grid(axis="x", alpha=0.3)
    return ax


def plot_finals(finals: Sequence[Final], *, ax: Axes | None = None) -> Axes:
    """Cost on fresh scenes of every training of the second stage, and the mean of each setting.

    Args:
        finals: of the second stage.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None)[0]
    for place, final in enumerate(finals):
        for seed, fresh in enumerate(final.fresh):
            marker, colour = MARKERS[seed % len(MARKERS)], COLOURS[seed % len(COLOURS)]
            ax.plot(
                [place], [fresh.cost], marker, c=colour, label=None if place else f"seed {seed}", alpha=0.8
            )
        ax.hlines(final.fresh_cost, place - 0.3, place + 0.3, color="0.2")
    names = [final.name.replace(", ", ",\n") for final in finals]
    ax.set_xticks(range(len(finals)), names)
    ax.set(ylabel="cost on fresh scenes")
    return _finished(ax)


def _finished(ax: Axes, *, whole: bool = False) -> Axes:
    if whole:  # trials and epochs are counted
        ax.locator_params(axis="x", integer=True)
    ax.grid(which="both", alpha=0.3)
    ax.legend(frameon=False, fontsize="small")
    return ax
