from __future__ import annotations

import math

import torch

from rismusic.array import Panel
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.nn.inference import SpatialPrior
from rismusic.spec import PanelSpec

VOLUME = Volume(math.radians(60), math.radians(30), 0.5, 10.0)


def grid_of() -> SearchGrid:
    return SearchGrid.cover(Panel.from_spec(PanelSpec(rows=6, columns=6)), VOLUME, 2.0)


def place_of(grid: SearchGrid, point: int) -> torch.Tensor:
    """Azimuth, elevation, 1/range of a point."""
    return torch.stack((grid.azimuth[point], grid.elevation[point], 1 / grid.range[point])).double()


def test_shares_of_points_that_are_next_count_and_no_others():
    grid = grid_of()
    X, Y, Z = grid.shape
    x, y, z = X // 2, Y // 2, Z // 2
    point = (x * Y + y) * Z + z
    next_one, far = point + Y * Z, point + 2 * Y * Z
    share = torch.full((2, len(grid)), 1e-9)
    share[0, point], share[0, next_one], share[0, far] = 0.25, 0.15, 0.6
    share[1, far] = 1.0
    belief = SpatialPrior.of(share.log(), grid, 1.0)
    positions = place_of(grid, point).expand(2, 1, 3)
    there = torch.ones(2, 1, dtype=torch.bool)
    said = belief(torch.tensor([0, 1]), positions, there)
    torch.testing.assert_close(said.exp(), torch.tensor([0.4, 1e-2], dtype=torch.float64), rtol=1e-5, atol=0)
    # Scenes are told apart by their numbers, also those of a part.
    assert torch.equal(belief(torch.tensor([1, 0]), positions, there), said.flip(0))
    assert torch.equal(belief[torch.tensor([1])](torch.tensor([0]), positions[:1], there[:1]), said[1:])


def test_k_sources_share_the_map_and_no_probability_passes_one():
    grid = grid_of()
    X, Y, Z = grid.shape
    points = [(X // 4 * Y + Y // 2) * Z + 1, (3 * X // 4 * Y + Y // 2) * Z + 1]
    share = torch.full((1, len(grid)), 1e-9)
    share[0, points[0]], share[0, points[1]] = 0.7, 0.3
    belief = SpatialPrior.of(share.log(), grid, 1.0)
    positions = torch.stack([place_of(grid, point) for point in points])[None]
    zero = torch.tensor([0])
    both = belief(zero, positions, torch.tensor([[True, True]]))
    torch.testing.assert_close(both.exp(), torch.tensor([0.6], dtype=torch.float64), rtol=1e-4, atol=0)
    one = belief(zero, positions, torch.tensor([[True, False]]))
    torch.testing.assert_close(one.exp(), torch.tensor([0.7], dtype=torch.float64), rtol=1e-4, atol=0)


def test_lengths_count_in_units_of_the_wavelength():
    """The same place in wavelengths, seen in a recording of half the wavelength: half as far, as probable."""
    grid = SearchGrid.cover(Panel.from_spec(PanelSpec(rows=12, columns=12)), VOLUME, 4.0)
    X, Y, Z = grid.shape
    assert Z > 6
    z = Z // 3
    point = (X // 2 * Y + Y // 2) * Z + z
    share = torch.full((1, len(grid)), 1e-9)
    share[0, point] = 1.0
    place = place_of(grid, point).expand(1, 1, 3).clone()
    there, zero = torch.ones(1, 1, dtype=torch.bool), torch.tensor([0])
    assert abs(float(SpatialPrior.of(share.log(), grid, 1.0)(zero, place, there))) < 1e-4
    place[..., 2] *= 2
    assert abs(float(SpatialPrior.of(share.log(), grid, 2.0)(zero, place, there))) < 1e-4
    assert float(SpatialPrior.of(share.log(), grid, 1.0)(zero, place, there)) < -1
