"""MDL and AIC against their formulas, and where they hold: many snapshots of a panel sampled directly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rismusic.covariance import sample_covariance
from rismusic.estimation.model_order import aic, eigenvalues, mdl
from rismusic.simulation.simulator import simulate

SMALL = {"panel": {"rows": 4, "columns": 4}, "channel": {"antennas": 6}, "codebook": {"snapshots": 20}}
DIRECT = {"panel": {"rows": 3, "columns": 4}, "channel": {"kind": "direct"}, "snr_db": 20.0}


def formula(values, n, *, length):
    """Wax and Kailath (1985), equations (16) and (17), term by term."""
    p = len(values)
    scores = []
    for k in range(p):
        rest = values[k:]
        ratio = np.prod(rest) ** (1 / (p - k)) / np.mean(rest)
        likelihood = -n * (p - k) * np.log(ratio)
        parameters = k * (2 * p - k)
        scores.append(likelihood + parameters / 2 * np.log(n) if length else 2 * likelihood + 2 * parameters)
    return int(np.argmin(scores))


@pytest.mark.parametrize("panel", [False, True])
def test_formulas(panel):
    recording = simulate(scenes=20, sources=(1, 3), snr_db=15.0, **SMALL)
    values, n = eigenvalues(recording, panel=panel)
    assert n == 20
    assert (values.diff(dim=1) <= 0).all()
    assert mdl(recording, panel=panel).tolist() == [formula(v, n, length=True) for v in values.numpy()]
    assert aic(recording, panel=panel).tolist() == [formula(v, n, length=False) for v in values.numpy()]


def test_eigenvalues_are_those_of_the_sample_covariance():
    recording = simulate(scenes=3, sources=2, **SMALL)
    y = recording.snapshots.to(torch.complex128)
    dense = torch.linalg.eigvalsh(y.mT @ y.conj() / 20).flip(1)
    torch.testing.assert_close(eigenvalues(recording)[0], dense)
    covariance, _ = sample_covariance(recording.link, recording.snapshots, recording.noise_variance)
    on_panel = torch.linalg.eigvalsh(covariance.dense().to(torch.complex128)).flip(1)
    values, _ = eigenvalues(recording, panel=True)
    torch.testing.assert_close(values / values.sum(1, keepdim=True), on_panel, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("panel", [False, True])
@pytest.mark.parametrize("K", [1, 2, 3])
def test_many_snapshots_of_a_direct_panel(K, panel):
    """What the criteria were made for; AIC overestimates now and then, whatever the number of snapshots."""
    recording = simulate(scenes=60, sources=K, codebook={"snapshots": 400}, **DIRECT)
    assert (mdl(recording, panel=panel) == K).double().mean() > 0.95
    assert (aic(recording, panel=panel) == K).double().mean() > 0.6
    assert (aic(recording, panel=panel) >= K).all()


def test_pure_noise(generator):
    recording = simulate(scenes=60, sources=1, codebook={"snapshots": 400}, **DIRECT)
    noise = torch.randn(recording.snapshots.shape, dtype=torch.complex64, generator=generator)
    assert (mdl(replace(recording, snapshots=noise)) == 0).double().mean() > 0.95


def test_codes_break_the_model():
    """Through codes K sources fill more than K dimensions: MDL does not hold however many snapshots."""
    recording = simulate(scenes=30, sources=1, snr_db=30.0, **{**SMALL, "codebook": {"snapshots": 400}})
    assert (mdl(recording) > 1).double().mean() > 0.9


def test_fewer_snapshots_than_dimensions_and_silence():
    recording = simulate(scenes=4, sources=1, **{**SMALL, "codebook": {"snapshots": 3}})
    assert eigenvalues(recording)[0].shape == (4, 3)
    assert eigenvalues(recording, panel=True)[0].shape == (4, 3)
    for count in (mdl(recording), aic(recording), mdl(replace(recording, noise_variance=None), panel=True)):
        assert ((count >= 0) & (count < 3)).all()
    one = replace(recording, snapshots=recording.snapshots[:, :1], codes=recording.codes[:, :1])
    assert mdl(one).tolist() == [0] * 4
