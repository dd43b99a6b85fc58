r"""Cramer-Rao bounds of the positions of K sources, jointly and for any link.

The bound is the least covariance of an unbiased estimate when the nuisance parameters are estimated too. Two
bounds differ in the nuisance parameters (Stoica and Nehorai, "Performance study of conditional and
unconditional direction-of-arrival estimation", IEEE Trans. ASSP 38 (1990)):

* *conditional* (deterministic symbols): every symbol :math:`s_{kl}`;
* *unconditional* (Gaussian symbols): the power of each source, or the whole covariance of correlated sources,
  and the noise variance.

All computations are in float64. No N x N or M x M matrix is formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from rismusic.array import Panel, steering_with_log_derivatives
from rismusic.batch import Batch
from rismusic.devices import blocks
from rismusic.errors import InputError, check_choice
from rismusic.estimation.likelihood import fisher_information
from rismusic.estimation.source_covariance import correlated_information, pair_active
from rismusic.io import Recording, check_pose
from rismusic.operator import Link
from rismusic.sources import Sources, coordinate_derivatives, from_panel_coordinates
from rismusic.text import short_repr

Unknown = Literal["azimuth", "elevation", "range"]
POSITION: tuple[Unknown, ...] = get_args(Unknown)
BoundKind = Literal["conditional", "unconditional"]

# Fisher information of the positions from a block of scenes, G_l A with its derivatives [S, L, M, 4K], and
# the mask of the active sources.
_Information = Callable[[slice, Tensor, Tensor], Tensor]

# Positions of one source in two recordings agree to this, in metres and relative to its range.
_SAME_POSITION = 1e-3

_SINGULAR_PIVOT = 1e-7  # a matrix of unit diagonal with a smaller Cholesky pivot is singular

_ROUNDING = 1e-11  # components below this share of a column's norm are rounding errors


@dataclass(frozen=True, eq=False, repr=False)
class Bound(Batch):
    """Cramer-Rao bound of K sources.

    Args:
        covariance: joint bound of azimuth (rad), elevation (rad) and range (m), [..., K, 3, K, 3]. NaN in
            unused slots and for known coordinates. The variance of a coordinate that the data do not
            determine is infinite, and the others are the bound with this coordinate known. All are infinite
            if sources cannot be told apart.
        range: true ranges in metres, [..., K].
        inverse_range_std: bound on the standard deviation of 1 / range in 1/m, [..., K], for sources of
            poorly determined range. It is finite for a source at infinity.
    """

    covariance: Float[Tensor, "*batch K 3 K 3"]
    range: Float[Tensor, "*batch K"]
    inverse_range_std: Float[Tensor, "*batch K"]

    def __repr__(self) -> str:
        shape = f"{list(self.range.shape)}"
        if not self.range.numel():
            return f"Bound({shape})"
        azimuth, elevation, range = self.std.flatten(0, -2).nanmedian(dim=0).values.tolist()
        return (
            f"Bound({shape}, medians: azimuth {math.degrees(azimuth):.3g} deg, elevation "
            f"{math.degrees(elevation):.3g} deg, range {range:.3g} m)"
        )

    @classmethod
    def from_covariance(
        cls, covariance: Float[Tensor, "*batch K 3 K 3"], range: Float[Tensor, "*batch K"]
    ) -> Bound:
        """A bound from the covariance of sources at finite ranges."""
        variance = covariance.diagonal(dim1=-4, dim2=-2)[..., 2, 2, :]
        return cls(covariance, range, variance.sqrt() / range.square())

    @property
    def std(self) -> Float[Tensor, "*batch K 3"]:
        """Bounds on the standard deviations of azimuth (rad), elevation (rad) and range (m)."""
        K = self.range.shape[-1]
        square = self.covariance.reshape(*self.range.shape[:-1], 3 * K, 3 * K)
        return square.diagonal(dim1=-2, dim2=-1).sqrt().unflatten(-1, (K, 3))

    @property
    def per_source(self) -> Float[Tensor, "*batch K 3 3"]:
        """Joint bound of the three coordinates of each source; the other sources are unknown too."""
        return self.covariance.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)

    def position_error(self, elevation: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch K"]:
        r"""Position error bound in metres: the square root of the trace of the Cartesian covariance.

        The derivatives of a position by azimuth, elevation and range are orthogonal, so that

        .. math:: \mathrm{PEB}^2 = r^2 \cos^2\theta\, \sigma_\varphi^2 + r^2 \sigma_\theta^2 + \sigma_r^2.

        A known coordinate contributes nothing; one that the data do not determine makes it infinite.
        """
        scale = torch.stack((self.range * elevation.cos(), self.range, torch.ones_like(self.range)), dim=-1)
        error = self.std * scale
        known = error.isnan() & ~self.range.isnan()[..., None]
        return error.masked_fill(known, 0).norm(dim=-1)


def conditional_crb(
    panel: Panel,
    link: Link,
    sources: Sources,
    noise_variance: Float[Tensor, "*batch"],
    *,
    unknowns: Sequence[Unknown] = POSITION,
) -> Bound:
    r"""Conditional Cramer-Rao bound, for deterministic unknown symbols.

    Unknown are the coordinates ``unknowns`` of all K sources and every symbol :math:`s_{kl}`. The noise
    variance decouples from them, so that the bound is the same whether it is known or not.

    .. math:: J = \frac{2}{\sigma^2} \sum_l \mathrm{Re}\left[ B_l^H P^\perp_{G_l A} B_l \right],
        \qquad B_l = \left[ G_l \frac{\partial a_k}{\partial p}\, s_{kl} \right]_{k,p}

    This is the bound of Stoica and Nehorai, "MUSIC, maximum likelihood, and Cramer-Rao bound", IEEE Trans.
    ASSP 37 (1989), for the operators G_l.

    Args:
        panel: N elements.
        link: G_l; its scene axis, if any, is that of the sources.
        sources: positions [..., K] and realised symbols [..., K, L]; unused slots (NaN) come last.
        noise_variance: sigma^2, [...].
        unknowns: coordinates that are estimated; the others are known.

    Raises:
        InputError: the symbols are missing, the noise variance is not positive, a coordinate has another
            name, or an unused slot precedes a source.
    """
    which = _coordinates(unknowns)
    problem = _Problem(panel, link, sources, noise_variance)
    return problem.bound(_conditional_information(problem, sources, which), which)


def _conditional_information(problem: _Problem, sources: Sources, which: list[int]) -> _Information:
    """Information on some coordinates, with the symbols as nuisance parameters."""
    if sources.symbols is None:
        raise InputError(
            "symbols",
            "missing: the conditional bound needs the realised symbols of the sources; the unconditional one "
            "needs their powers only",
        )
    symbols = torch.where(sources.active[..., None], sources.symbols, 0).to(torch.complex128)
    symbols = problem.flat(symbols, 2)

    def information(block: slice, columns: Tensor, active: Tensor) -> Tensor:
        K = active.shape[-1]
        C, B = columns[..., :K], columns[..., K:].unflatten(-1, (K, 3))
        B = (B[..., which] * symbols[block].mT[..., None, :, None]).flatten(-2)
        # Orthonormal basis of G_l A; unused slots (last) and dependent columns contribute no dimension.
        Q, R = torch.linalg.qr(C)
        depth = R.diagonal(dim1=-2, dim2=-1).abs()
        Q = Q * (depth > _ROUNDING * C.norm(dim=-2)[..., : depth.shape[-1]])[..., None, :]
        rest = B - Q @ (Q.mH @ B)
        # Residuals of columns within the span are rounding errors.
        rest = rest * (rest.norm(dim=-2) > _ROUNDING * B.norm(dim=-2))[..., None, :]
        if rest.shape[1] == 1:  # the same G in every snapshot; the symbols differ
            rest = rest.expand(-1, symbols.shape[-1], -1, -1)
        flat = rest.flatten(1, 2)
        return 2 * (flat.mH @ flat).real / problem.noise_variance[block, None, None]

    return information


def unconditional_crb(
    panel: Panel,
    link: Link,
    sources: Sources,
    noise_variance: Float[Tensor, "*batch"],
    *,
    snapshots: int | None = None,
    unknowns: Sequence[Unknown] = POSITION,
    source_covariance: Complex[Tensor, "*batch K K"] | None = None,
) -> Bound:
    r"""Unconditional Cramer-Rao bound, for Gaussian symbols of unknown power.

    Unknown are the coordinates ``unknowns`` and the power of every source, and the noise variance.

    .. math:: J_{ij} = \sum_l \mathrm{tr}\left( R_l^{-1} \frac{\partial R_l}{\partial i}
        R_l^{-1} \frac{\partial R_l}{\partial j} \right), \qquad R_l = G_l A P A^H G_l^H + \sigma^2 I

    J is :func:`~rismusic.estimation.likelihood.fisher_information`, which maximum likelihood uses too. With
    ``source_covariance`` the sources are correlated, and all entries of P are unknown
    (:func:`~rismusic.estimation.source_covariance.correlated_information`).

    Args:
        panel: N elements.
        link: G_l; its scene axis, if any, is that of the sources.
        sources: positions and powers [..., K]; unused slots (NaN) come last.
        noise_variance: sigma^2, [...].
        snapshots: L; needed only if the link has no codes and the sources have no symbols.
        unknowns: coordinates that are estimated; the others are known.
        source_covariance: P, Hermitian and positive semidefinite, [..., K, K]; diag(p) with unknown p if
            none. Rows and columns of unused slots do not count.

    Raises:
        InputError: the powers are missing or L is unknown; otherwise as :func:`conditional_crb`.
    """
    which = _coordinates(unknowns)
    problem = _Problem(panel, link, sources, noise_variance)
    information = _unconditional_information(problem, link, sources, which, snapshots, source_covariance)
    return problem.bound(information, which)


def _unconditional_information(
    problem: _Problem,
    link: Link,
    sources: Sources,
    which: list[int],
    snapshots: int | None,
    source_covariance: Tensor | None = None,
) -> _Information:
    """Information on some coordinates, with powers and noise variance as nuisance parameters."""
    if sources.power is None and source_covariance is None:
        raise InputError("power", "missing: the unconditional bound needs the powers of the sources")
    if link.codes is not None and link.codes.shape[-2] > 1:
        repeats = 1
    elif snapshots is not None:
        repeats = snapshots
    elif sources.symbols is not None:
        repeats = sources.symbols.shape[-1]
    else:
        raise InputError("snapshots", "pass the number of snapshots L; link and sources do not contain it")
    if source_covariance is None:
        assert sources.power is not None
        P = problem.flat(torch.where(sources.active, sources.power, 0).double(), 1)
    else:
        P = problem.flat(_checked_covariance(source_covariance, sources.active), 2)
    compute = fisher_information if source_covariance is None else correlated_information

    def information(block: slice, fields: Tensor, active: Tensor) -> Tensor:
        J = compute(
            fields.mH @ fields,
            P[block],
            problem.noise_variance[block],
            antennas=fields.shape[-2],
            repeats=repeats if fields.shape[1] == 1 else 1,
        )
        return _marginal(J, active, which, None if source_covariance is None else pair_active(active))

    return information


def recording_crb(recording: Recording, kind: BoundKind = "conditional") -> Bound:
    """Bound of every scene of a recording with truth and noise variance.

    Args:
        recording: its truth must contain the symbols (conditional) or the powers (unconditional). The source
            covariance of correlated symbols is that of the symbols in the truth.
        kind: which bound.

    Raises:
        InputError: the truth or the noise variance is missing, or there is no bound of this kind.

    Example:
        >>> truth = Sources.from_degrees([-20, 35], [0, 10], [2.0, 4.5], power_db=[0, 0])
        >>> mine = Recording.from_arrays(Y, P, 0.3, H, C, truth=truth, noise_variance=0.1)
        >>> recording_crb(mine, "unconditional").std
    """
    check_choice("kind", kind, get_args(BoundKind))
    recording, truth, noise = _with_truth(recording)
    if kind == "conditional":
        return conditional_crb(recording.panel, recording.link, truth, noise)
    P = None
    if recording.symbols == "correlated":
        if truth.symbols is None:
            raise InputError(
                "symbols", "missing: the covariance of correlated sources is that of their symbols"
            )
        s = truth.symbols.to(torch.complex128)
        P = s @ s.mH / s.shape[-1]
    L = recording.snapshots.shape[-2]
    return unconditional_crb(recording.panel, recording.link, truth, noise, snapshots=L, source_covariance=P)


def _with_truth(recording: Recording, field: str = "") -> tuple[Recording, Sources, Float[Tensor, "S"]]:
    """A stacked recording, its truth and its noise variance."""
    if recording.truth is None or recording.noise_variance is None:
        missing = "truth" if recording.truth is None else "noise_variance"
        raise InputError(
            f"{field}{missing}",
            "missing: the bound needs the true sources, with symbols or powers, and the noise variance; "
            "Recording.from_arrays takes both (truth, noise_variance)",
        )
    made = recording.stacked()
    assert made.truth is not None
    assert made.noise_variance is not None
    return made, made.truth, made.noise_variance


@dataclass(frozen=True, eq=False)
class RoomBound:
    """Cramer-Rao bound of K sources that several panels of one room receive.

    Args:
        covariance: joint bound of x, y and z in the room frame (m^2), [S, K, 3, K, 3]. NaN in unused slots,
            infinite for a source that the panels together do not determine.
        position: true positions in the room, metres.
    """

    covariance: Float[Tensor, "S K 3 K 3"]
    position: Float[Tensor, "S K 3"]

    __repr__ = short_repr

    @property
    def per_source(self) -> Float[Tensor, "S K 3 3"]:
        """Joint bound of the three coordinates of each source; the other sources are unknown too."""
        return self.covariance.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)

    @property
    def std(self) -> Float[Tensor, "S K 3"]:
        """Bounds on the standard deviations of x, y and z in metres."""
        return self.per_source.diagonal(dim1=-2, dim2=-1).sqrt()

    @property
    def position_error(self) -> Float[Tensor, "S K"]:
        """Position error bound in metres: the square root of the trace of the covariance."""
        return self.std.norm(dim=-1)


def room_crb(recordings: Sequence[Recording], kind: BoundKind = "conditional") -> RoomBound:
    r"""Bound of the positions of sources that several panels of one room receive.

    Symbols, powers and noise of one panel say nothing about those of another, so that the equivalent Fisher
    informations on the positions add up:

    .. math:: J = \sum_p T_p^T J_p T_p,

    with :math:`J_p` the information of panel p on azimuth, elevation and inverse range and :math:`T_p` their
    derivatives by the position in the room.

    Args:
        recordings: of P panels, of the same S scenes; each with pose, noise variance and truth (with symbols
            for the conditional bound, with powers for the unconditional one). The truth has the same slots in
            all of them; where a panel does not see a source, its slot is NaN.
        kind: which bound.

    Raises:
        InputError: a pose, truth or noise variance is missing, or the recordings are of different sources.
    """
    check_choice("kind", kind, get_args(BoundKind))
    check_same_room(recordings)
    total, position = None, None
    for number, recording in enumerate(recordings):
        field = f"recordings[{number}]"
        made, truth, noise = _with_truth(recording, f"{field}.")
        assert made.pose is not None
        pose = made.pose.to(truth.azimuth.device, torch.float64)
        order = truth.active_first
        back, first = order.argsort(dim=-1), truth.reordered(order)
        problem = _Problem(made.panel, made.link, first, noise)
        L = made.snapshots.shape[-2]
        information = (
            _conditional_information(problem, first, [0, 1, 2])
            if kind == "conditional"
            else _unconditional_information(problem, made.link, first, [0, 1, 2], L)
        )
        J = torch.cat([J for _, _, J, _ in problem.in_blocks(information)])
        columns = (3 * back[..., None] + torch.arange(3, device=back.device)).flatten(1)
        J = J.take_along_dim(columns[:, :, None], dim=1).take_along_dim(columns[:, None], dim=2)
        there, K = truth.active, truth.azimuth.shape[1]
        coordinates = torch.stack([value.double() for value in truth.filled()], dim=-1)
        coordinates[..., 2] = 1 / coordinates[..., 2]
        point = from_panel_coordinates(pose, coordinates).masked_fill(~there[..., None], torch.nan)
        jacobian = block_diagonal(coordinate_derivatives(pose, coordinates))
        there = there.repeat_interleave(3, dim=1)
        J = torch.where(there[:, :, None] & there[:, None], jacobian.mT @ J @ jacobian, 0)
        if total is None or position is None:
            total, position = J, point
            continue
        if J.shape != total.shape:
            raise InputError(
                f"{field}.truth", f"must have {total.shape[1] // 3} slots as in recordings[0]; got {K}"
            )
        distance = (point - position).norm(dim=-1)
        apart = distance > _SAME_POSITION * (1 + 1 / coordinates[..., 2])
        if apart.any():
            scene, source = apart.nonzero()[0].tolist()
            raise InputError(
                f"{field}.truth",
                f"source {source} of scene {scene} is {float(distance[scene, source]):.3g} m "
                "from its position in the recordings before; all need the same sources in the same order, "
                "and the right pose",
            )
        total, position = total + J, torch.where(position.isnan(), point, position)
    assert total is not None
    assert position is not None
    active = ~position[..., 0].isnan()
    return RoomBound(room_covariance(total, active), position)


def check_same_room(recordings: Sequence[Recording]) -> None:
    """Check that recordings have poses and the same number of scenes."""
    if not recordings:
        raise InputError("recordings", "needs at least one recording")
    for number, recording in enumerate(recordings):
        field = f"recordings[{number}]"
        if recording.pose is None:
            raise InputError(
                f"{field}.pose", "missing: give the transform [4, 4] from the panel frame to the room frame"
            )
        check_pose(recording.pose, field=f"{field}.pose")
        if len(recording) != len(recordings[0]):
            raise InputError(
                f"{field}.snapshots",
                f"must have {len(recordings[0])} scenes as recordings[0]; got {len(recording)}. Scene i of "
                "all recordings is of the same sources",
            )


def room_covariance(J: Float[Tensor, "S U U"], active: Bool[Tensor, "S K"]) -> Float[Tensor, "S K 3 K 3"]:
    """Inverse of the information on x, y, z of K positions in the room, U = 3K.

    A source without information in some direction has an infinite covariance; those of the others are the
    bound with its position known.
    """
    K = active.shape[1]
    each = torch.arange(K, device=J.device)
    own = J.unflatten(2, (K, 3)).unflatten(1, (K, 3))[:, each, :, each].transpose(0, 1)
    lost = ~identifiable(own).all(-1) & active
    held = lost.repeat_interleave(3, dim=1)
    covariance = _inverse(J, active.repeat_interleave(3, dim=1), held)
    covariance = covariance.unflatten(2, (K, 3)).unflatten(1, (K, 3)).contiguous()
    for k in range(K):
        covariance[:, k, :, k] = torch.where(lost[:, k, None, None], torch.inf, covariance[:, k, :, k])
    return covariance


def block_diagonal(blocks: Float[Tensor, "S K 3 3"]) -> Float[Tensor, "S U U"]:
    """K blocks of each scene as one matrix, U = 3K."""
    S, K = blocks.shape[:2]
    whole = blocks.new_zeros(S, K, 3, K, 3)
    each = torch.arange(K, device=blocks.device)
    whole[:, each, :, each, :] = blocks.transpose(0, 1)
    return whole.flatten(3, 4).flatten(1, 2)


def _checked_covariance(P: Tensor, active: Tensor) -> Tensor:
    """A source covariance with zeros for unused slots, in double precision."""
    K = active.shape[-1]
    if P.shape != (*active.shape, K):
        raise InputError("source_covariance", f"must have shape {[*active.shape, K]}; got {list(P.shape)}")
    P = P.to(torch.complex128)
    P = torch.where(active[..., :, None] & active[..., None, :], P, 0)
    scale = P.abs().amax((-2, -1), keepdim=True)
    lowest = torch.linalg.eigvalsh(P).amin(-1) if P.isfinite().all() else torch.tensor(-torch.inf)
    if not ((P - P.mH).abs() <= 1e-6 * scale).all() or not (lowest >= -1e-6 * scale[..., 0, 0]).all():
        raise InputError("source_covariance", "must be Hermitian and positive semidefinite")
    return P


class _Problem:
    """Sources and link in float64, with the scene axes flattened into one, processed in blocks."""

    def __init__(self, panel: Panel, link: Link, sources: Sources, noise_variance: Tensor) -> None:
        if not (noise_variance > 0).all():
            raise InputError("noise_variance", f"must be positive; got {float(noise_variance.min()):g}")
        if (sources.active.int().diff(dim=-1) > 0).any():
            raise InputError(
                "sources", "unused slots (NaN) must come last; got a source after an unused slot"
            )
        self.batch = sources.azimuth.shape[:-1]
        self.panel = panel
        self.link = link.to(torch.complex128)
        if self.link.per_scene and len(self.batch) != 1:
            raise InputError(
                "sources",
                f"must have shape [S, K], as the link has one scene axis; got {list(sources.azimuth.shape)}",
            )
        self.active = self.flat(sources.active, 1)
        self.range = sources.range.double()
        self.positions = [self.flat(value.double(), 1) for value in sources.filled()]
        self.noise_variance = self.flat(noise_variance.double().expand(self.batch), 0)

    def flat(self, value: Tensor, keep: int) -> Tensor:
        """Scene axes flattened, the last ``keep`` axes kept."""
        return value.reshape(-1, *value.shape[value.ndim - keep :])

    def bound(self, information: _Information, which: list[int]) -> Bound:
        """Bound from the inverse Fisher information of each block of scenes."""
        parts = [(J, alone) for _, _, J, alone in self.in_blocks(information)]
        J, alone = (torch.cat(part) for part in zip(*parts, strict=True))
        return _bound(J, alone, self.active, self.range, which)

    def in_blocks(self, information: _Information) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Blocks of scenes with their active sources, information, and information on each source alone."""
        scenes, K = self.active.shape
        codes = self.link.codes
        L = 1 if codes is None else codes.shape[-2]
        each = 16 * self.panel.size * L * 4 * K
        for block in blocks(scenes, each, self.active.device):
            azimuth, elevation, distance = (value[block] for value in self.positions)
            A, log_derivatives = steering_with_log_derivatives(self.panel, azimuth, elevation, distance)
            D = log_derivatives * A[..., None]
            active = self.active[block]
            A, D = A * active[:, None], D * active[:, None, :, None]
            columns = self.link[block].matmul(torch.cat((A, D.flatten(-2)), dim=-1))
            yield block, active, information(block, columns, active), information_alone(columns)


