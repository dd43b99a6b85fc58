"""Plots with matplotlib, which the extra ``rismusic[report]`` installs.

Functions that draw one plot take ``ax=`` and return it. :func:`scene_figure` and the figures of other modules
take ``width_mm=``, the printed width of the whole figure; text is then 7 to 8 pt, as journals ask, and panels
stand below each other where they would be too narrow side by side. An IEEE column is 88.9 mm (3.5 in) wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rismusic.array import Panel
from rismusic.errors import InputError, not_installed
from rismusic.estimation.grid import Volume
from rismusic.files import PLOT_ENDINGS, check_output, replace_file
from rismusic.io.calibration import PanelCalibration
from rismusic.scene_view import ABOVE, BEHIND, CONFIDENCE, Projection, Scene, Shape
from rismusic.spec import check_figure_width

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from rismusic.estimation.estimate import Estimate
    from rismusic.io import Recording

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_MM_PER_INCH = 25.4
_PANEL_MM = 70.0  # least width of one panel in print, mm; narrower panels stand below each other
# Width of the picture of a scene on the screen, inches.
_SCENE_INCHES = 11.0
_SCREEN_DPI, _PRINT_DPI = 150, 300
# Text sizes in pt and line widths of figures with a printed width.
_PRINT: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.0,
    "lines.markersize": 4,
}
# Embed fonts as TrueType: journals refuse the Type 3 fonts that matplotlib writes by default.
_SAVED: dict[Any, Any] = {"pdf.fonttype": 42}


def check_matplotlib() -> None:
    """Check that matplotlib can be imported, before work is done for a plot."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise not_installed("plot", "report", "plots need matplotlib, which ") from None
    except ValueError as error:  # of the variable MPLBACKEND
        raise InputError("plot", f"matplotlib cannot be imported: {error}") from None


@contextmanager
def print_style(width_mm: float | None) -> Iterator[None]:
    """Text sizes and line widths for a figure of this printed width; matplotlib's own where it is none."""
    check_matplotlib()
    if width_mm is None:
        yield
        return
    check_figure_width(width_mm)
    import matplotlib

    with matplotlib.rc_context(_PRINT):
        yield


def new_figure(size: tuple[float, float], *, layout: str = "constrained") -> Figure:
    """An empty figure of this size in inches, which needs no display.

    The layout engine is ``constrained``, or ``compressed`` for axes with equal scales.
    """
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=layout)  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure


def decorated(ax: Axes, *, integers: bool = False) -> Axes:
    """The axes with a grid and a legend, and whole numbers along x if asked."""
    if integers:
        ax.locator_params(axis="x", integer=True)
    ax.grid(which="both", alpha=0.3)
    ax.legend(frameon=False, fontsize="small")
    return ax


