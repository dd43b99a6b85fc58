"""Orthogonal matching pursuit (OMP) in (u_x, u_y, 1/r), with a joint NF-MLE of all sources after each one."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.estimation.maximum_likelihood import ROUGH, Criterion, fit_power_noise, refine
from rismusic.estimation.search import GridSearch, project_out


def omp_path(
    search: GridSearch, count: Int64[Tensor, "S"], criterion: Criterion = "conditional"
) -> Float[Tensor, "S K K 3"]:
    """Add the best grid point as one more source, re-fit all sources, and repeat.

    Args:
        search: search of the grid for S scenes.
        count: number of sources of each scene.
        criterion: likelihood of search and refinements. ``unconditional`` finds more sources below 10 dB and
            takes about twice the time.

    Returns:
        Azimuth, elevation, 1/range. Row K - 1 starts with the K sources of that step, roughly refined; the
        other entries are finite and meaningless.
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
        positions, present = path[scenes, max(k - 1, 0), : k + 1], active[scenes, : k + 1]
        power_noise = None
        if criterion == "unconditional":
            power_noise = fit_power_noise(part, positions[:, :k], present[:, :k])
        found = search.best(scenes, project_out(part, positions[:, :k], present[:, :k], power_noise))[:, 0]
        positions[:, k] = search.dictionary.positions(found)
        fit = refine(part, positions, present, volume, criterion=criterion, options=ROUGH)
        path[scenes, k, : k + 1] = fit.positions
    return path