def _bound(J: Tensor, alone: Tensor, active: Tensor, range: Tensor, which: list[int]) -> Bound:
    """Bound from the information on the coordinates ``which``, and that on each source alone, of S scenes."""
    (scenes, K), width = active.shape, len(which)
    full = torch.full((scenes, K, 3, K, 3), torch.nan, dtype=torch.float64, device=active.device)
    kept = torch.tensor(which, device=full.device)
    held = (active[..., None] & ~identifiable(alone[..., kept[:, None], kept])).flatten(1)
    covariance = _inverse(J, active.repeat_interleave(width, dim=1), held)
    covariance = covariance.reshape(-1, K, width, K, width)
    full[:, :, kept[:, None], :, kept[None, :]] = covariance.permute(2, 4, 0, 1, 3)
    # The information is that on 1 / r, which stays finite for a source at infinity.
    inverse_range_std = full[:, :, 2, :, 2].diagonal(dim1=-2, dim2=-1).sqrt().reshape(range.shape)
    jacobian = torch.ones(scenes, K, 3, dtype=torch.float64, device=full.device)
    jacobian[..., 2] = -torch.where(active, range.reshape(scenes, K), 1).square()
    jacobian = jacobian.flatten(1)
    product = full.view(scenes, 3 * K, 3 * K) * jacobian[:, :, None] * jacobian[:, None, :]
    # At infinity nothing is known of the range, which does not vary with the other coordinates.
    far = jacobian.isinf()
    product = torch.where(far[:, :, None] | far[:, None, :], 0, product)
    product = product + torch.diag_embed(torch.where(far, torch.inf, 0))
    full = torch.where(full.isnan(), full, product.view_as(full))
    return Bound(full.reshape(*range.shape[:-1], K, 3, K, 3), range, inverse_range_std)


