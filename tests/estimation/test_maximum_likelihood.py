from __future__ import annotations

import warnings
from dataclasses import fields, replace

import dense
import numpy as np
import pytest
import torch

from rismusic.batch import concatenate
from rismusic.errors import InputError
from rismusic.estimation import maximum_likelihood
from rismusic.estimation.levenberg_marquardt import FitOptions
from rismusic.estimation.likelihood import conditional_cost, sufficient_statistics
from rismusic.estimation.maximum_likelihood import (
    better,
    complete_fit,
    fit_power_noise,
    nfmle,
    pack,
    refine,
    unpack,
)
from rismusic.sources import Sources

CRITERIA = ["conditional", "unconditional"]


def start(recording, generator, scale):
    truth, active = dense.truth_of(recording)
    return pack(dense.scattered(truth, generator, scale), active)


def error(fit, recording):
    place = torch.stack((fit.sources.azimuth, fit.sources.elevation, 1 / fit.sources.range), dim=-1)
    return (place - dense.truth_of(recording)[0]).abs().nan_to_num(0).amax()


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_clean_data_give_the_truth_back(system, criterion, generator):
    recording = dense.clean(dense.SYSTEMS[system])
    at = nfmle(recording, recording.truth, dense.VOLUME, criterion=criterion)
    assert error(at, recording) < 1e-6
    # Gaussian symbols without noise: the noise variance has far to fall, by a factor of e a step at most.
    options = FitOptions(steps=300)
    near = nfmle(
        recording, start(recording, generator, 0.01), dense.VOLUME, criterion=criterion, options=options
    )
    assert error(near, recording) < 1e-6
    torch.testing.assert_close(near.sources.symbols, recording.truth.symbols, rtol=0, atol=1e-4)


def test_conjugated_data_do_not_give_the_truth_back():
    recording = dense.clean()
    wrong = replace(recording, snapshots=recording.snapshots.conj().resolve_conj())
    assert error(nfmle(wrong, recording.truth, dense.VOLUME), recording) > 0.02


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("scale", [0.02, 0.2, 1.0])
def test_the_likelihood_only_improves(criterion, scale, generator):
    recording = dense.small(scenes=40, snr_db=5.0)
    first = start(recording, generator, scale)
    positions, active = unpack(first, recording)
    settings = {"criterion": criterion}
    before = refine(recording, positions, active, dense.VOLUME, **settings, options=FitOptions(steps=0)).value
    last = before
    for steps in (1, 3, 10):
        value = refine(
            recording, positions, active, dense.VOLUME, **settings, options=FitOptions(steps=steps)
        ).value
        assert (value <= last).all()
        last = value
    assert (last < before).float().mean() > 0.9
    fit = nfmle(recording, first, dense.VOLUME, criterion=criterion)
    if criterion == "conditional":
        assert (
            fit.cost <= conditional_cost(sufficient_statistics(recording, positions, active)) * (1 + 1e-9)
        ).all()
        torch.testing.assert_close(
            (refine(recording, positions, active, dense.VOLUME).value / 56).exp(), fit.cost
        )
    low, high = (
        torch.tensor(limit, dtype=torch.float64) for limit in (dense.VOLUME.lower, dense.VOLUME.upper)
    )
    place = unpack(fit.sources, recording)[0]
    assert ((place > low - 1e-9) & (place < high + 1e-9)).all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_gradient_vanishes_or_the_box_holds(criterion, generator):
    from rismusic.estimation.likelihood import conditional, unconditional

    recording = dense.small(scenes=20)
    positions, active = unpack(start(recording, generator, 0.05), recording)
    options = FitOptions(steps=300, tolerance=1e-6)
    end = refine(recording, positions, active, dense.VOLUME, criterion=criterion, options=options)
    x, converged = end.positions, end.converged
    assert converged.float().mean() > 0.9
    here = sufficient_statistics(recording, x, active, derivatives=True)
    if criterion == "conditional":
        _, gradient, curvature = conditional(here)
    else:
        _, gradient, curvature = unconditional(here, *fit_power_noise(recording, x, active))
    gradient, curvature = gradient[:, :6], curvature[:, :6, :6].diagonal(dim1=-2, dim2=-1)
    low, high = (
        torch.tensor(limit, dtype=torch.float64).repeat(2)
        for limit in (dense.VOLUME.lower, dense.VOLUME.upper)
    )
    free = (x.flatten(1) > low + 1e-6) & (x.flatten(1) < high - 1e-6) & converged[:, None]
    assert free.float().mean() > 0.7
    assert ((gradient.abs() / curvature.sqrt())[free] < 0.05).all()  # standard deviations


