"""The most thorough search: two different starts, exchanges of sources, and the likelier end."""

from __future__ import annotations

from jaxtyping import Int64
from torch import Tensor

from rismusic.estimate.grid import SearchGrid
from rismusic.estimate.nfmle import Fit, better, finish
from rismusic.estimate.omp import dictionary_for, pursue, source_count
from rismusic.estimate.refine import Criterion, refine
from rismusic.estimate.relax import exchange
from rismusic.estimate.sbl import map_peaks
from rismusic.estimate.search import Search
from rismusic.recording import Recording


def best(
    recording: Recording,
    sources: int | Int64[Tensor, "S"],
    grid: SearchGrid,
    *,
    criterion: Criterion = "unconditional",
    sweeps: int = 4,
    iterations: int = 15,
) -> Fit:
    """Locate from two starts, OMP and the peaks of an SBL map, with exchanges of sources; the likelier stays.

    Args:
        recording: S scenes.
        sources: K, one number or one for each scene.
        grid: the points that are searched; its volume bounds the fit.
        criterion: the likelihood of pursuit, exchanges and refinement. The choice between the two is by the
            unconditional one, always.
        sweeps: see :func:`~rismusic.estimate.relax.exchange`.
        iterations: see :func:`~rismusic.estimate.powers.learn_powers`.

    Raises:
        InputError: see :func:`~rismusic.estimate.omp.omp`.
    """
    count = source_count(recording, sources)
    search = Search(dictionary_for(recording, grid), recording)
    start, active = pursue(search, count, criterion)
    fits: list[Fit] = []
    for _ in range(2):
        if fits:
            start = map_peaks(search, fits[0].noise_variance, active.shape[1], iterations=iterations)
        positions = exchange(search, start, active, criterion=criterion, sweeps=sweeps)
        positions, _, converged = refine(recording, positions, active, grid.volume, criterion=criterion)
        fits.append(finish(recording, positions, active, converged))
    return better(fits[0], fits[1])
