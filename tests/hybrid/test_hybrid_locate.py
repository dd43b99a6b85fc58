"""The hybrid estimator from end to end, on what its network knows."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from hybrid_case import SETTINGS, SYSTEM

import rismusic
from rismusic import hybrid as fits
from rismusic.crb import recording_crb
from rismusic.estimation.estimate import Estimate
from rismusic.estimation.maximum_likelihood import complete_fit, unpack
from rismusic.hybrid import locate
from rismusic.metrics import match, score
from rismusic.nn.inference import NetworkOutput
from rismusic.simulation.simulator import simulate


def hybrid(recording, weights, **settings) -> Estimate:
    return locate(recording, method="hybrid", weights=weights, **{**SETTINGS, **settings})


def gap(one: Estimate, other: Estimate) -> float:
    """Largest distance of two answers, in standard deviations; infinite where one has more sources."""
    if not torch.equal(one.sources.active, other.sources.active):
        return float("inf")
    names = ("azimuth", "elevation", "range")
    apart = torch.stack([getattr(one.sources, n) - getattr(other.sources, n) for n in names], dim=-1)
    return float((apart.abs() / one.std)[one.sources.active].max())


def test_it_is_what_the_package_calls_locate():
    assert rismusic.locate is locate


def test_it_finds_what_is_there_and_hits_sit_on_the_bound(recording, weights):
    made = simulate(SYSTEM, scenes=24, sources=2, snr_db=20.0)
    located = hybrid(replace(made, truth=None, noise_variance=None), weights, n_sources=2)
    result = score(match(made.truth, located.sources), recording_crb(made))
    assert result.misses <= 0.025
    for ratio in (result.azimuth_over_bound, result.elevation_over_bound, result.inverse_range_over_bound):
        assert 0.6 < ratio < 1.4
    assert located.sources.azimuth.dtype == torch.float64
    assert located.n_sources_probability is None
    assert located.spec.method == "hybrid"
    assert not any("not by the network" in said for scene in located.warnings for said in scene)


def test_batch_equals_loop_and_one_link_serves_all(recording, weights):
    whole = hybrid(recording, weights, n_sources=2)
    for scene in range(0, 6, 2):
        assert (
            gap(hybrid(recording[scene : scene + 1], weights, n_sources=2), whole[scene : scene + 1]) < 0.01
        )
    made = simulate(SYSTEM.replace(one_link=True), scenes=4, sources=1, snr_db=20.0)
    assert made.channel.ndim == 2
    located = hybrid(replace(made, noise_variance=None), weights, n_sources=1)
    assert score(match(made.truth, located.sources)).misses == 0


def test_blocks_of_scenes_equal_one(monkeypatch, recording, weights):
    whole = hybrid(recording, weights, n_sources=2)
    monkeypatch.setattr("rismusic.hybrid.BLOCK_SCENES", 4)
    assert gap(whole, hybrid(recording, weights, n_sources=2)) < 0.01


def test_blocks_run_in_the_threads_of_torch_one_thread_each(monkeypatch, recording, weights):
    expected, used = hybrid(recording, weights, n_sources=2, polish=False), set()

    def located(*block):
        assert torch.get_num_threads() == 1
        together.wait()
        used.add(threading.get_ident())
        return locate_block(*block)

    together, locate_block = threading.Barrier(2, timeout=60), fits.locate_block
    monkeypatch.setattr(fits, "locate_block", located)
    monkeypatch.setattr(fits, "BLOCK_SCENES", len(recording) // 2)
    torch.set_num_threads(2)
    try:
        found = hybrid(recording, weights, n_sources=2, polish=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert len(used) == 2
    assert gap(found, expected) < 0.01


def test_scale_phase_and_order_of_snapshots_change_nothing(recording, weights, generator):
    reference = hybrid(recording, weights, n_sources=2)
    order = torch.randperm(10, generator=generator)
    shuffled = replace(recording, snapshots=recording.snapshots[:, order], codes=recording.codes[:, order])
    louder = replace(
        recording, snapshots=recording.snapshots * 100j, noise_variance=recording.noise_variance * 1e4
    )
    for changed in (shuffled, louder):
        assert gap(hybrid(changed, weights, n_sources=2), reference) < 0.01
    conjugated = replace(recording, snapshots=recording.snapshots.conj().resolve_conj())
    assert gap(hybrid(conjugated, weights, n_sources=2, hybrid={"recheck_p_value": 0.0}), reference) > 1


def test_a_number_for_each_scene(recording, weights):
    count = torch.tensor([1, 2, 0, 2, 1, 3])
    located = hybrid(recording, weights, n_sources=count)
    assert torch.equal(located.sources.active.sum(-1), count)


def test_with_beta_1_it_is_music_on_the_snapshots(recording, weights):
    """What is left of the hybrid without R_pred and the network's list is the classical method, exactly."""
    alone = {"network_sources": False, "relax_sweeps": 0, "newton_steps": 40}
    for polish in (True, False):
        plain = locate(recording, method="music", n_sources=2, polish=polish, **SETTINGS)
        same = hybrid(recording, weights, n_sources=2, polish=polish, hybrid={"beta": 1.0, **alone})
        # Both fits converge to .005 of an error bar, from different starts.
        assert gap(plain, same) < (0.01 if polish else 1e-3)
    blended = hybrid(recording, weights, n_sources=2, polish=False, hybrid={"beta": 0.5, **alone})
    assert gap(plain, blended) > 0.1


