"""A scene as an SVG picture for reports, which a script in the page can turn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rismusic.scene_view import ABOVE, BEHIND, Points, Projection, Scene, Shape

WIDTH = 420.0
"""Width of every picture in SVG units. Text is 12 units high, so that it can be read on a phone."""

_MARGIN = 22.0


@dataclass(frozen=True)
class View:
    """A projection with the part of the scene that the picture shows.

    Args:
        yaw: see :class:`~rismusic.scene_view.Projection`.
        pitch: see there.
        centre: the point in the middle of the picture, metres.
        scale: SVG units per metre.
        height: of the picture, SVG units.
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
