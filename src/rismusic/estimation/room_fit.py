r"""Joint maximum likelihood of sources that several panels of one room receive.

Panel p sees source k, at the point :math:`x_k` of the room, at its own azimuth, elevation and inverse range
:math:`\psi_p(x_k)`. Symbols are independent from panel to panel, so that the log-likelihoods add up:

.. math:: -\log p(Y_1, \ldots, Y_P) = \sum_p \ell_p\left( \psi_p(x_1), \ldots, \psi_p(x_K);
    \, p_{p1}, \ldots, p_{pK}, \sigma_p^2 \right)

with the likelihoods :math:`\ell_p` of :mod:`rismusic.estimation.likelihood`. Unknown are the points, which
are common, and in each panel the received powers and the noise variance. Gradient and Fisher information
follow by the chain rule: with :math:`T_{pk} = \partial \psi_p / \partial x_k` the information on the points
is :math:`\sum_p T_p^T J_p T_p`. A source behind a planar panel contributes nothing there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from rismusic.array import Panel
from rismusic.batch import Batch
from rismusic.crb import block_diagonal, marginal_information, room_covariance
from rismusic.estimation.grid import Volume
from rismusic.estimation.levenberg_marquardt import Evaluated, FitOptions, levenberg_marquardt
from rismusic.estimation.likelihood import (
    SufficientStatistics,
    as_one_matrix,
    conditional,
    conditional_cost,
    sufficient_statistics,
    unconditional,
)
from rismusic.estimation.maximum_likelihood import (
    ROUGH,
    THOROUGH,
    Criterion,
    Fit,
    FitState,
    complete_fit,
    fit_powers,
    power_noise_limits,
)
from rismusic.estimation.model_order import LOG_POWER_WIDTH, log_occam_factor
from rismusic.estimation.room_poses import ScenePoses, cross_matrix, pose_information
from rismusic.io import Recording
from rismusic.operator import Link
from rismusic.sources import coordinate_derivatives, to_panel_coordinates

# Least squares gives good enough powers where sources are still exchanged.
_FIRST = replace(ROUGH, powers_first=False)
# A source is exchanged for another candidate if the likelihood gains more than this, in nats.
_MIN_GAIN_NATS = 0.5
# Fits are repeated where a source has moved in front of or behind a panel, at most this often.
_VISIBILITY_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class View:
    """What one panel receives.

    Args:
        recording: S scenes, stacked.
        pose: from the panel frame to the room frame.
    """

    recording: Recording
    pose: Float[Tensor, "4 4"]

    def sees(self, positions: Float[Tensor, "*batch 3"]) -> Bool[Tensor, "*batch"]:
        """Which positions (azimuth, elevation, 1/range) the panel receives from: those in front of it."""
        return sees(self.recording.panel, positions)

    def statistics(
        self, points: Float[Tensor, "S K 3"], active: Bool[Tensor, "S K"], *, derivatives: bool = False
    ) -> tuple[SufficientStatistics, Float[Tensor, "S K 3"]]:
        """Sufficient statistics at points of the room, and these points in coordinates of the panel."""
        positions = to_panel_coordinates(self.pose, points)
        seen = active & self.sees(positions)
        at = sufficient_statistics(self.recording, positions, seen, derivatives=derivatives, link=self._link)
        return at, positions

    @cached_property
    def _link(self) -> Link:
        return as_one_matrix(self.recording.link)

    def __getitem__(self, scenes: Tensor | slice) -> View:
        return View(self.recording[scenes], self.pose)


def sees(panel: Panel, positions: Float[Tensor, "*batch 3"]) -> Bool[Tensor, "*batch"]:
    """Which positions a panel receives from: those in front of a planar one, all of another array."""
    front = positions[..., 0].abs() < math.pi / 2
    return front if panel.is_planar else torch.ones_like(front)


@dataclass(frozen=True, eq=False, repr=False)
class RoomFit(Batch):
    """Sources of S scenes, fitted to the recordings of P panels.

    Args:
        points: metres, room frame.
        active: which entries hold a source.
        power: p at each panel; meaningless where it does not see the source.
        noise_variance: of each panel.
        value: negative log-likelihood in nats, summed over the panels.
        converged: whether the fit converged.
    """

    points: Float[Tensor, "S K 3"]
    active: Bool[Tensor, "S K"]
    power: Float[Tensor, "S P K"]
    noise_variance: Float[Tensor, "S P"]
    value: Float[Tensor, "S"]
    converged: Bool[Tensor, "S"]

    def emptied(self) -> RoomFit:
        """The same without entries for sources."""
        return replace(self, points=self.points[:, :0], active=self.active[:, :0], power=self.power[..., :0])

    def padded(self, sources: int) -> RoomFit:
        """The same with more entries for sources."""
        (S, K), P = self.active.shape, self.power.shape[1]
        more = sources - K
        return replace(
            self,
            points=torch.cat((self.points, self.points.new_ones(S, more, 3)), dim=1),
            active=torch.cat((self.active, self.active.new_zeros(S, more)), dim=1),
            power=torch.cat((self.power, self.power.new_ones(S, P, more)), dim=2),
        )


def refine_points(
    views: list[View],
    points: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    volume: Volume,
    *,
    criterion: Criterion = "unconditional",
    options: FitOptions = THOROUGH,
) -> RoomFit:
    """Fit points of the room to all panels from a start.

    Args:
        views: of P panels.
        points: the start, in metres.
        active: which entries hold a source.
        volume: its largest range bounds the points: none is farther from all panels.
        criterion: ``conditional`` or ``unconditional`` likelihood.
        options: when to stop.
    """
    fit = _refine_once(views, points, active, volume, criterion, options)
    scenes, start = torch.arange(len(active), device=active.device), points
    # A panel in front of which a source has moved has not taken part in the fit of its power.
    for _ in range(_VISIBILITY_ROUNDS if options.tolerance < ROUGH.tolerance else 0):
        before, after = (
            torch.stack([view.sees(to_panel_coordinates(view.pose, where)) for view in views])
            for where in (start, fit.points[scenes])
        )
        moved = ((before != after) & active[scenes]).any(0).any(1)
        scenes = scenes[moved]
        if len(scenes) == 0:
            break
        start = fit.points[scenes]
        some = [view[scenes] for view in views]
        fit = fit.replaced(scenes, _refine_once(some, start, active[scenes], volume, criterion, options))
    return fit


def _refine_once(
    views: list[View],
    points: Tensor,
    active: Tensor,
    volume: Volume,
    criterion: Criterion,
    options: FitOptions,
) -> RoomFit:
    K = active.shape[1]
    P, width = len(views), K + 1
    lower, upper = _limits(views, points, active, volume)
    nuisance = [_nuisance(view, points, active, options) for view in views]
    start, least, most = (torch.cat([part[i] for part in nuisance], dim=1) for i in range(3))
    statistics = _Statistics(views, active)
    if criterion == "unconditional":
        end = levenberg_marquardt(
            lambda scenes, x: joint_unconditional(statistics(scenes), x, K),
            torch.cat((points.flatten(1), start), dim=1),
            torch.cat((lower, least), dim=1),
            torch.cat((upper, most), dim=1),
            steps=options.steps,
            tolerance=options.tolerance,
        )
        levels = end.point[:, 3 * K :].unflatten(1, (P, width)).exp()
    else:
        end = levenberg_marquardt(
            lambda scenes, x: joint_conditional(statistics(scenes), x),
            points.flatten(1),
            lower,
            upper,
            steps=options.steps,
            tolerance=options.tolerance,
        )
        levels = start.unflatten(1, (P, width)).exp()
    where = end.point[:, : 3 * K].unflatten(1, (K, 3))
    return RoomFit(where, active, levels[..., :K], levels[..., K], end.value, end.converged)


def fit_nothing(views: list[View]) -> RoomFit:
    """The fit without sources: all of the data is noise."""
    first = views[0].recording.snapshots
    points = torch.ones(len(first), 1, 3, dtype=torch.float64, device=first.device)
    absent = torch.zeros(len(first), 1, dtype=torch.bool, device=first.device)
    return refine_points(views, points, absent, Volume(1.0, 1.0, 1.0, 1.0))


class _Statistics:
    """The views of the scenes that are still in the batch of a fit, with their sources."""

    def __init__(self, views: list[View], active: Tensor) -> None:
        self._all = views, active
        self._here = views, active

    def __call__(self, scenes: Tensor) -> tuple[list[View], Tensor]:
        # The batch only shrinks: if its size is unchanged, so are its scenes.
        if len(scenes) != len(self._here[1]):
            views, active = self._all
            self._here = [view[scenes] for view in views], active[scenes]
        return self._here


def joint_unconditional(
    part: tuple[list[View], Bool[Tensor, "S K"]], x: Float[Tensor, "S X"], K: int, *, poses: bool = False
) -> Evaluated:
    """Negative unconditional log-likelihood of all panels, its gradient and Fisher information.

    Args:
        part: views of S scenes, and which entries hold a source.
        x: K points, then log powers and log noise variance of each panel: X = 3K + P (K + 1).
        K: number of entries for sources.
        poses: the displacement (m) and the rotation (rad) of each panel are unknown too, six for each panel
            before the points (:func:`pose_derivatives`).
    """
    views, active = part
    points = x[:, : 3 * K].unflatten(1, (K, 3))
    ahead = 6 * len(views) if poses else 0
    head, width = ahead + 3 * K, ahead + x.shape[1]
    total = torch.zeros_like(x[:, 0])
    gradient, information = x.new_zeros(len(x), width), x.new_zeros(len(x), width, width)
    for number, view in enumerate(views):
        own = slice(head + number * (K + 1), head + (number + 1) * (K + 1))
        at, positions = view.statistics(points, active, derivatives=True)
        power, noise = x[:, own.start - ahead : own.stop - ahead].exp().split((K, 1), dim=1)
        value, slope, J = unconditional(at, power, noise[:, 0])
        by_point = coordinate_derivatives(view.pose, positions)
        jacobian = block_diagonal(by_point)
        if poses:
            by_poses = x.new_zeros(len(x), 3 * K, ahead)
            by_poses[..., 6 * number : 6 * number + 6] = pose_derivatives(view, points, by_point).flatten(
                1, 2
            )
            jacobian = torch.cat((by_poses, jacobian), dim=2)
        cross = jacobian.mT @ J[:, : 3 * K, 3 * K :]
        total = total + value
        gradient[:, :head] += (jacobian.mT @ slope[:, : 3 * K, None])[..., 0]
        gradient[:, own] = slope[:, 3 * K :]
        information[:, :head, :head] += jacobian.mT @ J[:, : 3 * K, : 3 * K] @ jacobian
        information[:, :head, own] = cross
        information[:, own, :head] = cross.mT
        information[:, own, own] = J[:, 3 * K :, 3 * K :]
    return total, gradient, information


def pose_derivatives(
    view: View, points: Float[Tensor, "S K 3"], by_point: Float[Tensor, "S K 3 3"]
) -> Float[Tensor, "S K 3 6"]:
    r"""Derivatives of azimuth, elevation and inverse range by a displacement d and a rotation w of the panel.

    A panel displaced by d and turned by w about its centre t sees the point x where it saw
    :math:`x - d - w \times (x - t)` before.

    Args:
        view: of the panel.
        points: x, metres, room frame.
        by_point: derivatives by the point (:func:`~rismusic.sources.coordinate_derivatives`).

    Returns:
        Derivatives by d (m) and w (rad), both along the axes of the room.
    """
    return torch.cat((-by_point, by_point @ cross_matrix(points - view.pose[:3, 3])), dim=-1)


def joint_conditional(part: tuple[list[View], Bool[Tensor, "S K"]], x: Float[Tensor, "S U"]) -> Evaluated:
    """Negative conditional log-likelihood of all panels, its gradient and Gauss-Newton curvature.

    Args:
        part: views of S scenes, and which entries hold a source.
        x: K points.
    """
    views, active = part
    points = x.unflatten(1, (-1, 3))
    total, gradient = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
    curvature = x.new_zeros(*x.shape, x.shape[1])
    for view in views:
        at, positions = view.statistics(points, active, derivatives=True)
        value, slope, F = conditional(at)
        jacobian = block_diagonal(coordinate_derivatives(view.pose, positions))
        total = total + value
        gradient = gradient + (jacobian.mT @ slope[..., None])[..., 0]
        curvature = curvature + jacobian.mT @ F @ jacobian
    return total, gradient, curvature


def _limits(views: list[View], points: Tensor, active: Tensor, volume: Volume) -> tuple[Tensor, Tensor]:
    """Limits of the points, [S, 3K]; entries without a source are held."""
    centres = torch.stack([view.pose[:3, 3] for view in views]).to(points)
    low, high = centres.amin(0) - volume.range_max, centres.amax(0) + volume.range_max
    there = active[..., None]
    return torch.where(there, low, points).flatten(1), torch.where(there, high, points).flatten(1)


def _nuisance(
    view: View, points: Tensor, active: Tensor, options: FitOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Start and limits of the log powers and the log noise variance of one panel, [S, K + 1]."""
    at, _ = view.statistics(points, active)
    limits = power_noise_limits(view.recording.noise_variance, at)
    if not options.powers_first:
        return limits
    power, noise, _ = fit_powers(view.recording.noise_variance, at, limits=limits)
    _, least, most = limits
    start = torch.cat((power.clamp_min(torch.finfo(power.dtype).tiny), noise[:, None]), dim=1).log()
    return torch.minimum(torch.maximum(start, least), most), least, most


