"""Mirrors of a panel: what is even and odd in them, and sums over the points by classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rismusic import simulate
from rismusic.array import Panel
from rismusic.estimation import symmetry as mirrors
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.estimation.symmetry import ConstantMatrices, Symmetry
from rismusic.nn import statistics
from rismusic.nn.statistics import GridStatistics

VOLUME = Volume(1.0, 0.5, 0.4, 4.0)


def _panel(kind: str) -> Panel:
    uniform = Panel.uniform_planar(4, 5)
    shift = torch.zeros_like(uniform.elements)
    if kind == "one side heavier":
        shift[:, 0] = uniform.elements[:, 0].square() / 3
    if kind == "irregular":
        shift = 0.02 * torch.randn(shift.shape, generator=torch.Generator().manual_seed(0), dtype=shift.dtype)
    return Panel(uniform.elements + shift, uniform.wavelength)


def _grid(kind: str, oversampling: float = 1.1) -> SearchGrid:
    return SearchGrid.cover(_panel(kind), VOLUME, oversampling)


KINDS = {"uniform": 4, "one side heavier": 2, "irregular": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_the_mirrors_of_a_panel(kind):
    grid = _grid(kind)
    found = Symmetry.of(grid)
    assert len(found) == KINDS[kind]
    A = grid.steering(torch.complex128)
    for elements, points in zip(found.elements, found.points, strict=True):
        # The steering vector of a mirrored point is the mirrored steering vector.
        torch.testing.assert_close(A[:, points], A[elements][:, found.points[0]])
    assert found.points.unique().tolist() == list(range(len(grid)))
    torch.testing.assert_close(found.points.flatten()[found.back], torch.arange(len(grid)))


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_even_or_odd(kind):
    grid = _grid(kind)
    found = Symmetry.of(grid)
    A = grid.steering(torch.complex128)
    parts = found.parts(A)
    torch.testing.assert_close(parts.sum(0), A)
    for part, signs in zip(parts, found.signs, strict=True):
        for sign, elements in zip(signs, found.elements, strict=True):
            torch.testing.assert_close(part[elements], part * sign)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_over_points_fall_into_sums_of_classes(kind):
    grid = _grid(kind)
    found = Symmetry.of(grid)
    generator = torch.Generator().manual_seed(1)
    power = torch.rand(2, len(grid), generator=generator)
    A = grid.steering(torch.complex128)
    parts = found.parts(A)[..., found.points[0]]
    folded = found.fold(power).double()
    for scene in range(2):
        C = (A * power[scene].double()) @ A.mH
        whole = sum(
            (parts[a] * folded[found.pairs[a, b], scene]) @ parts[b].mH
            for a in range(len(found))
            for b in range(len(found))
        )
        torch.testing.assert_close(whole, C, rtol=1e-5, atol=1e-5)
    # A value of the points, taken apart and put together again.
    rows = torch.randn(2, len(A), dtype=torch.complex128, generator=generator)
    fields = torch.stack([rows @ part for part in parts])
    together = found.to_points(found.unfold(fields.real.float())) + 1j * found.to_points(
        found.unfold(fields.imag.float())
    )
    torch.testing.assert_close(together, (rows @ A).to(torch.complex64), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [3, 100])
def test_products_with_constant_matrices(count, generator):
    matrices = torch.randn(2, 30, 20, generator=generator)
    rows = torch.randn(2, 30, count, generator=generator).mT  # not contiguous
    constant = ConstantMatrices(matrices)
    for product, expected in zip(constant(rows), rows @ matrices, strict=True):
        torch.testing.assert_close(product, expected, rtol=0, atol=0)
    with torch.inference_mode():
        found = constant(rows)
    assert ("_packed" in vars(constant)) == (count == 100 and torch.backends.mkldnn.is_available())
    for product, expected in zip(found, rows.double() @ matrices.double(), strict=True):
        torch.testing.assert_close(product.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenes", [1, 9])
def test_statistics_are_the_same_without_mirrors(kind, scenes, monkeypatch):
    monkeypatch.setattr(statistics, "_TRUNCATION", 1e-10)
    made = simulate(
        scenes=scenes,
        panel={"rows": 4, "columns": 5},
        channel={"antennas": 6},
        codebook={"snapshots": 5},
        sources=2,
        snr_db=10.0,
    )
    recording = replace(made, elements=_panel(kind).elements, truth=None)
    found = []
    for mirrored in (mirrors._mirrored, lambda *_: None):
        monkeypatch.setattr(mirrors, "_mirrored", mirrored)
        grid = _grid(kind)
        counted = GridStatistics(grid)
        seen = counted.observe(recording)
        share = torch.rand(1, len(grid), generator=torch.Generator().manual_seed(2)) + 1e-3
        power = counted.scale_power(seen, share.expand(scenes, -1))
        # Scales differ: powers are relative to the energy that arrives.
        matched, own = counted(seen, power)
        found.append((len(counted.symmetry), power * seen.gain, power * own, power * matched))
    assert (found[0][0], found[1][0]) == (KINDS[kind], 1)
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-4 * float(other.max()))
