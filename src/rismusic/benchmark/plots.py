"""Plots of a benchmark: misses and errors of all methods over SNR or over a swept setting."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rismusic.benchmark.spec import parse_method
from rismusic.benchmark.summary import BenchRow, Group
from rismusic.plots import COLOURS, MARKERS, new_axes, new_figure, print_style, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Misses below this share (in %) are drawn on a linear scale, so that zero can be shown.
_LINEAR = 1.0
# Least printed width of one plot, mm.
_PANEL_MM = 80.0
# On the screen, inches: one plot, the legend at its side, and the least width of a label.
_WIDTH, _HEIGHT, _LEGEND, _LABEL = 3.6, 3.5, 2.3, 0.75
# The palette of the other plots without black, which marks oracles; then brown and violet.
_COLOURS = (*COLOURS[:-1], "#7F4F24", "#5E3C99")
# Curves are shifted horizontally by this share of the step, so that their intervals do not overlap.
_SHIFT, _SHIFT_CATEGORIES = 0.3, 0.7
# The same by at most this share of the axis.
_SHIFT_OF_AXIS = 0.08


def plot_misses(group: Group, *, ax: Axes | None = None) -> Axes:
    """Share of sources missed, a curve for each method with 95 % intervals; oracles are grey."""
    ax = _curves(group, lambda row: 100 * row.misses.value, ax)
    for x_values, rows, style in zip(_x_values(group), group.rows.values(), _styles(group.rows), strict=True):
        low, high = ([100 * getattr(row.misses, end) for row in rows] for end in ("low", "high"))
        if not rows[0].uses_truth:
            ax.vlines(x_values, low, high, color=style["color"], lw=0.8, alpha=0.5)
    ax.set_yscale("symlog", linthresh=_LINEAR)
    ax.set(ylabel="sources missed / %", ylim=(-0.1 * _LINEAR, 100))
    ticks = (0, 1, 2, 5, 10, 20, 50, 100)
    ax.set_yticks(ticks, [str(tick) for tick in ticks], minor=False)
    ax.set_yticks([], minor=True)
    return ax


def plot_errors(group: Group, *, ax: Axes | None = None) -> Axes:
    """Median error of hits divided by the bound, the largest of azimuth, elevation and 1 / range."""
    ax = _curves(group, lambda row: row.worst_over_bound, ax)
    ax.axhline(1, c="0.6", lw=0.8, zorder=0)
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    # MUSIC on the true covariance lies far below the bound and would only stretch the axis.
    low, high = max(low, 0.5), max(high, 2.0)
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    ax.set_yticks([], minor=True)
    ax.set(ylabel="median error / CRB", ylim=(low, high))
    return ax


def save_plots(groups: Sequence[Group], folder: Path, *, width_mm: float | None = None) -> list[Path]:
    """Write ``misses_SWEEP.png`` and ``errors_SWEEP.png`` for each sweep, with axes for each K.

    Existing files are replaced. With a printed width (:mod:`rismusic.plots`), each is written as PDF, too.
    """
    paths = []
    for sweep in dict.fromkeys(group.sweep for group in groups):
        some = [group for group in groups if group.sweep == sweep]
        for name, draw in (("misses", plot_misses), ("errors", plot_errors)):
            figure = benchmark_figure(some, draw, width_mm=width_mm)
            for ending in (".png",) if width_mm is None else (".png", ".pdf"):
                paths.append(folder / f"{name}_{sweep}{ending}")
                save(figure, paths[-1], overwrite=True)
    return paths


def benchmark_figure(
    groups: Sequence[Group], draw: Callable[..., Axes], *, width_mm: float | None = None
) -> Figure:
    """One plot for each group in a new figure, with one legend for all."""
    with print_style(width_mm):
        if width_mm is None:
            columns = min(2, len(groups))
            wide = max(_WIDTH, *(_LABEL * len(group.heads) for group in groups))
            size = (columns * wide + _LEGEND, _HEIGHT * math.ceil(len(groups) / columns))
        else:
            columns = max(1, min(len(groups), int(width_mm // _PANEL_MM)))
            lines, entries = math.ceil(len(groups) / columns), math.ceil(len(groups[0].rows) / 2)
            width = width_mm / 25.4
            # The legend stands below, in two columns.
            size = (width, (0.72 if lines < 3 else 0.55) * width / columns * lines + 0.16 * entries)
        figure = new_figure(size)
        axes = [
            figure.add_subplot(math.ceil(len(groups) / columns), columns, number)
            for number in range(1, len(groups) + 1)
        ]
        for number, (ax, group) in enumerate(zip(axes, groups, strict=True)):
            draw(group, ax=ax)
            ax.legend().remove()
            if number % columns:
                ax.set_ylabel("")
            if width_mm is not None and not _ordered(group):
                # Names of categories do not fit side by side in print.
                ax.set_xticks(_middles(group), group.heads, rotation=40, ha="right", rotation_mode="anchor")
            if width_mm is not None and number + columns < len(groups):
                ax.set_xlabel("")
        handles, labels = axes[0].get_legend_handles_labels()
        if width_mm is None:
            figure.legend(handles, labels, loc="outside right center", frameon=False)
        else:
            figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _curves(group: Group, value: Callable[[BenchRow], float], ax: Axes | None) -> Axes:
    ax = ax or new_axes(None)[0]
    for x_values, (name, rows), style in zip(
        _x_values(group), group.rows.items(), _styles(group.rows), strict=True
    ):
        look = style if _ordered(group) else {**style, "ls": "none"}
        ax.plot(x_values, [value(row) for row in rows], label=name, ms=4, lw=1.0, **look)
    wrapped = ["\n".join(textwrap.wrap(head.removesuffix(" dB"), 11)) for head in group.heads]
    ax.set_xticks(_middles(group), wrapped)
    ax.set(xlabel=group.axis, title=group.title)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return ax


def _ordered(group: Group) -> bool:
    """Whether the horizontal values are numbers. Categories are not joined by lines."""
    return group.heads[0].lstrip("-")[:1].isdigit()


def _middles(group: Group) -> list[float]:
    """Horizontal positions of the values: SNRs at their values, all else evenly spaced."""
    if group.sweep == "none":
        return [row.snr_db for row in next(iter(group.rows.values()))]
    return [float(number) for number in range(len(group.heads))]


def _x_values(group: Group) -> list[list[float]]:
    """Horizontal positions of the values of each method, shifted against each other."""
    middles = _middles(group)
    step = min((b - a for a, b in itertools.pairwise(sorted(middles))), default=1.0)
    most = len(group.rows)
    width = _SHIFT_CATEGORIES * step
    if _ordered(group):  # of few values, less than the step allows
        width = min(_SHIFT * step, _SHIFT_OF_AXIS * (max(middles) - min(middles)) or _SHIFT * step)
    aside = [width * ((number + 0.5) / most - 0.5) for number in range(most)]
    return [[middle + shift for middle in middles] for shift in aside]


def _styles(names: Iterable[str]) -> list[dict[str, Any]]:
    """A colour and marker for each method, a line style for each variant; grey for oracles."""
    methods = [parse_method(name) for name in names]
    bases = list(dict.fromkeys(method.base for method in methods if not method.uses_truth))
    oracles = list(dict.fromkeys(method.base for method in methods if method.uses_truth))
    styles = []
    for method in methods:
        number = (oracles if method.uses_truth else bases).index(method.base)
        colours = ("0.15", "0.45", "0.65") if method.uses_truth else _COLOURS
        dash = "--" if method.criterion == "conditional" else "-" if method.polish else ":"
        styles.append(
            {
                "color": colours[number % len(colours)],
                "marker": MARKERS[number % len(MARKERS)],
                "ls": dash,
                "mfc": "white" if method.uses_truth or dash != "-" else None,
            }
        )
    return styles