def bound_from_information(
    J: Float[Tensor, "S U U"],
    alone: Float[Tensor, "S K 3 3"],
    sources: Sources,
    unknowns: Sequence[Unknown] = POSITION,
) -> Bound:
    """The bound of :func:`unconditional_crb` for uncorrelated sources [S, K], from the Fisher information.

    Args:
        J: :func:`~rismusic.estimation.likelihood.fisher_information` at the sources.
        alone: information on each source alone; see :func:`information_alone`.
        sources: positions, NaN in unused slots.
        unknowns: coordinates that are estimated; the others are known.
    """
    which, active = _coordinates(unknowns), sources.active
    return _bound(_marginal(J, active, which), alone, active, sources.range.double(), which)


def _marginal(J: Tensor, active: Tensor, which: list[int], pairs: Tensor | None = None) -> Tensor:
    """Information on some coordinates from that on all unknowns, some of them of pairs of sources."""
    K = active.shape[-1]
    coordinates = torch.arange(3 * K, device=J.device).view(K, 3)[:, which].flatten()
    order = torch.cat((coordinates, torch.arange(3 * K, J.shape[-1], device=J.device)))
    pairs = active[:, :0] if pairs is None else pairs
    nuisance_active = torch.cat((active, pairs, active.new_ones(len(active), 1)), dim=1)
    return marginal_information(J[:, order[:, None], order], len(coordinates), nuisance_active)


