from __future__ import annotations

from dataclasses import replace

import dense
import pytest
import torch

from rismusic.errors import InputError
from rismusic.estimation.maximum_likelihood import nfmle
from rismusic.estimation.noise import check_fit, guess_noise, most_sources, noise_from_fit
from rismusic.simulation.simulator import simulate


@pytest.mark.parametrize(
    ("snapshots", "outputs", "most"),
    [(16, 16, 14), (1, 16, 6), (1, 4, 1), (16, 144, 131), (4, 1, 0), (99, 3, 2)],
)
def test_unknowns_stay_fewer_than_numbers(snapshots, outputs, most):
    assert most_sources(snapshots, outputs) == most
    real, each = 2 * snapshots * outputs, 2 * snapshots + 3
    assert most * each + 1 < real
    assert (most + 1) * each + 1 >= real
    assert most < outputs


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
        check_fit(dense.small(), torch.tensor(count))


def test_data_that_no_fit_can_have():
    recording, count = dense.small(known=True), torch.ones(5, dtype=torch.int64)
    check_fit(recording, count)
    wrong = recording.snapshots.clone()
    wrong[3, 2, 1] = complex(0, float("nan"))
    with pytest.raises(InputError, match="snapshots: values must be finite"):
        check_fit(replace(recording, snapshots=wrong), count)
    for bad in (0.0, -1.0, float("nan")):
        noise = recording.noise_variance.clone()
        noise[2] = bad
        with pytest.raises(InputError, match="noise_variance: values must be positive"):
            check_fit(replace(recording, noise_variance=noise), count)
    with pytest.raises(InputError, match="snapshots: there is no scene"):
        check_fit(recording[:0], count[:0])


def test_variance_of_a_fit_has_no_bias():
    """400 scenes of 56 - 14 - 3 complex degrees of freedom: the mean is known to 0.8 %."""
    recording = simulate(dense.SMALL, scenes=400)
    fit = nfmle(replace(recording, noise_variance=None), recording.truth, dense.VOLUME)
    ratio = fit.noise_variance / recording.noise_variance
    assert abs(float(ratio.mean()) - 1) < 0.03
    assert float(ratio.std()) == pytest.approx(39**-0.5, rel=0.15)
    assert torch.allclose(
        fit.noise_variance, noise_from_fit(fit.cost, torch.full((400,), 2), snapshots=7, outputs=8)
    )


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
