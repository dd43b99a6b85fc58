"""The search of all points against both criteria written out with dense matrices."""

from __future__ import annotations

from dataclasses import replace

import dense
import numpy as np
import pytest
import torch

from rismusic.estimation import search
from rismusic.estimation.maximum_likelihood import fit_power_noise
from rismusic.estimation.search import (
    CandidateSearch,
    Dictionary,
    GridSearch,
    Residual,
    likelihood_gain,
    project_out,
    received_fields,
)

CRITERIA = ["conditional", "unconditional"]
# Powers of a new source that the dense form tries.
POWERS = np.concatenate(([0], np.geomspace(1e-4, 30, 300)))


def prepared(system, criterion, scenes=6, *, known=1, **settings):
    """A recording of two sources, its search, and the scenes without the first ``known`` of them."""
    recording = dense.small(dense.SYSTEMS[system], scenes, snr_db=8.0, **settings)
    there, active = (part[:, :known] for part in dense.truth_of(recording))
    power_noise = None if criterion == "conditional" else fit_power_noise(recording, there, active)
    search = GridSearch(Dictionary.of(dense.grid_for(recording)), recording)
    return recording, search, project_out(recording, there, active, power_noise), there, power_noise


def brute_force(recording, scene, there, points, power_noise):
    """What each point gains, [P]: by least squares, or by the covariance at the best of many powers.

    Also the least share of its energy that stands outside the known sources' fields, [P].
    """
    known, G = (dense.fields(recording, scene, place) for place in (there, points))
    y = recording.snapshots[scene].to(torch.complex128).numpy()
    outside = np.stack([Gl - C @ (np.linalg.pinv(C) @ Gl) for C, Gl in zip(known, G, strict=True)])
    energy = (np.abs(outside) ** 2).sum(1)
    share = (energy / (np.abs(G) ** 2).sum(1)).min(0)
    if power_noise is None:
        return (np.abs(np.einsum("lmp,lm->lp", outside.conj(), y)) ** 2 / energy).sum(0), share
    power, noise = power_noise[0][scene].numpy(), float(power_noise[1][scene])
    gain = np.zeros((len(POWERS), len(points)))
    for C, Gl, data in zip(known, G, y, strict=True):
        W = np.linalg.inv((C * power) @ C.conj().T + noise * np.eye(len(data)))
        own = (Gl.conj() * (W @ Gl)).sum(0).real
        pull = np.abs(Gl.conj().T @ (W @ data)) ** 2
        # det(R + p g g^H) = det(R) (1 + p g^H W g), and the inverse by Sherman and Morrison
        gain += POWERS[:, None] * pull / (1 + POWERS[:, None] * own) - np.log1p(POWERS[:, None] * own)
    return gain.max(0), share


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_the_best_point_and_its_gain_are_those_of_the_dense_form(system, criterion):
    """All points of every scene. Three steps towards the best power may leave a part of a small gain."""
    recording, search, rest, there, power_noise = prepared(system, criterion)
    scenes, P = torch.arange(6), len(search.dictionary)
    everything = torch.arange(P)
    points = search.dictionary.positions(everything)
    dense_form = [brute_force(recording, i, there[i], points, power_noise) for i in range(6)]
    expected, share = (np.stack(part) for part in zip(*dense_form, strict=True))
    worth = likelihood_gain(rest, received_fields(recording, points.expand(6, -1, -1))).numpy()
    apart = share > 2e-3  # nearer to a known source a floor keeps the point down
    assert apart.mean() > 0.98
    assert (worth <= expected * (1 + 1e-3) + 1e-6).all()
    if power_noise is None:
        np.testing.assert_allclose(worth[apart], expected[apart], rtol=1e-6)
    else:
        great = apart & (expected > 0.5 * expected.max(1, keepdims=True))
        np.testing.assert_allclose(worth[great], expected[great], rtol=0.05)
    found, _ = search.best(scenes, rest, 4)
    assert torch.equal(found[:, 0], torch.as_tensor(worth.argmax(1)))
    assert torch.equal(search.place(scenes, rest), points[found[:, 0]])
    # Of a few places in each scene, the best one.
    few = torch.stack([everything[i::40] for i in range(6)])
    listed = CandidateSearch(search.grid, recording, points[few])
    chosen = few[torch.arange(6), torch.as_tensor(np.take_along_axis(worth, few.numpy(), 1).argmax(1))]
    assert torch.equal(listed.place(scenes, rest), points[chosen])
    assert torch.equal(
        listed.place(
            scenes[[4, 1]],
            Residual(
                rest.data[[4, 1]],
                rest.basis.expand(6, -1, -1, -1)[[4, 1]],
                None if rest.noise_variance is None else rest.noise_variance[[4, 1]],
            ),
        ),
        points[chosen[[4, 1]]],
    )
    assert (np.take_along_axis(expected, found[:, :1].numpy(), 1)[:, 0] >= 0.98 * expected.max(1)).all()
    ranked = np.take_along_axis(worth, found.numpy(), 1)
    assert (np.diff(ranked) <= 0).all()
    assert np.array_equal(ranked[:, 1], np.sort(worth, axis=1)[:, -2])


