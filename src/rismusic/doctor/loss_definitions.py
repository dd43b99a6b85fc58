"""Losses by their definitions: with dense matrices, an assignment for each scene, and in double precision."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rismusic.doctor import references as ref
from rismusic.doctor.case import Case
from rismusic.nn.losses import Targets
from rismusic.nn.network import Prediction
from rismusic.sources import Sources

# Forms of the losses as documented: Huber scales, width of the heat map (grid steps), label smoothing, weight
# of the range factor, loading of MVDR, largest required eigengap.
_ANGLE_DEG, _LOG_RANGE, _WIDTH, _SMOOTHING = 5.0, 0.3, 0.6, 0.05
RANGE_WEIGHT, _MVDR_LOADING, _MARGIN = 0.3, 0.05, 0.1


def matrices(targets: Targets, prediction: Prediction) -> tuple[Tensor, Tensor, Tensor]:
    """R_pred, R_samp and R_true as dense matrices of trace 1."""
    wide = torch.complex128
    a, b = (v.to(wide).cpu() for v in (prediction.angle_factor, prediction.range_factor))
    sample, true = (ref.unit_trace(v.dense().to(wide).cpu()) for v in (targets.sample, targets.true))
    return ref.unit_trace(a @ a.mH + RANGE_WEIGHT * b @ b.mH), sample, true


def loaded(R: Tensor, targets: Targets) -> Tensor:
    """Matrices with the share of the identity that the targets' conditioning has."""
    share = targets.conditioning.identity.double().cpu()[:, None, None]
    return (1 - share) * R + share * torch.eye(R.shape[-1], dtype=R.dtype) / R.shape[-1]


def covariance_error(R: Tensor, T: Tensor, targets: Targets, *, target_loaded: bool = True) -> float:
    """Mean error of R against T, each loaded, over the scenes with a source."""
    error = _covariance_error(loaded(R, targets), loaded(T, targets) if target_loaded else T)
    return float((error * (targets.count > 0).cpu()).mean())


def defined(
    case: Case, targets: Targets, prediction: Prediction, beta: float, weights: Mapping[str, float]
) -> dict[str, float]:
    """Every loss of a prediction.

    Args:
        case: the training.
        targets: targets of some scenes.
        prediction: of these scenes.
        beta: share of R_samp.
        weights: weights of the losses, which the assignment of heads depends on.
    """
    P, sample, true = matrices(targets, prediction)
    R, T = loaded((1 - beta) * P + beta * sample, targets), loaded(true, targets)
    here, N = (targets.count > 0).double().cpu(), P.shape[-1]
    A = targets.steering.to(P.dtype).cpu()
    outside = torch.eye(N, dtype=P.dtype) - A @ torch.linalg.pinv(A, rtol=1e-6)
    leaked = (outside @ R @ outside).abs().square().sum((1, 2)) / R.abs().square().sum((1, 2))
    a, b = (v.to(P.dtype).cpu() for v in (prediction.angle_factor, prediction.range_factor))
    trace = (a.abs().square().sum((1, 2)) + RANGE_WEIGHT * b.abs().square().sum((1, 2))).square()

    def coherence(x: Tensor) -> Tensor:
        gram = (x.mH @ x).abs().square()
        return gram.sum((1, 2)) - gram.diagonal(dim1=1, dim2=2).sum(1)

    truth = targets.truth
    found = {
        "covariance": (_covariance_error(R, T) * here).mean(),
        "covariance_predicted": (_covariance_error(P, true) * here).mean(),
        "subspace": (leaked * here).mean(),
        "eigengap": _eigengap(R, T, targets).mean(),
        "orthogonality": ((coherence(a) + RANGE_WEIGHT**2 * coherence(b)) / trace).mean(),
        "cross": (2 * RANGE_WEIGHT * (a.mH @ b).abs().square().sum((1, 2)) / trace).mean(),
        "peak_contrast": _peak_contrast(case, targets, R, T),
        "count": count_loss(truth, prediction),
    }
    values = {name: float(value) for name, value in found.items()}
    if prediction.grid_logits is not None:
        values["heat_map"] = _heat_map_loss(case, truth, prediction)
    return values | _head_losses(truth, prediction, weights)


def _covariance_error(R: Tensor, T: Tensor) -> Tensor:
    """Errors of diagonal and rest, each relative to that of T, in the mean."""

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        level = x.diagonal(dim1=-2, dim2=-1)
        return level.abs().square().sum(-1), (x - torch.diag_embed(level)).abs().square().sum((-2, -1))

    (on, off), (level, rest) = parts(R - T), parts(T)
    whole = level + rest
    return (on / level + off / torch.where(rest > 1e-6 * whole, rest, whole)) / 2


def count_loss(truth: Sources, prediction: Prediction, smoothing: float = _SMOOTHING) -> Tensor:
    """Divergence from labels of the number of sources, which are smoothed."""
    logits = prediction.count_logits.double().cpu()
    t = torch.full_like(logits, smoothing / logits.shape[1])
    t[torch.arange(len(t)), (~truth.azimuth.isnan()).sum(-1).cpu()] += 1 - smoothing
    return (torch.special.xlogy(t, t) - t * logits.log_softmax(-1)).sum(-1).mean()


