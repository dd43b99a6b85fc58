from __future__ import annotations

import dense
import numpy as np
import pytest
import torch

from rismusic.array import Panel, steering
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.estimation.search import Dictionary, compiled_search, real_products, scenes_first
from rismusic.operator import Link


def pieces(spec, scenes=3, oversampling=1.5):
    recording = dense.small(spec, scenes, dtype=torch.float32)
    points = Dictionary.of(dense.grid_for(recording, oversampling))
    ((_, columns),) = points.columns()
    return recording, points, columns


def dense_fields(recording, scene, points):
    return dense.fields(recording, scene, points.positions(torch.arange(len(points))))


def test_points_are_those_inside_and_columns_their_waves(monkeypatch, memory_budget):
    """On a grid with points outside; whole, and a few points at a time."""
    grid = SearchGrid.cover(Panel.uniform_planar(), Volume(1.0, 1.0, 0.5, 10.0), 1.0)
    points = Dictionary.of(grid)
    assert len(points) == int(grid.inside.sum()) < len(grid)
    place = points.positions(torch.arange(len(points)))
    torch.testing.assert_close(place[:, 0], grid.azimuth[grid.inside])
    torch.testing.assert_close(place[:, 1], grid.elevation[grid.inside])
    torch.testing.assert_close(place[:, 2], 1 / grid.range[grid.inside])
    A = steering(grid.panel, place[:, 0], place[:, 1], 1 / place[:, 2]).to(torch.complex64)
    ((whole, columns),) = points.columns()
    assert whole == slice(0, len(points))
    torch.testing.assert_close(columns, torch.cat((A.real, A.imag)), rtol=0, atol=1e-5)
    memory_budget(4 * 8 * 144 * 50)
    blocks = list(points.columns())
    assert len(blocks) > 3
    places = torch.cat([torch.arange(len(points))[part] for part, _ in blocks])
    assert torch.equal(places, torch.arange(len(points)))
    torch.testing.assert_close(torch.cat([part for _, part in blocks], dim=1), columns, rtol=0, atol=1e-6)


def test_the_steering_vectors_are_used_in_parts_of_a_quarter_of_the_budget(memory_budget):
    """So are those that are kept: products with all points of a large grid took gibibytes."""
    grid = SearchGrid.cover(Panel.uniform_planar(), Volume(1.0, 1.0, 0.5, 10.0), 1.0)
    points = Dictionary.of(grid)
    budget = 8 * 144 * len(grid)  # so that they are kept
    memory_budget(budget)
    blocks = list(points.columns())
    assert len(blocks) == 4
    torch.testing.assert_close(torch.cat([columns for _, columns in blocks], dim=1), grid.inside_steering)
    assert max(columns.numel() * columns.element_size() for _, columns in blocks) <= budget / 4
    assert compiled_search(grid) is None


def test_products_are_complex_ones(generator):
    rows = torch.randn(2, 3, 5, generator=generator, dtype=torch.complex128)
    a = torch.randn(5, 4, generator=generator, dtype=torch.complex128)
    found = real_products(rows, torch.cat((a.real, a.imag)).float())
    assert found.shape == (2, 3, 2, 4)
    expected = rows @ a
    torch.testing.assert_close(torch.complex(*found.double().unbind(2)), expected, rtol=1e-5, atol=1e-5)


def test_a_scene_axis_where_there_is_none():
    assert scenes_first(torch.zeros(4, 5), 2).shape == (1, 4, 5)
    assert scenes_first(torch.zeros(3, 4, 5), 2).shape == (3, 4, 5)


@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_fields_are_the_dense_ones(system):
    recording, points, columns = pieces(dense.SYSTEMS[system])
    fields = points.fields(recording.link, columns)
    assert len(fields) == (3 if system == "own" else 1)
    for scene in range(3):
        expected = dense_fields(recording, scene, points)
        found = fields[min(scene, len(fields) - 1)].unflatten(1, (-1, 2))
        found = torch.complex(found[:, :, 0], found[:, :, 1]).expand(expected.shape)
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_energies_of_few_outputs_are_exact(system, memory_budget):
    """Up to four directions of the channel are all there are; scenes a few at a time as well."""
    spec = dense.SYSTEMS[system]
    if spec.channel.kind != "direct":
        spec = spec.replace(channel=spec.channel.replace(antennas=4))
    recording, points, columns = pieces(spec)
    found = points.energies(recording.link, columns)
    for scene in range(3):
        expected = (np.abs(dense_fields(recording, scene, points)) ** 2).sum(1)
        near = found[min(scene, len(found) - 1)].expand(len(expected), -1)
        np.testing.assert_allclose(near, expected, rtol=1e-4)
    memory_budget(1)
    torch.testing.assert_close(points.energies(recording.link, columns), found)


@pytest.mark.parametrize("system", ["own", "one"])
def test_energies_of_many_outputs_are_the_strong_directions_and_an_even_rest(system):
    """The documented sum, written out; and what it is an approximation of, in the mean and the median."""
    recording, points, columns = pieces(dense.SYSTEMS[system])
    found = points.energies(recording.link, columns)
    place = points.positions(torch.arange(len(points)))
    A = steering(recording.panel, place[:, 0], place[:, 1], 1 / place[:, 2]).numpy()
    N = len(A)
    for scene in range(3 if system == "own" else 1):
        part = recording.link[scene : scene + 1] if system == "own" else recording.link
        H, codes = (scenes_first(value, 2)[0].numpy().astype(complex) for value in (part.channel, part.codes))
        values, u = np.linalg.eigh(H @ H.conj().T)
        strong, rest = values[-4:], values[:-4].sum() / (N - 4)
        v = H.conj().T @ u[:, -4:] / np.sqrt(strong)
        for code, energy in zip(codes, found[scene].numpy(), strict=True):
            wave = code[:, None] * A
            inner = np.abs(v.conj().T @ wave) ** 2
            expected = strong @ inner + rest * ((np.abs(wave) ** 2).sum(0) - inner.sum(0))
            np.testing.assert_allclose(energy, expected, rtol=1e-4)
        exact = (np.abs(dense_fields(recording, scene, points)) ** 2).sum(1)
        error = np.abs(found[scene].numpy() - exact) / exact
        assert np.median(error) < 0.4
        np.testing.assert_allclose(found[scene].mean(), exact.mean(), rtol=0.1)


@pytest.mark.parametrize("known", ["codes", "channel"])
def test_a_link_may_have_codes_only_or_a_channel_only(known, generator):
    recording, points, columns = pieces(dense.SMALL.replace(channel={"antennas": 4}))
    A = torch.complex(*columns.chunk(2))
    part = getattr(recording.link, known)
    link = Link(**{known: part})
    fields = part[:, :, :, None] * A if known == "codes" else (part @ A)[:, None]
    found = points.fields(link, columns).unflatten(2, (-1, 2))
    found = torch.complex(found[..., 0, :], found[..., 1, :])
    torch.testing.assert_close(found, fields, rtol=1e-4, atol=1e-5)
    energy = points.energies(link, columns)
    expected = fields.abs().square().sum(-2)
    torch.testing.assert_close(energy.expand(expected.shape), expected, rtol=1e-3, atol=1e-5)
