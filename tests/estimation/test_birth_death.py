from __future__ import annotations

from itertools import pairwise

import dense
import pytest
import torch

from rismusic.estimation import relax as module
from rismusic.estimation.maximum_likelihood import pack, refine
from rismusic.estimation.relax import birth_death, relax_sweeps
from rismusic.estimation.search import Dictionary, GridSearch

CRITERIA = ["conditional", "unconditional"]


def case(criterion, scatter, generator, **settings):
    """A search, a refined start away from the truth, and who is there."""
    recording = dense.small(**settings)
    search = GridSearch(Dictionary.of(dense.grid_for(recording)), recording)
    truth, active = dense.truth_of(recording)
    start = dense.scattered(truth, generator, scatter)
    return search, refine(recording, start, active, search.grid.volume, criterion=criterion), active


@pytest.mark.parametrize("criterion", CRITERIA)
def test_fits_only_improve(criterion, generator):
    search, start, active = case(criterion, 1.5, generator, scenes=20, sources=3, snr_db=10.0)
    end = birth_death(search, start, active, criterion=criterion)
    assert (end.value <= start.value).all()
    assert (end.value < start.value - 1).float().mean() > 0.7
    assert dense.misses(search.recording.truth, pack(end.positions, active)) < 0.7 * dense.misses(
        search.recording.truth, pack(start.positions, active)
    )
    again = refine(search.recording, end.positions, active, search.grid.volume, criterion=criterion)
    assert (again.value <= end.value + 1e-3).all()
    assert (again.value > end.value - 0.5).float().mean() > 0.8


def test_what_exchanges_cannot_mend_is_mended(generator):
    """Scenes that exchanges leave in a lesser maximum; few of them are left after births and deaths."""
    settings = {"scenes": 80, "sources": 4, "snr_db": 10.0}
    search, start, active = case("unconditional", 1.5, generator, **settings)
    stuck = relax_sweeps(search, start, active, criterion="unconditional", sweeps=6)
    recording, volume = search.recording, search.grid.volume
    truth, _ = dense.truth_of(recording)
    best = refine(recording, truth, active, volume, criterion="unconditional").value
    lesser = (stuck.value > best + 1).nonzero()[:, 0]
    assert len(lesser) >= 8
    end = birth_death(search[lesser], stuck[lesser], active[lesser], criterion="unconditional")
    assert (end.value > best[lesser] + 1).float().mean() < 0.5


def test_nothing_is_tried_where_the_residual_is_noise_and_each_source_matters(generator, monkeypatch):
    """A source too many is fitted beside a wrong one, but not beside those that are right."""
    recording = dense.small(scenes=4, sources=2, snr_db=20.0)
    search = GridSearch(Dictionary.of(dense.grid_for(recording)), recording)
    truth, active = dense.truth_of(recording)
    truth[0, 0, :2] = -truth[0, 0, :2] - 0.3
    start = refine(recording, truth, active, search.grid.volume, criterion="unconditional")
    tried = []

    def recorded(part, *args, **named):
        tried.append(part.snapshots)
        return refine(part, *args, **named)

    monkeypatch.setattr(module, "refine", recorded)
    birth_death(search, start, active, criterion="unconditional", sweeps=1)
    assert torch.equal(tried[0], recording.snapshots[:1].repeat_interleave(3, dim=0))


def test_the_source_that_goes_gives_its_place_to_the_new_one(generator):
    """So that empty places stay the last ones; and each scene comes out as by itself."""
    search, start, active = case("conditional", 1.0, generator, scenes=6, sources=(1, 3), snr_db=20.0)
    assert set(active.sum(1).tolist()) == {1, 2, 3}
    together = birth_death(search, start, active)
    assert torch.equal(together.positions[~active], start.positions[~active])
    for i in range(6):
        K, scene = int(active[i].sum()), torch.tensor([i])
        part = search[scene]
        alone_start = refine(
            part.recording, start.positions[scene, :K], active[scene, :K], search.grid.volume
        )
        alone = birth_death(part, alone_start, active[scene, :K])
        torch.testing.assert_close(alone.value[0], together.value[i], rtol=0, atol=2e-2)


def test_a_prior_has_its_say(generator):
    """Nothing changes where anything else than the start is forbidden."""
    search, start, active = case("unconditional", 1.5, generator, scenes=10, sources=3, snr_db=10.0)

    def stay(scenes, positions, active):
        moved = (positions - start.positions[scenes]).abs().amax((1, 2))
        return torch.where(moved < 1e-6, 0.0, -1e9)

    end = birth_death(search, start, active, criterion="unconditional", prior=stay)
    assert torch.equal(end.positions, start.positions)
    free = birth_death(search, start, active, criterion="unconditional")
    assert not torch.equal(free.positions, start.positions)


def test_a_prior_is_asked_where_the_sources_settle(generator):
    """Of the start, of the places where one source was dropped, and of those that were fitted from there."""
    search, start, active = case("unconditional", 1.5, generator, scenes=10, sources=3, snr_db=10.0)
    asked = []

    def against(scenes, positions, active):
        asked.append(positions)
        return torch.full((len(scenes),), -1e9 if len(asked) == 3 else 0.0, dtype=torch.float64)

    end = birth_death(search, start, active, criterion="unconditional", prior=against)
    assert torch.equal(end.positions, start.positions)
    assert len(asked) == 3


def test_later_passes_take_nothing_back(generator):
    search, start, active = case("conditional", 1.5, generator, scenes=60, sources=3, snr_db=10.0)
    values = [birth_death(search, start, active, sweeps=sweeps).value for sweeps in (1, 2, 3, 6)]
    for fewer, more in pairwise(values):
        assert (more <= fewer).all()
    assert (values[1] < values[0] - 1).any()


def test_births_are_apart_and_the_best_first():
    recording = dense.small(scenes=2)
    search = GridSearch(Dictionary.of(dense.grid_for(recording)), recording)
    step = torch.tensor(search.grid.step, dtype=torch.float64)
    places = torch.tensor([[0.0, 0.0, 0.5]], dtype=torch.float64).repeat(5, 1)
    places[1, 0] = float(2 * step[0])  # too near the first
    places[2, 1] = float(4 * step[1])
    places[3, 1] = float(5 * step[1])  # too near the one before
    places[4, 2] = 0.5 + 4 * float(step[2])
    chosen = module._apart(places.expand(2, 5, 3), search, 3)
    torch.testing.assert_close(chosen, places[[0, 2, 4]].expand(2, 3, 3))
