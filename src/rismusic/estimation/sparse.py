"""Starts of the sparse locators, up to a largest number of sources, and the fits that come of them.

The locators differ in two things only: whether peaks of a sparse Bayesian map stand beside the pursuit as a
second start, and whether sources are exchanged before the last refinement.

==========  =================  =========
locator     peaks of the map   exchanges
==========  =================  =========
``omp``     no                 no
``relax``   no                 yes
``sbl``     yes                no
``best``    yes                yes
==========  =================  =========
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid
from rismusic.estimation.maximum_likelihood import Criterion, Fit, better, finish, join, refine
from rismusic.estimation.noise import check_fit
from rismusic.estimation.omp import omp_path
from rismusic.estimation.relax import relax_sweeps
from rismusic.estimation.sbl import sbl_peaks
from rismusic.estimation.search import Dictionary, GridSearch
from rismusic.io import Recording
from rismusic.memory import blocks


@dataclass(frozen=True)
class Strategy:
    """What a sparse locator does.

    Args:
        maps: whether the peaks of a sparse Bayesian map are a start beside the pursuit.
        exchanges: whether sources are exchanged, as in RELAX, before the last refinement.
        criterion: the likelihood of pursuit, exchanges and refinement. The choice between two starts is by
            the unconditional one, always.
        sweeps: see :func:`~rismusic.estimation.relax.relax_sweeps`.
        iterations: see :func:`~rismusic.estimation.sbl.sbl_powers`.
    """

    maps: bool
    exchanges: bool
    criterion: Criterion = "conditional"
    sweeps: int = 4
    iterations: int = 15


@dataclass(frozen=True, eq=False)
class Starts:
    """Where the sources of S scenes may be, for any number of them up to a largest one.

    Args:
        search: over the grid, of the S scenes.
        path: [S, K_max, K_max, 3] azimuth, elevation, 1/range that the pursuit had after each source: row
            K - 1 holds K of them.
        peaks: [S, K_max, 3] the highest peaks of the map, the highest first; none without a map.
    """

    search: GridSearch
    path: Float[Tensor, "S K K 3"]
    peaks: Float[Tensor, "S K 3"] | None

    @classmethod
    def prepare(cls, search: GridSearch, count: Int64[Tensor, "S"], strategy: Strategy) -> Starts:
        """Starts for up to so many sources in each scene."""
        path = omp_path(search, count, strategy.criterion)
        peaks = None
        if strategy.maps:
            positions, active = _of(path, count)
            converged = torch.ones_like(active[:, 0])
            noise = finish(search.recording, positions, active, converged).noise_variance
            peaks = sbl_peaks(search, noise, path.shape[1], iterations=strategy.iterations)
        return cls(search, path, peaks)

    def __getitem__(self, scenes: Int64[Tensor, "_"]) -> Starts:
        """The starts of some scenes."""
        peaks = None if self.peaks is None else self.peaks[scenes]
        return Starts(self.search[scenes], self.path[scenes], peaks)

    def fit(self, count: Int64[Tensor, "S"], strategy: Strategy) -> Fit:
        """The likelier of the fits from all starts, with so many sources in each scene."""
        search = self.search
        positions, active = _of(self.path, count)
        fits = [_fit(search, positions, active, strategy)]
        if self.peaks is not None:
            peaks = self.peaks[:, : active.shape[1]]
            fits.append(_fit(search, peaks, active, strategy))
        return fits[0] if len(fits) == 1 else better(*fits)


def locate_sparse(
    recording: Recording, sources: int | Int64[Tensor, "S"], grid: SearchGrid, strategy: Strategy
) -> Fit:
    """Locate so many sources in each scene.

    Args:
        recording: S scenes.
        sources: K, one number or one for each scene.
        grid: the points that are searched; its volume bounds the fit.
        strategy: what to do.

    Returns:
        The fit, K_max places for each scene.

    Raises:
        InputError: more sources than the data can carry; a grid of another panel.
    """
    count = source_count(recording, sources)

    def fit(search: GridSearch, scenes: slice) -> Fit:
        return Starts.prepare(search, count[scenes], strategy).fit(count[scenes], strategy)

    return by_blocks(recording, grid, fit)


def omp(
    recording: Recording,
    sources: int | Int64[Tensor, "S"],
    grid: SearchGrid,
    *,
    criterion: Criterion = "conditional",
) -> Fit:
    """Greedy pursuit with a joint re-fit after each source, then NF-MLE; see :func:`locate_sparse`."""
    return locate_sparse(recording, sources, grid, Strategy(maps=False, exchanges=False, criterion=criterion))


def relax(
    recording: Recording,
    sources: int | Int64[Tensor, "S"],
    grid: SearchGrid,
    *,
    criterion: Criterion = "conditional",
    sweeps: int = 4,
) -> Fit:
    """OMP with exchanges of sources while the likelihood improves; see :func:`locate_sparse`."""
    strategy = Strategy(maps=False, exchanges=True, criterion=criterion, sweeps=sweeps)
    return locate_sparse(recording, sources, grid, strategy)


def sbl(
    recording: Recording,
    sources: int | Int64[Tensor, "S"],
    grid: SearchGrid,
    *,
    criterion: Criterion = "conditional",
    iterations: int = 15,
) -> Fit:
    """The likelier of OMP and the peaks of a sparse Bayesian map; see :func:`locate_sparse`."""
    strategy = Strategy(maps=True, exchanges=False, criterion=criterion, iterations=iterations)
    return locate_sparse(recording, sources, grid, strategy)


def best(
    recording: Recording,
    sources: int | Int64[Tensor, "S"],
    grid: SearchGrid,
    *,
    criterion: Criterion = "conditional",
) -> Fit:
    """The likelier of two starts, the pursuit and the peaks of a map, after exchanges from both."""
    return locate_sparse(recording, sources, grid, Strategy(maps=True, exchanges=True, criterion=criterion))


def by_blocks(recording: Recording, grid: SearchGrid, fit: Callable[[GridSearch, slice], Fit]) -> Fit:
    """A fit of all scenes by blocks, so that memory does not grow with their number.

    Args:
        recording: S scenes.
        grid: the points that are searched.
        fit: locates the sources of a block of scenes, given its search and its place.

    Raises:
        InputError: a grid of another panel.
    """
    dictionary = dictionary_for(recording, grid)
    _, L, M = recording.snapshots.shape
    # What is kept of a scene: the energies of all points, and its snapshots once or twice in float64.
    each = 4 * L * len(dictionary) + 32 * L * M
    parts = blocks(len(recording), each, recording.snapshots.device)
    return join([fit(GridSearch(dictionary, recording[part]), part) for part in parts])


def source_count(recording: Recording, sources: int | Int64[Tensor, "S"]) -> Int64[Tensor, "S"]:
    """K of each scene, checked against what the data can carry.

    Raises:
        InputError: see :func:`~rismusic.estimation.noise.check_fit`.
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


def _of(
    path: Float[Tensor, "S K K 3"], count: Int64[Tensor, "S"]
) -> tuple[Float[Tensor, "S C 3"], Bool[Tensor, "S C"]]:
    """The step of the path with so many sources, and which places hold one (C, the largest number)."""
    most = max(1, int(count.max()))
    step = path[torch.arange(len(path), device=path.device), (count - 1).clamp_min(0), :most]
    return step, torch.arange(most, device=path.device) < count[:, None]


def _fit(
    search: GridSearch, positions: Float[Tensor, "S C 3"], active: Bool[Tensor, "S C"], strategy: Strategy
) -> Fit:
    recording, volume = search.recording, search.dictionary.grid.volume
    fit = refine(recording, positions, active, volume, criterion=strategy.criterion)
    if strategy.exchanges:
        fit = relax_sweeps(search, fit, active, criterion=strategy.criterion, sweeps=strategy.sweeps)
        fit = refine(recording, fit.positions, active, volume, criterion=strategy.criterion)
    return finish(recording, fit.positions, active, fit.converged)
