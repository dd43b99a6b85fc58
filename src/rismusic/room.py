"""``rismusic.locate_room``: sources that several panels of one room receive, located together.

1. Each panel locates the sources by itself, with the estimator of the settings.
2. Candidates for positions in the room are the sources of each panel, the means of two sources of different
   panels whose error ellipsoids meet, and clusters: the assignment of all panels' sources to each other that
   is the most consistent one.
3. Sources are added one after the other, each time the candidate of the greatest joint likelihood, and all
   of them are fitted to all panels together (:mod:`rismusic.estimation.room_fit`).
4. If their number is not known, the evidence of the joint fits decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.array import from_db, to_db
from rismusic.batch import concatenate
from rismusic.crb import check_same_room
from rismusic.devices import blocks, device_of
from rismusic.errors import InputError
from rismusic.estimation.classical import ClassicalEstimator
from rismusic.estimation.estimate import (
    Estimate,
    NSources,
    Reason,
    join_estimates,
    noted,
    received_db,
    whole_numbers,
)
from rismusic.estimation.goodness_of_fit import SIGNIFICANCE, goodness_of_fit
from rismusic.estimation.grid import Volume
from rismusic.estimation.maximum_likelihood import ROUGH, refine, values_without_each
from rismusic.estimation.model_order import EVIDENCE_WEIGHT
from rismusic.estimation.noise import check_fit, most_sources
from rismusic.estimation.panel_fit import HALF_SPACE
from rismusic.estimation.room_fit import (
    RoomFit,
    RoomSolution,
    View,
    add_source,
    complete,
    fit_nothing,
    refine_points,
    room_evidence,
)
from rismusic.estimation.room_poses import PoseInformation, PoseStd, moved_pose
from rismusic.estimation.signal_model import for_geometry, with_output_noise, with_signal_model
from rismusic.hybrid import BLOCK_SCENES, chosen_settings
from rismusic.io import Recording
from rismusic.registry import ESTIMATORS
from rismusic.sources import Sources, coordinate_derivatives, from_panel_coordinates, to_panel_coordinates
from rismusic.spec import LocateSpec
from rismusic.text import counted

# Squared Mahalanobis distance up to which two sources of different panels may be the same.
_SAME_SOURCE = 100.0
# The search for the number of sources stops after this many additional sources in a row without a gain.
_PATIENCE = 2
# Log-likelihood (nats) that a source raises at a panel that receives it: three standard deviations.
_RECEIVED_NATS = 4.5
# Poses are fitted until a step is a small part of the error bars that are left, at most this often.
_POSE_STEPS, _POSE_TOLERANCE = 10, 0.1
# If no more than this share of the scenes is questioned by other reasons, and the others speak against the
# poses with a p-value above the second number, the questioned ones take no part in the test of the poses.
_ODD_SHARE, _UNCONFIRMED = 0.2, 0.05
# Errors of poses that move the positions by less (root mean square, in error bars) are no reason for doubt:
# many scenes show them, and no position is off by several error bars.
_HARMLESS_BARS = 0.5


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class RoomEstimate(Estimate):
    """Sources of S scenes, located by several panels of one room together.

    It is an :class:`Estimate` in the frame of the first panel, whose pose it has: ``position_room`` and
    ``position_covariance_room`` are the positions in the room. A source behind the first panel has an azimuth
    beyond 90 degrees. ``snr_db`` is the sum over the panels, ``neg_log_likelihood`` too, and ``p_value``
    combines those of the panels by Fisher's method. The noise variance is that of the first panel.

    Args:
        panels: the same sources as each panel sees them, in its own frame, with their power there; NaN where
            the panel does not see a source. The error bars are those of all panels together.
        agreement_p_value: [S] probability of positions that differ as much between the panels, if the poses
            are right and all recordings are of the same sources.
        pose_p_value: [S] probability of data that speak as much against the poses, if their errors have the
            standard deviations that were given; one value, from all scenes together.
    """

    panels: tuple[Estimate, ...]
    agreement_p_value: Float[Tensor, "_"]
    pose_p_value: Float[Tensor, "_"]

    def __getitem__(self, scenes: int | slice | Tensor) -> RoomEstimate:
        """The estimate of some scenes. An int gives one scene, which keeps its leading axis: S = 1."""
        made = super().__getitem__(scenes)
        assert isinstance(made, RoomEstimate)
        return replace(made, panels=tuple(panel[scenes] for panel in self.panels))


def locate_room(
    recordings: Sequence[Recording],
    *,
    n_sources: Int64[Tensor, "S"] | int | str | None = None,
    spec: LocateSpec | None = None,
    pose_std_deg: float = 0.0,
    pose_std_m: float = 0.0,
    device: torch.device | str | None = None,
    **settings: object,
) -> RoomEstimate:
    """Locate sources that several panels of one room receive, by the sum of their likelihoods.

    Positions are common to all panels. Powers, noise and symbols are those of each panel; no phase coherence
    between panels is assumed. A source behind a planar panel contributes nothing there.

    Args:
        recordings: of P panels, each with its pose; scene i of all of them is of the same sources. The first
            gives the frame of the estimate.
        n_sources: number of sources K that the panels see together: one for all scenes, one per scene [S], or
            ``auto``. By default ``spec.sources``.
        spec: method, search volume and so on of each panel.
        pose_std_deg: standard deviation of the errors of the recorded poses: of the rotation about each axis,
            for every panel. If it or the next one is not 0, the poses are estimated too, from all scenes
            together, and the error bars contain the errors that are left.
        pose_std_m: the same of the displacement along each axis.
        device: where to compute, such as ``"cuda"``; the recordings' device if none.
        settings: fields of :class:`~rismusic.spec.LocateSpec` to change, such as ``method="omp"``.

    Returns:
        Positions with error bars, in float64 and on the first recording's device.

    Raises:
        InputError: a pose is missing or not a rotation, the recordings have different numbers of scenes, or
            a setting is not available for several panels; otherwise as :func:`rismusic.locate`.

    Example:
        >>> locate_room([recording_of_wall, recording_of_ceiling], n_sources=2).position_room
    """
    n_sources = whole_numbers(n_sources)
    std = PoseStd.checked(pose_std_m, pose_std_deg)
    chosen = _checked(chosen_settings(spec, n_sources, settings))
    recordings = list(recordings)
    check_same_room(recordings)
    piloted = [recording.pilots is not None for recording in recordings]
    if any(piloted) != all(piloted):
        raise InputError(
            f"recordings[{piloted.index(False)}].pilots",
            "missing: either all panels know the pilots of the sources, or none",
        )
    home = recordings[0].snapshots.device
    if device is not None:
        recordings = [recording.to(device_of(device)) for recording in recordings]
    recordings = [with_signal_model(recording, chosen) for recording in recordings]
    for number, recording in enumerate(recordings):
        if recording.symbols == "correlated":
            raise InputError(
                f"recordings[{number}].symbols",
                "must not be correlated where several panels are fused; use independent",
            )
    own = chosen.replace(wave="recorded", symbols="recorded")
    count: Tensor | None = None
    if isinstance(n_sources, Tensor):
        count = n_sources.to(recordings[0].snapshots.device)
    elif isinstance(chosen.sources, int):
        count = torch.full((len(recordings[0]),), chosen.sources, device=recordings[0].snapshots.device)
    for number, recording in enumerate(recordings):
        try:
            for_geometry(own, recording.panel)
            if count is not None:
                check_fit(recording.stacked(), count, Volume.from_spec(chosen))
        except InputError as error:
            raise InputError(f"recordings[{number}].{error.field}", error.problem) from None
    prepared = []
    for start in range(0, len(recordings[0]), BLOCK_SCENES):
        block = slice(start, start + BLOCK_SCENES)
        some = None if count is None else count[block]
        prepared.append(_prepared([recording[block] for recording in recordings], some, own))
    fused = _fused_at_likely_poses(prepared, own, std)
    estimate = replace(fused, spec=chosen).detached()
    assert isinstance(estimate, RoomEstimate)
    moved = estimate if device is None else estimate.to(home)
    assert isinstance(moved, RoomEstimate)
    return moved


def _checked(spec: LocateSpec) -> LocateSpec:
    """The settings, if several panels can be fused with them."""
    if spec.allowed_error > 0:
        raise InputError(
            "panel_error", f"must be 0 where several panels are fused; got {spec.allowed_error:g}"
        )
    if len(spec.unknowns) < 3:
        raise InputError(
            "unknowns",
            "must be azimuth, elevation and range where several panels are fused: the unknowns "
            "are the positions in the room",
        )
    if spec.noise == "impulsive":
        raise InputError("noise", "must not be impulsive where several panels are fused")
    if math.isinf(spec.range_max_m):
        raise InputError(
            "range_max_m", "must be finite where several panels are fused: positions in the room are"
        )
    return spec.replace(panel_error=0.0)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A block of scenes, in which each panel has located the sources by itself.

    Args:
        recordings: of the panels, stacked.
        alone: the sources of each panel.
        count: number of sources of each scene, if it is known.
    """

    recordings: list[Recording]
    alone: list[Estimate]
    count: Int64[Tensor, "S"] | None

    def views(self, errors: Float[Tensor, "poses"]) -> list[View]:
        """The panels, at their recorded poses with these errors."""
        views = []
        for recording, error in zip(self.recordings, errors.view(-1, 6), strict=True):
            assert recording.pose is not None
            pose = recording.pose.to(recording.snapshots.device, torch.float64)
            views.append(View(recording, moved_pose(pose, error)))
        return views