def test_beta_is_that_of_the_training_unless_it_is_said(recording, weights):
    rough = {"n_sources": 2, "polish": False}
    trained = hybrid(recording, weights, **rough)
    assert gap(trained, hybrid(recording, weights, **rough, hybrid={"beta": 0.3})) < 1e-6
    assert gap(trained, hybrid(recording, weights, **rough, hybrid={"beta": 0.1})) > 1e-3


@pytest.mark.parametrize("rule", ["both", "likelihood", "network"])
def test_how_many(weights, rule):
    made = simulate(SYSTEM, scenes=7, sources=(1, 3), snr_db=20.0)
    located = hybrid(replace(made, noise_variance=None), weights, hybrid={"model_order": rule})
    probability = located.n_sources_probability
    assert probability.shape == (7, 4)
    torch.testing.assert_close(probability.sum(-1), torch.ones(7, dtype=torch.float64))
    assert torch.equal(probability.argmax(-1), located.sources.active.sum(-1))
    right = (probability.argmax(-1) == made.truth.active.sum(-1)).double().mean()
    # This network has learned nothing: alone it cannot tell, and it must not keep the likelihood from it.
    assert right < 0.8 if rule == "network" else right >= 0.85


def test_nothing_is_found_in_noise(recording, weights, generator):
    """Numbers that the training never showed, such as 0, are estimated by the likelihood."""
    noise = torch.randn(6, 10, 10, dtype=torch.complex64, generator=generator)
    located = hybrid(replace(recording, snapshots=noise, noise_variance=None), weights)
    assert located.sources.active.sum() == 0


def test_without_polish_the_peaks_stay(recording, weights):
    rough, fine = (hybrid(recording, weights, n_sources=2, polish=one) for one in (False, True))
    assert gap(rough, fine) > 0.1


@pytest.mark.parametrize("sources", [2, "auto"])
def test_doubtful_scenes_are_searched_again(sources, recording, weights, monkeypatch):
    """A network that looks away in two scenes: what is found there does not explain the data."""
    sound = fits._fit_near_network

    def astray(output: NetworkOutput, count, grid, spec):
        fit = sound(output, count, grid, spec)
        lost = torch.isin(output.recording.snapshots.real[:, 0, 0], recording.snapshots.real[[1, 4], 0, 0])
        plain = replace(fit.sources, power=None, symbols=None)
        aside = plain.each(lambda value: torch.where(lost[:, None], 0.5 * value, value))
        positions, active = unpack(aside, output.recording)
        return complete_fit(output.recording, positions, active, fit.converged, grid.volume)

    monkeypatch.setattr(fits, "_fit_near_network", astray)
    # The map, which would doubt what is found too, is not asked.
    blind = hybrid(
        recording,
        weights,
        n_sources=sources,
        panel_error=0.0,
        hybrid={"recheck_p_value": 0.0, "birth_death_prior_below": 0.0},
    )
    missed = ~match(recording.truth, blind.sources).hit
    assert missed[[1, 4]].any(-1).all()
    assert not missed[[0, 2, 3, 5]].any()
    again = hybrid(
        recording, weights, n_sources=sources, panel_error=0.0, hybrid={"birth_death_prior_below": 0.0}
    )
    assert match(recording.truth, again.sources).hit.all()
    assert again.spec.method == "hybrid"
    # What was sound is left as it was, scene by scene.
    for scene in (0, 2, 3, 5):
        assert gap(again[scene : scene + 1], blind[scene : scene + 1]) == 0


@pytest.mark.parametrize("method", ["hybrid", "omp"])
def test_what_is_returned_may_take_part_in_gradients(method, recording, weights):
    located = locate(recording, n_sources=2, method=method, weights=weights)
    for value in (located.sources.azimuth, located.covariance, located.neg_log_likelihood):
        assert not value.is_inference()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    (weight * located.sources.azimuth[0]).sum().backward()
    assert weight.grad is not None
    again = locate(recording, n_sources=2, method=method, weights=weights)
    assert gap(located, again) == 0
