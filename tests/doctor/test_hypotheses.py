"""The search for the one change of a definition that explains a value."""

import math

import pytest
import torch

from rismusic.doctor.hypotheses import explanation, given, setting, step

CASES = [
    torch.rand(2, 8, 6, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in range(3)
]


@step("the wrapping")
def wrapped(x):
    low = setting("the lowest value", -0.5)
    return torch.remainder(x - low, 1) + low


def definition(case):
    x, y = given("the prediction", CASES[case][0]), given("the target", CASES[case][1])
    error = wrapped(2 * (x - y)) / setting("the scale", 0.3)
    there = y > 0.4
    share = (x / x.sum(-1, keepdim=True)).log()
    return torch.where(there, error.square(), 0).mean() + 0.1 * (y * share).sum(-1).mean()


def code(case, low=-0.5, scale=0.3, power=2, inverted=False, axis=-1, normal=True, base=1.0, total=False):
    """The same in other words, with one mistake."""
    x, y = CASES[case].float()
    error = (torch.remainder(2 * (x - y) - low, 1) + low if low is not None else 2 * (x - y)) / scale
    kept = error.abs() ** power * ((y > 0.4) ^ inverted)
    share = x / x.sum(axis, keepdim=True) if normal else x
    second = (y * share.log() / base).sum(-1)
    return kept.mean() + 0.1 * (second.sum() if total else second.mean())


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ({"low": None}, "without the wrapping"),
        ({"low": 0.0}, "the lowest value 0 in place of -0.5"),
        ({"scale": 0.43}, "the scale 0.43 in place of 0.3"),
        ({"power": 1}, "the modulus in `error.square()`"),
        ({"inverted": True}, "the branches exchanged"),
        ({"axis": 0}, "over axis -2 in `x.sum(-1, keepdim=True)`"),
        ({"normal": False}, "the first part alone in `x / x.sum(-1, keepdim=True)`"),
        ({"base": math.log(10)}, "log10"),
        ({"total": True}, "the sum in `(y * share).sum(-1).mean()`"),
    ],
)
def test_one_mistake_is_named(mistake, words):
    found = explanation([code(n, **mistake) for n in range(3)], [lambda n=n: definition(n) for n in range(3)])
    assert words in found


def test_what_no_single_change_explains_has_no_name():
    found = [code(n, power=1, axis=0, low=0.1) for n in range(3)]
    assert explanation(found, [lambda n=n: definition(n) for n in range(3)]) == ""


def test_a_change_must_hold_in_every_case():
    found = [code(0, power=1), code(1, inverted=True), code(2, normal=False)]
    assert explanation(found, [lambda n=n: definition(n) for n in range(3)]) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: 0 * e, "it is 0"),
        (lambda e: -e, "wrong sign"),
        (lambda e: 1 - e, "1 minus that of the definition"),
        (lambda e: 0.37 * e, "0.37 times"),
        (lambda e: e + 0.2, "higher by 0.2"),
        (lambda e: e.roll(1), "(or row) before"),
        (lambda e: e.half().double(), "rounded to half precision"),
        (lambda e: e.sort().values, "sorted along the last axis"),
        (lambda e: e.roll(5), ""),
    ],
)
def test_relations_without_a_definition(change, words):
    right = torch.rand(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = explanation([change(right)], [lambda: right])
    assert words in found
    assert bool(found) == bool(words)


def test_definitions_are_as_usual_outside_a_search():
    assert float(definition(0)) == pytest.approx(float(code(0)), rel=1e-5)
    assert explanation([code(n) for n in range(3)], [lambda n=n: definition(n) for n in range(3)]) == ""
