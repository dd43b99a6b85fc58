"""Whitening against a dense form, and against errors that are drawn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rismusic.estimation.calibration import whitened
from rismusic.estimation.noise import guess_noise
from rismusic.simulation.simulator import simulate
from rismusic.spec import HardwareSpec

ERRORS = HardwareSpec(
    static_phase_rad=0.1, code_phase_rad=0.04, gain=0.05, dead_fraction=0.03, position_wavelengths=0.025
)


def test_size_of_the_errors_is_that_of_what_the_simulator_draws():
    """Received with and without errors, noise aside: the ratio of energies is epsilon^2."""
    settings = {"scenes": 300, "sources": 2, "snr_db": 200.0, "one_link": False, "dtype": torch.float64}
    ideal, real = (simulate(hardware=hardware, **settings) for hardware in (HardwareSpec(), ERRORS))
    off = (real.snapshots - ideal.snapshots).abs().square().sum((1, 2))
    ratio = off.sum() / ideal.snapshots.abs().square().sum()
    assert float(ratio) == pytest.approx(ERRORS.response_error**2, rel=0.05)


def test_dense_form():
    """Scene by scene: Sigma^(-1/2) in any square root gives the same inner products."""
    recording = simulate(scenes=3, sources=2, snr_db=15, dtype=torch.float64)
    white = whitened(recording, 0.3)
    for scene in range(3):
        H, y = recording.channel[scene], recording.snapshots[scene]
        noise = float(recording.noise_variance[scene])
        M = len(H)
        field = float(y.abs().square().mean()) - noise
        # Power of the sources over N, from the power that the channel lets through.
        level = field / (1 + 0.09) * M / float(H.abs().square().sum())
        Sigma = noise * torch.eye(M) + 0.09 * level * H @ H.mH
        inverse = noise * torch.linalg.inv(Sigma)
        torch.testing.assert_close(white.channel[scene].mH @ white.channel[scene], H.mH @ inverse @ H)
        torch.testing.assert_close(
            white.snapshots[scene].conj() @ white.channel[scene], y.conj() @ inverse @ H
        )
    torch.testing.assert_close(white.noise_variance, recording.noise_variance)


def test_what_sources_leave_becomes_white():
    """Errors and noise together, sources taken out: eigenvalues of their covariance, before and after."""
    recording = simulate(
        scenes=200, sources=2, snr_db=20, hardware=ERRORS, one_link=False, dtype=torch.float64
    )
    spreads = []
    for seen in (recording, whitened(recording, ERRORS.response_error)):
        truth = seen.truth
        signal = seen.link.apply(truth.symbols.mT @ truth.steering(seen.panel).mT)
        rest = (seen.snapshots - signal) / seen.noise_variance.sqrt()[:, None, None]
        # The basis of the channel's output, strongest first: where errors are, if anywhere.
        basis = torch.linalg.eigh(recording.channel @ recording.channel.mH).eigenvectors.flip(-1)
        if seen is not recording:
            basis = torch.linalg.eigh(seen.channel @ seen.channel.mH).eigenvectors.flip(-1)
        power = (rest @ basis.conj()).abs().square().mean((0, 1))
        spreads.append(float(power[0] / power[-1]))
    assert spreads[0] > 20
    assert 0.6 < spreads[1] < 1.6


def test_nothing_to_whiten():
    coded = simulate(scenes=2, sources=1, snr_db=5)
    hidden = replace(coded, noise_variance=None)
    known = whitened(hidden, 0.0)
    assert known.snapshots is coded.snapshots
    torch.testing.assert_close(known.noise_variance, guess_noise(hidden).float())
    direct = simulate(scenes=2, sources=1, snr_db=5, channel={"kind": "direct"})
    assert whitened(direct, 0.2).snapshots is direct.snapshots
    silent = replace(coded, snapshots=torch.zeros_like(coded.snapshots), noise_variance=None)
    assert whitened(silent, 0.2).snapshots.abs().max() == 0
