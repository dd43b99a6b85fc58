"""Losses by their definitions: with dense matrices, an assignment for each scene, and in double precision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rismusic.doctor import references as ref
from rismusic.doctor.case import Case
from rismusic.doctor.hypotheses import Definition, given, setting, step
from rismusic.estimation.grid import SearchGrid
from rismusic.nn.losses import Targets
from rismusic.nn.network import Prediction
from rismusic.sources import Sources

# Forms of the losses as documented: Huber scales, width of the heat map (grid steps), label smoothing, weight
# of the range factor, loading of MVDR, largest required eigengap.
_ANGLE_DEG, _LOG_RANGE, _WIDTH, _SMOOTHING = 5.0, 0.3, 0.6, 0.05
_RANGE_WEIGHT, _MVDR_LOADING, _MARGIN = 0.3, 0.05, 0.1


def matrices(targets: Targets, prediction: Prediction) -> tuple[Tensor, Tensor, Tensor]:
    """R_pred, R_samp and R_true as dense matrices of trace 1."""
    wide = torch.complex128
    a, b = (v.to(wide).cpu() for v in (prediction.angle_factor, prediction.range_factor))
    sample, true = (ref.unit_trace(v.dense().to(wide).cpu()) for v in (targets.sample, targets.true))
    P = ref.unit_trace(a @ a.mH + setting("the weight of the range factor", _RANGE_WEIGHT) * b @ b.mH)
    return given("R_pred", P), given("R_samp (in R_blend)", sample), given("R_true", true)


def definitions(
    case: Case, targets: Targets, prediction: Prediction, beta: float, weights: Mapping[str, float]
) -> dict[str, Definition]:
    """Every loss of a prediction.

    Args:
        case: the training.
        targets: targets of some scenes.
        prediction: of these scenes.
        beta: share of R_samp.
        weights: weights of the losses, which the assignment of heads depends on.
    """
    truth, wide = targets.truth, torch.complex128
    here = (targets.count > 0).double().cpu()

    @step("the loading and shrinkage of R_blend")
    def blend_loaded(R: Tensor) -> Tensor:
        return loaded(R)

    @step("the loading and shrinkage of R_true (it is compared with R_true as it is)")
    def target_loaded(R: Tensor) -> Tensor:
        return loaded(R)

    def loaded(R: Tensor) -> Tensor:
        share = targets.conditioning.identity.double().cpu()[:, None, None]
        return (1 - share) * R + share * torch.eye(R.shape[-1], dtype=R.dtype) / R.shape[-1]

    def blended() -> tuple[Tensor, Tensor]:
        P, sample, true = matrices(targets, prediction)
        b = setting("beta", beta)
        return blend_loaded((1 - b) * P + b * sample), target_loaded(true)

    def factors() -> tuple[Tensor, Tensor, Tensor, float]:
        q = setting("the weight of the range factor", _RANGE_WEIGHT)
        a, b = (v.to(wide).cpu() for v in (prediction.angle_factor, prediction.range_factor))
        a, b = given("the angle factor", a), given("the range factor", b)
        return a, b, (a.abs().square().sum((1, 2)) + q * b.abs().square().sum((1, 2))).square(), q

    def covariance() -> Tensor:
        return (covariance_error(*blended()) * here).mean()

    def covariance_predicted() -> Tensor:
        P, _, true = matrices(targets, prediction)
        return (covariance_error(P, true) * here).mean()

    def subspace() -> Tensor:
        R = blended()[0]
        A = given("the true steering vectors", targets.steering.to(wide).cpu())
        outside = torch.eye(R.shape[-1], dtype=wide) - A @ torch.linalg.pinv(A, rtol=1e-6)
        leaked = (outside @ R @ outside).abs().square().sum((1, 2)) / R.abs().square().sum((1, 2))
        return (leaked * here).mean()

    def coherence(x: Tensor) -> Tensor:
        gram = (x.mH @ x).abs().square()
        return gram.sum((1, 2)) - gram.diagonal(dim1=1, dim2=2).sum(1)

    def orthogonality() -> Tensor:
        a, b, trace, q = factors()
        return ((coherence(a) + q**2 * coherence(b)) / trace).mean()

    def cross() -> Tensor:
        a, b, trace, q = factors()
        return (2 * q * (a.mH @ b).abs().square().sum((1, 2)) / trace).mean()

    found: dict[str, Definition] = {
        "covariance": covariance,
        "covariance_predicted": covariance_predicted,
        "subspace": subspace,
        "eigengap": lambda: _eigengap(*blended(), targets).mean(),
        "orthogonality": orthogonality,
        "cross": cross,
        "peak_contrast": lambda: _peak_contrast(case, targets, *blended()),
        "count": lambda: _count_loss(targets, prediction),
        "heat_map": lambda: _heat_map_loss(case, truth, prediction),
    }
    for name in ("angle", "log_range", "existence"):
        found[name] = partial(head_loss, name, truth, prediction, weights)
    return found


def covariance_error(R: Tensor, T: Tensor) -> Tensor:
    """Errors of diagonal and rest, each relative to that of T, in the mean."""

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        level = x.diagonal(dim1=-2, dim2=-1)
        return level.abs().square().sum(-1), (x - torch.diag_embed(level)).abs().square().sum((-2, -1))

    (on, off), (level, rest) = parts(R - T), parts(T)
    whole = level + rest
    return (on / level + off / torch.where(rest > 1e-6 * whole, rest, whole)) / 2


def _count_loss(targets: Targets, prediction: Prediction) -> Tensor:
    """Divergence from labels of the number of sources, which are smoothed."""
    logits = given("the logits of the number", prediction.count_logits.double().cpu())
    smoothing = setting("the label smoothing", _SMOOTHING)
    K = given("the number of sources", (~targets.truth.azimuth.isnan()).sum(-1).cpu())
    hard = torch.nn.functional.one_hot(K, logits.shape[1]).double()
    t = hard * (1 - smoothing) + smoothing / logits.shape[1]
    return (torch.special.xlogy(t, t) - t * logits.log_softmax(-1)).sum(-1).mean()


def _eigengap(R: Tensor, T: Tensor, targets: Targets) -> Tensor:
    """Hinge of lambda_K - lambda_K+1, sorted explicitly."""
    K = targets.count.cpu().clamp_min(1)[:, None]

    def gap(matrix: Tensor) -> Tensor:
        falling = torch.linalg.eigvalsh(matrix).sort(dim=-1, descending=True).values
        return (falling.gather(1, K - 1) - falling.gather(1, K))[:, 0]

    wanted = gap(T).clamp_max(setting("the margin of the eigengap", _MARGIN))
    return (wanted - gap(R)).relu() / (wanted + 1e-6)


def _peak_contrast(case: Case, targets: Targets, R: Tensor, T: Tensor) -> Tensor:
    """Divergence of MVDR spectra on the 5 x 5 cells around each source, the mean over all."""
    grid, truth = case.learner.grid, targets.truth
    spec = case.spec.system.panel
    elements, N = ref.element_positions(spec), R.shape[-1]
    identity = torch.eye(N, dtype=R.dtype) / N
    shift = torch.arange(-2, 3, dtype=torch.float64)
    scenes = []
    for s in range(len(R)):
        found = []
        for k in (~truth.azimuth[s].isnan()).nonzero()[:, 0]:
            azimuth, elevation, distance = (
                float(v[s, k]) for v in (truth.azimuth, truth.elevation, truth.range)
            )
            u_x = math.sin(azimuth) * math.cos(elevation) + grid.step[0] * shift.repeat_interleave(5)
            u_y = math.sin(elevation) + grid.step[1] * shift.repeat(5)
            across = torch.hypot(u_x, u_y)
            scale = torch.where(across > 1 - 1e-6, (1 - 1e-6) / across, 1)
            u_x, u_y = u_x * scale, u_y * scale
            up = (1 - u_x.square() - u_y.square()).sqrt()
            a = ref.steering_vectors(
                *(elements, spec.wavelength_m, torch.atan2(u_x, up), torch.asin(u_y)),
                torch.full_like(u_x, distance),
                uniform=spec.wave == "uniform",
            )
            logs = []
            for matrix in (R[s], T[s]):
                share = setting("the loading of MVDR", _MVDR_LOADING)
                loaded = (matrix + share * identity) / (1 + share)
                value = 1 / (a.conj() * torch.linalg.solve(loaded, a)).sum(0).real
                logs.append(value.log().log_softmax(0))
            found.append((logs[1].exp() * (logs[1] - logs[0])).sum())
        scenes.append(torch.stack(found).mean() if found else torch.zeros((), dtype=torch.float64))
    return torch.stack(scenes).mean()


def huber(x: Tensor) -> Tensor:
    """Huber's function with its edge at 1."""
    return torch.where(x.abs() <= 1, x.square() / 2, x.abs() - 0.5)


