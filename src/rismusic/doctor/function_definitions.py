"""Definitions of single functions of the package, from their documentation, in double precision.

Each takes the arguments of the function by name, and its result if it asks for ``result``. It returns the
right result, or parts of it by name, each alone or as a pair of found and right value; ``None`` where the
definition does not apply. Covariances are dense matrices. For the check see
:mod:`rismusic.doctor.function_checks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.func import functional_call

from rismusic.crb import recording_crb
from rismusic.doctor import references as ref
from rismusic.doctor.hypotheses import given, setting, step
from rismusic.doctor.state import names
from rismusic.estimation.grid import SearchGrid
from rismusic.estimation.spectra import music, rap_music_sources
from rismusic.metrics import match, score
from rismusic.nn import validation
from rismusic.nn.data import channel_dropout
from rismusic.nn.losses import Targets
from rismusic.nn.validation import covariance_statistics
from rismusic.simulation.random_numbers import Draws, Stream
from rismusic.sources import Sources
from rismusic.spec import limits

DEFINITIONS: dict[str, Callable[..., Any]] = {}
"""By module and name of the function, such as ``array:Panel.wavenumber``."""

# Least noise variance of the network's input, and share of the signal.
_LEAST_NOISE, _LEAST_SIGNAL = 1e-5, 0.1
# The largest share of the identity in a conditioned covariance, as documented.
_IDENTITY = 0.25
# Forms of the losses: Huber scales, width of the heat map (grid steps), label smoothing, largest eigengap.
_ANGLE_DEG, _LOG_RANGE, _WIDTH, _SMOOTHING, _MARGIN = 5.0, 0.3, 0.6, 0.05, 0.1
# Default largest distance of a hit in each angle.
_GATE_DEG = 5.0
# Standard errors that a statistic of random numbers may reach.
_ERRORS = 6.0
# Share of the energy of the grid's steering vectors that their basis may leave out.
_LEFT_OUT = 2.5e-3
# Step of numerical derivatives.
_STEP = 1e-5
# Iterations of the estimate of the noise variance, candidates of the first draw of positions.
_NOISE_STEPS, _CANDIDATES = 30, 8


def _of(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(define: Callable[..., Any]) -> Callable[..., Any]:
        DEFINITIONS[name] = define
        return define

    return decorate


def _energy(x: Tensor) -> Tensor:
    return x.abs().square().sum((-2, -1))


def _identity(R: Tensor) -> Tensor:
    return torch.eye(R.shape[-1], dtype=R.dtype)


# Units, geometry, steering vectors, grid.


_of("array:from_db")(lambda level_db: torch.pow(10.0, level_db / 10))
_of("array:to_db")(lambda ratio: 10 * ratio.log() / math.log(10))
_of("array:Panel.wavenumber")(lambda self: 2 * math.pi / self.wavelength)


@_of("array:direction")
def _direction(azimuth: Tensor, elevation: Tensor) -> Any:
    return azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos()


def _plain(panel: Any) -> bool:
    wave = panel.wave in ("spherical", "uniform") and not panel.pattern_exponent
    return wave and panel.subcarriers == 1 and panel.elements.ndim == 2


@_of("array:steering")
def _steering(panel: Any, azimuth: Tensor, elevation: Tensor, range: Tensor) -> Any:
    if not _plain(panel) or not bool(range.isfinite().all()):
        return None
    elements, uniform = panel.elements.double().cpu(), panel.wave == "uniform"
    return ref.steering_vectors(elements, panel.wavelength, azimuth, elevation, range, uniform=uniform)


@_of("array:steering_with_log_derivatives")
def _log_derivatives(panel: Any, azimuth: Tensor, elevation: Tensor, range: Tensor) -> Any:
    """Numerical derivatives, by 1 / range for the range."""
    position = (azimuth, elevation, 1 / range)
    A, slopes = _steering(panel, azimuth, elevation, range), []
    if A is None:
        return None
    for n in (0, 1, 2):
        moved = [[one + turn * (m == n) for m, one in enumerate(position)] for turn in (_STEP, -_STEP)]
        ends = [_steering(panel, x, y, 1 / q) for x, y, q in moved]
        slopes.append((ends[0] - ends[1]) / (2 * _STEP * A))
    return A, torch.stack(slopes, -1)


@_of("array:_Rays.__init__")
def _rays(self: Any, panel: Any, towards: tuple[Tensor, ...], inverse: Tensor) -> Any:
    if not _plain(panel):
        return None
    p = panel.elements.double().cpu()
    # Directions in single precision are unit vectors up to rounding only.
    twice = 2 * (torch.stack(towards, -1) * p).sum(-1) - inverse * p.square().sum(-1)
    ratio = (1 - inverse * twice).sqrt()
    gain = {} if panel.wave == "uniform" else {"gain": (self.gain, 1 / ratio)}
    return {"difference": (self.difference, twice / (1 + ratio)), **gain}


@_of("array:_Rays.unit_wave")
def _unit_wave(self: Any) -> Any:
    if not _plain(self._panel):
        return None
    gain = torch.ones_like(self.difference) if self.gain is None else self.gain
    phase = 2 * math.pi / self._panel.wavelength * self.difference.double()
    return torch.polar(gain.double() / gain.double().square().sum(-1, keepdim=True).sqrt(), phase)


@_of("estimation.grid:to_cosines")
def _to_cosines(azimuth: Tensor, elevation: Tensor, range: Tensor) -> Any:
    return azimuth.sin() * elevation.cos(), elevation.sin(), 1 / range


@_of("estimation.grid:from_cosines")
def _from_cosines(u_x: Tensor, u_y: Tensor, q: Tensor) -> Any:
    up = (1 - u_x.square() - u_y.square()).clamp_min(0).sqrt()
    return None if float(up.min()) < 1e-2 else (torch.atan2(u_x, up), torch.asin(u_y), 1 / q)


@_of("estimation.grid:Volume.clamp")
def _clamp(self: Any, azimuth: Tensor, elevation: Tensor, range: Tensor) -> Any:
    if self.azimuth_max >= math.pi:
        return None
    limits = ((self.azimuth_max,) * 2, (self.elevation_max,) * 2, (-self.range_min, self.range_max))
    positions = (azimuth, elevation, range)
    return tuple(
        torch.where(x > high, high, torch.where(x < -low, -low, x))
        for x, (low, high) in zip(positions, limits, strict=True)
    )


@_of("estimation.grid:Volume.from_spec")
def _volume(spec: Any) -> Any:
    if hasattr(spec, "unknowns"):
        return None
    ends = {"range_min": spec.range_min_m, "range_max": spec.range_max_m}
    ends |= {"azimuth_max": math.radians(spec.azimuth_max_deg)}
    return {**ends, "elevation_max": math.radians(spec.elevation_max_deg)}


@_of("estimation.grid:SearchGrid.cover")
def _cover(panel: Any, volume: Any, oversampling: float, result: Any) -> Any:
    x, y = math.sin(volume.azimuth_max), math.sin(volume.elevation_max)
    ends = {"u_x": (-x, x), "u_y": (-y, y), "q": (1 / volume.range_max, 1 / volume.range_min)}
    spread = panel.elements[:, :2].double().std(0, unbiased=False).tolist()
    axes, numbers = {}, {}
    for n, (name, (low, high)) in enumerate(ends.items()):
        number = len(getattr(result, name))
        step = (high - low) / number
        place = setting("the place of a point in its cell", 0.5)
        axes[name] = low + step * (torch.arange(number).double() + place)
        axes[f"step of {name}"] = (result.step[n], step)
        if n < 2 and spread[n] > 0:
            width = panel.wavelength / (math.sqrt(12) * spread[n])
            wanted = max(1, math.ceil((high - low) * setting("oversampling", oversampling) / width - 1e-9))
            numbers[f"number of points along {name}"] = (float(number), float(wanted))
    return {**numbers, **axes}


@_of("estimation.grid:SearchGrid.__post_init__")
def _grid(self: Any) -> Any:
    if self.angular:
        return None
    u_x, u_y, q = (one.flatten() for one in torch.meshgrid(self.u_x, self.u_y, self.q, indexing="ij"))
    lowest = (u_y.abs() - self.step[1] / 2).clamp_min(0)
    reach = math.sin(self.volume.azimuth_max) * (1 - lowest.square()).sqrt() + self.step[0] / 2
    inside = (u_x.abs() <= reach) & (u_x.square() + u_y.square() < 1)
    up = (1 - u_x.square() - u_y.square()).clamp_min(1e-30).sqrt()
    found = {"azimuth": torch.atan2(u_x, up), "elevation": u_y.asin(), "range": 1 / q}
    parts = {name: (getattr(self, name)[inside], value[inside]) for name, value in found.items()}
    return {"inside": inside.double(), **parts}


def _at_places(grid: SearchGrid, values: Tensor, found: Tensor, right: Tensor) -> Any:
    """Cells of the chosen points; of points of one height, any."""
    _, Y, Z = grid.shape
    maps, found = values.cpu().reshape(len(right), -1), found.cpu().reshape(len(right), -1)
    if found.shape != right.shape:
        return {"number of points": (torch.tensor(found.shape[1]), torch.tensor(right.shape[1]))}
    inside = grid.inside.cpu()
    same = (maps.gather(1, found) == maps.gather(1, right)) & inside[found]
    cells = [torch.stack((i // (Y * Z), i // Z % Y, i % Z), -1).double() for i in (found, right)]
    cells[1][same] = cells[0][same]
    return {"cells (u_x, u_y, 1 / r) of the points": (cells[0], cells[1])}


_APART = "the least distance of two peaks (beam widths)"


@_of("estimation.grid:_chosen")
def _chosen(box: Tensor, grid: Any, count: int, separation: float, result: Tensor) -> Any:
    maps = given("the map", box.flatten(1).double().cpu())
    right = ref.peaks(grid, maps, count, setting(_APART, separation))
    return _at_places(grid, box, result, right)


@_of("estimation.grid:highest_points")
def _highest_points(values: Tensor, grid: Any, count: int, result: Tensor) -> Any:
    maps = given("the map", values.reshape(-1, values.shape[-1]).double().cpu())
    return _at_places(grid, values, result, ref.peaks(grid, maps, count, setting(_APART, 0.5)))


# Sources.


@_of("sources:Sources.steering")
def _steering_of_sources(self: Sources, panel: Any) -> Any:
    if not _plain(panel) or self.azimuth.ndim != 2:
        return None
    return ref.true_steering(
        self, panel.elements.double().cpu(), panel.wavelength, uniform=panel.wave == "uniform"
    )


_of("sources:Sources.active")(lambda self: self.azimuth == self.azimuth)


@_of("sources:Sources.filled")
def _filled(self: Sources) -> Any:
    return tuple(
        one.nan_to_num(nan=free)
        for one, free in ((self.azimuth, 0.0), (self.elevation, 0.0), (self.range, 1.0))
    )


@_of("sources:Sources.position")
def _position(self: Sources) -> Tensor:
    return torch.stack([u * self.range for u in _direction(self.azimuth, self.elevation)], -1)


# Covariances.


_of("covariance:squared_modulus")(lambda values: values.abs().square())
_of("covariance:Covariance.normalised")(lambda self: ref.unit_trace(self))
_of("covariance:Covariance.trace")(lambda self: self.diagonal(dim1=-2, dim2=-1).real.sum(-1))
_of("covariance:Conditioning.identity")(lambda self: 1 - (1 - self.shrinkage) / (1 + self.loading))
_of("nn.losses:inner")(lambda first, second: (first @ second).diagonal(dim1=-2, dim2=-1).real.sum(-1))


@_of("covariance:true_covariance")
def _true(steering: Tensor, power: Tensor) -> Tensor:
    powers = torch.where(power.isnan(), 0, power).to(steering.dtype)
    return (steering * powers[..., None, :]) @ steering.mH


@_of("covariance:predicted_covariance")
def _predicted(angle_factor: Tensor, range_factor: Tensor) -> Tensor:
    weight = setting("the weight of the range factor", 0.3)
    return angle_factor @ angle_factor.mH + range_factor @ range_factor.mH * weight


@_of("covariance:load_and_shrink")
def _conditioned(covariance: Tensor, conditioning: Any) -> Tensor:
    e, r = conditioning.loading[..., None, None], conditioning.shrinkage[..., None, None]
    one = _identity(covariance) / covariance.shape[-1]
    return (1 - r) / (1 + e) * (ref.unit_trace(covariance) + e * one) + r * one


@_of("covariance:blend")
def _blend(predicted: Tensor, sample: Tensor, beta: Any) -> Tensor:
    b = beta[..., None, None] if isinstance(beta, Tensor) else setting("beta", beta)
    return (1 - b) * ref.unit_trace(predicted) + b * ref.unit_trace(sample)


def _in_double(own: Any) -> Any:
    return replace(own, **{name: value.double().cpu() for name, value in vars(own).items()})


@_of("covariance:BackProjection.covariance")
def _of_fields(self: Any) -> Tensor:
    return torch.einsum("sln,slm->snm", self.field, self.field.conj()) / self.field.shape[1]


@_of("covariance:Covariance.eigen")
def _eigen(self: Tensor, count: int, result: Any) -> Any:
    values, U = (one.cpu() for one in result)
    U, falling = U.to(self.dtype), torch.linalg.eigvalsh(self).flip(-1)[..., :count]
    return {
        "eigenvalues": (values, falling),
        "R U and U times the eigenvalues": (self @ U, U * falling[..., None, :]),
    }


@_of("covariance:Covariance.inverse_root")
def _inverse_root(self: Tensor, result: Tensor, loading: Tensor) -> Any:
    inverse = torch.linalg.inv(self) * loading[..., None, None]
    return {"V V^H": (result @ result.mH, _identity(self) - inverse)}


def _matrices(link: Any) -> Tensor | None:
    """G_l of a plain link through a channel."""
    if link.channel is None or link.weights is not None or link.pilots is not None or link.subcarriers > 1:
        return None
    H = link.channel.to(torch.complex128)[..., None, :, :]
    G: Tensor = H if link.codes is None else H * link.codes.to(torch.complex128)[..., :, None, :]
    return None if link.coherent else G


@_of("covariance:back_project")
def _back_projected(link: Any, snapshots: Tensor, noise_variance: Tensor) -> Any:
    G = _matrices(link)
    if G is None or snapshots.ndim != 3:
        return None
    G = G.expand(*snapshots.shape[:2], *G.shape[-2:])
    field, W = ref.back_projection(G, snapshots.to(torch.complex64).to(torch.complex128), noise_variance)
    share = noise_variance * W.abs().square().sum((2, 3)).mean(1) / field.abs().square().sum(-1).mean(-1)
    return {"field": field, "noise_share": share.clamp(0, 1), "coverage": min(1.0, G.shape[-2] / G.shape[-1])}


@_of("covariance:conditioning")
def _conditioning(projected: Any, full_shrinkage: bool) -> Any:
    nu, (L, N) = projected.noise_share, projected.field.shape[-2:]
    if full_shrinkage:
        return None
    size = ref.covariance_of(projected.field).abs().square().sum((1, 2)) - 1 / L - 1 / N
    error = nu * (2 - nu) / L
    d = torch.maximum(size, ((1 - nu) * projected.coverage).square() / L)
    share = setting("the largest share of the identity", _IDENTITY)
    loading = nu.clamp_max(share / (1 - share))
    shrinkage = torch.minimum(error / (error + d), 1 - (1 - share) * (1 + loading))
    return {"loading": loading, "shrinkage": shrinkage}


# The link.


@_of("operator:Link.apply")
def _apply(self: Any, field: Tensor) -> Any:
    return None if (G := _matrices(self)) is None else (G @ field[..., None])[..., 0]


@_of("operator:Link.adjoint")
def _adjoint(self: Any, received: Tensor) -> Any:
    return None if (G := _matrices(self)) is None else (G.mH @ received[..., None])[..., 0]


@_of("operator:Link.matmul")
def _matmul(self: Any, matrix: Tensor) -> Any:
    return None if (G := _matrices(self)) is None else G @ matrix[..., None, :, :]


_of("operator:Link.dense")(lambda self: _matrices(self))


# Losses.


@_of("nn.losses:covariance_error")
def _covariance_error(covariance: Tensor, target: Tensor) -> Tensor:
    """Errors of diagonal and rest, each relative to that of the target, in the mean."""

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        level = x.diagonal(dim1=-2, dim2=-1)
        return level.abs().square().sum(-1), (x - torch.diag_embed(level)).abs().square().sum((-2, -1))

    R, T = ref.unit_trace(covariance), ref.unit_trace(target)
    (on, off), (level, rest) = parts(R - T), parts(T)
    whole = level + rest
    return (on / level + off / torch.where(rest > 1e-6 * whole, rest, whole)) / 2


@_of("nn.losses:steering_basis")
def _basis(steering: Tensor, result: Tensor) -> Any:
    return {"Q Q^H": (result @ result.mH, steering @ torch.linalg.pinv(steering, rtol=1e-4))}


_of("nn.losses:subspace_leakage")(lambda covariance, basis: _outside(covariance, basis @ basis.mH))


def _outside(R: Tensor, projector: Tensor) -> Tensor:
    outside = _identity(R) - projector
    return _energy(outside @ R @ outside) / _energy(R)


@_of("nn.losses:eigenvalue_gap")
def _gap_found(covariance: Tensor, count: Tensor, result: Tensor) -> Any:
    order = " (negative: eigenvalues in another order, eigh ascends)" if float(result.min()) < -1e-6 else ""
    return {f"the gap{order}": (result, _gap(covariance, count))}


def _gap(covariance: Tensor, count: Tensor) -> Tensor:
    falling = torch.linalg.eigvalsh(ref.unit_trace(covariance)).sort(dim=-1, descending=True).values
    last = count.long().clamp_min(1)[..., None]
    return (falling.gather(-1, last - 1) - falling.gather(-1, last))[..., 0]


@_of("nn.losses:eigengap_hinge")
def _hinge(covariance: Tensor, target: Tensor, count: Tensor, margin: float) -> Tensor:
    wanted = _gap(target, count).clamp_max(margin)
    return (wanted - _gap(covariance, count)).clamp_min(0) / (wanted + 1e-6)


@_of("nn.losses:mvdr_value")
def _mvdr(covariance: Tensor, steering: Tensor) -> Tensor:
    return 1 / (steering.conj() * torch.linalg.solve(covariance, steering)).sum(-2).real


@_of("nn.losses:peak_contrast")
def _contrast(covariance: Tensor, target: Tensor, around: Tensor) -> Tensor:
    logs = []
    for R in (covariance, target):
        share = setting("the loading of MVDR", 0.05)
        loaded = (ref.unit_trace(R) + share * _identity(R) / R.shape[-1]) / (1 + share)
        solved = torch.linalg.solve(loaded[..., None, :, :], around.transpose(-3, -2)).transpose(-3, -2)
        spectrum = 1 / (around.conj() * solved).sum(-3).real
        logs.append(spectrum.log().log_softmax(-1))
    return (logs[1].exp() * (logs[1] - logs[0])).sum(-1)


def _coherence(x: Tensor) -> Tensor:
    gram = (x.mH @ x).abs().square()
    return gram.sum((-2, -1)) - gram.diagonal(dim1=-2, dim2=-1).sum(-1)


def _trace(a: Tensor, b: Tensor) -> Tensor:
    return (_energy(a) + 0.3 * _energy(b)).square()


@_of("nn.losses:factor_coherence")
def _within(angle_factor: Tensor, range_factor: Tensor) -> Tensor:
    both = _coherence(angle_factor) + 0.3**2 * _coherence(range_factor)
    return both / _trace(angle_factor, range_factor)


@_of("nn.losses:cross_coherence")
def _across(angle_factor: Tensor, range_factor: Tensor) -> Tensor:
    return 2 * 0.3 * _energy(angle_factor.mH @ range_factor) / _trace(angle_factor, range_factor)


_huber = _of("nn.losses:_huber")(lambda x: torch.where(x.abs() <= 1, x.square() / 2, x.abs() - 0.5))


@step("the wrapping of angles")
def _wrapped(x: Tensor) -> Tensor:
    low = setting("the lowest wrapped angle (rad)", -math.pi)
    return torch.remainder(x - low, 2 * math.pi) + low


_of("array:wrapped")(lambda azimuth: torch.atan2(azimuth.sin(), azimuth.cos()))


@_of("nn.losses:_mean")
def _mean(errors: Tensor, partner: Tensor, active: Tensor) -> Tensor:
    paired = torch.stack([errors[s][row, range(errors.shape[2])] for s, row in enumerate(partner.long())])
    return torch.where(active, paired, 0).sum(-1) / active.sum(-1).clamp_min(1)


@_of("nn.losses:assign")
def _assign(cost: Tensor, result: Tensor) -> Any:
    found = cost.gather(1, result.long()[:, None, :])[:, 0].sum(-1)
    least = [one[linear_sum_assignment(one)].sum() for one in cost.numpy()]
    return {"least total cost": (found, torch.tensor(least, dtype=torch.float64))}


@_of("nn.losses:match_heads")
def _matched(prediction: Any, truth: Any, weights: tuple[float, ...], result: Any) -> Any:
    named = dict(zip(("angle", "log_range", "existence"), weights, strict=True))
    right = _head_losses(truth, prediction, named)
    return {name: (getattr(result, name), right[name]) for name in named}


def _head_losses(truth: Sources, prediction: Any, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Losses of angle, log-range and existence of each scene, with an assignment by Hungarian algorithm."""
    found: dict[str, list[Tensor]] = {"angle": [], "log_range": [], "existence": []}
    azimuth = given("the azimuth of the heads", prediction.azimuth.double().cpu())
    elevation = given("the elevation of the heads", prediction.elevation.double().cpu())
    q = given("the inverse range of the heads", prediction.inverse_range.double().cpu())
    exists = given("the existence of the heads", prediction.existence_logits.double().cpu())
    names = ("azimuth", "elevation", "range")
    true = [given(f"the true {name}", getattr(truth, name).double().cpu()) for name in names]
    for s, e in enumerate(exists):
        here = (~truth.azimuth[s].isnan()).nonzero()[:, 0]
        K, Q = max(1, len(here)), len(e)
        scale = setting("the angle scale of Huber's loss (deg)", _ANGLE_DEG)
        turn = [
            _huber(torch.rad2deg(_wrapped(one[s][:, None] - two[s][here])) / scale)
            for one, two in ((azimuth, true[0]), (elevation, true[1]))
        ]
        angle = (turn[0] + turn[1]) / 2
        log_distance = q[s][:, None].log() + true[2][s][here].log()
        log_range = _huber(log_distance / setting("the scale of log-range", _LOG_RANGE))
        cost = (weights.get("angle", 0.0) * angle + weights.get("log_range", 0.0) * log_range) / K
        cost = cost - weights.get("existence", 0.0) / Q * e[:, None]
        rows, columns = linear_sum_assignment(cost.detach().numpy())
        taken = torch.zeros(Q, dtype=torch.bool)
        taken[rows] = True
        found["angle"].append(angle[rows, columns].sum() / K)
        found["log_range"].append(log_range[rows, columns].sum() / K)
        found["existence"].append((1 + torch.where(taken, -e, e).exp()).log().mean())
    return {name: torch.stack(values) for name, values in found.items()}


