r"""Near-field maximum likelihood (NF-MLE): all sources of a scene refined at once on its raw snapshots.

The unknowns are azimuth, elevation and inverse range :math:`q = 1/r` of every source; q because the phase of
a far source is nearly linear in it while its range runs away. Symbols are eliminated (variable projection).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rismusic.errors import InputError
from rismusic.estimate.descent import Effort
from rismusic.estimate.grid import Volume
from rismusic.estimate.levels import Criterion, fit_powers
from rismusic.estimate.likelihood import symbols, unexplained
from rismusic.estimate.moments import moments, scene_blocks
from rismusic.estimate.noise import check_fit, noise_from_fit
from rismusic.estimate.refine import THOROUGH, Refined, refine
from rismusic.recording import Recording
from rismusic.scene import Sources
from rismusic.wave import Wave


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
    effort: Effort = THOROUGH,
    wave: Wave = "spherical",
    levels: tuple[Float[Tensor, "S K"], Float[Tensor, "S"]] | None = None,
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
        levels: see :func:`~rismusic.estimate.refine.refine`.

    Raises:
        InputError: a start of another number of scenes or with infinite values, or more sources than the data
            can carry.
    """
    positions, active = unpack(start, recording)
    check_fit(recording, active.sum(-1))
    end = refine(
        recording, positions, active, volume, criterion=criterion, effort=effort, wave=wave, levels=levels
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
    end: Refined | None = None,
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
        at = moments(part, positions[block], active[block], wave=wave)
        if end is None or end.levels is None:
            power, noise, value = fit_powers(part.noise_variance, at)
        else:
            (power, noise), value = (level[block] for level in end.levels), end.value[block]
            power = torch.where((at.energy.sum(dim=1) > 0)[:, None], power, 0)
        s = symbols(at)
        parts.append((s.mT, unexplained(at, s), power, noise, value))
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
