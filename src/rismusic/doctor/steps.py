"""What happens to gradients and weights between ``backward`` and the steps of the optimizers of a loop."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rismusic.doctor.report import Findings, listed
from rismusic.doctor.state import groups_of, real_view, weights_of
from rismusic.nn.monitors import Finding, at_most

# Steps that are compared in full: the first ones, then powers of two.
_FIRST_STEPS = 6
# Weights with more entries are left out of the comparison.
_LARGEST = 10**6
# Change of a weight matrix between two steps, over its size, that is no averaging or projection.
_REPLACED = 0.3
# Ratio of weight decay to the rest of the update, in the first steps, from which the weights cannot learn.
_DECAY = 2.0
# Share of the gradient that clipping leaves.
_CLIPPED = 0.02


class StepRecord:
    """Gradients of the losses against those that the optimizers get, and the steps that they take."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.names = names
        self.number = 0
        self._sums: dict[int, Tensor] = {}
        self._after: dict[int, Tensor] = {}
        self._ratios: list[float] = []
        self._cosines: list[float] = []
        self._uphill: list[float] = []
        self._decays: list[float] = []
        # Losses whose gradients reached a step, were set to 0 before one, or still wait for one.
        self._used: set[int] = set()
        self._lost: set[int] = set()
        self._waiting: dict[int, set[int]] = {}
        self._steps = 0
        self._emptied = 0
        self._closure = False
        self._replaced: dict[str, int] = {}
        self._before: dict[int, Tensor] = {}
        self.adaptive = False
        self._limited: list[float] = []

    @property
    def compared(self) -> bool:
        """Whether the present step is compared."""
        return self.number < _FIRST_STEPS or self.number & (self.number - 1) == 0

    def add(self, weight: nn.Parameter, gradient: Tensor, number: int) -> None:
        """Add a gradient of the loss of a number, before the optimizer's step."""
        if weight.grad is None or not bool(weight.grad.any()):
            self._lost |= self._waiting.pop(id(weight), set())
        self._waiting.setdefault(id(weight), set()).add(number)
        if self.compared and weight.numel() <= _LARGEST and not gradient.is_sparse:
            old, new = self._sums.get(id(weight)), gradient.detach()
            if weight.grad is None or not bool(weight.grad.any()):
                # Reset since then, such as the gradient that another network's loss left.
                self._sums[id(weight)] = new.clone()
            else:
                self._sums[id(weight)] = (weight.grad.detach() if old is None else old) + new

    def before(self, optimizer: torch.optim.Optimizer, *, closure: bool, stale: bool) -> None:
        """Look at the gradients that a step gets, and at what happened to the weights since the last one."""
        held = [p for p in weights_of(optimizer) if id(p) in self.names]
        for p in held:
            numbers = self._waiting.pop(id(p), set())
            if p.grad is not None and bool(p.grad.any()):
                self._used |= numbers
            else:
                self._lost |= numbers
        self._steps += 1
        # Such an optimizer calculates the loss as often as it likes.
        self._closure |= closure
        for p in held:
            old = self._after.pop(id(p), None)
            if old is None or p.ndim < 2:
                continue
            new = _sample(p)
            # A projection (clipping of weights) only makes them smaller.
            shrunk = bool((new.abs() <= old.abs()).all()) and bool((new * old >= 0).all())
            if float((new - old).norm()) > _REPLACED * float(old.norm()) > 0 and not shrunk:
                self._replaced[self.names[id(p)]] = self.number
        if not self.compared or closure:
            self._before = {}
            return
        pairs = [(self._sums[id(p)], p.grad) for p in held if id(p) in self._sums]
        sums = _joined([one for one, _ in pairs])
        given = _joined([torch.zeros_like(one) if g is None else g.detach() for one, g in pairs])
        if sums is not None and given is not None and float(sums.norm()) > 0 and bool(given.isfinite().all()):
            if float(given.norm()) == 0:
                self._emptied += 1
            elif not stale:
                self._ratios.append(float(given.norm() / sums.norm()))
                self._cosines.append(float((given * sums).sum() / given.norm() / sums.norm()))
                if self._ratios[-1] < 0.99:
                    self._limited.append(float(given.norm()))
        self._before = {
            id(p): p.detach().clone() for p in held if p.grad is not None and p.numel() <= _LARGEST
        }

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at the step that was taken."""
        held = [p for p in weights_of(optimizer) if id(p) in self.names]
        moved = [p for p in held if id(p) in self._before and p.grad is not None and not p.grad.is_sparse]
        change = _joined([p.detach() - self._before[id(p)] for p in moved])
        gradient = _joined([p.grad.detach() for p in moved if p.grad is not None])
        self.adaptive |= any(
            {"exp_avg_sq", "square_avg"} & state.keys() for state in optimizer.state.values()
        )
        if change is not None and gradient is not None and float(change.norm()) > 0 < float(gradient.norm()):
            rest, decayed = change.clone(), 0.0
            start = 0
            groups = groups_of(optimizer)
            for p in moved:
                group = groups[id(p)]
                decay, rate = float(group.get("weight_decay") or 0.0), float(group["lr"])
                part = -rate * decay * _real(self._before[id(p)])
                apart = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
                if decay and p.ndim > 1 and (apart or not self.adaptive):
                    rest[start : start + part.numel()] -= part
                    decayed += float(part.square().sum())
                elif decay and p.ndim > 1 and p.grad is not None:
                    # Within an adaptive step, decay and gradient share one size.
                    share = float(p.grad.norm()) / max(decay * float(self._before[id(p)].norm()), 1e-300)
                    decayed = max(decayed, (float(rest.norm()) / max(share, 1e-12)) ** 2)
                start += part.numel()
            if decayed and self.number < _FIRST_STEPS:
                self._decays.append(math.sqrt(decayed) / max(float(rest.norm()), 1e-300))
            if self.number < _FIRST_STEPS and float(rest.norm()) > 0:
                self._uphill.append(float((rest * gradient).sum() / rest.norm() / gradient.norm()))
        self._after.update({id(p): _sample(p) for p in held})
        self._sums = {key: value for key, value in self._sums.items() if not any(id(p) == key for p in held)}
        self._before = {}
        self.number += 1

    @property
    def clip(self) -> float:
        """The largest norm of a gradient that was made smaller; infinite without clipping."""
        return max(self._limited, default=math.inf)

    @property
    def findings(self) -> list[Finding]:
        """What is wrong with gradients and steps."""
        found = Findings()
        found.must_be_zero(
            "steps whose gradient was set to 0 after backward",
            self._emptied if self._emptied >= max(1, len(self._ratios)) else 0,
            "the gradient is 0 when the optimizer steps: zero_grad is called between backward and step.",
            "Call zero_grad before backward, or after step.",
        )
        found.must_be_zero(
            "weight matrices that something replaces between two steps",
            len(self._replaced),
            f"between two steps, something other than the optimizer changes {listed(list(self._replaced))}: "
            "weights are initialised again, loaded or overwritten, so what was learned is lost.",
            "Create, initialise and load the model once, before the loop.",
        )
        lost = self._lost - self._used - set().union(*self._waiting.values())
        judged = not self._closure and self._emptied < max(1, len(self._ratios))
        found.at_most(
            "losses whose gradient no step uses, per step",
            len(lost) / max(self._steps, 1) if judged else 0.0,
            0.1,
            "the gradient of a loss is set to 0 before a step uses it: zero_grad is called between two "
            "calls of backward, so the first loss has no effect.",
            "Call zero_grad once, before the first backward of a step.",
        )
        if self._cosines:
            middle = _median(self._cosines)
            found.at_least(
                "cosine between the gradient that the optimizer gets and that of the losses",
                middle,
                0.5,
                "the gradient is changed between backward and step: "
                + ("its sign is reversed." if middle < -0.5 else "it is not that of the loss."),
                "Look at what changes .grad, such as clipping by value, noise, hooks, or a second backward.",
            )
            found.at_least(
                "size of the gradient that the optimizer gets, over that of the losses",
                1.0 if self.adaptive or _power_of_two(self._ratios) else _median(self._ratios),
                _CLIPPED,
                "the gradient is made far smaller between backward and step: the limit of clipping is "
                "too low.",
                "Clip at a few times the usual norm of the gradient.",
            )
        if self._uphill:
            meaning = "each step increases the loss: wrong sign of gradient or update (maximize=True?)."
            advice = "The optimizer must subtract the gradient of what is to fall."
            found.at_most(
                "cosine between the first steps and the gradient", _median(self._uphill), 0.1, meaning, advice
            )
        if self._decays:
            found.at_most(
                "size of weight decay over that of the rest of the update",
                max(self._decays[:2]),
                _DECAY,
                "weight decay outweighs the gradient: weights shrink faster than they learn.",
                "Use a weight decay of 1e-4 (SGD) to 1e-2 (AdamW).",
            )
        return found


def _sample(weight: Tensor) -> Tensor:
    return _real(weight)[:256].clone()


def _real(value: Tensor) -> Tensor:
    return real_view(value.detach()).flatten()


def _joined(parts: list[Tensor]) -> Tensor | None:
    return torch.cat([_real(one).double() for one in parts]) if parts else None


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _power_of_two(values: list[float]) -> bool:
    """Whether factors are powers of two, as those of mixed precision are."""
    return all(abs(math.log2(max(one, 1e-300)) - round(math.log2(max(one, 1e-300)))) < 1e-4 for one in values)


def optimizers_seen(seen: list[Any], names: Mapping[int, str]) -> Finding:
    """Optimizers that are made again and again for the same weights."""
    counts = Counter(map(id, weights_of(*seen)))
    most = max((count for key, count in counts.items() if key in names), default=0)
    meaning = "the optimizer is made anew again and again, so its momentum and averages are lost."
    advice = "Create the optimizer once, before the loop."
    return at_most("optimizers that stepped with the same weights", float(most), 2.0, meaning, advice)