@step("the conversion of angles to direction cosines (the target is at the angles)")
def _place(position: Tensor) -> Tensor:
    """u_x, u_y and 1 / r at azimuth, elevation and 1 / r."""
    azimuth, elevation, q = position
    return torch.stack((azimuth.sin() * elevation.cos(), elevation.sin(), q))


@_of("nn.losses:heat_map_target")
def _spread(truth: Sources, grid: SearchGrid) -> Tensor:
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


@_of("nn.losses:heat_map_divergence")
def _divergence(logits: Tensor, target: Tensor, grid: Any) -> Tensor:
    inside = grid.inside.cpu()
    t, share = target[..., inside], logits[..., inside].log_softmax(-1)
    return (torch.special.xlogy(t, t) - t * share).sum(-1)


@_of("nn.losses:count_divergence")
def _count(logits: Tensor, count: Tensor, smoothing: float) -> Tensor:
    hard = torch.nn.functional.one_hot(count.long(), logits.shape[-1]).double()
    t = hard * (1 - smoothing) + smoothing / logits.shape[-1]
    return (torch.special.xlogy(t, t) - t * logits.log_softmax(-1)).sum(-1)


@_of("nn.losses:Targets.of")
def _targets(recording: Any, result: Any) -> Any:
    truth, panel = recording.truth, recording.panel
    names = [n for n in ("azimuth", "elevation", "range", "power") if getattr(truth, n) is not None]
    found = {n: (getattr(result.truth, n), getattr(truth, n).double()) for n in names}
    if _plain(panel):
        elements, uniform = panel.elements.double().cpu(), panel.wave == "uniform"
        A = ref.true_steering(truth, elements, panel.wavelength, uniform=uniform)
        found["steering"] = (result.steering, A)
        p = torch.where(truth.azimuth.isnan(), 0, truth.power).to(A.dtype)
        R = torch.einsum("snk,sk,smk->snm", A, p, A.conj())
        found["R_true"] = (ref.dense(result.true), R / R.diagonal(dim1=1, dim2=2).sum(1)[:, None, None])
    return found


