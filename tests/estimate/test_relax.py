from __future__ import annotations

import dense
import pytest
import torch

from rismusic.estimate.dictionary import Dictionary
from rismusic.estimate.exchange import exchange
from rismusic.estimate.refine import ROUGH, refine
from rismusic.estimate.search import Search
from rismusic.estimate.sparse import omp, relax

CRITERIA = ["conditional", "unconditional"]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_exchanges_only_improve(criterion, generator):
    """From random places: some scene is better, none is worse than its refinement alone."""
    recording = dense.small(scenes=20, sources=3, snr_db=10.0)
    grid = dense.grid_for(recording)
    search = Search(Dictionary.of(grid), recording)
    truth, active = dense.truth_of(recording)
    start = dense.scattered(truth, generator, 1.5)
    _, before, _ = refine(recording, start, active, grid.volume, criterion=criterion, effort=ROUGH)
    found = exchange(search, start, active, criterion=criterion)
    _, after, _ = refine(recording, found, active, grid.volume, criterion=criterion, effort=ROUGH)
    assert (after <= before + 1e-9).all()
    assert (after < before - 1).float().mean() > 0.8


def test_a_wrong_source_among_right_ones_is_replaced():
    recording = dense.small(scenes=20, sources=2, snr_db=25.0)
    grid = dense.grid_for(recording)
    start, active = dense.truth_of(recording)
    start[:, 1] = torch.tensor([0.0, 0.5, 0.3])
    found = exchange(Search(Dictionary.of(grid), recording), start, active)
    from rismusic.estimate.nfmle import pack

    assert dense.misses(recording.truth, pack(start, active)) > 10
    assert dense.misses(recording.truth, pack(found, active)) <= 2


@pytest.mark.parametrize("criterion", CRITERIA)
def test_relax_is_hardly_ever_less_likely_than_omp(criterion):
    recording = dense.small(scenes=30, sources=3, snr_db=5.0)
    grid = dense.grid_for(recording)
    one, other = (locator(recording, 3, grid, criterion=criterion) for locator in (omp, relax))
    value = (lambda fit: fit.cost) if criterion == "conditional" else (lambda fit: fit.likelihood)
    # Exchanges compare rough fits: one that creeps for long may have gone on to a lower end than was seen.
    worse = value(other) > value(one) * (1 + 1e-3) + 1e-2
    assert worse.sum() <= 1
    assert (value(other) < value(one) - 0.1).any()


def test_without_sweeps_relax_is_omp():
    recording = dense.small(sources=2)
    grid = dense.grid_for(recording)
    one, other = omp(recording, 2, grid), relax(recording, 2, grid, sweeps=0)
    torch.testing.assert_close(one.sources.azimuth, other.sources.azimuth, rtol=0, atol=1e-4)
