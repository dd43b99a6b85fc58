from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rismusic.covariance import (
    IDENTITY_MAX,
    Covariance,
    back_project,
    conditioning,
    load_and_shrink,
    recording_covariance,
    sample_covariance,
    true_covariance,
)
from rismusic.operator import Link
from rismusic.simulation.simulator import simulate


def random(generator, *shape, dtype=torch.complex128):
    return torch.randn(*shape, generator=generator, dtype=dtype)


def recording(scenes=6, dtype=torch.float64, **settings):
    settings = {"sources": 2, "snr_db": 10.0, **settings}
    return simulate(scenes=scenes, dtype=dtype, **settings)


def dense_back_projection(recorded, ridge):
    """DESIGN.md, section 2, scene by scene in numpy; the ridge is an N-free M x M system."""
    link, y = recorded.link, recorded.snapshots.numpy()
    out = []
    for i in range(len(recorded)):
        H = link.channel.numpy()[i]
        x = []
        for c, received in zip(link.codes.numpy()[i], y[i], strict=True):
            G = H * c
            x.append(G.conj().T @ np.linalg.solve(G @ G.conj().T + ridge[i] * np.eye(len(H)), received))
        out.append(x)
    return np.array(out)


def stated_ridge(recorded):
    H, y = recorded.channel.numpy(), recorded.snapshots.numpy()
    noise = recorded.noise_variance.numpy()
    signal = np.maximum((np.abs(y) ** 2).mean((1, 2)) - noise, noise / math.sqrt(y[0].size))
    return noise / signal * (np.abs(H) ** 2).sum((1, 2)) / H.shape[1]


@pytest.mark.parametrize("snr_db", [-5.0, 20.0])
def test_back_projection_against_its_definition(snr_db):
    recorded = recording(snr_db=snr_db)
    projected = back_project(recorded.link, recorded.snapshots, recorded.noise_variance)
    expected = dense_back_projection(recorded, stated_ridge(recorded))
    np.testing.assert_allclose(projected.field.numpy(), expected, rtol=1e-8, atol=1e-10)
    R = projected.covariance().dense().numpy()
    np.testing.assert_allclose(
        R, np.einsum("sln,slm->snm", expected, expected.conj()) / expected.shape[1], atol=1e-8 * abs(R).max()
    )


def test_codes_of_unequal_moduli_get_a_system_each(generator):
    recorded = recording(scenes=2)
    gain = torch.rand(recorded.codes.shape, generator=generator, dtype=torch.float64) + 0.2
    link = Link(recorded.channel, recorded.codes * gain)
    projected = back_project(link, recorded.snapshots, recorded.noise_variance)
    G = link.dense()
    gram = G @ G.mH
    signal = recorded.snapshots.abs().square().mean((1, 2)) - recorded.noise_variance
    mean_gain = gram.diagonal(dim1=-2, dim2=-1).real.mean((1, 2))
    ridge = (recorded.noise_variance / signal * mean_gain)[:, None, None, None]
    expected = G.mH @ torch.linalg.solve(gram + ridge * torch.eye(16), recorded.snapshots[..., None])
    torch.testing.assert_close(projected.field, expected[..., 0], rtol=1e-8, atol=1e-10)


def test_direct_sampling_is_a_scalar():
    recorded = recording(channel={"kind": "direct"}, panel={"rows": 3, "columns": 4})
    projected = back_project(recorded.link, recorded.snapshots, recorded.noise_variance)
    total = recorded.snapshots.abs().square().mean((1, 2))
    wiener = 1 - recorded.noise_variance / total  # 1 / (1 + lambda)
    torch.testing.assert_close(projected.field, recorded.snapshots * wiener[:, None, None])
    torch.testing.assert_close(projected.noise_share, recorded.noise_variance / total)
    assert projected.coverage == 1