def conditional_values(
    views: list[View],
    points: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    candidates: Float[Tensor, "S C 3"],
) -> Float[Tensor, "S C"]:
    """Negative conditional log-likelihood (nats) of all panels with each candidate as a further source.

    The statistics of sources and candidates are computed once, and those of each choice taken from them.
    """
    (S, K), C = active.shape, candidates.shape[1]
    both = torch.cat((points, candidates), dim=1)
    there = torch.cat((active, torch.ones(S, C, dtype=torch.bool, device=active.device)), dim=1)
    kept = torch.arange(K, device=active.device).expand(C, K)
    index = torch.cat((kept, K + torch.arange(C, device=active.device)[:, None]), dim=1)  # [C, K + 1]
    total = torch.zeros(S, C, dtype=torch.float64, device=active.device)
    for view in views:
        at, _ = view.statistics(both, there)
        gram = at.gram.permute(0, 2, 3, 1)[:, index[:, :, None], index[:, None, :]]  # [S, C, k, k, L]
        cross = at.cross.mT[:, index]  # [S, C, k, L]
        some = SufficientStatistics(
            gram.permute(0, 1, 4, 2, 3).flatten(0, 1),
            cross.mT.flatten(0, 1),
            at.energy.repeat_interleave(C, dim=0),
            at.active[:, index].flatten(0, 1),
            at.antennas,
        )
        total += some.size * conditional_cost(some).log().view(S, C)
    return total


