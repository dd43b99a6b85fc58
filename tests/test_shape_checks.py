"""The checks of shapes that all tests run under find wrong arguments and wrong results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from rismusic.array import to_db
from rismusic.covariance import sample_covariance
from shape_checks import jaxtyped

checked = jaxtyped(typechecker=beartype)


@checked
def outer(a: Float[Tensor, "N"], b: Float[Tensor, "M"], turned: bool = False) -> Float[Tensor, "N M"]:
    product = a[:, None] * b
    return product.mT if turned else product


@checked
def added(a: Float[Tensor, "N"], b: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    return outer(a, torch.ones(7))[:, 0] + b  # another M, of another call


@checked
def parts(a: Float[Tensor, "N"]) -> Iterator[Float[Tensor, "M"]]:
    yield outer(a[:1], a)[0]


@checked
@dataclass
class Pair:
    a: Float[Tensor, "N"]
    b: Float[Tensor, "N"]

    @classmethod
    @checked
    def twice(cls, a: Float[Tensor, "N"]) -> Pair:
        return cls(a, a)

    @property
    @checked
    def number(self) -> int:
        return len(self.a) / 1


def test_sound_calls():
    a, b = torch.ones(3), torch.ones(2)
    assert outer(a, b).shape == (3, 2)
    assert added(a, a).tolist() == [2, 2, 2]
    assert len(list(parts(a))) == 1
    assert Pair.twice(a).b is a


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: added(a, b),
        lambda a, b: outer(a, b, turned=True),
        lambda a, b: outer(a[None], b),
        lambda a, b: outer(a, b.long()),
        lambda a, b: outer(a, b, turned="no"),
        lambda a, b: Pair(a, b),
        lambda a, b: Pair.twice([1.0]),
        lambda a, b: Pair.twice(a).number,
    ],
)
def test_wrong_calls(call):
    with pytest.raises(TypeCheckError):
        call(torch.ones(3), torch.ones(2))


def test_sizes_are_in_the_message():
    with pytest.raises(TypeCheckError, match="N=3"):
        added(torch.ones(3), torch.ones(2))


def test_functions_of_the_package_are_checked():
    with pytest.raises(TypeCheckError):
        sample_covariance(torch.ones(3))
    with pytest.raises(TypeCheckError):
        to_db("loud")


@pytest.mark.usefixtures("untyped")
def test_off():
    assert outer(torch.ones(3), torch.ones(2), turned=True).shape == (2, 3)
