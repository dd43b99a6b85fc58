from __future__ import annotations

from dataclasses import replace

import dense
import numpy as np
import pytest
import torch

from rismusic.errors import InputError
from rismusic.estimate import dictionary as dictionary_module
from rismusic.estimate import search as search_module
from rismusic.estimate.dictionary import Dictionary
from rismusic.estimate.nfmle import pack, unpack
from rismusic.estimate.refine import fit_levels
from rismusic.estimate.search import Search, take_out
from rismusic.estimate.sparse import best, omp, relax, sbl
from rismusic.panel import Panel

LOCATORS = {locator.__name__: locator for locator in (omp, relax, sbl, best)}
CRITERIA = ["conditional", "unconditional"]


@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_energies_are_exact_for_few_outputs_and_near_for_many(system):
    few = dense.SYSTEMS[system]
    if few.channel.kind != "direct":
        few = few.replace(channel=few.channel.replace(antennas=4))
    for spec, tolerance in ((few, 1e-4), (dense.SYSTEMS[system], 0.5)):
        recording = dense.small(spec, 3)
        points = Dictionary.of(dense.grid_for(recording))
        ((_, columns),) = points.columns()
        found = points.energies(recording.link, columns)
        for scene in range(3):
            there = points.positions(torch.arange(0, len(points), 7))
            G = dense.fields(recording, scene, there)
            expected = (np.abs(G) ** 2).sum(1)
            near = found[min(scene, len(found) - 1)][:, ::7].expand(len(G), -1).numpy()
            assert np.median(np.abs(near - expected) / expected) < tolerance
            np.testing.assert_allclose(near.mean(), expected.mean(), rtol=max(0.1, tolerance) / 5)