def add_source(
    views: list[View],
    fit: RoomFit,
    candidates: Float[Tensor, "S C 3"],
    valid: Bool[Tensor, "S C"],
    volume: Volume,
    criterion: Criterion,
) -> RoomFit:
    """Add the best of some candidates as a source, re-fit, and exchange the others while the fit improves.

    Args:
        views: of P panels.
        fit: K sources.
        candidates: metres, room frame.
        valid: which of them are candidates.
        volume: see :func:`refine_points`.
        criterion: likelihood of the fits.

    Returns:
        K + 1 sources, roughly fitted; as before in scenes without candidates.
    """
    K = fit.active.shape[1]
    rows = torch.arange(len(valid), device=valid.device)
    value = conditional_values(views, fit.points, fit.active, candidates).masked_fill(~valid, torch.inf)
    new = candidates[rows, value.argmin(1)]
    points = torch.cat((fit.points, new[:, None]), dim=1)
    active = torch.cat((fit.active, valid.any(1)[:, None]), dim=1)

    def rough(scenes: Tensor, where: Tensor) -> RoomFit:
        some = [view[scenes] for view in views]
        return refine_points(some, where, active[scenes], volume, criterion=criterion, options=_FIRST)

    fit = rough(rows, points)
    for k in range(K):
        others = [i for i in range(K + 1) if i != k]
        value = conditional_values(
            views,
            fit.points[:, others],
            active[:, others],
            torch.cat((fit.points[:, k : k + 1], candidates), dim=1),
        )
        now, value = value[:, 0], value[:, 1:].masked_fill(~valid, torch.inf)
        scenes = ((value.amin(1) < now - _MIN_GAIN_NATS) & active[:, k]).nonzero()[:, 0]
        if len(scenes) == 0:
            continue
        trial = fit.points[scenes].clone()
        trial[:, k] = candidates[scenes, value[scenes].argmin(1)]
        other = rough(scenes, trial)
        better = other.value < fit.value[scenes] - _MIN_GAIN_NATS
        fit = fit.replaced(scenes[better], other[better])
    return fit


