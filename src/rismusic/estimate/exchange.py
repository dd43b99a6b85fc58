r"""Exchanges of sources (RELAX): each in turn is taken out, searched again and re-fitted with the others.

After Li and Stoica, "Efficient mixed-spectrum estimation with applications to target feature extraction",
IEEE Trans. SP 44 (1996); here with a joint NF-MLE in place of theirs one source at a time.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rismusic.estimate.grid import to_cosines
from rismusic.estimate.refine import ROUGH, Criterion, fit_levels, refine
from rismusic.estimate.search import Search, Shortlist, take_out

# A source found again within so many grid steps of where it was is left alone: it would come back to itself.
_SAME = 1.5
# An exchange counts when it gains more than the descent leaves undone (nats).
_GAIN = 0.1


def exchange(
    search: Search | Shortlist,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    *,
    criterion: Criterion = "conditional",
    sweeps: int = 4,
    value: Float[Tensor, "S"] | None = None,
) -> Float[Tensor, "S K 3"]:
    """Sources taken out, searched again and kept where the likelihood of the re-fit is better.

    Args:
        search: over the grid, or over a few places of each scene, of S scenes.
        positions: of the fit to improve.
        active: which places hold a source; empty ones come last.
        criterion: the likelihood of search and re-fit.
        sweeps: most passes.
        value: minus the log-likelihood (nats) of positions that are refined already, as
            :func:`~rismusic.estimate.refine.refine` gives it; if none, they are refined first.

    Returns:
        Positions, roughly refined where something was exchanged; the likelihood of no scene is worse than
        that of NF-MLE from the start.
    """
    recording, grid = search.recording, search.grid
    if value is None:
        # To the end, so that what an exchange has to beat is not lower than it seems.
        positions, value, _ = refine(recording, positions, active, grid.volume, criterion=criterion)
    else:
        positions, value = positions.clone(), value.clone()
    # One source alone is where the search put it.
    live = (active.sum(-1) > 1).nonzero()[:, 0]
    step = positions.new_tensor(grid.step)
    if criterion == "unconditional":
        power, noise = fit_levels(recording, positions, active)
    for _ in range(sweeps):
        changed = torch.zeros(len(positions), dtype=torch.bool, device=positions.device)
        for k in range(positions.shape[1]):
            scenes = live[active[live, k]]
            if len(scenes) == 0:
                break
            others = [i for i in range(positions.shape[1]) if i != k]
            part = recording[scenes]
            levels = None
            if criterion == "unconditional":
                levels = power[scenes][:, others], noise[scenes]
            rest = take_out(part, positions[scenes][:, others], active[scenes][:, others], levels)
            found = search.place(scenes, rest).to(positions)
            moved = ((_cosines(found) - _cosines(positions[scenes, k])).abs() > _SAME * step).any(-1)
            scenes, found = scenes[moved], found[moved]
            if len(scenes) == 0:
                continue
            trial = positions[scenes]
            trial[:, k] = found
            trial, new, _ = refine(
                recording[scenes], trial, active[scenes], grid.volume, criterion=criterion, effort=ROUGH
            )
            better = new < value[scenes] - _GAIN
            scenes = scenes[better]
            if len(scenes) == 0:
                continue
            positions[scenes], value[scenes], changed[scenes] = trial[better], new[better], True
            if criterion == "unconditional":
                power[scenes], noise[scenes] = fit_levels(
                    recording[scenes], positions[scenes], active[scenes]
                )
        live = live[changed[live]]
        if len(live) == 0:
            break
    return positions


def _cosines(positions: Tensor) -> Tensor:
    azimuth, elevation, q = positions.unbind(-1)
    return torch.stack(to_cosines(azimuth, elevation, 1 / q), dim=-1)
