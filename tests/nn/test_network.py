"""The network: what must not change its answer, and its statistics against a dense form."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from train_case import NETWORK, SYSTEM

from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid, Volume, highest_peaks, to_cosines
from rismusic.estimation.maximum_likelihood import compiled_fits
from rismusic.nn import network, statistics
from rismusic.nn.losses import Targets, total_loss
from rismusic.nn.network import Linear, Network, interpolated
from rismusic.nn.spec import LossSpec
from rismusic.nn.statistics import GridStatistics
from rismusic.simulation.simulator import simulate

SYSTEMS = {
    "own link": SYSTEM,
    "one link": SYSTEM.replace(one_link=True),
    "direct": SYSTEM.replace(channel={"kind": "direct"}),
}
VOLUME = Volume.from_spec(SYSTEM.scene)


def recorded(kind="own link", scenes=3, **settings):
    return simulate(SYSTEMS[kind], scenes=scenes, seed=5, **settings)


def network_for(recording, seed=1):
    """Weights away from their small start, so that a change would show."""
    grid = SearchGrid.cover(recording.panel, VOLUME, NETWORK.oversampling)
    made = Network(NETWORK, grid, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(1.5)
    return made.eval()


def outputs(prediction):
    """What must agree; the factors through their product, whose columns have no order of their own."""
    covariance = prediction.covariance.dense()
    order = prediction.azimuth.argsort(dim=-1)
    heads = {
        name: getattr(prediction, name).gather(1, order)
        for name in ("azimuth", "elevation", "inverse_range", "existence_logits")
    }
    return {
        "covariance": torch.view_as_real(covariance),
        "count": prediction.count_logits,
        "map": prediction.grid_logits,
        **heads,
    }


def assert_same(first, second, tolerance=2e-3):
    for (name, one), other in zip(outputs(first).items(), outputs(second).values(), strict=True):
        torch.testing.assert_close(
            one, other, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("kind", SYSTEMS)
def test_the_order_of_the_snapshots_does_not_matter(kind):
    recording = recorded(kind)
    made = network_for(recording)
    order = torch.tensor([3, 0, 6, 5, 1, 4, 2])
    codes = recording.codes if recording.codes is None else recording.codes[..., order, :]
    shuffled = replace(recording, snapshots=recording.snapshots[:, order], codes=codes)
    assert_same(made(recording), made(shuffled))
    if codes is not None:  # the snapshots alone are another recording
        wrong = made(replace(recording, snapshots=recording.snapshots[:, order]))
        assert (wrong.grid_logits - made(recording).grid_logits).abs().max() > 0.1


@pytest.mark.parametrize("kind", SYSTEMS)
def test_phase_and_scale_do_not_matter(kind):
    recording = recorded(kind)
    made = network_for(recording)
    turned = replace(recording, snapshots=recording.snapshots * np.exp(0.7j))
    assert_same(made(recording), made(turned))
    scaled = replace(
        recording, snapshots=30.0 * recording.snapshots, noise_variance=900.0 * recording.noise_variance
    )
    assert_same(made(recording), made(scaled))
    louder = replace(recording, snapshots=30.0 * recording.snapshots)
    assert (made(louder).grid_logits - made(recording).grid_logits).abs().max() > 0.1


def test_an_unknown_noise_scales_with_the_data():
    recording = replace(recorded(), noise_variance=None)
    made = network_for(recording)
    assert_same(made(recording), made(replace(recording, snapshots=30.0 * recording.snapshots)))


@pytest.mark.parametrize("kind", SYSTEMS)
def test_a_batch_is_a_loop(kind):
    recording = recorded(kind)
    made = network_for(recording)
    together = made(recording)
    for scene in range(3):
        assert_same(together[scene : scene + 1], made(recording[scene : scene + 1]))


@pytest.mark.parametrize("kind", SYSTEMS)
def test_every_parameter_learns(kind):
    recording = recorded(kind, scenes=4)
    made = network_for(recording)
    targets = Targets.of(recording, made.grid)
    total_loss(made(recording), targets, LossSpec(), beta=0.2).total.backward()
    sizes = {name: weight.grad for name, weight in made.named_parameters()}
    assert [name for name, gradient in sizes.items() if gradient is None or not gradient.any()] == []
    assert all(gradient.isfinite().all() for gradient in sizes.values())


def test_scenes_without_signal_and_without_noise():
    recording = recorded()
    made = network_for(recording)
    silent = replace(recording, snapshots=torch.zeros_like(recording.snapshots))
    clear = replace(recording, noise_variance=torch.full_like(recording.noise_variance, 1e-12))
    for one in (silent, clear):
        prediction = made(one)
        assert all(value.isfinite().all() for value in outputs(prediction).values())


@pytest.mark.parametrize("kind", SYSTEMS)
def test_statistics_against_dense_matrices(kind, monkeypatch):
    """In the full basis, against R_l, its inverse and every a_p formed explicitly."""
    monkeypatch.setattr(statistics, "_TRUNCATION", 1e-12)
    recording = recorded(kind, scenes=2, dtype=torch.float64)
    grid = SearchGrid.cover(recording.panel, VOLUME, 0.8)
    made = GridStatistics(grid)
    observed = made.observe(recording)
    power = made.uniform_power(observed) * torch.rand(
        2, len(grid), generator=torch.Generator().manual_seed(0)
    )
    matched, own = made(observed, power)
    A = grid.steering(torch.complex128)
    for scene in range(2):
        one = recording[scene : scene + 1]
        y = one.snapshots[0] / one.snapshots.abs().square().mean().sqrt()
        noise = float(one.noise_variance) / float(one.snapshots.abs().square().mean())
        L, M = y.shape
        N = len(A)
        identity = torch.eye(N, dtype=torch.complex128)
        H = identity if one.channel is None else one.channel.reshape(M, N).to(torch.complex128)
        c = torch.ones(L, N, dtype=torch.complex128) if one.codes is None else one.codes.reshape(L, N).to(A)
        G = H * c[:, None, :]
        # Scaled to unit mean power per entry on the space that the steering vectors span.
        U = torch.linalg.svd(A[:, grid.inside], full_matrices=False)[0]
        G = G / (G @ U).abs().square().mean().sqrt()
        C = (A * power[scene].double()) @ A.mH
        expected = torch.zeros(2, len(grid), dtype=torch.float64)
        for snapshot in range(L):
            R = G[snapshot] @ C @ G[snapshot].mH + noise * torch.eye(M, dtype=torch.complex128)
            V = torch.linalg.inv(R) @ G[snapshot] @ A
            expected[0] += (V.mH @ y[snapshot]).abs().square()
            expected[1] += (V.conj() * (G[snapshot] @ A)).sum(0).real
        reach = (G @ A).abs().square().sum((0, 1))
        torch.testing.assert_close(observed.gain[scene].double(), reach, rtol=2e-4, atol=1e-4)
        for found, dense in ((matched, expected[0]), (own, expected[1])):
            torch.testing.assert_close(
                found[scene].double(), dense, rtol=5e-3, atol=5e-3 * float(dense.max())
            )


@pytest.mark.parametrize("kind", SYSTEMS)
def test_few_scenes_are_looked_at_as_many_are(kind):
    """Products with the steering vectors against those with the table, and blocks of scenes."""
    recording = recorded(kind, scenes=20)
    made = GridStatistics(SearchGrid.cover(recording.panel, VOLUME, 1.3))
    whole = made.observe(recording)
    power = made.uniform_power(whole) * torch.rand(
        20, whole.gain.shape[1], generator=torch.Generator().manual_seed(0)
    )
    values = made(whole, power)
    for few in (slice(0, 1), slice(17, 20)):
        part = made.observe(recording[few])
        torch.testing.assert_close(part.fields, whole.fields[few], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(part.gain, whole.gain[few], rtol=1e-4, atol=1e-4)
        for one, all_of_them in zip(made(part, power[few]), values, strict=True):
            torch.testing.assert_close(one, all_of_them[few], rtol=1e-3, atol=1e-4)


def test_the_fixed_point_climbs():
    """Steps of the fixed point raise the likelihood of the whole data."""
    recording = recorded(scenes=2)
    made = GridStatistics(SearchGrid.cover(recording.panel, VOLUME, 1.3))
    observed = made.observe(recording)
    power = made.uniform_power(observed)
    values = [_likelihood(made, observed, power)]
    for _ in range(4):
        power = made.sbl_steps(observed, power, 1)
        values.append(_likelihood(made, observed, power))
    # The fixed point is no gradient; it climbs after the first step, by which powers find their level.
    assert all((after < before).all() for before, after in itertools.pairwise(values[1:]))


def _likelihood(made, observed, power):
    """sum_l log det R_l + y_l^H R_l^-1 y_l, [S]."""
    B = observed.fields.to(torch.complex128)
    U = (made.basis.mH @ made.grid.steering()).to(torch.complex128)
    C = (U * power[:, None, :].double()) @ U.mH
    R = B @ C[:, None] @ B.mH + observed.noise_variance.double()[:, None, None, None] * torch.eye(B.shape[-2])
    y = observed.data.to(torch.complex128)
    quadratic = (y.conj() * torch.linalg.solve(R, y)).sum((-2, -1)).real
    return (torch.linalg.slogdet(R)[1] * observed.repeats + quadratic).sum(-1)


def test_a_grid_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(statistics, "_TABLE_BYTES", 1000)
    recording = recorded(scenes=1)
    with pytest.raises(InputError, match="the table of outer products for"):
        GridStatistics(SearchGrid.cover(recording.panel, VOLUME))


@pytest.mark.parametrize("kind", SYSTEMS)
def test_powers_explain_what_noise_does_not(kind):
    recording = recorded(kind, snr_db=3.0)
    statistics_of_it = GridStatistics(SearchGrid.cover(recording.panel, VOLUME, NETWORK.oversampling))
    observed = statistics_of_it.observe(recording)
    power = statistics_of_it.uniform_power(observed)
    numbers = recording.snapshots[0].numel()
    noise = recording.noise_variance / recording.snapshots.abs().square().mean((1, 2))
    # 3 dB: two of three parts are signal, and a network that forgot the noise would claim all.
    assert (noise > 0.2).all()
    torch.testing.assert_close((power * observed.gain).sum(-1), numbers * (1 - noise), rtol=1e-3, atol=0)


def test_without_a_lesson_the_map_is_that_of_the_statistics():
    """What a stage writes is added to the map it was given and to the SBL ratio of the data."""
    recording = recorded()
    made = network_for(recording)
    with torch.no_grad():
        for stage in made.stages:
            stage.write.weight.zero_()
            stage.write.bias.zero_()
        observed, _, power = made.initial_statistics(recording)
        matched, own = GridStatistics(made.grid)(observed, power)
        expected = (power * observed.gain).log().clamp(-8, 8) + (matched / own).log().clamp(-8, 8)
        found = made(recording).grid_logits[:, 0]
    inside = made.grid.inside
    torch.testing.assert_close(found[:, inside], expected[:, inside], rtol=1e-4, atol=1e-4)
    assert (found[:, ~inside] < -20).all()


@pytest.mark.parametrize("axis", range(3))
def test_places_lie_between_the_points(axis):
    """Half a step towards a neighbour that is as high, or as far as was learned, on each axis."""
    recording = recorded(scenes=1)
    made = network_for(recording)
    grid = made.grid
    assert grid.step[2] != pytest.approx(grid.step[0], rel=0.1)
    cell = [(size - 1) // 2 for size in grid.shape]
    beside = [at + (i == axis) for i, at in enumerate(cell)]
    logits = torch.full(grid.shape, -60.0)
    logits[tuple(cell)] = 0.0
    point = torch.tensor([[np.ravel_multi_index(cell, grid.shape)]])
    still = torch.zeros(1, 1, 3)
    shifted = still.clone()
    shifted[0, 0, axis] = 0.5
    alone = interpolated(made.grid, logits.view(1, -1), point, still)
    learned = interpolated(made.grid, logits.view(1, -1), point, shifted)
    logits[tuple(beside)] = 0.0
    between = interpolated(made.grid, logits.view(1, -1), point, still)
    axes = (grid.u_x, grid.u_y, grid.q)
    expected = torch.tensor([float(values[at]) for values, at in zip(axes, cell, strict=True)])
    half = 0.5 * (float(axes[axis][beside[axis]]) - float(axes[axis][cell[axis]]))
    for found, share in ((alone, 0.0), (learned, 1.0), (between, 1.0)):
        place = torch.stack(to_cosines(*found)).flatten()
        moved = share * half * torch.nn.functional.one_hot(torch.tensor(axis), 3)
        torch.testing.assert_close(place, expected + moved, rtol=1e-4, atol=1e-5)


def test_a_column_has_the_energy_of_its_peak():
    """The share of its peak in the map, where nothing else was learned; R_rng moves no angle."""
    recording = recorded()
    made = network_for(recording)
    with torch.no_grad():
        made.details.weight.zero_()
    found = made(recording)
    peaks = highest_peaks(found.grid_logits[:, -1].detach(), made.grid, NETWORK.sources_max).index
    share = found.grid_logits[:, -1].softmax(-1).gather(1, peaks)
    for factor in (found.angle_factor, found.range_factor):
        torch.testing.assert_close(factor.abs().square().sum(1), share, rtol=1e-4, atol=1e-6)
    for factor, moves in ((found.angle_factor, True), (found.range_factor, False)):
        target = torch.view_as_real(factor / factor.detach().norm(dim=1, keepdim=True)).sum()
        (slope,) = torch.autograd.grad(target, found.azimuth, retain_graph=True, allow_unused=True)
        assert (slope is not None) is moves


def test_layers_are_those_of_torch_in_inference_too(generator, monkeypatch):
    layer, x = Linear(12, 7), torch.randn(3, 12, 5, generator=generator).mT  # not contiguous
    expected, product, used = layer(x), network.onednn_linear, []
    monkeypatch.setattr(network, "onednn_linear", lambda *args: used.append(args) or product(*args))
    layer(x)
    assert not used  # training keeps the operations of torch
    with torch.inference_mode():
        found = layer(x)
    assert bool(used) == (torch.backends.mkldnn.is_available() and compiled_fits() is not None)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
