"""What the fits start from, and which end counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hybrid_case import SETTINGS, SYSTEM

from rismusic import hybrid as module
from rismusic.covariance import Covariance
from rismusic.estimation.grid import searched_grid, to_cosines
from rismusic.estimation.maximum_likelihood import complete_fit, unpack
from rismusic.estimation.model_order import EVIDENCE_WEIGHT, log_evidence
from rismusic.estimation.noise import noise_of
from rismusic.estimation.relax import beside
from rismusic.hybrid import fit_most_probable, fit_n_sources, same_positions
from rismusic.io import Recording
from rismusic.metrics import match, score
from rismusic.nn.inference import LoadedNetwork, NetworkOutput, SpatialPrior
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources
from rismusic.spec import LocateSpec

TWO = torch.full((8,), 2)


@pytest.fixture(scope="module")
def made() -> Recording:
    uniform = SYSTEM.panel.replace(wave="uniform")
    return simulate(SYSTEM.replace(panel=uniform), scenes=8, sources=2, snr_db=20.0)


def spec_of(weights: str, **hybrid: object) -> LocateSpec:
    return LocateSpec(
        method="hybrid", weights=weights, hybrid={"birth_death_prior_below": 0.0, **hybrid}, **SETTINGS
    )


@pytest.fixture(scope="module")
def output(made, weights) -> NetworkOutput:
    return NetworkOutput.compute(
        LoadedNetwork.load(weights, torch.device("cpu")), made, noise_of(made), spec_of(weights)
    )


def places(truth: Sources) -> Sources:
    return Sources(
        azimuth=truth.azimuth.double(), elevation=truth.elevation.double(), range=truth.range.double()
    )


def misses(output: NetworkOutput, made: Recording, spec: LocateSpec) -> float:
    fit = fit_n_sources(output, TWO, searched_grid(made, spec), spec)
    return score(match(made.truth, fit.sources)).misses


def test_the_likelier_of_two_starts_counts(output, made, weights, generator):
    """A useless blend beside a good list, and the other way round."""
    noise = torch.randn(8, 64, 4, dtype=torch.complex64, generator=generator)
    lost = replace(output, blend=Covariance(noise, torch.zeros(8)), network_sources=places(made.truth))
    assert misses(lost, made, spec_of(weights, relax_sweeps=0)) == 0
    assert misses(lost, made, spec_of(weights, network_sources=False, relax_sweeps=0)) > 0.2
    corner = places(made.truth).each(lambda value: torch.ones_like(value))
    strayed = replace(output, network_sources=corner)
    assert (
        misses(strayed, made, spec_of(weights))
        == misses(output, made, spec_of(weights, network_sources=False))
        == 0
    )


def test_exchanges_mend_a_start(output, made, weights, generator):
    noise = torch.randn(8, 64, 4, dtype=torch.complex64, generator=generator)
    corner = places(made.truth).each(lambda value: torch.ones_like(value))
    lost = replace(output, blend=Covariance(noise, torch.zeros(8)), network_sources=corner)
    alone = misses(lost, made, spec_of(weights, relax_sweeps=0))
    assert misses(lost, made, spec_of(weights, relax_sweeps=2)) < alone / 2
    # Candidates that are no sources are not taken; those beside a fitted source mend one of 16 at most.
    nowhere = replace(lost, candidates=torch.ones_like(lost.candidates))
    assert alone - 1 / 16 <= misses(nowhere, made, spec_of(weights, relax_sweeps=2)) <= alone


def test_a_search_of_the_grid_mends_what_no_candidate_can(output, made, weights, generator):
    """Blend, list and candidates useless: the grid alone is left."""
    noise = torch.randn(8, 64, 4, dtype=torch.complex64, generator=generator)
    corner = places(made.truth).each(lambda value: torch.ones_like(value))
    lost = replace(
        output,
        blend=Covariance(noise, torch.zeros(8)),
        network_sources=corner,
        candidates=torch.ones_like(output.candidates),
    )
    without, with_it = (misses(lost, made, spec_of(weights, birth_death_min_sources=one)) for one in (3, 2))
    assert with_it < without / 2


def test_the_grid_is_searched_only_where_one_more_source_can_be_and_is_wanted(
    output, made, weights, monkeypatch
):
    """Not beside as many as the data carry, not without polishing."""
    searched = []
    whole = module.birth_death

    def recorded(search, start, active, **named):
        searched.append(len(active))
        return whole(search, start, active, **named)

    monkeypatch.setattr(module, "birth_death", recorded)
    spec = spec_of(weights, birth_death_min_sources=2)
    fit_n_sources(output, TWO, searched_grid(made, spec), spec)
    assert searched == [8]
    unpolished = spec.replace(polish=False)
    fit_n_sources(output, TWO, searched_grid(made, unpolished), unpolished)
    assert searched == [8]
    monkeypatch.setattr(module, "most_sources", lambda *_: 2)
    fit_n_sources(output, TWO, searched_grid(made, spec), spec)
    assert searched == [8]


@pytest.mark.parametrize("known", [True, False])
def test_where_the_map_doubts_what_was_found_the_grid_is_searched(known, output, made, weights, monkeypatch):
    """A map that has nothing where the sources of two scenes are; blend and candidates lead astray there."""
    one = torch.isin(torch.arange(8), torch.tensor([1, 4]))
    aside = places(made.truth).each(lambda value: torch.where(one[:, None], 0.5 * value, value))

    def near(part, count, grid, spec):
        scenes = [
            int((made.snapshots == y).flatten(1).all(1).nonzero()[0, 0]) for y in part.recording.snapshots
        ]
        start, there = unpack(aside.each(lambda value: value[scenes]), part.recording)
        there = there & (torch.arange(2) < count[:, None])
        return complete_fit(part.recording, start, there, count >= 0, grid.volume)

    monkeypatch.setattr(module, "_fit_near_network", near)
    share = output.spatial_prior.near.clone()
    share[one], share[~one] = 0.0, 1.0
    with_map = replace(output, spatial_prior=replace(output.spatial_prior, near=share))
    searched = []
    whole = module.birth_death

    def recorded(search, *args, **named):
        searched.append(len(search.recording))
        return whole(search, *args, **named)

    monkeypatch.setattr(module, "birth_death", recorded)

    def missed(**hybrid):
        spec = spec_of(weights, model_order="likelihood", birth_death_min_sources=3, **hybrid)
        grid = searched_grid(made, spec)
        if known:
            fit = fit_n_sources(with_map, TWO, grid, spec)
        else:
            fit = module.fit_most_probable(with_map, grid, spec.replace(sources_max=2)).fit
        return (~match(made.truth, fit.sources).hit & made.truth.active).any(-1)

    assert missed()[one].all()
    assert missed(birth_death_prior_below=0.5, network_sources=False)[one].all()
    assert searched == []
    assert not missed(birth_death_prior_below=0.5).any()
    assert searched == [2]


def test_the_evidence_is_that_of_the_fit_that_is_returned(output, made, weights, monkeypatch):
    """Also where the search of the grid came to another fit than what it began with."""
    whole = module._birth_death

    def elsewhere(output, fit, grid, spec):
        aside = replace(fit.sources, power=None, symbols=None)
        positions, active = unpack(aside.each(lambda value: 0.99 * value), output.recording)
        converged = whole(output, fit, grid, spec).converged
        return complete_fit(output.recording, positions, active, converged, grid.volume)

    monkeypatch.setattr(module, "_birth_death", elsewhere)
    spec = spec_of(weights, model_order="likelihood", birth_death_min_sources=1)
    grid = searched_grid(made, spec)
    chosen = fit_most_probable(output, grid, spec)
    evidence = log_evidence(output.recording, chosen.fit, grid.volume)
    torch.testing.assert_close(chosen.log_posterior.amax(1), EVIDENCE_WEIGHT * evidence, rtol=0, atol=1e-4)


def test_evidence_decides_whether_there_are_sources_and_the_network_how_many(output, made, weights):
    """The network was not trained on scenes without sources: P(0) is Bayes' rule with the whole evidence."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(made.snapshots.shape, dtype=torch.cfloat, generator=generator)
    empty = replace(made, snapshots=0.1 * noise, noise_variance=None, truth=None)
    spec = spec_of(weights, model_order_floor=0.0)
    network = LoadedNetwork.load(weights, torch.device("cpu"))
    listened = NetworkOutput.compute(network, empty, noise_of(empty), spec)
    grid = searched_grid(empty, spec)
    chosen = fit_most_probable(listened, grid, spec)
    assert (chosen.fit.sources.active.sum(1) == 0).all()
    fits = [fit_n_sources(listened, torch.full((8,), count), grid, spec) for count in range(4)]
    evidence = torch.stack([log_evidence(empty, fit, grid.volume) for fit in fits], dim=1)
    # The level of a further source has a prior of exp(-x / 10 dB) on x > 0, which has to add up to 1.
    number = listened.log_count[:, 1:].double() + EVIDENCE_WEIGHT * math.log(3) * torch.arange(3)
    bayes = (evidence[:, 1:] + number.log_softmax(1)).logsumexp(1)
    expected = torch.sigmoid(evidence[:, 0] - bayes)
    torch.testing.assert_close(chosen.probability[:, 0], expected, rtol=0, atol=2e-3)
    assert expected.min() < 0.99 < expected.max()
    ratio = chosen.log_posterior[:, 2] - chosen.log_posterior[:, 1]
    by_hand = EVIDENCE_WEIGHT * (evidence[:, 2] - evidence[:, 1]) + number[:, 1] - number[:, 0]
    torch.testing.assert_close(ratio, by_hand, rtol=0, atol=1e-2)


