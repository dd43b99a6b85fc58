r"""Exchanges of sources (RELAX): each in turn is taken out, searched again and re-fitted with the others.

After Li and Stoica, "Efficient mixed-spectrum estimation with applications to target feature extraction",
IEEE Trans. SP 44 (1996); here with a joint NF-MLE in place of theirs one source at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.estimate.grid import to_cosines
from rismusic.estimate.levels import Criterion
from rismusic.estimate.refine import ROUGH, Refined, refine
from rismusic.estimate.search import Search, Shortlist, take_out

# A source found again within so many grid steps of where it was is left alone: it would come back to itself.
_SAME = 1.5
GAIN = 0.1
"""What a change must gain (nats) to count: more than the descent leaves undone."""

Prior = Callable[
    [Int64[Tensor, "B"], Float[Tensor, "B K 3"], Bool[Tensor, "B K"]],
    Float[Tensor, "B"],
]
"""Logarithm of how probable sources are beforehand where they are, in scenes of given numbers."""


def exchange(
    search: Search | Shortlist,
    start: Refined,
    active: Bool[Tensor, "S K"],
    *,
    criterion: Criterion = "conditional",
    sweeps: int = 4,
    prior: Prior | None = None,
) -> Refined:
    """Sources taken out, searched again, and kept where the re-fit is likelier.

    Args:
        search: over the grid, or over a few places of each scene, of S scenes.
        start: the fit to improve, refined under the same criterion: to the end, if what an exchange has to
            beat is not to be lower than it seems.
        active: which places hold a source; empty ones come last.
        criterion: the likelihood of search and re-fit.
        sweeps: most passes.
        prior: what an exchange must improve is the likelihood times this; if none, the likelihood alone.

    Returns:
        The fit, roughly refined where something was exchanged; without a prior the likelihood of no scene is
        worse than that of the start.
    """
    recording, grid, at = search.recording, search.grid, start
    everyone = torch.arange(len(recording), device=active.device)
    score = at.value - log_prior(prior, everyone, at.positions, active)
    # One source alone is where the search put it.
    live = (active.sum(-1) > 1).nonzero()[:, 0]
    step = at.positions.new_tensor(grid.step)
    for _ in range(sweeps):
        changed = torch.zeros_like(active[:, 0])
        for k in range(active.shape[1]):
            scenes = live[active[live, k]]
            if len(scenes) == 0:
                break
            others = [i for i in range(active.shape[1]) if i != k]
            here, there = at[scenes], active[scenes]
            levels = None if here.levels is None else (here.levels[0][:, others], here.levels[1])
            rest = take_out(recording[scenes], here.positions[:, others], there[:, others], levels)
            found = search.place(scenes, rest).to(here.positions)
            moved = ((cosines(found) - cosines(here.positions[:, k])).abs() > _SAME * step).any(-1)
            scenes, there, trial = scenes[moved], there[moved], here.positions[moved]
            if len(scenes) == 0:
                continue
            trial[:, k] = found[moved]
            fit = refine(recording[scenes], trial, there, grid.volume, criterion=criterion, effort=ROUGH)
            new = fit.value - log_prior(prior, scenes, fit.positions, there)
            better = new < score[scenes] - GAIN
            scenes = scenes[better]
            if len(scenes) == 0:
                continue
            at = at.with_others(scenes, fit[better])
            score[scenes], changed[scenes] = new[better], True
        live = live[changed[live]]
        if len(live) == 0:
            break
    return at


def log_prior(
    prior: Prior | None,
    scenes: Int64[Tensor, "B"],
    positions: Float[Tensor, "B K 3"],
    active: Bool[Tensor, "B K"],
) -> Float[Tensor, "B"]:
    """What the prior says of sources in some scenes; 0 if there is none."""
    return torch.zeros_like(positions[:, 0, 0]) if prior is None else prior(scenes, positions, active)


def cosines(positions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Azimuth, elevation, 1/range as direction cosines and 1/range."""
    azimuth, elevation, q = positions.unbind(-1)
    return torch.stack(to_cosines(azimuth, elevation, 1 / q), dim=-1)
