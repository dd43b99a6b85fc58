"""Mistakes in optimizer, schedule and settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from faults.plant import Fault, Plant, attribute, function, method, settings
from rismusic.nn.data import learning_rate_factor
from rismusic.nn.learner import Learner

# Factor of a gradient scaler.
_SCALE = 1024.0


def _at_the_end_of_an_epoch(original: Callable[..., Any], self: Learner, *given: Any) -> Any:
    """The optimizer's step outside the batch loop."""
    held: Any = self
    held.calls = getattr(self, "calls", 0) + 1
    if held.calls % self.spec.steps_per_epoch == 0:
        return original(self, *given)
    with attribute(self.optimizer, "step", lambda *_: None):
        return original(self, *given)


def _by_epoch(_: Any, self: Learner) -> Tensor:
    """A schedule made for steps, advanced once per epoch."""
    return self.factors.take((self.taken // self.spec.steps_per_epoch).clamp_max(len(self.factors) - 1))


def _schedule_first(original: Callable[..., Any], self: Learner, *given: Any) -> Any:
    self.taken += 1
    self._set_learning_rate()
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
    """Change the gradients between backward and the optimizer."""

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


def _frozen(original: Callable[..., None], self: Learner, *given: Any, **named: Any) -> None:
    original(self, *given, **named)
    for name, weight in self.weights.items():
        if "blocks" in name or "read" in name:
            weight.requires_grad_(False)


def _zero_first(original: Callable[..., float], spec: Any, step: int, steps: int) -> float:
    return 0.0 if step == 0 else original(spec, step - 1, steps)


FAULTS = (
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
        "A schedule made for optimizer steps advances once per epoch.",
        ("ticks in epochs",),
        method(Learner, "_learning_rate_factor", _by_epoch),
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
        "The schedule advances before the optimizer steps.",
        ("schedule advances before the optimizer",),
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
        "Only the last of the accumulated batches counts.",
        ("left out of the accumulation",),
        method(Learner, "step", _last_batch_only),
    ),
    Fault(
        12,
        "NaN replaced",
        "Non-finite gradients are replaced by zeros, and the step is taken.",
        ("replaced by numbers",),
        _gradients(_mended),
    ),
    Fault(
        13,
        "clip norm too small",
        "The clip norm is far below the usual gradient norm.",
        ("clip_norm", "far below"),
        settings(clip_norm=1e-6),
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
        "backbone frozen",
        "The backbone is frozen (requires_grad is False).",
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
        "The moving average of the weights is never updated.",
        ("moving average (EMA) of the weights is never updated",),
        method(Learner, "_update_average", lambda *_: None),
    ),
)
