r"""One scene as shapes in space: panel, sources, error regions and a floor with distances and azimuths.

The shapes do not depend on how they are drawn: :mod:`rismusic.plots` draws them with matplotlib, and
:mod:`rismusic.report` as SVG that turns in the browser.

**Error ellipsoids.** A source at azimuth :math:`\varphi`, elevation :math:`\theta` and range r lies at
:math:`x = r u`. To first order an error of covariance :math:`\Sigma` (rad, rad, m) in the three coordinates
is one of covariance

.. math:: C = J \Sigma J^T, \qquad J = \frac{\partial (x, y, z)}{\partial (\varphi, \theta, r)},

in metres. The points :math:`x + \sqrt{q}\, C^{1/2} v`, :math:`|v| = 1`, are the surface of an ellipsoid that
holds a Gaussian error with the probability that a chi-squared number of three degrees of freedom is below q.

For drawing, the points are computed in the estimated coordinates,
:math:`(\varphi, \theta, r) + \sqrt{q}\, J^{-1} C^{1/2} v`, limited to the search volume, and then converted
to Cartesian coordinates. For small errors the result is the ellipsoid. A large error region bends along the
sphere and never extends behind the panel or beyond the search volume, unless the estimate is there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rismusic.array import Panel
from rismusic.estimation.grid import Volume
from rismusic.sources import Sources, cartesian_covariance, jacobian, to_cartesian

CONFIDENCE = 0.95
"""Probability that a Gaussian error lies inside the region that is drawn."""
# Quantiles of the chi-squared distribution at CONFIDENCE, by degrees of freedom (exact for two).
CHI_SQUARED = {2: -2 * math.log(1 - CONFIDENCE), 3: 7.814727903251179}


def ellipsoid(
    position: Float[Tensor, "3"], covariance: Float[Tensor, "3 3"], volume: Volume
) -> tuple[Float[Tensor, "3 _ 3"], bool]:
    """The three principal sections of the error ellipsoid of one source at an azimuth, elevation and range.

    They are in metres and stay inside the volume. Their last point equals the first. The second value is
    whether the volume clipped them.
    """
    root = _axes(cartesian_covariance(position, covariance))
    turn = torch.linspace(0, 2 * math.pi, 41, dtype=torch.float64)
    circle = torch.stack((turn.cos(), turn.sin(), torch.zeros_like(turn)), dim=-1)
    unit = torch.stack([circle.roll(shift, dims=-1) for shift in range(3)])
    return _drawn(position, math.sqrt(CHI_SQUARED[3]) * unit @ root.mT, volume)


def ellipse_from_above(
    position: Float[Tensor, "3"], covariance: Float[Tensor, "3 3"], volume: Volume
) -> tuple[Float[Tensor, "_ 3"], bool]:
    r"""The error ellipse of one source in x and z, whatever its height, in metres; see :func:`ellipsoid`.

    The outline of the ellipsoid seen from above, :math:`C n / \sqrt{n^T C n}` for every direction n in the
    plane, at the size that holds both coordinates with the probability ``CONFIDENCE``.
    """
    C = cartesian_covariance(position, covariance)
    turn = torch.linspace(0, 2 * math.pi, 49, dtype=torch.float64)
    normal = torch.stack((turn.cos(), torch.zeros_like(turn), turn.sin()), dim=-1)
    offset = normal @ C / (normal @ C * normal).sum(-1, keepdim=True).sqrt()
    return _drawn(position, math.sqrt(CHI_SQUARED[2]) * offset, volume)


def inside_ellipsoid(
    error: Float[Tensor, "*batch 3"], covariance: Float[Tensor, "*batch 3 3"]
) -> Bool[Tensor, "*batch"]:
    """Whether an error of azimuth (rad), elevation (rad) and range (m) lies within its ellipsoid."""
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    unit = covariance / (scale[..., :, None] * scale[..., None, :])
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(unit), (error / scale)[..., None], upper=False
    )
    return white[..., 0].square().sum(-1) <= CHI_SQUARED[3]


def _axes(C: Float[Tensor, "3 3"]) -> Float[Tensor, "3 3"]:
    """C^(1/2) with the half axes of one standard deviation as columns, the longest last."""
    values, vectors = torch.linalg.eigh(C)
    return vectors * values.clamp_min(0).sqrt()


def _drawn(
    position: Float[Tensor, "3"], offset: Float[Tensor, "*batch 3"], volume: Volume
) -> tuple[Float[Tensor, "*batch 3"], bool]:
    """Convert offsets in metres to azimuth, elevation and range, limit them to the volume, convert back."""
    moved = position.double() + torch.linalg.solve(jacobian(position), offset.mT).mT
    limited = torch.stack(volume.clamp(*moved.unbind(-1)), dim=-1)
    return to_cartesian(limited), not torch.equal(limited, moved)


Points = npt.NDArray[np.float64]

_ELEMENTS = 400  # number of elements drawn one by one; of a larger panel every second, third, ... is drawn.
# Azimuth to either side up to which the floor is drawn where no search volume is given.
_SIDE = math.radians(60)


@dataclass(frozen=True)
class Projection:
    r"""A parallel projection along :math:`f = (\sin a \cos b, -\sin b, \cos a \cos b)`, yaw a, pitch b.

    On the screen :math:`(-\cos a, 0, \sin a)` points to the right and
    :math:`(\sin a \sin b, \cos b, \cos a \sin b)` upwards. From behind the panel (a = b = 0) x therefore
    points to the left, as it does from above (b = pi/2).
    """

    yaw: float
    pitch: float

    @property
    def right(self) -> Points:
        """[3] the direction that points to the right on the screen."""
        return np.array((-math.cos(self.yaw), 0.0, math.sin(self.yaw)))

    @property
    def up(self) -> Points:
        """[3] the direction that points upwards on the screen."""
        a, b = self.yaw, self.pitch
        return np.array((math.sin(a) * math.sin(b), math.cos(b), math.cos(a) * math.sin(b)))

    def project(self, points: Points) -> Points:
        """[Q, 2] metres to the right and upwards on the screen, of points [Q, 3]."""
        return points @ np.stack((self.right, self.up), axis=-1)


BEHIND = Projection(math.radians(-28), math.radians(30))
"""From behind and above the panel."""
ABOVE = Projection(0.0, math.pi / 2)
"""From above: x points to the left, z upwards."""


@dataclass(frozen=True)
class Shape:
    """A shape in space."""

    form: str  # line, area, dots, mark or word
    kind: str  # what it shows, such as ring, ellipsoid or estimate; this sets its style
    points: Points  # [Q, 3] metres, panel frame; a single point for a mark or a word
    text: str = ""  # the word, or the label of the mark


@dataclass
class Scene:
    """The panel and the sources of one scene, with their error regions.

    Args:
        panel: the panel.
        estimates: estimated sources, [K].
        covariance: [K, 3, 3] of the errors of azimuth (rad), elevation (rad) and range (m).
        truth: true sources.
        volume: the search volume, to which error regions are limited, see :func:`holding`.
        clipped: set while drawing: whether the volume clipped an error region.
    """

    panel: Panel
    estimates: Sources | None = None
    covariance: torch.Tensor | None = None
    truth: Sources | None = None
    volume: Volume | None = None
    clipped: bool = field(default=False, init=False)

    def in_space(self) -> list[Shape]:
        """Shapes of a view from any side, with error ellipsoids."""
        shapes = self._floor() + self._panel() + self._stems()
        for position, covariance in self._finite():
            sections, clipped = ellipsoid(position, covariance, self._limits)
            self.clipped |= clipped
            shapes += [Shape("line", "ellipsoid", section.numpy()) for section in sections]
        return shapes + self._marks()

    def from_above(self) -> list[Shape]:
        """Shapes of a view from above, with error ellipses and the Fresnel and Fraunhofer distances."""
        shapes = self._floor() + self._distances() + self._panel()
        for position, covariance in self._finite():
            outline, clipped = ellipse_from_above(position, covariance, self._limits)
            self.clipped |= clipped
            shapes.append(Shape("area", "ellipse", outline.numpy()))
        return shapes + self._marks()

    @property
    def thinned(self) -> int:
        """One in this many elements of the panel is drawn."""
        return math.ceil(self.panel.size / _ELEMENTS)

    def _present(self) -> list[tuple[str, Sources]]:
        some = (("true", self.truth), ("estimate", self.estimates))
        return [(kind, sources) for kind, sources in some if sources is not None]

    def _finite(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Position and covariance of every estimate whose covariance is finite."""
        if self.estimates is None or self.covariance is None:
            return []
        positions = _stacked(self.estimates)
        covariances = self.covariance[self.estimates.active]
        return [
            (position, covariance)
            for position, covariance in zip(positions, covariances, strict=True)
            if bool(covariance.isfinite().all())
        ]

    @property
    def _limits(self) -> Volume:
        """The volume to which error regions are limited: in front of the panel where none is given."""
        assert self.estimates is not None, "only error regions of estimates are limited"
        farthest = _farthest(self.estimates)
        front = Volume(math.radians(89), math.radians(89), farthest / 100, 2 * farthest)
        return holding(self.volume or front, self.panel, self.estimates)

    @property
    def reach(self) -> tuple[float, float]:
        """Radius of the floor and distance of its rings, metres."""
        farthest = self.panel.aperture / 2
        for _, sources in self._present():
            far = self.panel.fraunhofer_distance if sources.range.isinf().any() else 0.0
            farthest = max(farthest, _farthest(sources), far)
        for position, covariance in self._finite():
            outline = ellipse_from_above(position, covariance, self._limits)[0]
            farthest = max(farthest, float(outline.norm(dim=-1).max()))
        step = nice_step((farthest or 1.0) / 4)
        return math.ceil(farthest / step - 1e-9) * step, step

    @property
    def side(self) -> float:
        """Azimuth up to which the floor is drawn, rad."""
        side = _SIDE if self.volume is None else self.volume.azimuth_max
        for _, sources in self._present():
            if sources.active.any():
                side = max(side, float(sources.azimuth[sources.active].abs().max()))
        return side

    def _floor(self) -> list[Shape]:
        """Rings and rays in the plane y = 0, as far as azimuth is searched or a source lies."""
        (reach, step), side = self.reach, self.side
        turn = np.linspace(-side, side, 37)
        shapes = []
        for radius in np.arange(1, round(reach / step) + 1) * step:
            shapes.append(Shape("line", "ring", _polar(turn, radius)))
            shapes.append(Shape("word", "tick", _polar(np.array([side + 0.12]), radius), f"{radius:.4g} m"))
        rays = math.radians(30 if side > math.radians(35) else 10) * np.arange(-8, 9)
        for ray in rays[np.abs(rays) <= side + 1e-9]:
            shapes.append(Shape("line", "ray", _polar(np.array([ray, ray]), np.array([0.0, reach]))))
            degrees = f"{math.degrees(ray):.0f}°".replace("-", "−")
            shapes.append(Shape("word", "degrees", _polar(np.array([ray]), 1.06 * reach), degrees))
        return shapes

    def _distances(self) -> list[Shape]:
        reach, side = self.reach[0], self.side
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
        return [Shape("area", "panel", outline), Shape("dots", "element", elements[:: self.thinned])]

    def _stems(self) -> list[Shape]:
        """From each source straight to the floor."""
        shapes = []
        for kind, sources in self._present():
            for point in positions(self._within(sources)):
                foot = point * (1, 0, 1)
                shapes.append(Shape("line", f"stem {kind}", np.stack((point, foot))))
        return shapes

    @property
    def _numbered(self) -> str:
        """Estimates carry their numbers; true sources do where there are no estimates."""
        return "true" if self.estimates is None else "estimate"

    def _within(self, sources: Sources) -> Sources:
        """The sources with those in the far field on the outermost ring."""
        return replace(sources, range=sources.range.clamp(max=self.reach[0]))

    def _marks(self) -> list[Shape]:
        marks = []
        for kind, sources in self._present():
            far = sources.range[sources.active].isinf().tolist()
            for number, point in enumerate(positions(self._within(sources))):
                words = [str(number)] * (kind == self._numbered) + ["far field"] * far[number]
                marks.append(Shape("mark", kind, point[None], ", ".join(words)))
        return marks


