"""Powers and noise variance at given positions, and the blocks of scenes that refinements work through."""

from __future__ import annotations

from dataclasses import replace

import dense
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from rismusic.estimation import maximum_likelihood as levels_module
from rismusic.estimation import maximum_likelihood as module
from rismusic.estimation.levenberg_marquardt import FitOptions
from rismusic.estimation.likelihood import scene_blocks, sufficient_statistics
from rismusic.estimation.maximum_likelihood import (
    POWER_FIT,
    fit_power_noise,
    fit_powers,
    refine,
    values_without_each,
)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_levels_are_the_best_of_the_dense_likelihood(system, known):
    """Against a general minimiser of the value formed with R_l itself, from several starts."""
    recording = dense.small(dense.SYSTEMS[system], 2, known=known, snr_db=5.0)
    positions, active = dense.truth_of(recording)
    at = sufficient_statistics(recording, positions, active)
    power, noise, value = fit_powers(recording.noise_variance, at, FitOptions(steps=100, tolerance=1e-9))
    for scene in range(2):
        given = [] if known else [1]

        def dense_value(x, scene=scene):
            level = np.exp(x[2]) if len(x) > 2 else float(recording.noise_variance[scene])
            return dense.unconditional_value(recording, scene, positions[scene], np.exp(x[:2]), level)

        starts = [np.zeros(2 + len(given)), np.full(2 + len(given), -2.0)]
        best = min((minimize(dense_value, x, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9,
                             "maxiter": 2000}) for x in starts), key=lambda end: end.fun)  # fmt: skip
        assert float(value[scene]) == pytest.approx(best.fun, abs=1e-5)
        np.testing.assert_allclose(power[scene], np.exp(best.x[:2]), rtol=1e-2)
        expected = float(recording.noise_variance[scene]) if known else np.exp(best.x[2])
        assert float(noise[scene]) == pytest.approx(expected, rel=1e-3)


def test_empty_places_and_scenes_of_zeros_have_no_power():
    recording = dense.small(scenes=3, sources=3)
    positions, active = dense.truth_of(recording)
    active[0, 1:] = False
    silent = recording.snapshots.clone()
    silent[2] = 0
    power, noise = fit_power_noise(replace(recording, snapshots=silent), positions, active)
    assert (power[0, 1:] == 0).all()
    assert (power[0, 0] > 0) & (power[1] > 0).all()
    assert (power[2] == 0).all()
    assert (noise > 0).all()


@pytest.mark.parametrize("criterion", ["conditional", "unconditional"])
def test_blocks_of_scenes_change_nothing(criterion, monkeypatch, generator, memory_budget):
    recording = dense.small(scenes=5, sources=(1, 3))
    truth, active = dense.truth_of(recording)
    start = dense.scattered(truth, generator, 0.05)
    whole = refine(recording, start, active, dense.VOLUME, criterion=criterion)
    power_noise = fit_power_noise(recording, start, active)
    assert scene_blocks(recording, 12) == [slice(0, 5)]
    assert torch.equal(whole.positions[~active], start[~active])
    memory_budget(1)
    assert scene_blocks(recording, 12) == [slice(i, i + 1) for i in range(5)]
    parts = refine(recording, start, active, dense.VOLUME, criterion=criterion)
    torch.testing.assert_close(parts.positions, whole.positions, rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.value, whole.value, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(fit_power_noise(recording, start, active), power_noise, rtol=1e-3, atol=1e-6)


def test_levels_that_are_known_lead_to_the_same_end_sooner(generator, monkeypatch):
    recording = dense.small(scenes=10, sources=(1, 3), snr_db=5.0)
    truth, active = dense.truth_of(recording)
    start = dense.scattered(truth, generator, 0.05)
    first = refine(recording, start, active, dense.VOLUME, criterion="unconditional")
    at = sufficient_statistics(recording, first.positions, active)
    cold = fit_powers(None, at, FitOptions(steps=100, tolerance=1e-9))
    torch.testing.assert_close(first.power_noise[0], cold[0], rtol=2e-2, atol=1e-5)
    torch.testing.assert_close(first.power_noise[1], cold[1], rtol=1e-3, atol=0)
    monkeypatch.setattr(module, "_kernel", lambda: None)
    evaluated = []
    whole = module.unconditional
    for one in (module, levels_module):
        monkeypatch.setattr(one, "unconditional", lambda *some: evaluated.append(some) or whole(*some))
    torch.testing.assert_close(first.value, cold[2], rtol=0, atol=1e-2)
    assert (first.power_noise[0][~active] == 0).all()
    again = refine(
        recording,
        first.positions,
        active,
        dense.VOLUME,
        criterion="unconditional",
        power_noise=first.power_noise,
    )
    warm_steps = len(evaluated)
    del evaluated[:]
    refine(recording, first.positions, active, dense.VOLUME, criterion="unconditional")
    assert warm_steps < len(evaluated)
    torch.testing.assert_close(again.value, first.value, rtol=0, atol=1e-3)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("criterion", ["conditional", "unconditional"])
def test_values_without_each_source(criterion, known):
    """As the fits of all sources but one, each made by itself; sources that are not there cannot go."""
    recording = dense.small(scenes=6, sources=(1, 3), known=known, snr_db=5.0)
    positions, active = dense.truth_of(recording)
    assert len(set(active.sum(1).tolist())) > 1
    values = values_without_each(recording, positions, active, criterion)
    assert torch.equal(values.isinf(), ~active)
    for k in range(3):
        rest = active.clone()
        rest[:, k] = False
        settings = {"criterion": criterion, "options": FitOptions(steps=0)}
        expected = refine(recording, positions, rest, dense.VOLUME, **settings).value
        error = 1e-6 if criterion == "conditional" else POWER_FIT.tolerance**2
        torch.testing.assert_close(values[active[:, k], k], expected[active[:, k]], rtol=0, atol=error)


def test_powers_need_not_come_to_rest_before_positions_move(generator):
    """From those of least squares the same maximum is reached, without a fit of the powers alone."""
    recording = dense.small(scenes=6, sources=2, snr_db=15.0)
    grid = dense.grid_for(recording)
    truth, active = dense.truth_of(recording)
    start = dense.scattered(truth, generator, 0.05)
    ends = [
        refine(recording, start, active, grid.volume, criterion="unconditional",
               options=FitOptions(80, 1e-7, powers_first=first))
        for first in (True, False)
    ]  # fmt: skip
    torch.testing.assert_close(ends[0].value, ends[1].value, rtol=0, atol=1e-4)
    torch.testing.assert_close(ends[0].positions, ends[1].positions, rtol=0, atol=1e-3)


@pytest.mark.parametrize("first", [True, False])
def test_only_what_is_asked_for_fits_powers(first, monkeypatch):
    recording = dense.small(scenes=2, sources=2, snr_db=15.0)
    truth, active = dense.truth_of(recording)
    calls = []
    monkeypatch.setattr(module, "_kernel", lambda: None)
    monkeypatch.setattr(module, "fit_powers", lambda *a, **k: calls.append(1) or fit_powers(*a, **k))
    options = FitOptions(2, powers_first=first)
    refine(
        recording, truth, active, dense.grid_for(recording).volume, criterion="unconditional", options=options
    )
    assert bool(calls) == first
