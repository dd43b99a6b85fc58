"""Positions along with the panel's errors: against dense equations, against truth, and their error bars."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rismusic import locate
from rismusic.array import steering
from rismusic.errors import InputError
from rismusic.estimation import calibration
from rismusic.estimation.calibration import calibrate
from rismusic.estimation.grid import Volume
from rismusic.estimation.maximum_likelihood import nfmle
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources
from rismusic.spec import HardwareSpec, LocateSpec

VOLUME = Volume.from_spec(LocateSpec())
ERRORS = HardwareSpec(
    static_phase_rad=0.1, code_phase_rad=0.04, gain=0.05, dead_fraction=0.03, position_wavelengths=0.025
)
SMALL = {"panel": {"rows": 4, "columns": 5}, "codebook": {"snapshots": 6}, "channel": {"antennas": 6}}


def _start(recording):
    truth = recording.truth
    return Sources(
        azimuth=truth.azimuth.double() + 2e-3,
        elevation=truth.elevation.double() - 2e-3,
        range=truth.range.double() * 1.03,
        power=truth.power.double(),
    )


def _fit(recording, found, panel_error):
    positions, active = calibration.unpack(found, recording)
    power = torch.where(active, found.power, 1)
    return calibration._Fit(recording, positions, active, power, VOLUME, panel_error)


@pytest.mark.parametrize("direct", [False, True])
def test_a_step_solves_the_dense_equations(direct):
    """All unknowns as real numbers, derivatives by finite differences of the model."""
    kind = {"kind": "direct"} if direct else {"antennas": 6}
    recording = simulate(
        scenes=2, sources=2, snr_db=20, hardware=HardwareSpec(static_phase_rad=0.1), dtype=torch.float64,
        **SMALL | {"channel": kind},
    )  # fmt: skip
    at = _fit(recording, _start(recording), 0.1)
    generator = torch.Generator().manual_seed(1)
    at.e = 0.1 * torch.randn(at.e.shape, dtype=torch.complex128, generator=generator)
    at.variance = at.variance * (
        0.2 + torch.rand(at.variance.shape, generator=generator, dtype=torch.float64)
    )
    at.s = at._symbols(at.x, at.e)
    step = calibration._Step(at, torch.zeros(2, dtype=torch.float64))
    for scene in range(2):
        x, s, e = at.x[scene], at.s[scene], at.e[scene]
        L, K = s.shape
        noise = at.noise[scene].sqrt()

        def residuals(z, scene=scene, L=L, K=K, noise=noise):
            """Everything whose squares are summed, real."""
            x, s, e = z[: 3 * K].view(K, 3), z[3 * K : 3 * K + 2 * L * K], z[3 * K + 2 * L * K :]
            s, e = torch.view_as_complex(s.view(L, K, 2)), torch.view_as_complex(e.view(-1, 2))
            A = steering(at.panel, x[:, 0], x[:, 1], 1 / x[:, 2])
            field = ((1 + e)[:, None] * A @ s.mT).mT
            field = field if at.codes is None else field * at.codes[scene]
            model = field if at.H is None else field @ at.H[scene].mT
            parts = ((at.y[scene] - model) / noise, s / at.power[scene].sqrt())
            errors = torch.cat((e.real, e.imag)) / (2 * at.variance[scene]).sqrt()
            return torch.cat([*(torch.view_as_real(part).flatten() for part in parts), errors])

        z = torch.cat((x.flatten(), torch.view_as_real(s).flatten(), torch.view_as_real(e).flatten()))
        J = torch.autograd.functional.jacobian(residuals, z)
        expected = torch.linalg.solve(J.mT @ J, -J.mT @ residuals(z))
        mine = torch.cat(
            (
                step.x[scene].flatten(),
                torch.view_as_real(step.s[scene]).flatten(),
                torch.view_as_real(step.e[scene]).flatten(),
            )
        )
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-9)
        # Half of the inverse: the density falls with the squares themselves, not with half of them.
        inverse = torch.linalg.inv(J.mT @ J) / 2
        torch.testing.assert_close(
            step.std[scene].flatten(), inverse.diagonal()[: 3 * K].sqrt(), rtol=1e-6, atol=0
        )
        # What stays unknown of e once the coordinates are held: real parts, then imaginary parts.
        held = (
            torch.linalg.inv((J.mT @ J)[3 * K :, 3 * K :]).diagonal()[2 * L * K :].view(-1, 2).mT.flatten()
            / 2
        )
        torch.testing.assert_close(step.spread()[scene], held, rtol=1e-6, atol=0)


def test_better_than_a_panel_taken_as_recorded_and_dead_elements_are_found():
    recording = simulate(scenes=24, sources=2, snr_db=20, hardware=ERRORS, panel={"wave": "uniform"})
    hidden = replace(recording, noise_variance=None, truth=None)
    nominal = nfmle(hidden, _start(recording), VOLUME, criterion="unconditional").sources
    fit = calibrate(hidden, _start(recording), VOLUME, panel_error=ERRORS.response_error)
    truth = recording.truth

    def median(found):
        return float((found.azimuth - truth.azimuth).abs().median())

    assert median(fit.sources) < 0.75 * median(nominal)
    off = torch.stack((fit.sources.azimuth - truth.azimuth, fit.sources.elevation - truth.elevation), -1)
    bars = fit.covariance.diagonal(dim1=-2, dim2=-1)[..., :2].sqrt()
    within = float((off.abs() < bars).double().mean())
    assert 0.55 < within < 0.8  # 0.68 of a normal distribution; 96 numbers
    assert float(fit.converged.double().mean()) > 0.8


def test_response_is_that_of_the_panel():
    """Dead elements only, whose response is known: 0 or 1."""
    hardware = HardwareSpec(dead_fraction=0.05)
    recording = simulate(scenes=6, sources=2, snr_db=25, hardware=hardware, seed=3)
    fit = calibrate(recording, _start(recording), VOLUME, panel_error=hardware.response_error)
    dead = fit.response.abs() < 0.5
    share = float(dead.double().mean())
    assert 0.03 < share < 0.07
    assert float((fit.response[~dead] - 1).abs().mean()) < 0.1


def test_elements_that_are_off_are_suspected_and_no_others():
    hardware = HardwareSpec(dead_fraction=0.05)
    recording = simulate(scenes=4, sources=2, snr_db=25, hardware=hardware, seed=3)
    at = _fit(recording, _start(recording), hardware.response_error)
    at.iterate()
    dead = (1 + at.e).abs() < 0.5
    assert dead.any()
    gain, phase = at.variance.unflatten(-1, (2, -1)).unbind(1)
    assert float(gain[dead].median()) > 5 * float(gain[~dead].median())
    # A dead element has no phase that could be wrong.
    assert float(phase.median()) < 0.1 * float(gain[dead].median())


def test_a_sound_panel_changes_little():
    recording = simulate(scenes=4, sources=2, snr_db=15)
    plain = nfmle(recording, _start(recording), VOLUME, criterion="conditional").sources
    fit = calibrate(recording, _start(recording), VOLUME, panel_error=1e-3)
    bars = fit.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((fit.sources.azimuth - plain.azimuth).abs() < 0.3 * bars[..., 0]).all()
    assert ((fit.sources.elevation - plain.elevation).abs() < 0.3 * bars[..., 1]).all()


def test_mixed_numbers_of_sources_are_those_of_single_scenes():
    recording = simulate(scenes=5, snr_db=20, hardware=ERRORS)
    whole = calibrate(recording, _start(recording), VOLUME, panel_error=0.2)
    for scene in range(5):
        one = recording[scene : scene + 1]
        alone = calibrate(one, _start(one), VOLUME, panel_error=0.2)
        torch.testing.assert_close(
            whole.sources.azimuth[scene], alone.sources.azimuth[0], equal_nan=True, rtol=0, atol=1e-9
        )
    assert torch.equal(whole.covariance.isnan().all((-2, -1)), ~recording.truth.active)


def test_refused():
    recording = simulate(scenes=1, sources=1, snr_db=20)
    with pytest.raises(InputError, match="panel_error: must be positive"):
        calibrate(recording, _start(recording), VOLUME, panel_error=0.0)
    large = simulate(scenes=1, sources=1, snr_db=20, panel={"rows": 33, "columns": 32})
    with pytest.raises(InputError, match="1024 elements"):
        calibrate(large, _start(large), VOLUME, panel_error=0.1)


@pytest.mark.parametrize("method", ["omp", "hybrid"])
def test_locate_says_how_many_though_the_panel_errs(method):
    recording = simulate(scenes=4, sources=1, snr_db=20, hardware=ERRORS)
    hidden = replace(recording, noise_variance=None, truth=None)
    told = locate(hidden, method=method, sources_max=2, panel_error=ERRORS.response_error)
    assert told.p_value.isnan().all()
    right = (told.sources.active.sum(-1) == 1).sum()
    taken = locate(hidden, method=method, sources_max=2, panel_error=0.0)
    assert right > (taken.sources.active.sum(-1) == 1).sum()
    assert (told.std[told.sources.active][:, 0] > math.radians(0.02)).all()


def test_unpolished_peaks_stay():
    recording = simulate(scenes=2, sources=1, snr_db=20, hardware=ERRORS)
    peaks = locate(recording, n_sources=1, method="music", polish=False, panel_error=0.2)
    polished = locate(recording, n_sources=1, method="music", panel_error=0.2)
    assert not torch.allclose(peaks.sources.azimuth, polished.sources.azimuth, atol=1e-5)


def test_silence_is_located_somewhere():
    recording = simulate(scenes=2, sources=1, snr_db=20)
    silent = replace(recording, snapshots=torch.zeros_like(recording.snapshots), noise_variance=None)
    fit = calibrate(silent, _start(recording), VOLUME, panel_error=0.2)
    assert fit.sources.azimuth.isfinite().all()
    assert (fit.covariance.diagonal(dim1=-2, dim2=-1) == math.inf).all()


@pytest.mark.parametrize("part", ["phase", "both"])
def test_error_bars_of_all_coordinates_cover_errors_of_a_directly_sampled_array(part, generator):
    """Those of 1/range, too, which are the noise's alone without the errors."""
    scenes, N = 60, 64
    made = simulate(scenes=scenes, sources=1, snr_db=20, seed=6, panel={"rows": 8, "columns": 8},
                    channel={"kind": "direct"}, codebook={"snapshots": 30})  # fmt: skip
    errors = torch.randn(2, scenes, 1, N, dtype=torch.float64, generator=generator)
    error = 0.06 * (1j * errors[0] if part == "phase" else torch.complex(*errors) / 2**0.5)
    there = replace(made, snapshots=made.snapshots * (1 + error), truth=None, noise_variance=None)
    found = locate(there, method="omp", n_sources=1, panel_error=0.06)
    true, sources = made.truth, found.sources
    gaps = (
        sources.azimuth - true.azimuth,
        sources.elevation - true.elevation,
        1 / sources.range - 1 / true.range,
    )
    bars = (*found.std[..., :2].unbind(-1), found.inverse_range_std)
    for gap, bar in zip(gaps, bars, strict=True):
        assert 0.7 < float((gap / bar).square().mean().sqrt()) < 1.5