@torch.inference_mode()
def _prepared(recordings: list[Recording], count: Int64[Tensor, "S"] | None, spec: LocateSpec) -> _Prepared:
    made, alone = [], []
    for recording in recordings:
        known: NSources = "auto" if count is None else count
        own = for_geometry(spec, recording.panel)
        make = ESTIMATORS.get(own.method) if own.method in ESTIMATORS else ClassicalEstimator
        by_panel = make(own)(recording, known)
        if spec.noise == "per_output":
            recording = with_output_noise(recording, by_panel.sources)
            by_panel = make(own)(recording, known)
        made.append(recording.stacked())
        alone.append(by_panel)
    return _Prepared(made, alone, count)


@torch.inference_mode()
def _fused_at_likely_poses(prepared: list[_Prepared], spec: LocateSpec, std: PoseStd) -> RoomEstimate:
    """Fuse all scenes, at the recorded poses or with the poses fitted to all scenes together."""
    snapshots = prepared[0].recordings[0].snapshots
    errors = torch.zeros(6 * len(prepared[0].recordings), dtype=torch.float64, device=snapshots.device)
    covariance, converged = None, not std
    if std:
        # Wrong poses make several sources of one, which takes long to search. Meanwhile the number is that of
        # the panels.
        most = [
            replace(block, count=torch.stack([one.n_sources for one in block.alone]).amax(0))
            if block.count is None
            else block
            for block in prepared
        ]
        for _ in range(_POSE_STEPS):
            _, _, poses = _fused(most, spec, errors, covariance)
            before = errors
            errors, covariance = poses.at_recorded(errors).fitted(std)
            step = (errors - before).abs() / covariance.diagonal().sqrt().clamp_min(1e-12)
            converged = float(step.max()) < _POSE_TOLERANCE
            if converged:
                break
    estimate, poses, without_odd = _fused(prepared, spec, errors, covariance)
    if std and prepared[0].count is None:
        # A panel may have counted a source too many, which the panels together do not.
        errors, covariance = poses.at_recorded(errors).fitted(std)
        estimate, poses, without_odd = _fused(prepared, spec, errors, covariance)
    if not converged:
        estimate = _with_sentence(estimate, Reason("the fit of the poses did not converge"))
    if without_odd.at_recorded(errors).p_value(std) > _UNCONFIRMED:
        poses = without_odd
    return _with_pose_test(estimate, poses.at_recorded(errors), std)


