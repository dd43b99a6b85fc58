r"""RELAX: after OMP, each source in turn is taken out, searched again and re-fitted with all the others.

After Li and Stoica, "Efficient mixed-spectrum estimation with applications to target feature extraction",
IEEE Trans. SP 44 (1996); here with a joint NF-MLE in place of theirs one source at a time.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.estimate.grid import SearchGrid, to_cosines
from rismusic.estimate.nfmle import Fit
from rismusic.estimate.omp import by_blocks, complete, pursue
from rismusic.estimate.refine import ROUGH, Criterion, fit_levels, refine
from rismusic.estimate.search import Search, take_out
from rismusic.recording import Recording

# A source found again within so many grid steps of where it was is left alone: it would come back to itself.
_SAME = 1.5
# An exchange counts when it gains more than the descent leaves undone (nats).
_GAIN = 0.1


def relax(
    recording: Recording,
    sources: int | Int64[Tensor, "S"],
    grid: SearchGrid,
    *,
    criterion: Criterion = "conditional",
    sweeps: int = 4,
) -> Fit:
    """Locate by OMP, then exchange sources while the likelihood improves; then NF-MLE.

    Args:
        recording: S scenes.
        sources: K, one number or one for each scene.
        grid: the points that are searched; its volume bounds the fit.
        criterion: the likelihood of the search and of all refinements. ``unconditional`` finds more sources
            below 10 dB, and takes about twice the time.
        sweeps: most passes over all sources; a scene leaves after one that changed nothing.

    Raises:
        InputError: see :func:`~rismusic.estimate.omp.omp`.
    """

    def fit(search: Search, count: Int64[Tensor, "_"]) -> Fit:
        positions, active = pursue(search, count, criterion)
        positions = exchange(search, positions, active, criterion=criterion, sweeps=sweeps)
        return complete(search, positions, active, criterion)

    return by_blocks(recording, sources, grid, fit)


def exchange(
    search: Search,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    *,
    criterion: Criterion = "conditional",
    sweeps: int = 4,
) -> Float[Tensor, "S K 3"]:
    """Sources taken out, searched again and kept where the likelihood of the re-fit is better.

    Args:
        search: over the grid, of S scenes.
        positions: of the fit to improve.
        active: which places hold a source; empty ones come last.
        criterion: the likelihood of search and re-fit.
        sweeps: most passes.

    Returns:
        Positions, roughly refined; the likelihood of no scene is worse than at the start.
    """
    recording, grid = search.recording, search.dictionary.grid
    positions, value, _ = refine(recording, positions, active, grid.volume, criterion=criterion, effort=ROUGH)
    # One source alone is where the search put it.
    live = (active.sum(-1) > 1).nonzero()[:, 0]
    step = positions.new_tensor(grid.step)
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
                power, noise = fit_levels(part, positions[scenes], active[scenes])
                levels = power[:, others], noise
            rest = take_out(part, positions[scenes][:, others], active[scenes][:, others], levels)
            found = search.dictionary.positions(search.best(scenes, rest)[:, 0])
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
            positions[scenes], value[scenes], changed[scenes] = trial[better], new[better], True
        live = live[changed[live]]
        if len(live) == 0:
            break
    return positions


def _cosines(positions: Tensor) -> Tensor:
    azimuth, elevation, q = positions.unbind(-1)
    return torch.stack(to_cosines(azimuth, elevation, 1 / q), dim=-1)
