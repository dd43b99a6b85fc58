"""Assignment of heads to sources, against scipy."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from rismusic.errors import InputError
from rismusic.nn.losses import assign


@pytest.mark.parametrize(("heads", "sources"), [(1, 1), (3, 3), (5, 5), (8, 5), (9, 2), (7, 6)])
def test_costs_as_little_as_the_hungarian_algorithm(generator, heads, sources):
    cost = torch.randn(50, heads, sources, generator=generator, dtype=torch.float64)
    partner = assign(cost)
    for scene in range(50):
        rows, columns = linear_sum_assignment(cost[scene].numpy())
        assert partner[scene, columns].tolist() == rows.tolist()


def test_heads_are_used_once_even_where_costs_tie(generator):
    cost = torch.randint(0, 3, (200, 6, 4), generator=generator).float()
    partner = assign(cost)
    for scene in range(200):
        chosen = partner[scene].tolist()
        assert len(set(chosen)) == 4
        least = cost[scene][linear_sum_assignment(cost[scene].numpy())].sum()
        assert sum(cost[scene, head, source] for source, head in enumerate(chosen)) == least


def test_empty_places_take_what_is_left(generator):
    cost = torch.randn(40, 5, 5, generator=generator)
    cost[:, :, [1, 4]] = 0
    partner = assign(cost)
    for scene in range(40):
        rows, columns = linear_sum_assignment(cost[scene][:, [0, 2, 3]].numpy())
        assert partner[scene, [0, 2, 3]][columns].tolist() == rows.tolist()
        assert sorted(partner[scene].tolist()) == list(range(5))


def test_a_batch_is_its_scenes(generator):
    cost = torch.randn(6, 5, 3, generator=generator)
    assert torch.equal(assign(cost), torch.cat([assign(one[None]) for one in cost]))


def test_refuses_what_it_cannot_assign(generator):
    with pytest.raises(InputError, match="2 heads cannot be assigned to 3 sources"):
        assign(torch.zeros(1, 2, 3))
    with pytest.raises(InputError, match="at most 10 sources"):
        assign(torch.zeros(1, 12, 11))
