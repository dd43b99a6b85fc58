r"""Reference computations, written independently of the package: slow, dense and in double precision.

The checks compare the code under test with these. Nothing here uses the package's own steering vectors,
operators :math:`G_l` or covariances, so that a mistake there shows as a difference. The module also has
a prediction that no network made, and the schedules as documented.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor
from torch.nn import functional

from rismusic.covariance import Covariance
from rismusic.doctor.hypotheses import given, setting
from rismusic.doctor.state import in_double, real_view
from rismusic.estimation.grid import SearchGrid
from rismusic.io import Recording
from rismusic.nn.network import Prediction
from rismusic.nn.spec import LossSpec, ScheduleSpec
from rismusic.sources import Sources
from rismusic.spec import PanelSpec, SystemSpec

EXPECTED = "expected"
"""Key of the correct form among the candidates of :func:`best_explanation`."""


def element_positions(panel: PanelSpec) -> Float[Tensor, "N 3"]:
    """Element positions in metres, centred, y slowest and x fastest."""
    pitch = panel.spacing_wavelengths * panel.wavelength_m
    positions = [
        ((column - (panel.columns - 1) / 2) * pitch, (row - (panel.rows - 1) / 2) * pitch, 0.0)
        for row in range(panel.rows)
        for column in range(panel.columns)
    ]
    return torch.tensor(positions, dtype=torch.float64)


def steering_vectors(
    elements: Float[Tensor, "N 3"],
    wavelength: float,
    azimuth: Tensor,
    elevation: Tensor,
    distance: Tensor,
    *,
    uniform: bool = False,
) -> Complex[Tensor, "... N K"]:
    """Unit vectors of g exp(j 2 pi (r - d) / wavelength), g = 1 / d or 1 (uniform), of sources [..., K]."""
    azimuth, elevation, distance = azimuth.double(), elevation.double(), distance.double()
    x = azimuth.sin() * elevation.cos()
    z = azimuth.cos() * elevation.cos()
    source = distance[..., None] * torch.stack((x, elevation.sin(), z), dim=-1)
    d = (source[..., None, :, :] - elements[:, None, :]).norm(dim=-1)
    phase = 2 * math.pi / wavelength * (distance[..., None, :] - d)
    gain = torch.ones_like(d) if uniform else 1 / d
    return torch.polar(gain / gain.square().sum(-2, keepdim=True).sqrt(), phase)


def true_steering(
    truth: Sources, elements: Float[Tensor, "N 3"], wavelength: float, *, uniform: bool = False
) -> Complex[Tensor, "S N K"]:
    """Steering matrices of the true sources; columns without a source are 0."""
    active = ~truth.azimuth.isnan()
    pairs = ((truth.azimuth, 0.0), (truth.elevation, 0.0), (truth.range, 1.0))
    filled = (torch.where(active, value, other) for value, other in pairs)
    return steering_vectors(elements, wavelength, *filled, uniform=uniform) * active[:, None, :]


def operators(recording: Recording) -> Complex[Tensor, "S L M N"]:
    """G_l = H diag(c_l) of every scene and snapshot."""
    S, L, M = recording.snapshots.shape
    N = len(recording.elements)
    dtype = torch.complex128
    H = torch.eye(N, dtype=dtype) if recording.channel is None else recording.channel.to(dtype)
    c = torch.ones(L, N, dtype=dtype) if recording.codes is None else recording.codes.to(dtype)
    H, c = H.expand(S, M, N), c.expand(S, L, N)
    return H[:, None, :, :] * c[:, :, None, :]


def true_signal(system: SystemSpec, recording: Recording) -> Complex[Tensor, "S L M"] | None:
    """G_l A s_l of the true sources; None without symbols or with hardware impairments."""
    truth = recording.truth
    if truth is None or truth.symbols is None or system.hardware != type(system.hardware)():
        return None
    s = torch.where(truth.azimuth.isnan()[..., None], 0, truth.symbols).to(torch.complex128)
    elements, uniform = element_positions(system.panel), system.panel.wave == "uniform"
    A = true_steering(truth, elements, system.panel.wavelength_m, uniform=uniform)
    return torch.einsum("slmn,snk,skl->slm", operators(recording), A, s)


def back_projection(
    G: Complex[Tensor, "S L M N"], snapshots: Complex[Tensor, "S L M"], noise: Float[Tensor, "S"]
) -> tuple[Complex[Tensor, "S L N"], Complex[Tensor, "S L N M"]]:
    """x_l = W_l y_l, and W_l = G_l^H (G_l G_l^H + lambda I)^-1; for lambda see :mod:`rismusic.covariance`."""
    y, noise = snapshots.to(torch.complex128), noise.double()
    _, L, M = y.shape
    excess = torch.maximum(y.abs().square().mean((1, 2)) - noise, noise / math.sqrt(L * M))
    least = 10 * M * torch.finfo(snapshots.real.dtype).eps
    gram = G @ G.mH
    gain = gram.diagonal(dim1=-2, dim2=-1).real.mean((1, 2))
    ridge = (noise / excess).clamp_min(least) * gain
    W = torch.linalg.solve(gram + ridge[:, None, None, None] * torch.eye(M, dtype=y.dtype), G).mH
    return (W @ y[..., None])[..., 0], W


def covariance_of(field: Complex[Tensor, "S L N"]) -> Complex[Tensor, "S N N"]:
    """Mean of x x^H over the snapshots, scaled to trace 1."""
    return unit_trace(torch.einsum("sln,slm->snm", field, field.conj()))


def unit_trace(matrix: Complex[Tensor, "S N N"]) -> Complex[Tensor, "S N N"]:
    """The matrices scaled to trace 1."""
    return matrix / matrix.diagonal(dim1=-2, dim2=-1).real.sum(-1)[:, None, None]


def dense(covariance: Covariance) -> Complex[Tensor, "... N N"]:
    """F F^H + eps I in double precision."""
    F, loading = (
        covariance.factor.detach().to(torch.complex128).cpu(),
        covariance.loading.detach().double().cpu(),
    )
    return F @ F.mH + loading[..., None, None] * torch.eye(F.shape[-2], dtype=F.dtype)


def grid_statistics(
    B: Tensor, y: Tensor, noise: Tensor, a: Tensor, power: Tensor, repeats: int
) -> tuple[Tensor, Tensor]:
    """Matched and expected energies of every point, by dense covariances."""
    a, noise, power = given("the steering", a), given("the noise", noise), given("the powers", power)
    C = torch.einsum("dp,sp,ep->sde", a, power.to(a.dtype), a.conj())
    identity = torch.eye(B.shape[2], dtype=B.dtype)
    R = B @ C[:, None] @ B.mH + noise[:, None, None, None] * identity
    fields = B @ a
    whitened = torch.linalg.solve(R, fields)
    matched = (whitened.mH @ y).abs().square().sum((1, 3))
    expected = (fields.conj() * whitened).real.sum((1, 2)) * repeats
    return matched, expected.clamp_min(1e-9)


def interpolated(
    grid: SearchGrid, logits: Tensor, index: Tensor, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Azimuth, elevation and range of peaks [S, K]: the mean of the map around each, and a shift in steps."""
    X, Y, Z = grid.shape
    x, y, z = index // (Y * Z), index // Z % Y, index % Z
    near, rows = logits.view(-1, X, Y, Z), torch.arange(len(logits))[:, None]
    steps = [(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]
    value = torch.full((*index.shape, 27), -torch.inf, dtype=torch.float64)
    for n, (i, j, k) in enumerate(steps):
        there = (x + i >= 0) & (x + i < X) & (y + j >= 0) & (y + j < Y) & (z + k >= 0) & (z + k < Z)
        at_step = near[rows, (x + i).clamp(0, X - 1), (y + j).clamp(0, Y - 1), (z + k).clamp(0, Z - 1)]
        value[..., n] = torch.where(there, at_step, -torch.inf)
    mean = value.softmax(-1) @ torch.tensor(steps, dtype=torch.float64) + (0 if shift is None else shift)
    u_x, u_y, q = (
        axis.double().cpu()[cell] + grid.step[n] * mean[..., n]
        for n, (axis, cell) in enumerate(zip((grid.u_x, grid.u_y, grid.q), (x, y, z), strict=True))
    )
    u_y = u_y.clamp(-0.95, 0.95)
    u_x = torch.minimum(u_x.abs(), 0.999 * (1 - u_y.square()).sqrt()) * u_x.sign()
    up = (1 - u_x.square() - u_y.square()).sqrt()
    return torch.atan2(u_x, up), u_y.asin(), 1 / q.clamp_min(grid.step[2] / 4)


def peaks(
    grid: SearchGrid, values: Float[Tensor, "S P"], count: int, separation: float = 0.5
) -> Int64[Tensor, "S K"]:
    """Flat places of the highest peaks of maps, then of scattered points away from them, then of any points.

    A peak is a point inside the volume without a higher one, or an earlier peak of its height, in the box
    that reaches ``separation`` beam widths (and a step) to either side of it.
    """
    X, Y, Z = grid.shape
    reach, inside = max(1, math.floor(separation * grid.oversampling)), grid.inside.cpu()
    box = values.double().cpu().masked_fill(~inside, -math.inf).view(-1, 1, X, Y, Z)

    def largest(x: Tensor) -> Tensor:
        around, size = (reach, reach, reach), 2 * reach + 1
        if grid.volume.all_round and size <= X:
            x, around = functional.pad(x, (0, 0, 0, 0, reach, reach), mode="circular"), (0, reach, reach)
        return functional.max_pool3d(x, size, stride=1, padding=around)

    place = torch.arange(X * Y * Z).view(X, Y, Z)
    first = torch.where(box == largest(box), -place.double(), -math.inf)
    peak = ((first == largest(first)) & first.isfinite()).flatten(1) & inside
    cells = torch.stack((place // (Y * Z), place // Z % Y, place % Z)).flatten(1)
    near = largest(peak.double().view_as(box)).flatten(1) > 0
    scattered = (cells % (reach + 1) == 0).all(0) & inside & ~near & ~peak
    kind = torch.where(peak, 0, torch.where(scattered, 1, torch.where(inside, 2, 3)))
    keys = zip((-box).flatten(1).numpy(), kind.numpy(), strict=True)
    return torch.stack([torch.from_numpy(np.lexsort(one)[:count]) for one in keys])


def relative_distance(first: Tensor, second: Tensor) -> Float[Tensor, "S"]:
    """Frobenius distance of matrices [S, ...], relative to the second."""
    return (first - second).flatten(1).norm(dim=1) / second.flatten(1).norm(dim=1).clamp_min(1e-30)


def residual_over_noise(
    recording: Recording, G: Complex[Tensor, "S L M N"], A: Complex[Tensor, "S N K"]
) -> float:
    """Energy of the snapshots outside the span of G_l A, over that of the noise; near 1 if A is right."""
    y = recording.snapshots.to(torch.complex128)
    assert recording.noise_variance is not None
    B = G @ A[:, None]
    rank = A.abs().sum(1).gt(0).sum(-1)
    outside = y - (B @ (torch.linalg.pinv(B, rtol=1e-9) @ y[..., None]))[..., 0]
    free = y.shape[1] * (y.shape[2] - rank).clamp_min(1)
    return float((outside.abs().square().sum((1, 2)) / (free * recording.noise_variance.double())).mean())


def best_explanation(errors: Mapping[str, float]) -> str:
    """The candidate mistake of least error, if below a tenth of that of the correct form; else ``""``."""
    name, value = min(errors.items(), key=lambda pair: pair[1])
    return name if name != EXPECTED and value < errors[EXPECTED] / 10 else ""


def random_prediction(like: Prediction, seed: int = 0) -> Prediction:
    """A random prediction with the shapes of ``like``."""
    generator = torch.Generator().manual_seed(seed)

    def normal(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator, dtype=value.dtype).to(value.device)

    found = Prediction(
        angle_factor=normal(like.angle_factor),
        range_factor=normal(like.range_factor),
        count_logits=normal(like.count_logits),
        azimuth=normal(like.azimuth) / 4,
        elevation=normal(like.elevation) / 4,
        inverse_range=(normal(like.inverse_range) / 2).exp(),
        existence_logits=normal(like.existence_logits),
    )
    if (maps := like.grid_logits) is None:
        return found
    # The maps of each stage have another size, so that no stage may stand for another one.
    sizes = torch.arange(1, maps.shape[1] + 1, device=maps.device)[:, None]
    return replace(found, grid_logits=normal(maps) * sizes)


def recording_in_double(recording: Recording) -> Recording:
    """The recording in double precision."""
    names = ("snapshots", "channel", "codes", "noise_variance")
    values: dict[str, Any] = {name: getattr(recording, name) for name in names}
    values = {name: None if value is None else in_double(value) for name, value in values.items()}
    truth = None if recording.truth is None else recording.truth.each(in_double)
    return replace(recording, truth=truth, **values)


def doubled(result: Any) -> Any:
    """Tensors, alone, in a tuple or in a dataclass, in double precision."""
    if isinstance(result, tuple):
        return tuple(doubled(one) for one in result)
    if is_dataclass(result) and not isinstance(result, type):
        return replace(result, **{name: doubled(value) for name, value in vars(result).items()})
    return in_double(result) if isinstance(result, Tensor) else result


def total_norm(tensors: Mapping[str, Tensor]) -> float:
    """Norm of all tensors together; infinite if any value is not finite."""
    total = sum(float(_real(value).square().sum()) for value in tensors.values())
    return math.sqrt(total) if math.isfinite(total) else math.inf


def _real(value: Tensor) -> Tensor:
    """The numbers of a real or complex tensor in double precision."""
    return real_view(value.detach()).double()


def cosine(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Cosine of the angle between two sets of tensors; a tensor missing in one of them counts as 0."""
    sizes = total_norm(first) * total_norm(second)
    if sizes == 0 or not math.isfinite(sizes):
        return 0.0
    dot = sum(
        float((_real(value) * _real(second[name])).sum()) for name, value in first.items() if name in second
    )
    return dot / sizes


def planned_rate_factors(schedule: ScheduleSpec, steps: int) -> Float[Tensor, "steps"]:
    """Linear warm-up to 1, then half a cosine down to the floor."""
    i = given("the number of the step", torch.arange(steps, dtype=torch.float64))
    warm = setting("the number of warm-up steps", float(max(1, round(schedule.warm_up * steps))))
    floor = setting("the floor", schedule.learning_rate_floor)
    turn = math.pi * (i + 1 - warm) / (steps - warm) if warm < steps else 0 * i
    return torch.where(i + 1 <= warm, (i + 1) / warm, 1 - (1 - floor) * (turn / 2).sin().square())


def planned_beta(schedule: ScheduleSpec, epoch: int) -> tuple[float, float]:
    """Beta of an epoch, and how far it may differ because of its jitter."""
    ramp = max(2, math.ceil(schedule.beta_ramp * schedule.epochs))
    if epoch < ramp:
        return schedule.beta / (ramp - 1) * epoch, 1e-6
    return schedule.beta, schedule.beta_jitter + 1e-6


def planned_weights(loss: LossSpec, schedule: ScheduleSpec, epoch: int, beta: float) -> dict[str, float]:
    """Weights of the losses in an epoch, as the documentation of the phases states them."""
    weights: dict[str, float] = {str(name): value for name, value in loss.weights.items()}
    ramp, last = max(2, math.ceil(schedule.beta_ramp * schedule.epochs)), round(0.3 * schedule.epochs)
    if epoch < ramp:
        weights["subspace"] = loss.subspace_warm_up
    elif epoch >= schedule.epochs - last:
        part = (epoch - schedule.epochs + last) / max(1, last - 1)
        for name, (low, high) in (
            ("subspace", loss.subspace_last),
            ("peak_contrast", loss.peak_contrast_last),
        ):
            weights[name] = (1 - part) * low + part * high
    if beta >= 0.999:
        weights["covariance_predicted"] = max(weights["covariance_predicted"], loss.covariance / 5)
    if schedule.curriculum:
        first, second = (share * schedule.epochs for share in schedule.curriculum_ends)
        if epoch < first:
            weights["log_range"] = 0.0
        elif epoch < second:
            weights["angle"] /= 10
    return weights