@pytest.mark.parametrize("system", dense.SYSTEMS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_point_is_worth_what_the_likelihood_gains(system, criterion, generator):
    """Against the likelihood with one more source there, its power at the best of many."""
    recording = dense.small(dense.SYSTEMS[system], 3, snr_db=5.0)
    search = Search(Dictionary.of(dense.grid_for(recording)), recording)
    there, active = dense.truth_of(recording)
    there, active = there[:, :1], active[:, :1]
    levels = None if criterion == "conditional" else fit_levels(recording, there, active)
    rest, scenes = take_out(recording, there, active, levels), torch.arange(3)
    index = torch.randint(len(search.dictionary), (3, 5), generator=generator)
    found = search._exactly(scenes, rest, index)
    for scene in range(3):
        for point, gain in zip(search.dictionary.positions(index[scene]), found[scene], strict=True):
            both = torch.cat((there[scene], point[None]))
            if levels is None:
                before = dense.conditional_cost(recording, scene, there[scene])
                assert float(gain) == pytest.approx(
                    before - dense.conditional_cost(recording, scene, both), rel=1e-6
                )
                continue
            p, noise = levels[0][scene].numpy(), float(levels[1][scene])
            before = dense.unconditional_value(recording, scene, there[scene], p, noise)
            powers = np.concatenate(([0], np.geomspace(1e-4, 10, 400)))
            after = min(
                dense.unconditional_value(recording, scene, both, np.append(p, power), noise)
                for power in powers
            )
            assert float(gain) == pytest.approx(before - after, rel=0.05, abs=0.05)


def test_the_best_point_is_the_best_of_all():
    recording = dense.small(scenes=4)
    search = Search(Dictionary.of(dense.grid_for(recording)), recording)
    there, active = dense.truth_of(recording)
    rest, scenes = take_out(recording, there[:, :1], active[:, :1]), torch.arange(4)
    everything = torch.arange(len(search.dictionary)).expand(4, -1)
    worth = search._exactly(scenes, rest, everything)
    found = search.best(scenes, rest, 3)
    assert (worth.gather(1, found[:, :1]) >= 0.99 * worth.amax(1, keepdim=True)).all()
    ordered = worth.gather(1, found)
    assert (ordered.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_search_by_blocks_is_the_search(criterion, monkeypatch):
    """Energies not kept, points and scenes a few at a time: as for a large panel."""
    recording = dense.small(dtype=torch.float32)
    grid = dense.grid_for(recording)
    expected = omp(recording, 2, grid, criterion=criterion)
    monkeypatch.setattr(search_module, "_KEPT", 0)
    monkeypatch.setattr(search_module, "BLOCK", 2**16)
    monkeypatch.setattr(dictionary_module, "BLOCK", 2**16)
    monkeypatch.setattr(dictionary_module, "STEERING", 0)
    monkeypatch.setattr(dictionary_module, "_AT_ONCE", 2**13)
    assert len(list(Dictionary.of(grid).columns())) > 3
    found = omp(recording, 2, dense.grid_for(recording), criterion=criterion)
    torch.testing.assert_close(found.sources.azimuth, expected.sources.azimuth, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.cost, expected.cost, rtol=1e-4, atol=0)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", LOCATORS)
@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_every_locator_finds_strong_sources(name, system, criterion):
    recording = dense.small(dense.SYSTEMS[system], 20, snr_db=25.0, dtype=torch.float32)
    fit = LOCATORS[name](recording, 2, dense.grid_for(recording), criterion=criterion)
    assert dense.misses(recording.truth, fit.sources) <= 2
    assert fit.converged.float().mean() > 0.8


def test_conjugated_data_hide_them():
    recording = dense.small(scenes=20, snr_db=25.0, dtype=torch.float32)
    wrong = replace(recording, snapshots=recording.snapshots.conj().resolve_conj())
    assert dense.misses(recording.truth, omp(wrong, 2, dense.grid_for(recording)).sources) > 15


@pytest.mark.parametrize("name", LOCATORS)
def test_each_scene_has_its_own_number_of_sources(name):
    """In one batch as in a loop, none at all among them."""
    recording = dense.small(scenes=5, sources=3, snr_db=25.0)
    count, grid = torch.tensor([2, 0, 3, 1, 3]), dense.grid_for(recording)
    together = LOCATORS[name](recording, count, grid)
    assert torch.equal(together.sources.active.sum(1), count)
    for i in range(5):
        alone = LOCATORS[name](recording[i : i + 1], count[i : i + 1], grid)
        K = max(1, int(count[i]))
        assert alone.sources.azimuth.shape == (1, K)
        torch.testing.assert_close(alone.likelihood[0], together.likelihood[i], rtol=1e-5, atol=1e-2)
        for part in ("azimuth", "elevation"):
            one, many = getattr(alone.sources, part)[0], getattr(together.sources, part)[i, :K]
            torch.testing.assert_close(one, many, rtol=0, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("name", LOCATORS)
def test_what_cannot_be_located_is_said(name):
    recording = dense.small()
    grid = dense.grid_for(recording)
    with pytest.raises(InputError, match="sources: expected at most 6"):
        LOCATORS[name](recording, 7, grid)
    with pytest.raises(InputError, match="grid: expected a grid of the recording's panel, 36 elements"):
        LOCATORS[name](recording, 1, type(grid).cover(Panel.uniform(5, 5), dense.VOLUME))


@pytest.mark.parametrize("name", LOCATORS)
def test_as_many_sources_as_the_data_carry_and_silence(name):
    recording = dense.small(scenes=2, sources=1)
    fit = LOCATORS[name](recording, 6, dense.grid_for(recording))
    assert fit.sources.azimuth.isfinite().all()
    assert fit.likelihood.isfinite().all()
    silent = replace(recording, snapshots=torch.zeros_like(recording.snapshots))
    fit = LOCATORS[name](silent, 2, dense.grid_for(recording))
    assert fit.sources.azimuth.isfinite().all()
    assert (fit.cost < 1e-100).all()


def test_pursuit_of_more_sources_never_costs_more():
    recording = dense.small(scenes=10, sources=3, snr_db=0.0)
    grid = dense.grid_for(recording)
    costs = torch.stack([omp(recording, K, grid).cost for K in range(4)])
    assert (costs.diff(dim=0) < 0).all()
    positions, active = unpack(omp(recording, 3, grid).sources, recording)
    assert torch.equal(unpack(pack(positions, active), recording)[0], positions)
