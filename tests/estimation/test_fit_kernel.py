"""The compiled fits against the torch form, step by step and at the end."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from functools import partial

import dense
import numpy as np
import pytest
import torch

import model_scenes
from model_scenes import MODELS
from rismusic.array import WAVES
from rismusic.crb import POSITION, recording_crb
from rismusic.errors import InputError
from rismusic.estimation import maximum_likelihood as module
from rismusic.estimation.estimate import _bound
from rismusic.estimation.grid import Volume
from rismusic.estimation.levenberg_marquardt import FitOptions
from rismusic.estimation.likelihood import residual_energy, sufficient_statistics, symbols, unconditional
from rismusic.estimation.maximum_likelihood import fit_power_noise, pack, refine, values_without_each
from rismusic.estimation.model_error import _dispersion, _linear_motion, spread_gain
from rismusic.estimation.search import CandidateSearch, likelihood_gain, project_out
from rismusic.estimation.spectra import NewtonOptions, Spectrum, newton
from rismusic.spec import LocateSpec

kernel = pytest.importorskip("rismusic.estimation.fit_kernel", exc_type=ImportError)

# Long snapshots without a channel.
UNCOVERED = ["known, direct", "weighted, constant, direct"]
COVERED = [name for name in MODELS if name not in UNCOVERED]
CRITERIA = ["conditional", "unconditional"]
ONE_CONFIGURATION = dense.SMALL.replace(codebook={"snapshots": 1})


def one_by_one(function, recording, *arguments, **settings):
    """The torch form, one scene at a time: its batches differ by rounding."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_kernel", lambda: None)
        return [
            function(recording[s : s + 1], *(value[s : s + 1] for value in arguments), **settings)
            for s in range(len(recording))
        ]


def assert_same_fits(recording, start, active, volume, criterion, options, value=1e-6, position=1e-7):
    compiled = refine(recording, start, active, volume, criterion=criterion, options=options)
    expected = one_by_one(
        refine, recording, start, active, volume=volume, criterion=criterion, options=options
    )
    for s, fit in enumerate(expected):
        torch.testing.assert_close(compiled.value[s : s + 1], fit.value, rtol=0, atol=value)
        torch.testing.assert_close(compiled.positions[s : s + 1], fit.positions, rtol=0, atol=position)
        assert compiled.converged[s] == fit.converged[0]
        if fit.power_noise is not None:
            power, noise = compiled.power_noise
            torch.testing.assert_close(power[s : s + 1], fit.power_noise[0], rtol=1e-5, atol=1e-12)
            torch.testing.assert_close(noise[s : s + 1], fit.power_noise[1], rtol=1e-6, atol=0)


def case(generator, spec=dense.SMALL, scatter=0.05, **settings):
    recording = dense.small(spec, 3, sources=(1, 3), snr_db=5.0, **settings)
    truth, active = dense.truth_of(recording)
    return recording, dense.scattered(truth, generator, scatter), active


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("options", [FitOptions(3), FitOptions(100, 1e-5), FitOptions(8, 0.2, False)])
@pytest.mark.parametrize(("system", "known"), [("own", False), ("one", True), ("direct", False)])
def test_fits_are_those_of_the_torch_form(system, known, options, criterion, generator):
    """After three steps, where the step control shows; at convergence; and a rough fit."""
    recording, start, active = case(generator, dense.SYSTEMS[system], known=known)
    assert_same_fits(recording, start, active, dense.VOLUME, criterion, options)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("exponent", [0.0, 1.5])
@pytest.mark.parametrize("wave", WAVES)
def test_waves_and_element_patterns(wave, exponent, criterion, generator):
    recording, start, active = case(generator)
    recording = replace(recording, wave=wave, pattern_exponent=exponent)
    assert_same_fits(recording, start, active, dense.VOLUME, criterion, FitOptions(3))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    "volume", [Volume(0.0, 0.5, 0.5, 10.0), Volume(1.0, 0.0, 2.0, 2.0), Volume(0.05, 0.05, 1.0, math.inf)]
)
def test_limits_and_held_coordinates(volume, criterion, generator):
    recording, start, active = case(generator, scatter=0.2)
    # An empty place between two sources; its coordinates are kept.
    active = active.clone()
    active[1] = torch.tensor([True, False, True])
    assert_same_fits(recording, start, active, volume, criterion, FitOptions(6))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_fit_beyond_180_degrees(criterion, generator):
    """All round, azimuths have no limits."""
    recording, start, active = case(generator)
    start[:, 0, 0] = math.pi - 1e-3
    volume = Volume(math.pi, 0.5, 0.5, 10.0)
    assert_same_fits(recording, start, active, volume, criterion, FitOptions(3))
    ends = refine(recording, start, active, volume, criterion=criterion).positions[..., 0]
    assert ends.abs().max() > math.pi


