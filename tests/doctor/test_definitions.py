"""Definitions agree with the calls of a healthy training, and tell two wrong results of each function."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from faults.plant import function, healthy, method

from rismusic.doctor import function_checks
from rismusic.doctor.case import open_case
from rismusic.doctor.function_checks import check_functions
from rismusic.doctor.layers import sibling_findings
from rismusic.nn.network import Network
from rismusic.nn.validation import covariance_statistics
from rismusic.simulation.scene import draw_symbols

pytestmark = pytest.mark.usefixtures("_type_checks_compiled")


def factors(change):
    """Another factor of a covariance."""
    return lambda one: replace(one, factor=change(one.factor))


def changed(**changes):
    """Other fields of a result or entries of a dictionary."""

    def wrong(one):
        own = one if isinstance(one, dict) else vars(one)
        values = {name: change(own[name]) for name, change in changes.items()}
        return {**one, **values} if isinstance(one, dict) else replace(one, **values)

    return wrong


def part(number, change):
    """Another part of a tuple."""
    return lambda one: tuple(change(value) if n == number else value for n, value in enumerate(one))


def place(change):
    return lambda network: SimpleNamespace(place=change(network.place))


def basis(change):
    return lambda statistics: SimpleNamespace(basis=change(statistics.basis))


WRONG = {
    "array:steering_with_log_derivatives": (part(1, torch.neg), part(1, lambda x: x.flip(-1))),
    "covariance:BackProjection.covariance": (factors(torch.conj), factors(lambda F: 2 * F)),
    "covariance:Covariance.eigen": (part(0, lambda x: x.flip(-1)), part(1, torch.conj)),
    "estimation.grid:_chosen": (lambda i: i.flip(-1), lambda i: (i - 1).clamp_min(0)),
    "estimation.grid:highest_points": (lambda i: i.flip(-1), lambda i: (i - 1).clamp_min(0)),
    "estimation.spectra:music": (changed(vectors=lambda V: V.roll(1, 0)), changed(vectors=lambda V: V / 2)),
    "estimation.spectra:rap_music_sources": (
        part(0, lambda one: one.blank(one.active)),
        part(0, changed(azimuth=lambda x: x + 0.3)),
    ),
    "metrics:match": (changed(hit=torch.logical_not), changed(error=lambda x: 2 * x)),
    "metrics:score": (changed(recall=lambda x: 1 - x), changed(range_error_m=lambda x: x**2)),
    "nn.data:TrainingScenes._network_input": (
        changed(noise_variance=lambda x: 2 * x),
        changed(snapshots=torch.conj),
    ),
    "nn.data:TrainingScenes.scored": (
        lambda both: (both[0], both[0]),
        part(1, lambda one: one[[0] * len(one)]),
    ),
    "nn.learner:Learner.prediction_losses": (
        changed(total=lambda x: 2 * x),
        changed(terms=lambda terms: dict.fromkeys(terms, terms["covariance"])),
    ),
    "nn.losses:Targets.conditioned": (factors(torch.conj), factors(lambda F: F.roll(1, 0))),
    "nn.network:Network.__init__": (place(lambda x: x.flip(1)), place(lambda x: x.mT)),
    "nn.network:Prediction.blended": (factors(torch.conj), factors(lambda F: F.roll(1, 0))),
    "nn.network:Prediction.covariance": (factors(torch.conj), factors(lambda F: 2 * F)),
    "nn.statistics:GridStatistics.__init__": (basis(lambda B: B / 2), basis(torch.conj)),
    "nn.validation:covariance_statistics": (
        changed(variety=lambda x: x / 2),
        changed(rank_blend=lambda x: x + 1),
    ),
    "nn.validation:rank": (lambda n: n + 1, torch.zeros_like),
    "simulation.scene:_random": (torch.conj, lambda c: c[:, :1].expand_as(c)),
    "sources:Sources.active": (torch.logical_not, torch.ones_like),
    "sources:Sources.filled": (lambda all_: (all_[1], all_[0], all_[2]), part(2, lambda r: r + 1)),
    "sources:Sources.position": (lambda x: x.flip(-1), lambda x: x * x.norm(dim=-1, keepdim=True)),
    "sources:Sources.steering": (torch.conj, lambda A: 2 * A),
}


@pytest.fixture(scope="module")
def calls():
    with open_case(healthy()) as case:
        yield function_checks._record(case, function_checks._functions())


def distance(call):
    pairs = function_checks._pairs(call)
    assert pairs, "the definition does not apply"
    return max(function_checks._distance(*pair) for pair in pairs.values())


@pytest.mark.parametrize("name", WRONG)
def test_two_wrong_results_are_told_from_the_right_one(calls, name):
    own = [call for call in calls if call.name == name]
    assert own
    for change in WRONG[name]:
        off = []
        for call in own:
            given, result = dict(call.given), change(call.result)
            if isinstance(result, SimpleNamespace):
                given["self"] = result
            off.append(distance(function_checks._Call(name, given, result)))
        assert max(off) > 10 * function_checks._SAME
        assert max(map(distance, own)) < function_checks._SAME


def larger(layer, factor):
    def wrong(original, self, generator):
        original(self, generator)
        with torch.no_grad():
            self.get_parameter(layer).mul_(factor)

    return method(Network, "_reset", wrong)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (larger("stages.1.write.weight", 10), ("Network._reset", "stages.1.write.weight", "in place of 0.1")),
        (larger("details.weight", 0.1), ("Network._reset", "details.weight", "in place of 0.1")),
        (
            function(
                covariance_statistics,
                lambda original, *given: {**(r := original(*given)), "rank_predicted": r["rank_blend"]},
            ),
            ("covariance_statistics", "rank_predicted"),
        ),
        (
            function(
                draw_symbols,
                lambda original, *given, **named: original(*given, **named)[..., :1].expand(-1, -1, 8),
            ),
            ("draw_symbols", "it is that of the first entry along axis 2 in every one"),
        ),
    ],
)
def test_the_function_and_the_value_are_named(plant, words):
    with plant(healthy()) as spec, open_case(spec) as case:
        (found,) = check_functions(case).wrong
    assert all(one in found.sentence for one in words), found.sentence


def test_results_kept_from_an_earlier_call_are_named(monkeypatch):
    own = function_checks.validation._score

    def _score(learner, scenes, beta):
        if not hasattr(scenes, "kept"):
            scenes.kept = own(learner, scenes, beta)
        return scenes.kept

    monkeypatch.setattr("rismusic.nn.validation._score", _score)
    with open_case(healthy()) as case:
        (found,) = check_functions(case).wrong
    assert "_score does not give" in found.meaning
    assert "it is that of an earlier call" in found.meaning


def test_initial_weights_that_differ_from_those_of_layers_of_their_kind_are_named():
    draw = torch.Generator().manual_seed(0)
    weights = {f"blocks.{n}.weight": torch.randn(16, 16, generator=draw) for n in range(3)}
    weights |= {"head.weight": 0.01 * torch.randn(16, 16, generator=draw)}
    assert all(one.fine for one in sibling_findings(weights))
    weights["blocks.1.weight"] *= 10
    (wrong,) = [one for one in sibling_findings(weights) if not one.fine]
    assert "blocks.1.weight are 10" in wrong.meaning
    assert math.isclose(wrong.value, 10, rel_tol=0.2)
