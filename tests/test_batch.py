"""Records of tensors for a batch of scenes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from rismusic.batch import Batch, choose, concatenate


@dataclass(frozen=True, eq=False)
class Inner(Batch):
    place: Tensor


@dataclass(frozen=True, eq=False)
class Outer(Batch):
    shared: ClassVar[tuple[str, ...]] = ("frame",)

    inner: Inner
    pair: tuple[Tensor, Tensor] | None
    count: Tensor
    frame: Tensor
    name: str = "first"
    weight: Tensor | None = None


def made(scenes: int, width: int, first: float = 0.0, *, pair: bool = True, name: str = "first") -> Outer:
    values = torch.arange(float(scenes)) + first
    both = (values[:, None].expand(-1, width), -values) if pair else None
    return Outer(Inner(values[:, None].expand(-1, width)), both, values.long(), torch.eye(4) * first, name)


def test_scenes_are_taken_from_every_tensor_but_the_shared_ones():
    part = made(5, 2)[torch.tensor([3, 1])]
    assert part.inner.place.tolist() == [[3, 3], [1, 1]]
    assert part.pair is not None
    assert [one.tolist() for one in part.pair] == [[[3, 3], [1, 1]], [-3, -1]]
    assert part.count.tolist() == [3, 1]
    assert part.frame.shape == (4, 4)
    assert part.weight is None
    assert made(5, 2)[2].count.item() == 2


def test_batches_get_places_for_the_largest_number_of_sources():
    whole = concatenate([made(2, 1, name="first"), made(1, 3, 7.0, name="second")])
    assert whole.inner.place.nan_to_num(-1).tolist() == [[0, -1, -1], [1, -1, -1], [7, 7, 7]]
    assert whole.count.tolist() == [0, 1, 7]
    assert whole.name == "first"
    assert torch.equal(whole.frame, torch.zeros(4, 4))


def test_a_part_that_one_batch_lacks_is_left_out():
    assert concatenate([made(1, 1), made(1, 1, pair=False)]).pair is None
    assert concatenate([made(1, 1), made(1, 1)]).pair is not None


def test_replaced_scenes_come_from_the_other_batch():
    old = made(3, 2)
    new = old.replaced(torch.tensor([2, 0]), made(2, 1, 8.0))
    assert new.inner.place.nan_to_num(-1).tolist() == [[9, -1], [1, 1], [8, -1]]
    assert old.count.tolist() == [0, 1, 2]
    with pytest.raises(IndexError, match="Number of indices"):
        old.replaced(torch.tensor([0]), made(2, 1))


def test_each_scene_is_chosen_from_one_of_two():
    best = choose(torch.tensor([True, False, True]), made(3, 2), made(3, 2, 10.0))
    assert best.count.tolist() == [10, 1, 12]
    assert best.inner.place[:, 0].tolist() == [10, 1, 12]
