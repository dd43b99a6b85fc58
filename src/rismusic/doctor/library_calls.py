"""Calls of PyTorch's plateau schedule and of its distributions in a watched loop, and whether they fit it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.optim.lr_scheduler import ReduceLROnPlateau

from rismusic.doctor.state import calling_line
from rismusic.nn.monitors import Finding, at_most

# Fewest calls of a schedule, and its largest correlation with the loss. Fall of the loss that is progress.
_CALLS, _CORRELATED, _FALL = 4, 0.7, 0.2


class LibraryCalls:
    """What a loop gives to ``ReduceLROnPlateau.step`` and to ``log_prob`` of a distribution."""

    def __init__(self) -> None:
        # By schedule: the given value and the loss at that time.
        self._given: dict[ReduceLROnPlateau, list[tuple[float, float]]] = {}
        # By distribution: samples since a probability was asked for.
        self._drawn: WeakKeyDictionary[Distribution, list[Tensor]] = WeakKeyDictionary()
        self._others = self._probabilities = self._depth = 0
        self._line = ""

    @contextmanager
    def recorded(self, loss: Callable[[], float]) -> Iterator[None]:
        """Within the context, calls are noted.

        Args:
            loss: mean loss since the last call.
        """
        patched: list[tuple[type, str, Any]] = []

        def patch(owner: type, name: str, note: Callable[[Any, Any, Any], None]) -> None:
            original = vars(owner)[name]

            @wraps(original)
            def called(one: Any, *args: Any, **kwargs: Any) -> Any:
                # A distribution that is made of others calls them itself.
                self._depth += 1
                try:
                    result = original(one, *args, **kwargs)
                finally:
                    self._depth -= 1
                if not self._depth:
                    note(one, args[0] if args else next(iter(kwargs.values()), None), result)
                return result

            patched.append((owner, name, original))
            setattr(owner, name, called)

        def stepped(schedule: ReduceLROnPlateau, value: Any, _: Any) -> None:
            self._given.setdefault(schedule, []).append((float(value), loss()))

        def drawn(distribution: Distribution, _: Any, sample: Tensor) -> None:
            self._drawn.setdefault(distribution, []).append(sample.detach())

        patch(ReduceLROnPlateau, "step", stepped)
        for kind in _kinds(Distribution):
            for name, note in (("sample", drawn), ("rsample", drawn), ("log_prob", self._asked)):
                if name in vars(kind):
                    patch(kind, name, note)
        try:
            yield
        finally:
            for owner, name, original in reversed(patched):
                setattr(owner, name, original)

    def _asked(self, distribution: Distribution, value: Any, _: Any) -> None:
        samples = self._drawn.get(distribution, [])
        if not samples or not isinstance(value, Tensor):
            return
        self._probabilities += 1
        same = [one.shape == value.shape and torch.equal(one, value.detach()) for one in samples]
        if not same[0] and any(same):
            self._others += 1
            self._line = self._line or calling_line()
        self._drawn.pop(distribution)

    @property
    def findings(self) -> list[Finding]:
        """A schedule waits for what the training brings, and probabilities are those of the first sample."""
        share = self._others / max(1, self._probabilities)
        found = [
            at_most(
                "share of the log-probabilities that are not of the sample drawn first",
                share,
                0.5,
                f"a distribution is sampled several times, and log_prob is that of a later sample in "
                f"{share:.0%} of {self._probabilities} calls: of another action than the one that was taken.",
                "Keep the sample that is used, and pass it to log_prob.",
                self._line,
            )
        ]
        for schedule, pairs in self._given.items():
            value, loss = torch.tensor(pairs, dtype=torch.float64).unbind(1)
            if len(pairs) < _CALLS or not bool(torch.isfinite(loss).all()):
                continue
            related = float(torch.corrcoef(torch.stack((value, loss)))[0, 1])
            sign = 1.0 if schedule.mode == "max" else -1.0
            never = not bool((sign * value[1:] > sign * value[0]).any())
            fell = float(loss[-1]) < (1 - _FALL) * float(loss[0])
            wanted, is_one = ("score", "error") if schedule.mode == "max" else ("error", "score")
            found.append(
                at_most(
                    "correlation of what a plateau schedule wants to be otherwise with the loss",
                    sign * related if never and fell else 0.0,
                    _CORRELATED,
                    f"ReduceLROnPlateau(mode={schedule.mode!r}) waits for a better {wanted}, but is given an "
                    f"{is_one} ({value[0]:.3g} to {value[-1]:.3g}, and the loss falls from {loss[0]:.3g} "
                    f"to {loss[-1]:.3g}): it is never better, so the learning rate is lowered again and "
                    "again.",
                    'Use mode="min" for a loss or an error, and mode="max" for a score.',
                )
            )
        return found


def _kinds(kind: type[Distribution]) -> Iterator[type[Distribution]]:
    for one in kind.__subclasses__():
        yield one
        yield from _kinds(one)
