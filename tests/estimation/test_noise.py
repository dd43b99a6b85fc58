from __future__ import annotations

import math
from dataclasses import replace

import dense
import pytest
import torch

from rismusic.array import Panel, steering
from rismusic.errors import InputError
from rismusic.estimation.goodness_of_fit import Projection
from rismusic.estimation.grid import Volume
from rismusic.estimation.maximum_likelihood import nfmle, unpack
from rismusic.estimation.noise import check_fit, guess_noise, most_sources
from rismusic.io import Recording
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources

PLANE = Volume(1.0, 0.5, 0.5, 10.0)
LINE = Volume(1.0, 0.0, 0.5, 10.0)
FAR_LINE = Volume(1.0, 0.0, math.inf, math.inf)


def blank(panel, snapshots):
    data = torch.ones(1, snapshots, panel.size, dtype=torch.complex64)
    return Recording.from_arrays(data, panel.elements, panel.wavelength)


@pytest.mark.parametrize("volume", [PLANE, LINE, FAR_LINE, None])
@pytest.mark.parametrize("snapshots", [1, 4, 99])
@pytest.mark.parametrize("columns", [1, 4, 8])
@pytest.mark.parametrize("rows", [1, 2])
def test_unknowns_stay_fewer_than_numbers(rows, columns, snapshots, volume):
    panel = Panel.uniform_planar(rows, columns)
    coordinates = 0 if volume is None else volume.coordinates(panel)
    most = most_sources(blank(panel, snapshots), volume)
    real, each = 2 * snapshots * panel.size, 2 * snapshots + coordinates
    assert most * each + 1 < real
    assert (most + 1) * each + 1 >= real
    assert most < panel.size


@pytest.mark.parametrize(
    ("panel", "volume", "coordinates", "most"),
    [
        (Panel.uniform_planar(2, 4), PLANE, 3, 2),
        (Panel.uniform_linear(8), LINE, 2, 3),
        (Panel.uniform_linear(8), PLANE, 2, 3),  # a line tells one angle, whatever is searched
        (Panel.uniform_planar(8, 1), PLANE, 2, 3),
        (Panel.uniform_linear(8), FAR_LINE, 1, 4),
        (Panel.uniform_planar(2, 4), FAR_LINE, 1, 4),
    ],
)
def test_sources_of_one_snapshot_of_eight_antennas(panel, volume, coordinates, most):
    """16 real numbers: a noise variance, and for each source a complex symbol and what can be told of it."""
    assert volume.coordinates(panel) == coordinates
    recording = blank(panel, 1)
    assert most_sources(recording, volume) == most
    check_fit(recording, torch.tensor([most]), volume)
    with pytest.raises(InputError, match=f"identify at most {most} sources; got {most + 1}"):
        check_fit(recording, torch.tensor([most + 1]), volume)


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        ([1, 2, 7, 1, 1], "sources: L = 7 snapshots of M = 8 antennas identify at most 6 sources; got 7"),
        ([1, -1, 0, 0, 0], "sources: must not be negative; got -1"),
        ([1, 2], "sources: give one number per scene .5.; got 2"),
    ],
)
def test_numbers_that_no_fit_can_have(count, sentence):
    with pytest.raises(InputError, match=sentence):
        check_fit(dense.small(), torch.tensor(count), dense.VOLUME)


def test_data_that_no_fit_can_have():
    recording, count = dense.small(known=True), torch.ones(5, dtype=torch.int64)
    check_fit(recording, count, dense.VOLUME)
    wrong = recording.snapshots.clone()
    wrong[3, 2, 1] = complex(0, float("nan"))
    with pytest.raises(InputError, match="snapshots: values must be finite"):
        check_fit(replace(recording, snapshots=wrong), count, dense.VOLUME)
    for bad in (0.0, -1.0, float("nan")):
        noise = recording.noise_variance.clone()
        noise[2] = bad
        with pytest.raises(InputError, match="noise_variance: values must be positive"):
            check_fit(replace(recording, noise_variance=noise), count, dense.VOLUME)
    with pytest.raises(InputError, match="snapshots: there is no scene"):
        check_fit(recording[:0], count[:0], dense.VOLUME)