@dataclass(frozen=True, eq=False)
class RoomSolution:
    """A completed fit.

    Args:
        fit: the points, with powers and noise variance of each panel.
        panels: the fit as each panel sees it; NaN where it does not see a source.
        values: negative unconditional log-likelihood of each panel, nats.
        covariance: joint bound of the points at the estimate, m^2.
        poses: what each scene tells of the poses.
    """

    fit: RoomFit
    panels: list[Fit]
    values: Float[Tensor, "P S"]
    covariance: Float[Tensor, "S K 3 K 3"]
    poses: ScenePoses


def complete(
    views: list[View],
    fit: RoomFit,
    volume: Volume,
    pose_covariance: Float[Tensor, "poses poses"] | None = None,
) -> RoomSolution:
    """Complete a fit: powers, noise variance and error bars, and what it tells of the poses.

    Args:
        views: of P panels.
        fit: from :func:`refine_points`.
        volume: search volume of each panel, the prior of positions.
        pose_covariance: of the errors of the poses, which the error bars then contain; none if the poses are
            right.
    """
    active, K = fit.active, fit.active.shape[1]
    panels, values, x = _at_panels(views, fit, volume)
    _, slope, J = joint_unconditional((views, active), x, K, poses=True)
    ahead, seen = 6 * len(views), _seen(views, fit)
    unknown = torch.cat((seen, torch.ones_like(seen[..., :1])), dim=2).flatten(1)
    # With the gradient as one more row, one Schur complement has both results.
    whole = pad(J, (1, 0, 1, 0))
    whole[:, 0, 1:] = whole[:, 1:, 0] = slope
    by_points = marginal_information(whole, 1 + ahead + 3 * K, unknown)
    marginal = by_points[:, 1:, 1:]
    covariance = room_covariance(marginal[:, ahead:, ahead:], active)
    if pose_covariance is not None:
        # The positions of a scene follow the poses: the joint Fisher information, inverted by blocks.
        known = covariance.nan_to_num(0.0, 0.0).flatten(3).flatten(1, 2)
        follow = known @ marginal[:, ahead:, :ahead].nan_to_num(0.0)
        more = follow @ pose_covariance @ follow.mT
        covariance = covariance + more.unflatten(2, (K, 3)).unflatten(1, (K, 3))
    return RoomSolution(fit, panels, values, covariance, pose_information(by_points, active))