def _eigengap(R: Tensor, T: Tensor, targets: Targets) -> Tensor:
    """Hinge of lambda_K - lambda_K+1, sorted explicitly."""
    K = targets.count.cpu().clamp_min(1)[:, None]

    def gap(matrix: Tensor) -> Tensor:
        falling = torch.linalg.eigvalsh(matrix).sort(dim=-1, descending=True).values
        return (falling.gather(1, K - 1) - falling.gather(1, K))[:, 0]

    wanted = gap(T).clamp_max(_MARGIN)
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
                loaded = (matrix + _MVDR_LOADING * identity) / (1 + _MVDR_LOADING)
                value = 1 / (a.conj() * torch.linalg.solve(loaded, a)).sum(0).real
                logs.append(value.log().log_softmax(0))
            found.append((logs[1].exp() * (logs[1] - logs[0])).sum())
        scenes.append(torch.stack(found).mean() if found else torch.zeros((), dtype=torch.float64))
    return torch.stack(scenes).mean()


def _huber(x: Tensor) -> Tensor:
    return torch.where(x.abs() <= 1, x.square() / 2, x.abs() - 0.5)


def _head_losses(truth: Sources, prediction: Prediction, weights: Mapping[str, float]) -> dict[str, float]:
    """Losses of angle, log-range and existence, with an assignment for each scene."""
    totals = {"angle": 0.0, "log_range": 0.0, "existence": 0.0}
    S, Q = prediction.azimuth.shape
    for s in range(S):
        here = (~truth.azimuth[s].isnan()).nonzero()[:, 0]

        def of(value: Tensor, s: int = s) -> Tensor:
            return value[s].double().cpu()

        turn = [
            torch.remainder(of(one)[:, None] - of(two)[here] + math.pi, 2 * math.pi) - math.pi
            for one, two in ((prediction.azimuth, truth.azimuth), (prediction.elevation, truth.elevation))
        ]
        angle = sum((_huber(torch.rad2deg(one) / _ANGLE_DEG) for one in turn), torch.zeros(())) / 2
        distance = of(prediction.inverse_range)[:, None] * of(truth.range)[here]
        log_range = _huber(distance.log() / _LOG_RANGE)
        e = of(prediction.existence_logits)
        K = max(1, len(here))
        cost = (weights.get("angle", 0.0) * angle + weights.get("log_range", 0.0) * log_range) / K
        cost = cost - weights.get("existence", 0.0) / Q * e[:, None]
        rows, columns = linear_sum_assignment(cost.numpy())
        totals["angle"] += float(angle[rows, columns].sum()) / K
        totals["log_range"] += float(log_range[rows, columns].sum()) / K
        sign = torch.ones(Q, dtype=torch.float64)
        sign[rows] = -1
        totals["existence"] += float((1 + (sign * e).exp()).log().mean())
    return {name: value / S for name, value in totals.items()}


def heat_map_targets(case: Case, truth: Sources) -> Tensor:
    """Sources spread over the grid points around them, [S, P] of sum 1; 0 without any inside."""
    grid, targets = case.learner.grid, []
    X, Y, Z = grid.shape
    inside = grid.inside.cpu().view(X, Y, Z)
    axes = [axis.double().cpu() for axis in (grid.u_x, grid.u_y, grid.q)]
    for s in range(len(truth.azimuth)):
        target = torch.zeros(X, Y, Z, dtype=torch.float64)
        for k in (~truth.azimuth[s].isnan()).nonzero()[:, 0]:
            azimuth, elevation, distance = (
                float(v[s, k]) for v in (truth.azimuth, truth.elevation, truth.range)
            )
            place = (math.sin(azimuth) * math.cos(elevation), math.sin(elevation), 1 / distance)
            parts = []
            for axis, at, step in zip(axes, place, grid.step, strict=True):
                part = (-(((axis - at) / (_WIDTH * step)) ** 2) / 2).exp()
                parts.append(part / part.sum().clamp_min(1e-300))
            target += torch.einsum("x,y,z->xyz", *parts)
        target = target * inside
        targets.append(target / target.sum() if float(target.sum()) else target)
    return torch.stack(targets).flatten(1)


def _heat_map_loss(case: Case, truth: Sources, prediction: Prediction) -> float:
    """Divergence of the heat maps from their targets."""
    maps, inside = prediction.grid_logits, case.learner.grid.inside.cpu()
    assert maps is not None
    total = 0.0
    for t, scene in zip(heat_map_targets(case, truth)[:, inside], maps.double().cpu(), strict=True):
        for logits in scene if float(t.sum()) else ():
            log_share = logits[inside].log_softmax(-1)
            total += float((torch.special.xlogy(t, t) - t * log_share).sum()) / maps.shape[1]
    return total / len(maps)