def _fused(
    prepared: list[_Prepared],
    spec: LocateSpec,
    errors: Float[Tensor, "poses"],
    pose_covariance: Float[Tensor, "poses poses"] | None,
) -> tuple[RoomEstimate, PoseInformation, PoseInformation]:
    """Fuse all scenes at some poses.

    Returns:
        The estimate, what all scenes tell of errors of these poses, and the same without a few odd scenes.
    """
    volume = Volume.from_spec(spec)
    estimates, poses = [], []
    for part in prepared:
        views = part.views(errors)
        candidates = _candidates(views, part.alone)
        S, C = candidates.valid.shape
        most = spec.sources_max if part.count is None else int(part.count.max())
        each = sum(_bytes(view.recording, C, most) for view in views)
        for block in blocks(S, each, candidates.valid.device):
            some, here = [view[block] for view in views], [estimate[block] for estimate in part.alone]
            number = None if part.count is None else part.count[block]
            if views[0].recording.link.pilots is not None:
                fit, probability = _fit_piloted(some, here, volume, spec), None
            else:
                fit, probability = _fit(some, candidates[block], number, volume, spec)
            solution = complete(some, fit, volume, pose_covariance)
            estimates.append(_estimate(some, here, solution, probability, spec))
            poses.append(solution.poses)
    estimate = _joined(estimates)
    questioned = torch.tensor([bool(reasons) for reasons in estimate.reasons], device=errors.device)
    # A few scenes with other sources or a bad fit are no evidence against the poses. Wrong poses make many
    # scenes doubtful, and those that show them best.
    few = int(questioned.sum()) <= _ODD_SHARE * len(questioned)
    every, scenes = torch.ones_like(questioned), concatenate(poses)
    return estimate, scenes.total(every), scenes.total(~questioned if few else every)


