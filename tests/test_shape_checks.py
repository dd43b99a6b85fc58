"""The checks of shapes that all tests run under find wrong arguments and wrong results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from beartype import beartype
from jaxtyping import Bool, Complex, Float, Int, Num, Shaped, TypeCheckError
from jaxtyping._storage import get_shape_memo, pop_shape_memo, push_shape_memo
from torch import Tensor

from rismusic.array import to_db
from rismusic.covariance import sample_covariance
from shape_checks import _fits, fits, jaxtyped

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


@checked
@dataclass
class Numbers:
    a: int
    b: int


@checked
def doubled(a: Float[Tensor, "N"], other: Float[Tensor, "..."]) -> Tensor:
    @checked
    def times(b: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        return a * b if len(a) == len(b) else other

    return times(other)


def test_sound_calls():
    a, b = torch.ones(3), torch.ones(2)
    assert outer(a, b).shape == (3, 2)
    assert added(a, a).tolist() == [2, 2, 2]
    assert len(list(parts(a))) == 1
    assert Pair.twice(a).b is a
    assert Numbers(1, 2).b == 2
    assert doubled(a, 2 * a).tolist() == [2, 2, 2]
    assert doubled(2 * b, 3 * b).tolist() == [6, 6], "the function of this call"


HINTS = (
    *(Float[Tensor, axes] for axes in ("S L M", "*b K", "#S K", "*#b K", "", "1 S", "_ S")),
    *(Shaped[Tensor, "..."], Int[Tensor, "S ... _"], Bool[Tensor, "S S"], Num[Tensor, "S 3 *b 2 K"]),
    *(Complex[Tensor, "*b 3"], Num[Tensor, "S S+1"]),
)


def test_tensors_fit_as_jaxtyping_says(generator):
    """One call after another with the same sizes, which are equal afterwards as well."""

    def drawn(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    dtypes = (torch.float32, torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64)
    answers = []
    for _ in range(2000):
        shapes = [[1 + drawn(3) for _ in range(drawn(6))] for _ in range(4)]
        values = [torch.empty(shape, dtype=dtypes[drawn(len(dtypes))]) for shape in shapes]
        chosen = [HINTS[drawn(len(HINTS))] for _ in values]
        of_both = []
        for check in (_fits, fits):
            push_shape_memo({})
            try:
                of_both.append([check(hint, value) for hint, value in zip(chosen, values, strict=True)])
            except NameError:  # S + 1 of no S
                of_both.append("no size")
            of_both.append(get_shape_memo()[:2])
            pop_shape_memo()
        assert of_both[:2] == of_both[2:]
        answers += of_both[0]
    assert answers.count(True) > 1000
    assert answers.count(False) > 1000


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
        lambda a, b: Numbers(1, 2.0),
        lambda a, b: doubled(a, b[None]),
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
