r"""Powers and noise variance of the greatest unconditional likelihood, the positions held.

Descent on either likelihood, for blocks of scenes of any number of sources: what NF-MLE is made of.

Near-field maximum likelihood (NF-MLE): all sources of a scene refined at once on its raw snapshots.

The unknowns are azimuth, elevation and inverse range :math:`q = 1/r` of every source; q because the phase of
a far source is nearly linear in it while its range runs away. Symbols are eliminated (variable projection).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.array import Wave
from rismusic.errors import InputError
from rismusic.estimation.grid import Volume
from rismusic.estimation.levenberg_marquardt import FitOptions, Minimum, levenberg_marquardt
from rismusic.estimation.likelihood import (
    SufficientStatistics,
    conditional,
    conditional_cost,
    residual_energy,
    scene_blocks,
    sufficient_statistics,
    symbols,
    unconditional,
)
from rismusic.estimation.noise import check_fit, noise_from_fit
from rismusic.io import Recording
from rismusic.sources import Sources

Criterion = Literal["conditional", "unconditional"]

POWER_FIT = FitOptions(steps=20, tolerance=0.02)
# Powers are searched within these factors of the mean received power, the noise variance likewise.
_POWER = (1e-6, 1e3)
_NOISE = (1e-15, 2.0)


def fit_power_noise(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    wave: Wave = "spherical",
) -> tuple[Float[Tensor, "S K"], Float[Tensor, "S"]]:
    """Powers and noise variance of the greatest unconditional likelihood at the given positions."""
    parts = []
    for block in scene_blocks(recording, positions.shape[1]):
        part = recording[block]
        at = sufficient_statistics(part, positions[block], active[block], wave=wave)
        parts.append(fit_powers(part.noise_variance, at)[:2])
    power, noise = (torch.cat(part) for part in zip(*parts, strict=True))
    return power, noise


def values_without_each(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    criterion: Criterion,
) -> Float[Tensor, "S K"]:
    """Minus the log-likelihood (nats) without each source, all others where they are; infinite for none."""
    parts = []
    for block in scene_blocks(recording, 2 * positions.shape[1]):
        part, there = recording[block], active[block]
        at = sufficient_statistics(part, positions[block], there).without_each()
        if criterion == "conditional":
            value = at.size * conditional_cost(at).log()
        else:
            noise = part.noise_variance
            value = fit_powers(None if noise is None else noise.repeat_interleave(there.shape[1]), at)[2]
        parts.append(torch.where(there, value.view(there.shape), torch.inf))
    return torch.cat(parts)


def fit_powers(
    noise_variance: Float[Tensor, "S"] | None,
    at: SufficientStatistics,
    effort: FitOptions = POWER_FIT,
    limits: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Float[Tensor, "S K"], Float[Tensor, "S"], Float[Tensor, "S"]]:
    """Powers and noise variance (unless it is known) of the greatest unconditional likelihood.

    Args:
        noise_variance: sigma^2; none where it is not known.
        at: moments, without derivatives.
        effort: when to stop.
        limits: what :func:`power_noise_limits` says, if it was asked already.

    Returns:
        Powers [S, K] (0 in empty places and in scenes of zeros), noise variance [S], minus log-likelihood
        [S] in nats.
    """
    start, lower, upper = limits or power_noise_limits(noise_variance, at)
    K = at.active.shape[1]
    fit = levenberg_marquardt(
        lambda scenes, x: unconditional(at[scenes], x[:, :K].exp(), x[:, K].exp()),
        start,
        lower,
        upper,
        steps=effort.steps,
        tolerance=effort.tolerance,
    )
    heard = at.active & (at.energy.sum(dim=1) > 0)[:, None]
    return torch.where(heard, fit.point[:, :K].exp(), 0), fit.point[:, K].exp(), fit.value


def power_noise_limits(
    noise_variance: Tensor | None, at: SufficientStatistics
) -> tuple[Tensor, Tensor, Tensor]:
    """Start and limits of log p and log sigma^2, [S, K + 1]; what is known or empty is held."""
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
        noise = noise_from_fit(residual_energy(at, s), count, L, at.antennas)
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
class FitState:
    """Where a descent from the sources of S scenes ended.

    Args:
        positions: azimuth, elevation, 1/range.
        value: minus the log-likelihood there (nats; up to a constant for each criterion).
        converged: whether the descent came to rest.
        power_noise: powers [S, K] and noise variance [S] there, of the unconditional likelihood; else none.
    """

    positions: Float[Tensor, "S K 3"]
    value: Float[Tensor, "S"]
    converged: Bool[Tensor, "S"]
    power_noise: tuple[Float[Tensor, "S K"], Float[Tensor, "S"]] | None

    def __getitem__(self, scenes: Tensor) -> FitState:
        """That of some scenes."""
        power_noise = (
            None if self.power_noise is None else (self.power_noise[0][scenes], self.power_noise[1][scenes])
        )
        return FitState(self.positions[scenes], self.value[scenes], self.converged[scenes], power_noise)

    def with_others(self, scenes: Int64[Tensor, "B"], others: FitState) -> FitState:
        """The same with some scenes replaced."""

        def put(one: Tensor, other: Tensor) -> Tensor:
            return one.index_copy(0, scenes, other)

        power_noise = self.power_noise
        if power_noise is not None and others.power_noise is not None:
            power_noise = (
                put(power_noise[0], others.power_noise[0]),
                put(power_noise[1], others.power_noise[1]),
            )
        return FitState(
            put(self.positions, others.positions),
            put(self.value, others.value),
            put(self.converged, others.converged),
            power_noise,
        )


THOROUGH = FitOptions()
ROUGH = FitOptions(steps=12, tolerance=0.2)


def refine(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    volume: Volume,
    *,
    criterion: Criterion = "conditional",
    effort: FitOptions = THOROUGH,
    wave: Wave = "spherical",
    power_noise: tuple[Float[Tensor, "S K"], Float[Tensor, "S"]] | None = None,
) -> FitState:
    """Descend to the nearest maximum of the likelihood; see :func:`~rismusic.estimation.maximum_likelihood.nfmle`.

    Args:
        recording: S scenes.
        positions: azimuth, elevation, 1/range of the start.
        active: which places hold a source.
        volume: see :func:`~rismusic.estimation.maximum_likelihood.nfmle`.
        criterion: see :func:`~rismusic.estimation.maximum_likelihood.nfmle`.
        effort: see :func:`~rismusic.estimation.maximum_likelihood.nfmle`.
        wave: the form of the wave.
        power_noise: powers and noise variance to start from with the unconditional likelihood; if none, its best
            ones at the start, or those of least squares, as ``effort`` says.
    """
    parts = []
    for block in scene_blocks(recording, 4 * positions.shape[1]):
        x, there = positions[block], active[block]
        if criterion == "conditional":
            fit = _conditional(recording[block], x, there, volume, wave, effort)
        else:
            start = None if power_noise is None else (power_noise[0][block], power_noise[1][block])
            fit = _unconditional(recording[block], x, there, volume, wave, effort, start)
        parts.append((fit.point, fit.value, fit.converged))
    point, value, converged = (torch.cat(part) for part in zip(*parts, strict=True))
    K = positions.shape[1]
    found = None
    if criterion == "unconditional":
        found = torch.where(active, point[:, 3 * K : -1].exp(), 0), point[:, -1].exp()
    return FitState(point[:, : 3 * K].unflatten(-1, (-1, 3)), value, converged, found)


def _conditional(
    recording: Recording, positions: Tensor, active: Tensor, volume: Volume, wave: Wave, effort: FitOptions
) -> Minimum:
    at = _At(recording, active, wave)
    lower, upper = _box(positions, active, volume)
    return levenberg_marquardt(
        lambda scenes, x: conditional(at(scenes, x)),
        positions.flatten(1),
        lower,
        upper,
        steps=effort.steps,
        tolerance=effort.tolerance,
    )


def _unconditional(
    recording: Recording,
    positions: Tensor,
    active: Tensor,
    volume: Volume,
    wave: Wave,
    effort: FitOptions,
    power_noise: tuple[Tensor, Tensor] | None,
) -> Minimum:
    at, K = _At(recording, active, wave), positions.shape[1]
    lower, upper = _box(positions, active, volume)
    inside = torch.minimum(torch.maximum(positions.flatten(1), lower), upper)
    here = at(torch.arange(len(recording), device=active.device), inside)
    plain = here.without_derivatives()
    limits = power_noise_limits(recording.noise_variance, plain)
    if power_noise is None and effort.powers_first:
        power_noise = fit_powers(recording.noise_variance, plain, limits=limits)[:2]
    start, least, most = limits
    if power_noise is not None:
        power, noise = power_noise
        start = torch.cat((power.clamp_min(torch.finfo(power.dtype).tiny), noise[:, None]), dim=1).log()
        start = torch.minimum(torch.maximum(start, least), most)

    def value(at: SufficientStatistics, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return unconditional(at, x[:, 3 * K : -1].exp(), x[:, -1].exp())

    join = [torch.cat(pair, dim=1) for pair in ((inside, start), (lower, least), (upper, most))]
    return levenberg_marquardt(
        lambda scenes, x: value(at(scenes, x[:, : 3 * K]), x),
        *join,
        steps=effort.steps,
        tolerance=effort.tolerance,
        first=value(here, join[0]),
    )


class _At:
    """Moments with derivatives, of the scenes that are still in the batch."""

    def __init__(self, recording: Recording, active: Tensor, wave: Wave) -> None:
        self._recording, self._active, self._wave = recording, active, wave
        self._part, self._present = recording, active

    def __call__(self, scenes: Tensor, x: Tensor) -> SufficientStatistics:
        # The batch only ever shrinks: as many scenes as before are the same scenes.
        if len(scenes) != len(self._part):
            self._part, self._present = self._recording[scenes], self._active[scenes]
        return sufficient_statistics(
            self._part, x.unflatten(-1, (-1, 3)), self._present, derivatives=True, wave=self._wave
        )


def _box(positions: Tensor, active: Tensor, volume: Volume) -> tuple[Tensor, Tensor]:
    """Limits of the coordinates, [S, 3K]; empty places are held where they are."""
    lower, upper = (
        positions.new_tensor(limit).expand_as(positions) for limit in (volume.lower, volume.upper)
    )
    there = active[..., None]
    return torch.where(there, lower, positions).flatten(1), torch.where(there, upper, positions).flatten(1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Fit:
    """Sources fitted to the snapshots of S scenes.

    Args:
        sources: positions, mean powers p (of unconditional maximum likelihood) and symbols (of least squares)
            of up to K sources; places without one hold NaN, and come last if they did in the start.
        cost: the conditional cost f = sum_l |P_perp y_l|^2.
        likelihood: minus the unconditional log-likelihood at its best powers, in nats; comparable between
            fits of the same data.
        noise_variance: sigma^2, as given or fitted with the powers and freed of bias.
        converged: whether the refinement came to rest.
    """

    sources: Sources
    cost: Float[Tensor, "S"]
    likelihood: Float[Tensor, "S"]
    noise_variance: Float[Tensor, "S"]
    converged: Bool[Tensor, "S"]

    def __getitem__(self, scenes: Tensor) -> Fit:
        """The fit of some scenes."""
        names = [field.name for field in fields(self) if field.name != "sources"]
        return Fit(sources=self.sources[scenes], **{name: getattr(self, name)[scenes] for name in names})


def nfmle(
    recording: Recording,
    start: Sources,
    volume: Volume,
    *,
    criterion: Criterion = "conditional",
    effort: FitOptions = THOROUGH,
    wave: Wave = "spherical",
    power_noise: tuple[Float[Tensor, "S K"], Float[Tensor, "S"]] | None = None,
) -> Fit:
    """Refine all sources of each scene by maximum likelihood; the likelihood only ever improves.

    Args:
        recording: S scenes; their noise variance, where they have one, is taken as known.
        start: S x K positions, moved into the volume first; NaN where there is no source.
        volume: the box that the sources stay in.
        criterion: ``conditional`` (deterministic symbols) or ``unconditional`` (Gaussian symbols, with the
            powers and, where it is not known, the noise variance as further unknowns; better below 5 dB).
        effort: most evaluations of the likelihood, and the gain (nats) that is worth no further step.
        wave: the form of the wave.
        power_noise: see :func:`~rismusic.estimation.maximum_likelihood.refine`.

    Raises:
        InputError: a start of another number of scenes or with infinite values, or more sources than the data
            can carry.
    """
    positions, active = unpack(start, recording)
    check_fit(recording, active.sum(-1))
    end = refine(
        recording,
        positions,
        active,
        volume,
        criterion=criterion,
        effort=effort,
        wave=wave,
        power_noise=power_noise,
    )
    return finish(recording, end.positions, active, end.converged, wave=wave, end=end)


def unpack(start: Sources, recording: Recording) -> tuple[Float[Tensor, "S K 3"], Bool[Tensor, "S K"]]:
    """Positions (azimuth, elevation, 1/range) in float64, harmless in empty places, and who is there.

    Raises:
        InputError: another number of scenes, a value that is infinite, or NaN in one coordinate only.
    """
    if start.azimuth.ndim != 2 or len(start.azimuth) != len(recording):
        raise InputError(
            "start", f"positions [S, K] of S = {len(recording)} scenes", f"shape {list(start.azimuth.shape)}"
        )
    active = start.active
    azimuth, elevation, distance = (value.double() for value in start.filled())
    for name, value in (("azimuth", azimuth), ("elevation", elevation), ("range", distance)):
        if not torch.isfinite(value).all():
            raise InputError(f"start.{name}", "finite values, NaN where there is no source", "others")
    if not (distance > 0).all():
        raise InputError("start.range", "positive ranges in metres", f"{float(distance.min()):g}")
    return torch.stack((azimuth, elevation, 1 / distance), dim=-1), active


def pack(positions: Float[Tensor, "S K 3"], active: Bool[Tensor, "S K"]) -> Sources:
    """The inverse of :func:`unpack`."""
    azimuth, elevation, q = torch.where(active[..., None], positions, torch.nan).unbind(-1)
    return Sources(azimuth=azimuth, elevation=elevation, range=1 / q)


def finish(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    converged: Bool[Tensor, "S"],
    *,
    wave: Wave = "spherical",
    end: FitState | None = None,
) -> Fit:
    """A fit at the given positions: symbols, powers, noise variance, cost and likelihood.

    Args:
        recording: S scenes.
        positions: azimuth, elevation, 1/range.
        active: which places hold a source.
        converged: what is to be said of the positions.
        wave: the form of the wave.
        end: of a descent to these positions, whose powers are taken if it has some; else the best ones.
    """
    _, L, M = recording.snapshots.shape
    parts = []
    for block in scene_blocks(recording, positions.shape[1]):
        part = recording[block]
        at = sufficient_statistics(part, positions[block], active[block], wave=wave)
        if end is None or end.power_noise is None:
            power, noise, value = fit_powers(part.noise_variance, at)
        else:
            (power, noise), value = (level[block] for level in end.power_noise), end.value[block]
            power = torch.where((at.energy.sum(dim=1) > 0)[:, None], power, 0)
        s = symbols(at)
        parts.append((s.mT, residual_energy(at, s), power, noise, value))
    s, cost, power, noise, value = (torch.cat(part) for part in zip(*parts, strict=True))
    if recording.noise_variance is None:
        noise = noise_from_fit(cost, active.sum(-1), L, M)
    empty = ~active
    place = pack(positions, active)
    sources = Sources(
        azimuth=place.azimuth,
        elevation=place.elevation,
        range=place.range,
        power=power.masked_fill(empty, torch.nan),
        symbols=s.masked_fill(empty[..., None], torch.nan),
    )
    return Fit(sources=sources, cost=cost, likelihood=value, noise_variance=noise, converged=converged)


def better(one: Fit, other: Fit) -> Fit:
    """Of two fits of the same recording with the same numbers of sources, each scene's likelier one."""
    take = other.likelihood < one.likelihood

    def pick(first: Tensor | None, second: Tensor | None) -> Tensor:
        assert first is not None
        assert second is not None
        return torch.where(take.reshape(-1, *[1] * (first.ndim - 1)), second, first)

    def picked(first: Fit | Sources, second: Fit | Sources) -> dict[str, Tensor]:
        names = [field.name for field in fields(first) if field.name != "sources"]
        return {name: pick(getattr(first, name), getattr(second, name)) for name in names}

    return Fit(sources=Sources(**picked(one.sources, other.sources)), **picked(one, other))


def join(parts: list[Fit]) -> Fit:
    """Fits of blocks of scenes as one, all padded to the most places of any."""
    places = max(part.sources.azimuth.shape[1] for part in parts)

    def padded(value: Tensor) -> Tensor:
        missing = value.new_full((len(value), places - value.shape[1], *value.shape[2:]), torch.nan)
        return torch.cat((value, missing), dim=1)

    sources = {
        field.name: torch.cat([padded(getattr(part.sources, field.name)) for part in parts])
        for field in fields(Sources)
    }
    names = [field.name for field in fields(Fit) if field.name != "sources"]
    return Fit(
        sources=Sources(**sources), **{name: torch.cat([getattr(p, name) for p in parts]) for name in names}
    )
