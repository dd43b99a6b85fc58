r"""Near-field maximum likelihood (NF-MLE): all sources of a scene refined at once on its raw snapshots.

The unknowns are azimuth, elevation and inverse range :math:`q = 1/r` of every source; q because the phase of
a far source is nearly linear in it while its range runs away. Symbols are eliminated (variable projection).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rismusic.errors import InputError
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
from rismusic.estimate.noise import check_sources_count, noise_from_fit
from rismusic.recording import Recording
from rismusic.scene import Sources
from rismusic.wave import Wave

Criterion = Literal["conditional", "unconditional"]

# Bytes that the largest arrays of one block of scenes may take.
_BLOCK = 2**27
# Powers are searched within these factors of the mean received power, the noise variance likewise.
_POWER = (1e-6, 1e3)
_NOISE = (1e-15, 2.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Fit:
    """Sources fitted to the snapshots of S scenes.

    Args:
        sources: positions, mean powers p (of unconditional maximum likelihood) and symbols (of least squares)
            of up to K sources; places without one hold NaN, and come last if they did in the start.
        cost: the conditional cost f = sum_l |P_perp y_l|^2.
        likelihood: minus the unconditional log-likelihood at its best powers, in nats; comparable between fits
            of the same data.
        noise_variance: sigma^2, as given or fitted with the powers and freed of bias.
        converged: whether the refinement came to rest.
    """

    sources: Sources
    cost: Float[Tensor, "S"]
    likelihood: Float[Tensor, "S"]
    noise_variance: Float[Tensor, "S"]
    converged: Bool[Tensor, "S"]


def nfmle(
    recording: Recording,
    start: Sources,
    volume: Volume,
    *,
    criterion: Criterion = "conditional",
    steps: int = 60,
    tolerance: float = 1e-4,
    wave: Wave = "spherical",
) -> Fit:
    """Refine all sources of each scene by maximum likelihood; the likelihood only ever improves.

    Args:
        recording: S scenes; their noise variance, where they have one, is taken as known.
        start: S x K positions, moved into the volume first; NaN where there is no source.
        volume: the box that the sources stay in.
        criterion: ``conditional`` (deterministic symbols) or ``unconditional`` (Gaussian symbols, with the
            powers and, where it is not known, the noise variance as further unknowns; better below 5 dB).
        steps: most evaluations of the likelihood.
        tolerance: gain of log-likelihood (nats) that is worth no further step.
        wave: the form of the wave.

    Raises:
        InputError: a start of another number of scenes or with infinite values, or more sources than the data
            can carry.
    """
    positions, active = unpack(start, recording)
    check_sources_count(recording, active.sum(-1))
    positions, _, converged = refine(
        recording, positions, active, volume, criterion=criterion, steps=steps, tolerance=tolerance, wave=wave
    )
    return finish(recording, positions, active, converged, wave=wave)


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


def refine(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    volume: Volume,
    *,
    criterion: Criterion = "conditional",
    steps: int = 60,
    tolerance: float = 1e-4,
    wave: Wave = "spherical",
) -> tuple[Float[Tensor, "S K 3"], Float[Tensor, "S"], Bool[Tensor, "S"]]:
    """Descend to the nearest maximum of the likelihood; see :func:`nfmle`.

    Returns:
        Positions, minus the log-likelihood there (nats; up to a constant for each criterion), and where the
        descent came to rest.
    """
    parts = []
    for block in scene_blocks(recording, 4 * positions.shape[1]):
        part = (recording[block], positions[block], active[block], volume)
        settings = {"steps": steps, "tolerance": tolerance}
        fit = (_conditional if criterion == "conditional" else _unconditional)(*part, wave, **settings)
        x = fit.point[:, : 3 * positions.shape[1]].unflatten(-1, (-1, 3))
        parts.append((torch.where(active[block, :, None], x, positions[block]), fit.value, fit.converged))
    refined, value, converged = (torch.cat(part) for part in zip(*parts, strict=True))
    return refined, value, converged


def scene_blocks(recording: Recording, columns: int) -> list[slice]:
    """Blocks of scenes whose fields, ``columns`` of them for each scene, stay within the memory meant."""
    _, L, M = recording.snapshots.shape
    N = recording.elements.shape[0]
    coded = 1 if recording.codes is None else recording.codes.shape[-2]
    # Coded columns on the panel, fields at the receiver and their float64 copies, the link's own rows.
    each = coded * columns * (8 * N + 40 * M) + 8 * N * (L + M) + 4 * 16 * coded * columns**2
    step = max(1, _BLOCK // each)
    return [slice(i, min(i + step, len(recording))) for i in range(0, len(recording), step)]


def finish(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    converged: Bool[Tensor, "S"],
    *,
    wave: Wave = "spherical",
) -> Fit:
    """A fit at the given positions: symbols, powers, noise variance, cost and likelihood."""
    _, L, M = recording.snapshots.shape
    parts = []
    for block in scene_blocks(recording, positions.shape[1]):
        part = recording[block]
        at = moments(part, positions[block], active[block], wave=wave)
        power, noise, value = fit_powers(part, at)
        parts.append((symbols(at).mT, conditional_cost(at), power, noise, value))
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


def fit_powers(
    recording: Recording, at: Moments, *, steps: int = 20, tolerance: float = 1e-3
) -> tuple[Float[Tensor, "S K"], Float[Tensor, "S"], Float[Tensor, "S"]]:
    """Powers and noise variance (unless it is known) of the greatest unconditional likelihood.

    Returns:
        Powers [S, K] (0 in empty places), noise variance [S], minus log-likelihood [S] in nats.
    """
    start, lower, upper = _levels(recording, at)
    K = at.active.shape[1]
    fit = descend(
        lambda scenes, x: unconditional(at[scenes], x[:, :K].exp(), x[:, K].exp()),
        start,
        lower,
        upper,
        steps=steps,
        tolerance=tolerance,
    )
    return torch.where(at.active, fit.point[:, :K].exp(), 0), fit.point[:, K].exp(), fit.value


def _conditional(
    recording: Recording, positions: Tensor, active: Tensor, volume: Volume, wave: Wave, **settings: float
) -> Descent:
    at = _At(recording, active, wave)
    lower, upper = _box(positions, active, volume)
    return descend(lambda scenes, x: conditional(at(scenes, x)), positions.flatten(1), lower, upper, **settings)


def _unconditional(
    recording: Recording, positions: Tensor, active: Tensor, volume: Volume, wave: Wave, **settings: float
) -> Descent:
    at, K = _At(recording, active, wave), positions.shape[1]
    lower, upper = _box(positions, active, volume)
    inside = torch.minimum(torch.maximum(positions.flatten(1), lower), upper)
    plain = moments(recording, inside.unflatten(-1, (K, 3)), active, wave=wave)
    start, least, most = _levels(recording, plain)
    power, noise, _ = fit_powers(recording, plain)
    start = torch.cat((power.clamp_min(torch.finfo(power.dtype).tiny), noise[:, None]), dim=1).log()

    def evaluate(scenes: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return unconditional(at(scenes, x[:, : 3 * K]), x[:, 3 * K : -1].exp(), x[:, -1].exp())

    join = [torch.cat(pair, dim=1) for pair in ((inside, start), (lower, least), (upper, most))]
    return descend(evaluate, *join, **settings)


class _At:
    """Moments with derivatives, of the scenes that are still in the batch."""

    def __init__(self, recording: Recording, active: Tensor, wave: Wave) -> None:
        self._recording, self._active, self._wave = recording, active, wave
        self._part, self._present = recording, active

    def __call__(self, scenes: Tensor, x: Tensor) -> Moments:
        # The batch only ever shrinks: as many scenes as before are the same scenes.
        if len(scenes) != len(self._part):
            self._part, self._present = self._recording[scenes], self._active[scenes]
        return moments(
            self._part, x.unflatten(-1, (-1, 3)), self._present, derivatives=True, wave=self._wave
        )


def _box(positions: Tensor, active: Tensor, volume: Volume) -> tuple[Tensor, Tensor]:
    """Limits of the coordinates, [S, 3K]; empty places are held where they are."""
    lower, upper = (positions.new_tensor(limit).expand_as(positions) for limit in (volume.lower, volume.upper))
    there = active[..., None]
    return torch.where(there, lower, positions).flatten(1), torch.where(there, upper, positions).flatten(1)


def _levels(recording: Recording, at: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """Start and limits of log p and log sigma^2, [S, K + 1]; what is known or empty is held."""
    L, K = at.energy.shape[1], at.active.shape[1]
    count = at.active.sum(-1)
    energy = at.energy.mean(dim=1)
    energy = torch.where(energy > 0, energy, 1)
    norm = at.gram[..., :K, :K].diagonal(dim1=-2, dim2=-1).real.mean(dim=1)
    norm = torch.where(norm > 0, norm, 1)
    most = energy[:, None] / norm
    power = symbols(at).abs().square().mean(dim=1).clamp(_POWER[0] * most, most)
    if recording.noise_variance is None:
        noise = noise_from_fit(conditional_cost(at), count, L, at.outputs)
        limits = [energy / at.outputs * factor for factor in _NOISE]
        noise = noise.clamp(limits[0], limits[1])
    else:
        noise = recording.noise_variance.double()
        limits = [noise, noise]
    low, high = (torch.where(at.active, most * factor, power.clamp_min(1e-300)) for factor in _POWER)
    start = torch.where(at.active, power, low)
    return tuple(
        torch.cat((p, n[:, None]), dim=1).log() for p, n in ((start, noise), (low, limits[0]), (high, limits[1]))
    )  # type: ignore[return-value]
