"""The fixed point of sparse Bayesian learning against covariances formed one by one."""

from __future__ import annotations

import dense
import numpy as np
import pytest
import torch

from rismusic.estimation import sbl as powers
from rismusic.estimation.sbl import sbl_powers, shares_outer
from rismusic.estimation.search import Dictionary


def pieces(system, scenes=3, oversampling=1.5, **settings):
    recording = dense.small(dense.SYSTEMS[system], scenes, known=True, dtype=torch.float32, **settings)
    points = Dictionary.of(dense.grid_for(recording, oversampling))
    ((_, columns),) = points.columns()
    return recording, points, points.fields(recording.link, columns)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("system", dense.SYSTEMS)
@pytest.mark.parametrize("shared", [False, True])
def test_the_fixed_point_is_the_dense_one(system, shared, steps, monkeypatch):
    if shared and system == "own":
        pytest.skip("links of their own share nothing")
    monkeypatch.setattr(powers, "_WARM", 99)
    recording, points, fields = pieces(system)
    noise = recording.noise_variance
    found = sbl_powers(fields, recording.snapshots, noise, shared=shared, iterations=steps)
    y = recording.snapshots.numpy().astype(complex)
    for scene in range(3):
        G = dense.fields(recording, scene, points.positions(torch.arange(len(points))))
        energy = (np.abs(y[scene]) ** 2).sum()
        signal = max(energy - y[scene].size * float(noise[scene]), 0.1 * energy)
        power = np.full(len(points), signal / (np.abs(G) ** 2).sum(dtype=float))
        for _ in range(steps):
            pull, own = 0, 0
            for Gl, yl in zip(G, y[scene], strict=True):
                W = np.linalg.inv((Gl * power) @ Gl.conj().T + float(noise[scene]) * np.eye(len(yl)))
                pull = pull + np.abs(Gl.conj().T @ (W @ yl)) ** 2
                own = own + (Gl.conj() * (W @ Gl)).sum(0).real
            power = power * pull / own
        scale = power.max()
        np.testing.assert_allclose(found[scene] / scale, power / scale, atol=2e-3)


def test_shared_and_own_products_agree(monkeypatch):
    """Many steps; with fields that change from snapshot to snapshot and with one for all of them."""
    monkeypatch.setattr(powers, "_WARM", 99)
    for system in ("one", "direct"):
        recording, _, fields = pieces(system)
        assert fields.shape[1] == (7 if system == "one" else 1)
        own, shared = (
            sbl_powers(fields, recording.snapshots, recording.noise_variance, shared=way, iterations=8)
            for way in (False, True)
        )
        scale = own.amax(dim=1, keepdim=True)
        torch.testing.assert_close(shared / scale, own / scale, rtol=0, atol=5e-3)
    assert shares_outer(torch.zeros(1, 7, 16, 100))
    assert not shares_outer(torch.zeros(1).expand(1, 16, 288, 4000))


def test_covariances_are_hermitian_sums_over_points(generator):
    for system in ("one", "direct"):
        recording, points, fields = pieces(system, 1)
        power = torch.rand(1, len(points), generator=generator)
        G = dense.fields(recording, 0, points.positions(torch.arange(len(points))))[: fields.shape[1]]
        expected = (G * power.numpy()) @ G.conj().transpose(0, 2, 1)
        for model in (powers._Own, powers._Shared):
            found = model(fields, recording.snapshots).covariance(power)[0]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_the_power_of_a_clean_scene_goes_to_the_true_points(system):
    """Two sources on points of the grid, 10 dB apart: nearly all power there, and as much as was sent."""
    recording, points, fields = pieces(system, 6)
    index = torch.tensor([[0.15, 0.8], [0.3, 0.6], [0.1, 0.5], [0.9, 0.2], [0.7, 0.3], [0.5, 0.95]])
    index = (index * len(points)).long()
    recording = dense.planted(recording, points.positions(index), amplitudes=(1.0, 0.3162), noise=1e-2)
    noise = 1e-4 * recording.snapshots.abs().square().mean((1, 2))
    found = sbl_powers(fields, recording.snapshots, noise, iterations=60)
    there = found.gather(1, index)
    assert (there.sum(1) > 0.97 * found.sum(1)).all()
    sent = recording.truth.symbols.abs().square().mean(-1)
    torch.testing.assert_close(there.double(), sent, rtol=0.15, atol=0)


def test_dropping_weak_points_changes_little(monkeypatch):
    recording, _, fields = pieces("own", oversampling=2.5)
    noise = recording.noise_variance
    found = sbl_powers(fields, recording.snapshots, noise, iterations=12)
    monkeypatch.setattr(powers, "_WARM", 99)
    expected = sbl_powers(fields, recording.snapshots, noise, iterations=12)
    assert (found > 0).float().mean() <= 0.25
    assert (expected > 0).float().mean() > 0.25
    scale = expected.amax(dim=1, keepdim=True)
    assert ((found - expected).abs() / scale).max() < 0.2


def test_silence_and_noise_of_almost_nothing_stay_finite():
    recording, _, fields = pieces("own")
    for noise in (1e-30, 1e-3, 1.0):
        level = torch.full((3,), noise)
        for data in (recording.snapshots, torch.zeros_like(recording.snapshots)):
            assert sbl_powers(fields, data, level).isfinite().all()
