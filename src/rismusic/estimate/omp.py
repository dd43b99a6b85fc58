r"""Orthogonal matching pursuit in (u_x, u_y, 1/r), with a joint NF-MLE of all sources after each new one."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.errors import InputError
from rismusic.estimate.dictionary import Dictionary
from rismusic.estimate.grid import SearchGrid
from rismusic.estimate.nfmle import Fit, finish
from rismusic.estimate.noise import check_sources_count
from rismusic.estimate.refine import ROUGH, Criterion, fit_levels, refine
from rismusic.estimate.search import Search, take_out
from rismusic.recording import Recording


def omp(
    recording: Recording,
    sources: int | Int64[Tensor, "S"],
    grid: SearchGrid,
    *,
    criterion: Criterion = "conditional",
) -> Fit:
    """Locate by greedy grid search with a joint re-fit after each source; then NF-MLE.

    Args:
        recording: S scenes.
        sources: K, one number or one for each scene.
        grid: the points that are searched; its volume bounds the fit.
        criterion: the likelihood of the search and of all refinements. ``unconditional`` finds more sources
            below 10 dB, and takes about twice the time.

    Returns:
        The fit, K_max places for each scene.

    Raises:
        InputError: more sources than the data can carry; a grid of another panel.
    """
    count = source_count(recording, sources)
    search = Search(dictionary_for(recording, grid), recording)
    positions, active = pursue(search, count, criterion)
    positions, _, converged = refine(recording, positions, active, grid.volume, criterion=criterion)
    return finish(recording, positions, active, converged)


def pursue(
    search: Search, count: Int64[Tensor, "S"], criterion: Criterion = "conditional"
) -> tuple[Float[Tensor, "S K 3"], Bool[Tensor, "S K"]]:
    """Positions that the pursuit finds, the last one still on the grid, and which places hold a source."""
    recording, volume = search.recording, search.dictionary.grid.volume
    most = int(count.max()) if len(count) else 0
    positions = torch.zeros(len(count), most, 3, dtype=torch.float64, device=count.device)
    positions[..., 2] = 1
    active = torch.arange(most, device=count.device) < count[:, None]
    for k in range(most):
        scenes = (count > k).nonzero()[:, 0]
        part, so_far = recording[scenes], (positions[scenes, :k], active[scenes, :k])
        levels = None if criterion == "conditional" else fit_levels(part, *so_far)
        found = search.best(scenes, take_out(part, *so_far, levels))[:, 0]
        positions[scenes, k] = search.dictionary.positions(found)
        if k + 1 < most:
            positions[scenes, : k + 1], _, _ = refine(
                part,
                positions[scenes, : k + 1],
                active[scenes, : k + 1],
                volume,
                criterion=criterion,
                effort=ROUGH,
            )
    return positions, active


def source_count(recording: Recording, sources: int | Int64[Tensor, "S"]) -> Int64[Tensor, "S"]:
    """K of each scene, checked against what the data can carry.

    Raises:
        InputError: see :func:`~rismusic.estimate.noise.check_sources_count`.
    """
    if isinstance(sources, int):
        sources = torch.full((len(recording),), sources, device=recording.snapshots.device)
    check_sources_count(recording, sources)
    return sources


def dictionary_for(recording: Recording, grid: SearchGrid) -> Dictionary:
    """The grid's dictionary, if it is a grid of the recording's panel.

    Raises:
        InputError: it is of another panel.
    """
    panel = recording.panel
    if grid.panel.size != panel.size or grid.panel.wavelength != panel.wavelength:
        raise InputError(
            "grid",
            f"a grid of the recording's panel, {panel.size} elements at {panel.wavelength:g} m",
            f"one of {grid.panel.size} elements at {grid.panel.wavelength:g} m",
        )
    return Dictionary.of(grid)