def _with_pose_test(estimate: RoomEstimate, poses: PoseInformation, std: PoseStd) -> RoomEstimate:
    """Add the test of the poses, the same for all scenes, and its warning to those with sources."""
    p_value = poses.p_value(std)
    estimate = replace(estimate, pose_p_value=torch.full_like(estimate.p_value, p_value))
    if p_value >= SIGNIFICANCE:
        return estimate
    error = poses.likeliest()
    others = "panel 0" if len(estimate.panels) == 2 else "the others"
    degrees, centimetres = (math.degrees(x) for x in error.radians), (100 * x for x in error.metres)
    sizes = [
        f"{size:.2g} +- {bar:.1g} {unit}" for (size, bar), unit in ((degrees, "deg"), (centimetres, "cm"))
    ]
    remedy = (
        "more than the given standard deviations allow"
        if std
        else "its phases may also have a gradient; pose_std_deg and pose_std_m estimate the poses too"
    )
    text = (
        f"the pose of panel {error.panel} relative to {others} is wrong by about {sizes[0]} and {sizes[1]}, "
        f"which moves the positions by {error.bars:.1g} of their error bars "
        f"(p = {max(p_value, 1e-300):.1g}, {counted(poses.scenes, 'scene')}): {remedy}"
    )
    return _with_sentence(estimate, Reason(text) if error.bars > _HARMLESS_BARS else text)


def _with_sentence(estimate: RoomEstimate, sentence: str) -> RoomEstimate:
    """A warning about all scenes with sources."""
    return noted(estimate, ((scene, sentence) for scene in estimate.n_sources.nonzero()[:, 0].tolist()))


def _bytes(recording: Recording, candidates: int, sources: int) -> int:
    """Memory of the comparison of candidates in one scene."""
    matrices, (_, L, M) = recording.link.matrices, recording.snapshots.shape
    columns = candidates + sources
    return 16 * (matrices * (candidates * (sources + 1) ** 2 + columns * (columns + M)) + L * M)


def _fit(
    views: list[View],
    candidates: _Candidates,
    count: Int64[Tensor, "S"] | None,
    volume: Volume,
    spec: LocateSpec,
) -> tuple[RoomFit, Float[Tensor, "S counts"] | None]:
    """Fit a given number of sources to each scene, or the most probable one.

    Sources are added from all candidates, and from the clusters alone; the likelier result counts.
    """
    S, device = len(candidates.valid), candidates.valid.device
    if count is None:
        most = min(spec.sources_max, *(most_sources(view.recording, volume) for view in views))
    else:
        most = int(count.max())
    nothing = fit_nothing(views)
    chosen = nothing.padded(max(most, 1))
    evidence = torch.full((S, most + 1), -torch.inf, dtype=torch.float64, device=device)
    evidence[:, 0] = room_evidence(views, nothing, volume)
    best, since = evidence[:, 0].clone(), torch.zeros(S, dtype=torch.int64, device=device)
    paths = [nothing.emptied()] * 2
    live, here, some = torch.arange(S, device=device), views, candidates
    for number in range(1, most + 1):
        left = since[live] < _PATIENCE if count is None else count[live] >= number
        if not left.all():
            live, paths, some = live[left], [path[left] for path in paths], some[left]
            here = [view[live] for view in views]
        if len(live) == 0:
            break
        paths = [
            add_source(here, path, some.points, valid, volume, spec.criterion)
            for path, valid in zip(paths, (some.valid, some.clusters), strict=True)
        ]
        better = (paths[1].value < paths[0].value).nonzero()[:, 0]
        fit = paths[0].replaced(better, paths[1][better])
        wanted = torch.ones_like(left[left]) if count is None else count[live] == number
        if not wanted.any():
            continue
        end = refine_points(
            [view[wanted] for view in here],
            fit.points[wanted],
            fit.active[wanted],
            volume,
            criterion=spec.criterion,
        )
        scenes = live[wanted]
        if count is None:
            tried = room_evidence([view[wanted] for view in here], end, volume)
            tried = torch.where(end.active.all(1), tried, -torch.inf)
            evidence[scenes, number] = tried
            gains = tried > best[scenes]
            best[scenes] = torch.where(gains, tried, best[scenes])
            since[scenes] = torch.where(gains, 0, since[scenes] + 1)
            scenes, end = scenes[gains], end[gains]
        chosen = chosen.replaced(scenes, end.padded(chosen.active.shape[1]))
    return chosen, None if count is not None else (EVIDENCE_WEIGHT * evidence).softmax(dim=1)


