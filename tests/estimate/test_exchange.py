from __future__ import annotations

import dense
import pytest
import torch

from rismusic.estimate import exchange as module
from rismusic.estimate.dictionary import Dictionary
from rismusic.estimate.exchange import exchange
from rismusic.estimate.nfmle import pack
from rismusic.estimate.refine import refine
from rismusic.estimate.search import Search

CRITERIA = ["conditional", "unconditional"]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_exchanges_only_improve(criterion, generator):
    """From random places: most scenes are better, none is worse than its refinement alone."""
    recording = dense.small(scenes=20, sources=3, snr_db=10.0)
    grid = dense.grid_for(recording)
    search = Search(Dictionary.of(grid), recording)
    truth, active = dense.truth_of(recording)
    start = dense.scattered(truth, generator, 1.5)
    before = refine(recording, start, active, grid.volume, criterion=criterion)[1]
    found = exchange(search, start, active, criterion=criterion)
    after = refine(recording, found, active, grid.volume, criterion=criterion)[1]
    # Powers that are fitted again may end 1e-3 nats elsewhere.
    assert (after <= before + (1e-9 if criterion == "conditional" else 1e-3)).all()
    assert (after < before - 1).float().mean() > 0.7


def test_a_wrong_source_among_right_ones_is_replaced():
    recording = dense.small(scenes=20, sources=2, snr_db=25.0)
    grid = dense.grid_for(recording)
    start, active = dense.truth_of(recording)
    start[:, 1] = torch.tensor([0.0, 0.5, 0.3])
    found = exchange(Search(Dictionary.of(grid), recording), start, active)
    assert dense.misses(recording.truth, pack(start, active)) > 10
    assert dense.misses(recording.truth, pack(found, active)) <= 2


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("place", [0, 2])
def test_a_weak_source_is_found_beside_strong_ones(place, criterion):
    """26 dB below the two others, wherever it stands among them: each is taken out with its own power."""
    recording = dense.small(scenes=6)
    there = torch.tensor([[-0.6, 0.1, 0.5], [0.6, -0.2, 0.4], [0.1, 0.4, 0.3]]).double()
    order = {0: [2, 0, 1], 2: [0, 1, 2]}[place]
    there = there[order].expand(6, -1, -1).clone()
    amplitudes = torch.tensor([1.0, 1.0, 0.05])[order]
    recording = dense.planted(recording, there, amplitudes.tolist(), noise=2e-3)
    start = there.clone()
    start[:, place] = torch.tensor([-0.1, -0.4, 1.0])
    search = Search(Dictionary.of(dense.grid_for(recording)), recording)
    found = exchange(search, start, torch.ones(6, 3, dtype=torch.bool), criterion=criterion)
    assert ((found - there).abs() < torch.tensor([0.05, 0.05, 0.5])).all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scenes_of_different_numbers_of_sources_are_exchanged_as_each_by_itself(criterion, generator):
    """One source, or none, is left where it is but for its refinement."""
    recording = dense.small(scenes=5, sources=(1, 3), snr_db=20.0)
    search = Search(Dictionary.of(dense.grid_for(recording)), recording)
    truth, active = dense.truth_of(recording)
    active[0] = False
    assert set(active.sum(1).tolist()) == {0, 1, 2, 3}
    start = dense.scattered(truth, generator, 1.0)
    together = exchange(search, start, active, criterion=criterion)
    for i in range(5):
        K = max(1, int(active[i].sum()))
        alone = exchange(search[torch.tensor([i])], start[i : i + 1, :K], active[i : i + 1, :K],
                         criterion=criterion)  # fmt: skip
        torch.testing.assert_close(alone[0], together[i, :K], rtol=0, atol=2e-2)
    assert torch.equal(together[~active], start[~active])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_positions_that_are_refined_already_are_not_refined_again(criterion, monkeypatch):
    recording = dense.small(scenes=6, snr_db=0.0)
    there, active = dense.truth_of(recording)
    start = there.flip(0)
    search = Search(Dictionary.of(dense.grid_for(recording)), recording)
    volume = search.grid.volume
    refined, value, _ = refine(recording, start, active, volume, criterion=criterion)
    expected = exchange(search, start, active, criterion=criterion)
    found = exchange(search, refined, active, criterion=criterion, value=value)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    efforts = []
    monkeypatch.setattr(
        module, "refine", lambda *some, **named: efforts.append(named) or refine(*some, **named)
    )
    assert torch.equal(exchange(search, refined, active, criterion=criterion, value=value), found)
    assert all("effort" in one for one in efforts)
