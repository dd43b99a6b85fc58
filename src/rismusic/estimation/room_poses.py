r"""Errors of the poses of several panels, from the scenes that they share.

A pose that is a little wrong moves the positions of a scene, which give way, so that little of the error
shows in one scene. All scenes of a recording share the poses, and the evidence adds up over them.

Let :math:`\beta` be the displacements and rotations of all panels
(:func:`~rismusic.estimation.room_fit.pose_derivatives`) and :math:`\eta` the positions, powers and noise
variances of a scene. With the gradient g of the negative log-likelihood at the fit and the Fisher information
J, the efficient score of the scene and its information are

.. math:: u = -\left( g_\beta - J_{\beta\eta} J_{\eta\eta}^{-1} g_\eta \right), \qquad
    V = J_{\beta\beta} - J_{\beta\eta} J_{\eta\eta}^{-1} J_{\eta\beta}.

Summed over the scenes, u has the covariance V if the poses are right, and the Gauss-Newton step of the poses
is :math:`V^{-1} u`. A motion of all panels and sources together does not show: V has a null space of at least
six dimensions, in which nothing is tested, and only a prior holds the poses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.batch import Batch
from rismusic.crb import marginal_information
from rismusic.errors import InputError
from rismusic.spec import MAX_POSE_STD_DEG, MAX_POSE_STD_M

# An error is tested in directions in which the data would show one of this size (one standard deviation).
_VISIBLE_M, _VISIBLE_RAD = 0.3, math.radians(6.0)
# Share of the information with the positions known that the elimination of these leaves by rounding.
_ROUNDING = 1e-10
# Panels whose errors explain this share of what those of the best panel explain are as good.
_AS_GOOD = 0.99


@dataclass(frozen=True)
class PoseStd:
    """Standard deviations of the errors of recorded poses, the same for all panels.

    Args:
        metres: of the displacement, along each axis.
        radians: of the rotation, about each axis.
    """

    metres: float
    radians: float

    @classmethod
    def checked(cls, metres: float, degrees: float) -> PoseStd:
        """From the values of a user.

        Raises:
            InputError: a value is negative, too large, or no number.
        """
        given = (
            ("pose_std_m", metres, MAX_POSE_STD_M, "m"),
            ("pose_std_deg", degrees, MAX_POSE_STD_DEG, "deg"),
        )
        for name, value, most, unit in given:
            if not 0 <= value <= most:
                raise InputError(name, f"must be 0 to {most:g} {unit}; got {value:g}")
        return cls(float(metres), math.radians(degrees))

    def __bool__(self) -> bool:
        """Whether the poses may be wrong."""
        return self.metres > 0 or self.radians > 0

    def of_all(self, like: Float[Tensor, "U"]) -> Float[Tensor, "U"]:
        """One for each displacement and rotation."""
        return like.new_tensor([self.metres] * 3 + [self.radians] * 3).repeat(len(like) // 6)


@dataclass(frozen=True)
class PoseError:
    """Error of one panel's pose.

    Args:
        panel: its number.
        metres: size of the displacement, and its standard deviation.
        radians: size of the rotation, and its standard deviation.
        bars: root mean square of the errors that it causes in the positions, in their error bars.
    """

    panel: int
    metres: tuple[float, float]
    radians: tuple[float, float]
    bars: float


@dataclass(frozen=True, eq=False)
class PoseInformation:
    r"""What scenes tell of the errors of the poses of P panels, U = 6P.

    Args:
        score: u.
        information: V.
        pull: :math:`Q = \sum J_{\beta x} J_{xx}^{-1} J_{x\beta}`, with the powers eliminated. Errors
            :math:`\beta` move the positions x by :math:`\beta^T Q \beta` squared error bars in all.
        coordinates: number of coordinates of all positions.
        scenes: number of scenes.
    """

    score: Float[Tensor, "U"]
    information: Float[Tensor, "U U"]
    pull: Float[Tensor, "U U"]
    coordinates: int
    scenes: int

    def at_recorded(self, errors: Float[Tensor, "U"]) -> PoseInformation:
        """The same, to first order, at the recorded poses; the score is that at poses with these errors."""
        return replace(self, score=self.score + self.information @ errors)

    def fitted(self, std: PoseStd) -> tuple[Float[Tensor, "U"], Float[Tensor, "U U"]]:
        """Most probable errors for a Gaussian prior of mean 0, and their covariance."""
        D = std.of_all(self.score)
        # What the sources' own positions take of the information leaves rounding errors of either sign.
        values, vectors = torch.linalg.eigh(D[:, None] * self.information * D)
        half = D[:, None] * vectors * (1 + values.clamp_min(0)).rsqrt()
        covariance = half @ half.mT
        return covariance @ self.score, covariance

    def p_value(self, std: PoseStd) -> float:
        r"""Probability of a score as large as this one, if the errors have these standard deviations.

        In directions that the data determine, the score is compared with its covariance
        :math:`V + V \Sigma V`.
        """
        scale = PoseStd(_VISIBLE_M, _VISIBLE_RAD).of_all(self.score)
        values, vectors = torch.linalg.eigh(scale[:, None] * self.information * scale)
        known = ((self.information + self.pull).diagonal() * scale.square()).amax()
        visible = values > (_ROUNDING * known).clamp_min(1.0)
        if not visible.any():
            return 1.0
        root = values[visible].sqrt()
        vectors = vectors[:, visible]
        z = (vectors.mT @ (scale * self.score)) / root
        half = root[:, None] * vectors.mT * (std.of_all(self.score) / scale)
        covariance = half @ half.mT + torch.eye(len(z), dtype=z.dtype, device=z.device)
        statistic = z @ torch.linalg.solve(covariance, z)
        return float(torch.special.gammaincc(statistic.new_tensor(len(z) / 2), statistic / 2))

    def likeliest(self) -> PoseError:
        """The error of one panel's pose that explains the score best."""
        found = []
        for number in range(len(self.score) // 6):
            own = slice(6 * number, 6 * number + 6)
            alone = PoseInformation(
                self.score[own],
                self.information[own, own],
                self.pull[own, own],
                self.coordinates,
                self.scenes,
            )
            error, covariance = alone.fitted(PoseStd(_VISIBLE_M, _VISIBLE_RAD))
            moved = float(error @ alone.pull @ error) / max(self.coordinates, 1)
            metres, radians = (
                (float(error[part].norm()), float(covariance[part, part].trace().sqrt()))
                for part in (slice(3), slice(3, 6))
            )
            found.append((float(error @ alone.score), PoseError(number, metres, radians, math.sqrt(moved))))
        # Of two panels, neither explains it better than the other: the last is compared with the first.
        most = max(gain for gain, _ in found)
        return next(error for gain, error in reversed(found) if gain >= _AS_GOOD * most)


@dataclass(frozen=True, eq=False, repr=False)
class ScenePoses(Batch):
    """What each of S scenes tells of the errors of the poses; see :class:`PoseInformation`."""

    score: Float[Tensor, "S U"]
    information: Float[Tensor, "S U U"]
    pull: Float[Tensor, "S U U"]
    coordinates: Int64[Tensor, "S"]

    def total(self, used: Bool[Tensor, "S"]) -> PoseInformation:
        """What some of the scenes tell together."""
        some = self[used]
        return PoseInformation(
            some.score.sum(0),
            some.information.sum(0),
            some.pull.sum(0),
            int(some.coordinates.sum()),
            int((some.coordinates > 0).sum()),
        )


def pose_information(by_points: Float[Tensor, "S V V"], active: Bool[Tensor, "S K"]) -> ScenePoses:
    """Eliminate the positions from the information of each scene.

    A scene whose positions or powers are not determined tells nothing.

    Args:
        by_points: Fisher information on poses and points with the powers and noise variances eliminated,
            below one row and beside one column with the gradient of the negative log-likelihood.
        active: which entries hold a source.
    """
    ahead = by_points.shape[1] - 3 * active.shape[1]
    left = marginal_information(by_points, ahead, active.repeat_interleave(3, dim=1))
    determined = left.isfinite().all(-1).all(-1)
    left, before = (
        torch.where(determined[:, None, None], one, 0.0) for one in (left, by_points[:, :ahead, :ahead])
    )
    V = left[:, 1:, 1:]
    return ScenePoses(-left[:, 0, 1:], V, before[:, 1:, 1:] - V, 3 * active.sum(1) * determined)


def cross_matrix(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The matrix of the cross product with a vector from the left."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1).unflatten(-1, (3, 3))


def moved_pose(pose: Float[Tensor, "4 4"], error: Float[Tensor, "6"]) -> Float[Tensor, "4 4"]:
    """A pose displaced (m) and turned about the panel's centre (rad), along the axes of the room."""
    moved = pose.clone()
    moved[:3, :3] = cross_matrix(error[3:]).matrix_exp() @ pose[:3, :3]
    moved[:3, 3] += error[:3]
    return moved