@pytest.mark.parametrize("system", ["own", "one"])
def test_the_gain_is_that_of_the_likelihood_itself(system):
    """The dense form above against likelihoods of both sources: no formula in common."""
    for criterion in CRITERIA:
        recording, search, _, there, power_noise = prepared(system, criterion, 1)
        point = search.dictionary.positions(torch.tensor([len(search.dictionary) // 3]))
        both = torch.cat((there[0], point))
        gain = brute_force(recording, 0, there[0], point, power_noise)[0][0]
        if power_noise is None:
            ends = [dense.conditional_cost(recording, 0, place) for place in (there[0], both)]
            assert gain == pytest.approx(ends[0] - ends[1], rel=1e-9)
            continue
        p, noise = power_noise[0][0].numpy(), float(power_noise[1][0])
        before = dense.unconditional_value(recording, 0, there[0], p, noise)
        after = [dense.unconditional_value(recording, 0, both, np.append(p, new), noise) for new in POWERS]
        assert gain == pytest.approx(before - min(after), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_what_was_found_is_taken_out(system, criterion):
    """The data become the projection, or sigma^2 W y; a basis that takes the same out of any field."""
    recording, _, rest, there, power_noise = prepared(system, criterion, 2, known=2)
    for scene in range(2):
        C = dense.fields(recording, scene, there[scene])
        y = recording.snapshots[scene].numpy()
        basis = rest.basis[scene].expand(len(y), -1, -1).numpy()
        for Cl, Q, data, left in zip(C, basis, y, rest.data[scene].numpy(), strict=True):
            eye = np.eye(len(data))
            if power_noise is None:
                expected = eye - Cl @ np.linalg.pinv(Cl)
            else:
                noise = float(power_noise[1][scene])
                expected = noise * np.linalg.inv(
                    (Cl * power_noise[0][scene].numpy()) @ Cl.conj().T + noise * eye
                )
            np.testing.assert_allclose(eye - Q @ Q.conj().T, expected, atol=1e-8)
            np.testing.assert_allclose(left, expected @ data, atol=1e-8 * np.abs(data).max())


@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_a_weak_source_is_found_once_the_strong_one_is_taken_out(system):
    """Both on points of the grid, without noise, 20 dB apart."""
    recording = dense.small(dense.SYSTEMS[system], 8)
    dictionary = Dictionary.of(dense.grid_for(recording))
    index = torch.tensor([[0.3, 0.7], [0.2, 0.8], [0.6, 0.1], [0.9, 0.4]]).repeat(2, 1) * len(dictionary)
    index = index.long() + torch.arange(8)[:, None]
    places = dictionary.positions(index)
    recording = dense.planted(recording, places, amplitudes=(1.0, 0.1))
    search, scenes = GridSearch(dictionary, recording), torch.arange(8)
    nobody = torch.zeros(8, 0, dtype=torch.bool)
    first = search.best(scenes, project_out(recording, places[:, :0], nobody))[0][:, 0]
    assert torch.equal(first, index[:, 0])
    rest = project_out(recording, places[:, :1], torch.ones(8, 1, dtype=torch.bool))
    assert torch.equal(search.best(scenes, rest)[0][:, 0], index[:, 1])


def test_sources_that_coincide_are_taken_out_once_and_empty_places_not_at_all():
    recording, _, once, there, _ = prepared("own", "conditional")
    twice = project_out(recording, there.expand(-1, 2, -1), torch.ones(6, 2, dtype=torch.bool))
    torch.testing.assert_close(twice.data, once.data)
    padded = torch.cat((there, torch.full_like(there, 0.3)), dim=1)
    active = torch.tensor([True, False]).expand(6, 2)
    torch.testing.assert_close(project_out(recording, padded, active).data, once.data)
    power_noise = fit_power_noise(recording, padded, active)
    loud = (power_noise[0] + torch.tensor([0.0, 1.0]), power_noise[1])
    expected = project_out(recording, there, active[:, :1], (power_noise[0][:, :1], power_noise[1]))
    torch.testing.assert_close(project_out(recording, padded, active, loud).data, expected.data)


def test_a_point_that_a_found_source_covers_is_worth_nothing():
    """On the point itself nothing is left of its field; rounding must not make it the best."""
    recording = dense.small(scenes=4, dtype=torch.float32)
    dictionary = Dictionary.of(dense.grid_for(recording))
    index = torch.tensor([[10], [50], [90], [120]])
    places = dictionary.positions(index)
    recording = dense.planted(recording, places, amplitudes=(1.0,), noise=0.03)
    rest = project_out(recording, places, torch.ones(4, 1, dtype=torch.bool))
    search = GridSearch(dictionary, recording)
    best, _ = search.best(torch.arange(4), rest, 10)
    assert not (best == index).any()


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_a_search_by_blocks_is_the_search(system, criterion, monkeypatch, memory_budget):
    """Energies not kept, points and scenes a few at a time, as for a large panel; and more points than the
    leading ones that are looked at exactly."""
    recording, search, rest, _, _ = prepared(system, criterion, dtype=torch.float32)
    scenes = torch.arange(6)
    expected, _ = search.best(scenes, rest, 60)
    some, _ = search.best(scenes[2:5], rest[2:5], 60)
    assert torch.equal(some, expected[2:5])
    part = search[torch.tensor([4, 2])]
    chosen = Residual(
        rest.data[[4, 2]],
        rest.basis.expand(6, -1, -1, -1)[[4, 2]],
        None if rest.noise_variance is None else rest.noise_variance[[4, 2]],
    )
    assert torch.equal(part.best(scenes[:2], chosen, 60)[0], expected[[4, 2]])
    assert all(len(set(row)) == 60 for row in expected.tolist())
    memory_budget(2**15)
    monkeypatch.setattr("rismusic.estimation.search.REMADE", 1)
    blocks = GridSearch(Dictionary.of(dense.grid_for(recording)), recording)
    assert len(list(blocks.dictionary.columns())) > 3
    assert len(list(blocks._scores(scenes, rest))) > len(list(blocks.dictionary.columns()))
    found, _ = blocks.best(scenes, rest, 60)
    assert torch.equal(found[:, :10], expected[:, :10])
    # Farther down nearly equal points may change places by rounding, and those of no gain do.
    places = map(search.dictionary.positions, (found, expected))
    worth = [
        likelihood_gain(rest, received_fields(recording[scenes], place)).sort(dim=1).values
        for place in places
    ]
    torch.testing.assert_close(*worth, rtol=1e-3, atol=0.1)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_unit_of_the_data_changes_nothing(criterion):
    """Watts of a real receiver: a noise variance of 1e-20 has a square that single precision does not."""
    recording, search, rest, there, power_noise = prepared("own", criterion, dtype=torch.float32)
    expected, gain = search.best(torch.arange(6), rest, 4)
    for scale in (1e-10, 1e10):
        scaled = replace(recording, snapshots=recording.snapshots * scale)
        power = None if power_noise is None else (power_noise[0] * scale**2, power_noise[1] * scale**2)
        rest = project_out(scaled, there, torch.ones(6, 1, dtype=torch.bool), power)
        found, same = GridSearch(search.dictionary, scaled).best(torch.arange(6), rest, 4)
        assert torch.equal(found, expected)
        unit = scale**2 if criterion == "conditional" else 1.0  # an energy, or nats
        torch.testing.assert_close(same, gain * unit, rtol=1e-3, atol=1e-3 * unit)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_the_compiled_search_gives_the_values_of_the_torch_form(system, criterion, monkeypatch):
    """For all points, with energies that are kept and with energies of each call."""
    pytest.importorskip("numba")
    recording, compiled, rest, *_ = prepared(system, criterion)
    monkeypatch.setattr(search, "kernel_for", lambda recording: None)
    plain = GridSearch(compiled.dictionary, recording)
    assert plain._compiled is None
    scenes = torch.arange(6)
    expected = torch.empty(6, len(plain.dictionary))
    for points, part, score in plain._scores(scenes, rest):
        expected[part, points] = score
    for keep in (True, False):
        if not keep:
            compiled._energies = None
        ((_, _, found),) = compiled._scores(scenes, rest)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_compiled_sums_of_blocks_give_the_values_of_the_torch_form(system, criterion, monkeypatch):
    """Grids that are too large for products with all points at once."""
    kernel = pytest.importorskip("rismusic.estimation.search_kernel")
    recording, _, rest, *_ = prepared(system, criterion)
    monkeypatch.setattr(search, "compiled_search", lambda grid: None)
    made = GridSearch(Dictionary.of(dense.grid_for(recording)), recording)
    calls = []
    monkeypatch.setattr(kernel, "worth_beside", spied(kernel.worth_beside, calls))
    found = [score for _, _, score in made._scores(torch.arange(6), rest)]
    assert len(calls) == len(found)
    monkeypatch.setattr(search, "compiled_fits", lambda: None)
    expected = [score for _, _, score in made._scores(torch.arange(6), rest)]
    assert len(calls) == len(found)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, check_dtype=False)


def spied(function, calls):
    """A function that notes its calls."""

    def noted(*args):
        calls.append(args)
        return function(*args)

    return noted


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("compiled", [True, False])
def test_many_snapshots_of_an_array_are_searched_by_their_sum_of_squares(criterion, compiled, monkeypatch):
    """More than it has elements; the other form weighs each snapshot."""
    if compiled:
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(search, "kernel_for", lambda recording: None)
    elements = dense.DIRECT.panel.rows * dense.DIRECT.panel.columns
    _, made, rest, *_ = prepared("direct", criterion, codebook={"snapshots": 2 * elements})
    assert rest.data.shape[1] == 2 * elements
    ((_, _, found),) = made._scores(torch.arange(6), rest)
    monkeypatch.setattr(search, "few_snapshots", lambda link, data: (data, 1))
    ((_, _, expected),) = made._scores(torch.arange(6), rest)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