@step("the wrapping of angles")
def _wrapped(x: Tensor) -> Tensor:
    low = setting("the lowest wrapped angle (rad)", -math.pi)
    return torch.remainder(x - low, 2 * math.pi) + low


def head_loss(which: str, truth: Sources, prediction: Prediction, weights: Mapping[str, float]) -> Tensor:
    """Loss of angle, log-range or existence, with an assignment for each scene."""
    total = torch.zeros((), dtype=torch.float64)
    S, Q = prediction.azimuth.shape
    azimuth, elevation, q, exists = (
        given(name, value.double().cpu())
        for name, value in (
            ("the azimuth of the heads", prediction.azimuth),
            ("the elevation of the heads", prediction.elevation),
            ("the inverse range of the heads", prediction.inverse_range),
            ("the existence of the heads", prediction.existence_logits),
        )
    )
    true = [
        given(f"the true {name}", getattr(truth, name).double().cpu())
        for name in ("azimuth", "elevation", "range")
    ]
    for s in range(S):
        here = (~truth.azimuth[s].isnan()).nonzero()[:, 0]
        turn = [
            _wrapped(one[s][:, None] - two[s][here])
            for one, two in ((azimuth, true[0]), (elevation, true[1]))
        ]
        scale = setting("the angle scale of Huber's loss (deg)", _ANGLE_DEG)
        angle = (huber(torch.rad2deg(turn[0]) / scale) + huber(torch.rad2deg(turn[1]) / scale)) / 2
        log_distance = (q[s][:, None] * true[2][s][here]).log()
        log_range = huber(log_distance / setting("the scale of log-range", _LOG_RANGE))
        e = exists[s]
        K = max(1, len(here))
        cost = (weights.get("angle", 0.0) * angle + weights.get("log_range", 0.0) * log_range) / K
        cost = cost - weights.get("existence", 0.0) / Q * e[:, None]
        rows, columns = linear_sum_assignment(cost.detach().numpy())
        if which == "existence":
            taken = torch.zeros(Q, dtype=torch.bool)
            taken[rows] = True
            one = (1 + torch.where(taken, -e, e).exp()).log().mean()
        else:
            one = (angle if which == "angle" else log_range)[rows, columns].sum() / K
        total = total + one
    return total / S


