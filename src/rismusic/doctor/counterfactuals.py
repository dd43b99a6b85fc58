"""The recorded training, repeated with one thing changed: what would the network have learned?

The network is trained anew on the recorded batches from its first weights, as the loop did it, and again with
one setting changed: another learning rate, or an option of the optimizer at its default. All else is the
same, so that a lower loss is due to the change.
"""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rismusic.doctor.report import Findings
from rismusic.doctor.state import weights_of
from rismusic.doctor.tape import Batch, LeftOutError
from rismusic.nn.monitors import Finding

# CPU seconds for all trainings; fewest and most steps of one, the latter over those of the loop, too.
_SECONDS, _FEWEST, _MOST, _LONGER = 4.0, 60, 300, 3
HELD = "fall of the loss of batches held out, over that of batches that are learned from"
"""Finding without a limit, which says whether what is learned holds for others."""
# Fewest batches.
_BATCHES = 8
# Fall of a loss over its first value, from which it has no bound.
_DEEP = 3.0
# Share of what is learned that a change may gain, or that the settings must reach of what others reach.
_GAIN, _SHARE = 0.1, 0.1
# Options whose change changes no training, or all: the learning rate has changes of its own.
_NO_OPTION = frozenset(["lr", "params", "maximize", "foreach", "fused", "capturable", "differentiable"])


@dataclass(frozen=True)
class Settings:
    """How a loop trains: class of the optimizer, and for each group the keys of its weights and its options.

    ``schedule``: learning rate of each step, over the highest one. ``clip``: largest norm of the gradient.
    """

    make: Callable[[Any], torch.optim.Optimizer]
    groups: tuple[tuple[tuple[int, ...], dict[str, Any]], ...]
    schedule: tuple[float, ...] = ()
    clip: float = math.inf

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> Settings:
        """The settings of an optimizer before its first step."""
        groups = []
        for group in optimizer.param_groups:
            options = {name: copy.copy(value) for name, value in group.items() if name != "params"}
            groups.append((tuple(id(p) for p in group["params"]), options))
        return cls(type(optimizer), tuple(groups))

    def scheduled(self, rates: Sequence[Sequence[float]], clip: float) -> Settings:
        """With the learning rates of the groups in each step, and the largest norm of a gradient."""
        highest = [max(one, default=0.0) for one in rates]
        groups = tuple(
            (keys, {**options, "lr": rate})
            for (keys, options), rate in zip(self.groups, highest, strict=False)
        )
        schedule = tuple(one / highest[0] for one in rates[0]) if rates and highest[0] > 0 else ()
        return replace(self, groups=groups, schedule=schedule, clip=clip)

    def with_option(self, name: str, value: Any) -> Settings:
        """With another value of an option."""
        groups = tuple((keys, {**options, name: value}) for keys, options in self.groups)
        return replace(self, groups=groups)

    def at_rate(self, factor: float) -> Settings:
        """With other learning rates."""
        groups = tuple((keys, {**options, "lr": options["lr"] * factor}) for keys, options in self.groups)
        return replace(self, groups=groups)

    @property
    def changes(self) -> Iterator[tuple[str, Settings]]:
        """What is changed, and to what: options at their defaults, and no fall of the learning rate."""
        defaults = inspect.signature(self.make).parameters
        for name in {name: None for _, options in self.groups for name in options}:
            values = [options[name] for _, options in self.groups if name in options]
            if name in _NO_OPTION or name not in defaults or isinstance(values[0], bool):
                continue
            default = defaults[name].default
            if default is not inspect.Parameter.empty and any(value != default for value in values):
                given = next(value for value in values if value != default)
                yield f"{name} at {default} in place of {given}", self.with_option(name, default)
        if self.schedule and self.schedule[-1] < 0.5 * max(self.schedule):
            top = self.schedule.index(max(self.schedule))
            kept = (*self.schedule[:top], self.schedule[top])
            yield "a learning rate that does not fall", replace(self, schedule=kept)


