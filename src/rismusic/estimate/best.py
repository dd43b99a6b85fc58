"""The most thorough search: two different starts, exchanges of sources, and the likelier end."""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.estimate.grid import SearchGrid
from rismusic.estimate.nfmle import Fit, better
from rismusic.estimate.omp import by_blocks, complete, pursue
from rismusic.estimate.refine import Criterion
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

    def fit(search: Search, count: Int64[Tensor, "_"]) -> Fit:
        def improved(start: Float[Tensor, "_ K 3"]) -> Fit:
            positions = exchange(search, start, active, criterion=criterion, sweeps=sweeps)
            return complete(search, positions, active, criterion)

        start, active = pursue(search, count, criterion)
        first = improved(start)
        peaks = map_peaks(search, first.noise_variance, active.shape[1], iterations=iterations)
        return better(first, improved(peaks))

    return by_blocks(recording, sources, grid, fit)
