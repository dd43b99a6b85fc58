r"""Orthogonal matching pursuit in (u_x, u_y, 1/r), with a joint NF-MLE of all sources after each new one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.errors import InputError
from rismusic.estimate.dictionary import Dictionary
from rismusic.estimate.grid import SearchGrid
from rismusic.estimate.nfmle import Fit, finish, join
from rismusic.estimate.noise import check_fit
from rismusic.estimate.refine import ROUGH, Criterion, fit_levels, refine
from rismusic.estimate.search import Search, take_out
from rismusic.recording import Recording

# Bytes kept for a block of scenes.
_BLOCK = 2**28


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

    def fit(search: Search, count: Int64[Tensor, "_"]) -> Fit:
        positions, active = pursue(search, count, criterion)
        return complete(search, positions, active, criterion)

    return by_blocks(recording, sources, grid, fit)


def pursue(
    search: Search, count: Int64[Tensor, "S"], criterion: Criterion = "conditional"
) -> tuple[Float[Tensor, "S K 3"], Bool[Tensor, "S K"]]:
    """Positions that the pursuit finds, the last one still on the grid, and which places hold a source."""
    recording, volume = search.recording, search.dictionary.grid.volume
    most = max(1, int(count.max()))
    positions = torch.zeros(len(count), most, 3, dtype=torch.float64, device=count.device)
    positions[..., 2] = 1
    active = torch.arange(most, device=count.device) < count[:, None]
    for k in range(most):
        scenes = (count > k).nonzero()[:, 0]
        if len(scenes) == 0:
            break
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


def complete(
    search: Search, positions: Float[Tensor, "S K 3"], active: Bool[Tensor, "S K"], criterion: Criterion
) -> Fit:
    """NF-MLE from given positions, to the end."""
    recording, volume = search.recording, search.dictionary.grid.volume
    positions, _, converged = refine(recording, positions, active, volume, criterion=criterion)
    return finish(recording, positions, active, converged)


def by_blocks(
    recording: Recording,
    sources: int | Int64[Tensor, "S"],
    grid: SearchGrid,
    fit: Callable[[Search, Int64[Tensor, "_"]], Fit],
) -> Fit:
    """A fit of all scenes by blocks, so that memory does not grow with their number.

    Args:
        recording: S scenes.
        sources: K, one number or one for each scene.
        grid: the points that are searched.
        fit: locates so many sources in each scene of a search.

    Raises:
        InputError: more sources than the data can carry; a grid of another panel.
    """
    count = source_count(recording, sources)
    dictionary = dictionary_for(recording, grid)
    _, L, M = recording.snapshots.shape
    # What is kept of a scene: the energies of all points, and its snapshots once or twice in float64.
    step = max(1, _BLOCK // (4 * L * len(dictionary) + 32 * L * M))
    blocks = [slice(i, i + step) for i in range(0, len(recording), step)]
    fits = [fit(Search(dictionary, recording[block]), count[block]) for block in blocks]
    return join(fits, max(1, int(count.max())))


def source_count(recording: Recording, sources: int | Int64[Tensor, "S"]) -> Int64[Tensor, "S"]:
    """K of each scene, checked against what the data can carry.

    Raises:
        InputError: see :func:`~rismusic.estimate.noise.check_fit`.
    """
    if isinstance(sources, int):
        sources = torch.full((len(recording),), sources, device=recording.snapshots.device)
    check_fit(recording, sources)
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
