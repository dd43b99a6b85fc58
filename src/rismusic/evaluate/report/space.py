"""A scene as lines, marks and words in space, and their picture from any side."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from rismusic.array import Panel
from rismusic.estimation.grid import Volume
from rismusic.evaluate.ellipsoid import ellipse_from_above, ellipsoid, place
from rismusic.sources import Sources

Points = npt.NDArray[np.float64]

WIDTH = 420.0
"""Width of every picture in its own units; text is 12 of them high, so that a phone can show it."""

# Elements drawn one by one; of a larger panel every second, third, ... is.
_ELEMENTS = 400
_MARGIN = 22.0


@dataclass(frozen=True)
class Shape:
    """Something in space: a ``line``, an ``area``, ``dots``, a ``mark`` or a ``word``.

    Args:
        form: one of these.
        kind: what it is, which decides how it looks.
        points: [Q, 3] metres, panel frame; one for a mark or a word.
        text: the word, or what stands beside the mark.
    """

    form: str
    kind: str
    points: Points
    text: str = ""


@dataclass(frozen=True)
class View:
    r"""How space is seen: without perspective, from a yaw and pitch about a centre.

    The camera looks along :math:`f = (\sin a \cos b, -\sin b, \cos a \cos b)`, yaw a, pitch b; on the
    screen :math:`(-\cos a, 0, \sin a)` points to the right and
    :math:`(\sin a \sin b, \cos b, \cos a \sin b)` upwards. From behind the panel (a = b = 0) x therefore
    runs to the left, as it does from above (b = pi/2).
    """

    yaw: float
    pitch: float
    centre: tuple[float, float, float]
    scale: float
    height: float

    @property
    def up(self) -> Points:
        """[3] what points upwards on the screen."""
        a, b = self.yaw, self.pitch
        return np.array((math.sin(a) * math.sin(b), math.cos(b), math.cos(a) * math.sin(b)))

    def screen(self, points: Points) -> Points:
        """[Q, 2] places in the picture, y downwards."""
        right = np.array((-math.cos(self.yaw), 0.0, math.sin(self.yaw)))
        from_centre = points - np.array(self.centre)
        across, along = from_centre @ right, from_centre @ self.up
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


@dataclass
class Scene:
    """Everything there is to draw of one scene.

    Args:
        panel: the panel.
        volume: what was searched.
        found: sources found, [K].
        covariance: [K, 3, 3] of their errors.
        truth: true sources, or none.
        cut: filled while drawing: whether the volume cut an ellipsoid.
    """

    panel: Panel
    volume: Volume
    found: Sources
    covariance: torch.Tensor
    truth: Sources | None
    cut: bool = field(default=False, init=False)

    def in_space(self) -> Picture:
        """The scene from behind and above the panel, with error ellipsoids."""
        shapes = self._floor() + self._panel() + self._stems()
        for position, covariance in self._finite():
            sections, cut = ellipsoid(position, covariance, self.volume)
            self.cut |= cut
            shapes += [Shape("line", "ellipsoid", section.numpy()) for section in sections]
        shapes += self._marks()
        return _picture(shapes, self._alt("in space"), yaw=math.radians(-28), pitch=math.radians(30))

    def from_above(self) -> Picture:
        """The scene from above, with error ellipses and the Fresnel and Fraunhofer distances."""
        shapes = self._floor() + self._distances() + self._panel()
        for position, covariance in self._finite():
            outline, cut = ellipse_from_above(position, covariance, self.volume)
            self.cut |= cut
            shapes.append(Shape("area", "ellipse", outline.numpy()))
        shapes += self._marks()
        return _picture(shapes, self._alt("from above"), yaw=0.0, pitch=math.pi / 2)

    @property
    def thinned(self) -> int:
        """Every so-manieth element of the panel is drawn."""
        return math.ceil(self.panel.size / _ELEMENTS)

    def _present(self) -> list[tuple[str, Sources]]:
        true = [] if self.truth is None else [("true", self.truth)]
        return [*true, ("found", self.found)]

    def _finite(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Position and covariance of every source found that has error bars."""
        positions = _stacked(self.found)
        return [
            (position, covariance)
            for position, covariance in zip(positions, self.covariance[self.found.active], strict=True)
            if bool(covariance.isfinite().all())
        ]

    @property
    def reach(self) -> tuple[float, float]:
        """Radius of the floor and distance of its rings, metres."""
        farthest = self.panel.aperture / 2
        for _, sources in self._present():
            farthest = max(
                farthest, float(sources.range[sources.active].max()) if sources.active.any() else 0
            )
        for position, covariance in self._finite():
            outline = ellipse_from_above(position, covariance, self.volume)[0]
            farthest = max(farthest, float(outline.norm(dim=-1).max()))
        step = nice_step(farthest / 4)
        return math.ceil(farthest / step - 1e-9) * step, step

    def _floor(self) -> list[Shape]:
        """Rings and rays in the plane y = 0, as far as azimuth is searched or a source lies."""
        reach, step = self.reach
        side = self.volume.azimuth_max
        for _, sources in self._present():
            if sources.active.any():
                side = max(side, float(sources.azimuth[sources.active].abs().max()))
        turn = np.linspace(-side, side, 37)
        shapes = []
        for radius in np.arange(1, round(reach / step) + 1) * step:
            shapes.append(Shape("line", "ring", _polar(turn, radius)))
            shapes.append(Shape("word", "tick", _polar(np.array([-side - 0.1]), radius), f"{radius:.4g} m"))
        rays = math.radians(30 if side > math.radians(35) else 10) * np.arange(-8, 9)
        for ray in rays[np.abs(rays) <= side + 1e-9]:
            shapes.append(Shape("line", "ray", _polar(np.array([ray, ray]), np.array([0.0, reach]))))
            degrees = f"{math.degrees(ray):.0f}°".replace("-", "−")
            shapes.append(Shape("word", "degrees", _polar(np.array([ray]), 1.06 * reach), degrees))
        return shapes

    def _distances(self) -> list[Shape]:
        reach, side = self.reach[0], self.volume.azimuth_max
        turn = np.linspace(-side, side, 37)
        return [
            Shape("line", kind, _polar(turn, distance))
            for kind, distance in (
                ("fresnel", self.panel.fresnel_distance),
                ("fraunhofer", self.panel.fraunhofer_distance),
            )
            if 0 < distance <= reach
        ]

    def _panel(self) -> list[Shape]:
        elements = self.panel.elements.double().cpu().numpy()
        (left, low, near), (right, high, far) = elements.min(0), elements.max(0)
        depth = (near + far) / 2
        corners = [(left, low), (right, low), (right, high), (left, high), (left, low)]
        outline = np.array([(x, y, depth) for x, y in corners])
        return [
            Shape("area", "panel", outline),
            Shape("dots", "element", elements[:: self.thinned]),
        ]

    def _stems(self) -> list[Shape]:
        """From each source straight to the floor, and along the floor to the panel."""
        shapes = []
        for kind, sources in self._present():
            for point in place(_stacked(sources)).numpy():
                foot = point * (1, 0, 1)
                shapes.append(Shape("line", f"stem {kind}", np.stack((point, foot))))
        return shapes

    def _marks(self) -> list[Shape]:
        return [
            Shape("mark", kind, point[None], str(number) if kind == "found" else "")
            for kind, sources in self._present()
            for number, point in enumerate(place(_stacked(sources)).numpy())
        ]

    def _alt(self, how: str) -> str:
        words = [f"{int(sources.active.sum())} {kind} sources" for kind, sources in self._present()[::-1]]
        return f"The panel with {' and '.join(words)} {how}; the table below holds the numbers."