@step("the conversion of angles to direction cosines (the target is at the angles)")
def _place(position: Tensor) -> Tensor:
    """u_x, u_y and 1 / r at azimuth, elevation and 1 / r."""
    azimuth, elevation, q = position
    return torch.stack((azimuth.sin() * elevation.cos(), elevation.sin(), q))


def heat_map_targets(grid: SearchGrid, truth: Sources) -> Tensor:
    """Sources spread over the grid points around them, [S, P] of sum 1; 0 without any inside."""
    targets = []
    X, Y, Z = grid.shape
    inside = grid.inside.cpu().view(X, Y, Z)
    axes = [axis.double().cpu() for axis in (grid.u_x, grid.u_y, grid.q)]
    for s in range(len(truth.azimuth)):
        target = torch.zeros(X, Y, Z, dtype=torch.float64)
        for k in (~truth.azimuth[s].isnan()).nonzero()[:, 0]:
            position = torch.stack([v[s, k] for v in (truth.azimuth, truth.elevation, 1 / truth.range)])
            width, parts = setting("the width of the heat map in grid steps", _WIDTH), []
            for axis, at, pitch in zip(axes, _place(position.double().cpu()), grid.step, strict=True):
                part = (-((axis - at) / (width * pitch)).square() / 2).exp()
                parts.append(part / part.sum().clamp_min(1e-300))
            target += torch.einsum("x,y,z->xyz", *parts)
        target = target * inside
        targets.append(target / target.sum() if float(target.sum()) else target)
    return torch.stack(targets).flatten(1)


def _heat_map_loss(case: Case, truth: Sources, prediction: Prediction) -> Tensor:
    """Divergence of the heat maps from their targets."""
    maps, inside = prediction.grid_logits, case.learner.grid.inside.cpu()
    assert maps is not None
    t = heat_map_targets(case.learner.grid, truth)[:, None, inside]
    log_share = maps.double().cpu()[..., inside].log_softmax(-1)
    scene = (torch.special.xlogy(t, t) - t * log_share).sum(-1)
    return (scene * (t.sum(-1) > 0)).mean()