_of("nn.losses:Targets.count")(lambda self: (~self.truth.azimuth.isnan()).sum(-1))


@_of("nn.losses:Targets.around")
def _around(self: Any, result: Tensor) -> Any:
    truth, here = self.truth, ~self.truth.azimuth.isnan()
    u_x, u_y, q = _to_cosines(truth.azimuth.double(), truth.elevation.double(), truth.range.double())
    n = torch.arange(-2, 3).double()
    x = (u_x[..., None] + self.grid.step[0] * n.repeat_interleave(5))[here]
    y = (u_y[..., None] + self.grid.step[1] * n.repeat(5))[here]
    visible = x.square() + y.square() < 0.99  # the others are at the horizon, by a rule of the grid's own
    x, y = torch.where(visible, x, 0), torch.where(visible, y, 0)
    at = torch.atan2(x, (1 - x.square() - y.square()).sqrt()), y.asin(), (1 / q[here])[:, None].expand_as(x)
    A = _steering(self.grid.panel, *at)
    if A is None or not bool(visible.any()):
        return None
    found = result.transpose(1, 2)[here]
    return {"vectors": (torch.where(visible[:, None], found, 0), torch.where(visible[:, None], A, 0))}


@_of("nn.losses:_Structure.__init__")
def _structure_start(self: Any, targets: Any) -> Any:
    T, c = ref.dense(targets.true), targets.conditioning
    return {"R_true, loaded and shrunk": (ref.dense(self._true), _target_loaded(T, c))}


