r"""Panel pose: the transform from the panel frame to a room frame.

A pose is a homogeneous matrix :math:`T = \begin{pmatrix} R & t \\ 0 & 1 \end{pmatrix}`. The columns of the
rotation R [3, 3] are the panel's x, y and z (normal) axes in the room; t [3] is the panel's centre in the
room in metres.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.array import ArrayLike, to_tensor
from rismusic.errors import InputError

_TOLERANCE = 1e-6


def check_pose(pose: Tensor, *, field: str = "pose") -> None:
    """Check that a matrix is a rigid transform.

    Args:
        pose: [4, 4].
        field: name for error messages.

    Raises:
        InputError: another shape, values that are not finite, a last row other than 0 0 0 1, or a rotation
            block that is not orthonormal with determinant +1 (to 1e-6).
    """
    if tuple(pose.shape) != (4, 4):
        raise InputError(field, f"must be a homogeneous transform of shape [4, 4]; got {list(pose.shape)}")
    if not torch.isfinite(pose).all():
        raise InputError(field, "must be finite; got a NaN or an infinity")
    pose = pose.detach().to(torch.float64).cpu()
    last = pose.new_tensor([0, 0, 0, 1])
    if not torch.allclose(pose[3], last, rtol=0, atol=_TOLERANCE):
        hint = ""
        if torch.allclose(pose[:, 3], last, rtol=0, atol=_TOLERANCE):
            hint = ". The last column is 0 0 0 1: pass the transpose"
        row = " ".join(f"{value:g}" for value in pose[3].tolist())
        raise InputError(field, f"the last row must be 0 0 0 1; got {row}{hint}")
    R = pose[:3, :3]
    error = float((R.T @ R - torch.eye(3, dtype=R.dtype)).abs().max())
    if error > _TOLERANCE:
        raise InputError(
            field,
            f"the upper left 3 x 3 block must be a rotation (orthonormal columns); R^T R differs from the "
            f"identity by {error:.2g}",
        )
    if torch.linalg.det(R) < 0:
        raise InputError(
            field,
            "the upper left 3 x 3 block must be a rotation; its determinant is -1, a reflection. Is one axis "
            "flipped, or is the room frame left-handed?",
        )


def to_room_frame(
    pose: ArrayLike, position: Float[Tensor, "*batch 3"] | ArrayLike
) -> Float[Tensor, "*batch 3"]:
    r"""Positions in the room frame: :math:`x_{room} = R\,x_{panel} + t`.

    Args:
        pose: [4, 4] transform from the panel frame to the room frame.
        position: [..., 3] metres in the panel frame; NaN stays NaN.

    Returns:
        [..., 3] float64, metres in the room frame.

    Raises:
        InputError: the pose is not a rigid transform, or the positions have no last axis of 3.

    Example:
        >>> pose = torch.eye(4, dtype=torch.float64)
        >>> pose[:3, 3] = torch.tensor([0.0, 1.5, 0.0])
        >>> to_room_frame(pose, [[0.0, 0.0, 2.0]]).tolist()
        [[0.0, 1.5, 2.0]]
    """
    transform, points = to_tensor("pose", pose, "real"), to_tensor("position", position, "real")
    check_pose(transform)
    if not points.ndim or points.shape[-1] != 3:
        raise InputError("position", f"must have shape [..., 3] (x, y, z); got {list(points.shape)}")
    transform = transform.to(points.device)
    return points @ transform[:3, :3].mT + transform[:3, 3]