def test_noise_share_is_what_the_noise_alone_leaves(generator):
    """Sent through the same filter without a signal, the noise has the energy that was foretold."""
    recorded = recording(scenes=20, snr_db=3.0)
    projected = back_project(recorded.link, recorded.snapshots, recorded.noise_variance)
    ridge = torch.from_numpy(stated_ridge(recorded))
    H = recorded.channel
    inverse = torch.linalg.inv(H @ H.mH + ridge[:, None, None] * torch.eye(16))
    noise = random(generator, *recorded.snapshots.shape) * recorded.noise_variance.sqrt()[:, None, None]
    field = recorded.link.adjoint(noise @ inverse.mT)
    share = field.abs().square().sum((1, 2)) / projected.field.abs().square().sum((1, 2))
    torch.testing.assert_close(projected.noise_share.mean(), share.mean(), rtol=0.05, atol=0)


def test_the_mean_is_not_taken_out():
    """One static source: the field is the same in every snapshot, and centring would leave nothing of it."""
    recorded = recording(
        sources=1, snr_db=30.0, channel={"kind": "direct"}, scene={"symbols": "constant"}, scenes=3
    )
    R, _ = sample_covariance(recorded.link, recorded.snapshots, recorded.noise_variance)
    A = recorded.truth.steering(recorded.panel)
    assert ((A.conj() * R.apply(A)).real.sum(-2) > 0.99).all()


def test_direct_sampling_of_many_snapshots_tends_to_the_truth():
    recorded = recording(
        scenes=4, channel={"kind": "direct"}, codebook={"snapshots": 20000}, snr_db=20.0,
        panel={"rows": 4, "columns": 4},
    )  # fmt: skip
    R, _ = sample_covariance(recorded.link, recorded.snapshots, recorded.noise_variance)
    true = true_covariance(recorded.truth.steering(recorded.panel), recorded.truth.power).normalised()
    error = torch.linalg.matrix_norm(R.dense() - true.dense())
    assert (error < 0.03).all()
    assert (torch.linalg.matrix_norm(R.dense().conj() - true.dense()) > 0.3).all()


