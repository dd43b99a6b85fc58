from __future__ import annotations

import math

import pytest
import torch

from rismusic.array import Panel, steering
from rismusic.covariance import (
    Conditioning,
    Covariance,
    load_and_shrink,
    recording_covariance,
    true_covariance,
)
from rismusic.errors import InputError
from rismusic.estimation import spectra as module
from rismusic.estimation.grid import SearchGrid, Volume, find_peaks
from rismusic.estimation.spectra import (
    RefinedPeaks,
    Spectrum,
    bartlett,
    music,
    mvdr,
    newton,
    rap_music,
    soft_music,
)
from rismusic.simulation.simulator import simulate
from rismusic.spec import SceneSpec

VOLUME = Volume.from_spec(SceneSpec())


@pytest.fixture(scope="module")
def grid():
    return SearchGrid.cover(Panel.uniform_planar(), VOLUME)


def errors(found, azimuth, elevation):
    """To the nearest estimate, the larger of the two angles, [S, K]."""
    gap = torch.maximum(
        (found.azimuth[:, :, None] - azimuth[:, None]).abs(),
        (found.elevation[:, :, None] - elevation[:, None]).abs(),
    )
    return gap.amin(1)


@pytest.mark.parametrize("name", ["music", "soft_music", "mvdr"])
@pytest.mark.parametrize("sources", [1, 3, 5])
def test_an_exact_covariance_gives_the_truth(name, sources, grid):
    recorded = simulate(scenes=40, sources=sources, snr_db=10.0)
    truth = recorded.truth
    R = true_covariance(truth.steering(recorded.panel), truth.power)
    little = torch.full_like(R.loading, 1e-6)
    R = load_and_shrink(R, Conditioning(little, torch.zeros_like(little)))
    spectrum = {"music": music, "soft_music": soft_music}.get(name, lambda R, _: mvdr(R))(R, sources)
    found = rap_music(spectrum, grid, sources)
    assert errors(found, truth.azimuth, truth.elevation).max() < math.radians(1e-3)
    assert found.converged.all()


def test_tells_apart_what_shares_a_peak(grid, generator):
    """Pairs 8 deg apart anywhere: many have one peak on the grid; found in turn, next to none is lost."""
    unit = torch.rand(5, 100, generator=generator, dtype=torch.float64)
    azimuth = torch.deg2rad(torch.stack((104 * unit[0] - 60, 104 * unit[0] - 52), dim=1))
    elevation = torch.deg2rad(torch.stack((56 * unit[1] - 28, 56 * unit[1] - 28 + 2 * unit[2]), dim=1))
    distance = 0.5 + 9.5 * unit[3:].T
    A = steering(grid.panel, azimuth, elevation, distance)
    spectrum = music(true_covariance(A, torch.ones(100, 2).double()), 2)
    lost = errors(rap_music(spectrum, grid, 2), azimuth, elevation) > math.radians(1e-3)
    assert lost.double().mean() <= 0.01
    peaks = find_peaks(spectrum.explained_on_grid(grid), grid, 2)
    at_once = newton(spectrum, grid.panel, VOLUME, peaks.azimuth, peaks.elevation, peaks.range)
    assert (errors(at_once, azimuth, elevation) > math.radians(1)).double().mean() > 0.1


def test_finds_more_than_peaks_from_snapshots():
    recorded = simulate(scenes=100, sources=3, snr_db=10.0, panel={"wave": "uniform"})
    grid = SearchGrid.cover(recorded.panel, VOLUME)
    spectrum = soft_music(recording_covariance(recorded), 3)
    peaks = find_peaks(spectrum.explained_on_grid(grid), grid, 3)
    missed = [
        float(
            (errors(found, recorded.truth.azimuth, recorded.truth.elevation) > math.radians(5))
            .double()
            .mean()
        )
        for found in (peaks, rap_music(spectrum, grid, 3))
    ]
    assert missed[1] < missed[0] - 0.01
    assert missed[1] < 0.04


def test_batch_is_loop_and_axes_are_kept(grid):
    recorded = simulate(scenes=4, sources=2, snr_db=10.0, dtype=torch.float64)
    R = recording_covariance(recorded)
    whole = rap_music(bartlett(R), grid, 2)
    for i in range(4):
        alone = rap_music(bartlett(R[i]), grid, 2)
        torch.testing.assert_close(alone.azimuth, whole.azimuth[i], rtol=0, atol=1e-7)
    deep = Covariance(R.factor.unflatten(0, (2, 2)), R.loading.view(2, 2))
    torch.testing.assert_close(rap_music(bartlett(deep), grid, 2).azimuth.flatten(0, 1), whole.azimuth)


@pytest.mark.parametrize("count", [0, 144])
def test_refusals(count, grid):
    recorded = simulate(scenes=1, sources=1, snr_db=10.0)
    with pytest.raises(InputError, match="sources"):
        rap_music(bartlett(recording_covariance(recorded)), grid, count)


def test_each_search_is_that_of_the_projected_spectrum(monkeypatch, generator):
    """Against the ratio with all that was found projected out at once, by a QR decomposition."""

    def stay(spectrum, panel, volume, azimuth, elevation, distance, **_):
        rest = torch.zeros_like(azimuth)
        return RefinedPeaks(azimuth, elevation, distance, rest, torch.ones_like(rest, dtype=torch.bool))

    monkeypatch.setattr(module, "newton", stay)
    panel = Panel.uniform_planar(5, 6)
    grid = SearchGrid.cover(panel, Volume(1.0, 0.5, 0.4, 4.0), 2.0)
    A = grid.steering(torch.complex128)
    V = torch.linalg.qr(torch.randn(4, panel.size, 3, dtype=torch.complex128, generator=generator))[0]
    found = rap_music(Spectrum(V, torch.ones(4).double(), sharp=True), grid, 5)
    for scene in range(4):
        taken = A[:, :0]
        for turn in range(5):
            Q = torch.linalg.qr(taken)[0]
            rest = A - Q @ (Q.mH @ A)
            left = rest.abs().square().sum(0)
            value = (V[scene].mH @ rest).abs().square().sum(0) / left
            value[(left < 0.05) | ~grid.inside] = -1
            best = value.argmax()
            assert float(found.azimuth[scene, turn]) == pytest.approx(float(grid.azimuth[best]))
            assert float(found.range[scene, turn]) == pytest.approx(float(grid.range[best]))
            taken = torch.cat((taken, A[:, best : best + 1]), dim=1)
