"""Parts of reports: self-contained HTML pages, numbers as text, and pictures of a scene.

The pictures are an SVG that can be turned, and slices through the spectrum.
"""

from __future__ import annotations

import base64
import functools
import io
import math
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.array import to_db
from rismusic.covariance import Covariance, recording_covariance
from rismusic.errors import InputError, not_installed
from rismusic.estimation.classical import spectrum_method, spectrum_of
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.estimation.noise import noise_of
from rismusic.files import check_output, write_text
from rismusic.io import Recording
from rismusic.plots import figure_of
from rismusic.registry import SPECTRA
from rismusic.scene_view import ABOVE, BEHIND, Points, Projection, Scene, Shape, holding
from rismusic.sources import Sources
from rismusic.spec import Spec
from rismusic.text import printable, redact
from rismusic.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LIMIT = 1_000_000
"""Largest size of a report, bytes."""
REPORT_ENDINGS = (".html",)
_DOTS_PER_INCH = 110


@dataclass(frozen=True)
class Plot:
    """A plot as a ``data:`` address, with its caption."""

    image: str
    caption: str

    @classmethod
    def of(cls, plot: Axes | Figure, caption: str) -> Plot:
        """A figure, or the whole figure that axes are part of."""
        with io.BytesIO() as file:
            figure_of(plot).savefig(file, format="png", dpi=_DOTS_PER_INCH, pil_kwargs={"optimize": True})
            return cls(png_address(file.getvalue()), caption)


def png_address(png: bytes) -> str:
    """A PNG as a ``data:`` address, so that a page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


@dataclass(frozen=True)
class Setting:
    """One setting as a row of a table."""

    name: str
    value: str
    meaning: str


def check_report(path: Path, *, overwrite: bool) -> None:
    """Check that a report can be written, before work is done for it."""
    check_output(path, overwrite=overwrite, endings=REPORT_ENDINGS)
    environment()


@functools.cache
def environment() -> Environment:
    """The templates, every value in them escaped."""
    try:
        import matplotlib  # noqa: F401
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise not_installed("report", "report", f"reports need {error.name}, which ") from None
    return Environment(
        loader=PackageLoader("rismusic.report"),
        autoescape=True,
        undefined=StrictUndefined,
        # Markup of other templates is text already; the escaping of values follows.
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def fragment(template: str, **values: Any) -> str:
    """A part of a page as safe HTML text."""
    return environment().get_template(template).render(**values)


def within(parts: Iterable[str], size: int) -> list[str]:
    """The longest list of first parts that fits into this number of bytes."""
    taken, used = [], 0
    for part in parts:
        used += len(part.encode())
        if used > size:
            break
        taken.append(part)
    return taken


def write_page(path: Path, template: str, *, overwrite: bool, command: str, **values: Any) -> None:
    """Render a whole page and write it."""
    check_report(path, overwrite=overwrite)
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z").strip()
    text = fragment(template, command=redact(command), made=when, versions=versions(), **values)
    size = len(text.encode())
    if size > LIMIT:
        raise InputError(
            str(path), f"the report has {size} bytes; the limit is {LIMIT}. Show fewer scenes in full"
        )
    write_text(path, text, overwrite=overwrite)


def versions() -> dict[str, str]:
    """Versions of the software that made the report."""
    return {
        "rismusic": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def setting_rows(settings: Spec, prefix: str = "") -> list[Setting]:
    """All settings, nested ones as ``part.name``, with their descriptions where known."""
    rows = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Spec):
            rows += setting_rows(value, f"{prefix}{name}.")
        else:
            rows.append(Setting(prefix + name, _shown(value), " ".join((field.description or "").split())))
    return rows


def _shown(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


MINUS = "\N{MINUS SIGN}"


def decimals(bar: float) -> int:
    """Number of decimals (0 to 4) that shows two digits of an error bar."""
    if not (math.isfinite(bar) and bar > 0):
        return 2
    return min(4, max(0, 1 - math.floor(math.log10(bar))))


def fixed(value: float, digits: int) -> str:
    """A number with this many decimals and a typographic minus; a dash for NaN."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    text = f"{value:.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text.removeprefix("-")


def general(value: float, digits: int = 3) -> str:
    """A number with this many significant digits and a typographic minus; a dash for NaN."""
    if not math.isfinite(value):
        return fixed(value, 0)
    if 1e-3 <= abs(value) < 10**digits:
        return fixed(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))))
    return f"{value:.{digits}g}".replace("-", MINUS)


WIDTH = 420.0
"""Width of every picture in SVG units. Text is 12 units high, so that it can be read on a phone."""

