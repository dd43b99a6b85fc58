from __future__ import annotations

from dataclasses import replace

import dense
import numpy as np
import pytest
import torch

from rismusic.estimation import likelihood
from rismusic.estimation.likelihood import (
    conditional,
    conditional_cost,
    sufficient_statistics,
    symbols,
    unconditional,
)

POWER = torch.tensor([1.3, 0.4], dtype=torch.float64)


def at(recording, positions, active=None, **settings):
    active = torch.ones(positions.shape[:2], dtype=torch.bool) if active is None else active
    return sufficient_statistics(recording, positions, active, **settings)


def power_noise(recording):
    S = len(recording)
    return POWER.expand(S, 2), torch.linspace(0.05, 0.4, S, dtype=torch.float64)


def shifted(positions, i, step):
    moved = positions.flatten(1).clone()
    moved[:, i] += step
    return moved.unflatten(1, (-1, 3))


@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_conditional_cost_is_the_dense_projection(system, generator):
    recording = dense.small(dense.SYSTEMS[system])
    positions = dense.scattered(dense.truth_of(recording)[0], generator, 0.2)
    found = conditional_cost(at(recording, positions))
    expected = [dense.conditional_cost(recording, i, positions[i]) for i in range(len(recording))]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_unconditional_value_is_the_dense_determinant_and_inverse(system, generator):
    recording = dense.small(dense.SYSTEMS[system])
    positions = dense.scattered(dense.truth_of(recording)[0], generator, 0.2)
    power, noise = power_noise(recording)
    found = unconditional(at(recording, positions), power, noise)[0]
    for i in range(len(recording)):
        expected = dense.unconditional_value(recording, i, positions[i], POWER.numpy(), float(noise[i]))
        np.testing.assert_allclose(float(found[i]), expected, rtol=1e-9)


def test_empty_places_count_for_nothing(generator):
    recording = dense.small()
    positions = dense.scattered(dense.truth_of(recording)[0], generator, 0.2)
    wider = torch.cat((positions, positions.new_full((5, 1, 3), 0.3)), dim=1)
    active = torch.tensor([True, True, False]).expand(5, 3)
    power, noise = power_noise(recording)
    plain = at(recording, wider, active)
    torch.testing.assert_close(conditional_cost(plain), conditional_cost(at(recording, positions)))
    wide, narrow = at(recording, wider, active, derivatives=True), at(recording, positions, derivatives=True)
    torch.testing.assert_close(conditional_cost(wide), conditional_cost(narrow))
    torch.testing.assert_close(symbols(wide)[..., :2], symbols(narrow))
    assert (symbols(wide)[..., 2] == 0).all()
    more = torch.cat((power, torch.full_like(power[:, :1], torch.nan)), dim=1)
    for one in (wide, plain):
        torch.testing.assert_close(unconditional(one, more, noise)[0], unconditional(narrow, power, noise)[0])
    for wide_part, narrow_part in zip(conditional(wide)[1:], conditional(narrow)[1:], strict=True):
        torch.testing.assert_close(wide_part[(..., *[slice(6)] * (wide_part.ndim - 1))], narrow_part)
        assert wide_part[:, 6:].abs().max() == 0
    for part in unconditional(wide, more, noise)[1:]:
        empty = [6, 7, 8, 11]  # its coordinates and its power
        assert part[:, empty].abs().max() == 0