@_of("nn.losses:_Structure.of")
def _structure(self: Any, covariance: Tensor, result: Mapping[str, Tensor]) -> Any:
    T, count = given("R_true", ref.dense(self._true)), self._targets.count
    found = {
        "covariance": _covariance_error(covariance, T),
        "eigengap": _hinge(covariance, T, count, setting("the margin of the eigengap", _MARGIN)),
    }
    return {name: (result[name], value) for name, value in found.items() if name in result}


@_of("nn.losses:total_loss")
def _total(prediction: Any, targets: Any, beta: float, result: Any) -> Any:
    own = loss_terms(prediction, targets, beta, {str(name): one for name, one in result.weights.items()})
    parts: dict[str, Any] = {name: (value, own[name]) for name, value in result.terms.items()}
    total = sum(result.weights[n] * v.double() for n, v in result.terms.items())
    return {**parts, "total": (result.total, total)}


@step("the loading and shrinkage of R_blend")
def _blend_loaded(R: Tensor, conditioning: Any) -> Tensor:
    return _conditioned(R, conditioning)


@step("the loading and shrinkage of R_true (it is compared with R_true as it is)")
def _target_loaded(R: Tensor, conditioning: Any) -> Tensor:
    return _conditioned(R, conditioning)


_of("nn.losses:Targets.conditioned")(
    lambda self: _target_loaded(ref.dense(self.true), _in_double(self.conditioning))
)


def loss_terms(
    prediction: Any, targets: Any, beta: float, weights: Mapping[str, float]
) -> dict[str, Callable[[], Tensor]]:
    """Every loss of a prediction by its definition; the assignment of heads depends on the weights."""
    around = targets.around().to(torch.complex128).cpu()
    number = (~targets.truth.azimuth.isnan()).sum(-1).cpu()
    conditioning = _in_double(targets.conditioning)

    a, b = (v.to(torch.complex128).cpu() for v in (prediction.angle_factor, prediction.range_factor))

    def factors() -> tuple[Tensor, Tensor]:
        return given("the angle factor", a), given("the range factor", b)

    def covariances() -> tuple[Tensor, Tensor, Tensor]:
        sample, true = (ref.dense(one) for one in (targets.sample, targets.true))
        P = given("R_pred", ref.unit_trace(_predicted(a, b)))
        return P, given("R_samp (in R_blend)", sample), given("R_true", true)

    def blended() -> tuple[Tensor, Tensor]:
        P, sample, true = covariances()
        return _blend_loaded(_blend(P, sample, beta), conditioning), _target_loaded(true, conditioning)

    def subspace() -> Tensor:
        A = given("the true steering vectors", targets.steering.to(torch.complex128).cpu())
        return _outside(blended()[0], A @ torch.linalg.pinv(A, rtol=1e-6)).mean()

    def contrast() -> Tensor:
        here = ~targets.truth.azimuth.isnan().cpu()
        return (torch.where(here, _contrast(*blended(), around), 0).sum(-1) / here.sum(-1)).mean()

    def heat_map() -> Tensor:
        target = _spread(targets.truth, targets.grid)[:, None]
        return _divergence(prediction.grid_logits.double().cpu(), target, targets.grid).mean()

    def count() -> Tensor:
        K = given("the number of sources", number)
        logits = given("the logits of the number", prediction.count_logits.double().cpu())
        return _count(logits, K, setting("the label smoothing", _SMOOTHING)).mean()

    def heads(name: str) -> Tensor:
        return _head_losses(targets.truth, prediction, weights)[name].mean()

    return {
        "covariance": lambda: _covariance_error(*blended()).mean(),
        "covariance_predicted": lambda: _covariance_error(*covariances()[::2]).mean(),
        "subspace": subspace,
        "eigengap": lambda: _hinge(*blended(), number, _MARGIN).mean(),
        "orthogonality": lambda: _within(*factors()).mean(),
        "cross": lambda: _across(*factors()).mean(),
        "peak_contrast": contrast,
        "count": count,
        "heat_map": heat_map,
        **{name: partial(heads, name) for name in ("angle", "log_range", "existence")},
    }


# Statistics on the grid, and the network.


_of("estimation.sbl:sbl_update")(lambda power, matched, expected: power * matched / expected)


def _in_basis(statistics: Any) -> Tensor:
    grid, panel = statistics.grid, statistics.grid.panel
    at = [value.cpu() for value in (grid.azimuth, grid.elevation, grid.range)]
    elements, uniform = panel.elements.double().cpu(), panel.wave == "uniform"
    a = ref.steering_vectors(elements, panel.wavelength, *at, uniform=uniform)
    return statistics.basis.to(torch.complex128).cpu().mH @ a


def _energies(statistics: Any, scenes: Any, power: Tensor) -> tuple[Tensor, Tensor]:
    B, y = scenes.fields.to(torch.complex128), scenes.data.to(torch.complex128)
    noise, a = scenes.noise_variance.double(), _in_basis(statistics)
    return ref.grid_statistics(B, y, noise, a, power, scenes.repeats)


_of("nn.statistics:GridStatistics.__call__")(lambda self, scenes, power: _energies(self, scenes, power))


@_of("nn.statistics:GridStatistics.scale_power")
def _scaled(scenes: Any, share: Tensor) -> Tensor:
    energy = scenes.data.abs().square().sum((1, 2, 3))
    signal = energy - scenes.data[0].numel() * given("the noise variance", scenes.noise_variance)
    least = setting("the least share of signal", _LEAST_SIGNAL) * energy
    gains = given("the gains", scenes.gain)
    return share * (torch.maximum(signal, least) / (share * gains).sum(-1))[:, None]


@_of("nn.statistics:GridStatistics.uniform_power")
def _uniform(self: Any, scenes: Any) -> Tensor:
    return _scaled(scenes, self.grid.inside.cpu().double().expand_as(scenes.gain))


@_of("nn.statistics:GridStatistics.observe")
def _observed(self: Any, recording: Any, result: Any) -> Any:
    y = recording.snapshots.to(torch.complex128).cpu()
    power = y.abs().square().mean((1, 2))
    found = {"data": (result.data.abs().square().sum((1, 2, 3)), torch.full_like(power, y[0].numel()))}
    if recording.noise_variance is not None:
        relative = recording.noise_variance.double().cpu() / power
        found["noise_variance"] = (result.noise_variance, relative.clamp_min(_LEAST_NOISE))
    B = result.fields.to(torch.complex128)
    gain = (B @ _in_basis(self)).abs().square().sum((1, 2)) * result.repeats
    found["gain"] = (result.gain, gain.expand(len(y), -1))
    if (G := _matrices(recording.link)) is not None:
        fields = G @ self.basis.to(torch.complex128).cpu()
        size = fields.abs().square().sum((-3, -2, -1), keepdim=True).sqrt()
        unit = B / B.abs().square().sum((1, 2, 3), keepdim=True).sqrt()
        found["fields"] = (unit, (fields / size).expand_as(B))
    return found


def _hermitian(packed: Tensor) -> Tensor:
    return torch.complex((packed + packed.mT) / 2, (packed - packed.mT) / 2)


@_of("nn.statistics:GridStatistics._whitened")
def _whitened(scenes: Any, packed: Tensor) -> Any:
    B, y = scenes.fields.to(torch.complex128), scenes.data.to(torch.complex128)
    noise = given("the noise variance", scenes.noise_variance.double())[:, None, None, None]
    R = B @ _hermitian(packed)[:, None] @ B.mH + noise * torch.eye(B.shape[2], dtype=B.dtype)
    solved = torch.linalg.solve(R, B)
    inner = (B.mH @ solved).sum(1)
    return (y.mH @ solved).flatten(1, 2), inner.real + inner.imag


_of("nn.statistics:GridStatistics._energy")(lambda self, rows: (rows @ _in_basis(self)).abs().square().sum(1))


@_of("nn.statistics:GridStatistics._covariance")
def _packed_covariance(self: Any, power: Tensor) -> Tensor:
    a = _in_basis(self)
    C = torch.einsum("dp,sp,ep->sde", a, power.to(a.dtype), a.conj())
    return C.real + C.imag


@_of("nn.statistics:GridStatistics._quadratic")
def _form(self: Any, packed: Tensor) -> Tensor:
    a = _in_basis(self)
    return (a.conj() * (_hermitian(packed) @ a)).real.sum(1)