def new_axes(
    *projections: str | None, size: tuple[float, float] = (6.0, 4.5), width_mm: float | None = None
) -> list[Any]:
    """Axes of a new figure, one for each projection (``None``: plain), side by side.

    With a printed width they stand below each other where they would be too narrow, and the height follows
    from their shape in ``size`` (inches).
    """
    count = len(projections)
    columns = count
    if width_mm is not None:
        columns = max(1, min(count, int(width_mm // _PANEL_MM)))
        lines = math.ceil(count / columns)
        width = width_mm / _MM_PER_INCH
        size = (width, width / columns * size[1] / (size[0] / count) * lines)
    figure = new_figure(size)
    return [
        figure.add_subplot(math.ceil(count / columns), columns, number, projection=projection)
        for number, projection in enumerate(projections, start=1)
    ]


def save(plot: Axes | Figure, path: Path, *, overwrite: bool) -> None:
    """Write a figure, or the whole figure that axes are part of.

    Raises:
        InputError: the name does not end in .png, .pdf or .svg, or the file cannot be written.
    """
    import matplotlib

    check_output(path, overwrite=overwrite, endings=PLOT_ENDINGS)
    figure = figure_of(plot)
    dpi = _PRINT_DPI if figure.get_figwidth() * _MM_PER_INCH < 2 * _PANEL_MM else _SCREEN_DPI
    with replace_file(path, overwrite=overwrite) as temporary, matplotlib.rc_context(_SAVED):
        figure.savefig(temporary, dpi=dpi)


def figure_of(plot: Axes | Figure) -> Figure:
    """The whole figure that axes are part of, or the figure itself."""
    figure: Figure = plot.figure.figure
    return figure


def plain_log_axis(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers (0.5, 1, 2), not with powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    if decades < 2.5:
        axis.set_minor_locator(NullLocator())


def plot_scene(
    recording: Recording, estimate: Estimate, *, scene: int = 0, width_mm: float | None = None
) -> Figure:
    """The estimates of a scene with their error ellipsoids, as ``rismusic locate --plot`` draws them.

    Args:
        recording: S scenes; true sources are drawn where it has them.
        estimate: of the same scenes.
        scene: number of the scene.
        width_mm: printed width of the figure; 88.9 mm is a column.

    Raises:
        InputError: other scenes, or matplotlib is not installed.

    Example:
        >>> plot_scene(recording, locate(recording), scene=3).savefig("scene.pdf")
    """
    if len(estimate) != len(recording) or not 0 <= scene < len(recording):
        raise InputError(
            "scene", f"got {scene}; the recording has {len(recording)} scenes, the estimate {len(estimate)}"
        )
    truth = None if recording.truth is None else recording.truth[scene]
    volume = Volume.from_spec(estimate.spec)
    drawn = Scene(recording.panel, estimate.sources[scene], estimate.covariance[scene], truth, volume)
    return scene_figure(drawn, width_mm=width_mm)


def scene_figure(scene: Scene, *, width_mm: float | None = None) -> Figure:
    """One scene in space and from above, with one legend."""
    width = _SCENE_INCHES if width_mm is None else width_mm / _MM_PER_INCH
    stacked = width * _MM_PER_INCH < 2 * _PANEL_MM
    # Height over width of what the two views show; the axes and the legend need some inches more.
    space_aspect, top_aspect = (
        float(np.divide(*np.ptp(_extent(shapes, projection), axis=0)[::-1]))
        for shapes, projection in ((scene.in_space(), BEHIND), (scene.from_above(), ABOVE))
    )
    with print_style(width_mm):
        height = width / 2 * max(space_aspect, 0.9 * top_aspect) + 1.3
        if stacked:
            height = width * (space_aspect + 0.8 * top_aspect) + 1.1
        figure = new_figure((width, height), layout="compressed")
        ratios = (space_aspect, top_aspect) if stacked else None
        grid = figure.add_gridspec(*((2, 1) if stacked else (1, 2)), height_ratios=ratios)
        space, top = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
        scene_3d(scene, ax=space)
        scene_top(scene, ax=top)
        entries: dict[str, Artist] = {}
        for ax in (space, top):
            handles, labels = ax.get_legend_handles_labels()
            entries |= dict(zip(labels, handles, strict=True))
            ax.legend().remove()
        figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=2 if stacked else 5,
            frameon=False,
        )
    return figure


def scene_3d(scene: Scene, *, ax: Axes | None = None) -> Axes:
    """The panel and the sources of one scene, seen from behind and above the panel.

    The view is a parallel projection on plain axes, in metres. Rings of equal range and rays of equal azimuth
    lie in the plane of elevation 0; a dotted line leads from each source straight to that plane. Estimates
    are crosses, numbered from 0, with 95 % error ellipsoids; true sources are circles.
    """
    ax = ax or new_axes(None)[0]
    _draw(ax, scene.in_space(), BEHIND)
    ax.set_axis_off()
    return ax


def scene_top(scene: Scene, *, ax: Axes | None = None) -> Axes:
    """The scene from above, with 95 % error ellipses and the Fresnel and Fraunhofer distances.

    z points upwards and x to the left, so that the frame is right-handed.
    """
    ax = ax or new_axes(None)[0]
    from matplotlib.ticker import MaxNLocator

    # The axes carry the distances: rings would say the same again.
    shapes = [shape for shape in scene.from_above() if shape.kind not in ("ring", "tick")]
    _draw(ax, shapes, ABOVE, scene.panel)
    ax.invert_xaxis()
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.set(xlabel="x / m (horizontal)", ylabel="z / m (normal)")
    return ax


# How shapes look, by kind.
_LINES: dict[str, dict[str, Any]] = {
    "ring": {"color": "0.8", "lw": 0.6},
    "ray": {"color": "0.8", "lw": 0.6, "ls": ":"},
    "ellipsoid": {"color": COLOURS[1], "lw": 0.6},
    "fresnel": {"color": COLOURS[0], "lw": 0.9, "ls": "-."},
    "fraunhofer": {"color": COLOURS[0], "lw": 0.9, "ls": "--"},
    "stem true": {"color": "0.5", "lw": 0.8, "ls": ":"},
    "stem estimate": {"color": "0.5", "lw": 0.8, "ls": ":"},
}
_AREAS: dict[str, dict[str, Any]] = {
    "panel": {"facecolor": "0.45", "alpha": 0.35, "edgecolor": "0.3", "lw": 0.6},
    "ellipse": {"facecolor": COLOURS[1], "alpha": 0.25, "edgecolor": COLOURS[1], "lw": 0.8},
}
_MARKS: dict[str, dict[str, Any]] = {
    "estimate": {"marker": "x", "ms": 6, "mew": 1.4, "color": COLOURS[1], "zorder": 5},
    "true": {"marker": "o", "ms": 9, "mfc": "none", "mew": 1.1, "color": COLOURS[2], "zorder": 4},
}
_REGION = f"{100 * CONFIDENCE:.0f} % error region"
# Share of the width of a picture within which a mark covers a word.
_COVERED = 0.05
_LABELS = {"estimate": "estimate", "true": "true source", "panel": "panel"} | dict.fromkeys(
    ("ellipsoid", "ellipse"), _REGION
)


def _draw(ax: Axes, shapes: Sequence[Shape], projection: Projection, panel: Panel | None = None) -> None:
    """Draw shapes as a projection shows them, with equal scales, and one legend entry for each kind."""
    labels = dict(_LABELS)
    # From above the projection gives -x and z; the axes carry x itself, and are inverted.
    across = np.array((-1, 1) if projection is ABOVE else (1, 1))
    if panel is not None:
        labels["fresnel"] = f"Fresnel distance, {panel.fresnel_distance:.3g} m"
        labels["fraunhofer"] = f"Fraunhofer distance, {panel.fraunhofer_distance:.3g} m"
    low, high = np.sort(across * _extent(shapes, projection), axis=0)
    marks = [across * projection.project(shape.points) for shape in shapes if shape.form == "mark"]
    for shape in shapes:
        points = across * projection.project(shape.points)
        # The distance of a ring is left out where the mark of a source would cover it.
        near = _COVERED * (high - low).max()
        if shape.kind == "tick" and any(np.linalg.norm(mark - points) < near for mark in marks):
            continue
        label = labels.pop(shape.kind, "")
        if shape.form == "line":
            ax.plot(*points.T, label=label, **_LINES[shape.kind])
        elif shape.form == "area":
            ax.fill(*points.T, label=label, **_AREAS[shape.kind])
        elif shape.form == "mark":
            ax.plot(*points.T, ls="", label=label, **_MARKS[shape.kind])
        if shape.text:
            mark = shape.form == "mark"
            ax.annotate(
                shape.text,
                (float(points[0, 0]), float(points[0, 1])),
                xytext=(6, 4) if mark else (0, 0),
                textcoords="offset points",
                ha="left" if mark else "center",
                va="bottom" if mark else "center",
                color="black" if mark else "0.35",
                fontsize="medium" if mark else _small(),
                annotation_clip=False,
            )
    margin = 0.05 * (high - low).max()
    ax.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin))
    ax.set_aspect("equal")
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


def _extent(shapes: Sequence[Shape], projection: Projection) -> np.ndarray:
    """Least and largest coordinates [2, 2] of shapes in a projection."""
    points = np.concatenate([projection.project(shape.points) for shape in shapes])
    return np.stack((points.min(0), points.max(0)))


def _small() -> float:
    """Size of small text, pt: 7 at least."""
    import matplotlib

    return max(7.0, 0.85 * float(matplotlib.rcParams["font.size"]))


def bound_curves(
    x_values: Sequence[float] | Sequence[str],
    std: Sequence[Sequence[float]],
    labels: Sequence[str],
    unit: str,
    *,
    xlabel: str = "SNR / dB",
    ax: Axes | None = None,
) -> Axes:
    """Cramer-Rao bound on the standard deviation over the SNR or a setting, one curve for each label.

    Args:
        x_values: [X] horizontal values: numbers, such as SNRs in dB, or text. Text is evenly spaced, in its
            order.
        std: [Y, X] standard deviations, a row for each label. Infinite ones are left out.
        labels: [Y].
        unit: label of the vertical axis, with its unit.
        xlabel: label of the horizontal axis, with its unit.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None)[0]
    for number, (row, label) in enumerate(zip(std, labels, strict=True)):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        finite = [value if math.isfinite(value) else math.nan for value in row]
        x = range(len(x_values)) if isinstance(x_values[0], str) else x_values
        ax.semilogy(x, finite, marker=marker, c=colour, label=label)
    if isinstance(x_values[0], str):
        ax.set_xticks(range(len(x_values)), [str(value) for value in x_values])
    if any(math.isfinite(value) for row in std for value in row):
        plain_log_axis(ax.yaxis)
    ax.set(xlabel=xlabel, ylabel=unit)
    ax.grid(which="major", alpha=0.3)
    ax.legend(frameon=False)
    return ax


def plot_panel_calibration(calibration: PanelCalibration, *, ax: Sequence[Axes] | None = None) -> Figure:
    """Amplitude and phase of the responses of a panel's elements, as two maps; crosses mark dead elements.

    The panel is seen from behind, x to the left and y upwards, as in the other plots.

    Args:
        calibration: of the panel.
        ax: axes for amplitude and phase; those of a new figure if none.

    Raises:
        InputError: matplotlib is not installed, or ``ax`` does not hold two axes.
    """
    check_matplotlib()
    axes = list(new_figure((8.0, 3.9), layout="compressed").subplots(1, 2) if ax is None else ax)
    if len(axes) != 2:
        raise InputError("ax", f"needs two axes, for amplitude and phase; got {len(axes)}")
    x, y = calibration.elements.cpu().numpy()[:, :2].T
    response, dead = calibration.response.cpu().numpy(), calibration.dead.cpu().numpy()
    amplitude, phase = np.abs(response), np.rad2deg(np.angle(response))
    reach = max(10.0, float(np.abs(phase[~dead]).max(initial=0.0)))
    width = max(0.2, float(np.abs(amplitude[~dead] - 1).max(initial=0.0)))
    maps = (
        ("amplitude", amplitude, np.ones_like(dead), 1 - width, 1 + width),
        ("phase / deg", phase, ~dead, -reach, reach),
    )
    for one, (name, values, shown, low, high) in zip(axes, maps, strict=True):
        marks = one.scatter(
            x[shown], y[shown], c=values[shown], vmin=low, vmax=high, cmap="RdBu_r", marker="s", s=30
        )
        one.scatter(x[dead], y[dead], c=COLOURS[-1], marker="x", s=36, label="dead")
        one.set(xlabel="x / m", ylabel="y / m", title=name, aspect="equal")
        if not one.xaxis_inverted():
            one.invert_xaxis()
        figure_of(one).colorbar(marks, ax=one)
    if dead.any():
        # Outside of the axes, so that it covers no element.
        axes[0].legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure_of(axes[0])