def room_evidence(views: list[View], fit: RoomFit, volume: Volume) -> Float[Tensor, "S"]:
    """Laplace approximation of the log evidence for the number of sources of a fit (nats).

    Args:
        views: of P panels.
        fit: from :func:`refine_points`.
        volume: search volume of each panel, the prior of positions.
    """
    _, values, x = _at_panels(views, fit, volume)
    J = joint_unconditional((views, fit.active), x, fit.active.shape[1])[2]
    seen = _seen(views, fit)
    level = x[:, fit.points[0].numel() :].unflatten(1, (len(views), -1))[..., :-1]
    level = level.masked_fill(~seen, -math.inf)
    return _log_evidence(views, fit.points, level, J, volume) - values.sum(0)


def _at_panels(
    views: list[View], fit: RoomFit, volume: Volume
) -> tuple[list[Fit], Float[Tensor, "P S"], Float[Tensor, "S X"]]:
    """The fit and the negative log-likelihood of each panel, and the unknowns of the joint likelihood."""
    panels, values, levels = [], [], []
    for view in views:
        at, positions = view.statistics(fit.points, fit.active)
        seen = fit.active & view.sees(positions)
        power, noise, value = fit_powers(view.recording.noise_variance, at)
        end = FitState(positions, value, fit.converged, (power, noise))
        panel = complete_fit(view.recording, positions, seen, fit.converged, volume, end=end)
        panels.append(panel)
        values.append(value)
        levels.append(torch.cat((power.clamp_min(1e-300), panel.noise_variance[:, None]), dim=1).log())
    return panels, torch.stack(values), torch.cat((fit.points.flatten(1), *levels), dim=1)