@pytest.mark.parametrize("order", ["likelihood", "both"])
def test_joint_fits_of_few_scenes_equal_fits_in_turn(order, output, made, weights):
    spec = spec_of(weights, model_order=order)
    grid = searched_grid(made, spec)
    many = fit_most_probable(output, grid, spec)
    assert len(made) > module._JOINT_SCENES >= 3
    few = fit_most_probable(output[2:5], grid, spec)
    torch.testing.assert_close(few.log_posterior, many.log_posterior[2:5], rtol=0, atol=2e-3)
    one, other = few.fit.sources.position, many.fit.sources.position[2:5, : few.fit.sources.azimuth.shape[1]]
    torch.testing.assert_close(one, other, rtol=0, atol=1e-3, equal_nan=True)


def test_places_beside_sources(made, weights):
    """A beam's width to either side along each axis, and never out of the volume."""
    grid = searched_grid(made, spec_of(weights))
    low, high = (torch.tensor(limit, dtype=torch.float64) for limit in (grid.volume.lower, grid.volume.upper))
    positions = torch.stack(((low + high) / 2, high))[None]
    around = beside(positions, grid)
    assert ((around >= low) & (around <= high)).all()
    azimuth, elevation, q = torch.cat((positions[:, :1], around[:, :6]), dim=1)[0].unbind(-1)
    direction_cosines = torch.stack(to_cosines(azimuth, elevation, 1 / q), dim=-1)
    width = 0.8 * grid.oversampling * torch.tensor(grid.step, dtype=torch.float64).diag()
    expected = direction_cosines[0] + torch.cat((width, -width))
    expected[:, 2].clamp_(grid.volume.lower[2], grid.volume.upper[2])
    torch.testing.assert_close(direction_cosines[1:], expected, rtol=1e-6, atol=1e-9)


