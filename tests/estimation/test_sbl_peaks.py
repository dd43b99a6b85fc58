from __future__ import annotations

from dataclasses import replace

import dense
import pytest
import torch
from searches import sbl

from rismusic.estimation import sbl as powermap
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.estimation.maximum_likelihood import pack
from rismusic.estimation.sbl import sbl_peaks, shares_outer
from rismusic.estimation.search import Dictionary, GridSearch
from rismusic.hybrid import locate
from rismusic.metrics import match


@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_the_highest_peaks_stand_near_the_sources(system):
    recording = dense.small(dense.SYSTEMS[system], 20, known=True, snr_db=20.0, dtype=torch.float32)
    search = GridSearch(Dictionary.of(dense.grid_for(recording)), recording)
    found = sbl_peaks(search, recording.noise_variance, 2)
    there = pack(found, torch.ones(20, 2, dtype=torch.bool))
    assert dense.misses(recording.truth, there, degrees=8) <= 4
    hidden = replace(recording, snapshots=recording.snapshots.conj().resolve_conj())
    found = sbl_peaks(GridSearch(search.dictionary, hidden), recording.noise_variance, 2)
    assert dense.misses(recording.truth, pack(found, there.active), degrees=8) > 15


@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_peaks_are_places_on_a_grid_with_points_outside_its_volume(system):
    recording = dense.small(dense.SYSTEMS[system], 4, dtype=torch.float32)
    grid = SearchGrid.cover(recording.panel, Volume(1.3, 1.3, 0.5, 10.0), 1.5)
    dictionary = Dictionary.of(grid)
    assert len(dictionary) < len(grid)
    index = torch.tensor([[0.1, 0.75], [0.9, 0.3], [0.5, 0.05], [0.35, 0.8]]) * len(dictionary)
    places = dictionary.positions(index.long())
    recording = dense.planted(recording, places, amplitudes=(1.0, 0.9), noise=0.03)
    noise = 1e-3 * recording.snapshots.abs().square().mean((1, 2))
    found = sbl_peaks(GridSearch(dictionary, recording), noise, 2)
    gap = (found[:, :, None] - places[:, None]).abs() / torch.tensor([0.2, 0.2, 0.5])
    assert (gap.amax(-1).amin(1) < 1).all()


def test_large_grids_are_learned_on_their_best_points(monkeypatch, memory_budget):
    """Two passes: the best points of each scene by the search, then the map on these alone."""
    recording = dense.small(scenes=12, snr_db=20.0, dtype=torch.float32)
    grid = dense.grid_for(recording)
    search = GridSearch(Dictionary.of(grid), recording)
    noise = recording.snapshots.abs().square().mean((1, 2)) / 100
    whole = sbl_peaks(search, noise, 2)
    memory_budget(8 * recording.panel.size * len(grid))  # all steering vectors, few fields
    monkeypatch.setattr(powermap, "_FEWEST", len(grid) // 3)
    points = powermap._best_points(search, len(grid) // 3)
    assert points.shape == (12, len(grid) // 3)
    assert all(len(set(row)) == len(grid) // 3 for row in points.tolist())
    learned = []
    plain = powermap.sbl_powers

    def seen(fields, *arguments, **settings):
        learned.append(fields.shape[-1])
        return plain(fields, *arguments, **settings)

    monkeypatch.setattr(powermap, "sbl_powers", seen)
    few = sbl_peaks(search, noise, 2)
    assert learned == [len(grid) // 3] * 12
    assert ((few - whole).abs().amax((1, 2)) < 0.1).float().mean() > 0.5
    assert dense.misses(recording.truth, sbl(recording, 2, grid).sources) <= 2


def test_a_batch_is_a_loop_whether_outer_products_are_shared_or_not(monkeypatch, memory_budget):
    recording = dense.small(dense.ONE_LINK, 6, sources=2)
    grid = dense.grid_for(recording)
    assert shares_outer(torch.zeros(1, 7, 16, len(grid)))
    together = sbl(recording, 2, grid)
    alone = [sbl(recording[i : i + 1], 2, grid).neg_log_likelihood for i in range(6)]
    torch.testing.assert_close(together.neg_log_likelihood, torch.cat(alone), rtol=1e-6, atol=1e-2)
    memory_budget(4 * 7 * 16 * 16 * len(grid) // 8)
    torch.testing.assert_close(
        sbl(recording, 2, grid).neg_log_likelihood, together.neg_log_likelihood, rtol=1e-6, atol=1e-2
    )


def test_maps_of_blocks_of_scenes_are_those_of_all(monkeypatch, memory_budget):
    for system in dense.SYSTEMS:
        recording = dense.small(dense.SYSTEMS[system], 7, known=True, snr_db=20.0, dtype=torch.float32)
        search = GridSearch(Dictionary.of(dense.grid_for(recording, 1.5)), recording)
        whole = sbl_peaks(search, recording.noise_variance, 2)
        with monkeypatch.context() as patch:
            memory_budget(8 * 8 * 7 * 8 * len(search.dictionary))
            patch.setattr(powermap, "_FEWEST", 1)
            assert len(list(powermap._dictionaries(search))) > 1
            torch.testing.assert_close(
                sbl_peaks(search, recording.noise_variance, 2), whole, rtol=0, atol=1e-3
            )


def test_subsets_of_the_peaks_of_many_sources():
    """There are 220 of nine of twelve peaks; torch.combinations first makes a table of 12^9 index tuples."""
    recording = dense.small(dense.SYSTEMS["direct"], 1, snr_db=20.0, sources=9)
    found = locate(recording, n_sources=9, method="sbl", sources_max=9)
    assert match(recording.truth, found.sources).hit.sum() >= 7