_MARGIN = 22.0


@dataclass(frozen=True)
class View:
    """A projection with the part of the scene that the picture shows.

    ``centre``, in metres, is in the middle; ``scale`` is in SVG units per metre, ``height`` in SVG units.
    """

    yaw: float
    pitch: float
    centre: tuple[float, float, float]
    scale: float
    height: float

    def screen(self, points: Points) -> Points:
        """[Q, 2] positions in the picture, y downwards."""
        projected = Projection(self.yaw, self.pitch).project(points - np.array(self.centre))
        across, along = projected.T
        return np.stack((WIDTH / 2 + self.scale * across, self.height / 2 - self.scale * along), axis=-1)


@dataclass(frozen=True)
class Drawn:
    """A shape in a picture, as text for SVG: ``xyz`` in space, ``path`` or ``at`` as it is seen."""

    form: str
    kind: str
    xyz: str
    path: str
    at: tuple[str, str]
    text: str


@dataclass(frozen=True)
class Picture:
    """What a template needs to draw a view and a script to turn it."""

    view: View
    shapes: list[Drawn]
    alt: str
    width: float = WIDTH

    @property
    def centre(self) -> str:
        """The centre of the view, for the script."""
        return " ".join(_number(value) for value in self.view.centre)


def picture_in_space(scene: Scene) -> Picture:
    """The scene from behind and above the panel."""
    return _picture(scene.in_space(), _alt(scene, "in space"), BEHIND)


def picture_from_above(scene: Scene) -> Picture:
    """The scene from above."""
    return _picture(scene.from_above(), _alt(scene, "from above"), ABOVE)


def _alt(scene: Scene, how: str) -> str:
    some = ((scene.estimates, "estimated"), (scene.truth, "true"))
    words = [f"{int(sources.active.sum())} {kind} sources" for sources, kind in some if sources is not None]
    return f"The panel with {' and '.join(words)} {how}; the table below holds the numbers."


def _picture(shapes: list[Shape], alt: str, projection: Projection) -> Picture:
    """Draw shapes at the scale at which they stay inside the picture however they are turned."""
    everything = np.concatenate([shape.points for shape in shapes])
    middle = (everything.min(0) + everything.max(0)) / 2
    radius = float(np.linalg.norm((everything - middle)[:, [0, 2]], axis=1).max())
    scale = (WIDTH / 2 - _MARGIN) / radius
    # Centred vertically, so that the picture is no higher than its content.
    up = projection.up
    heights = (everything - middle) @ up
    centre = middle + up * (heights.min() + heights.max()) / 2
    height = float(np.clip(scale * np.ptp(heights) + 2 * _MARGIN, 0.45 * WIDTH, WIDTH))
    view = View(
        projection.yaw,
        projection.pitch,
        (float(centre[0]), float(centre[1]), float(centre[2])),
        scale,
        float(round(height)),
    )
    return Picture(view, [_drawn(shape, view) for shape in shapes], alt)


def _drawn(shape: Shape, view: View) -> Drawn:
    positions = [(f"{x:.1f}", f"{y:.1f}") for x, y in view.screen(shape.points)]
    commands = [f"{x} {y}" for x, y in positions]
    if shape.form == "dots":
        path = "".join(f"M{command}h0" for command in dict.fromkeys(commands))
    else:
        path = "M" + "L".join(commands) + ("Z" if shape.form == "area" else "")
    xyz = " ".join(_number(value) for value in shape.points.ravel().tolist())
    return Drawn(shape.form, shape.kind, xyz, path, positions[0], shape.text)


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) > 1e-9 else "0"


# Grid points per beam width, and most entries of the steering matrix; larger panels get a coarser grid.
_OVERSAMPLING, _NUMBERS = 5.0, 2**26
# Pixels: azimuth, elevation, range.
_PIXELS = (145, 73, 61)
# The colours span this much below the maximum, dB.
_FLOOR_DB = 20.0
# Number of shades: invisible steps, small files.
_SHADES = 48
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 14.0, 8.0, 40.0


@dataclass(frozen=True)
class Slice:
    """A slice with its axes, in the units of the picture.

    ``box`` is left, top, width and height of the image, a tick offset and text, a mark kind, x, y and text.
    """

    image: str
    box: tuple[float, float, float, float]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_name: str
    y_name: str
    marks: list[tuple[str, float, float, str]]
    alt: str
    width: float = WIDTH

    @property
    def height(self) -> float:
        """Height of the whole picture."""
        return self.box[1] + self.box[3] + _BOTTOM