@_of("nn.statistics:GridStatistics.sbl_steps")
def _iterated(self: Any, scenes: Any, power: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        matched, expected = _energies(self, scenes, power)
        power = power * matched / expected
    return power


@_of("nn.network:Network.initial_statistics")
def _initial(self: Any, result: Any) -> Any:
    scenes, maps, found = result
    scenes = replace(scenes, **{name: value.cpu() for name, value in vars(scenes).items()})
    power = _uniform(self._statistics, scenes)
    logs, here = [], self.grid.inside.cpu()
    for turn in range(self.spec.sbl_iterations):
        matched, expected = _energies(self._statistics, scenes, power)
        if not turn:
            logs = [_log(matched / expected), _log(expected * power)]
        power = power * matched / expected
    pairs = {"powers after the SBL steps": (found, power)}
    return {**pairs, "input maps": (maps[..., here], torch.stack(logs, 1)[..., here])}


_log = _of("nn.network:_log")(lambda value: value.clamp_min(1e-30).log().clamp(-8, 8))


def _of_factors(prediction: Any) -> Tensor:
    factors = (
        getattr(prediction, f"{name}_factor").to(torch.complex128).cpu() for name in ("angle", "range")
    )
    return ref.unit_trace(_predicted(*factors))


_of("nn.network:Prediction.covariance")(lambda self: _of_factors(self))


@_of("nn.network:Prediction.blended")
def _blended(self: Any, sample: Any, conditioning: Any, beta: Any) -> Tensor:
    return _blend_loaded(_blend(_of_factors(self), ref.dense(sample), beta), _in_double(conditioning))


@_of("nn.network:Network.__init__")
def _network(self: Any, grid: Any) -> Any:
    X, Y, Z = grid.shape
    x, y = (2 * torch.arange(n).double() / max(n - 1, 1) - 1 for n in (X, Y))
    reached = grid.inside.cpu().view(X, Y, Z).sum(-1) > 0
    place = torch.stack((x[:, None].expand(X, Y), y.expand(X, Y), reached.double()))
    return {"coordinates and inside of the cells": (self.place, place)}


def _gram(V: Tensor) -> tuple[Tensor, Tensor]:
    """The Gram matrix of columns, and that of orthonormal ones or of 0."""
    gram = V.mH @ V
    return gram, torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1).real.round()).to(gram.dtype)


@_of("nn.statistics:GridStatistics.__init__")
def _grid_statistics(self: Any, grid: Any) -> Any:
    """The basis is orthonormal, up to columns of 0, and spans the steering vectors of the grid."""
    B, here = self.basis.to(torch.complex128).cpu(), grid.inside.cpu()
    a = _steering(grid.panel, *(getattr(grid, n).cpu()[here] for n in ("azimuth", "elevation", "range")))
    found = {"Gram matrix of the basis": _gram(B)}
    if a is None:
        return found
    energy = float((B.mH @ a).abs().square().sum()) / a.shape[1]
    return found | {
        "energy of the steering in the basis": (energy, energy if energy > 1 - _LEFT_OUT else 1.0)
    }


@_of("nn.network:Network._reset")
def _initial_weights(self: Any) -> Any:
    """Standard deviations over 1 / sqrt(inputs): 1, in output layers 0.1; biases 0 and scales of norms 1."""
    found: dict[str, Any] = {}
    for name, weight in self.named_parameters():
        value = weight.detach().double().cpu()
        if weight.ndim == 1:
            usual = float("norm" in name.split(".")[-2] and name.endswith("weight"))
            found[f"initial {name}"] = (value, torch.full_like(value, usual))
            continue
        output = name.startswith("details.") or ".write." in name or name == "count.2.weight"
        size, usual = float((value.square().mean() * value[0].numel()).sqrt()), 0.1 if output else 1.0
        # Of n numbers, the standard deviation is known to 1 / sqrt(2 n) of itself.
        known = abs(size / usual - 1) < _ERRORS / math.sqrt(2 * value.numel())
        found[f"standard deviation of the initial {name} times the root of its inputs"] = (
            size,
            size if known else usual,
        )
    return found


@_of("nn.network:_dropout")
def _dropped(branch: Tensor, mask: Tensor | None, row: int) -> Tensor:
    return branch if mask is None else branch * mask[:, row, :, None]


@_of("nn.network:interpolated")
def _interpolated(grid: Any, logits: Tensor, index: Tensor, shift: Tensor | None) -> Any:
    return ref.interpolated(grid, logits, index.long(), shift)


# Data, schedules, random numbers and simulated scenes.


@_of("nn.data:learning_rate_factor")
def _rate(spec: Any, step: int, steps: int) -> float:
    return float(ref.planned_rate_factors(spec, steps)[step])


_of("nn.data:_interpolate")(lambda ends, progress: (1 - progress) * ends[0] + progress * ends[1])
_of("nn.data:_ramp")(lambda spec: max(2, math.ceil(spec.beta_ramp * spec.epochs)))


@_of("nn.data:weights_at")
def _weights(loss: Any, spec: Any, epoch: int, beta: float, result: Mapping[str, float]) -> Any:
    planned = ref.planned_weights(loss, spec, epoch, beta)
    return {name: (value, planned[name]) for name, value in result.items()}


@_of("nn.data:channel_dropout")
def _masks(spec: Any, draws: Draws) -> Tensor:
    uniform = draws.uniform(Stream.DROPOUT, spec.stages, spec.depth, 2, spec.width).double()
    p = setting("the probability of the dropout", spec.dropout)
    return torch.where(uniform < p, 0.0, 1 / (1 - p))


@_of("nn.data:TrainingScenes.scene_ranges")
def _ranges(self: Any, epoch: int, step: int, result: list[range]) -> Any:
    spec, (rank, world) = self.spec, (self.group.rank, self.group.world_size)
    first = (epoch * spec.scenes_per_epoch if spec.fresh else 0) + step * spec.batch * spec.accumulation
    own = [range(first + n * spec.batch, first + (n + 1) * spec.batch) for n in range(spec.accumulation)]
    size = spec.batch // world
    numbers = [[one.start + rank * size, one.start + rank * size + size - 1] for one in own]
    found = [[one[0], one[-1]] for one in result]
    return {"first and last scene of each batch": (torch.tensor(found), torch.tensor(numbers))}


@_of("nn.data:TrainingScenes.noise_hidden")
def _hidden(self: Any, epoch: int, step: int, result: list[bool]) -> Any:
    spec = self.spec
    first = (epoch * spec.steps_per_epoch + step) * spec.accumulation
    numbers = first + torch.arange(spec.accumulation)
    turn = Draws(spec.seed, "train", numbers).uniform(Stream.HIDDEN_NOISE, 1)[:, 0]
    return {"hidden batches": (torch.tensor(result).double(), (turn < spec.hidden_noise).double())}


@_of("nn.data:with_estimated_noise")
def _estimated(recording: Any) -> Any:
    return None if (noise := _guess(recording)) is None else {"noise_variance": noise}


@_of("nn.data:TrainingScenes._network_input")
def _entered(self: Any, recording: Any, hide_noise: bool, result: Any) -> Any:
    if self.spec.system.hardware.response_error:
        return None
    names = ("snapshots", "channel", "codes")
    pairs = {n: (getattr(result, n), v) for n in names if (v := getattr(recording, n)) is not None}
    noise = _guess(recording) if hide_noise else recording.noise_variance
    return pairs | ({} if noise is None else {"noise variance": (result.noise_variance, noise)})


@_of("nn.data:TrainingScenes.scored")
def _scored_scenes(self: Any, result: Any) -> Any:
    """Of every second scene, the network gets an estimate of the noise variance."""
    if self.spec.system.hardware.response_error or (noise := _guess(result[0])) is None:
        return None
    odd = torch.arange(len(noise)) % 2 == 1
    right = torch.where(odd, noise, result[0].noise_variance.double().cpu())
    number = float(len(result[0])), float(self.spec.scored_scenes)
    return {"number of scenes": number, "noise variance": (result[1].noise_variance, right)}


@_of("estimation.noise:guess_noise")
def _guess(recording: Any) -> Any:
    y, H = recording.snapshots.to(torch.complex128).cpu(), recording.channel
    if H is None or H.ndim != 3 or recording.link.coherent:
        return None
    Q = H.to(torch.complex128).cpu() @ H.to(torch.complex128).cpu().mH
    Q = Q / Q.diagonal(dim1=1, dim2=2).real.mean(1)[:, None, None]
    forms_of = (_identity(Q).expand_as(Q), Q)
    S, powers = torch.einsum("slm,sln->smn", y, y.conj()) / y.shape[1], []
    powers = [y.abs().square().mean((1, 2)) / 2] * 2
    for _ in range(_NOISE_STEPS):
        inverse = torch.linalg.inv(sum(p[:, None, None] * X for p, X in zip(powers, forms_of, strict=True)))
        inside = inverse @ S @ inverse
        traces = [[torch.einsum("smn,snm->s", A, X).real for A in (inside, inverse)] for X in forms_of]
        powers = [p * (top / bottom).sqrt() for p, (top, bottom) in zip(powers, traces, strict=True)]
    return powers[0]