@pytest.mark.parametrize("one_link", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_is_loop_and_links_may_be_shared(one_link, dtype):
    recorded = recording(one_link=one_link, dtype=dtype)
    whole = recording_covariance(recorded)
    assert whole.factor.dtype == dtype.to_complex()
    single = [recording_covariance(recorded[i : i + 1]) for i in range(len(recorded))]
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(
        whole.factor, torch.cat([R.factor for R in single]), rtol=tolerance, atol=tolerance
    )
    torch.testing.assert_close(whole.loading, torch.cat([R.loading for R in single]), rtol=tolerance, atol=0)


@pytest.mark.parametrize("change", ["scale", "phase", "permutation", "conjugation"])
@pytest.mark.parametrize("full_shrinkage", [False, True])
def test_what_must_not_matter_and_what_must(change, full_shrinkage, generator):
    recorded = recording()
    y, noise, codes = recorded.snapshots, recorded.noise_variance, recorded.codes
    before = recording_covariance(recorded, full_shrinkage=full_shrinkage).dense()
    if change == "scale":
        y, noise = 1e-4 * y, 1e-8 * noise
    elif change == "phase":
        y = y * complex(math.cos(1), math.sin(1))
    elif change == "permutation":
        order = torch.randperm(y.shape[1], generator=generator)
        y, codes = y[:, order], codes[:, order]
    else:
        codes = codes.conj()
    after = load_and_shrink(
        *sample_covariance(Link(recorded.channel, codes), y, noise, full_shrinkage=full_shrinkage)
    ).dense()
    same = torch.allclose(after, before, rtol=1e-7, atol=1e-12)
    assert same == (change != "conjugation")


def test_codes_must_stay_with_their_snapshots(generator):
    recorded = recording()
    order = torch.randperm(recorded.snapshots.shape[1], generator=generator)
    before = recording_covariance(recorded).dense()
    R, condition = sample_covariance(recorded.link, recorded.snapshots[:, order], recorded.noise_variance)
    assert not torch.allclose(load_and_shrink(R, condition).dense(), before, rtol=1e-2, atol=1e-4)


# conditioning


def test_the_identity_grows_with_the_noise_and_stays_below_its_limit():
    shares = []
    for snr_db in (-5.0, 5.0, 15.0, 25.0, 40.0):
        recorded = recording(snr_db=snr_db, scenes=20)
        _, condition = sample_covariance(recorded.link, recorded.snapshots, recorded.noise_variance)
        assert (condition.identity <= IDENTITY_MAX + 1e-12).all()
        shares.append(float(condition.identity.mean()))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.2
    assert shares[-1] < 0.02


def test_the_oracle_comes_near_the_least_error():
    """Against the shrinkage that knows the truth, on Gaussian snapshots of a panel sampled directly."""
    recorded = recording(
        scenes=60, sources=4, channel={"kind": "direct"}, snr_db=0.0, panel={"rows": 6, "columns": 6}
    )
    N = 36
    R, condition = sample_covariance(
        recorded.link, recorded.snapshots, recorded.noise_variance, full_shrinkage=True
    )
    A = recorded.truth.steering(recorded.panel)
    mean_power = recorded.truth.power.sum(-1) / N
    realised = recorded.snapshots.abs().square().mean((1, 2)) - recorded.noise_variance
    true = true_covariance(A, recorded.truth.power * (realised / mean_power)[:, None])
    true = Covariance(true.factor, recorded.noise_variance).normalised().dense()
    eye = torch.eye(N).double() / N

    def error(rho):
        rho = torch.as_tensor(rho).expand(60)[:, None, None]
        return torch.linalg.matrix_norm((1 - rho) * R.dense() + rho * eye - true).square().mean()

    best = min(error(rho) for rho in torch.linspace(0, 1, 101).double())
    assert error(condition.shrinkage) < 1.1 * best
    assert error(0.0) > 1.5 * best


@pytest.mark.parametrize("settings", [{"codebook": {"snapshots": 1}}, {"scene": {"symbols": "constant"}}])
def test_few_or_equal_snapshots_still_give_a_covariance(settings):
    recorded = recording(sources=1, snr_db=20.0, **settings)
    for full_shrinkage in (False, True):
        R = recording_covariance(recorded, full_shrinkage=full_shrinkage)
        torch.testing.assert_close(R.trace, torch.ones(6).double())
        assert (R.loading * R.size < 0.999).all()


@pytest.mark.parametrize("kind", ["rician", "direct"])
def test_no_noise_and_no_signal(kind):
    recorded = recording(channel={"kind": kind}, panel={"rows": 4, "columns": 4})
    quiet = recording_covariance(recorded, torch.zeros(6).double())
    torch.testing.assert_close(quiet.trace, torch.ones(6).double())
    assert quiet.factor.isfinite().all()
    for noise in (torch.zeros(6), torch.ones(6)):
        nothing = sample_covariance(recorded.link, 0 * recorded.snapshots, noise.double())
        torch.testing.assert_close(
            load_and_shrink(*nothing).dense(), torch.eye(16, dtype=torch.complex128).expand(6, 16, 16) / 16
        )


def test_noise_louder_than_the_snapshots_is_no_failure():
    recorded = recording()
    R = recording_covariance(recorded, 100 * recorded.noise_variance)
    torch.testing.assert_close(R.trace, torch.ones(6).double())


def test_conditioning_of_a_plain_back_projection_is_that_of_the_sample():
    recorded = recording()
    projected = back_project(recorded.link, recorded.snapshots, recorded.noise_variance)
    _, expected = sample_covariance(recorded.link, recorded.snapshots, recorded.noise_variance)
    torch.testing.assert_close(conditioning(projected).identity, expected.identity)


def test_shrinkage_is_its_equation():
    """Where the limit does not reach it (30 dB), from the dense matrix."""
    recorded = recording(snr_db=30.0)
    projected = back_project(recorded.link, recorded.snapshots, recorded.noise_variance)
    nu, L, N = projected.noise_share, 16, 144
    R = projected.covariance().normalised().dense()
    least = ((1 - nu) * 16 / 144) ** 2 / L
    d = torch.maximum(torch.linalg.matrix_norm(R) ** 2 - 1 / L - 1 / N, least)
    for full_shrinkage, error in ((False, nu * (2 - nu) / L), (True, torch.full_like(nu, 1 / L))):
        condition = conditioning(projected, full_shrinkage=full_shrinkage)
        torch.testing.assert_close(condition.shrinkage, error / (error + d))
        torch.testing.assert_close(condition.loading, torch.zeros_like(nu) if full_shrinkage else nu)
