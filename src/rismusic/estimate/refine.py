"""Descent on either likelihood, for blocks of scenes of any number of sources: what NF-MLE is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.estimate.descent import Descent, Effort, descend
from rismusic.estimate.grid import Volume
from rismusic.estimate.levels import Criterion, fit_powers, level_limits
from rismusic.estimate.likelihood import conditional, unconditional
from rismusic.estimate.moments import Moments, moments, scene_blocks
from rismusic.recording import Recording
from rismusic.wave import Wave


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
            ones at the start, or those of least squares, as ``effort`` says.
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
    limits = level_limits(recording.noise_variance, plain)
    if levels is None and effort.levels_first:
        levels = fit_powers(recording.noise_variance, plain, limits=limits)[:2]
    start, least, most = limits
    if levels is not None:
        power, noise = levels
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