def _fit_piloted(views: list[View], alone: list[Estimate], volume: Volume, spec: LocateSpec) -> RoomFit:
    """Fit sources that all panels know by their pilots, from the best of the panels' own estimates."""
    points, information = zip(*(_in_room(*pair) for pair in zip(views, alone, strict=True)), strict=True)
    active = torch.stack([estimate.sources.active for estimate in alone]).any(0)
    weight = torch.stack(information).sum(0)
    mean = _weighted(list(points), list(information), weight)
    best: RoomFit | None = None
    for start in (mean, *points):
        fit = refine_points(views, start, active, volume, criterion=spec.criterion, options=ROUGH)
        if best is None:
            best = fit
            continue
        scenes = (fit.value < best.value).nonzero()[:, 0]
        best = best.replaced(scenes, fit[scenes])
    assert best is not None
    return refine_points(views, best.points, active, volume, criterion=spec.criterion)


def _in_room(view: View, estimate: Estimate) -> tuple[Float[Tensor, "S K 3"], Float[Tensor, "S K 3 3"]]:
    """Positions of one panel's sources in the room, and the information that its error bars state on them."""
    found = estimate.sources
    azimuth, elevation, distance = (value.double() for value in found.filled())
    positions = torch.stack((azimuth, elevation, 1 / distance), dim=-1)
    scale = torch.ones_like(positions)
    scale[..., 2] = distance.square()  # to 1 / range
    covariance = estimate.covariance
    determined = covariance.diagonal(dim1=-2, dim2=-1).isfinite()
    both = determined[..., :, None] & determined[..., None, :]
    one = torch.eye(3, dtype=covariance.dtype, device=covariance.device)
    information = torch.where(both, torch.where(both, covariance, one).inverse(), 0)
    information = information * scale[..., :, None] * scale[..., None, :]
    jacobian = (
        coordinate_derivatives(view.pose, positions) * torch.tensor((1.0, 1.0, -1.0)).to(positions)[:, None]
    )
    return from_panel_coordinates(view.pose, positions), jacobian.mT @ information @ jacobian


