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
    sources = active.shape[1]
    for _ in range(sweeps):
        if isinstance(search, Shortlist):
            # Few places are looked at for all sources at once: most scenes are at rest.
            scenes = live.repeat_interleave(sources)
            which = torch.arange(sources, device=live.device).repeat(len(live))
            moved = _searched_again(search, at, active, scenes, which)[1] & active[scenes, which]
            live = live[moved.unflatten(0, (-1, sources)).any(-1)]
        changed = torch.zeros_like(active[:, 0])
        for k in range(sources):
            scenes = live[active[live, k]]
            if len(scenes) == 0:
                break
            found, moved = _searched_again(search, at, active, scenes, torch.full_like(scenes, k))
            scenes, found = scenes[moved], found[moved]
            if len(scenes) == 0:
                continue
            there, trial = active[scenes], at.positions[scenes]
            trial[:, k] = found
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


def _searched_again(
    search: Search | Shortlist, at: Refined, active: Tensor, scenes: Tensor, which: Tensor
) -> tuple[Float[Tensor, "B 3"], Bool[Tensor, "B"]]:
    """Where the search puts a source of some scenes that is taken out, and whether that is elsewhere."""
    here, rows = at[scenes], torch.arange(len(scenes), device=scenes.device)[:, None]
    others = torch.arange(active.shape[1] - 1, device=scenes.device).expand(len(scenes), -1)
    others = others + (others >= which[:, None])
    levels = None if here.levels is None else (here.levels[0][rows, others], here.levels[1])
    there = active[scenes][rows, others]
    rest = take_out(search.recording[scenes], here.positions[rows, others], there, levels)
    found = search.place(scenes, rest).to(here.positions)
    step = found.new_tensor(search.grid.step)
    apart = (cosines(found) - cosines(here.positions[rows[:, 0], which])).abs()
    return found, (apart > _SAME * step).any(-1)


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
