from __future__ import annotations

import math

import pytest
import torch

from rismusic.array import Panel, steering
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid, Volume, from_cosines, to_cosines
from rismusic.spec import SceneSpec

VOLUME = Volume.from_spec(SceneSpec())


def irregular(generator, elements=100):
    unit = torch.rand(elements, 3, generator=generator, dtype=torch.float64)
    place = unit * torch.tensor([1.8, 1.2, 0.04])
    return Panel(place - place.mean(0), 0.3)


def inside(generator, count, *, even_in="range"):
    unit = torch.rand(3, count, generator=generator, dtype=torch.float64)
    azimuth, elevation = (2 * unit[0] - 1) * math.pi / 3, (2 * unit[1] - 1) * math.pi / 6
    distance = 0.5 + 9.5 * unit[2] if even_in == "range" else 1 / (0.1 + 1.9 * unit[2])
    return azimuth, elevation, distance


def best_match(grid, place):
    A = grid.steering()[:, grid.inside]
    a = steering(grid.panel, *(value.float() for value in place))
    return (A.mH @ a).abs().square().amax(0)


def test_default_size():
    assert SearchGrid.cover(Panel.uniform_planar(), VOLUME).shape == (26, 16, 8)


@pytest.mark.parametrize("even_in", ["range", "inverse range"])
@pytest.mark.parametrize("kind", ["12x12", "8x16", "irregular"])
def test_no_point_of_the_volume_is_missed(kind, even_in, generator):
    """The documented floor; a grid of half the density must fall below it, or the test could not fail."""
    panel = irregular(generator) if kind == "irregular" else Panel.uniform_planar(*map(int, kind.split("x")))
    place = inside(generator, 3000, even_in=even_in)
    for wave, floor in (("uniform", 0.65), ("spherical", 0.64)):
        match = best_match(SearchGrid.cover(panel.replace(wave=wave), VOLUME), place)
        assert match.min() >= floor
    assert match.mean() >= 0.87
    assert best_match(SearchGrid.cover(panel, VOLUME, 1.25), place).min() < 0.5


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_step_costs_the_same_along_every_axis(axis, generator):
    """What the steps are derived from: |a^H a'|^2 = 1 - g step^2, about equal in all three."""
    grid = SearchGrid.cover(Panel.uniform_planar(), VOLUME)
    azimuth, elevation, distance = inside(generator, 2000, even_in="inverse range")
    place = list(to_cosines(azimuth * 0.5, elevation * 0.5, distance))
    here = steering(grid.panel, *from_cosines(*place))
    place[axis] = place[axis] + 0.25 * grid.step[axis]
    there = steering(grid.panel, *from_cosines(*place))
    loss = 1 - (here.conj() * there).sum(-2).abs().square().mean()
    assert 0.015 < loss < math.pi**2 / 3 * (0.25 / 2.5) ** 2


def test_cosines_and_back(generator):
    place = inside(generator, 50)
    for value, again in zip(place, from_cosines(*to_cosines(*place)), strict=True):
        torch.testing.assert_close(again, value, rtol=1e-12, atol=1e-12)


def test_cosines_that_are_no_direction_are_moved_to_the_rim():
    u_x, u_y = torch.tensor([0.9, 2.0]).double(), torch.tensor([0.9, 0.0]).double()
    azimuth, elevation, _ = from_cosines(u_x, u_y, torch.ones(2).double())
    again = to_cosines(azimuth, elevation, torch.ones(2).double())
    torch.testing.assert_close(torch.hypot(again[0], again[1]), torch.ones(2).double(), rtol=0, atol=2e-6)
    torch.testing.assert_close(again[0][0], again[1][0], rtol=1e-9, atol=0)
    assert azimuth[1] < math.pi / 2


def test_points_lie_where_their_axes_say():
    grid = SearchGrid.cover(Panel.uniform_planar(4, 6), VOLUME)
    X, Y, Z = grid.shape
    u_x, u_y, q = (value.reshape(X, Y, Z) for value in to_cosines(grid.azimuth, grid.elevation, grid.range))
    keep = grid.inside.reshape(X, Y, Z)
    for measured, axis in (
        (u_x, grid.u_x[:, None, None]),
        (u_y, grid.u_y[None, :, None]),
        (q, grid.q[None, None, :]),
    ):
        torch.testing.assert_close(measured[keep], axis.expand(X, Y, Z)[keep], rtol=1e-9, atol=1e-9)


def test_inside_is_the_volume_up_to_half_a_step(generator):
    grid = SearchGrid.cover(Panel.uniform_planar(), VOLUME)
    u_x, u_y = grid.u_x.repeat_interleave(16 * 8), grid.u_y.repeat_interleave(8).repeat(26)
    shifts = torch.linspace(-0.5, 0.5, 41).double()
    moves = torch.cartesian_prod(shifts * grid.step[0], shifts * grid.step[1])
    azimuth, elevation, _ = from_cosines(
        u_x[:, None] + moves[:, 0],
        u_y[:, None] + moves[:, 1],
        grid.q.repeat(26 * 16)[:, None].expand(-1, 1681),
    )
    near = (azimuth.abs() <= VOLUME.azimuth_max + 1e-9) & (elevation.abs() <= VOLUME.elevation_max + 1e-9)
    assert torch.equal(near.any(1) & (u_x**2 + u_y**2 < 1), grid.inside)
    assert not grid.inside.all()


def test_steering_is_kept_and_its_blocks_agree(memory_budget):
    grid = SearchGrid.cover(Panel.uniform_planar(5, 5), VOLUME)
    A = grid.steering()
    assert grid.steering() is A
    assert A.dtype == torch.complex64
    assert grid.steering(torch.complex128).dtype == torch.complex128
    memory_budget(2**18)
    blocks = [block for _, block in grid.blocks(torch.complex64)]
    assert len(blocks) > 3
    torch.testing.assert_close(torch.cat(blocks, dim=1), A)
    expected = steering(grid.panel, grid.azimuth, grid.elevation, grid.range)
    torch.testing.assert_close(grid.steering(torch.complex128), expected, rtol=0, atol=0)


def test_a_line_of_elements_has_one_elevation():
    X, Y, Z = SearchGrid.cover(Panel.uniform_planar(1, 16), VOLUME).shape
    assert X > 20
    assert Y == 1
    assert Z > 5


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("volume.azimuth_max", (60.0, 0.5, 0.5, 10.0)),
        ("volume.elevation_max", (1.0, -0.1, 0.5, 10.0)),
        ("volume.range_min", (1.0, 0.5, 0.0, 10.0)),
        ("volume.range_min", (1.0, 0.5, 1e-310, 10.0)),  # its inverse is infinite
        ("volume.range_max", (1.0, 0.5, 0.5, 0.4)),
        ("volume.range_max", (1.0, 0.5, 0.5, math.nan)),
        ("volume.azimuth_max", (math.nan, 0.5, 0.5, 10.0)),
    ],
)
def test_impossible_volumes(field, values):
    with pytest.raises(InputError) as caught:
        Volume(*values)
    assert caught.value.field == field


def test_impossible_grids():
    with pytest.raises(InputError, match="oversampling"):
        SearchGrid.cover(Panel.uniform_planar(), VOLUME, 0.0)
    with pytest.raises(InputError, match="panel"):
        SearchGrid.cover(Panel(torch.zeros(2, 4, 3), 0.3), VOLUME)
