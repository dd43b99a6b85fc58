from __future__ import annotations

import math

import pytest
import torch

from rismusic.array import Panel
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid, Volume, find_peaks, from_cosines, to_cosines
from rismusic.spec import SceneSpec

VOLUME = Volume.from_spec(SceneSpec())


@pytest.fixture(scope="module")
def grid():
    return SearchGrid.cover(Panel.uniform_planar(), VOLUME)


def indices(grid, index):
    _, Y, Z = grid.shape
    return torch.stack((index // (Y * Z), index // Z % Y, index % Z), dim=-1)


def plain_peaks(values, grid, reach=1):
    """Peaks of one scene, point by point: no neighbour inside is higher, none before it is such a point."""
    inside = [place for place in range(len(grid)) if grid.inside[place]]
    position = dict(zip(inside, indices(grid, torch.tensor(inside)).tolist(), strict=True))
    level = values.tolist()

    def around(place):
        return [
            other
            for other in inside
            if max(abs(a - b) for a, b in zip(position[place], position[other], strict=True)) <= reach
        ]

    near = {place: around(place) for place in inside}
    highest = {place for place in inside if level[place] >= max(level[other] for other in near[place])}
    peaks = [
        place for place in highest if not any(other < place for other in near[place] if other in highest)
    ]
    return sorted(peaks, key=lambda place: (-level[place], place))


@pytest.mark.parametrize("separation", [0.0, 0.8, 1.2])
@pytest.mark.parametrize("levels", [None, 5])
def test_against_a_plain_search(separation, levels, generator):
    """Random fields; few levels make many equals."""
    grid = SearchGrid.cover(Panel.uniform_planar(6, 6), VOLUME, 3.0)
    values = torch.rand(3, len(grid), generator=generator)
    if levels:
        values = (values * levels).floor() + 1e-3 * torch.arange(len(grid)).remainder(2)
    peaks = find_peaks(values, grid, 12, separation=separation)
    for scene in range(3):
        expected = plain_peaks(values[scene], grid, reach=max(1, int(separation * 3.0)))
        count = min(12, len(expected))
        chosen = peaks.index[scene][:count].tolist()
        assert sorted(values[scene][chosen].tolist()) == sorted(values[scene][expected[:count]].tolist())
        assert set(chosen) <= set(expected)


def bump(grid, *centres, width=1.2):
    """Gaussian hills (in steps) at centres given as (u_x, u_y, q)."""
    axes = torch.meshgrid(grid.u_x, grid.u_y, grid.q, indexing="ij")

    def hill(height, centre):
        distance = sum(((a - c) / s) ** 2 for a, c, s in zip(axes, centre, grid.step, strict=True))
        return height * torch.exp(-distance / (2 * width**2))

    hills = [hill(*one) for one in centres]
    return torch.stack(hills).amax(0).flatten()


def test_refined_between_the_points(grid):
    """A parabola through a Gaussian hill misses its top by little; the grid point misses it by up to 0.5."""
    offsets = torch.tensor([[0.37, -0.21, 0.45], [-0.49, 0.3, -0.1], [0.0, 0.5, 0.2]]).double()
    base = torch.tensor([float(grid.u_x[12]), float(grid.u_y[8]), float(grid.q[4])]).double()
    step = torch.tensor(grid.step).double()
    centres = base + offsets * step
    values = torch.stack([bump(grid, (1.0, centre.tolist())) for centre in centres])
    peaks = find_peaks(values, grid, 1)
    found = torch.stack(to_cosines(peaks.azimuth, peaks.elevation, peaks.range), dim=-1)[:, 0]
    assert ((found - centres) / step).abs().max() < 0.05
    assert peaks.azimuth.dtype == torch.float64


def test_the_highest_first_and_apart(grid):
    a = (1.0, (grid.u_x[5].item(), grid.u_y[5].item(), grid.q[2].item()))
    b = (2.0, (grid.u_x[15].item(), grid.u_y[9].item(), grid.q[5].item()))
    c = (0.9, (grid.u_x[7].item(), grid.u_y[5].item(), grid.q[2].item()))
    values = bump(grid, a, b, c, width=0.6)
    peaks = find_peaks(values[None], grid, 3)
    assert indices(grid, peaks.index[0]).tolist() == [[15, 9, 5], [5, 5, 2], [7, 5, 2]]
    torch.testing.assert_close(peaks.height[0], torch.tensor([2.0, 1.0, 0.9]).double())
    apart = find_peaks(values[None], grid, 3, separation=1.0)
    assert indices(grid, apart.index[0])[:2].tolist() == [[15, 9, 5], [5, 5, 2]]
    gap = (indices(grid, apart.index[0])[:, None] - indices(grid, apart.index[0])[None]).abs().amax(-1)
    assert (gap[~torch.eye(3, dtype=torch.bool)] > 2).all()


@pytest.mark.parametrize("count", [1, 4, 30])
def test_always_as_many_as_asked_for(count, grid):
    """One hill, or none at all: the rest are filled, distinct and inside."""
    middle = (1.0, (grid.u_x[9].item(), grid.u_y[7].item(), grid.q[3].item()))
    values = torch.stack((bump(grid, middle), torch.zeros(len(grid)).double()))
    peaks = find_peaks(values, grid, count)
    assert indices(grid, peaks.index[0])[0].tolist() == [9, 7, 3]
    for index in peaks.index:
        assert len(set(index.tolist())) == count
        assert grid.inside[index].all()
        place = indices(grid, index)
        gap = (place[:, None] - place[None]).abs().amax(-1) + 99 * torch.eye(count, dtype=torch.int64)
        assert count == 1 or gap.min() > 1


def test_every_point_of_a_small_grid_can_be_asked_for():
    grid = SearchGrid.cover(Panel.uniform_planar(2, 2), VOLUME, 1.0)
    values = torch.arange(2 * len(grid)).reshape(2, -1).double()
    peaks = find_peaks(values, grid, int(grid.inside.sum()))
    assert peaks.index.sort(1).values.tolist() == [torch.where(grid.inside)[0].tolist()] * 2


def test_points_outside_are_never_taken(grid):
    values = torch.zeros(1, len(grid))
    values[0, ~grid.inside] = 1.0
    peaks = find_peaks(values, grid, 50)
    assert grid.inside[peaks.index].all()
    assert (peaks.height == 0).all()


def test_positions_stay_inside_the_volume(grid, generator):
    peaks = find_peaks(torch.rand(20, len(grid), generator=generator), grid, 40)
    assert (peaks.azimuth.abs() <= VOLUME.azimuth_max + 1e-6).all()
    assert (peaks.elevation.abs() <= VOLUME.elevation_max + 1e-6).all()
    assert (peaks.range >= VOLUME.range_min - 1e-6).all()
    assert (peaks.range <= VOLUME.range_max + 1e-5).all()


def test_batch_is_loop_and_leading_axes_are_kept(grid, generator):
    values = torch.rand(2, 3, len(grid), generator=generator)
    whole = find_peaks(values, grid, 4)
    for i in range(2):
        for j in range(3):
            alone = find_peaks(values[i, j], grid, 4)
            assert torch.equal(alone.index, whole.index[i, j])
            assert torch.equal(alone.azimuth, whole.azimuth[i, j])


def test_a_line_of_elements_works():
    grid = SearchGrid.cover(Panel.uniform_planar(1, 16), VOLUME)
    values = bump(grid, (1.0, (grid.u_x[10].item() + 0.3 * grid.step[0], 0.0, grid.q[3].item())))
    peaks = find_peaks(values[None], grid, 2)
    azimuth, elevation, _ = from_cosines(
        grid.u_x[10:11] + 0.3 * grid.step[0], torch.zeros(1).double(), grid.q[:1]
    )
    assert (peaks.azimuth[0, 0] - azimuth).abs() < math.radians(0.2)
    assert peaks.elevation[0, 0] == elevation


def test_refusals(grid, untyped):
    values = torch.rand(2, len(grid))
    broken = values.clone()
    broken[0, 3] = math.nan
    cases = [
        ("values", lambda: find_peaks(values[:, :-1], grid, 1)),
        ("values", lambda: find_peaks(broken, grid, 1)),
        ("count", lambda: find_peaks(values, grid, 0)),
        ("count", lambda: find_peaks(values, grid, len(grid) + 1)),
        ("separation", lambda: find_peaks(values, grid, 1, separation=-1.0)),
        ("separation", lambda: find_peaks(values, grid, 1, separation=math.nan)),
    ]
    for field, attempt in cases:
        with pytest.raises(InputError) as caught:
            attempt()
        assert caught.value.field == field
