"""Orthogonal matching pursuit in (u_x, u_y, 1/r), with a joint NF-MLE of all sources after each new one."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.estimation.maximum_likelihood import ROUGH, Criterion, fit_power_noise, refine
from rismusic.estimation.search import GridSearch, project_out


def omp_path(
    search: GridSearch, count: Int64[Tensor, "S"], criterion: Criterion = "conditional"
) -> Float[Tensor, "S K K 3"]:
    """The greedy path of each scene: one more source from the grid, all of them re-fitted, and again.

    Args:
        search: over the grid, of S scenes.
        count: how far to go in each scene.
        criterion: the likelihood of the search and of all refinements. ``unconditional`` finds more sources
            below 10 dB, and takes about twice the time.

    Returns:
        Azimuth, elevation, 1/range; row K - 1 holds the K sources of that step, roughly refined, in front.
        Places without a source hold harmless values.
    """
    recording, volume = search.recording, search.dictionary.grid.volume
    most = max(1, int(count.max()))
    path = torch.zeros(len(count), most, most, 3, dtype=torch.float64, device=count.device)
    path[..., 2] = 1
    active = torch.ones(len(count), most, dtype=torch.bool, device=count.device)
    for k in range(most):
        scenes = (count > k).nonzero()[:, 0]
        if len(scenes) == 0:
            break
        part = recording[scenes]
        positions, so_far = path[scenes, max(k - 1, 0), : k + 1], active[scenes, : k + 1]
        power_noise = None
        if criterion == "unconditional":
            power_noise = fit_power_noise(part, positions[:, :k], so_far[:, :k])
        found = search.best(scenes, project_out(part, positions[:, :k], so_far[:, :k], power_noise))[:, 0]
        positions[:, k] = search.dictionary.positions(found)
        fit = refine(part, positions, so_far, volume, criterion=criterion, options=ROUGH)
        path[scenes, k, : k + 1] = fit.positions
    return path
