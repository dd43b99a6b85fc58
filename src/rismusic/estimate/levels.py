"""Powers and noise variance of the greatest unconditional likelihood, the positions held."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rismusic.estimate.descent import Effort, descend
from rismusic.estimate.likelihood import conditional_cost, symbols, unconditional, unexplained
from rismusic.estimate.moments import Moments, moments, scene_blocks
from rismusic.estimate.noise import noise_from_fit
from rismusic.recording import Recording
from rismusic.wave import Wave

Criterion = Literal["conditional", "unconditional"]

LEVELS = Effort(steps=20, tolerance=1e-3)
# Powers are searched within these factors of the mean received power, the noise variance likewise.
_POWER = (1e-6, 1e3)
_NOISE = (1e-15, 2.0)


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
    limits: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Float[Tensor, "S K"], Float[Tensor, "S"], Float[Tensor, "S"]]:
    """Powers and noise variance (unless it is known) of the greatest unconditional likelihood.

    Args:
        noise_variance: sigma^2; none where it is not known.
        at: moments, without derivatives.
        effort: when to stop.
        limits: what :func:`level_limits` says, if it was asked already.

    Returns:
        Powers [S, K] (0 in empty places and in scenes of zeros), noise variance [S], minus log-likelihood
        [S] in nats.
    """
    start, lower, upper = limits or level_limits(noise_variance, at)
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


def level_limits(noise_variance: Tensor | None, at: Moments) -> tuple[Tensor, Tensor, Tensor]:
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
        noise = noise_from_fit(unexplained(at, s), count, L, at.outputs)
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
