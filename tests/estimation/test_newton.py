from __future__ import annotations

import math

import pytest
import torch

from rismusic.array import Panel
from rismusic.covariance import Covariance, recording_covariance, true_covariance
from rismusic.crb import recording_crb
from rismusic.errors import InputError
from rismusic.estimation import spectra as module
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.estimation.spectra import NewtonOptions, bartlett, music, mvdr, newton, soft_music
from rismusic.simulation.simulator import simulate
from rismusic.spec import SceneSpec

VOLUME = Volume.from_spec(SceneSpec())


@pytest.fixture(scope="module")
def recorded():
    return simulate(scenes=12, sources=3, snr_db=10.0, dtype=torch.float64)


def exact(recorded):
    truth = recorded.truth
    return music(true_covariance(truth.steering(recorded.panel), truth.power), truth.power.shape[-1])


def near(truth, generator, steps=0.4):
    """Starts up to so many grid steps from the truth."""
    grid = SearchGrid.cover(Panel.uniform_planar(), VOLUME)
    shift = (2 * torch.rand(3, *truth.azimuth.shape, generator=generator, dtype=torch.float64) - 1) * steps
    q = (1 / truth.range + shift[2] * grid.step[2]).clamp(*[VOLUME.lower[2], VOLUME.upper[2]])
    return truth.azimuth + shift[0] * grid.step[0], truth.elevation + shift[1] * grid.step[1], 1 / q


@pytest.mark.parametrize("free", [0, 1, 2])
@pytest.mark.parametrize("maker", [bartlett, lambda R: music(R, 3), lambda R: soft_music(R, 3), mvdr])
def test_gradient_against_finite_differences(maker, free, generator):
    panel = Panel.uniform_planar(6, 7)
    factor = torch.randn(4, 42, 5, generator=generator, dtype=torch.complex128)
    spectrum = maker(Covariance(factor, torch.full((4,), 0.2).double()).normalised())
    unit = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    x = torch.stack((unit[:, 0] - 0.5, 0.6 * unit[:, 1] - 0.3, 0.1 + 1.9 * unit[:, 2]), dim=1)
    _, gradient, _ = module._model(spectrum.vectors, *module._steering(panel, x))

    def value(shift):
        moved = x.clone()
        moved[:, free] += shift
        return -spectrum.explained_at(panel, moved[:, :1], moved[:, 1:2], 1 / moved[:, 2:])[:, 0]

    h = 1e-5
    numeric = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    torch.testing.assert_close(gradient[:, free], numeric, rtol=1e-7, atol=1e-9)


