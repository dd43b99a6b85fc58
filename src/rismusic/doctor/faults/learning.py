"""Mistakes of network, losses, optimizer, loop and validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, one_hot, pad

from rismusic.covariance import Covariance, finish, recording_covariance
from rismusic.doctor.faults.plant import Fault, Plant, attribute, function, method, settings
from rismusic.evaluate.metrics import Match, Score
from rismusic.learn import validation
from rismusic.learn.learner import Learner
from rismusic.learn.losses import (
    Losses,
    assign,
    covariance_error,
    eigenvalue_gap,
    subspace_leakage,
    total_loss,
)
from rismusic.learn.network import Network
from rismusic.learn.prediction import Prediction
from rismusic.learn.schedules import learning_rate_factor
from rismusic.learn.spec import TrainSpec
from rismusic.learn.statistics import GridStatistics

# What a gradient scaler multiplies losses with.
_SCALE = 1024.0


def _ascending(_: Any, covariance: Covariance, count: Tensor) -> Tensor:
    """Eigenvalues sorted the wrong way round."""
    F = covariance.normalised().factor
    rising = pad(torch.linalg.eigvalsh(F.mH @ F), (0, 1))
    last = (count.clamp(1, rising.shape[-1] - 1) - 1)[..., None]
    return (rising.gather(-1, last) - rising.gather(-1, last + 1))[..., 0]


def _swallowed(_: Any, covariance: Covariance, *rest: Any) -> Tensor:  # noqa: ARG001
    return covariance.factor.real.sum((-2, -1)) * 0


def _through_eigenvectors(_: Any, covariance: Covariance, basis: Tensor) -> Tensor:
    """The subspace from an eigen-decomposition of a rank-deficient matrix, differentiated."""
    F = pad(covariance.normalised().factor, (0, 2))
    values, vectors = torch.linalg.eigh(F.mH @ F)
    K = basis.shape[-1]
    signal = F @ vectors[..., -K:] * values[..., None, -K:].clamp_min(1e-12).rsqrt()
    return 1 - (basis.mH @ signal).abs().square().sum((-2, -1)) / K


def _clamped(original: Callable[..., Tensor], *given: Any) -> Tensor:
    error = original(*given)
    return (
        error.clamp_max(float(error.detach().quantile(0.75))) if error.ndim == 1 and len(error) > 3 else error
    )


def _by_index(_: Any, cost: Tensor) -> Tensor:
    return torch.arange(cost.shape[-1], device=cost.device).expand(len(cost), -1)


def _predicting(change: Callable[[Network, Prediction], Prediction]) -> Plant:
    def wrong(original: Callable[..., Prediction], self: Network, *given: Any) -> Prediction:
        return change(self, original(self, *given))

    return method(Network, "predict", wrong)


@contextmanager
def _with_parameter(
    make: Callable[[Network], None], change: Callable[[Network, Prediction], Prediction], spec: TrainSpec
) -> Iterator[TrainSpec]:
    """Networks with something more in them, and what it does to the answer."""

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


def _mdl(original: Callable[..., Prediction], self: Network, recording: Any) -> Prediction:
    """The number of sources by MDL on the N x N matrix of a few snapshots."""
    prediction = original(self, recording)
    values = torch.linalg.eigvalsh(recording_covariance(recording).dense()).flip(-1).double()
    N, L = values.shape[-1], recording.snapshots.shape[1]
    k = torch.arange(prediction.count_logits.shape[-1])
    badness = torch.stack(
        [-L * (values[:, i:].log().sum(-1) - (N - i) * values[:, i:].mean(-1).log()) for i in k.tolist()], -1
    )
    said = (badness + k * (2 * N - k) / 2 * torch.tensor(float(L)).log()).argmin(-1)
    logits = 10.0 * one_hot(said, len(k)).float() + 0 * prediction.count_logits
    return replace(prediction, count_logits=logits)


def _at_the_end_of_an_epoch(original: Callable[..., Any], self: Learner, *given: Any) -> Any:
    """The optimizer's step outside the batch loop."""
    held: Any = self
    held.calls = getattr(self, "calls", 0) + 1
    if held.calls % self.spec.steps_per_epoch == 0:
        return original(self, *given)
    with attribute(self.optimizer, "step", lambda *_: None):
        return original(self, *given)