@dataclass(frozen=True)
class Slices:
    """Two slices through one scene's spectrum, whose colours span ``span_db`` below the maximum.

    ``front`` is over azimuth and elevation (maximum over range), ``above`` over azimuth and range.
    """

    name: str
    span_db: float
    front: Slice
    above: Slice


_SPECTRUM_NAMES = {"music": "MUSIC", "soft_music": "soft MUSIC", "mvdr": "MVDR", "bartlett": "Bartlett"}


def slices(
    recording: Recording, estimates: Sources, volume: Volume, methods: Sequence[str] | None = None
) -> list[Slices]:
    """The slices of every scene: the spectrum of its method, or MUSIC if the method has none.

    Without sources it is the Bartlett spectrum. It is evaluated on a search grid (even in direction cosines
    and 1/r) and interpolated, in dB, between its points.
    """
    seen = recording.subcarrier()
    noise = noise_of(recording.stacked())
    covariances: dict[bool, Covariance] = {}
    where = ", middle subcarrier" if recording.frequencies is not None else ""
    count = estimates.active.sum(-1)
    volume = holding(volume, recording.panel, estimates)
    grid = _grid(seen, volume)
    pictures = []
    for scene in range(len(recording)):
        K = int(count[scene])
        method = "music" if methods is None or methods[scene] not in SPECTRA else methods[scene]
        method = method if K else "bartlett"
        needs = spectrum_method(method)
        if needs.shrink not in covariances:
            covariances[needs.shrink] = recording_covariance(seen, noise, full_shrinkage=needs.shrink)
        one = covariances[needs.shrink][scene : scene + 1]
        number = min(K, one.rank) if needs.subspace else max(K, 1)
        spectrum = spectrum_of(method, one, count.new_full((1,), number))
        name = _SPECTRUM_NAMES.get(method, method) + (f", K = {K}" if needs.subspace else "") + where
        box = _resampled(to_db(spectrum.on_grid(grid)[0].double()), grid)
        pictures.append(_slices(name, box, recording, estimates, scene, volume))
    return pictures


def _grid(recording: Recording, volume: Volume) -> SearchGrid:
    """The search grid for the picture, coarser for large panels."""
    oversampling = _OVERSAMPLING
    while True:
        grid = SearchGrid.cover(recording.panel, volume, oversampling)
        excess = len(grid) * recording.panel.size / _NUMBERS
        if excess <= 1 or oversampling < 1:
            return grid.to(recording.snapshots.device)
        oversampling /= max(1.25, excess ** (1 / 3))


def _axes(volume: Volume) -> tuple[Tensor, Tensor, Tensor]:
    """Azimuth from the left (positive) to the right, elevation upwards, range upwards in equal ratios."""
    wide, high, deep = _PIXELS
    if volume.range_min == volume.range_max:  # held, maybe at infinity
        distance = torch.full((deep,), volume.range_min, dtype=torch.float64)
    else:
        limits = math.log10(volume.range_min), math.log10(volume.range_max)
        distance = torch.logspace(*limits, deep, dtype=torch.float64)
    return (
        torch.linspace(volume.azimuth_max, -volume.azimuth_max, wide, dtype=torch.float64),
        torch.linspace(-volume.elevation_max, volume.elevation_max, high, dtype=torch.float64),
        distance,
    )