@pytest.mark.parametrize("criterion", CRITERIA)
def test_padded_batch_equals_loop(criterion, generator):
    """Scenes of 0 to 3 sources in one batch, the places of absent ones NaN, against each by itself."""
    recording = dense.small(scenes=8, sources=(1, 3))
    first = start(recording, generator, 0.05)
    first.azimuth[5] = first.elevation[5] = first.range[5] = torch.nan
    together = nfmle(recording, first, dense.VOLUME, criterion=criterion)
    for i in range(8):
        K = max(1, int(first.active[i].sum()))
        alone = nfmle(recording[i : i + 1], first[i : i + 1].each(lambda v, K=K: v[:, :K]), dense.VOLUME,
                      criterion=criterion)  # fmt: skip
        for name in ("azimuth", "elevation", "range", "power"):
            one, many = getattr(alone.sources, name)[0], getattr(together.sources, name)[i]
            torch.testing.assert_close(many[:K], one, rtol=1e-5, atol=1e-6, equal_nan=True)
            assert many[K:].isnan().all()
        torch.testing.assert_close(together.cost[i], alone.cost[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(
            together.neg_log_likelihood[i], alone.neg_log_likelihood[0], rtol=1e-6, atol=1e-4
        )
    assert torch.equal(together.sources.active, first.active)
    torch.testing.assert_close(together.cost[5], recording.snapshots[5].abs().square().sum())


@pytest.mark.parametrize("criterion", CRITERIA)
def test_phase_order_and_unit_change_nothing(criterion, generator):
    recording = dense.small(known=True)
    first = start(recording, generator, 0.03)
    expected = nfmle(recording, first, dense.VOLUME, criterion=criterion)
    order = torch.randperm(7, generator=generator)
    changed = replace(
        recording,
        snapshots=recording.snapshots[:, order] * 1e-4 * np.exp(0.7j),
        codes=recording.codes[:, order],
        noise_variance=recording.noise_variance * 1e-8,
    )
    found = nfmle(changed, first, dense.VOLUME, criterion=criterion)
    for name in ("azimuth", "elevation", "range"):
        torch.testing.assert_close(
            getattr(found.sources, name), getattr(expected.sources, name), rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(found.sources.power * 1e8, expected.sources.power, rtol=1e-2, atol=0)
    torch.testing.assert_close(found.noise_variance * 1e8, recording.noise_variance)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_coincident_and_outside_starts_end_inside_and_finite(criterion):
    recording = dense.small()
    there, _ = dense.truth_of(recording)
    one = pack(there[:, :1].expand(-1, 2, -1), torch.ones(5, 2, dtype=torch.bool))
    far = {"azimuth": torch.full((5, 2), 1.5), "elevation": torch.full((5, 2), -1.4)}
    outside = Sources(**far, range=torch.tensor([0.01, 1e4]).expand(5, 2))
    for first in (one, outside):
        fit = nfmle(recording, first, dense.VOLUME, criterion=criterion)
        for field in fields(Sources):
            assert getattr(fit.sources, field.name).isfinite().all()
        assert fit.neg_log_likelihood.isfinite().all()
        q = 1 / fit.sources.range
        assert (fit.sources.azimuth.abs() <= dense.VOLUME.azimuth_max + 1e-9).all()
        assert ((q > dense.VOLUME.lower[2] - 1e-9) & (q < dense.VOLUME.upper[2] + 1e-9)).all()


def test_single_precision_loses_nothing_that_matters(generator):
    double = dense.small()
    single = dense.small(dtype=torch.float32)
    first = start(double, generator, 0.02)
    found, expected = (nfmle(recording, first, dense.VOLUME) for recording in (single, double))
    assert found.sources.azimuth.dtype == torch.float64
    for name in ("azimuth", "elevation"):
        gap = getattr(found.sources, name) - getattr(expected.sources, name)
        assert gap.abs().max() < 1e-3


def test_a_single_snapshot_of_one_source_is_enough():
    recording = dense.small(dense.SMALL.replace(codebook={"snapshots": 1}), sources=1, snr_db=30.0)
    fit = nfmle(recording, recording.truth, dense.VOLUME, criterion="conditional")
    assert error(fit, recording) < 0.2
    assert fit.neg_log_likelihood.isfinite().all()


def test_a_known_noise_variance_is_kept():
    recording = dense.small(known=True)
    fit = nfmle(recording, recording.truth, dense.VOLUME, criterion="unconditional")
    torch.testing.assert_close(fit.noise_variance, recording.noise_variance)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"azimuth": torch.full((5, 2), torch.inf)}, "start.azimuth: values must be finite"),
        ({"elevation": torch.full((5, 2), torch.nan)}, "start.elevation: values must be finite"),
        ({"range": torch.full((5, 2), -1.0)}, "start.range: ranges must be positive"),
    ],
)
def test_starts_that_are_none(change, sentence):
    recording = dense.small()
    place = {name: getattr(recording.truth, name) for name in ("azimuth", "elevation", "range")}
    with pytest.raises(InputError, match=sentence):
        nfmle(recording, Sources(**{**place, **change}), dense.VOLUME)


