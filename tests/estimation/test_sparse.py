"""The sparse estimators, and how they compare."""

from __future__ import annotations

from dataclasses import replace

import dense
import pytest
import torch
from searches import SEARCHES, omp, relax

from rismusic.array import Panel
from rismusic.errors import InputError
from rismusic.estimation.classical import Starts, Strategy
from rismusic.estimation.likelihood import conditional_cost, sufficient_statistics
from rismusic.estimation.relax import omp_path
from rismusic.estimation.search import Dictionary, GridSearch

CRITERIA = ["conditional", "unconditional"]
ALL = pytest.mark.parametrize("name", SEARCHES)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("system", dense.SYSTEMS)
@ALL
def test_every_estimator_finds_strong_sources(name, system, criterion):
    recording = dense.small(dense.SYSTEMS[system], 12, snr_db=25.0, dtype=torch.float32)
    fit = SEARCHES[name](recording, 2, dense.grid_for(recording), criterion=criterion)
    assert dense.misses(recording.truth, fit.sources) <= 1
    assert fit.converged.float().mean() > 0.8


def test_conjugated_data_hide_them():
    recording = dense.small(scenes=20, snr_db=25.0, dtype=torch.float32)
    wrong = replace(recording, snapshots=recording.snapshots.conj().resolve_conj())
    assert dense.misses(recording.truth, omp(wrong, 2, dense.grid_for(recording)).sources) > 15


@pytest.mark.parametrize("criterion", CRITERIA)
def test_more_search_is_never_less_likely(criterion):
    """RELAX starts where OMP ends, and what has two starts keeps the likelier end."""
    recording = dense.small(scenes=20, sources=3, snr_db=5.0)
    grid = dense.grid_for(recording)
    fits = {name: search(recording, 3, grid, criterion=criterion) for name, search in SEARCHES.items()}
    value = {name: fit.neg_log_likelihood for name, fit in fits.items()}
    assert (value["sbl"] <= value["omp"] + 1e-9).all()
    assert (value["best"] <= value["relax"] + 1e-9).all()
    for fit in value.values():
        assert fit.isfinite().all()
    if criterion == "conditional":
        value = {name: 56 * fit.cost.log() for name, fit in fits.items()}
    assert (value["relax"] <= value["omp"] + 1e-3).all()
    assert (value["relax"] < value["omp"] - 0.1).any()
    if criterion == "unconditional":
        assert (value["best"] <= value["omp"] + 1e-3).all()
        assert (value["best"] < value["relax"] - 0.1).any()


def test_without_sweeps_relax_is_omp():
    recording = dense.small(sources=2)
    grid = dense.grid_for(recording)
    one, other = omp(recording, 2, grid), relax(recording, 2, grid, sweeps=0)
    torch.testing.assert_close(one.sources.azimuth, other.sources.azimuth, rtol=0, atol=1e-4)


@ALL
def test_each_scene_has_its_own_number_of_sources(name, monkeypatch, memory_budget):
    """In one batch as in a loop and in blocks, none at all among them."""
    recording = dense.small(scenes=4, sources=3, snr_db=25.0)
    count, grid = torch.tensor([2, 0, 3, 1]), dense.grid_for(recording)
    together = SEARCHES[name](recording, count, grid)
    assert torch.equal(together.sources.active.sum(1), count)
    memory_budget(2**15)
    blocks = SEARCHES[name](recording, count, grid)  # of one scene each, and of a fifth of the grid
    assert blocks.sources.azimuth.shape == together.sources.azimuth.shape
    torch.testing.assert_close(blocks.neg_log_likelihood, together.neg_log_likelihood, rtol=1e-5, atol=1e-2)
    for part in ("azimuth", "elevation"):
        one, many = getattr(blocks.sources, part), getattr(together.sources, part)
        torch.testing.assert_close(one, many, rtol=0, atol=1e-3, equal_nan=True)


@ALL
def test_what_cannot_be_located_is_said(name):
    recording = dense.small()
    grid = dense.grid_for(recording)
    with pytest.raises(InputError, match="identify at most 6 sources"):
        SEARCHES[name](recording, 7, grid)
    with pytest.raises(
        InputError, match=r"grid: covers Panel\(25 elements.*but the recording.s panel is Panel\(36"
    ):
        SEARCHES[name](recording, 1, type(grid).cover(Panel.uniform_planar(5, 5), dense.VOLUME))


def test_a_longer_pursuit_never_costs_more():
    recording = dense.small(scenes=10, sources=3, snr_db=0.0)
    grid = dense.grid_for(recording)
    costs = torch.stack([omp(recording, K, grid).cost for K in range(4)])
    assert (costs.diff(dim=0) < 0).all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_path_of_a_pursuit_holds_every_shorter_one(criterion):
    recording = dense.small(scenes=4, sources=3, snr_db=10.0)
    search = GridSearch(Dictionary.of(dense.grid_for(recording)), recording)
    path = omp_path(search, torch.tensor([3, 3, 1, 0]), criterion)
    assert path.shape == (4, 3, 3, 3)
    nowhere = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    assert (path[2, 1:] == nowhere).all()
    assert (path[3] == nowhere).all()
    for K in (1, 2):
        shorter = omp_path(search, torch.tensor([K] * 4), criterion)[:2, K - 1]
        torch.testing.assert_close(path[:2, K - 1, :K], shorter)
    torch.testing.assert_close(
        path[2, 0, :1], omp_path(search[torch.tensor([2])], torch.ones(1).long(), criterion)[0, 0]
    )
    costs = [
        conditional_cost(
            sufficient_statistics(recording[:2], path[:2, K, : K + 1], torch.ones(2, K + 1, dtype=torch.bool))
        )
        for K in range(3)
    ]
    assert (costs[0] > costs[1]).all()
    assert (costs[1] > costs[2]).all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_starts_for_many_sources_serve_for_fewer_and_for_some_scenes(criterion):
    recording = dense.small(scenes=4, sources=2, snr_db=15.0)
    grid = dense.grid_for(recording)
    search = GridSearch(Dictionary.of(grid), recording)
    for name, (maps, exchanges) in {"omp": (False, False), "best": (True, True)}.items():
        strategy = Strategy(sbl=maps, relax=exchanges, criterion=criterion)
        starts = Starts.prepare(search, torch.full((4,), 3), strategy)
        count = torch.tensor([2, 1, 0])
        fit = starts[torch.tensor([3, 1, 0])].fit(count, strategy)
        assert torch.equal(fit.sources.active.sum(1), count)
        alone = SEARCHES[name](recording[3:4], 2, grid, criterion=criterion)
        torch.testing.assert_close(fit.neg_log_likelihood[:1], alone.neg_log_likelihood, rtol=1e-5, atol=1e-2)