@dataclass
class Counterfactuals:
    """Trainings from the same weights on the same batches, of one kind."""

    batches: Sequence[Batch]
    initial: Mapping[int, Tensor]
    settings: Settings
    steps: int

    def __post_init__(self) -> None:
        weights = self.batches[0].tape.weights
        self.weights = {key: self.initial.get(key, value.detach()) for key, value in weights.items()}
        self.replays = [batch.replay(self.weights).keeping(()) for batch in self.batches]
        self.learned = len(self.batches) - max(2, len(self.batches) // 4)

    @property
    def findings(self) -> list[Finding]:
        """The loss would not be much lower with one thing changed."""
        if len(self.batches) < _BATCHES:
            raise LeftOutError(f"fewer than {_BATCHES} batches that differ")
        changes = list(self.settings.changes)
        started = time.process_time()
        self._trained(self.settings, 4)
        # A loss without a gradient takes a third of a step.
        each = (time.process_time() - started) / (4 + len(self.batches) / 3)
        steps = min(_MOST, _LONGER * self.steps, int(_SECONDS / (5 + len(changes)) / each))
        if steps < _FEWEST:
            raise LeftOutError("repeating the training takes too long")
        left = {key: value.detach() for key, value in self.batches[0].tape.weights.items()}
        first, last = self._losses(self.weights), self._losses(left)
        repeated, own = (self._trained(self.settings, n) for n in (min(steps, self.steps), steps))
        if not first[0] - last[0] < 2 * (first[0] - repeated[0]) + _GAIN * abs(first[0]):
            raise LeftOutError("the training, repeated, learns less than the loop did")

        def gain(other: tuple[float, float]) -> float:
            """Lower loss of what was learned from and of the rest, over what is learned."""
            triples = zip(first, own, other, strict=True)
            gains = ((a - b) / max(abs(start - b), 1e-12) for start, a, b in triples)
            # One far below zero has no bound, such as rewards of actions that are not drawn again.
            learns = all(a > b > a - _DEEP * abs(a) for a, b in zip(first, other, strict=True))
            return min(gains) if learns else -math.inf

        def confirmed(settings: Settings, other: tuple[float, float]) -> float:
            """The gain; where it is large, the smaller one of two, with the batches in another order."""
            if gain(other) <= _GAIN:
                return gain(other)
            two, one = (self._trained(s, steps, -1) for s in (settings, self.settings))
            return min(gain(other), gain((two[0] + own[0] - one[0], two[1] + own[1] - one[1])))

        def text(what: str, other: tuple[float, float]) -> str:
            return (
                f"with {what}, the same network learns more from the same batches in {steps} steps: loss "
                f"{other[1]:.3g} on batches held out, with the settings of the loop {own[1]:.3g}, at first "
                f"{first[1]:.3g}"
            )

        def at_rates(factors: Sequence[float]) -> tuple[float, tuple[float, float]]:
            """The best of some learning rates, as long as each is better than the one before."""
            best = (1.0, own)
            for factor in factors:
                other = self._trained(self.settings.at_rate(factor), steps)
                if best[0] == 1 or gain(other) > gain(best[1]):
                    best = (factor, other)
                if best[0] != factor or gain(other) < -_GAIN:
                    break
            return best

        factor, other = at_rates((0.1, 0.01))
        found = Findings()
        found.at_most(
            "share of what is learned that a lower learning rate gains",
            confirmed(self.settings.at_rate(factor), other),
            _GAIN,
            f"the learning rate is too high: {text(f'{factor:g} times the learning rate', other)}.",
            f"Use a learning rate about {1 / factor:g} times lower.",
        )
        factor, other = at_rates((10.0, 100.0, 1000.0))
        diverged = own[1] > first[1] + _GAIN * abs(first[1])
        found.at_least(
            "share of what a higher learning rate learns that is learned",
            1.0 if diverged else 1 - max(gain(other), 0.0),
            _SHARE,
            f"the learning rate is too low: {text(f'{factor:g} times the learning rate', other)}.",
            f"Use a learning rate about {factor:g} times higher.",
        )
        fall = (first[1] - own[1]) / max(first[0] - own[0], 1e-12)
        found.at_least(HELD, max(fall, 0.0), 0.0, "")
        for what, settings in changes:
            other = self._trained(settings, steps)
            meaning = f"a setting hinders the learning ({what}): {text(what, other)}."
            found.at_most(
                f"share of what is learned that {what} gains", confirmed(settings, other), _GAIN, meaning
            )
        return found

    def _loss(self, k: int, weights: Mapping[int, Tensor]) -> Tensor:
        self.replays[k].forget_statistics()
        return self.replays[k].run(weights=weights)[self.batches[k].tape.loss]

    def _losses(self, weights: Mapping[int, Tensor]) -> tuple[float, float]:
        """Mean losses of the batches that are learned from, and of the others."""
        with torch.no_grad():
            values = [float(self._loss(k, weights)) for k in range(len(self.batches))]
        values = [value if math.isfinite(value) else math.inf for value in values]
        one, two = values[: self.learned], values[self.learned :]
        return sum(one) / len(one), sum(two) / len(two)

    def _trained(self, settings: Settings, steps: int, order: int = 1) -> tuple[float, float]:
        """The losses after a training with batches in order or backwards (-1); infinite if it diverges."""
        own = {key: value.detach().clone() for key, value in self.replays[0].weights.items()}
        groups = []
        for keys, options in settings.groups:
            weights = [own[key].requires_grad_(True) for key in keys if key in own]
            groups += [{"params": weights, **options}] if weights else []
        optimizer = settings.make(groups)
        rates = [group["lr"] for group in optimizer.param_groups]
        trained = weights_of(optimizer)
        schedule = settings.schedule or (1.0,)
        for step in range(steps):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule[min(step, len(schedule) - 1)]
            loss = self._loss(order * step % self.learned, own)
            if not loss.requires_grad or not math.isfinite(float(loss.detach())):
                return math.inf, math.inf
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, settings.clip)
            optimizer.step()
        return self._losses(own)