def _weighted(
    points: list[Float[Tensor, "*batch 3"]],
    information: list[Float[Tensor, "*batch 3 3"]],
    total: Float[Tensor, "*batch 3 3"],
) -> Float[Tensor, "*batch 3"]:
    """Mean of points, weighted by their information; a little weight holds directions without any."""
    scale = total.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp_min(1e-30)
    one = torch.eye(3, dtype=total.dtype, device=total.device)
    weights = [part + 1e-9 * scale * one for part in information]
    summed = torch.stack([(w @ x[..., None])[..., 0] for w, x in zip(weights, points, strict=True)]).sum(0)
    return torch.linalg.solve(torch.stack(weights).sum(0), summed)


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Points of the room where a source may be.

    Args:
        points: metres, room frame.
        valid: which of them are candidates.
        clusters: which of them belong to the most consistent assignment of all panels' sources.
    """

    points: Float[Tensor, "S C 3"]
    valid: Bool[Tensor, "S C"]
    clusters: Bool[Tensor, "S C"]

    def __getitem__(self, scenes: Tensor | slice) -> _Candidates:
        return _Candidates(self.points[scenes], self.valid[scenes], self.clusters[scenes])


@dataclass(frozen=True, eq=False)
class _Ellipsoids:
    """Points with their information, and which of them are there."""

    points: Float[Tensor, "S K 3"]
    information: Float[Tensor, "S K 3 3"]
    there: Bool[Tensor, "S K"]

    def meet(self, other: _Ellipsoids) -> tuple[_Ellipsoids, Float[Tensor, "S K other"]]:
        """Weighted means of all pairs (own slow, other fast), and their squared Mahalanobis distances."""
        x, y = torch.broadcast_tensors(self.points[:, :, None], other.points[:, None])
        X, Y = torch.broadcast_tensors(self.information[:, :, None], other.information[:, None])
        mean = _weighted([x, y], [X, Y], X + Y)
        distance = torch.zeros_like(mean[..., 0])
        for point, weight in ((x, X), (y, Y)):
            off = (point - mean)[..., None]
            distance = distance + (off.mT @ weight @ off)[..., 0, 0]
        both = self.there[:, :, None] & other.there[:, None]
        both = both & (distance < _SAME_SOURCE) & mean.isfinite().all(-1)
        distance = torch.where(both, distance, torch.inf)
        pairs = _Ellipsoids(mean.flatten(1, 2), (X + Y).flatten(1, 2), both.flatten(1))
        return pairs, distance

    def cluster(self, other: _Ellipsoids) -> _Ellipsoids:
        """Sources of both, those assigned to each other as one at their weighted mean."""
        from scipy.optimize import linear_sum_assignment  # takes long to import

        pairs, distance = self.meet(other)
        S, _, J = distance.shape
        # Leaving two sources apart costs as much as the largest distance of a pair.
        cost = distance.clamp_max(_SAME_SOURCE).cpu().numpy()
        points, information, there = self.points.clone(), self.information.clone(), self.there.clone()
        rest = other.there.clone()
        for scene in range(S):
            for i, j in zip(*linear_sum_assignment(cost[scene]), strict=True):
                if cost[scene, i, j] < _SAME_SOURCE:
                    points[scene, i] = pairs.points[scene, i * J + j]
                    information[scene, i] = pairs.information[scene, i * J + j]
                    rest[scene, j] = False
        return _Ellipsoids(
            torch.cat((points, other.points), dim=1),
            torch.cat((information, other.information), dim=1),
            torch.cat((there, rest), dim=1),
        )


def _candidates(views: list[View], alone: list[Estimate]) -> _Candidates:
    """Sources of each panel, means of those of two panels that may be the same, and clusters."""
    own = [
        _Ellipsoids(*_in_room(view, estimate), estimate.sources.active)
        for view, estimate in zip(views, alone, strict=True)
    ]
    single = [one.meet(other)[0] for n, one in enumerate(own) for other in own[n + 1 :]]
    clusters = reduce(_Ellipsoids.cluster, own)
    everything = [*own, *single, clusters]
    points = torch.cat([part.points for part in everything], dim=1)
    valid = torch.cat([part.there for part in everything], dim=1)
    of_cluster = torch.zeros_like(valid)
    of_cluster[:, valid.shape[1] - clusters.there.shape[1] :] = True
    return _Candidates(torch.where(valid[..., None], points, 1.0), valid, valid & of_cluster)


def _estimate(
    views: list[View],
    alone: list[Estimate],
    solution: RoomSolution,
    probability: Float[Tensor, "S counts"] | None,
    spec: LocateSpec,
) -> RoomEstimate:
    """Order the sources by power; add error bars, received power, p-values and warnings."""
    fit, K = solution.fit, solution.fit.active.shape[1]
    seen = [panel.sources.active for panel in solution.panels]
    levels = [
        received_db(view.recording, panel.sources, panel.noise_variance)
        for view, panel in zip(views, solution.panels, strict=True)
    ]
    total = torch.stack([from_db(level).nan_to_num(0.0) for level in levels]).sum(0)
    total = torch.where(fit.active, to_db(total), -torch.inf)
    order = total.argsort(dim=1, descending=True)
    if views[0].recording.link.pilots is not None:
        order = torch.arange(K, device=order.device).expand_as(order)

    def ordered(value: Tensor) -> Tensor:
        return value.take_along_dim(order.reshape(*order.shape, *[1] * (value.ndim - 2)), dim=1)

    active, points = ordered(fit.active), ordered(fit.points)
    each = torch.arange(K, device=order.device)
    covariance = ordered(solution.covariance[:, each, :, each].transpose(0, 1))
    agreement = _agreement(views, alone, solution)
    panels = []
    for view, panel, level, value in zip(views, solution.panels, levels, solution.values, strict=True):
        here = replace(panel.sources, symbols=None).each(ordered)
        p_value = goodness_of_fit(view.recording, here)
        own, inverse_range_std = _panel_covariance(view, points, covariance, here.active)
        sentences = [[s] if (s := p_value.sentence(i)) is not None else [] for i in range(len(active))]
        panels.append(
            Estimate(
                sources=here,
                covariance=own,
                snr_db=ordered(level),
                noise_variance=panel.noise_variance,
                neg_log_likelihood=value,
                n_sources_probability=None,
                p_value=p_value.p_value,
                warnings=sentences,
                spec=spec,
                method=[spec.method] * len(active),
                pose=view.pose,
                inverse_range_std=inverse_range_std,
            )
        )
    # Errors of the pose of the first panel are in its view and not in the frame of the estimate.
    assert views[0].recording.pose is not None
    first = replace(views[0], pose=views[0].recording.pose.to(points))
    positions = to_panel_coordinates(first.pose, points)
    own, inverse_range_std = _panel_covariance(first, points, covariance, active)
    azimuth, elevation, q = torch.where(active[..., None], positions, torch.nan).unbind(-1)
    assert panels[0].sources.power is not None
    power = torch.where(active, panels[0].sources.power.nan_to_num(0.0), torch.nan)
    return RoomEstimate(
        sources=Sources(azimuth=azimuth, elevation=elevation, range=1 / q, power=power),
        covariance=own,
        snr_db=ordered(total).masked_fill(~active, torch.nan),
        noise_variance=panels[0].noise_variance,
        neg_log_likelihood=solution.values.sum(0),
        n_sources_probability=probability,
        p_value=_combined([panel.p_value for panel in panels]),
        warnings=_warnings(fit, seen, _alone(views, solution), covariance, ordered, panels, agreement),
        spec=spec,
        method=list(alone[0].method),
        pose=first.recording.pose,
        inverse_range_std=inverse_range_std,
        panels=tuple(panels),
        agreement_p_value=agreement,
        pose_p_value=torch.full_like(agreement, math.nan),
    )


def _panel_covariance(
    view: View, points: Float[Tensor, "S K 3"], covariance: Float[Tensor, "S K 3 3"], active: Tensor
) -> tuple[Float[Tensor, "S K 3 3"], Float[Tensor, "S K"]]:
    """Covariance of azimuth, elevation and range in one panel's frame, and the error bar of 1 / range."""
    positions = to_panel_coordinates(view.pose, points)
    jacobian = coordinate_derivatives(view.pose, positions)
    determined = covariance.isfinite().all(-1).all(-1)[..., None, None]
    own = jacobian @ torch.where(determined, covariance, 0) @ jacobian.mT
    scale = torch.ones_like(positions)
    scale[..., 2] = -1 / positions[..., 2].square()
    known = torch.where(determined, own * scale[..., :, None] * scale[..., None, :], torch.inf)
    std = torch.where(determined[..., 0, 0], own[..., 2, 2].clamp_min(0).sqrt(), torch.inf)
    return known.masked_fill(~active[..., None, None], torch.nan), std.masked_fill(~active, torch.nan)


