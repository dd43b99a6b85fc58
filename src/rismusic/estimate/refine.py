"""Descent on either likelihood, for blocks of scenes of any number of sources: what NF-MLE is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.estimate.descent import Descent, descend
from rismusic.estimate.grid import Volume
from rismusic.estimate.likelihood import (
    Moments,
    conditional,
    conditional_cost,
    moments,
    symbols,
    unconditional,
)
from rismusic.estimate.noise import noise_from_fit
from rismusic.recording import Recording
from rismusic.wave import Wave

Criterion = Literal["conditional", "unconditional"]


@dataclass(frozen=True)
class Effort:
    """When a descent ends.

    Args:
        steps: most evaluations of the likelihood after the first.
        tolerance: gain of log-likelihood (nats) that is worth no further step.
    """

    steps: int = 60
    tolerance: float = 1e-4


@dataclass(frozen=True, eq=False)
class Refined:
    """Where a descent from the sources of S scenes ended.

    Args:
        positions: azimuth, elevation, 1/range.
        value: minus the log-likelihood there (nats; up to a constant for each criterion).
        converged: whether the descent came to rest.
        levels: powers [S, K] and noise variance [S] there, of the unconditional likelihood; else none.
    """

    positions: Float[Tensor, "S K 3"]
    value: Float[Tensor, "S"]
    converged: Bool[Tensor, "S"]
    levels: tuple[Float[Tensor, "S K"], Float[Tensor, "S"]] | None

    def __getitem__(self, scenes: Tensor) -> Refined:
        """That of some scenes."""
        levels = None if self.levels is None else (self.levels[0][scenes], self.levels[1][scenes])
        return Refined(self.positions[scenes], self.value[scenes], self.converged[scenes], levels)

    def with_others(self, scenes: Int64[Tensor, "B"], others: Refined) -> Refined:
        """The same with some scenes replaced."""

        def put(one: Tensor, other: Tensor) -> Tensor:
            return one.index_copy(0, scenes, other)

        levels = self.levels
        if levels is not None and others.levels is not None:
            levels = put(levels[0], others.levels[0]), put(levels[1], others.levels[1])
        return Refined(
            put(self.positions, others.positions),
            put(self.value, others.value),
            put(self.converged, others.converged),
            levels,
        )


# 1e-4 nats leave an error of 0.014 standard deviations.
THOROUGH = Effort(steps=60, tolerance=1e-4)
ROUGH = Effort(steps=12, tolerance=3e-2)
LEVELS = Effort(steps=20, tolerance=1e-3)

# Bytes that the largest arrays of one block of scenes may take.
_BLOCK = 2**27
# Powers are searched within these factors of the mean received power, the noise variance likewise.
_POWER = (1e-6, 1e3)
_NOISE = (1e-15, 2.0)


def refine(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    volume: Volume,
    *,
    criterion: Criterion = "conditional",
    effort: Effort = THOROUGH,
    wave: Wave = "spherical",
    levels: tuple[Float[Tensor, "S K"], Float[Tensor, "S"]] | None = None,
) -> Refined:
    """Descend to the nearest maximum of the likelihood; see :func:`~rismusic.estimate.nfmle.nfmle`.

    Args:
        recording: S scenes.
        positions: azimuth, elevation, 1/range of the start.
        active: which places hold a source.
        volume: see :func:`~rismusic.estimate.nfmle.nfmle`.
        criterion: see :func:`~rismusic.estimate.nfmle.nfmle`.
        effort: see :func:`~rismusic.estimate.nfmle.nfmle`.
        wave: the form of the wave.
        levels: powers and noise variance to start from with the unconditional likelihood; if none, its best
            ones at the start.
    """
    parts = []
    for block in scene_blocks(recording, 4 * positions.shape[1]):
        x, there = positions[block], active[block]
        if criterion == "conditional":
            fit = _conditional(recording[block], x, there, volume, wave, effort)
        else:
            start = None if levels is None else (levels[0][block], levels[1][block])
            fit = _unconditional(recording[block], x, there, volume, wave, effort, start)
        parts.append((fit.point, fit.value, fit.converged))
    point, value, converged = (torch.cat(part) for part in zip(*parts, strict=True))
    K = positions.shape[1]
    found = None
    if criterion == "unconditional":
        found = torch.where(active, point[:, 3 * K : -1].exp(), 0), point[:, -1].exp()
    return Refined(point[:, : 3 * K].unflatten(-1, (-1, 3)), value, converged, found)


def scene_blocks(recording: Recording, columns: int) -> list[slice]:
    """Blocks of scenes whose fields, ``columns`` of them for each scene, stay within the memory meant."""
    _, L, M = recording.snapshots.shape
    N = recording.elements.shape[0]
    coded = 1 if recording.codes is None else recording.codes.shape[-2]
    # Coded columns on the panel, fields at the receiver and their float64 copies, the link's own rows.
    each = coded * columns * (8 * N + 40 * M) + 8 * N * (L + M) + 4 * 16 * coded * columns**2
    step = max(1, _BLOCK // each)
    return [slice(i, min(i + step, len(recording))) for i in range(0, len(recording), step)]


def fit_levels(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    wave: Wave = "spherical",
) -> tuple[Float[Tensor, "S K"], Float[Tensor, "S"]]:
    """Powers and noise variance of the greatest unconditional likelihood at the given positions."""
    parts = []
    for block in scene_blocks(recording, positions.shape[1]):
        part = recording[block]
        at = moments(part, positions[block], active[block], wave=wave)
        parts.append(fit_powers(part.noise_variance, at)[:2])
    power, noise = (torch.cat(part) for part in zip(*parts, strict=True))
    return power, noise


def values_without(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    criterion: Criterion,
) -> Float[Tensor, "S K"]:
    """Minus the log-likelihood (nats) without each source, all others where they are; infinite for none."""
    parts = []
    for block in scene_blocks(recording, 2 * positions.shape[1]):
        part, there = recording[block], active[block]
        at = moments(part, positions[block], there).without_each()
        if criterion == "conditional":
            value = at.size * conditional_cost(at).log()
        else:
            noise = part.noise_variance
            value = fit_powers(None if noise is None else noise.repeat_interleave(there.shape[1]), at)[2]
        parts.append(torch.where(there, value.view(there.shape), torch.inf))
    return torch.cat(parts)


def fit_powers(
    noise_variance: Float[Tensor, "S"] | None,
    at: Moments,
    effort: Effort = LEVELS,
) -> tuple[Float[Tensor, "S K"], Float[Tensor, "S"], Float[Tensor, "S"]]:
    """Powers and noise variance (unless it is known) of the greatest unconditional likelihood.

    Args:
        noise_variance: sigma^2; none where it is not known.
        at: moments, without derivatives.
        effort: when to stop.

    Returns:
        Powers [S, K] (0 in empty places and in scenes of zeros), noise variance [S], minus log-likelihood
        [S] in nats.
    """
    start, lower, upper = _levels(noise_variance, at)
    K = at.active.shape[1]
    fit = descend(
        lambda scenes, x: unconditional(at[scenes], x[:, :K].exp(), x[:, K].exp()),
        start,
        lower,
        upper,
        steps=effort.steps,
        tolerance=effort.tolerance,
    )
    heard = at.active & (at.energy.sum(dim=1) > 0)[:, None]
    return torch.where(heard, fit.point[:, :K].exp(), 0), fit.point[:, K].exp(), fit.value


def _conditional(
    recording: Recording, positions: Tensor, active: Tensor, volume: Volume, wave: Wave, effort: Effort
) -> Descent:
    at = _At(recording, active, wave)
    lower, upper = _box(positions, active, volume)
    return descend(
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
    effort: Effort,
    levels: tuple[Tensor, Tensor] | None,
) -> Descent:
    at, K = _At(recording, active, wave), positions.shape[1]
    lower, upper = _box(positions, active, volume)
    inside = torch.minimum(torch.maximum(positions.flatten(1), lower), upper)
    here = at(torch.arange(len(recording), device=active.device), inside)
    plain = here.without_derivatives()
    start, least, most = _levels(recording.noise_variance, plain)
    power, noise = fit_powers(recording.noise_variance, plain)[:2] if levels is None else levels
    start = torch.cat((power.clamp_min(torch.finfo(power.dtype).tiny), noise[:, None]), dim=1).log()
    start = torch.minimum(torch.maximum(start, least), most)

    def value(at: Moments, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return unconditional(at, x[:, 3 * K : -1].exp(), x[:, -1].exp())

    join = [torch.cat(pair, dim=1) for pair in ((inside, start), (lower, least), (upper, most))]
    return descend(
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

    def __call__(self, scenes: Tensor, x: Tensor) -> Moments:
        # The batch only ever shrinks: as many scenes as before are the same scenes.
        if len(scenes) != len(self._part):
            self._part, self._present = self._recording[scenes], self._active[scenes]
        return moments(self._part, x.unflatten(-1, (-1, 3)), self._present, derivatives=True, wave=self._wave)


def _box(positions: Tensor, active: Tensor, volume: Volume) -> tuple[Tensor, Tensor]:
    """Limits of the coordinates, [S, 3K]; empty places are held where they are."""
    lower, upper = (
        positions.new_tensor(limit).expand_as(positions) for limit in (volume.lower, volume.upper)
    )
    there = active[..., None]
    return torch.where(there, lower, positions).flatten(1), torch.where(there, upper, positions).flatten(1)


def _levels(noise_variance: Tensor | None, at: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """Start and limits of log p and log sigma^2, [S, K + 1]; what is known or empty is held."""
    L, K = at.energy.shape[1], at.active.shape[1]
    count = at.active.sum(-1)
    energy = at.energy.mean(dim=1)
    energy = torch.where(energy > 0, energy, 1)
    norm = at.gram[..., :K, :K].diagonal(dim1=-2, dim2=-1).real.mean(dim=1)
    norm = torch.where(norm > 0, norm, 1)
    most = energy[:, None] / norm
    power = symbols(at).abs().square().mean(dim=1).clamp(_POWER[0] * most, most)
    if noise_variance is None:
        noise = noise_from_fit(conditional_cost(at), count, L, at.outputs)
        limits = [energy / at.outputs * factor for factor in _NOISE]
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