def _coordinates(unknowns: Sequence[Unknown]) -> list[int]:
    """Indices of the unknown coordinates among azimuth, elevation and range."""
    for name in unknowns:
        if name not in POSITION:
            raise InputError("unknowns", f"must be of azimuth, elevation and range; got {name!r}")
    return [i for i, name in enumerate(POSITION) if name in unknowns]


def information_alone(columns: Complex[Tensor, "S L M _"]) -> Float[Tensor, "S K 3 3"]:
    """Information on the coordinates of each source without the others, for unit symbols and noise.

    The columns are G_l A and its derivatives, those of each source together.
    """
    K = columns.shape[-1] // 4
    C, B = columns[..., :K].movedim(-1, -2), columns[..., K:].unflatten(-1, (K, 3)).movedim(-2, -3)
    C = C[..., None]  # [S, L, K, M, 1], B [S, L, K, M, 3]
    energy = C.abs().square().sum(-2, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    rest = B - C @ ((C.mH @ B) / energy)
    return (rest.mH @ rest).real.sum(1)


def identifiable(own: Float[Tensor, "*batch K w w"]) -> Bool[Tensor, "*batch K w"]:
    """Which coordinates of each source, taken alone, the data determine, from the Fisher information on them.

    The coordinates are taken in their order. One on which the Fisher information is 0 once those before it
    are unknown too is not identifiable: the elevation of a source seen by a line along x, whose data depend
    on one direction cosine only.
    """
    scale = own.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    known = scale > 0
    scale = torch.where(known, scale, 1)
    left = own / (scale[..., :, None] * scale[..., None, :])
    kept = []
    for i in range(own.shape[-1]):
        pivot = left[..., i, i]
        keep = known[..., i] & (pivot > _SINGULAR_PIVOT**2)
        kept.append(keep)
        row = torch.where(keep, pivot.clamp_min(torch.finfo(pivot.dtype).tiny).rsqrt(), 0)[..., None]
        row = row * left[..., i]
        left = left - row[..., :, None] * row[..., None, :]
    return torch.stack(kept, dim=-1)


def _inverse(J: Tensor, active: Tensor, held: Tensor) -> Tensor:
    """Inverse of each J over its active unknowns; NaN for the others, infinite if J is singular.

    The variance of unknowns that are ``held``, since they are not :func:`identifiable`, is infinite; those of
    the others are the bound with these known.
    """
    scale = J.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    usable = active & ~held & (scale > 0)
    scale = torch.where(usable, scale, 1)
    unit = torch.where(
        usable[:, :, None] & usable[:, None, :], J / (scale[:, :, None] * scale[:, None, :]), 0
    )
    unit = unit + torch.diag_embed((~usable).to(J.dtype))
    factor, failed = torch.linalg.cholesky_ex(unit)
    pivot = factor.diagonal(dim1=-2, dim2=-1).amin(-1)
    singular = (failed > 0) | (pivot < _SINGULAR_PIVOT) | (usable != (active & ~held)).any(-1)
    safe = torch.where(
        singular[:, None, None], torch.eye(J.shape[-1], dtype=J.dtype, device=J.device), factor
    )
    inverse = torch.cholesky_inverse(safe) / (scale[:, :, None] * scale[:, None, :])
    diagonal = torch.where(held, torch.inf, inverse.diagonal(dim1=-2, dim2=-1))
    inverse = torch.where(held[:, :, None] | held[:, None, :], 0, inverse)
    inverse = inverse.diagonal_scatter(diagonal, dim1=-2, dim2=-1)
    inverse = torch.where(singular[:, None, None], torch.inf, inverse)
    return torch.where(active[:, :, None] & active[:, None, :], inverse, torch.nan)


def marginal_information(J: Tensor, keep: int, active: Tensor) -> Tensor:
    """Fisher information of the first ``keep`` unknowns with the others (those ``active``) as nuisance.

    This is the Schur complement of the nuisance block. NaN if that block is singular, as for the powers of
    two sources at one position.
    """
    nuisance = torch.where(active[:, :, None] & active[:, None, :], J[:, keep:, keep:], 0)
    nuisance = nuisance + torch.diag_embed((~active).to(J.dtype))
    cross = J[:, :keep, keep:] * active[:, None]
    scale = nuisance.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    factor, failed = torch.linalg.cholesky_ex(nuisance / (scale[:, :, None] * scale[:, None, :]))
    half = torch.linalg.solve_triangular(factor, (cross / scale[:, None]).mT, upper=False)
    singular = (failed > 0) | (factor.diagonal(dim1=-2, dim2=-1).amin(-1) < _SINGULAR_PIVOT)
    return torch.where(singular[:, None, None], torch.nan, J[:, :keep, :keep] - half.mT @ half)