def _threefry(key: tuple[Any, Any], x: tuple[Any, Any]) -> tuple[Any, Any]:
    """Threefry-2x32 with 13 rounds (Salmon et al. 2011), on unsigned integers of 64 bits."""
    full = np.uint64(0xFFFFFFFF)
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint64(0x1BD11BDA))
    a, b = (x[0] + keys[0]) & full, (x[1] + keys[1]) & full
    for turn, rotate in enumerate((13, 15, 26, 6, 17, 29, 16, 24, 13, 15, 26, 6, 17)):
        a = (a + b) & full
        b = (((b << np.uint64(rotate)) | (b >> np.uint64(32 - rotate))) & full) ^ a
        if turn % 4 == 3:
            n = turn // 4 + 1
            a, b = (a + keys[n % 3]) & full, (b + keys[(n + 1) % 3] + np.uint64(n)) & full
    return a, b


def _unsigned(value: Tensor) -> Any:
    return value.cpu().numpy().astype(np.int64).astype(np.uint64) & np.uint64(0xFFFFFFFF)


def _numbers(value: Any) -> Tensor:
    return torch.from_numpy(value.astype(np.float64))


@_of("simulation.random_numbers:Draws.__init__")
def _key(self: Draws, seed: int, split: str, scenes: Tensor) -> Any:
    number = {"train": 0, "validation": 1, "test": 2, "link": 3}[split]
    low, high = np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)
    key = _threefry((low, high), (np.uint64(0), np.uint64(number)))
    right = _threefry(key, (_unsigned(scenes.long()), _unsigned(scenes.long() >> 32)))
    found = [_numbers(_unsigned(one)) for one in self._key]
    return {f"key {n}": (one, _numbers(two)) for n, (one, two) in enumerate(zip(found, right, strict=True))}


@_of("simulation.random_numbers:Draws.words")
def _words(self: Draws, stream: int, count: int, skip: int, result: Tensor) -> Any:
    zero, pairs = np.uint64(0), (count + 1) // 2
    one, two = _threefry((_unsigned(self._key[0]), _unsigned(self._key[1])), (zero, np.uint64(int(stream))))
    counter = np.arange(skip, skip + pairs, dtype=np.uint64)[None]
    right = np.concatenate(_threefry((one[:, None], two[:, None]), (counter, np.zeros_like(counter))), 1)
    return {"words": (_numbers(_unsigned(result)), _numbers(right[:, :count]))}


@_of("simulation.random_numbers:Draws.uniform")
def _uniform_draw(self: Draws, stream: Any, shape: tuple[int, ...], skip: int) -> Tensor:
    words = _unsigned(self.words(stream, math.prod(shape), skip)) & np.uint64(0x7FFFFF)
    return ((_numbers(words) + 0.5) / 2**23).view(-1, *shape)


@_of("simulation.random_numbers:Draws.integers")
def _integers(self: Draws, stream: Any, high: int, shape: tuple[int, ...]) -> Tensor:
    words = _unsigned(self.words(stream, math.prod(shape))) * np.uint64(high)
    return _numbers(words >> np.uint64(32)).view(-1, *shape)