def test_curvature_is_the_hessian_at_an_exact_source(recorded):
    """The approximation is exact there; one that was wrong by a factor would still converge, slowly."""
    truth = recorded.truth
    spectrum = exact(recorded)
    x = torch.stack((truth.azimuth[:, 0], truth.elevation[:, 0], 1 / truth.range[:, 0]), dim=1)
    _, gradient, curvature = module._model(spectrum.vectors, *module._steering(recorded.panel, x))
    assert gradient.abs().max() < 1e-9
    h = 1e-5
    for i in range(3):
        shift = torch.zeros(3).double()
        shift[i] = h
        ahead, behind = (
            module._model(spectrum.vectors, *module._steering(recorded.panel, x + s))[1]
            for s in (shift, -shift)
        )
        torch.testing.assert_close(curvature[:, i], (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-4)


def test_reaches_the_truth_in_few_steps(recorded, generator):
    truth, spectrum = recorded.truth, exact(recorded)
    start = near(truth, generator)
    found = newton(spectrum, recorded.panel, VOLUME, *start, options=NewtonOptions(steps=12))
    assert found.converged.all()
    assert (found.azimuth - truth.azimuth).abs().max() < math.radians(1e-5)
    assert (found.elevation - truth.elevation).abs().max() < math.radians(1e-5)
    assert (1 / found.range - 1 / truth.range).abs().max() < 1e-6
    assert (start[0] - truth.azimuth).abs().max() > math.radians(0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_sources_are_met_far_below_the_bound(dtype, generator):
    """At 20 dB, as a share of the Cramer-Rao bound of each scene, in all three coordinates."""
    recorded = simulate(scenes=12, sources=2, snr_db=20.0, dtype=torch.float64)
    truth, bound = recorded.truth, recording_crb(recorded)
    start = [value.to(dtype) for value in near(truth, generator)]
    found = newton(exact(recorded), recorded.panel, VOLUME, *start)
    assert found.azimuth.dtype == dtype
    for i, error in enumerate((found.azimuth - truth.azimuth, found.elevation - truth.elevation)):
        assert (error.abs() / bound.std[..., i]).max() < 1e-3
    assert ((1 / found.range - 1 / truth.range).abs() / bound.inverse_range_std).max() < 1e-3


@pytest.mark.parametrize("maker", [bartlett, lambda R: music(R, 3), lambda R: soft_music(R, 3), mvdr])
def test_never_downhill_and_at_the_top(maker, recorded, generator):
    """On snapshots, from bad starts: not below the start, and no better point close by."""
    spectrum = maker(recording_covariance(recorded))
    start = near(recorded.truth, generator, steps=1.0)
    found = newton(spectrum, recorded.panel, VOLUME, *start)
    before = spectrum.explained_at(recorded.panel, *VOLUME.clamp(*start))
    after = spectrum.explained_at(recorded.panel, found.azimuth, found.elevation, found.range)
    torch.testing.assert_close(after, found.explained)
    assert (after >= before - 1e-12).all()
    assert (after > before).double().mean() > 0.9
    assert found.converged.double().mean() > 0.95
    for shift in 1e-3 * torch.randn(20, 3, generator=generator, dtype=torch.float64):
        place = VOLUME.clamp(found.azimuth + shift[0], found.elevation + shift[1], found.range)
        near_by = spectrum.explained_at(recorded.panel, *place)
        inner = (found.azimuth - start[0]).abs() < 0.05  # not held by the limit of its reach
        assert (near_by <= after + 1e-9)[inner & found.converged].double().mean() > 0.95


def test_stays_in_the_volume_and_within_reach(recorded, generator):
    small = Volume(math.radians(20), math.radians(10), 1.0, 4.0)
    spectrum = exact(recorded)
    start = near(recorded.truth, generator)
    found = newton(spectrum, recorded.panel, small, *start)
    assert (found.azimuth.abs() <= small.azimuth_max + 1e-12).all()
    assert (found.elevation.abs() <= small.elevation_max + 1e-12).all()
    assert (found.range >= 1.0 - 1e-12).all()
    assert (found.range <= 4.0 + 1e-12).all()
    clamped = small.clamp(*start)
    before = spectrum.explained_at(recorded.panel, *clamped)
    assert (found.explained >= before - 1e-12).all()
    held = newton(spectrum, recorded.panel, VOLUME, *start, reach=1e-3)
    assert (held.azimuth - start[0]).abs().max() < math.radians(0.1)


def test_batch_is_loop_and_blocks_change_nothing(recorded, generator, memory_budget):
    spectrum = music(recording_covariance(recorded), 3)
    start = near(recorded.truth, generator)
    whole = newton(spectrum, recorded.panel, VOLUME, *start)
    single = [
        newton(spectrum[i : i + 1], recorded.panel, VOLUME, *(value[i : i + 1] for value in start))
        for i in range(len(recorded))
    ]
    torch.testing.assert_close(whole.azimuth, torch.cat([one.azimuth for one in single]), rtol=0, atol=1e-7)
    torch.testing.assert_close(whole.range, torch.cat([one.range for one in single]), rtol=1e-5, atol=0)
    memory_budget(1)
    blocks = newton(spectrum, recorded.panel, VOLUME, *start)
    torch.testing.assert_close(blocks.azimuth, whole.azimuth, rtol=0, atol=1e-7)
    torch.testing.assert_close(blocks.explained, whole.explained)


def test_no_batch_axes(recorded, generator):
    start = near(recorded.truth, generator)
    whole = newton(exact(recorded), recorded.panel, VOLUME, *start)
    one = newton(exact(recorded)[0], recorded.panel, VOLUME, *(value[0] for value in start))
    torch.testing.assert_close(one.azimuth, whole.azimuth[0], rtol=0, atol=1e-9)
    assert one.range.shape == (3,)


def test_refusals(recorded, generator, untyped):
    spectrum, start = exact(recorded), near(recorded.truth, generator)
    cases = [
        ("reach", lambda: newton(spectrum, recorded.panel, VOLUME, *start, reach=0.0)),
        ("panel", lambda: newton(spectrum, Panel.uniform_planar(2, 2), VOLUME, *start)),
    ]
    for field, attempt in cases:
        with pytest.raises(InputError) as caught:
            attempt()
        assert caught.value.field == field