@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_gradients_meet_finite_differences(system, generator):
    recording = dense.small(dense.SYSTEMS[system])
    positions = dense.scattered(dense.truth_of(recording)[0], generator, 0.05)
    power, noise = power_noise(recording)
    step = 1e-6

    def slope(value):
        return (value(step) - value(-step)) / (2 * step)

    conditional_gradient = conditional(at(recording, positions, derivatives=True))[1]
    gradient = unconditional(at(recording, positions, derivatives=True), power, noise)[1]
    for i in range(6):

        def cost(h, i=i):
            return conditional(at(recording, shifted(positions, i, h), derivatives=True))[0]

        def value(h, i=i):
            return unconditional(at(recording, shifted(positions, i, h)), power, noise)[0]

        torch.testing.assert_close(conditional_gradient[:, i], slope(cost), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(gradient[:, i], slope(value), rtol=1e-5, atol=1e-4)
    fixed = at(recording, positions)
    for k in range(2):
        turn = torch.eye(2, dtype=torch.float64)[k]
        found = slope(lambda h, turn=turn: unconditional(fixed, power * (h * turn).exp(), noise)[0])
        torch.testing.assert_close(gradient[:, 6 + k], found, rtol=1e-6, atol=1e-5)
    found = slope(lambda h: unconditional(fixed, power, noise * np.exp(h))[0])
    torch.testing.assert_close(gradient[:, 8], found, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("system", ["own", "direct"])
def test_curvature_is_that_of_the_projected_jacobian(system, generator):
    """Gauss-Newton in Kaufman's form: -P_perp (dC/dx) s, by differences of dense fields."""
    recording = dense.small(dense.SYSTEMS[system], scenes=2)
    positions = dense.scattered(dense.truth_of(recording)[0], generator, 0.05)
    curvature = conditional(at(recording, positions, derivatives=True))[2]
    step = 1e-6
    for scene in range(2):
        C = dense.fields(recording, scene, positions[scene])
        y = recording.snapshots[scene].numpy()
        pinv = np.linalg.pinv(C)
        s = np.einsum("lkm,lm->lk", pinv, y)
        rest = np.eye(y.shape[1]) - C @ pinv
        columns = []
        for i in range(6):
            moved = [shifted(positions, i, h)[scene] for h in (step, -step)]
            slope = (dense.fields(recording, scene, moved[0]) - dense.fields(recording, scene, moved[1])) / (
                2 * step
            )
            columns.append(np.einsum("lmn,lnk,lk->lm", rest, slope, s).ravel())
        J = np.stack(columns, axis=1)
        cost = dense.conditional_cost(recording, scene, positions[scene])
        expected = 2 * (J.conj().T @ J).real * y.size / cost
        np.testing.assert_allclose(curvature[scene], expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("system", ["own", "direct"])
def test_information_is_the_dense_trace(system, generator):
    recording = dense.small(dense.SYSTEMS[system], scenes=2)
    positions = dense.scattered(dense.truth_of(recording)[0], generator, 0.05)
    power, noise = power_noise(recording)
    J = unconditional(at(recording, positions, derivatives=True), power, noise)[2]
    step = 1e-6

    def covariance(scene, x):
        C = dense.fields(recording, scene, torch.tensor(x[:6]).view(2, 3))
        eye = np.eye(C.shape[1])
        return (C * np.exp(x[6:8])) @ C.conj().transpose(0, 2, 1) + np.exp(x[8]) * eye

    for scene in range(2):
        x = np.concatenate(
            (positions[scene].numpy().ravel(), POWER.log().numpy(), [np.log(float(noise[scene]))])
        )
        W = np.linalg.inv(covariance(scene, x))
        slopes = [
            W @ (covariance(scene, x + step * e) - covariance(scene, x - step * e)) / (2 * step)
            for e in np.eye(9)
        ]
        expected = np.array([[np.einsum("lmn,lnm->", a, b).real for b in slopes] for a in slopes])
        np.testing.assert_allclose(J[scene], expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("criterion", ["conditional", "unconditional"])
def test_nothing_that_means_nothing_changes_the_likelihood(criterion, generator):
    """Global phase, the order of the snapshots with their codes, and the unit of the data with its noise."""
    recording = dense.small()
    positions = dense.truth_of(recording)[0]
    power, noise = power_noise(recording)

    def value(recording, scale=1.0):
        here = at(recording, positions)
        if criterion == "conditional":
            return conditional_cost(here) / scale**2
        offset = recording.snapshots[0].numel() * np.log(scale**2)
        return unconditional(here, power * scale**2, noise * scale**2)[0] - offset

    expected = value(recording)
    turned = replace(recording, snapshots=recording.snapshots * np.exp(1.3j))
    torch.testing.assert_close(value(turned), expected)
    order = torch.randperm(7, generator=generator)
    shuffled = replace(recording, snapshots=recording.snapshots[:, order], codes=recording.codes[:, order])
    torch.testing.assert_close(value(shuffled), expected)
    unpaired = replace(recording, snapshots=recording.snapshots[:, order])
    assert ((value(unpaired) - expected).abs() > 0.1 * expected.abs()).all()
    scaled = replace(recording, snapshots=recording.snapshots * 1e-3)
    torch.testing.assert_close(value(scaled, 1e-3), expected)


def test_clean_data_cost_nothing_at_the_truth_and_much_if_conjugated():
    recording = dense.clean()
    positions = dense.truth_of(recording)[0]
    energy = recording.snapshots.abs().square().sum((1, 2))
    assert (conditional_cost(at(recording, positions)) < 1e-12 * energy).all()
    wrong = replace(recording, snapshots=recording.snapshots.conj().resolve_conj())
    assert (conditional_cost(at(wrong, positions)) > 0.1 * energy).all()


def test_single_precision_costs_no_more_than_its_fields():
    recording = dense.small()
    single = dense.small(dtype=torch.float32)
    positions = dense.truth_of(recording)[0]
    double = replace(
        recording,
        snapshots=single.snapshots.to(torch.complex128),
        channel=single.channel.to(torch.complex128),
        codes=single.codes.to(torch.complex128),
    )
    found, expected = conditional_cost(at(single, positions)), conditional_cost(at(double, positions))
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=0)


def test_coincident_sources_are_one():
    recording = dense.small()
    positions = dense.truth_of(recording)[0][:, :1]
    twice = at(recording, positions.expand(-1, 2, -1), derivatives=True)
    torch.testing.assert_close(
        conditional_cost(twice), conditional_cost(at(recording, positions)), rtol=1e-9, atol=0
    )
    assert all(part.isfinite().all() for part in conditional(twice))


def test_scenes_of_zeros_have_a_likelihood():
    recording = dense.small()
    silent = replace(recording, snapshots=torch.zeros_like(recording.snapshots))
    parts = conditional(at(silent, dense.truth_of(recording)[0], derivatives=True))
    assert all(part.isfinite().all() for part in parts)
    assert likelihood._SMALLEST_COST > 0


@pytest.mark.parametrize("noise", [1e-3, 1e-16])
def test_powers_of_coincident_sources_add_up(noise):
    """Also so far above the noise that nothing of it is left in the sums of single numbers."""
    recording = dense.small()
    place, level = dense.truth_of(recording)[0][:, :1], torch.full((5,), noise, dtype=torch.float64)
    once = at(recording, place, derivatives=True)
    twice = at(recording, place.expand(-1, 3, -1), derivatives=True)
    shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).expand(5, 3)
    found = unconditional(twice, shares, level)
    assert all(part.isfinite().all() for part in found)
    expected = unconditional(once, torch.ones(5, 1, dtype=torch.float64), level)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-9 if noise > 1e-9 else 1e-2, atol=0)
