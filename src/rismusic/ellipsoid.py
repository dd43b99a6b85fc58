r"""Error ellipsoids in metres, from the covariance of azimuth, elevation and range.

A source at azimuth :math:`\varphi`, elevation :math:`\theta` and range r lies at :math:`x = r u`. To first
order an error of covariance :math:`\Sigma` (rad, rad, m) in the three coordinates is one of covariance

.. math:: C = J \Sigma J^T, \qquad J = \frac{\partial (x, y, z)}{\partial (\varphi, \theta, r)},

in metres. The points :math:`x + \sqrt{q}\, C^{1/2} v`, :math:`|v| = 1`, are the surface of an ellipsoid that
holds a Gaussian error with the probability that a chi-squared number of three degrees of freedom is below q.

For drawing, the points are computed in the estimated coordinates,
:math:`(\varphi, \theta, r) + \sqrt{q}\, J^{-1} C^{1/2} v`, limited to the search volume, and then converted
to Cartesian coordinates. For small errors the result is the ellipsoid. A large error region bends along the
sphere and never extends behind the panel or beyond the search volume.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rismusic.array import direction
from rismusic.estimation.grid import Volume

CONFIDENCE = 0.95
"""Probability that a Gaussian error lies inside the region that is drawn."""
# Quantiles of the chi-squared distribution at CONFIDENCE, by degrees of freedom (exact for two).
CHI_SQUARED = {2: -2 * math.log(1 - CONFIDENCE), 3: 7.814727903251179}


def to_cartesian(positions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Cartesian (x, y, z) in metres of azimuth, elevation (rad) and range (m), float64."""
    azimuth, elevation, distance = positions.double().unbind(-1)
    return distance[..., None] * torch.stack(direction(azimuth, elevation), dim=-1)


def jacobian(positions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """J, derivatives of :func:`to_cartesian`: rows x, y, z; columns azimuth, elevation, range; float64."""
    azimuth, elevation, distance = positions.double().unbind(-1)
    zero = torch.zeros_like(azimuth)
    by_azimuth = (azimuth.cos() * elevation.cos(), zero, -azimuth.sin() * elevation.cos())
    by_elevation = (-azimuth.sin() * elevation.sin(), elevation.cos(), -azimuth.cos() * elevation.sin())
    across = [distance[..., None] * torch.stack(slope, dim=-1) for slope in (by_azimuth, by_elevation)]
    return torch.stack((*across, torch.stack(direction(azimuth, elevation), dim=-1)), dim=-1)


def cartesian_covariance(
    positions: Float[Tensor, "*batch 3"], covariance: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, "*batch 3 3"]:
    """C = J Sigma J^T, square metres.

    Args:
        positions: azimuth (rad), elevation (rad) and range (m).
        covariance: Sigma, of these three.
    """
    J = jacobian(positions)
    return J @ covariance.double() @ J.mT


def ellipsoid(
    position: Float[Tensor, "3"], covariance: Float[Tensor, "3 3"], volume: Volume, *, points: int = 41
) -> tuple[Float[Tensor, "3 points 3"], bool]:
    """The three principal sections of the error ellipsoid of one source.

    Args:
        position: azimuth (rad), elevation (rad) and range (m).
        covariance: Sigma of these three, finite.
        volume: the search volume; the drawing stays inside.
        points: number of points of each section; the last equals the first.

    Returns:
        The sections in metres, and whether the volume clipped them.
    """
    root = _axes(cartesian_covariance(position, covariance))
    turn = torch.linspace(0, 2 * math.pi, points, dtype=torch.float64)
    circle = torch.stack((turn.cos(), turn.sin(), torch.zeros_like(turn)), dim=-1)
    unit = torch.stack([circle.roll(shift, dims=-1) for shift in range(3)])
    return _drawn(position, math.sqrt(CHI_SQUARED[3]) * unit @ root.mT, volume)


def ellipse_from_above(
    position: Float[Tensor, "3"], covariance: Float[Tensor, "3 3"], volume: Volume, *, points: int = 49
) -> tuple[Float[Tensor, "points 3"], bool]:
    r"""The error ellipse of one source in x and z, whatever its height.

    The outline of the ellipsoid seen from above, :math:`C n / \sqrt{n^T C n}` for every direction n in the
    plane, at the size that holds both coordinates with the probability ``CONFIDENCE``.

    Args:
        position: see :func:`ellipsoid`.
        covariance: see :func:`ellipsoid`.
        volume: see :func:`ellipsoid`.
        points: number of points of the outline; the last equals the first.

    Returns:
        The outline in metres, and whether the volume clipped it.
    """
    C = cartesian_covariance(position, covariance)
    turn = torch.linspace(0, 2 * math.pi, points, dtype=torch.float64)
    normal = torch.stack((turn.cos(), torch.zeros_like(turn), turn.sin()), dim=-1)
    offset = normal @ C / (normal @ C * normal).sum(-1, keepdim=True).sqrt()
    return _drawn(position, math.sqrt(CHI_SQUARED[2]) * offset, volume)


def inside_ellipsoid(
    error: Float[Tensor, "*batch 3"], covariance: Float[Tensor, "*batch 3 3"]
) -> Bool[Tensor, "*batch"]:
    """Whether an error of azimuth (rad), elevation (rad) and range (m) lies within its ellipsoid.

    Args:
        error: estimate minus truth.
        covariance: Sigma, finite.
    """
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
