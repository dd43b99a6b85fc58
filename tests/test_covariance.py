from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rismusic.covariance import (
    Conditioning,
    Covariance,
    back_project,
    blend,
    load_and_shrink,
    predicted_covariance,
    squared_modulus,
    true_covariance,
)
from rismusic.errors import InputError
from rismusic.estimation.spectra import mvdr
from rismusic.simulation.simulator import simulate


def random(generator, *shape, dtype=torch.complex128):
    return torch.randn(*shape, generator=generator, dtype=dtype)


def some_covariance(generator, *shape, dtype=torch.complex128):
    loading = torch.rand(shape[:-2], generator=generator, dtype=dtype.to_real()) + 0.1
    return Covariance(random(generator, *shape, dtype=dtype), loading)


def recording(scenes=6, dtype=torch.float64, **settings):
    settings = {"sources": 2, "snr_db": 10.0, **settings}
    return simulate(scenes=scenes, dtype=dtype, **settings)


# low rank plus identity, against dense matrices


@pytest.mark.parametrize("shape", [(4, 9, 3), (2, 3, 5, 8), (7, 7)])
def test_every_method_against_the_dense_matrix(shape, generator):
    R = some_covariance(generator, *shape)
    F = R.factor.numpy()
    dense = F @ np.conj(np.swapaxes(F, -1, -2)) + R.loading.numpy()[..., None, None] * np.eye(shape[-2])
    X = random(generator, *shape[:-1], 4)
    np.testing.assert_allclose(R.dense().numpy(), dense, atol=1e-12)
    np.testing.assert_allclose(R.trace.numpy(), np.trace(dense, axis1=-2, axis2=-1).real, rtol=1e-12)
    np.testing.assert_allclose(R.apply(X).numpy(), dense @ X.numpy(), atol=1e-10)
    quadratic = np.einsum("...nq,...nm,...mq->...q", X.numpy().conj(), dense, X.numpy())
    np.testing.assert_allclose((X.conj() * R.apply(X)).real.sum(-2).numpy(), quadratic.real, rtol=1e-10)
    V = R.inverse_root().numpy()
    woodbury = np.eye(shape[-2]) - V @ np.conj(np.swapaxes(V, -1, -2))
    np.testing.assert_allclose(woodbury / R.loading.numpy()[..., None, None], np.linalg.inv(dense), atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 9, 3), (3, 5, 8)])
def test_eigenvectors_against_the_dense_matrix(shape, generator):
    R = some_covariance(generator, *shape)
    expected, vectors = np.linalg.eigh(R.dense().numpy())
    values, U = R.eigen(3)
    np.testing.assert_allclose(values.numpy(), expected[..., ::-1][..., :3], rtol=1e-10)
    assert (values.diff(dim=-1) < 0).all()
    reference = vectors[..., ::-1][..., :3]
    projector = reference @ np.conj(np.swapaxes(reference, -1, -2))
    np.testing.assert_allclose((U @ U.mH).numpy(), projector, atol=1e-9)


def test_eigenvectors_of_weak_directions_are_orthonormal_in_single_precision(generator):
    """40 dB between the sources; a Gram matrix in single precision loses this."""
    U = torch.linalg.qr(random(generator, 30, 3)).Q
    F = U * torch.tensor([1.0, 1e-1, 1e-2])
    F = F @ torch.linalg.qr(random(generator, 3, 3)).Q
    R = Covariance(F.to(torch.complex64), torch.zeros(()))
    _, found = R.eigen(3)
    torch.testing.assert_close(found.mH @ found, torch.eye(3, dtype=torch.complex64), atol=3e-6, rtol=0)
    assert (found.mH @ U.to(torch.complex64)).abs().diagonal().min() > 1 - 1e-5


def test_missing_directions_are_zero_not_noise():
    F = torch.zeros(6, 3, dtype=torch.complex128)
    F[2, 0] = 2
    values, U = Covariance(F, torch.zeros((), dtype=torch.float64)).eigen(3)
    torch.testing.assert_close(values, torch.tensor([4.0, 0, 0]).double())
    torch.testing.assert_close(U.norm(dim=0), torch.tensor([1.0, 0, 0]).double())


def test_nothing_received_is_no_direction():
    R = Covariance(torch.zeros(2, 5, 3, dtype=torch.complex64), torch.zeros(2)).normalised()
    torch.testing.assert_close(R.dense(), torch.eye(5, dtype=torch.complex64).expand(2, 5, 5) / 5)


# the builder


