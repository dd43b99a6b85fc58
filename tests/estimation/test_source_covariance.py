"""Correlated sources: likelihood and bound with a full source covariance against dense matrices."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from model_scenes import NOISE, K, _differences, columns, make, noise_of_block, places
from rismusic.crb import recording_crb, unconditional_crb
from rismusic.errors import InputError
from rismusic.estimation.likelihood import SufficientStatistics
from rismusic.estimation.maximum_likelihood import source_covariance_at, unpack
from rismusic.estimation.source_covariance import correlated_unconditional, log_volume
from rismusic.hybrid import locate
from rismusic.metrics import match
from rismusic.simulation.simulator import simulate

P = np.array([[1.0, 0.9 + 0.3j], [0.9 - 0.3j, 2.0]])


def unpacked(x, size):
    """T and sigma^2 from log T_kk, real and imaginary parts below the diagonal, and log sigma^2."""
    i, j = np.tril_indices(size, -1)
    T = np.diag(np.exp(x[:size])).astype(complex)
    T[i, j] = x[size : size + len(i)] + 1j * x[size + len(i) : -1]
    return T, np.exp(x[-1])


def test_likelihood_against_matrices():
    rng = np.random.default_rng(0)
    sources, snapshots, antennas = 3, 4, 5

    def draw(*shape):
        return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)

    C, y = draw(snapshots, antennas, sources), draw(snapshots, antennas)
    x = np.concatenate((0.3 * rng.standard_normal(sources + 6), [0.2]))

    def covariances(x):
        T, noise = unpacked(x, sources)
        return C @ (T @ T.conj().T) @ C.conj().swapaxes(-1, -2) + noise * np.eye(antennas)

    def value(x):
        R = covariances(x)
        return sum(
            np.linalg.slogdet(r)[1] + (v.conj() @ np.linalg.solve(r, v)).real
            for r, v in zip(R, y, strict=True)
        )

    fields, data = torch.from_numpy(C)[None], torch.from_numpy(y)[None]
    active = torch.ones(1, sources, dtype=torch.bool)
    cross = (fields.mH @ data[..., None])[..., 0]
    at = SufficientStatistics(fields.mH @ fields, cross, data.abs().square().sum(-1), active, antennas)
    T, noise = unpacked(x, sources)
    found, gradient, J = correlated_unconditional(at, torch.from_numpy(T)[None], torch.tensor([noise]))
    assert float(found) == pytest.approx(value(x), rel=1e-12)
    np.testing.assert_allclose(gradient[0].numpy(), _differences(value, x), rtol=1e-6, atol=1e-6)
    D = np.linalg.solve(covariances(x), _differences(covariances, x))
    np.testing.assert_allclose(J[0].numpy(), np.einsum("ilab,jlba->ij", D, D).real, rtol=1e-6, atol=1e-6)


def dense_bound(recording, scene):
    """Slepian-Bangs with positions, P (K^2 real unknowns) and noise variance unknown."""
    first = np.concatenate((places(recording, scene).ravel(), P.real.ravel(), [P[0, 1].imag, NOISE]))

    def covariances(x):
        position, real, imag, noise = np.split(x, [3 * K, 3 * K + K * K, 3 * K + K * K + 1])
        # Real parts of one triangle are enough: both move together.
        real = real.reshape(K, K)
        full = np.tril(real) + np.tril(real, -1).T + 1j * imag * np.array([[0, 1], [-1, 0]])
        return [
            C @ full @ C.conj().T + noise * noise_of_block(recording, scene, len(C), i)
            for i, C in enumerate(columns(recording, scene, position.reshape(K, 3)))
        ]

    keep = [n for n in range(len(first)) if n != 3 * K + 1]  # P[0, 1].real is that of P[1, 0]
    J = 0
    for block, R in enumerate(covariances(first)):
        D = np.linalg.solve(R, _differences(lambda x, block=block: covariances(x)[block], first)[keep])
        J = J + np.einsum("iab,jba->ij", D, D).real
    return np.sqrt(np.diag(np.linalg.inv(J))[: 3 * K]).reshape(K, 3)


@pytest.mark.parametrize("model", [{}, {"coloured": "shared", "snapshots": 6}])
def test_bound_against_the_whole_fisher_matrix(model):
    recording = make(**model)
    stacked = recording.stacked()
    full = torch.from_numpy(P).expand(2, K, K)
    bound = unconditional_crb(
        stacked.panel, stacked.link, stacked.truth, stacked.noise_variance, source_covariance=full
    )
    diagonal = torch.diag_embed(full.diagonal(dim1=-2, dim2=-1))
    for i in range(len(recording)):
        np.testing.assert_allclose(bound.std[i].numpy(), dense_bound(recording, i), rtol=1e-4)
    # Unknown correlations cost accuracy: the bound of a diagonal P is lower where P is known to be diagonal.
    given = (stacked.panel, stacked.link, replace(stacked.truth, power=full.diagonal(dim1=-2, dim2=-1).real))
    known = unconditional_crb(*given, stacked.noise_variance).std
    free = unconditional_crb(*given, stacked.noise_variance, source_covariance=diagonal).std
    assert (free >= known * (1 - 1e-9)).all()


def test_a_source_covariance_is_checked():
    recording = make()
    given = (recording.panel, recording.link, recording.truth, recording.noise_variance)
    with pytest.raises(InputError, match="shape"):
        unconditional_crb(*given, source_covariance=torch.eye(3).expand(2, 3, 3) + 0j)
    for wrong in ([[1, 1], [0, 1]], [[1, 2], [2, 1]], [[1, math.nan], [0, 1]]):
        full = torch.tensor(wrong, dtype=torch.complex128).expand(2, K, K)
        with pytest.raises(InputError, match="Hermitian"):
            unconditional_crb(*given, source_covariance=full)


def test_volume_of_correlation_matrices():
    count = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    expected = torch.tensor([1.0, 1.0, math.pi, math.pi**3 / 4], dtype=torch.float64)
    torch.testing.assert_close(log_volume(count).exp(), expected)


def test_simulated_correlation():
    made = simulate(scenes=200, sources=3, scene={"correlation": 0.7}, panel={"rows": 2, "columns": 2})
    s = made.truth.symbols.to(torch.complex128)
    covariance = (s @ s.mH / s.shape[-1]).mean(0).real
    expected = 0.7 + 0.3 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(covariance, expected, atol=0.06, rtol=0)
    assert made.symbols == "correlated"
    assert recording_crb(made[:2], "unconditional").std.shape == (2, 3, 3)
    with pytest.raises(InputError, match="correlation"):
        simulate(scenes=1, scene={"correlation": 0.7, "symbols": "qpsk"})


def test_estimates_of_correlated_sources():
    system = {
        "panel": {"rows": 6, "columns": 6},
        "channel": {"kind": "direct"},
        "codebook": {"snapshots": 24},
    }
    made = simulate(scenes=4, sources=2, snr_db=10.0, scene={"correlation": 0.95}, seed=2, **system)
    blind = replace(made, truth=None, noise_variance=None)
    settings = {"method": "omp", "oversampling": 1.6}
    full = locate(blind, n_sources=2, **settings)
    plain = locate(blind, n_sources=2, symbols="independent", **settings)
    assert (full.neg_log_likelihood < plain.neg_log_likelihood - 10).all()
    matched = match(made.truth, full.sources)
    assert matched.hit.all()
    std = full.std.gather(1, matched.partner[..., None].expand(-1, -1, 3))
    assert (matched.error / std).abs().median() < 1.5
    P = source_covariance_at(blind, *unpack(full.sources, blind))
    power = P.diagonal(dim1=-2, dim2=-1).real
    torch.testing.assert_close(power, full.sources.power, rtol=0.05, atol=0)
    assert ((P[:, 0, 1].abs() / power.prod(-1).sqrt()) > 0.8).all()
    assert (full.p_value > 1e-3).all()
    counted = locate(blind[:2], sources_max=3, **settings)
    assert counted.n_sources.tolist() == [2, 2]


def test_symbols_far_above_the_limit_of_the_powers():
    """One wrong number in the codes makes the fields of its snapshot large, and the limits small."""
    recording = make(snapshots=3)
    positions, active = unpack(recording.truth, recording)
    recording.codes[0, 0] = 1e12
    # More sources than snapshots: their sample covariance has no Cholesky factor.
    positions, active = torch.cat((positions, positions + 0.1), dim=1), active.repeat(1, 2)
    assert source_covariance_at(recording, positions, active).isfinite().all()
