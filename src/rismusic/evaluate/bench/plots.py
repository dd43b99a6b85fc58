"""Plots of a benchmark: misses and errors of all methods over SNR, or over the values of a sweep."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rismusic.evaluate.bench.groups import Group
from rismusic.evaluate.bench.methods import parse_method
from rismusic.evaluate.bench.table import BenchRow
from rismusic.evaluate.plots import COLOURS, MARKERS, new_axes, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Misses below this share are drawn on a linear scale, so that none at all can be shown.
_LINEAR = 1.0
# Inches: one plot, the legend beside the last one, and the least for each value across.
_WIDTH, _HEIGHT, _LEGEND, _LABEL = 3.6, 3.5, 2.3, 0.75
# As in the other plots, but for black, which is for what has peeked; then brown and violet.
_COLOURS = (*COLOURS[:-1], "#7F4F24", "#5E3C99")
# Curves are moved aside a little, so that their intervals stand side by side: share of the step across.
_ASIDE, _ASIDE_KINDS = 0.3, 0.7


def plot_misses(group: Group, *, ax: Axes | None = None) -> Axes:
    """Share of sources missed, a curve for each method with its 95 % intervals; grey ones have peeked.

    Args:
        group: rows of one K.
        ax: axes to draw into.
    """
    ax = _curves(group, lambda row: 100 * row.misses.value, ax)
    for places, rows, style in zip(_places(group), group.rows.values(), _styles(group.rows), strict=True):
        low, high = ([100 * getattr(row.misses, end) for row in rows] for end in ("low", "high"))
        if not rows[0].peeked:
            ax.vlines(places, low, high, color=style["color"], lw=0.8, alpha=0.5)
    ax.set_yscale("symlog", linthresh=_LINEAR)
    ax.set(ylabel="sources missed / %", ylim=(-0.1 * _LINEAR, 100))
    ticks = (0, 1, 2, 5, 10, 20, 50, 100)
    ax.set_yticks(ticks, [str(tick) for tick in ticks], minor=False)
    ax.set_yticks([], minor=True)
    return ax


def plot_errors(group: Group, *, ax: Axes | None = None) -> Axes:
    """Median error of hits over the bound, the largest of azimuth, elevation and 1 / range.

    Args:
        group: rows of one K.
        ax: axes to draw into.
    """
    ax = _curves(group, lambda row: row.worst_over_bound, ax)
    ax.axhline(1, c="0.6", lw=0.8, zorder=0)
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    # The true covariance without noise lies far below the bound, and is no news.
    low, high = max(low, 0.5), max(high, 2.0)
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    ax.set_yticks([], minor=True)
    ax.set(ylabel="median error / bound", ylim=(low, high))
    return ax


def save_plots(groups: Sequence[Group], folder: Path) -> list[Path]:
    """Write ``misses_SWEEP.png`` and ``errors_SWEEP.png`` for each sweep, axes for each K side by side.

    Raises:
        InputError: matplotlib is not installed.
    """
    paths = []
    for sweep in dict.fromkeys(group.sweep for group in groups):
        some = [group for group in groups if group.sweep == sweep]
        for name, draw in (("misses", plot_misses), ("errors", plot_errors)):
            paths.append(folder / f"{name}_{sweep}.png")
            save(plots(some, draw), paths[-1], overwrite=True)
    return paths


def plots(groups: Sequence[Group], draw: Callable[..., Axes]) -> Axes:
    """One plot for each group in a new figure, two side by side, with one legend for all.

    Args:
        groups: rows of each plot, of the same methods.
        draw: :func:`plot_misses` or :func:`plot_errors`.
    """
    columns = min(2, len(groups))
    lines = math.ceil(len(groups) / columns)
    width = columns * max(_WIDTH, *(_LABEL * len(group.heads) for group in groups))
    empty = new_axes(None, size=(width + _LEGEND, _HEIGHT * lines))[0]
    figure = empty.get_figure(root=True)
    empty.remove()
    axes = [figure.add_subplot(lines, columns, place) for place in range(1, len(groups) + 1)]
    for place, (ax, group) in enumerate(zip(axes, groups, strict=True)):
        draw(group, ax=ax)
        ax.get_legend().remove()
        if place % columns:
            ax.set_ylabel("")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize="small")
    return axes[0]


def _curves(group: Group, value: Callable[[BenchRow], float], ax: Axes | None) -> Axes:
    ax = ax or new_axes(None)[0]
    for places, (name, rows), style in zip(
        _places(group), group.rows.items(), _styles(group.rows), strict=True
    ):
        look = style if _ordered(group) else {**style, "ls": "none"}
        ax.plot(places, [value(row) for row in rows], label=name, ms=4, lw=1.2, **look)
    wrapped = ["\n".join(textwrap.wrap(head.removesuffix(" dB"), 11)) for head in group.heads]
    ax.set_xticks(_middles(group), wrapped, fontsize="small" if max(map(len, wrapped)) > 9 else None)
    ax.set(xlabel=group.axis, title=group.title)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize="small")
    return ax


def _ordered(group: Group) -> bool:
    """Whether the values across are numbers: kinds of things are not joined by lines."""
    return group.heads[0].lstrip("-")[:1].isdigit()


def _middles(group: Group) -> list[float]:
    """Where the values stand: SNR at its value, all else evenly."""
    if group.sweep == "none":
        return [row.snr_db for row in next(iter(group.rows.values()))]
    return [float(place) for place in range(len(group.heads))]


def _places(group: Group) -> list[list[float]]:
    """Where the values of each method stand, each a little aside of the last one."""
    middles = _middles(group)
    step = min((b - a for a, b in itertools.pairwise(sorted(middles))), default=1.0)
    most = len(group.rows)
    share = _ASIDE if _ordered(group) else _ASIDE_KINDS
    aside = [share * step * ((place + 0.5) / most - 0.5) for place in range(most)]
    return [[middle + shift for middle in middles] for shift in aside]


def _styles(names: Iterable[str]) -> list[dict[str, Any]]:
    """A colour for each method, a dash for each variant of it; grey for what has peeked."""
    methods = [parse_method(name) for name in names]
    bases = list(dict.fromkeys(method.base for method in methods if not method.peeked))
    peeks = list(dict.fromkeys(method.base for method in methods if method.peeked))
    styles = []
    for method in methods:
        place = (peeks if method.peeked else bases).index(method.base)
        dash = "-" if method.polish else ":"
        styles.append(
            {
                "color": ("0.15", "0.45", "0.65")[place]
                if method.peeked
                else _COLOURS[place % len(_COLOURS)],
                "marker": MARKERS[place % len(MARKERS)],
                "ls": "--" if method.criterion == "conditional" else dash,
                "mfc": "white"
                if method.peeked or method.criterion == "conditional" or not method.polish
                else None,
            }
        )
    return styles