def nice_step(length: float) -> float:
    """1, 2 or 5 times a power of ten, the least that is not below ``length``."""
    power = 10.0 ** math.floor(math.log10(length))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= length * (1 - 1e-9))


def _stacked(sources: Sources) -> torch.Tensor:
    """[K, 3] azimuth, elevation and range of the sources that are there, float64."""
    active = sources.active
    values = (sources.azimuth, sources.elevation, sources.range)
    return torch.stack([value[active].double().cpu() for value in values], dim=-1)


def _polar(azimuth: Points, radius: Points | float) -> Points:
    return np.stack((radius * np.sin(azimuth), 0 * azimuth, radius * np.cos(azimuth)), axis=-1)


def _picture(shapes: list[Shape], alt: str, *, yaw: float, pitch: float) -> Picture:
    """The view that shows all shapes whichever way they are turned, then the shapes in it."""
    everything = np.concatenate([shape.points for shape in shapes])
    middle = (everything.min(0) + everything.max(0)) / 2
    radius = float(np.linalg.norm((everything - middle)[:, [0, 2]], axis=1).max())
    scale = (WIDTH / 2 - _MARGIN) / radius
    # Moved upwards on the screen only, so that the picture is no higher than what is in it.
    up = View(yaw, pitch, (0.0, 0.0, 0.0), scale, 0.0).up
    heights = (everything - middle) @ up
    centre = middle + up * (heights.min() + heights.max()) / 2
    height = float(np.clip(scale * np.ptp(heights) + 2 * _MARGIN, 0.45 * WIDTH, WIDTH))
    view = View(
        yaw, pitch, (float(centre[0]), float(centre[1]), float(centre[2])), scale, float(round(height))
    )
    return Picture(view, [_drawn(shape, view) for shape in shapes], alt)


def _drawn(shape: Shape, view: View) -> Drawn:
    places = [(f"{x:.1f}", f"{y:.1f}") for x, y in view.screen(shape.points)]
    commands = [f"{x} {y}" for x, y in places]
    if shape.form == "dots":
        path = "".join(f"M{command}h0" for command in dict.fromkeys(commands))
    else:
        path = "M" + "L".join(commands) + ("Z" if shape.form == "area" else "")
    xyz = " ".join(_number(value) for value in shape.points.ravel().tolist())
    return Drawn(shape.form, shape.kind, xyz, path, places[0], shape.text)


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) > 1e-9 else "0"
