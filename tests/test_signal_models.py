"""Every signal model against dense matrices: operator, stacked data, likelihoods, bounds and grid search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model_scenes import (
    MODELS,
    NOISE,
    F,
    K,
    L,
    M,
    N,
    S,
    amplitudes,
    blocks_of,
    columns,
    conditional_bound,
    conditional_cost,
    data_blocks,
    make,
    noise_of_block,
    places,
    unconditional_bound,
    unconditional_value,
)
from rismusic.crb import recording_crb
from rismusic.errors import InputError
from rismusic.estimation import likelihood
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.estimation.search import Dictionary, GridSearch, project_out
from rismusic.operator import Link


@pytest.fixture(params=MODELS, ids=lambda name: name.replace(", ", "-").replace(" ", "-"))
def recording(request):
    return make(**MODELS[request.param])


def positions_of(recording):
    where = torch.stack([torch.from_numpy(places(recording, i)) for i in range(len(recording))])
    where[..., 2] = 1 / where[..., 2]
    return where


def active_of(recording):
    return torch.ones(len(recording), K, dtype=torch.bool)


# The operator.


@pytest.mark.parametrize("subcarriers", [1, F])
@pytest.mark.parametrize(
    "parts", ["shared", "channel per scene", "codes per scene", "direct", "weights per scene"]
)
@pytest.mark.parametrize("kind", ["plain", "coherent", "shared pilots", "pilots per scene"])
def test_link_against_matrices(subcarriers, parts, kind, generator):
    def noise(*shape):
        return torch.randn(*shape, dtype=torch.complex128, generator=generator)

    bands = (F,) if subcarriers > 1 else ()
    channel = noise(*((S,) if parts == "channel per scene" else ()), *bands, M, N)
    codes = noise(*((S,) if parts == "codes per scene" else ()), L, N)
    channel = None if parts == "direct" else channel
    pilots = None if "pilots" not in kind else noise(*((S,) if "scene" in kind else ()), L, K)
    coherent = kind != "plain"
    rows = N if channel is None else M
    weights = None if parts != "weights per scene" else noise(S, subcarriers * L, rows).abs()
    link = Link(channel, codes, coherent=coherent, pilots=pilots, subcarriers=subcarriers, weights=weights)

    G = np.zeros((S, subcarriers, L, rows, N), complex)
    for i in range(S):
        for f in range(subcarriers):
            H = np.eye(N)
            if channel is not None:
                H = channel if channel.ndim == 2 + len(bands) else channel[i]
                H = (H[f] if bands else H).numpy()
            for number, code in enumerate(codes if codes.ndim == 2 else codes[i]):
                G[i, f, number] = H @ np.diag(code.numpy())
                if weights is not None:
                    G[i, f, number] *= weights[i, f * L + number, :, None].numpy()

    def merged(value):
        """[S, F, L, M, ...] as the link counts snapshots and outputs."""
        rest = value.shape[4:]
        if coherent:
            return value.reshape(S, subcarriers, L * rows, *rest)
        return value.reshape(S, subcarriers * L, rows, *rest)

    A = noise(S, subcarriers * N, K)
    B = A.numpy().reshape(S, subcarriers, N, K)
    product = np.einsum("sflmn,sfnk->sflmk", G, B)
    if pilots is not None:
        x = np.broadcast_to(pilots.numpy(), (S, L, K))
        product = product * x[:, None, :, None, :]
    np.testing.assert_allclose(link.matmul(A).numpy(), merged(product), atol=1e-12)
    dense = np.broadcast_to(link.dense().numpy(), merged(G).shape)
    np.testing.assert_allclose(dense, merged(G), atol=1e-12)

    # Derivatives go with the pilots of their source.
    if pilots is not None:
        D = noise(S, subcarriers * N, K, 3)
        both = link.matmul(torch.cat((A, D.flatten(-2)), dim=-1))
        torch.testing.assert_close(both[..., :K], link.matmul(A))
        slopes = both[..., K:].unflatten(-1, (K, 3))
        for axis in range(3):
            torch.testing.assert_close(slopes[..., axis], link.matmul(D[..., axis].contiguous()))
        with pytest.raises(InputError, match="are for K = 2 sources"):
            link.matmul(noise(S, subcarriers * N, K + 1))

    # <G x, y> = <x, G^H y>, for a point that sends the pilots of the second source.
    one = link.for_pilots(1)
    x = noise(S, subcarriers * N)
    y = noise(*one.matmul(x[..., None]).shape[:-1])
    if coherent:
        left = (one.matmul(x[..., None])[..., 0].conj() * y).sum()
        right = (x.unflatten(-1, (subcarriers, N)).conj() * one.adjoint(y)).sum()
    else:
        field = noise(S, subcarriers * L, N)
        left = (one.apply(field).conj() * y).sum()
        right = (field.conj() * one.adjoint(y)).sum()
    torch.testing.assert_close(left, right)
    if pilots is not None:
        torch.testing.assert_close(one.matmul(A[..., 1:])[..., 0], link.matmul(A)[..., 1])

    # Scenes of a link.
    for scenes in (slice(1, 2), torch.tensor([1, 0])):
        torch.testing.assert_close(link[scenes].matmul(A[scenes]), link.matmul(A)[scenes])
    assert link.per_scene == (parts.endswith("scene") or kind.endswith("scene"))
    assert link.matrices == (subcarriers if coherent else subcarriers * L)


def test_stacked_against_matrices(recording):
    """Operator and data of the stacked form are those of the blocks, in white noise."""
    stacked = recording.stacked()
    fields = stacked.link.matmul(stacked.truth.steering(stacked.panel)).numpy()
    y, s = stacked.snapshots.numpy(), stacked.truth.symbols.numpy()
    for i in range(S):
        assert s[i].shape[-1] == y.shape[1]
        for block, C in enumerate(columns(recording, i, places(recording, i))):
            W = np.linalg.inv(np.linalg.cholesky(noise_of_block(recording, i, len(C), block)))
            amplitude = amplitudes(recording, i)[block]
            np.testing.assert_allclose(s[i][:, block], amplitude, atol=1e-10)
            mine = fields[i][block if fields.shape[1] > 1 else 0]
            # Gram matrix and matched filter are all that the likelihood sees.
            np.testing.assert_allclose(mine.conj().T @ mine, (W @ C).conj().T @ (W @ C), atol=1e-10)
            received = W @ data_blocks(recording, i)[block]
            np.testing.assert_allclose(mine.conj().T @ y[i][block], (W @ C).conj().T @ received, atol=1e-10)
    assert stacked.stacked() is stacked
    if (
        recording.symbols == "independent"
        and recording.frequencies is None
        and recording.noise_covariance is None
        and recording.sample_weights is None
    ):
        assert stacked is recording


@pytest.mark.parametrize("scenes", [slice(1, 2), [1, 0], 1])
def test_scenes_of_a_stacked_recording(recording, scenes):
    one, other = recording[scenes].stacked(), recording.stacked()[scenes]
    torch.testing.assert_close(one.snapshots, other.snapshots)
    torch.testing.assert_close(one.noise_variance, other.noise_variance)
    A = one.truth.steering(one.panel)
    torch.testing.assert_close(one.link.matmul(A), other.link.matmul(A))


def test_noise_of_repeated_snapshots():
    """Without a noise variance, a direct array with constant symbols estimates it from the differences."""
    recording = make(symbols="constant", direct=True)
    recording = replace(recording, noise_variance=None)
    stacked = recording.stacked()
    y = recording.snapshots.numpy()
    expected = np.var(y, axis=1, ddof=1).mean(-1)  # over snapshots, of each antenna
    np.testing.assert_allclose(stacked.noise_variance.numpy(), expected)


# Likelihoods.


def test_likelihoods_against_matrices(recording):
    """Costs and values of two places differ as the dense ones do (constants are left out of them)."""
    stacked, active = recording.stacked(), active_of(recording)
    here = positions_of(recording)
    there = here + torch.tensor([0.03, -0.02, 0.05], dtype=torch.float64)
    noise = torch.full((S,), NOISE, dtype=torch.float64)
    one = recording.truth.power
    two = one * torch.tensor([1.3, 0.6], dtype=torch.float64)
    cost, value = [], []
    for where, power in ((here, one), (there, two)):
        at = likelihood.sufficient_statistics(stacked, where, active)
        cost.append(likelihood.conditional_cost(at))
        value.append(likelihood.unconditional(at, power, noise)[0])
    for i in range(S):
        near, far = (
            np.concatenate((w[i, :, :2].numpy(), 1 / w[i, :, 2:].numpy()), axis=-1) for w in (here, there)
        )
        expected = conditional_cost(recording, i, far) - conditional_cost(recording, i, near)
        assert float(cost[1][i] - cost[0][i]) == pytest.approx(expected, rel=1e-7, abs=1e-8)
        expected = unconditional_value(recording, i, far, two[i].numpy(), NOISE)
        expected -= unconditional_value(recording, i, near, one[i].numpy(), NOISE)
        assert float(value[1][i] - value[0][i]) == pytest.approx(expected, rel=1e-7, abs=1e-7)


def test_gradients_of_the_likelihoods(recording):
    stacked, active, where = recording.stacked(), active_of(recording), positions_of(recording) + 0.01
    noise, power = torch.full((S,), NOISE, dtype=torch.float64), recording.truth.power

    def values(where):
        at = likelihood.sufficient_statistics(stacked, where, active)
        return at.size * likelihood.conditional_cost(at).log(), likelihood.unconditional(at, power, noise)[0]

    at = likelihood.sufficient_statistics(stacked, where, active, derivatives=True)
    exact = likelihood.conditional(at)[1], likelihood.unconditional(at, power, noise)[1]
    for k in range(K):
        for axis in range(3):
            step = torch.zeros(K, 3, dtype=torch.float64)
            step[k, axis] = 1e-6
            for plus, minus, gradient in zip(values(where + step), values(where - step), exact, strict=True):
                slope = (plus - minus) / 2e-6
                torch.testing.assert_close(gradient[:, 3 * k + axis], slope, rtol=1e-5, atol=2e-3)


# Bounds.


def test_conditional_bound_against_the_whole_fisher_matrix(recording):
    found = recording_crb(recording).std.numpy()
    for i in range(S):
        np.testing.assert_allclose(found[i], conditional_bound(recording, i), rtol=1e-5)


def test_unconditional_bound_against_the_whole_fisher_matrix(recording):
    found = recording_crb(recording, "unconditional").std.numpy()
    for i in range(S):
        np.testing.assert_allclose(found[i], unconditional_bound(recording, i), rtol=1e-4)


# The search.


@pytest.mark.parametrize("criterion", ["conditional", "unconditional"])
def test_search_finds_the_best_point(recording, criterion):
    """The point of the grid that explains most beside a first source, by brute force over dense matrices."""
    stacked = recording.stacked()
    volume = Volume(azimuth_max=1.0, elevation_max=0.5, range_min=0.7, range_max=2.0)
    grid = SearchGrid.cover(stacked.panel, volume, 1.2)
    dictionary = Dictionary.of(grid)
    search = GridSearch(dictionary, stacked, stacked.link.for_pilots(0))
    nothing = torch.ones(S, K, 3, dtype=torch.float64), torch.zeros(S, K, dtype=torch.bool)
    noise = torch.full((S,), 0.2, dtype=torch.float64)
    power_noise = None if criterion == "conditional" else (noise.new_ones(S, K), noise)
    found, _ = search.best(torch.arange(S), project_out(stacked, *nothing, power_noise), len(dictionary))
    points = dictionary.positions(torch.arange(len(dictionary))).numpy()
    points[:, 2] = 1 / points[:, 2]
    for i in range(S):
        gains = []
        for point in points:
            where = np.repeat(point[None], K, axis=0)
            gain, pulls = 0.0, []
            for C, y, Q in blocks_of(recording, i, where):
                W = np.linalg.inv(np.linalg.cholesky(Q))
                c = (W @ C)[:, 0]
                pulls.append((abs(c.conj() @ (W @ y)) ** 2, np.linalg.norm(c) ** 2))
            b, h = np.array(pulls).T
            if criterion == "conditional":
                gain = (b / h).sum()
            else:
                powers = np.geomspace(1e-3, 1e3, 4001)[:, None]
                a, b = h / 0.2, b / 0.2**2
                gain = (powers * b / (1 + powers * a) - np.log1p(powers * a)).sum(1).max()
            gains.append(gain)
        best = gains[int(found[i, 0])]
        assert best >= max(gains) * (1 - 1e-3), f"scene {i}: {best} of {max(gains)}"