def test_without_its_list_nothing_but_the_blend_counts(output, made, weights):
    """Neither the list nor the map of the network has a part in the answer then."""
    spec = spec_of(weights, network_sources=False)

    class Deaf(SpatialPrior):
        """Is never asked."""

        def __call__(self, *_: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    deaf = Deaf(output.spatial_prior.near, output.spatial_prior.grid, output.spatial_prior.scale)
    other = replace(
        output,
        network_sources=output.network_sources.each(torch.ones_like),
        candidates=torch.ones_like(output.candidates),
        spatial_prior=deaf,
    )
    fits = [fit_n_sources(one, TWO, searched_grid(made, spec), spec) for one in (output, other)]
    assert torch.equal(fits[0].sources.azimuth, fits[1].sources.azimuth)
    assert not torch.equal(output.candidates, other.candidates)


@pytest.mark.parametrize("birth_death_min_sources", [0, 2])
def test_what_the_map_says_of_places_counts_with_its_weight(birth_death_min_sources, output, made, weights):
    """A map that rules out where a source is: with some weight it is missed, with none it is not."""
    truth = places(made.truth)

    class Against(SpatialPrior):
        """Nothing may be near the first source of the scene."""

        def __call__(
            self, scenes: torch.Tensor, positions: torch.Tensor, active: torch.Tensor
        ) -> torch.Tensor:
            place = torch.stack((truth.azimuth, truth.elevation), dim=-1)[scenes, :1]
            near = ((positions[..., :2] - place).abs() < 0.2).all(-1).any(-1)
            return torch.where(near, -1e6, 0.0).double()

    corner = truth.each(lambda value: torch.ones_like(value))
    against = Against(output.spatial_prior.near, output.spatial_prior.grid, output.spatial_prior.scale)
    biased = replace(output, network_sources=corner, spatial_prior=against)
    settings = {"relax_sweeps": 2, "birth_death_min_sources": birth_death_min_sources}
    heard, unheard = (
        misses(biased, made, spec_of(weights, spatial_prior=weight, **settings)) for weight in (1.0, 0.0)
    )
    assert unheard == 0
    assert heard > 0.2


def test_candidates_are_the_map_s_peaks_and_places_beside(output, made, weights, monkeypatch):
    given = []
    whole = module.CandidateSearch
    monkeypatch.setattr(
        module, "CandidateSearch", lambda *recorded: given.append(recorded[2]) or whole(*recorded)
    )
    spec = spec_of(weights, relax_sweeps=1, birth_death_min_sources=0)
    fit_n_sources(output, TWO, searched_grid(made, spec), spec)
    (places,) = given
    assert torch.equal(places[:, : output.candidates.shape[1]], output.candidates)
    assert places.shape[1] == output.candidates.shape[1] + 12


def test_the_own_list_has_the_surest_first(made, weights):
    network = LoadedNetwork.load(weights, torch.device("cpu"))
    prediction = network.network(made)
    output = NetworkOutput.compute(network, made, noise_of(made), spec_of(weights))
    best = prediction.existence_logits.argmax(-1, keepdim=True)
    torch.testing.assert_close(
        output.network_sources.azimuth[:, :1].float(), prediction.azimuth.gather(1, best)
    )
    torch.testing.assert_close(
        1 / output.network_sources.range[:, :1].float(), prediction.inverse_range.gather(1, best)
    )
    torch.testing.assert_close(output.log_count.exp().sum(-1), torch.ones(8, dtype=torch.float64))


def test_an_untrained_network_is_another_one(weights):
    known, raw = (LoadedNetwork.load(weights, torch.device("cpu"), untrained=one) for one in (False, True))
    assert known.network.spec == raw.network.spec
    pairs = zip(known.network.parameters(), raw.network.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)


def test_a_file_that_changes_is_read_again(tmp_path, weights):
    from shutil import copy

    from hybrid_case import save_weights

    path = tmp_path / "weights.safetensors"
    copy(weights, path)
    device = torch.device("cpu")
    first = LoadedNetwork.load(str(path), device)
    assert LoadedNetwork.load(str(path), device) is first
    save_weights(path, SYSTEM.replace(snr_db=(0.0, 7.0)))
    assert LoadedNetwork.load(str(path), device).card.system.snr_db == (0.0, 7.0)


def test_same_places(made, weights):
    grid = searched_grid(made, spec_of(weights))
    one = places(made.truth)
    assert same_positions(one, one.each(lambda value: value.flip(1)), grid).all()
    moved = replace(one, azimuth=one.azimuth + torch.tensor([0.0, 0.5]))
    assert not same_positions(one, moved, grid).any()
    # Two of one list at the same source of the other leave that one's second source alone.
    twice = one.each(lambda value: value[:, :1].expand(-1, 2))
    assert not same_positions(twice, one, grid).any()
    assert not same_positions(one, twice, grid).any()
    single = one.each(lambda value: torch.where(torch.tensor([True, False]), value, torch.nan))
    assert same_positions(single, single, grid).all()