@pytest.mark.parametrize("criterion", CRITERIA)
def test_special_scenes(criterion, generator):
    """No source, two sources in one place, snapshots of zeros, one long snapshot, one configuration."""
    recording, start, active = case(generator)
    active[0], start[1, 1] = False, start[1, 0]
    recording.snapshots[2] = 0
    assert_same_fits(recording, start, active, dense.VOLUME, criterion, FitOptions(2), position=1e-5)
    for spec, snapshots in ((dense.SMALL, 7), (ONE_CONFIGURATION, 1)):
        recording, start, active = case(generator, spec)
        active[:, 1:] = False
        long = replace(recording, symbols="constant").stacked()
        assert long.snapshots.shape[1:] == (1, 8 * snapshots)
        assert_same_fits(long, start, active, dense.VOLUME, criterion, FitOptions(3))


@pytest.mark.parametrize("known", [False, True])
def test_powers_at_given_positions(known, generator):
    recording, start, active = case(generator, known=known)
    compiled = fit_power_noise(recording, start, active)
    without = values_without_each(recording, start, active, "unconditional")
    expected = one_by_one(fit_power_noise, recording, start, active)
    expected_without = one_by_one(
        lambda *some: values_without_each(*some, "unconditional"), recording, start, active
    )
    for s in range(3):
        for one, other in zip(compiled, expected[s], strict=True):
            torch.testing.assert_close(one[s : s + 1], other, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(without[s : s + 1], expected_without[s], rtol=0, atol=1e-4)


@pytest.mark.parametrize("system", ["own", "one", "direct"])
def test_symbols_cost_and_information(system, generator):
    """With an empty place between two sources, and a scene without sources."""
    recording, positions, active = case(generator, dense.SYSTEMS[system])
    active = active.clone()
    active[1], active[2] = torch.tensor([True, False, True]), False
    at = sufficient_statistics(recording, positions, active, derivatives=True)
    s = symbols(at)
    compiled, cost = kernel.least_squares(recording, positions, active)
    torch.testing.assert_close(compiled, s.mT, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(cost, residual_energy(at, s), rtol=1e-8, atol=0)
    power, noise = fit_power_noise(recording, positions, active)
    J = unconditional(at, power, noise)[2]
    own, _ = kernel.information(recording, positions, active, power, noise)
    torch.testing.assert_close(own, J, rtol=1e-6, atol=1e-8 * float(J.abs().max()))


@pytest.mark.parametrize("system", ["own", "one", "direct"])
def test_motion_and_spread_of_sources(system, generator):
    recording, positions, active = case(generator, dense.SYSTEMS[system], scatter=0.02)
    power, _ = fit_power_noise(recording, positions, active)
    sources = replace(pack(positions, active), power=torch.where(active, power, math.nan))
    with module.without_compiled_fits():
        expected = (*_linear_motion(recording, sources), *spread_gain(recording, sources))
    compiled = _dispersion(recording, sources)
    assert expected[0].max() > 1
    assert expected[3].max() > 0
    for own, other in zip(compiled, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("exponent", [0.0, 1.5])
@pytest.mark.parametrize("steps", [1, 40])
def test_newton_on_a_spectrum(steps, exponent, generator):
    """Starts at the limits of the volume among them."""
    panel = replace(case(generator)[0], pattern_exponent=exponent).panel
    spectrum = Spectrum(
        torch.randn(3, panel.size, 2, generator=generator, dtype=torch.complex128), torch.ones(3), sharp=False
    )
    unit = torch.rand(3, 3, 4, generator=generator, dtype=torch.float64)
    start = (unit[0] - 0.5, unit[1] / 2 - 0.25, 0.4 + 3 * unit[2])
    peaks = partial(newton, spectrum, panel, dense.VOLUME, *start, options=NewtonOptions(steps))
    with module.without_compiled_fits():
        expected = peaks()
    compiled = peaks()
    for name in ("azimuth", "elevation", "range", "explained"):
        torch.testing.assert_close(getattr(compiled, name), getattr(expected, name), rtol=1e-6, atol=1e-7)
    assert torch.equal(compiled.converged, expected.converged)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_neither_batch_nor_threads_matter(criterion, generator):
    recording, start, active = case(generator)
    many = torch.arange(3).repeat(4)
    settings = {"volume": dense.VOLUME, "criterion": criterion}
    together = refine(recording[many], start[many], active[many], **settings)
    torch.set_num_threads(2)
    try:
        shared = refine(recording[many], start[many], active[many], **settings)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(shared.positions, together.positions)
    alone = refine(recording[:1], start[:1], active[:1], **settings)
    assert torch.equal(together.positions[::3], alone.positions.expand(4, -1, -1))


@pytest.mark.parametrize("largest", [1.0, 50.0, 1e6])
def test_sine_and_cosine(largest, generator):
    x = (torch.rand(100_000, dtype=torch.float64, generator=generator).numpy() * 2 - 1) * largest
    found = np.array([kernel._sine_and_cosine(value) for value in x])
    exact = x.astype(np.longdouble)
    np.testing.assert_allclose(found, np.stack((np.sin(exact), np.cos(exact)), -1), rtol=0, atol=2.5e-16)


def test_the_comparison_sees_another_step_control(generator, monkeypatch):
    recording, start, active = case(generator)
    control, limits = kernel._rules()
    monkeypatch.setattr(kernel, "_rules", lambda: ((0.1, *control[1:]), limits))
    with pytest.raises(AssertionError):
        assert_same_fits(recording, start, active, dense.VOLUME, "unconditional", FitOptions(3))


def test_single_precision(generator):
    """Fields in single precision, as in the torch form: values to 1e-3 nats, positions to .01 error bars."""
    whole = dense.small(dense.SMALL, 3, known=True, sources=2, snr_db=15.0, dtype=torch.float32)
    recording = replace(whole, noise_variance=None)
    assert recording.snapshots.dtype == torch.complex64
    start, active = dense.truth_of(recording)
    settings = {"volume": dense.VOLUME, "criterion": "unconditional"}
    compiled = refine(recording, start, active, **settings)
    bound = recording_crb(whole)
    std = torch.stack((*bound.std.unbind(-1)[:2], bound.inverse_range_std), dim=-1)
    for s, fit in enumerate(one_by_one(refine, recording, start, active, **settings)):
        torch.testing.assert_close(compiled.value[s : s + 1], fit.value, rtol=0, atol=1e-3)
        assert ((compiled.positions[s] - fit.positions[0]).abs() < 0.01 * std[s]).all()


def test_what_the_kernel_does_not_cover_uses_the_torch_form(generator):
    recording, _, _ = case(generator)
    assert module.kernel_for(recording) is kernel
    learned = replace(recording, snapshots=recording.snapshots.clone().requires_grad_())
    assert module.kernel_for(learned) is None
    for name in UNCOVERED:
        assert module.kernel_for(model_scenes.make(**MODELS[name]).stacked()) is None
    assert not kernel.applies(replace(recording, frequencies=torch.tensor([1e9])))


def test_pilots_are_for_their_number_of_sources():
    recording = model_scenes.make(**MODELS["known"]).stacked()
    positions, _ = dense.truth_of(recording)
    for some in (positions.repeat(1, 2, 1), positions[:, :1]):
        there = torch.ones(some.shape[:2], dtype=torch.bool)
        with pytest.raises(InputError, match="are for K = 2 sources"):
            fit_power_noise(recording, some, there)


def test_a_large_channel_of_many_subcarriers_is_not_copied(memory_budget):
    recording = model_scenes.make(**MODELS["wideband, constant"]).stacked()
    assert module.kernel_for(recording) is kernel
    memory_budget(2**12)
    assert module.kernel_for(recording) is None


def model_case(name, generator, scatter=0.05):
    """Scenes of a signal model; in the second one the first source is missing."""
    recording = model_scenes.make(**MODELS[name]).stacked()
    assert module.kernel_for(recording) is kernel
    truth, active = dense.truth_of(recording)
    active[1, 0] = False
    return recording, dense.scattered(truth, generator, scatter), active


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", COVERED)
def test_fits_of_every_signal_model(name, criterion, generator):
    recording, start, active = model_case(name, generator)
    for options in (FitOptions(3), FitOptions(100, 1e-5)):
        assert_same_fits(recording, start, active, dense.VOLUME, criterion, options, position=1e-5)


@pytest.mark.parametrize("name", COVERED)
def test_statistics_of_every_signal_model(name, generator):
    """Powers, symbols, information and motion."""
    recording, positions, active = model_case(name, generator, 0.01)
    compiled = fit_power_noise(recording, positions, active)
    power, noise = compiled
    sources = replace(pack(positions, active), power=torch.where(active, power, math.nan))
    without = values_without_each(recording, positions, active, "unconditional")
    several = recording.snapshots.shape[1] > 1 and recording.pilots is None
    moved = _dispersion(recording, sources) if several else ()
    at = sufficient_statistics(recording, positions, active, derivatives=True)
    s, J = symbols(at), unconditional(at, power, noise)[2]
    with module.without_compiled_fits():
        expected = fit_power_noise(recording, positions, active)
        expected_without = values_without_each(recording, positions, active, "unconditional")
        motion = (*_linear_motion(recording, sources), *spread_gain(recording, sources)) if several else ()
    torch.testing.assert_close(compiled, expected, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(without, expected_without, rtol=0, atol=1e-4)
    for own, other in zip(moved, motion, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6, equal_nan=True)
    found, cost = kernel.least_squares(recording, positions, active)
    torch.testing.assert_close(found, s.mT, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(cost, residual_energy(at, s), rtol=1e-8, atol=0)
    own, _ = kernel.information(recording, positions, active, power, noise)
    torch.testing.assert_close(own, J, rtol=1e-6, atol=1e-8 * float(J.abs().max()))


@pytest.mark.parametrize("unknowns", [POSITION, ("azimuth",)])
@pytest.mark.parametrize("name", COVERED)
def test_bound_of_every_signal_model(name, unknowns, generator):
    """In double precision also for single-precision snapshots; the first source of the second scene alone."""
    recording, positions, active = model_case(name, generator, 0.01)
    parts = {part.name: getattr(recording, part.name) for part in fields(recording)}
    single = {key: value for key, value in parts.items() if torch.is_tensor(value) and value.is_complex()}
    recording = replace(recording, **{key: value.to(torch.complex64) for key, value in single.items()})
    active = active.flip(1)
    power, noise = fit_power_noise(recording, positions, active)
    sources = replace(pack(positions, active), power=torch.where(active, power, math.nan))
    spec = LocateSpec(unknowns=unknowns)
    compiled = _bound(recording, sources, noise, spec)
    with module.without_compiled_fits():
        expected = _bound(recording, sources, noise, spec)
    assert bool((expected.std[..., 0] > 0).any())
    torch.testing.assert_close(compiled.std, expected.std, rtol=1e-8, atol=0, equal_nan=True)
    torch.testing.assert_close(
        compiled.inverse_range_std, expected.inverse_range_std, rtol=1e-8, atol=0, equal_nan=True
    )
    scale = expected.std[..., None, None] * expected.std[..., None, None, :, :]
    torch.testing.assert_close(
        compiled.covariance / scale, expected.covariance / scale, rtol=0, atol=1e-8, equal_nan=True
    )


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    "name", [*(name for name in COVERED if "wideband" in name and "known" not in name), "weighted"]
)
def test_gains_of_candidates_of_other_models(name, criterion, generator):
    recording, positions, active = model_case(name, generator)
    places = torch.cat((dense.scattered(positions, generator, 0.3), positions[:, :1]), dim=1)
    fit = fit_power_noise(recording, positions, active) if criterion == "unconditional" else None
    search = CandidateSearch(dense.grid_for(recording), recording, places)
    gains = kernel.gains(recording, search._parts, torch.arange(2), positions, active, fit)
    expected = likelihood_gain(project_out(recording, positions, active, fit), search._fields)
    torch.testing.assert_close(gains, expected.double(), rtol=1e-4, atol=1e-4 * float(expected.max()))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("system", ["own", "direct"])
def test_gains_of_candidates(system, criterion, generator):
    """As those of the residual; one candidate is a source that is there, two sources share a place."""
    recording, positions, active = case(generator, dense.SYSTEMS[system])
    positions[2, 1] = positions[2, 0]
    places = torch.cat((dense.scattered(positions, generator, 0.3), positions[:, :1]), dim=1)
    scenes = torch.tensor([2, 0, 1, 2])
    there = positions[scenes], active[scenes]
    power_noise = None
    if criterion == "unconditional":
        power_noise = tuple(part[scenes] for part in fit_power_noise(recording, positions, active))
    search = CandidateSearch(dense.grid_for(recording), recording, places)
    gains = kernel.gains(recording, search._parts, scenes, *there, power_noise)
    rest = project_out(recording[scenes], *there, power_noise)
    expected = likelihood_gain(rest, search._fields[scenes])
    # The torch form projects in the precision of the data and compares in single precision.
    torch.testing.assert_close(gains, expected.double(), rtol=1e-4, atol=1e-4 * float(expected.max()))
    found = search.place_beside(scenes, *there, power_noise)
    assert torch.equal(found, search.place(scenes, rest))