def _agreement(views: list[View], alone: list[Estimate], solution: RoomSolution) -> Float[Tensor, "S"]:
    """p-value of common positions against separate ones for each panel, by the likelihood ratio."""
    excess = torch.zeros_like(solution.values[0])
    for view, panel, value, by_panel in zip(views, solution.panels, solution.values, alone, strict=True):
        seen = panel.sources.active
        positions = to_panel_coordinates(view.pose, solution.fit.points)
        free = refine(view.recording, positions, seen, HALF_SPACE, criterion="unconditional").value
        same = by_panel.n_sources == seen.sum(1)
        least = torch.where(same, torch.minimum(free, by_panel.neg_log_likelihood), free)
        excess = excess + (value - least).clamp_min(0)
    coordinates = [
        HALF_SPACE.coordinates(view.recording.panel) * panel.sources.active
        for view, panel in zip(views, solution.panels, strict=True)
    ]
    freedom = (torch.stack(coordinates).sum(0) - 3.0).clamp_min(0).sum(1)
    p_value = torch.special.gammaincc(freedom.clamp_min(1) / 2, excess)
    return torch.where(freedom > 0, p_value, 1.0)


def _alone(views: list[View], solution: RoomSolution) -> Bool[Tensor, "S K"]:
    """Sources that several panels see and one receives, which a wrong pose makes of each source.

    A panel receives a source that raises its log-likelihood by more than :data:`_RECEIVED_NATS`.
    """
    received, seen = [], []
    for view, panel, value in zip(views, solution.panels, solution.values, strict=True):
        positions = to_panel_coordinates(view.pose, solution.fit.points)
        there = panel.sources.active
        without = values_without_each(view.recording, positions, there, "unconditional")
        received.append(there & (without - value[:, None] > _RECEIVED_NATS))
        seen.append(there)
    return (torch.stack(seen).sum(0) > 1) & (torch.stack(received).sum(0) == 1)