def test_variance_of_a_fit_has_no_bias():
    """400 scenes of 56 - 14 - 3 complex degrees of freedom: the mean is known to 0.8 %."""
    recording = simulate(dense.SMALL, scenes=400)
    fit = nfmle(replace(recording, noise_variance=None), recording.truth, dense.VOLUME)
    ratio = fit.noise_variance / recording.noise_variance
    assert abs(float(ratio.mean()) - 1) < 0.03
    assert float(ratio.std()) == pytest.approx(39**-0.5, rel=0.15)
    # As many degrees of freedom as the projection of the goodness of fit has, by the ranks of its tangents.
    positions, active = unpack(fit.sources, recording)
    free = ~dense.VOLUME.at_boundary(positions)
    freedom = Projection.off(recording, positions, active, free).freedom(7) / 2
    torch.testing.assert_close(fit.noise_variance, fit.cost / freedom)


@pytest.mark.parametrize("kind", ["line", "whole volume", "far line", "plane"])
def test_variance_of_one_snapshot_has_no_bias(kind, generator):
    """200 scenes of one snapshot of two sources: 12 elements less two symbols and what each position takes.

    A third coordinate of a line would make the estimate 14 % too large (in the far field 27 %).
    """
    panel = Panel.uniform_planar(3, 4) if kind == "plane" else Panel.uniform_linear(12)
    angle = torch.empty(200, 2, dtype=torch.float64).uniform_(5, 50, generator=generator)
    azimuth = angle * torch.tensor([-1, 1])
    tilt = 20.0 if kind == "plane" else 0.0
    reach = 5e4 if kind == "far line" else 1.0 if kind == "plane" else 1.5
    truth = Sources.from_degrees(azimuth, 0 * azimuth + tilt, torch.full_like(azimuth, reach))
    volume = {
        "line": Volume(1.5, 0.0, 0.3, 1e3),
        "whole volume": Volume(1.5, 1.5, 0.3, 1e3),
        "far line": Volume(1.5, 0.0, math.inf, math.inf),
        "plane": Volume(1.5, 1.5, 0.3, 1e3),
    }[kind]
    A = steering(panel, truth.azimuth, truth.elevation, truth.range)
    noise = torch.randn(200, 12, generator=generator, dtype=torch.complex128) / 1e3
    recording = Recording.from_arrays(A.sum(-1)[:, None] + noise[:, None], panel.elements, panel.wavelength)
    fit = nfmle(recording, truth, volume)
    ratio = fit.noise_variance / 1e-6
    positions, active = unpack(fit.sources, recording)
    coordinates = 2 * volume.coordinates(panel)
    assert (volume.free_coordinates(panel, positions, active) == coordinates).double().mean() > 0.95
    expected = (10 - coordinates / 2) ** -0.5
    assert abs(float(ratio.mean()) - 1) < 3 * expected / 200**0.5
    assert float(ratio.std()) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("snr_db", [-5.0, 10.0])
@pytest.mark.parametrize("system", ["own", "direct"])
def test_first_guess_is_near(system, snr_db):
    """Within 3 dB at low SNR; a few dB more where the signal covers the noise."""
    recording = dense.small(dense.SYSTEMS[system], 50, known=True, snr_db=snr_db, dtype=torch.float32)
    ratio_db = 10 * (guess_noise(recording) / recording.noise_variance).log10()
    power_db = 10 * (recording.snapshots.abs().square().mean((1, 2)) / recording.noise_variance).log10()
    assert (ratio_db < power_db + 0.01).all()
    assert abs(float(ratio_db.median())) < (3 if snr_db < 0 else 8)


def test_first_guess_of_little_data_is_positive_and_of_none_is_zero():
    one = dense.small(dense.DIRECT.replace(codebook={"snapshots": 1}))
    assert (guess_noise(one) > 0).all()
    silent = replace(one, snapshots=torch.zeros_like(one.snapshots))
    assert (guess_noise(silent) == 0).all()
    silent = dense.small()
    silent = replace(silent, snapshots=torch.zeros_like(silent.snapshots))
    assert (guess_noise(silent) == 0).all()