def _resampled(values: Float[Tensor, "P"], grid: SearchGrid) -> Float[Tensor, "azimuth elevation range"]:
    """Values on the grid, at the pixels: trilinear in the grid's own coordinates."""
    axes = torch.meshgrid(*_axes(grid.volume), indexing="ij")
    wanted = []
    for at, known in zip(grid.to_axes(*axes), (grid.u_x, grid.u_y, grid.q), strict=True):
        low, high = float(known[0]), float(known[-1])
        wanted.append(2 * (at - low) / (high - low) - 1 if high > low else torch.zeros_like(at))
    # grid_sample wants the last axis of the values first.
    sampled = torch.nn.functional.grid_sample(
        values.cpu().view(1, 1, *grid.shape),
        torch.stack(wanted[::-1], dim=-1)[None],
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    return sampled[0, 0]


@dataclass(frozen=True)
class _Axis:
    """Values in radians or metres along one side of a slice: from ``first`` to ``last``."""

    name: str
    length: float
    first: float
    last: float
    ratios: bool = False

    def offset(self, value: float) -> float:
        """Distance of a value from the end of ``first``, in the units of the picture."""
        if self.first == self.last:  # where one range is searched, maybe an infinite one
            return 0.5 * self.length
        first, last = (math.log(end) if self.ratios else end for end in (self.first, self.last))
        return self.length * ((math.log(value) if self.ratios else value) - first) / (last - first)

    def ticks(self) -> list[tuple[float, str]]:
        """Places and texts: metres in steps of 1, 2 and 5, or whole degrees."""
        if self.first == self.last:
            return [(self.offset(self.first), "∞" if math.isinf(self.first) else f"{self.first:g}")]
        if self.ratios:
            return [(self.offset(value), f"{value:g}") for value in _metres(self.first, self.last)]
        limit = math.degrees(abs(self.last))
        step = next((step for step in (30, 15, 10, 5, 2, 1) if limit / step > 1.99), limit)
        whole = math.floor(limit / step + 1e-9)
        values = [step * number for number in range(-whole, whole + 1)]
        return [(self.offset(math.radians(value)), f"{value:g}".replace("-", MINUS)) for value in values]


def _slices(
    name: str, box: Tensor, recording: Recording, estimates: Sources, scene: int, volume: Volume
) -> Slices:
    span = min(_FLOOR_DB, float(box.max() - box.min()))
    shade = ((box - box.max()) / max(span, 1e-9) + 1).clamp(0, 1).numpy()
    sources = {"estimate": _listed(estimates[scene])}
    if recording.truth is not None:
        sources["true"] = _listed(recording.truth[scene])
    wide = WIDTH - _LEFT - _RIGHT
    # An angle that is held has no width; a slice over elevation alone is as high as wide.
    high = max(90.0, wide * volume.elevation_max / (volume.azimuth_max or volume.elevation_max or 1.0))
    azimuth = _Axis("azimuth / degrees", wide, volume.azimuth_max, -volume.azimuth_max)
    elevation = _Axis("elevation / degrees", high, -volume.elevation_max, volume.elevation_max)
    distance = _Axis("range / m", 0.5 * wide, volume.range_min, volume.range_max, ratios=True)
    words = f"{name} spectrum of the sample covariance over azimuth and"
    front = {kind: [(at[0], at[1]) for at in positions] for kind, positions in sources.items()}
    above = {kind: [(at[0], at[2]) for at in positions] for kind, positions in sources.items()}
    return Slices(
        name,
        span,
        _slice(shade.max(2), azimuth, elevation, front, f"{words} elevation, maximum over range."),
        _slice(shade.max(1), azimuth, distance, above, f"{words} range, maximum over elevation."),
    )


def _slice(
    shade: npt.NDArray[np.float64],
    across: _Axis,
    upwards: _Axis,
    sources: dict[str, list[tuple[float, float]]],
    alt: str,
) -> Slice:
    """One slice: values [across, upwards], with the sources that lie in it."""
    bottom = _TOP + upwards.length
    marks = []
    for kind, positions in sources.items():
        for number, (one, other) in enumerate(positions):
            x, y = across.offset(one), upwards.offset(other)
            if 0 <= x <= across.length and 0 <= y <= upwards.length:
                marks.append((kind, _LEFT + x, bottom - y, str(number) if kind == "estimate" else ""))
    return Slice(
        _png(shade.T[::-1]),
        (_LEFT, _TOP, across.length, upwards.length),
        [(_LEFT + offset, text) for offset, text in across.ticks()],
        [(bottom - offset, text) for offset, text in upwards.ticks()],
        across.name,
        upwards.name,
        marks,
        alt,
    )


def colour_bar() -> str:
    """The colours from the lowest value to the highest, a PNG of one row."""
    return _png(np.linspace(0, 1, _SHADES)[None])


def _listed(sources: Sources) -> list[tuple[float, float, float]]:
    active = sources.active
    values = (sources.azimuth[active], sources.elevation[active], sources.range[active])
    return list(zip(*(value.double().tolist() for value in values), strict=True))


def _metres(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within two limits, with the limits themselves if there are few."""
    first, last = math.floor(math.log10(low)), math.floor(math.log10(high))
    inside = [
        factor * 10.0**power
        for power in range(first, last + 1)
        for factor in (1, 2, 5)
        if low <= factor * 10.0**power <= high
    ]
    return inside if len(inside) > 2 else sorted({low, *inside, high})


def _png(shade: npt.NDArray[np.float64]) -> str:
    """Values from 0 to 1, the first row on top, as a PNG with its colours inside a ``data:`` address."""
    from matplotlib.image import imsave

    levels = np.round(shade * (_SHADES - 1)) / (_SHADES - 1)
    with io.BytesIO() as file:
        imsave(file, levels, cmap="cividis", vmin=0, vmax=1, format="png", pil_kwargs={"optimize": True})
        return png_address(file.getvalue())
