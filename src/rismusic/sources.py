r"""Positions, powers and symbols of sources, the checks of user-given values, and coordinates in a room.

A pose is the homogeneous transform :math:`T = \begin{pmatrix} R & t \\ 0 & 1 \end{pmatrix}` from the panel
frame to the room frame. A point x of the room has the panel coordinates :math:`R^T (x - t)`. With unit
vectors u, :math:`u_\varphi` and :math:`u_\theta` of increasing range, azimuth and elevation (in the panel
frame), the derivatives of azimuth, elevation and inverse range :math:`q = 1/r` by x are

.. math:: \nabla\varphi = \frac{R\, u_\varphi}{r \cos\theta}, \qquad \nabla\theta = \frac{R\, u_\theta}{r},
    \qquad \nabla q = -\frac{R\, u}{r^2}.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor

from rismusic.array import ArrayLike, Panel, check_tensors, direction, from_db, steering, to_tensor
from rismusic.batch import Batch
from rismusic.errors import InputError
from rismusic.spec import MAX_RANGE_M, MIN_RANGE_M
from rismusic.text import counted

_ALL_ROUND = math.pi + 1e-6  # largest azimuth, pi up to the rounding of single precision


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Sources(Batch):
    r"""Up to K_max sources per scene, in the panel frame; unused slots hold NaN in every field.

    Args:
        azimuth: :math:`\phi`, [..., K_max] radians.
        elevation: :math:`\theta`, [..., K_max] radians.
        range: r, [..., K_max] metres.
        power: mean power p of the symbols, [..., K_max], linear; optional.
        symbols: realised symbols s, [..., K_max, L] complex; optional.

    Raises:
        InputError: numbers, lists or arrays, which :meth:`from_degrees` takes.

    Example:
        >>> Sources.from_degrees([-20, 35], [0, 10], [2.0, 4.5])
        Sources(2 sources at azimuth [-20, 35] deg, elevation [0, 10] deg, range [2, 4.5] m)
    """

    azimuth: Float[Tensor, "*batch K"]
    elevation: Float[Tensor, "*batch K"]
    range: Float[Tensor, "*batch K"]
    power: Float[Tensor, "*batch K"] | None = None
    symbols: Complex[Tensor, "*batch K L"] | None = None

    def __post_init__(self) -> None:
        check_tensors(azimuth=self.azimuth, elevation=self.elevation, range=self.range)

    @classmethod
    def from_degrees(
        cls,
        azimuth_deg: ArrayLike,
        elevation_deg: ArrayLike,
        range_m: ArrayLike,
        power_db: ArrayLike | None = None,
        symbols: ArrayLike | None = None,
        *,
        behind: bool = False,
    ) -> Sources:
        """Sources at positions in degrees and metres.

        The first three arguments are scalars, lists, arrays or tensors of shape [K], or [S, K] with one row
        per scene (NaN where a scene has fewer sources). They broadcast against each other.

        Args:
            azimuth_deg: azimuths in degrees, within -90 .. 90, or -180 .. 180 with ``behind``.
            elevation_deg: elevations in degrees, within -90 .. 90.
            range_m: distances from the panel's centre in metres.
            power_db: mean powers in dB, relative to any common reference; optional.
            symbols: complex symbols [K, L] or [S, K, L]; optional.
            behind: allow azimuths beyond 90 degrees, for arrays that are not planar.

        Returns:
            Sources [K] or [S, K] in float64.

        Raises:
            InputError: shapes that do not broadcast, angles outside -90 .. 90 deg, ranges that are not
                positive, or values that are not finite.

        Example:
            >>> Sources.from_degrees([-20, 35], 0, [2.0, 4.5], power_db=[0, -6]).position.shape
            torch.Size([2, 3])
        """
        given = {"azimuth_deg": azimuth_deg, "elevation_deg": elevation_deg, "range_m": range_m}
        if power_db is not None:
            given["power_db"] = power_db
        values = {name: torch.atleast_1d(to_tensor(name, value, "real")) for name, value in given.items()}
        try:
            shape = torch.broadcast_shapes(*(value.shape for value in values.values()))
        except RuntimeError:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in values.items())
            raise InputError("sources", f"shapes must be [K] or [S, K] and broadcast; got {shapes}") from None
        azimuth, elevation, distance, *level = (value.expand(shape) for value in values.values())
        empty = azimuth.isnan() | elevation.isnan() | distance.isnan()
        for name, value in (("azimuth_deg", azimuth), ("elevation_deg", elevation), ("range_m", distance)):
            if (value.isnan() != empty).any() and value.shape == to_tensor(name, given[name], "real").shape:
                raise InputError(
                    name, "NaN marks an unused slot and must be in the same places in all fields"
                )
        for name, value in (("azimuth_deg", azimuth), ("elevation_deg", elevation)):
            all_round = behind and name == "azimuth_deg"
            wrong = value[value.abs() > 180 if all_round else value.abs() >= 90]
            if len(wrong):
                limits = "-180 .. 180 deg" if all_round else "-90 .. 90 deg (in front of the panel)"
                raise InputError(name, f"must be within {limits}; got {float(wrong[0]):g}")
        wrong = distance[(distance <= 0) | distance.isinf()]
        if len(wrong):
            raise InputError("range_m", f"must be positive and finite, in metres; got {float(wrong[0]):g}")
        sources = cls(
            azimuth=azimuth.deg2rad(),
            elevation=elevation.deg2rad(),
            range=distance.clone(),
            power=from_db(level[0]) if level else None,
            symbols=None if symbols is None else to_tensor("symbols", symbols, "complex"),
        )
        sources = replace(replace(sources, symbols=None).blank(empty), symbols=sources.symbols)
        check_sources(sources, field="sources", behind=behind)
        return sources

    @classmethod
    def from_room(
        cls, pose: ArrayLike, position: ArrayLike, power_db: ArrayLike | None = None, *, behind: bool = False
    ) -> Sources:
        """Sources at positions in a room, in the frame of a panel with this pose.

        Args:
            pose: [4, 4] transform from the panel frame to the room frame.
            position: metres in the room frame, [K, 3], or [S, K, 3] with one row per scene.
            power_db: mean powers in dB, [K] or [S, K]; optional.
            behind: keep sources behind the panel, whose azimuth is beyond 90 degrees. Otherwise their slots
                hold NaN.

        Raises:
            InputError: positions that have another shape or are not finite.

        Example:
            >>> Sources.from_room(torch.eye(4), [[0.0, 0.0, 2.0]])
            Sources(1 source at azimuth [0] deg, elevation [0] deg, range [2] m)
        """
        points = to_tensor("position", position, "real")
        if points.ndim < 2 or points.shape[-1] != 3:
            raise InputError(
                "position", f"must have shape [K, 3] or [S, K, 3] (x, y, z); got {list(points.shape)}"
            )
        if not points.isfinite().all():
            raise InputError("position", "must be finite; got a NaN or an infinity")
        azimuth, elevation, q = to_panel_coordinates(to_tensor("pose", pose, "real"), points).unbind(-1)
        power = None
        if power_db is not None:
            power = from_db(to_tensor("power_db", power_db, "real")).expand(azimuth.shape)
        sources = cls(azimuth=azimuth, elevation=elevation, range=1 / q, power=power)
        return sources if behind else sources.blank(azimuth.abs() >= math.pi / 2)

    @property
    def azimuth_deg(self) -> Float[Tensor, "*batch K"]:
        """Azimuth in degrees, [..., K_max]."""
        return self.azimuth.rad2deg()

    @property
    def elevation_deg(self) -> Float[Tensor, "*batch K"]:
        """Elevation in degrees, [..., K_max]."""
        return self.elevation.rad2deg()

    @property
    def range_m(self) -> Float[Tensor, "*batch K"]:
        """Range in metres, [..., K_max]; the same as ``range``."""
        return self.range

    @property
    def position(self) -> Float[Tensor, "*batch K 3"]:
        r"""Cartesian positions in the panel frame, [..., K_max, 3] metres.

        :math:`r\,(\sin\phi\cos\theta,\ \sin\theta,\ \cos\phi\cos\theta)`; NaN in unused slots.
        """
        return self.range[..., None] * torch.stack(direction(self.azimuth, self.elevation), dim=-1)

    def __repr__(self) -> str:
        optional = [name for name in ("power", "symbols") if getattr(self, name) is not None]
        extra = f"; with {' and '.join(optional)}" if optional else ""
        active = self.active
        if self.azimuth.ndim > 1:
            scenes, count = math.prod(active.shape[:-1]), active.sum(-1)
            low, high = (int(count.min()), int(count.max())) if count.numel() else (0, 0)
            between = counted(low, "source") if low == high else f"{low} to {high} sources"
            return f"Sources({counted(scenes, 'scene')}, {between} each{extra})"
        azimuth, elevation, distance = (
            "[" + ", ".join(f"{x:.4g}" for x in value[active].tolist()) + "]"
            for value in (self.azimuth_deg, self.elevation_deg, self.range)
        )
        number = int(active.sum())
        return (
            f"Sources({counted(number, 'source')} at azimuth {azimuth} deg, "
            f"elevation {elevation} deg, range {distance} m{extra})"
        )

    @property
    def active(self) -> Bool[Tensor, "*batch K"]:
        """Mask of the slots that hold a source."""
        return ~self.azimuth.isnan()

    def filled(self) -> tuple[Tensor, Tensor, Tensor]:
        """Azimuth, elevation and range, with (0, 0, 1 m) in unused slots, for batched formulas."""
        active = self.active
        return (
            torch.where(active, self.azimuth, 0),
            torch.where(active, self.elevation, 0),
            torch.where(active, self.range, 1),
        )

    def steering(self, panel: Panel) -> Complex[Tensor, "*batch N K"]:
        """Steering matrix A [..., N, K_max]; columns of unused slots are zero."""
        return steering(panel, *self.filled()) * self.active.unsqueeze(-2)

    def reordered(self, order: Int64[Tensor, "*batch K"]) -> Sources:
        """The sources with their slots in another order, such as that of :attr:`active_first`."""
        return self.each(
            lambda value: value.take_along_dim(
                order.reshape(order.shape + (1,) * (value.ndim - order.ndim)), dim=order.ndim - 1
            )
        )

    @property
    def active_first(self) -> Int64[Tensor, "*batch K"]:
        """The order of slots in which those without a source come last, as the bounds require."""
        return (~self.active).to(torch.int8).argsort(dim=-1, stable=True)

    def blank(self, slots: Bool[Tensor, "*batch K"]) -> Sources:
        """Copy of the sources with NaN in the marked slots of every field."""
        return self.each(
            lambda value: value.masked_fill(
                slots.reshape(slots.shape + (1,) * (value.ndim - slots.ndim)), math.nan
            )
        )


def check_sources(sources: Sources, *, field: str = "truth", behind: bool = False) -> None:
    """Check positions and powers of sources.

    Args:
        sources: of any array.
        field: name for error messages.
        behind: allow azimuths beyond pi/2, for arrays that are not planar.

    Raises:
        InputError: shapes that differ, angles outside -pi/2 .. pi/2 radians, a range or power that is not
            positive and finite, or NaN (no source) in different places.
    """
    shape = sources.azimuth.shape
    for name in ("azimuth", "elevation", "range", "power"):
        value = getattr(sources, name)
        if value is None:
            continue
        if value.shape != shape:
            raise InputError(
                f"{field}/{name}", f"must have the shape of azimuth, {list(shape)}; got {list(value.shape)}"
            )
        if not torch.equal(value.isnan(), sources.azimuth.isnan()):
            raise InputError(
                f"{field}/{name}", "NaN marks an unused slot and must be in the same places as in azimuth"
            )
        present = value[sources.active]
        if present.isinf().any():
            raise InputError(f"{field}/{name}", "must be finite, or NaN in unused slots; got an infinity")
        if name in ("range", "power") and (present <= 0).any():
            noun = "ranges must be positive, in metres" if name == "range" else "powers must be positive"
            raise InputError(f"{field}/{name}", f"{noun}; got {float(present.min()):g}")
        if name == "range" and ((present < MIN_RANGE_M) | (present > MAX_RANGE_M)).any():
            raise InputError(
                f"{field}/{name}",
                f"ranges must be {MIN_RANGE_M:g} to {MAX_RANGE_M:g} m; got {float(present.min()):g} to "
                f"{float(present.max()):g}",
            )
        all_round = behind and name == "azimuth"
        wrong = present.abs() > _ALL_ROUND if all_round else present.abs() >= math.pi / 2
        if name in ("azimuth", "elevation") and wrong.any():
            worst = float(present[present.abs().argmax()])
            limits = "-pi .. pi radians" if all_round else "-pi/2 .. pi/2 radians (in front of the panel)"
            hint = ". Is it in degrees?" if abs(worst) > math.pi else ""
            raise InputError(f"{field}/{name}", f"must be within {limits}; got {worst:g}{hint}")


_LEAST = 1e-9  # least cosine of an elevation and least range (m), so that derivatives are finite


def to_panel_coordinates(
    pose: Float[Tensor, "4 4"], points: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 3"]:
    """Azimuth, elevation (rad) and inverse range (1/m) of points of the room.

    The azimuth of a point behind the panel is beyond 90 degrees.
    """
    x, y, z = ((points - pose[:3, 3]) @ pose[:3, :3]).unbind(-1)
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
    """Derivatives of azimuth, elevation and inverse range (rows) by the point of the room (columns)."""
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
    """C = J Sigma J^T, square metres."""
    J = jacobian(positions)
    return J @ covariance.double() @ J.mT