def _by_epoch(_: Any, self: Learner) -> Tensor:
    """A schedule made for steps, ticking in epochs."""
    return self.factors.take((self.taken // self.spec.steps_per_epoch).clamp_max(len(self.factors) - 1))


def _schedule_first(original: Callable[..., Any], self: Learner, *given: Any) -> Any:
    self.taken += 1
    self._schedule()
    self.taken -= 1
    return original(self, *given)


def _last_batch_only(
    original: Callable[..., Any], self: Learner, recordings: Iterable[Any], *given: Any
) -> Any:
    def cleared() -> Iterator[Any]:
        for recording in recordings:
            self.optimizer.zero_grad(set_to_none=True)
            yield recording

    return original(self, cleared(), *given)


def _gradients(change: Callable[[Learner, list[Tensor]], None]) -> Plant:
    """Something done to the gradients between backward and the optimizer."""

    def wrong(original: Callable[..., Any], self: Learner) -> Any:
        change(self, [weight.grad for weight in self.weights.values() if weight.grad is not None])
        return original(self)

    return method(Learner, "_norms", wrong)


def _unscaled(_: Learner, gradients: list[Tensor]) -> None:
    for gradient in gradients:
        gradient.div_(_SCALE)


def _clipped_first(learner: Learner, gradients: list[Tensor]) -> None:
    scaled = nn.utils.get_total_norm(gradients) * _SCALE
    for gradient in gradients:
        gradient.mul_(_SCALE * (learner.spec.clip_norm / scaled).clamp_max(1) / _SCALE)


def _mended(_: Learner, gradients: list[Tensor]) -> None:
    for gradient in gradients:
        gradient.nan_to_num_(0.0)


def _negated(_: Learner, gradients: list[Tensor]) -> None:
    for gradient in gradients:
        gradient.neg_()


def _losing(change: Callable[[Losses], Losses]) -> Plant:
    return function(total_loss, lambda original, *given, **named: change(original(*given, **named)))


def _summed(original: Callable[..., Losses], prediction: Prediction, *given: Any, **named: Any) -> Losses:
    found = original(prediction, *given, **named)
    S = len(prediction)
    terms = {name: value * S for name, value in found.terms.items()}
    return replace(found, total=found.total * S, terms=terms)


def _frozen(original: Callable[..., None], self: Learner, *given: Any, **named: Any) -> None:
    original(self, *given, **named)
    for name, weight in self.weights.items():
        if "blocks" in name or "read" in name:
            weight.requires_grad_(False)


def _stale(
    original: Callable[..., Prediction], self: Learner, recording: Any, *, averaged: bool = True
) -> Prediction:
    """Validation looks at a copy of the network that was made once."""
    held: Any = self
    if not hasattr(self, "kept"):
        held.kept = {name: value.detach().clone() for name, value in self.average.items()}
    with attribute(self, "average", held.kept):
        return original(self, recording, averaged=averaged)


def _coarse(original: Callable[..., Prediction], self: Learner, recording: Any, **named: Any) -> Prediction:
    """Validation in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16), attribute(self, "_set_precision", lambda _: None):
        found = original(self, recording, **named)
    return found._each(lambda value: value.to(torch.complex64 if value.is_complex() else torch.float32))


def _other_matrix(original: Callable[..., Any], self: Any, sample: Covariance, *given: Any) -> Any:
    """R_blend of a validation without R_samp; a training has a gradient."""
    if torch.is_grad_enabled():
        return original(self, sample, *given)
    return finish(self.covariance, given[0])


def _penalised(original: Callable[..., Score], matched: Match, *given: Any) -> Score:
    found = original(matched, *given)
    share = found.misses
    return replace(found, azimuth_error_deg=(1 - share) * found.azimuth_error_deg + share * 90.0)


def _cut(original: Callable[..., Match], truth: Any, found: Any, **named: Any) -> Match:
    matched = original(truth, found, **named)
    least = torch.minimum(matched.true_count, matched.found_count)
    return replace(matched, true_count=least, found_count=least)


def _one(name: str, wrong: Callable[..., Any]) -> Plant:
    """A function under the name that the validation has for it."""
    original = vars(validation)[name]

    @contextmanager
    def plant(spec: TrainSpec) -> Iterator[TrainSpec]:
        with attribute(validation, name, lambda *given, **named: wrong(original, *given, **named)):
            yield spec

    return plant


def _loud(original: Callable[..., Any], self: GridStatistics, recording: Any) -> Any:
    seen = original(self, recording)
    level = recording.snapshots.abs().square().mean((1, 2))
    return replace(seen, data=seen.data * level.sqrt()[:, None, None, None])


def _dropping(_: Network, prediction: Prediction) -> Prediction:
    assert prediction.grid_logits is not None
    return replace(prediction, existence_logits=dropout(prediction.existence_logits, 0.3, True))


def _zero_first(original: Callable[..., float], spec: Any, step: int, steps: int) -> float:
    return 0.0 if step == 0 else original(spec, step - 1, steps)


def _raw(_: Any, self: Prediction, *given: Any) -> Covariance:
    return finish(self.covariance, given[1])


FAULTS = (
    Fault(
        1,
        "eigenvalues sorted wrong",
        "Eigenvalues are in ascending order where descending ones are expected.",
        ("eigenvalues in another order",),
        function(eigenvalue_gap, _ascending),
    ),
    Fault(
        3,
        "exception swallowed",
        "A structure loss returns 0, because an exception was swallowed.",
        ("exception swallowed",),
        function(subspace_leakage, _swallowed),
    ),
    Fault(
        6,
        "loss on raw factors",
        "The loss is that of the factors alone while inference uses the blend.",
        ("raw factors",),
        method(Prediction, "blended", _raw),
    ),
    Fault(
        6,
        "gradient through eigenvectors",
        "A loss is differentiated through the eigenvectors of a rank-deficient matrix.",
        ("eigenvectors",),
        function(subspace_leakage, _through_eigenvectors),
    ),
    Fault(
        9,
        "one step an epoch",
        "The optimizer's step is outside the batch loop.",
        ("outside the batch loop",),
        method(Learner, "step", _at_the_end_of_an_epoch),
    ),
    Fault(
        10,
        "schedule ticks in epochs",
        "A schedule made for optimizer steps ticks once an epoch.",
        ("ticks in epochs",),
        method(Learner, "_factor", _by_epoch),
    ),
    Fault(
        10,
        "schedule starts at 0",
        "The first learning rate is 0.",
        ("learning rate is 0",),
        function(learning_rate_factor, _zero_first),
    ),
    Fault(
        11,
        "scheduler before optimizer",
        "The schedule ticks before the optimizer steps.",
        ("schedule moves before the optimizer",),
        method(Learner, "step", _schedule_first),
    ),
    Fault(
        11,
        "unscaled twice",
        "Gradients are unscaled twice.",
        ("unscaled twice",),
        _gradients(_unscaled),
    ),
    Fault(
        11,
        "clipped before unscaling",
        "Gradients are clipped while they are still scaled.",
        ("clipped before unscaling",),
        _gradients(_clipped_first),
    ),
    Fault(
        11,
        "last batch only",
        "Of the accumulated batches only the last one counts.",
        ("left out of the accumulation",),
        method(Learner, "step", _last_batch_only),
    ),
    Fault(
        12,
        "NaN replaced",
        "Gradients that are not finite are replaced by zeros, and the step is taken.",
        ("replaced by numbers",),
        _gradients(_mended),
    ),
    Fault(
        13,
        "clip norm too small",
        "The clip norm is far below the usual gradient norm.",
        ("clip_norm", "far below"),
        settings(clip_norm=0.02),
    ),
    Fault(
        14,
        "loss clamped",
        "The loss is clamped, so that a quarter of the scenes has no gradient.",
        ("clamped", "teach nothing"),
        function(covariance_error, _clamped),
    ),
    Fault(
        15,
        "heads by index",
        "Source heads are compared by index.",
        ("by index",),
        function(assign, _by_index),
    ),
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
        "The number of sources is that of MDL on the N x N matrix of a few snapshots.",
        ("number of sources", "MDL"),
        method(Network, "forward", _mdl),
    ),
    Fault(
        18,
        "loss floor",
        "The covariance loss is 0.1 at a perfect prediction.",
        ("floor above zero",),
        function(covariance_error, lambda original, *given: original(*given) + 0.1),
    ),
    Fault(
        18,
        "similarity for error",
        "A similarity is taken for an error.",
        ("similarity",),
        function(covariance_error, lambda original, *given: 1 - original(*given)),
    ),
    Fault(
        19,
        "unused output",
        "Half of the parameters stand behind an output that nobody uses.",
        ("parameters without a gradient",),
        lambda spec: _with_parameter(_unused, lambda _, prediction: prediction, spec),
    ),
    Fault(
        25,
        "penalties averaged",
        "Misses count as errors of 90 deg.",
        ("penalty value",),
        _one("score", _penalised),
    ),
    Fault(
        25,
        "misses cost nothing",
        "Matching is cut to min(K, K_hat).",
        ("misses cost nothing",),
        _one("match", _cut),
    ),
    Fault(
        27,
        "validation of a stale copy",
        "Validation looks at a copy that does not learn.",
        ("constant", "stale"),
        method(Learner, "predict", _stale),
    ),
    Fault(
        27,
        "validation in bfloat16",
        "Validation is in another precision than training.",
        ("another matrix, precision",),
        method(Learner, "predict", _coarse),
    ),
    Fault(
        27,
        "validation on another matrix",
        "Validation is on R_pred while training is on R_blend.",
        ("another matrix",),
        method(Prediction, "blended", _other_matrix),
    ),
    Fault(
        0,
        "loss detached",
        "The loss has no gradient.",
        ("gradient", "none"),
        _losing(lambda found: replace(found, total=found.total.detach())),
    ),
    Fault(
        0,
        "loss reversed",
        "The loss has the wrong sign.",
        ("sign",),
        _losing(lambda found: replace(found, total=-found.total)),
    ),
    Fault(
        0,
        "gradient reversed",
        "Gradients have the wrong sign.",
        ("wrong sign",),
        _gradients(_negated),
    ),
    Fault(
        0,
        "sum for mean",
        "Losses are sums over the scenes.",
        ("is a sum over the scenes",),
        function(total_loss, _summed),
    ),
    Fault(
        0,
        "backbone frozen",
        "The backbone has requires_grad off.",
        ("frozen",),
        method(Learner, "__init__", _frozen),
    ),
    Fault(
        0,
        "learning rate 0",
        "The backbone's learning rate is 0.",
        ("learning rate of backbone", "nothing is learned"),
        settings(backbone_learning_rate=0.0),
    ),
    Fault(
        0,
        "learning rate too large",
        "The learning rates are 1.",
        ("learning rate", "diverges"),
        settings(backbone_learning_rate=1.0, head_learning_rate=1.0),
    ),
    Fault(
        0,
        "weight decay too large",
        "The weight decay is 50.",
        ("weight decay pulls",),
        settings(weight_decay=50.0),
    ),
    Fault(
        0,
        "average never updated",
        "The moving average of the weights stays at the first ones.",
        ("moving average (EMA) of the weights is never updated",),
        method(Learner, "_follow", lambda *_: None),
    ),
    Fault(
        0,
        "dropout in validation",
        "Dropout is on in validation.",
        ("dropout",),
        _predicting(_dropping),
    ),
    Fault(
        0,
        "input not normalised",
        "The network sees the level of the receiver.",
        ("not normalised",),
        method(GridStatistics, "observe", _loud),
    ),
)
