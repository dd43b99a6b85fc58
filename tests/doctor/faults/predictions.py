"""Mistakes in the network's predictions, and in validation and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.functional import dropout, one_hot

from faults.plant import Fault, Plant, attribute, function, method
from rismusic.covariance import Covariance, load_and_shrink
from rismusic.metrics import Match, Score, match, score
from rismusic.nn.learner import Learner
from rismusic.nn.network import Network, Prediction
from rismusic.nn.spec import TrainSpec
from rismusic.nn.statistics import GridStatistics


def _predicting(change: Callable[[Network, Prediction], Prediction]) -> Plant:
    def wrong(original: Callable[..., Prediction], self: Network, *given: Any) -> Prediction:
        return change(self, original(self, *given))

    return method(Network, "predict", wrong)


@contextmanager
def _with_parameter(
    make: Callable[[Network], None], change: Callable[[Network, Prediction], Prediction], spec: TrainSpec
) -> Iterator[TrainSpec]:
    """Add parameters to new networks, and change their predictions."""

    def built(original: Callable[..., None], self: Network, *given: Any, **named: Any) -> None:
        original(self, *given, **named)
        make(self)

    with method(Network, "__init__", built)(spec), _predicting(change)(spec):
        yield spec


def _free(network: Network) -> None:
    size = (2, network.grid.panel.size, network.spec.sources_max)
    network.free = nn.Parameter(torch.randn(*size, 2, generator=torch.Generator().manual_seed(0)))


def _freed(network: Network, prediction: Prediction) -> Prediction:
    angle, distance = torch.view_as_complex(network.free).expand(len(prediction), -1, -1, -1).unbind(1)  # type: ignore[arg-type]
    return replace(prediction, angle_factor=angle, range_factor=distance)


def _unused(network: Network) -> None:
    network.unused = nn.Sequential(*(nn.Linear(16, 16) for _ in range(20)))


def _always_one(_: Network, prediction: Prediction) -> Prediction:
    """The result of MDL on the N x N matrix of a few snapshots."""
    count = torch.ones(len(prediction), dtype=torch.int64)
    logits = 10.0 * one_hot(count, prediction.count_logits.shape[-1]).float()
    return replace(prediction, count_logits=logits + 0 * prediction.count_logits)


def _stale(
    original: Callable[..., Prediction], self: Learner, recording: Any, *, averaged: bool = True
) -> Prediction:
    """Validation uses a copy of the first weights."""
    held: Any = self
    if not hasattr(self, "kept"):
        held.kept = {name: value.detach().clone() for name, value in self.average.items()}
    with attribute(self, "average", held.kept):
        return original(self, recording, averaged=averaged)


@contextmanager
def _coarse(_: Any, self: Learner) -> Iterator[None]:
    """Validation in bfloat16 instead of float32."""
    self._set_precision(torch.bfloat16)
    yield
    self._set_precision(self.precision)


def _other_matrix(original: Callable[..., Any], self: Any, sample: Covariance, *given: Any) -> Any:
    """R_blend without R_samp in validation; training is recognised by its gradient."""
    if torch.is_grad_enabled():
        return original(self, sample, *given)
    return load_and_shrink(self.covariance, given[0])


def _penalised(original: Callable[..., Score], matched: Match, *given: Any) -> Score:
    found = original(matched, *given)
    share = found.misses
    return replace(found, azimuth_error_deg=(1 - share) * found.azimuth_error_deg + share * 90.0)


def _cut(original: Callable[..., Match], truth: Any, found: Any, **named: Any) -> Match:
    matched = original(truth, found, **named)
    least = torch.minimum(matched.true_count, matched.found_count)
    return replace(matched, true_count=least, found_count=least)


def _loud(original: Callable[..., Any], self: GridStatistics, recording: Any) -> Any:
    seen = original(self, recording)
    level = recording.snapshots.abs().square().mean((1, 2))
    return replace(seen, data=seen.data * level.sqrt()[:, None, None, None])


def _dropping(_: Network, prediction: Prediction) -> Prediction:
    assert prediction.grid_logits is not None
    return replace(prediction, existence_logits=dropout(prediction.existence_logits, 0.3, True))


FAULTS = (
    Fault(
        16,
        "free factors",
        "The factors are free parameters, the same for every scene.",
        ("free factors",),
        lambda spec: _with_parameter(_free, _freed, spec),
    ),
    Fault(
        17,
        "MDL on the panel",
        "The number of sources is 1 in every scene, as MDL on the N x N matrix of a few snapshots has it.",
        ("number of sources", "MDL"),
        _predicting(_always_one),
    ),
    Fault(
        19,
        "unused output",
        "Half of the parameters feed an output that no loss uses.",
        ("parameters without a gradient",),
        lambda spec: _with_parameter(_unused, lambda _, prediction: prediction, spec),
    ),
    Fault(
        25,
        "penalties averaged",
        "Misses count as errors of 90 deg.",
        ("score does not give", "azimuth_error_deg"),
        function(score, _penalised),
    ),
    Fault(
        25,
        "misses cost nothing",
        "Matching is cut to min(K, K_hat).",
        ("match does not give", "true_count"),
        function(match, _cut),
    ),
    Fault(
        27,
        "validation of a stale copy",
        "Validation uses a copy that is not trained.",
        ("constant", "stale"),
        method(Learner, "predict", _stale),
    ),
    Fault(
        27,
        "validation in bfloat16",
        "Validation uses another precision than training.",
        ("another matrix, precision",),
        method(Learner, "single_precision", _coarse),
    ),
    Fault(
        27,
        "validation on another matrix",
        "Validation uses R_pred while training uses R_blend.",
        ("another matrix",),
        method(Prediction, "blended", _other_matrix),
    ),
    Fault(
        0,
        "dropout in validation",
        "Dropout stays on in validation.",
        ("dropout",),
        _predicting(_dropping),
    ),
    Fault(
        0,
        "input not normalised",
        "The network's input depends on the receiver's gain.",
        ("not normalised",),
        method(GridStatistics, "observe", _loud),
    ),
)
