"""Plots. Each takes ``ax=`` and returns it; each needs the extra ``rismusic[report]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rismusic.array import Panel, direction
from rismusic.errors import InputError
from rismusic.files import PLOT_ENDINGS, check_output, replace_file
from rismusic.sources import Sources

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from mpl_toolkits.mplot3d import Axes3D

# Okabe and Ito's colours, told apart by the colour-blind and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def new_axes(*projections: str | None, size: tuple[float, float] = (6.0, 4.5)) -> list[Any]:
    """Axes side by side in a figure of their own, one for each projection (none: plain), without a display.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plot", "matplotlib (pip install 'rismusic[report]')", "no matplotlib") from None
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return [
        figure.add_subplot(1, len(projections), place, projection=projection)
        for place, projection in enumerate(projections, start=1)
    ]


def save(ax: Axes, path: Path, *, overwrite: bool) -> None:
    """Write the whole figure that ``ax`` is part of.

    Raises:
        InputError: another ending than .png, .pdf or .svg, or the file cannot be written.
    """
    check_output(path, overwrite=overwrite, endings=PLOT_ENDINGS)
    figure = ax.get_figure(root=True)
    assert figure is not None
    with replace_file(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, dpi=150)


def positions(sources: Sources) -> np.ndarray:
    """Cartesian positions of the sources of one scene, [K, 3] metres; empty places are left out."""
    active = sources.active
    towards = torch.stack(direction(sources.azimuth[active], sources.elevation[active]), dim=-1)
    return (sources.range[active][:, None] * towards).double().cpu().numpy()


def scene_3d(
    panel: Panel,
    sources: Sources | None = None,
    *,
    truth: Sources | None = None,
    ax: Axes3D | None = None,
) -> Axes3D:
    """The panel and the sources of one scene in space; the panel looks to the right, along z.

    Args:
        panel: the panel.
        sources: sources found in one scene, [K]; crosses, numbered from 0.
        truth: true sources, [K]; rings.
        ax: three-dimensional axes to draw into.
    """
    ax = ax or new_axes("3d")[0]
    # The figure's axes are (z, x, y): right-handed as the panel's own, with y upwards.
    turned = [2, 0, 1]
    elements = panel.elements.cpu().numpy()[:, turned]
    shown = [elements, *(positions(some)[:, turned] for some in (sources, truth) if some is not None)]
    everything = np.vstack(shown)
    low, high = everything.min(0), everything.max(0)
    middle, half = (low + high) / 2, np.maximum((high - low) / 2, 0.15 * (high - low).max())
    floor = middle[2] - 1.05 * half[2]
    ax.scatter(*elements.T, s=3, c="0.45", marker="s", label="panel element")
    for some, points, style in zip(_present(sources, truth), shown[1:], _styles(sources, truth), strict=True):
        ax.plot(*points.T, ls="", **style)
        for number, (z, x, y) in enumerate(points):
            ax.plot([z, z], [x, x], [floor, y], color="0.6", lw=0.8, ls=":")
            if some is (truth if sources is None else sources):
                ax.plot([0, z], [0, x], [0, y], color=style["color"], lw=0.8)
                ax.text(z, x, y, f"   {number}")
    ax.set_box_aspect(tuple(half), zoom=0.85)
    ax.set_zlim(floor, middle[2] + 1.05 * half[2])
    ax.set(xlabel="z / m (normal)", ylabel="x / m (horizontal)", zlabel="y / m (vertical)")
    ax.view_init(elev=22, azim=-55)
    ax.legend(loc="upper left", frameon=False)
    return ax


def scene_top(
    panel: Panel,
    sources: Sources | None = None,
    *,
    truth: Sources | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The same scene from above, with the Fresnel and Fraunhofer distances as arcs.

    Seen from above with z upwards, x runs to the left: the frame is right-handed.
    """
    ax = ax or new_axes(None)[0]
    elements = panel.elements.cpu().numpy()
    ax.plot(elements[:, 0], elements[:, 2], "s", ms=3, c="0.45", label="panel element")
    reach = panel.aperture
    for some, style in zip(_present(sources, truth), _styles(sources, truth), strict=True):
        points = positions(some)
        ax.plot(points[:, 0], points[:, 2], ls="", **style)
        reach = max(reach, float(np.abs(points).max(initial=0)))
        if some is (truth if sources is None else sources):
            for number, (x, _, z) in enumerate(points):
                ax.annotate(str(number), (x, z), xytext=(7, 5), textcoords="offset points")
    reach *= 1.15
    turn = np.linspace(-np.pi / 2, np.pi / 2, 181)
    for distance, name, line in (
        (panel.fresnel_distance, "Fresnel distance", ":"),
        (panel.fraunhofer_distance, "Fraunhofer distance", "--"),
    ):
        if distance < 1.5 * reach:
            x, z = distance * np.sin(turn), distance * np.cos(turn)
            ax.plot(x, z, line, c=COLOURS[0], lw=1, label=f"{name}, {distance:.3g} m")
    ax.set(xlabel="x / m (horizontal, seen from above)", ylabel="z / m (normal)", aspect="equal")
    ax.set(xlim=(reach, -reach), ylim=(-0.05 * reach, reach))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize="small")
    ax.grid(alpha=0.3)
    return ax


def _present(*some: Sources | None) -> list[Sources]:
    return [sources for sources in some if sources is not None]


def _styles(sources: Sources | None, truth: Sources | None) -> list[dict[str, Any]]:
    """How found sources and true ones are marked: a cross inside a ring is a hit."""
    found = {"marker": "x", "ms": 7, "mew": 1.8, "color": COLOURS[1], "label": "found source"}
    true = {"marker": "o", "ms": 11, "mfc": "none", "mew": 1.4, "color": COLOURS[2], "label": "true source"}
    return [style for style, some in ((found, sources), (true, truth)) if some is not None]


def bound_curves(
    snr_db: Sequence[float],
    std: Sequence[Sequence[float]],
    labels: Sequence[str],
    unit: str,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Least standard deviation against SNR, a curve for each number of sources.

    Args:
        snr_db: [X] dB.
        std: [Y, X] standard deviations, a row for each label.
        labels: [Y].
        unit: what is on the vertical axis, with its unit.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None)[0]
    for row, label, colour, marker in zip(std, labels, COLOURS, MARKERS, strict=False):
        ax.semilogy(snr_db, row, marker=marker, c=colour, ms=5, lw=1.3, label=label)
    ax.set(xlabel="SNR / dB", ylabel=unit)
    ax.grid(which="both", alpha=0.3)
    ax.legend(frameon=False)
    return ax