@_of("simulation.random_numbers:Draws.octets")
def _octets(self: Draws, stream: Any, levels: int, shape: tuple[int, ...]) -> Tensor:
    words = _unsigned(self.words(stream, (math.prod(shape) + 3) // 4)).astype("<u4")
    return _numbers(words.view(np.uint8)[:, : math.prod(shape)] % levels).reshape(-1, *shape)


@_of("simulation.random_numbers:Draws.complex_normal")
def _normal(self: Draws, stream: Any, shape: tuple[int, ...]) -> Tensor:
    words = _unsigned(self.words(stream, 2 * math.prod(shape))) & np.uint64(0x7FFFFF)
    one, two = ((_numbers(words) + 0.5) / 2**23).chunk(2, dim=1)
    radius = (-one.log()).sqrt()
    return torch.polar(radius, 2 * math.pi * two).view(-1, *shape)


@_of("simulation.scene:_positions")
def _drawn(spec: Any, active: Tensor, draws: Draws) -> Any:
    most = active.shape[1]
    turn = draws.uniform(Stream.POSITIONS, _CANDIDATES, most, 3, dtype=torch.float64).cpu()
    reach = {name: math.radians(getattr(spec, f"{name}_max_deg")) for name in ("azimuth", "elevation")}
    low = [setting(f"the lowest {name} (rad)", -one) for name, one in reach.items()]
    high = [setting(f"the highest {name} (rad)", one) for name, one in reach.items()]
    ends = turn.new_tensor([[*low, spec.range_min_m], [*high, spec.range_max_m]])
    sets, chosen = ends[0] + turn * (ends[1] - ends[0]), []
    least = math.radians(setting("the separation (deg)", spec.separation_deg))
    for s, candidates in enumerate(sets):
        here = active[s].nonzero()[:, 0]
        for places in candidates:
            gaps = [(places[i, :2] - places[j, :2]).abs().amax() for i in here for j in here if i < j]
            if all(float(gap) >= least for gap in gaps):
                chosen.append(places)
                break
        else:
            return None
    return torch.stack(chosen)


@_of("simulation.scene:_powers")
def _powers(spec: Any, distance: Tensor, active: Tensor, draws: Draws) -> Tensor:
    level = -20 * distance.log10() if spec.power == "path_loss" else torch.zeros_like(distance)
    if spec.power_spread_db > 0:
        turn = draws.uniform(Stream.POWERS, distance.shape[-1]).double().cpu()
        level = level + spec.power_spread_db * (turn - 0.5)
    power = torch.pow(10.0, level / 10) * active
    return power / (power.sum(-1, keepdim=True) / active.sum(-1, keepdim=True))


@_of("simulation.scene:draw_codes")
def _codes(panel: Any, spec: Any, draws: Draws) -> Any:
    return _random_codes(panel.rows * panel.columns, spec, draws) if spec.kind == "random" else None


@_of("simulation.scene:_random")
def _random_codes(size: int, spec: Any, draws: Draws) -> Any:
    if spec.bits != "continuous" and spec.bits > 8:
        return None
    if spec.bits == "continuous":
        turns = draws.uniform(Stream.CODES, spec.snapshots, size).double().cpu()
    else:
        turns = draws.octets(Stream.CODES, 2**spec.bits, spec.snapshots, size).double().cpu() / 2**spec.bits
    return torch.polar(torch.ones_like(turns), 2 * math.pi * turns)


@_of("simulation.scene:dft_codes")
def _beams(rows: int, columns: int, beams: Tensor) -> Tensor:
    b, number = beams.long()[..., None], torch.arange(rows * columns)
    turns = (b % columns) * (number % columns) / columns + (b // columns) * (number // columns) / rows
    return torch.polar(torch.ones_like(turns).double(), -2 * math.pi * turns.double())


@_of("simulation.scene:draw_symbols")
def _symbols(kind: str, sources: int, snapshots: int, draws: Draws, correlation: float) -> Any:
    if kind == "qpsk":
        quarter = draws.integers(Stream.SYMBOLS, 4, sources, snapshots).double().cpu()
        return torch.polar(torch.ones_like(quarter), math.pi / 2 * (quarter + 0.5))
    if kind != "gaussian" or correlation:
        return None
    return draws.complex_normal(Stream.SYMBOLS, sources, snapshots).to(torch.complex128).cpu()


@_of("simulation.scene:draw_sources")
def _sources(spec: Any, sources: Any, snapshots: int, draws: Draws, result: Any) -> Any:
    fewest, most = limits(sources)
    number = fewest + draws.integers(Stream.COUNT, most - fewest + 1).double().cpu()
    found = {"number of sources": ((~result.azimuth.isnan()).double().sum(-1), number)}
    unit = _symbols(spec.symbols, most, snapshots, draws, spec.correlation)
    if unit is not None:
        found["symbols"] = (result.symbols, unit * result.power.double().cpu().sqrt()[..., None])
    return found


@_of("simulation.scene:line_of_sight")
def _sight(panel: Any, spec: Any, draws: Draws) -> Any:
    turn = 2 * draws.uniform(Stream.STATION, 2).double().cpu() - 1
    limit = turn.new_tensor([spec.azimuth_max_deg, spec.elevation_max_deg]).deg2rad()
    azimuth, elevation = (turn * limit).unbind(-1)
    centre = spec.distance_m * torch.stack(_direction(azimuth, elevation), -1)
    number = torch.arange(spec.antennas).double()
    along = -(number - (spec.antennas - 1) / 2) * spec.antenna_spacing_wavelengths * panel.wavelength
    antennas = centre[:, None] + torch.stack((along, 0 * along, 0 * along), -1)
    d = (antennas[:, :, None] - panel.elements.double().cpu()).square().sum(-1).sqrt()
    return torch.polar(torch.ones_like(d), -2 * math.pi / panel.wavelength * (d - spec.distance_m))


@_of("simulation.scene:draw_channel")
def _channel(panel: Any, spec: Any, draws: Draws) -> Any:
    if spec.kind == "direct" or panel.subcarriers > 1:
        return None
    scatter = draws.complex_normal(Stream.SCATTER, spec.antennas, panel.size).to(torch.complex128).cpu()
    low, high = limits(spec.rician_factor_db)
    turn = draws.uniform(Stream.RICIAN_FACTOR, 1, 1).double().cpu()
    share = 1 / (1 + torch.pow(10.0, -(low + (high - low) * turn) / 10))
    if spec.kind == "rayleigh":
        return scatter
    return share.sqrt() * _sight(panel, spec, draws) + (1 - share).sqrt() * scatter


@_of("simulation.simulator:Simulator._receive")
def _received(self: Any, sources: Any, acting: Any, actual: Any, draws: Draws) -> Any:
    G = _matrices(actual)
    if G is None or not _plain(acting) or self.spec.impulses.fraction > 0:
        return None
    elements, uniform = acting.elements.double().cpu(), acting.wave == "uniform"
    A = ref.true_steering(sources, elements, acting.wavelength, uniform=uniform)
    s = torch.where(sources.azimuth.isnan()[..., None], 0, sources.symbols).to(torch.complex128)
    clean = torch.einsum("slmn,snk,skl->slm", G.expand(len(s), *G.shape[-3:]), A, s)
    low, high = limits(self.spec.snr_db)
    low = setting("the lower limit of the SNR (dB)", low)
    high = setting("the upper limit of the SNR (dB)", high)
    level = low + (high - low) * draws.uniform(Stream.SNR).double().cpu()
    noise = clean.abs().square().mean((1, 2)) / torch.pow(10.0, level / 10)
    n = draws.complex_normal(Stream.NOISE, *clean.shape[1:]).to(torch.complex128).cpu()
    return clean + noise.sqrt()[:, None, None] * n, noise


@_of("simulation.simulator:Simulator.__call__")
def _simulated(self: Any, scenes: Tensor, result: Any) -> Any:
    draws = Draws(self.seed, self.split, scenes.long().to(self.device))
    snapshots = result.snapshots.shape[1]
    truth = self._truth(scenes.long().to(self.device), snapshots, draws)
    nominal, acting, actual = self._fixed or self._link(draws)
    received = self._receive(truth, acting, actual, draws)
    names = ("azimuth", "elevation", "range", "power", "symbols")
    pairs = {f"{name} of the labels": (getattr(result.truth, name), getattr(truth, name)) for name in names}
    parts = {"channel": nominal.channel, "codes": nominal.codes}
    parts |= {"snapshots": received[0], "noise_variance": received[1]}
    return pairs | {n: (getattr(result, n), value) for n, value in parts.items() if value is not None}


# Validation and scores.


@_of("metrics:match")
def _matching(truth: Sources, found: Sources, gate_deg: float, result: Any) -> Any:
    """As many hits as possible, and of these the least total distance."""
    if gate_deg == signature(match).parameters["gate_deg"].default:
        gate_deg = _GATE_DEG  # documented; the default is part of what is tested
    gate = setting("the gate (rad)", math.radians(gate_deg))
    own = [torch.stack((one.azimuth, one.elevation, one.range), -1).double().cpu() for one in (truth, found)]
    partner = torch.full(own[0].shape[:2], -1)
    for s, (X, Y) in enumerate(zip(*own, strict=True)):
        off = (X[:, None, :2] - Y[:, :2]).nan_to_num(nan=9.0)
        off = torch.stack((_wrapped(off[..., 0]), off[..., 1]), -1)
        hit = (off.abs() <= gate).all(-1)
        gain = torch.where(hit, 1e3 - off.square().sum(-1).sqrt(), 0)
        for i, j in zip(*linear_sum_assignment(gain.numpy(), maximize=True), strict=True):
            if hit[i, j]:
                partner[s, i] = int(j)
    error = torch.full_like(own[0], math.nan)
    s, i = (partner >= 0).nonzero().T
    there, true = own[1][s, partner[s, i]], own[0][s, i]
    error[s, i] = there - true
    error[..., 0] = _wrapped(error[..., 0])
    inverse = torch.full_like(error[..., 0], math.nan)
    inverse[s, i] = 1 / there[:, 2] - 1 / true[:, 2]
    counts = [(~one[..., 0].isnan()).sum(-1) for one in own]
    parts = {"hit": partner >= 0, "partner": partner, "error": error, "inverse_range_error": inverse}
    parts |= {"true_count": counts[0], "found_count": counts[1], "gospa": _gospa(truth, found, 2.0)}
    return {name: (getattr(result, name), value) for name, value in parts.items()}


@_of("metrics:gospa")
def _gospa(truth: Any, found: Any, cutoff_m: float) -> Any:
    values = []
    u = [torch.stack(_direction(one.azimuth, one.elevation), -1) for one in (truth, found)]
    places = (one * some.range[..., None] for one, some in zip(u, (truth, found), strict=True))
    for X, Y in zip(*places, strict=True):
        X, Y = X[X.isfinite().all(-1)], Y[Y.isfinite().all(-1)]
        cost = (X[:, None] - Y).square().sum(-1).clamp_max(cutoff_m**2).numpy()
        least = cost[linear_sum_assignment(cost)].sum() if cost.size else 0.0
        values.append(math.sqrt(least + cutoff_m**2 / 2 * abs(len(X) - len(Y))))
    return torch.tensor(values, dtype=torch.float64)


@_of("metrics:score")
def _score(matched: Any, bound: Any) -> Any:
    hits, true, found = (float(one.sum()) for one in (matched.hit, matched.true_count, matched.found_count))
    off = torch.cat((matched.error, matched.inverse_range_error[..., None]), -1).abs().flatten(0, 1)
    least = torch.full_like(off, math.nan)
    if bound is not None:
        own = torch.cat((bound.std, bound.inverse_range_std[..., None]), -1)
        least = own.double().cpu().flatten(0, 1)

    def median(values: Tensor) -> list[float]:
        known = [one[~one.isnan()].sort().values for one in values.T]
        return [float(one[(len(one) - 1) // 2]) if len(one) else math.nan for one in known]

    away, over = (
        median(off),
        median(off / (least * math.sqrt(2) * float(torch.erfinv(torch.tensor(0.5).double())))),
    )
    return {
        "scenes": len(matched.hit),
        "misses": 1 - hits / true if true else 0.0,
        "recall": hits / true if true else 1.0,
        "false_alarms": 1 - hits / found if found else 0.0,
        "precision": hits / found if found else 1.0,
        "f1": hits / ((true + found) / 2) if true + found else 1.0,
        "count_right": sum((matched.true_count == matched.found_count).tolist()) / len(matched.hit),
        "gospa_m": float(matched.gospa.sum()) / len(matched.hit),
        "azimuth_error_deg": 180 / math.pi * away[0],
        "elevation_error_deg": 180 / math.pi * away[1],
        "range_error_m": away[2],
        **dict(zip(("azimuth_over_bound", "elevation_over_bound"), over[:2], strict=True)),
        "inverse_range_over_bound": over[3],
    }


@_of("estimation.spectra:rap_music_sources")
def _located(spectrum: Any, grid: Any, count: Tensor, result: Any) -> Any:
    """The number of sources, and whether the first one is where the spectrum is highest."""
    found = result[0]
    number = (~found.azimuth.isnan()).sum(-1)
    pairs = {"number of sources": (number.double(), count)}
    if _plain(grid.panel):
        V, here = spectrum.vectors.to(torch.complex128).cpu(), number.cpu() > 0
        at = [getattr(found, n)[:, :1].cpu().nan_to_num(nan=1.0) for n in ("azimuth", "elevation", "range")]
        points = [getattr(grid, n).cpu()[grid.inside.cpu()] for n in ("azimuth", "elevation", "range")]
        own, best = (
            (V.mH @ _steering(grid.panel, *p)).abs().square().sum(-2).amax(-1)[here] for p in (at, points)
        )
        pairs["largest value of the spectrum"] = (torch.minimum(own, best), best)
    return pairs


@_of("estimation.spectra:music")
def _music(covariance: Any, sources: Any, result: Any) -> Any:
    """The K orthonormal vectors that take most of the power of R."""
    R, V = ref.dense(covariance), result.vectors.to(torch.complex128).cpu()
    K = torch.as_tensor(sources).long().cpu().expand(len(R))
    most = torch.linalg.eigvalsh(R).flip(-1).cumsum(-1).gather(-1, K[:, None] - 1)[:, 0]
    if int(K.max()) > covariance.rank:
        return None
    found = {"power in the subspace": ((V.conj() * (R @ V)).real.sum((-2, -1)), most)}
    return found | {"Gram matrix": _gram(V)}


@_of("nn.validation:_score")
def _scored(learner: Any, scenes: Any, beta: float, result: Any) -> Any:
    """Of the sources that the search finds with R_blend, and with R_pred, in the most probable number."""
    scored, entered = scenes.scored()
    prediction, targets = learner.predict(entered), Targets.of(entered, learner.grid)
    number = prediction.count_logits.sort(-1).indices[:, -1]
    blended = prediction.blended(targets.sample, targets.conditioning, beta)
    found: dict[str, Any] = {}
    for name, R in (("blend", blended), ("predicted", prediction.covariance)):
        estimate, _ = rap_music_sources(music(R, number.clamp_min(1)), learner.grid, number)
        right = vars(score(match(scored.truth, estimate), recording_crb(scored)))
        found |= {f"{one} of {name}": (getattr(result[0][name], one), value) for one, value in right.items()}
    statistics = covariance_statistics(prediction.covariance, blended, targets, number)
    return found | {name: (result[1][name], value) for name, value in statistics.items()}


@_of("nn.validation:validate")
def _validated(learner: Any, scenes: Any, result: Any) -> Any:
    spec = learner.spec
    planned = ref.planned_weights(spec.loss, spec.schedule, spec.schedule.epochs - 1, spec.schedule.beta)
    found: dict[str, Any] = {}
    totals: list[float] = []
    terms: dict[str, float] = {}
    numbers = [len(recording) for recording in scenes.validation()]
    for recording, number in zip(scenes.validation(), numbers, strict=True):
        prediction = learner.predict(recording)
        losses = learner.prediction_losses(prediction, recording, spec.schedule.beta, planned)
        totals.append(sum(planned[name] * float(value) for name, value in losses.terms.items()))
        for name, value in {**losses.terms, "loss": totals[-1]}.items():
            terms[name] = terms.get(name, 0.0) + float(value) * number / sum(numbers)
    for name, value in terms.items():
        found[name] = (result.loss if name == "loss" else result.terms[name], value)
    found["loss of the first batch"] = (result.first_batch, totals[0])
    scores, statistics = vars(validation)["_score"](learner, scenes, spec.schedule.beta)
    for name, one in scores.items():
        own = vars(result.scores[name])
        found |= {f"{part} of {name}": (own[part], value) for part, value in vars(one).items()}
    return found | {name: (result.covariance[name], value) for name, value in statistics.items()}


@_of("nn.validation:covariance_statistics")
def _statistics(predicted: Any, blended: Any, targets: Any, count: Tensor) -> Any:
    R, own, true = ref.dense(predicted), ref.dense(blended), (~targets.truth.azimuth.isnan()).double().sum(-1)
    T = ref.dense(targets.true)
    loaded = _conditioned(T, _in_double(targets.conditioning))
    spread = [math.sqrt(float((n.double() - n.double().mean()).square().mean())) for n in (count, true)]
    return {
        "rank_predicted": float(_rank(predicted).double().mean()),
        "rank_blend": float(_rank(blended).double().mean()),
        "error_predicted": float(_covariance_error(R, T).mean()),
        "error_blend": float(_covariance_error(own, loaded).mean()),
        "variety": _variety(predicted) / max(_variety(targets.true), 1e-6),
        "sources": float(true.mean()),
        "count_variety": spread[0] / spread[1] if spread[1] else 1.0,
    }


@_of("nn.validation:rank")
def _rank(covariance: Any) -> Tensor:
    s = torch.linalg.svdvals(covariance.factor.to(torch.complex128).cpu()).square()
    return (s > 1e-6 * s.amax(-1, keepdim=True)).sum(-1)


@_of("nn.validation:variety")
def _variety(covariance: Any) -> float:
    R = ref.unit_trace(ref.dense(covariance))
    return float(1 - _energy(R.mean(0)) / _energy(R).mean())


# The learner.


@_of("nn.learner:Learner.prediction_losses")
def _losses_of(self: Any, prediction: Any, recording: Any, beta: float, weights: Any, result: Any) -> Any:
    own = loss_terms(
        prediction, Targets.of(recording, self.grid), beta, {**self.spec.loss.weights, **weights}
    )
    terms = {name: own[name]() for name in result.terms}
    used = {name: weights.get(name, self.spec.loss.weights[name]) for name in terms}
    total = sum(used[name] * value for name, value in terms.items())
    return {
        "total": (result.total, total),
        **{name: (result.terms[name], one) for name, one in terms.items()},
    }


@_of("nn.learner:Learner.predict")
def _prediction(self: Any, recording: Any, averaged: bool, result: Any) -> Any:
    with self.single_precision(), torch.no_grad():
        right = functional_call(self.network, self.average if averaged else self.weights, (recording,))
    return {n: (value, getattr(right, n)) for n, value in vars(result).items() if value is not None}


@_of("nn.learner:Learner._predict_with_dropout")
def _in_training(self: Any, recording: Any, part: int, result: Any) -> Any:
    spec = self.spec
    if not spec.network.dropout or self.precision is not None:
        return None
    first = self.group.rank * (spec.batch // self.group.world_size) + part * spec.batch
    scenes = torch.arange(len(recording), device=self.taken.device) + first
    draws = Draws(spec.seed, "train", self.taken * spec.batch * spec.accumulation + scenes)
    with torch.no_grad():
        right = self.network(recording, channel_dropout(spec.network, draws))
    return {n: (value, getattr(right, n)) for n, value in vars(result).items() if value is not None}


@_of("nn.learner:Learner.tensors")
def _state(self: Any, result: Mapping[str, Tensor]) -> Any:
    kinds = {"weights": self.weights, "average": self.average}
    own = {f"{kind}/{name}": value for kind, some in kinds.items() for name, value in some.items()}
    own["taken"] = self.taken
    missing = torch.tensor(float(len(own.keys() - result.keys())))
    found = {name: (result[name], value) for name, value in own.items() if name in result}
    return {**found, "number of missing tensors": (missing, torch.zeros_like(missing))}


@_of("nn.learner:Learner._norms")
def _norms(self: Any, result: Tensor) -> Any:
    found = {}
    for n, kind in enumerate(("backbone", "head")):
        parts = [g for g in self.optimizer.param_groups if g["name"] == kind]
        gradients = [w.grad.double() for g in parts for w in g["params"] if w.grad is not None]
        found[f"gradient norm of {kind}"] = (result[n], sum(g.square().sum() for g in gradients) ** 0.5)
    return found


@_of("nn.checkpoint:optimizer_tensors")
def _optimizer_state(optimizer: Any, result: Mapping[str, Tensor]) -> Any:
    state = optimizer.state_dict()["state"]
    own = {f"{n}.{name}": value for n, some in state.items() for name, value in some.items()}
    return {name: (result[name], value) for name, value in own.items() if name in result}


@_of("nn.learner:parameter_groups")
def _groups(network: Any, spec: Any, result: list[dict[str, Any]]) -> Any:
    names, found = {id(weight): name for name, weight in network.named_parameters()}, {}
    for group in result:
        for weight in group["params"]:
            name = names[id(weight)]
            head = name.startswith(("details.", "count.")) or ".write." in name
            rate = spec.head_learning_rate if head else spec.backbone_learning_rate
            decay = spec.weight_decay if weight.ndim > 1 else 0.0
            found[f"highest learning rate of {name}"] = (float(group["highest"]), rate)
            found[f"weight decay of {name}"] = (float(group["weight_decay"]), decay)
    return found


@_of("nn.learner:Learner.__init__")
def _learner(self: Any, spec: Any) -> Any:
    steps = spec.schedule.epochs * spec.scenes_per_epoch // (spec.batch * spec.accumulation)
    units = {"scenes": spec.schedule.epochs * spec.scenes_per_epoch, "epochs": spec.schedule.epochs}
    units |= {"batches": steps * spec.accumulation, "the steps of one epoch": steps // spec.schedule.epochs}
    unit = next((f" (it counts {unit})" for unit, n in units.items() if n == len(self.factors) != steps), "")
    kind = type(self.optimizer).__name__
    options = {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "maximize": False}
    found = {f"number of steps of the schedule{unit}": (float(len(self.factors)), float(steps))}
    other = "" if kind == "AdamW" else f" (it is {kind})"
    found[f"the optimizer, AdamW{other}"] = (float(not other), 1.0)
    for name, usual in options.items():
        wrong = [group[name] for group in self.optimizer.param_groups if group.get(name, usual) != usual]
        other = f" (it is {wrong[0]}, not {usual})" if wrong else ""
        found[f"{name} of the optimizer{other}"] = (float(len(wrong)), 0.0)
    return found | {f"average of {n}": (value, self.weights[n]) for n, value in self.average.items()}


@_of("nn.learner:Learner._set_learning_rate")
def _rates(self: Any) -> Any:
    factor = float(self.factors[min(int(self.taken), len(self.factors) - 1)])
    groups = {f"group {n}, {one['name']}": one for n, one in enumerate(self.optimizer.param_groups)}
    return {f"learning rate of {n}": (float(g["lr"]), g["highest"] * factor) for n, g in groups.items()}


@_of("nn.data:beta_at")
def _beta(spec: Any, epoch: int, seed: int) -> float:
    planned, jitter = ref.planned_beta(spec, epoch)
    turn = 2 * float(Draws(seed, "train", torch.tensor([epoch])).uniform(Stream.BETA, 1)) - 1
    return planned if jitter < 1e-5 else min(1.0, max(0.0, planned + spec.beta_jitter * turn))


HANDED_ON = names(
    "nn.checkpoint:optimizer_tensors nn.learner:Learner.tensors nn.losses:Targets.of "
    "simulation.simulator:Simulator.__call__"
)
"""Functions that hand on what they are given, which must not change."""
