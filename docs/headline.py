"""The first figure of the README: ``python docs/headline.py`` draws ``docs/images/headline.png``.

Misses and errors over SNR, from ``docs/measured/hybrid``, all methods on the same scenes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rismusic.benchmark.plots import plot_errors, plot_misses
from rismusic.benchmark.summary import Group, groups, read_table
from rismusic.plots import new_axes, save

HERE = Path(__file__).parent
METHODS = {
    "hybrid": "hybrid (shipped weights)",
    "sbl": "SBL + ML",
    "omp": "OMP + ML",
    "music:raw": "MUSIC",
    "oracle:best": "oracle: best start",
}


def headline() -> Any:
    """Misses for three and for five sources, and errors over the bound for three."""
    three, five = (group for group in compared() if group.title in ("K = 3", "K = 5"))
    axes = new_axes(None, None, None, size=(12.0, 3.8))
    plot_misses(three, ax=axes[0])
    plot_misses(five, ax=axes[1])
    plot_errors(three, ax=axes[2])
    for ax, title in zip(axes, ("3 sources", "5 sources", "3 sources, hits"), strict=True):
        ax.set_title(title, fontsize=10)
        ax.get_legend().remove()
    handles, names = axes[0].get_legend_handles_labels()
    axes[0].legend(handles, [METHODS[name] for name in names], frameon=False, fontsize=8)
    return axes[0]


def compared() -> list[Group]:
    """The hybrid beside the classical methods on the same scenes, a group for each number of sources."""
    rows = read_table(HERE / "measured" / "hybrid" / "results.csv")
    grid = [group for group in groups(rows) if group.sweep == "none" and METHODS.keys() <= group.rows.keys()]
    return [replace(group, rows={name: group.rows[name] for name in METHODS}) for group in grid]


if __name__ == "__main__":
    save(headline(), HERE / "images" / "headline.png", overwrite=True)