def test_starts_of_other_scenes_and_too_many_sources():
    recording = dense.small()
    with pytest.raises(InputError, match="start: must hold positions"):
        nfmle(recording, recording.truth[:3], dense.VOLUME)
    many = Sources(**{name: torch.full((5, 7), 0.5) for name in ("azimuth", "elevation", "range")})
    with pytest.raises(InputError, match="identify at most 6 sources"):
        nfmle(recording, many, dense.VOLUME)


def test_the_better_of_two_fits_scene_by_scene(generator):
    recording = dense.small(scenes=10)
    one, other = (nfmle(recording, start(recording, generator, 0.5), dense.VOLUME) for _ in range(2))
    chosen = better(one, other)
    assert torch.equal(
        chosen.neg_log_likelihood, torch.minimum(one.neg_log_likelihood, other.neg_log_likelihood)
    )
    take = other.neg_log_likelihood < one.neg_log_likelihood
    assert take.any()
    assert not take.all()
    for i in range(10):
        source = (other if take[i] else one).sources
        assert torch.equal(chosen.sources.azimuth[i], source.azimuth[i])
        assert torch.equal(chosen.sources.symbols[i], source.symbols[i])


def test_blocks_of_scenes_are_joined_and_padded_to_the_widest(generator):
    parts = []
    for sources in (1, 3, 2):
        recording = dense.small(scenes=4, sources=sources)
        parts.append(nfmle(recording, start(recording, generator, 0.1), dense.VOLUME))
    joined = concatenate(parts)
    assert joined.sources.symbols.shape == (12, 3, 7)
    for i, part in enumerate(parts):
        here, K = slice(4 * i, 4 * i + 4), part.sources.azimuth.shape[1]
        for field in fields(Sources):
            value = getattr(joined.sources, field.name)[here]
            assert torch.equal(value[:, :K], getattr(part.sources, field.name))
            assert value[:, K:].isnan().all()
        for name in ("cost", "neg_log_likelihood", "noise_variance", "converged"):
            assert torch.equal(getattr(joined, name)[here], getattr(part, name))


def test_powers_are_the_best_ones_and_those_of_silent_scenes_zero(generator):
    """Taken over from the descent, and as a fit of the powers alone at its end finds them."""
    recording = dense.small(scenes=10, sources=(1, 2), snr_db=5.0)
    silent = recording.snapshots.clone()
    silent[3] = 0
    recording = replace(recording, snapshots=silent)
    fit = nfmle(recording, start(recording, generator, 0.05), dense.VOLUME, criterion="unconditional")
    positions, active = unpack(fit.sources, recording)
    there = active.clone()
    there[3] = False
    power, _ = fit_power_noise(recording, positions, active)
    torch.testing.assert_close(fit.sources.power[there], power[there], rtol=3e-2, atol=1e-4)
    assert (fit.sources.power[3][active[3]] == 0).all()
    best = complete_fit(recording, positions, active, fit.converged, dense.VOLUME)
    heard = torch.arange(10) != 3
    torch.testing.assert_close(
        fit.neg_log_likelihood[heard], best.neg_log_likelihood[heard], rtol=0, atol=1e-2
    )
    torch.testing.assert_close(fit.noise_variance, best.noise_variance)


@pytest.mark.parametrize("fault", ["warning", "error"])
def test_settings_of_numba_that_it_cannot_read_are_one_sentence(monkeypatch, fault):
    def importing(name):
        if fault == "error":
            raise ValueError("Number of threads specified must be > 0.")
        warnings.warn(
            "Environment variable 'NUMBA_NUM_THREADS' is defined but its value 'x' could not be parsed.\n"
            "The parse failed with exception:\nTraceback (most recent call last):",
            RuntimeWarning,
            stacklevel=2,
        )

    monkeypatch.setattr(maximum_likelihood, "import_module", importing)
    with pytest.raises(
        InputError, match=r"numba: cannot be imported: [^\n]*\. Check the variables NUMBA_\*$"
    ):
        maximum_likelihood._kernel.__wrapped__()
