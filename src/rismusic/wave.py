r"""Steering vectors of the near field and their derivatives: the one place that knows the wave.

A source at azimuth :math:`\varphi`, elevation :math:`\theta` and range :math:`r` lies at :math:`r u`,

.. math:: u = (\sin\varphi\cos\theta,\; \sin\theta,\; \cos\varphi\cos\theta),

and its steering vector of unit norm is

.. math:: a_n = \exp(j k_0 \delta_n) / \sqrt N, \qquad \delta_n = r - d_n,

with :math:`d_n` the distance from the source to element n at :math:`p_n`. The path difference
:math:`\delta_n` has three forms:

* ``spherical`` (exact): :math:`d_n = |r u - p_n|`, hence
  :math:`\delta_n = (2 r\, p_n\!\cdot\!u - |p_n|^2) / (r + d_n)`, which does not cancel in float32;
* ``fresnel`` (second order): :math:`\delta_n = p_n\!\cdot\!u - (|p_n|^2 - (p_n\!\cdot\!u)^2) / (2 r)`;
* ``paraxial`` (curvature as on the axis, common and wrong off it):
  :math:`\delta_n = p_n\!\cdot\!u - |p_n|^2 / (2 r)`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.panel import Panel

Wave = Literal["spherical", "fresnel", "paraxial"]


def direction(
    azimuth: Float[Tensor, "*batch"], elevation: Float[Tensor, "*batch"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """The direction cosines (u_x, u_y, u_z) of azimuth and elevation (radians)."""
    return azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos()


def path_difference(
    panel: Panel,
    towards: tuple[Float[Tensor, "*batch K"], Float[Tensor, "*batch K"], Float[Tensor, "*batch K"]],
    range: Float[Tensor, "*batch K"],
    wave: Wave = "spherical",
) -> Float[Tensor, "*batch K N"]:
    """Path differences delta = r - d in metres, for directions given by their cosines.

    Args:
        panel: N elements.
        towards: direction cosines (u_x, u_y, u_z) of K points.
        range: their ranges in metres.
        wave: the form of the wave; see the head of this module.
    """
    x, y, z = (cosine[..., None] for cosine in towards)
    return _Paths(panel, (x, y, z), range[..., None], wave).difference


def steering(
    panel: Panel,
    azimuth: Float[Tensor, "*batch K"],
    elevation: Float[Tensor, "*batch K"],
    range: Float[Tensor, "*batch K"],
    wave: Wave = "spherical",
) -> Complex[Tensor, "*batch N K"]:
    """Steering matrix A, a column of unit norm for each source.

    Args:
        panel: N elements; its leading axes, if any, broadcast against those of the sources.
        azimuth: radians; its precision is that of the result (float32 gives complex64).
        elevation: radians.
        range: metres, positive.
        wave: ``spherical`` (exact), ``fresnel`` or ``paraxial``; see the head of this module.

    Returns:
        A, [..., N, K] complex.
    """
    return _wave(panel, path_difference(panel, direction(azimuth, elevation), range, wave)).mT


def steering_with_derivatives(
    panel: Panel,
    azimuth: Float[Tensor, "*batch K"],
    elevation: Float[Tensor, "*batch K"],
    range: Float[Tensor, "*batch K"],
    wave: Wave = "spherical",
) -> tuple[Complex[Tensor, "*batch N K"], Complex[Tensor, "*batch N K 3"]]:
    r"""Steering matrix and its exact derivatives in azimuth, elevation and range.

    :math:`\partial a_n / \partial p = j a_n\, \partial\psi_n / \partial p`, with the phases' derivatives of
    :func:`steering_with_slopes`.

    Args:
        panel: see :func:`steering`.
        azimuth: radians.
        elevation: radians.
        range: metres.
        wave: see :func:`steering`.

    Returns:
        A [..., N, K], and D [..., N, K, 3]: per radian, per radian, per metre.
    """
    A, slopes = steering_with_slopes(panel, azimuth, elevation, range, wave)
    return A, torch.complex(-slopes * A.imag[..., None], slopes * A.real[..., None])


def steering_with_slopes(
    panel: Panel,
    azimuth: Float[Tensor, "*batch K"],
    elevation: Float[Tensor, "*batch K"],
    range: Float[Tensor, "*batch K"],
    wave: Wave = "spherical",
) -> tuple[Complex[Tensor, "*batch N K"], Float[Tensor, "*batch N K 3"]]:
    r"""Steering matrix and the derivatives of its phases :math:`\psi_n = k_0 \delta_n`.

    For the spherical wave :math:`\partial\delta / \partial\varphi = r\, (p\!\cdot\!u_\varphi) / d`, likewise
    in elevation, and :math:`\partial\delta / \partial r = (|p|^2 - \delta\, p\!\cdot\!u) / (d (r + d))`,
    again without cancellation.

    Args:
        panel: see :func:`steering`.
        azimuth: radians.
        elevation: radians.
        range: metres.
        wave: see :func:`steering`.

    Returns:
        A [..., N, K], and the derivatives [..., N, K, 3]: radians per radian, per radian, per metre.
    """
    azimuth, elevation = azimuth[..., None], elevation[..., None]
    sin, cos, rise, level = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
    x, z = sin * level, cos * level
    paths = _Paths(panel, (x, rise, z), range[..., None], wave)
    by_azimuth, by_elevation = paths.turn((z, None, -x)), paths.turn((-sin * rise, level, -cos * rise))
    slopes = torch.stack((by_azimuth, by_elevation, paths.stretch()), dim=-1) * panel.wavenumber
    return _wave(panel, paths.difference).mT, slopes.transpose(-3, -2)


def by_inverse_range(inverse_range: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 3"]:
    """Derivatives of azimuth, elevation and range by azimuth, elevation and 1/range: 1, 1 and -r^2.

    Args:
        inverse_range: 1/r in 1/m, positive.
    """
    one = torch.ones_like(inverse_range)
    return torch.stack((one, one, -1 / inverse_range.square()), dim=-1)


class _Paths:
    """Path differences delta = r - d of K sources to N elements, laid out [..., K, N]: the long axis last.

    Directions and distances are columns, [..., K, 1].
    """

    def __init__(
        self, panel: Panel, towards: tuple[Tensor, Tensor, Tensor], distance: Tensor, wave: Wave
    ) -> None:
        elements = panel.elements.to(device=distance.device, dtype=distance.dtype)
        self._elements = elements.unsqueeze(-3).unbind(-1)
        self._wave = wave
        self._range = r = distance
        self._along = along = self._dot(towards)
        self._squared = squared = elements.square().sum(-1).unsqueeze(-2)
        if wave == "spherical":
            # For an element far off the axis both squares grow; the sum below stays positive.
            twice = 2 * r * along
            self._distance = (r.square() - twice + squared).sqrt()
            self._sum = r + self._distance
            self.difference = (twice - squared) / self._sum
        elif wave == "fresnel":
            self.difference = along - (squared - along.square()) / (2 * r)
        else:
            self.difference = along - squared / (2 * r)

    def _dot(self, vector: tuple[Tensor, Tensor | None, Tensor]) -> Tensor:
        x, y, z = self._elements
        product = torch.addcmul(x * vector[0], z, vector[2])
        return product if vector[1] is None else product.addcmul_(y, vector[1])

    def turn(self, by: tuple[Tensor, Tensor | None, Tensor]) -> Tensor:
        """Derivative of the path difference along a change of direction ``by``."""
        across = self._dot(by)
        if self._wave == "spherical":
            return self._range * across / self._distance
        if self._wave == "fresnel":
            return across * (1 + self._along / self._range)
        return across

    def stretch(self) -> Tensor:
        """Derivative of the path difference by the range."""
        if self._wave == "spherical":
            rest = self._squared - self._along * self.difference
            return rest / (self._distance * self._sum)
        if self._wave == "fresnel":
            return (self._squared - self._along.square()) / (2 * self._range.square())
        return (self._squared / (2 * self._range.square())).expand_as(self._along)


def _wave(panel: Panel, difference: Tensor) -> Tensor:
    phase = panel.wavenumber * difference
    scale = 1 / math.sqrt(panel.size)
    return torch.complex(phase.cos() * scale, phase.sin() * scale)