def positions(sources: Sources) -> Points:
    """Cartesian positions [K, 3] in metres of the sources of one scene; empty entries are left out."""
    return to_cartesian(_stacked(sources)).numpy()


def holding(volume: Volume, panel: Panel, estimates: Sources) -> Volume:
    """The volume that is drawn: enlarged to hold estimates beyond the searched one, with a largest range."""
    active = estimates.active
    ranges = estimates.range[active & estimates.range.isfinite()].tolist()

    def angle(limit: float, found: Tensor) -> float:
        largest = max([limit, *found[active].abs().tolist()])
        # Room for the error region of an estimate beyond the limit.
        return limit if largest <= limit else max(largest, math.radians(89))

    azimuth = angle(volume.azimuth_max, estimates.azimuth)
    elevation = angle(volume.elevation_max, estimates.elevation)
    nearest, farthest = min([volume.range_min, *ranges]), volume.range_max
    if math.isinf(farthest) and math.isfinite(nearest):
        farthest = 2 * max([panel.fraunhofer_distance, nearest, *ranges])
    elif ranges and max(ranges) > farthest:
        farthest = 2 * max(ranges)
    return Volume(azimuth, elevation, nearest, farthest)


def _farthest(sources: Sources) -> float:
    """Largest finite range, metres; 0 if there is none."""
    finite = sources.range[sources.active & sources.range.isfinite()]
    return float(finite.max()) if len(finite) else 0.0


def nice_step(length: float) -> float:
    """1, 2 or 5 times a power of ten, the least that is not below ``length``."""
    power = 10.0 ** math.floor(math.log10(length))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= length * (1 - 1e-9))


def _stacked(sources: Sources) -> torch.Tensor:
    """[K, 3] azimuth, elevation and range of the active sources, float64."""
    active = sources.active
    values = (sources.azimuth, sources.elevation, sources.range)
    return torch.stack([value[active].double().cpu() for value in values], dim=-1)


def _polar(azimuth: Points, radius: Points | float) -> Points:
    return np.stack((radius * np.sin(azimuth), 0 * azimuth, radius * np.cos(azimuth)), axis=-1)