def test_finish_is_its_equation_with_trace_one(generator):
    R = some_covariance(generator, 3, 8, 4)
    condition = Conditioning(torch.tensor([0.0, 0.3, 1.0]).double(), torch.tensor([0.0, 0.5, 0.2]).double())
    done = load_and_shrink(R, condition).dense()
    unit = R.dense() / R.trace[:, None, None]
    eye = torch.eye(8).double() / 8
    epsilon, rho = condition.loading[:, None, None], condition.shrinkage[:, None, None]
    expected = (1 - rho) * (unit + epsilon * eye) / (1 + epsilon) + rho * eye
    torch.testing.assert_close(done, expected)
    torch.testing.assert_close(done.diagonal(dim1=-2, dim2=-1).sum(-1).real, torch.ones(3).double())
    torch.testing.assert_close(done, done.mH, rtol=0, atol=0)


def test_finish_commutes_with_blending(generator):
    """What is done to the blend is done to each of its parts, and so to R_true."""
    first, second = some_covariance(generator, 2, 8, 3), some_covariance(generator, 2, 8, 4)
    condition = Conditioning(torch.tensor([0.1, 0.4]).double(), torch.tensor([0.3, 0.2]).double())
    whole = load_and_shrink(blend(first, second, 0.3), condition).dense()
    parts = 0.7 * load_and_shrink(first, condition).dense() + 0.3 * load_and_shrink(second, condition).dense()
    torch.testing.assert_close(whole, parts)


def test_blend_is_its_equation(generator):
    first, second = some_covariance(generator, 3, 8, 2), some_covariance(generator, 3, 8, 5)
    beta = torch.tensor([0.0, 0.25, 1.0]).double()
    blended = blend(first, second, beta)
    unit = [R.dense() / R.trace[:, None, None] for R in (first, second)]
    expected = (1 - beta[:, None, None]) * unit[0] + beta[:, None, None] * unit[1]
    torch.testing.assert_close(blended.dense(), expected)
    assert blended.factor.shape[-1] == 7


def test_blend_stops_the_gradient_at_the_sample(generator):
    angle, reach = random(generator, 2, 6, 3).requires_grad_(), random(generator, 2, 6, 3).requires_grad_()
    field = random(generator, 2, 6, 4).requires_grad_()
    sample = Covariance(field, torch.zeros(2).double())
    for beta in (0.0, 0.4, 1.0):
        blended = blend(predicted_covariance(angle, reach), sample, beta)
        squared_modulus(blended.factor.mH @ random(generator, 2, 6, 5)).sum().backward()
        assert angle.grad.isfinite().all()
        assert reach.grad.isfinite().all()
    assert angle.grad.abs().max() > 0
    assert field.grad is None


def test_predicted_covariance_weights_the_range_factor(generator):
    angle, reach = random(generator, 6, 3), random(generator, 6, 2)
    torch.testing.assert_close(
        predicted_covariance(angle, reach).dense(), angle @ angle.mH + 0.3 * reach @ reach.mH
    )


def test_true_covariance_ignores_empty_places():
    truth = recording(sources=(1, 4), scenes=8)
    assert truth.truth.power.isnan().any()
    A, p = truth.truth.steering(truth.panel), truth.truth.power
    expected = torch.einsum("snk,sk,smk->snm", A, p.nan_to_num(0).to(A.dtype), A.conj())
    torch.testing.assert_close(true_covariance(A, p).dense(), expected)


# what is refused


def test_refusals(generator, untyped):
    R, other = some_covariance(generator, 2, 6, 3), some_covariance(generator, 2, 5, 3)
    recorded = recording(scenes=2)
    y, noise = recorded.snapshots, recorded.noise_variance
    cases = [
        ("sources", lambda: R.eigen(4)),
        ("sources", lambda: R.eigen(0)),
        ("covariance.loading", lambda: mvdr(Covariance(R.factor, R.loading * 0))),
        ("covariance.loading", lambda: Covariance(R.factor, R.loading[0])),
        ("covariance.factor", lambda: Covariance(R.factor.real, R.loading)),
        ("beta", lambda: blend(R, R, 1.5)),
        ("beta", lambda: blend(R, R, math.nan)),
        ("sample", lambda: blend(R, other, 0.5)),
        ("noise_variance", lambda: back_project(recorded.link, y, -noise)),
        ("noise_variance", lambda: back_project(recorded.link, y, noise * math.nan)),
        ("snapshots", lambda: back_project(recorded.link, y[..., :5], noise)),
        ("snapshots", lambda: back_project(recorded.link, y[:, :3], noise)),
    ]
    for field, attempt in cases:
        with pytest.raises(InputError) as caught:
            attempt()
        assert caught.value.field == field
