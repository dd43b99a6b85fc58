"""The searches of the grid as functions of a recording, a number of sources and a grid."""

from __future__ import annotations

from dataclasses import replace

from rismusic.estimation.classical import STRATEGIES, counts_of, fit_from_search


def searched(method):
    def fit(recording, sources, grid, **strategy):
        chosen = replace(STRATEGIES[method], **strategy)
        return fit_from_search(recording, counts_of(recording, sources, grid.volume), grid, chosen)

    return fit


SEARCHES = {method: searched(method) for method in STRATEGIES}
omp, relax, sbl = (SEARCHES[name] for name in ("omp", "relax", "sbl"))