def _combined(p_values: list[Float[Tensor, "S"]]) -> Float[Tensor, "S"]:
    """Fisher's method: -2 sum log p is chi-squared with two degrees of freedom for each p-value."""
    logs = torch.stack(p_values).clamp_min(1e-300).log()
    known = ~logs.isnan()
    number = known.sum(0)
    combined = torch.special.gammaincc(number.clamp_min(1).double(), -torch.where(known, logs, 0).sum(0))
    return torch.where(number > 0, combined, torch.nan)


def _warnings(
    fit: RoomFit,
    seen: list[Bool[Tensor, "S K"]],
    alone: Bool[Tensor, "S K"],
    covariance: Float[Tensor, "S K 3 3"],
    ordered: Callable[[Tensor], Tensor],
    panels: list[Estimate],
    agreement: Float[Tensor, "S"],
) -> list[list[str]]:
    """Warnings about each scene."""
    warnings: list[list[str]] = [[] for _ in range(len(agreement))]
    active = ordered(fit.active)
    hidden = active & ~ordered(torch.stack(seen).any(0))
    for scene, source in hidden.nonzero().tolist():
        warnings[scene].append(Reason(f"source {source} is behind all panels"))
    for scene, source in ordered(alone).nonzero().tolist():
        warnings[scene].append(
            Reason(
                f"source {source} is received by one of the panels in front of which it is: it is hidden "
                "from the others, a pose may be wrong, or the recordings may be of different sources"
            )
        )
    lost = active & ~covariance.isfinite().all(-1).all(-1)
    for scene, source in lost.nonzero().tolist():
        warnings[scene].append(f"source {source} has no error bar: the panels do not determine its position")
    for scene in (agreement < SIGNIFICANCE).nonzero()[:, 0].tolist():
        warnings[scene].append(
            Reason(
                f"the panels disagree about the positions (p = {float(agreement[scene]):.1g}): a pose may be "
                "wrong, the recordings may be of different sources, or a source is behind a panel that "
                "receives from there (as from its mirror image in front)"
            )
        )
    for number, panel in enumerate(panels):
        # No diagnosis follows that would say what a misfit comes from.
        misfit = (panel.p_value < SIGNIFICANCE).tolist()
        for scene, sentences in enumerate(panel.warnings):
            kinds = [Reason if misfit[scene] else type(sentence) for sentence in sentences]
            texts = [f"panel {number}: {sentence}" for sentence in sentences]
            warnings[scene] += [kind(text) for kind, text in zip(kinds, texts, strict=True)]
    for scene in (~fit.converged).nonzero()[:, 0].tolist():
        warnings[scene].append(Reason("the maximum-likelihood fit did not converge"))
    return warnings


def _joined(parts: list[RoomEstimate]) -> RoomEstimate:
    """Blocks of scenes put together."""
    whole = join_estimates(list(parts))
    assert isinstance(whole, RoomEstimate)
    panels = tuple(
        join_estimates([part.panels[number] for part in parts]) for number in range(len(parts[0].panels))
    )
    agreement = torch.cat([part.agreement_p_value for part in parts])
    return replace(
        whole, panels=panels, agreement_p_value=agreement, pose_p_value=torch.full_like(agreement, math.nan)
    )
