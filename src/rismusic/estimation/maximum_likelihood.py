r"""Near-field maximum likelihood (NF-MLE): joint refinement of all sources on the raw snapshots.

The unknowns are azimuth, elevation and inverse range :math:`q = 1/r` of each source. The phase of a far
source is nearly linear in q, while its range is unbounded. The conditional likelihood eliminates the symbols
by variable projection. The unconditional likelihood has the source powers and, unless it is known, the noise
variance as further unknowns.

:func:`nfmle` fits positions from a start; :func:`refine` is the same on plain tensors, for any number of
sources per scene; :func:`fit_powers` fits powers and noise variance for fixed positions; :func:`complete_fit`
completes a fit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from rismusic.array import wrapped
from rismusic.batch import Batch, choose
from rismusic.errors import InputError
from rismusic.estimation.grid import Volume
from rismusic.estimation.levenberg_marquardt import FitOptions, levenberg_marquardt
from rismusic.estimation.likelihood import (
    SufficientStatistics,
    as_one_matrix,
    conditional,
    conditional_cost,
    residual_energy,
    scene_blocks,
    sufficient_statistics,
    symbols,
    unconditional,
)
from rismusic.estimation.noise import check_fit, noise_from_fit
from rismusic.estimation.source_covariance import correlated_unconditional
from rismusic.io import Recording
from rismusic.sources import Sources

Criterion = Literal["conditional", "unconditional"]

THOROUGH = FitOptions()
ROUGH = FitOptions(steps=12, tolerance=0.2)
POWER_FIT = FitOptions(steps=20, tolerance=0.02)
# Limits of the powers, and of the noise variance, relative to the mean received power.
_POWER = (1e-6, 1e3)
_NOISE = (1e-15, 2.0)


def fit_power_noise(
    recording: Recording, positions: Float[Tensor, "S K 3"], active: Bool[Tensor, "S K"]
) -> tuple[Float[Tensor, "S K"], Float[Tensor, "S"]]:
    """Powers and noise variance that maximise the unconditional likelihood at given positions."""
    return _fit_powers_at(recording, positions, active)[:2]


def _fit_powers_at(
    recording: Recording, positions: Float[Tensor, "S K 3"], active: Bool[Tensor, "S K"]
) -> tuple[Float[Tensor, "S K"], Float[Tensor, "S"], Float[Tensor, "S"]]:
    """:func:`fit_powers` at given positions."""
    kernel = kernel_for(recording)
    parts = []
    for block in scene_blocks(recording, positions.shape[1]):
        part, x, there = recording[block], positions[block], active[block]
        if kernel is None:
            parts.append(fit_powers(part.noise_variance, sufficient_statistics(part, x, there)))
        else:
            parts.append(kernel.fit_powers(part, x, there, POWER_FIT))
    power, noise, value = (torch.cat(part) for part in zip(*parts, strict=True))
    return power, noise, value


def neg_log_likelihood(
    recording: Recording, positions: Float[Tensor, "S K 3"], active: Bool[Tensor, "S K"], criterion: Criterion
) -> Float[Tensor, "S"]:
    """Negative log-likelihood (nats) at given positions, with the best powers or symbols."""
    if criterion == "unconditional":
        return _fit_powers_at(recording, positions, active)[2]
    parts = []
    for block in scene_blocks(recording, positions.shape[1]):
        at = sufficient_statistics(recording[block], positions[block], active[block])
        parts.append(at.size * conditional_cost(at).log())
    return torch.cat(parts)


_COMPILED: ContextVar[bool] = ContextVar("compiled", default=True)


@contextmanager
def without_compiled_fits() -> Iterator[None]:
    """Use the torch form: for one scene it takes less time than Numba needs to start."""
    token = _COMPILED.set(False)
    try:
        yield
    finally:
        _COMPILED.reset(token)


def kernel_for(recording: Recording) -> ModuleType | None:
    """The compiled fits if they are installed, wanted and cover this recording."""
    kernel = compiled_fits()
    return kernel if kernel is not None and kernel.applies(recording) else None


def compiled_fits() -> ModuleType | None:
    """The compiled fits if they are installed and wanted."""
    return _kernel() if _COMPILED.get() else None


@lru_cache(maxsize=1)
def _kernel() -> ModuleType | None:
    with warnings.catch_warnings():
        # Numba warns of a setting that it cannot read, with a traceback in the warning.
        warnings.filterwarnings("error", "Environment variable", category=RuntimeWarning)
        try:
            return import_module("rismusic.estimation.fit_kernel")
        except ImportError:  # no Numba, or one that does not know the installed NumPy
            return None
        except (ValueError, RuntimeWarning) as error:  # a setting in the environment: NUMBA_NUM_THREADS=0
            reason = str(error).splitlines()[0]
            raise InputError("numba", f"cannot be imported: {reason} Check the variables NUMBA_*") from None


def values_without_each(
    recording: Recording, positions: Float[Tensor, "S K 3"], active: Bool[Tensor, "S K"], criterion: Criterion
) -> Float[Tensor, "S K"]:
    """Negative log-likelihood (nats) without each source in turn, the others fixed; inf without a source."""
    kernel = kernel_for(recording) if criterion == "unconditional" else None
    parts = []
    for block in scene_blocks(recording, 2 * positions.shape[1]):
        part, there = recording[block], active[block]
        if kernel is not None:
            value = kernel.fit_powers_without_each(part, positions[block], there, POWER_FIT)
        else:
            at = sufficient_statistics(part, positions[block], there).without_each()
            if criterion == "conditional":
                value = at.size * conditional_cost(at).log()
            else:
                noise = part.noise_variance
                noise = None if noise is None else noise.repeat_interleave(there.shape[1])
                value = fit_powers(noise, at)[2]
        parts.append(torch.where(there, value.view(there.shape), torch.inf))
    return torch.cat(parts)


def fit_powers(
    noise_variance: Float[Tensor, "S"] | None,
    at: SufficientStatistics,
    options: FitOptions = POWER_FIT,
    limits: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Float[Tensor, "S K"], Float[Tensor, "S"], Float[Tensor, "S"]]:
    """Powers, noise variance (unless it is known) and value (nats) of the largest unconditional likelihood.

    The powers are 0 where there is no source, and in scenes of zeros. ``limits`` are those of
    :func:`power_noise_limits`, if already computed.
    """
    start, lower, upper = limits or power_noise_limits(noise_variance, at)
    K = at.active.shape[1]
    fit = levenberg_marquardt(
        lambda scenes, x: unconditional(at[scenes], x[:, :K].exp(), x[:, K].exp()),
        start,
        lower,
        upper,
        steps=options.steps,
        tolerance=options.tolerance,
    )
    heard = at.active & (at.energy.sum(dim=1) > 0)[:, None]
    return torch.where(heard, fit.point[:, :K].exp(), 0), fit.point[:, K].exp(), fit.value


class _Factor:
    """The unknowns of :math:`P = T T^H` and sigma^2: log T_kk, T below its diagonal, log sigma^2."""

    def __init__(self, noise_variance: Tensor | None, at: SufficientStatistics) -> None:
        self.K = K = at.active.shape[1]
        self._pairs = i, j = torch.tril_indices(K, K, -1, device=at.active.device)
        start, lower, upper = power_noise_limits(noise_variance, at)
        s = symbols(at)
        P = s.mT @ s.conj() / s.shape[1]
        power = start[:, :K].exp()
        own = P.diagonal(dim1=-2, dim2=-1).real
        # Fully correlated symbols have to get a Cholesky factor, also far above the limit of the powers.
        P = P + torch.diag_embed((power - own).clamp_min(0) + 1e-3 * torch.maximum(power, own))
        largest = torch.where(at.active[:, i] & at.active[:, j], (upper[:, i] / 2).exp(), 0)
        most = torch.cat((largest, largest), dim=1)
        self.lower = torch.cat((lower[:, :K] / 2, -most, lower[:, K:]), dim=1)
        self.upper = torch.cat((upper[:, :K] / 2, most, upper[:, K:]), dim=1)
        self.start = self.packed(P, start[:, K].exp())

    def packed(self, P: Tensor, noise: Tensor) -> Tensor:
        """The unknowns within their limits."""
        T = torch.linalg.cholesky(P)
        below = T[:, self._pairs[0], self._pairs[1]]
        x = (T.diagonal(dim1=-2, dim2=-1).real.log(), below.real, below.imag, noise.log()[:, None])
        return torch.minimum(torch.maximum(torch.cat(x, dim=1), self.lower), self.upper)

    def of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """T and sigma^2."""
        T = torch.diag_embed(x[:, : self.K].exp()).to(torch.complex128)
        T[:, self._pairs[0], self._pairs[1]] = torch.complex(*x[:, self.K : -1].chunk(2, dim=1))
        return T, x[:, -1].exp()


def fit_source_covariance(
    noise_variance: Float[Tensor, "S"] | None, at: SufficientStatistics
) -> tuple[Complex[Tensor, "S K K"], Float[Tensor, "S"], Float[Tensor, "S"]]:
    """P (0 without a source), noise variance and value as :func:`fit_powers`, for correlated sources."""
    factor = _Factor(noise_variance, at)
    fit = levenberg_marquardt(
        lambda scenes, x: correlated_unconditional(at[scenes], *factor.of(x)),
        factor.start,
        factor.lower,
        factor.upper,
        steps=POWER_FIT.steps,
        tolerance=POWER_FIT.tolerance,
    )
    T, noise = factor.of(fit.point)
    heard = at.active & (at.energy.sum(dim=1) > 0)[:, None]
    return torch.where(heard[:, :, None] & heard[:, None, :], T @ T.mH, 0), noise, fit.value


def refine_correlated(
    recording: Recording,
    fit: FitState,
    active: Bool[Tensor, "S K"],
    volume: Volume,
    options: FitOptions = THOROUGH,
) -> FitState:
    """Refine a fit of independent sources by the unconditional likelihood of correlated ones."""
    K, parts = active.shape[1], []
    for block in scene_blocks(recording, 4 * active.shape[1]):
        part, x, there = recording[block], fit.positions[block], active[block]
        at = _At(part, there)
        lower, upper = _box(x, there, volume)
        factor = _Factor(part.noise_variance, sufficient_statistics(part, x, there))

        def evaluate(
            scenes: Tensor, x: Tensor, at: _At = at, factor: _Factor = factor
        ) -> tuple[Tensor, Tensor, Tensor]:
            return correlated_unconditional(at(scenes, x[:, : 3 * K]), *factor.of(x[:, 3 * K :]))

        end = levenberg_marquardt(
            evaluate,
            torch.cat((x.flatten(1), factor.start), dim=1),
            torch.cat((lower, factor.lower), dim=1),
            torch.cat((upper, factor.upper), dim=1),
            steps=options.steps,
            tolerance=options.tolerance,
        )
        parts.append((end.point[:, : 3 * K].unflatten(-1, (K, 3)), end.value, end.converged))
    positions, value, converged = (torch.cat(part) for part in zip(*parts, strict=True))
    return FitState(positions, value, converged, None)


def source_covariance_at(
    recording: Recording, positions: Float[Tensor, "S K 3"], active: Bool[Tensor, "S K"]
) -> Complex[Tensor, "S K K"]:
    """The source covariance P at given positions; see :func:`fit_source_covariance`."""
    parts = []
    for block in scene_blocks(recording, positions.shape[1]):
        part = recording[block]
        at = sufficient_statistics(part, positions[block], active[block])
        parts.append(fit_source_covariance(part.noise_variance, at)[0])
    return torch.cat(parts)


def power_noise_limits(
    noise_variance: Tensor | None, at: SufficientStatistics
) -> tuple[Tensor, Tensor, Tensor]:
    """Start and limits of log p and log sigma^2, [S, K + 1]; equal limits hold what is known or absent."""
    L, K = at.energy.shape[1], at.active.shape[1]
    count = at.active.sum(-1)
    energy = at.energy.mean(dim=1)
    energy = torch.where(energy > 0, energy, 1)
    norm = at.gram[..., :K, :K].diagonal(dim1=-2, dim2=-1).real.mean(dim=1)
    norm = torch.where(norm > 0, norm, 1)
    most = energy[:, None] / norm
    s = symbols(at)
    power = s.abs().square().mean(dim=1).clamp(_POWER[0] * most, most)
    if noise_variance is None:
        # A start: without the coordinates, so that it is positive for any number of sources below M.
        noise = residual_energy(at, s) / (L * (at.antennas - count)).clamp_min(1)
        limits = [energy / at.antennas * factor for factor in _NOISE]
        noise = noise.clamp(limits[0], limits[1])
    else:
        noise = noise_variance.double()
        limits = [noise, noise]
    low, high = (torch.where(at.active, most * factor, power.clamp_min(1e-300)) for factor in _POWER)
    start = torch.where(at.active, power, low)
    return tuple(
        torch.cat((p, n[:, None]), dim=1).log()
        for p, n in ((start, noise), (low, limits[0]), (high, limits[1]))
    )  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class FitState(Batch):
    """State of a likelihood fit of S scenes."""

    positions: Float[Tensor, "S K 3"]
    value: Float[Tensor, "S"]  # negative log-likelihood (nats, up to a constant of the criterion)
    converged: Bool[Tensor, "S"]
    power_noise: tuple[Float[Tensor, "S K"], Float[Tensor, "S"]] | None  # of the unconditional likelihood


def refine(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    volume: Volume,
    *,
    criterion: Criterion = "conditional",
    options: FitOptions = THOROUGH,
    power_noise: tuple[Float[Tensor, "S K"], Float[Tensor, "S"]] | None = None,
) -> FitState:
    """Fit positions from a start, as :func:`nfmle` does, on plain tensors.

    ``power_noise`` are initial powers and noise variance of the unconditional likelihood. Without them, they
    are fitted at the start or taken from least squares, as ``options`` says.
    """
    kernel = kernel_for(recording)
    fit = _fit_positions if kernel is None else kernel.fit_positions
    parts = []
    for block in scene_blocks(recording, 4 * positions.shape[1]):
        start = None if power_noise is None else (power_noise[0][block], power_noise[1][block])
        here = recording[block], positions[block], active[block]
        parts.append(fit(*here, volume, criterion, options, POWER_FIT, start))
    end, power, noise, value, converged = (torch.cat(part) for part in zip(*parts, strict=True))
    return FitState(end, value, converged, (power, noise) if criterion == "unconditional" else None)


def _fit_positions(
    recording: Recording,
    positions: Tensor,
    active: Tensor,
    volume: Volume,
    criterion: Criterion,
    options: FitOptions,
    powers: FitOptions,
    power_noise: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Positions, powers, noise variance, value, and whether the fit converged.

    :func:`rismusic.estimation.fit_kernel.fit_positions` is the compiled form.
    """
    K = positions.shape[1]
    at, (lower, upper) = _At(recording, active), _box(positions, active, volume)
    minimise = partial(levenberg_marquardt, steps=options.steps, tolerance=options.tolerance)
    if criterion == "conditional":
        fit = minimise(lambda scenes, x: conditional(at(scenes, x)), positions.flatten(1), lower, upper)
        power, noise = torch.zeros_like(positions[..., 0]), torch.zeros_like(fit.value)
        return fit.point.unflatten(-1, (-1, 3)), power, noise, fit.value, fit.converged
    inside = torch.minimum(torch.maximum(positions.flatten(1), lower), upper)
    here = at(torch.arange(len(recording), device=active.device), inside)
    plain = here.without_derivatives()
    limits = power_noise_limits(recording.noise_variance, plain)
    if power_noise is None and options.powers_first:
        power_noise = fit_powers(recording.noise_variance, plain, powers, limits)[:2]
    start, least, most = limits
    if power_noise is not None:
        power, noise = power_noise
        start = torch.cat((power.clamp_min(torch.finfo(power.dtype).tiny), noise[:, None]), dim=1).log()
        start = torch.minimum(torch.maximum(start, least), most)

    def value(at: SufficientStatistics, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return unconditional(at, x[:, 3 * K : -1].exp(), x[:, -1].exp())

    join = [torch.cat(pair, dim=1) for pair in ((inside, start), (lower, least), (upper, most))]
    fit = minimise(lambda scenes, x: value(at(scenes, x[:, : 3 * K]), x), *join, first=value(here, join[0]))
    power = torch.where(active, fit.point[:, 3 * K : -1].exp(), 0)
    end = fit.point[:, : 3 * K].unflatten(-1, (-1, 3))
    return end, power, fit.point[:, -1].exp(), fit.value, fit.converged


class _At:
    """Sufficient statistics with derivatives, of the scenes that are still in the batch."""

    def __init__(self, recording: Recording, active: Tensor) -> None:
        self._recording, self._active, self._whole_link = recording, active, as_one_matrix(recording.link)
        self._part, self._present, self._link = recording, active, self._whole_link

    def __call__(self, scenes: Tensor, x: Tensor) -> SufficientStatistics:
        # The batch only shrinks: if its size is unchanged, so are its scenes.
        if len(scenes) != len(self._part):
            self._part, self._present = self._recording[scenes], self._active[scenes]
            self._link = self._whole_link[scenes]
        return sufficient_statistics(
            self._part, x.unflatten(-1, (-1, 3)), self._present, derivatives=True, link=self._link
        )


def _box(positions: Tensor, active: Tensor, volume: Volume) -> tuple[Tensor, Tensor]:
    """Limits of the coordinates, [S, 3K]; entries without a source are held."""
    lower, upper = (positions.new_tensor(limit).expand_as(positions) for limit in volume.box)
    there = active[..., None]
    return torch.where(there, lower, positions).flatten(1), torch.where(there, upper, positions).flatten(1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Fit(Batch):
    """Sources fitted to the snapshots of S scenes.

    They have mean powers p (maximum likelihood; the diagonal of P for correlated symbols) and symbols (least
    squares), in the order of the start.
    """

    sources: Sources
    cost: Float[Tensor, "S"]  # conditional, f = sum_l |P_perp y_l|^2
    neg_log_likelihood: Float[Tensor, "S"]  # unconditional, at the best powers, in nats
    noise_variance: Float[Tensor, "S"]  # as given, or estimated without bias from the residual
    converged: Bool[Tensor, "S"]


def nfmle(
    recording: Recording,
    start: Sources,
    volume: Volume,
    *,
    criterion: Criterion = "conditional",
    options: FitOptions = THOROUGH,
    power_noise: tuple[Float[Tensor, "S K"], Float[Tensor, "S"]] | None = None,
) -> Fit:
    """Refine all sources of each scene by maximum likelihood.

    Args:
        recording: S scenes. Their noise variance, where given, is taken as known.
        start: initial positions [S, K], moved into the volume first; NaN where there is no source.
        volume: the box that bounds the positions.
        criterion: ``conditional`` (deterministic symbols) or ``unconditional`` (Gaussian symbols, with powers
            and unknown noise variance as further unknowns). The latter misses fewer sources below 5 dB.
        options: when to stop.
        power_noise: see :func:`refine`.

    Raises:
        InputError: the start has another number of scenes or infinite values, or there are more sources than
            the data can identify.
    """
    recording = recording.stacked()
    positions, active = unpack(start, recording)
    check_fit(recording, active.sum(-1), volume)
    end = refine(
        recording, positions, active, volume, criterion=criterion, options=options, power_noise=power_noise
    )
    if recording.symbols == "correlated" and criterion == "unconditional":
        end = refine_correlated(recording, end, active, volume, options)
    return complete_fit(recording, end.positions, active, end.converged, volume, end=end)


def unpack(start: Sources, recording: Recording) -> tuple[Float[Tensor, "S K 3"], Bool[Tensor, "S K"]]:
    """Positions as azimuth, elevation and 1/range in float64 (finite everywhere), and a mask of the sources.

    Raises:
        InputError: another number of scenes, an infinite value, or NaN in one coordinate only.
    """
    if start.azimuth.ndim != 2 or len(start.azimuth) != len(recording):
        raise InputError(
            "start",
            f"must hold positions [S, K] of the recording's {len(recording)} scenes; got shape "
            f"{list(start.azimuth.shape)}",
        )
    active = start.active
    azimuth, elevation, distance = (value.double() for value in start.filled())
    positions = torch.stack((azimuth, elevation, 1 / distance), dim=-1)
    # Ranges may be infinite; one of 0 has an infinite inverse.
    if not bool((positions.isfinite().all(-1) & (distance >= 0)).all()):
        for name, value in (("azimuth", azimuth), ("elevation", elevation)):
            if not value.isfinite().all():
                raise InputError(f"start.{name}", "values must be finite, or NaN where there is no source")
        raise InputError("start.range", f"ranges must be positive; got {float(distance.min()):g} m")
    return positions, active


def pack(positions: Float[Tensor, "S K 3"], active: Bool[Tensor, "S K"]) -> Sources:
    """The inverse of :func:`unpack`."""
    azimuth, elevation, q = torch.where(active[..., None], positions, torch.nan).unbind(-1)
    return Sources(azimuth=wrapped(azimuth), elevation=elevation, range=1 / q)


def complete_fit(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    converged: Bool[Tensor, "S"],
    volume: Volume | None,
    *,
    end: FitState | None = None,
) -> Fit:
    """Complete a fit at given positions: symbols, powers, noise variance, cost and likelihood.

    Args:
        recording: S scenes.
        positions: of the sources.
        active: which entries hold a source.
        converged: whether the positions are those of a converged fit.
        volume: the box in which the positions were fitted; ``None`` if they were given.
        end: state of the fit that ended there, whose powers are kept. Without powers in it, they are fitted.
    """
    recording = recording.stacked()
    _, L, M = recording.snapshots.shape
    kernel = None if recording.symbols == "correlated" else kernel_for(recording)
    parts = []
    for block in scene_blocks(recording, positions.shape[1]):
        part, x, there = recording[block], positions[block], active[block]
        if kernel is None:
            at = sufficient_statistics(part, x, there)
            s = symbols(at)
            s, cost = s.mT, residual_energy(at, s)
        else:
            s, cost = kernel.least_squares(part, x, there)
        if recording.symbols == "correlated":
            P, noise, value = fit_source_covariance(part.noise_variance, at)
            power = P.diagonal(dim1=-2, dim2=-1).real
        elif end is None or end.power_noise is None:
            power, noise, value = (
                fit_powers(part.noise_variance, at)
                if kernel is None
                else kernel.fit_powers(part, x, there, POWER_FIT)
            )
        else:
            (power, noise), value = (one[block] for one in end.power_noise), end.value[block]
            energy = torch.view_as_real(part.snapshots).double().square().sum((1, 2, 3))
            power = torch.where((energy > 0)[:, None], power, 0)
        parts.append((s, cost, power, noise, value))
    s, cost, power, noise, value = (torch.cat(part) for part in zip(*parts, strict=True))
    if recording.noise_variance is None:
        count = active.sum(-1)
        fitted = (
            torch.zeros_like(count)
            if volume is None
            else volume.free_coordinates(recording.panel, positions, active)
        )
        noise = noise_from_fit(cost, count, fitted, L, M)
    position = pack(positions, active)
    sources = Sources(
        azimuth=position.azimuth,
        elevation=position.elevation,
        range=position.range,
        power=power.masked_fill(~active, torch.nan),
        symbols=s.masked_fill(~active[..., None], torch.nan),
    )
    return Fit(
        sources=sources, cost=cost, neg_log_likelihood=value, noise_variance=noise, converged=converged
    )


def better(one: Fit, other: Fit) -> Fit:
    """Scene by scene the likelier of two fits with the same numbers of sources."""
    return choose(other.neg_log_likelihood < one.neg_log_likelihood, one, other)