def _seen(views: list[View], fit: RoomFit) -> Bool[Tensor, "S P K"]:
    """Which sources each panel receives."""
    return torch.stack(
        [fit.active & view.sees(to_panel_coordinates(view.pose, fit.points)) for view in views], dim=1
    )


def _log_evidence(
    views: list[View],
    points: Float[Tensor, "S K 3"],
    level: Float[Tensor, "S P K"],
    J: Float[Tensor, "S U U"],
    volume: Volume,
) -> Float[Tensor, "S"]:
    """Log of the prior volume that the data leave, for points uniform in the volume of one panel.

    The panel is the first that sees the source. With one panel this is the evidence of
    :func:`~rismusic.estimation.model_order.log_evidence`. ``level`` holds the log powers, minus infinity for
    sources that a panel does not receive.
    """
    S, P, K = level.shape
    seen = level > -math.inf
    first = seen.to(torch.int8).argmax(1)[..., None, None]
    jacobians = torch.stack(
        [
            coordinate_derivatives(view.pose, to_panel_coordinates(view.pose, points)).inverse()
            for view in views
        ],
        dim=1,
    )  # [S, P, K, 3, 3], derivatives of the point by the coordinates of each panel
    jacobian = block_diagonal(jacobians.take_along_dim(first[:, None], dim=1)[:, 0])
    M = torch.eye(J.shape[-1], dtype=J.dtype, device=J.device).repeat(S, 1, 1)
    M[:, : 3 * K, : 3 * K] = jacobian
    extent = [high - low for low, high in zip(volume.lower, volume.upper, strict=True)]
    free = seen.any(1)
    width = torch.tensor(extent, dtype=J.dtype, device=J.device) * free[..., None]
    parts = [width.flatten(1)]
    for number, view in enumerate(views):
        parts.append(LOG_POWER_WIDTH * seen[:, number].to(J))
        known = view.recording.noise_variance is not None
        parts.append(torch.full_like(J[:, :1, 0], 0.0 if known else LOG_POWER_WIDTH))
    widths = torch.cat(parts, dim=1)
    powers = torch.arange(3 * K, J.shape[-1], device=J.device).view(P, K + 1)[:, :K]
    return log_occam_factor(M.mT @ J @ M, widths, powers, level)
