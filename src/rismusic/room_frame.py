r"""Coordinates in the room frame and in the frame of a panel.

A pose is the homogeneous transform :math:`T = \begin{pmatrix} R & t \\ 0 & 1 \end{pmatrix}` from the panel
frame to the room frame. A point x of the room has the panel coordinates :math:`R^T (x - t)`. With unit
vectors u, :math:`u_\varphi` and :math:`u_\theta` of increasing range, azimuth and elevation (in the panel
frame), the derivatives of azimuth, elevation and inverse range :math:`q = 1/r` by x are

.. math:: \nabla\varphi = \frac{R\, u_\varphi}{r \cos\theta}, \qquad \nabla\theta = \frac{R\, u_\theta}{r},
    \qquad \nabla q = -\frac{R\, u}{r^2}.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.array import direction

# Least cosine of an elevation and least range (m), so that derivatives are finite.
_LEAST = 1e-9


def to_panel_coordinates(
    pose: Float[Tensor, "4 4"], place: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 3"]:
    """Azimuth, elevation (rad) and inverse range (1/m) of points of the room.

    The azimuth of a point behind the panel is beyond 90 degrees.

    Args:
        pose: from the panel frame to the room frame.
        place: metres, room frame.
    """
    x, y, z = ((place - pose[:3, 3]) @ pose[:3, :3]).unbind(-1)
    across = torch.hypot(x, z)
    return torch.stack(
        (torch.atan2(x, z), torch.atan2(y, across), 1 / torch.hypot(across, y).clamp_min(_LEAST)), dim=-1
    )


def from_panel_coordinates(
    pose: Float[Tensor, "4 4"], positions: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 3"]:
    """The inverse of :func:`to_panel_coordinates`."""
    azimuth, elevation, q = positions.unbind(-1)
    return torch.stack(direction(azimuth, elevation), dim=-1) / q[..., None] @ pose[:3, :3].mT + pose[:3, 3]


def coordinate_derivatives(
    pose: Float[Tensor, "4 4"], positions: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 3 3"]:
    """Derivatives of azimuth, elevation and inverse range (rows) by the point of the room (columns).

    Args:
        pose: from the panel frame to the room frame.
        positions: azimuth, elevation, inverse range in the panel frame.
    """
    azimuth, elevation, q = positions.unbind(-1)
    sin_az, cos_az, sin_el, cos_el = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
    zero, flat = torch.zeros_like(azimuth), cos_el.clamp_min(_LEAST)
    rows = torch.stack(
        (
            torch.stack((cos_az / flat, zero, -sin_az / flat), dim=-1) * q[..., None],
            torch.stack((-sin_az * sin_el, cos_el, -cos_az * sin_el), dim=-1) * q[..., None],
            torch.stack(direction(azimuth, elevation), dim=-1) * -q.square()[..., None],
        ),
        dim=-2,
    )
    return rows @ pose[:3, :3].mT
