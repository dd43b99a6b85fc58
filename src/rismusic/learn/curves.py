"""Curves of a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rismusic.errors import InputError
from rismusic.evaluate.plots import COLOURS, new_axes, save
from rismusic.learn.runfolder import CURVES, RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_losses(epochs: Sequence[dict[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Total loss in training and validation over the epochs.

    Args:
        epochs: lines of the log, one an epoch.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None)[0]
    at = [line["epoch"] + 1 for line in epochs]
    ax.plot(at, [_number(line["training"].get("loss")) for line in epochs], c=COLOURS[0], label="training")
    ax.plot(at, [_number(line["validation"]["loss"]) for line in epochs], c=COLOURS[1], label="validation")
    ax.set(xlabel="epoch", ylabel="loss (weighted sum)", ylim=(0, None))
    return _finished(ax)


def plot_terms(epochs: Sequence[dict[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Each loss of the validation, without its weight.

    Args:
        epochs: lines of the log, one an epoch.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None)[0]
    at = [line["epoch"] + 1 for line in epochs]
    for place, name in enumerate(epochs[-1]["validation"]["terms"]):
        style = ("-", "--", ":")[place // len(COLOURS)]
        values = [_number(line["validation"]["terms"].get(name)) for line in epochs]
        ax.plot(at, values, style, c=COLOURS[place % len(COLOURS)], label=name.replace("_", " "))
    ax.set(xlabel="epoch", ylabel="losses of the validation (without weights)", yscale="log")
    return _finished(ax, aside=True)


def plot_scores(epochs: Sequence[dict[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Share of sources hit, and of scenes whose number of sources is right.

    Args:
        epochs: lines of the log, one an epoch.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None)[0]
    at = [line["epoch"] + 1 for line in epochs]
    for place, (name, label) in enumerate((("blend", r"R$_{blend}$"), ("predicted", r"R$_{pred}$"))):
        scores = [line["validation"]["scores"][name] for line in epochs]
        ax.plot(
            at,
            [100 * _number(one["recall"]) for one in scores],
            c=COLOURS[place],
            label=f"hit, MUSIC on {label}",
        )
    ax.plot(
        at,
        [100 * _number(one["count_right"]) for one in scores],
        c=COLOURS[2],
        label="number of sources right",
    )
    ax.set(xlabel="epoch", ylabel="share / %", ylim=(0, 100))
    return _finished(ax)


def save_curves(run: RunFolder, say: Callable[[str], None]) -> None:
    """Draw a training into its folder; without matplotlib it says so and leaves it at that.

    Args:
        run: the folder.
        say: takes the sentence.
    """
    try:
        epochs: list[dict[str, Any]] = run.records("epoch")
        if not epochs:
            return
        axes = new_axes(None, None, None, size=(15.0, 4.0))
        for draw, ax in zip((plot_losses, plot_terms, plot_scores), axes, strict=True):
            draw(epochs, ax=ax)
        save(axes[0], run.folder / CURVES, overwrite=True)
    except InputError as error:
        say(f"no plot: {error}")


def _number(value: float | str | None) -> float:
    """What the log has: text for what is not finite, nothing where every step was skipped."""
    return math.nan if value is None else float(value)


def _finished(ax: Axes, *, aside: bool = False) -> Axes:
    """Grid, whole epochs, and a legend within the axes or, where there are many lines, aside of them."""
    ax.grid(which="both", alpha=0.3)
    ax.locator_params(axis="x", integer=True)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if aside else {}
    ax.legend(frameon=False, fontsize="small", **place)
    return ax
