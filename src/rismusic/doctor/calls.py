"""Calls of torch functions in a forward pass and loss that are usually mistakes, with their lines.

A :class:`torch.overrides.TorchFunctionMode` sees every call while it is active, in the user's code and in
that of libraries, without changing a module or a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from rismusic.doctor.state import calling_line
from rismusic.doctor.tape import TapeRecorder
from rismusic.nn.monitors import Finding, at_most

# Loss at the start over that of equal probabilities, from which the logits are far too large.
_FIRST_LOSS = 4.0
# Nodes of the graph that only change the shape.
_SHAPES = ("View", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Permute", "Select", "Slice", "Clone", "T")
# Lines that cut the gradient, of which a few are shown.
_MOST_LINES = 8
_ROUNDING = (
    "round",
    "sign",
    "floor",
    "ceil",
    "trunc",
    "argmax",
    "argmin",
    "heaviside",
    "topk",
    "searchsorted",
)

Observer = Callable[[Any, Sequence[Any], Any], None]
# Calls that read a property of a tensor other than its values, of which there are many.
_PLAIN = frozenset(
    [
        "size",
        "dim",
        "numel",
        "item",
        "tolist",
        "numpy",
        "__len__",
        "__bool__",
        "__float__",
        "__int__",
        "__repr__",
        "__format__",
    ]
)


class CallRecorder(TorchFunctionMode):
    """Records suspicious calls while it is active.

    Args:
        observers: called with function, arguments and result of each call.
        numbers_cut: whether ``item()`` and the like count as cuts of the gradient. In a whole loop they serve
            the log.
        tape: records the calls, so that they can be repeated.
    """

    def __init__(
        self, *observers: Observer, numbers_cut: bool = True, tape: TapeRecorder | None = None
    ) -> None:
        super().__init__()
        self.observers = observers
        self.tape = tape
        self._cuts = ("detach", "detach_", *(("item", "numpy", "tolist") if numbers_cut else ()))
        self._seen: set[str] = set()
        self.detached: dict[str, None] = {}
        self.rounded: dict[str, None] = {}
        self._found: dict[str, Finding] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, tape = getattr(func, "__name__", ""), self.tape
        if tape is None or not tape.active or name in _PLAIN:
            if tape is not None and tape.active and name in ("item", "tolist", "numpy") and args:
                tape.touch(args[0])
            result = func(*args, **(kwargs or {}))
        else:
            with torch._C.DisableTorchFunction():
                found = tape.before(name, args, kwargs or {})
                state = torch.get_rng_state() if tape.draws(name, args, kwargs or {}) else None
            result = func(*args, **(kwargs or {}))
            with torch._C.DisableTorchFunction():
                tape.after(func, name, args, kwargs or {}, result, found, state)
        with torch._C.DisableTorchFunction():
            check = _CHECKS.get(name)
            if check is not None:
                new = [one for one in check(args, kwargs or {}, result) if one.name not in self._found]
                # Later losses of a training are not those of an untrained network.
                new = [one for one in new if name not in self._seen or not one.name.startswith("first")]
                self._seen.add(name)
                for finding in new:
                    self._found.setdefault(finding.name, replace(finding, where=calling_line()))
            if name in self._cuts and len(self.detached) < _MOST_LINES:
                if args and isinstance(args[0], Tensor) and args[0].requires_grad and torch.is_grad_enabled():
                    self.detached.setdefault(calling_line())
            elif name in _ROUNDING:
                self.rounded.setdefault(name)
            for observer in self.observers:
                observer(func, args, result)
        return result

    @property
    def findings(self) -> tuple[Finding, ...]:
        """One finding for each kind of suspicious call."""
        return tuple(self._found.values())

    @property
    def detached_lines(self) -> str:
        """The lines that cut the gradient, for a sentence; empty if there is none."""
        lines = [line for line in self.detached if line]
        return f" Calls that cut it: {', '.join(lines[:3])}." if lines else ""


def made_by(value: object) -> str:
    """Name of the operation that made a tensor, such as ``Softmax``, apart from changes of shape."""
    if not isinstance(value, Tensor):
        return ""
    node = value.grad_fn
    while node is not None:
        name = type(node).__name__.removesuffix("0").removesuffix("Backward").lstrip("_")
        if name in _SHAPES or name == "UnsafeView":
            node = node.next_functions[0][0] if node.next_functions else None
            continue
        return name
    return ""


def _argument(args: Sequence[Any], kwargs: dict[str, Any], number: int, name: str) -> Any:
    return args[number] if len(args) > number else kwargs.get(name)


def _wrong(name: str, value: float, limit: float, meaning: str, advice: str) -> Finding:
    return at_most(name, value, limit, meaning, advice)


def _cross_entropy(args: Any, kwargs: Any, result: Any) -> list[Finding]:
    logits, target = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "target")
    found = []
    made = made_by(logits)
    if made in ("Softmax", "Sigmoid"):
        found.append(
            _wrong(
                "calls of cross_entropy with probabilities",
                1.0,
                0.0,
                f"cross_entropy gets the output of a {made.lower()}, and applies a softmax itself (double "
                "softmax). Its gradient is weak, and the loss cannot fall to 0.",
                f"Pass the logits, without {made.lower()}.",
            )
        )
    elif made in ("Relu", "ReluBackward"):
        found.append(
            _wrong(
                "calls of cross_entropy with logits cut at 0",
                1.0,
                0.0,
                "the last layer ends with a ReLU, which cuts the logits of cross_entropy at 0.",
                "Remove the activation of the last layer.",
            )
        )
    if not isinstance(result, Tensor) or not isinstance(target, Tensor) or logits.ndim < 2:
        return found
    weight = _argument(args, kwargs, 2, "weight")
    if isinstance(weight, Tensor) and not target.is_floating_point():
        there = target[(target >= 0) & (target < len(weight))].flatten()
        found.append(_weighted(there.bincount(minlength=len(weight)).double(), weight.detach().double()))
    classes = logits.shape[1]
    value = float(result.detach().mean())
    if classes > 1 and not target.is_floating_point() and math.isfinite(value):
        found.append(
            _wrong(
                "first cross entropy over that of equal probabilities",
                value / math.log(classes) if kwargs.get("reduction", "mean") != "sum" else 0.0,
                _FIRST_LOSS,
                f"the first cross entropy is {value:.3g}, but an untrained network should have about "
                f"ln({classes}) = {math.log(classes):.3g}: the logits are too large.",
                "Scale the inputs, and initialise the last layer with small weights.",
            )
        )
    return [one for one in found if not one.fine]


def _nll(args: Any, kwargs: Any, result: Any) -> list[Finding]:
    given = _argument(args, kwargs, 0, "input")
    if not isinstance(given, Tensor) or given.ndim < 2 or not given.is_floating_point():
        return []
    off = float(given.detach().exp().sum(1).sub(1).abs().max())
    return [
        one
        for one in [
            _wrong(
                "largest error of the sum of the probabilities in nll_loss",
                off,
                1e-2,
                "nll_loss gets numbers that are not logarithms of probabilities.",
                "Apply log_softmax first, or use cross_entropy on the logits.",
            )
        ]
        if not one.fine
    ]


def _weighted(counts: Tensor, weight: Tensor) -> Finding:
    """Weights of classes make them more even, not less."""

    def evenness(mass: Tensor) -> float:
        share = mass / mass.sum().clamp_min(1e-30)
        return float(-torch.special.xlogy(share, share).sum() / math.log(max(len(share), 2)))

    return _wrong(
        "evenness of the classes without weights, less that with weights, 0 to 1",
        evenness(counts) - evenness(counts * weight.to(counts.device)),
        0.1,
        "the class weights make frequent classes count more and rare ones less: they are inverted, or in "
        "another order than the classes.",
        "Use weights that fall with the number of samples of a class, such as 1 / count.",
    )


def _bce_logits(args: Any, kwargs: Any, result: Any) -> list[Finding]:
    y, weight = _argument(args, kwargs, 1, "target"), kwargs.get("pos_weight")
    if isinstance(weight, Tensor) and weight.numel() == 1 and isinstance(y, Tensor):
        share = float(y.detach().double().mean().clamp(0, 1))
        weights = torch.stack((torch.ones_like(weight.flatten()[0]), weight.flatten()[0])).detach().double()
        found = _weighted(torch.tensor([1 - share, share], dtype=torch.float64), weights)
        if not found.fine:
            return [found]
    made = made_by(_argument(args, kwargs, 0, "input"))
    if made not in ("Sigmoid", "Softmax"):
        return _shapes(args, kwargs, result)
    return [
        _wrong(
            "calls of binary_cross_entropy_with_logits with probabilities",
            1.0,
            0.0,
            f"binary_cross_entropy_with_logits gets the output of a {made.lower()}, and applies a sigmoid "
            "itself (double sigmoid).",
            f"Pass the logits, without {made.lower()}.",
        )
    ]


def _divergence(args: Any, kwargs: Any, result: Any) -> list[Finding]:
    given = _argument(args, kwargs, 0, "input")
    if not isinstance(given, Tensor) or not given.is_floating_point() or not given.numel():
        return []
    found = _wrong(
        "largest logarithm of a probability in kl_div",
        float(given.detach().max()),
        1e-3,
        "kl_div gets numbers that are not logarithms of probabilities.",
        "Apply log_softmax to its first argument.",
    )
    return [] if found.fine else [found]


def _shapes(args: Any, kwargs: Any, result: Any) -> list[Finding]:
    """Losses of two tensors whose shapes differ, so that they are broadcast."""
    one, two = (_argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "target"))
    if not (isinstance(one, Tensor) and isinstance(two, Tensor)) or one.shape == two.shape:
        return []
    return [_broadcast(one, two)]


def _broadcast(one: Tensor, two: Tensor) -> Finding:
    return _wrong(
        "losses of tensors whose shapes differ",
        1.0,
        0.0,
        f"prediction {list(one.shape)} and target {list(two.shape)} are broadcast against each other, so "
        "every prediction is compared with every target.",
        "Give both the same shape, such as with squeeze(1).",
    )


def _difference(args: Any, kwargs: Any, result: Any) -> list[Finding]:
    """The difference of [N, 1] and [N], one of them a target without a gradient."""
    if len(args) < 2 or not (isinstance(args[0], Tensor) and isinstance(args[1], Tensor)):
        return []
    one, two = args[0], args[1]
    if one.requires_grad == two.requires_grad or one.ndim + two.ndim != 3:
        return []
    wide, flat = (one, two) if one.ndim == 2 else (two, one)
    if flat.ndim == 1 and len(flat) > 1 and tuple(wide.shape) == (len(flat), 1):
        return [_broadcast(one, two)]
    return []


def _normalise(args: Any, kwargs: Any, result: Any) -> list[Finding]:
    """Vectors that get unit norm over the samples."""
    given, dim = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 2, "dim")
    made = isinstance(given, Tensor) and given.ndim > 1 and given.requires_grad and not given.is_leaf
    if not made or dim not in (0, -given.ndim):
        return []
    return [
        _wrong(
            "vectors that are normalised over the first axis",
            1.0,
            0.0,
            f"a normalisation over the first axis of {list(given.shape)} gives unit norm over the samples of "
            "the batch, not over the features of a sample.",
            "Normalise over the features, dim=-1.",
        )
    ]


def _softmax(args: Any, kwargs: Any, result: Any) -> list[Finding]:
    """A softmax over the first axis of several."""
    given, dim = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "dim")
    if not isinstance(given, Tensor) or given.ndim < 2 or not given.requires_grad:
        return []
    if dim not in (0, -given.ndim):
        return []
    return [
        _wrong(
            "softmax over the first axis",
            1.0,
            0.0,
            f"a softmax over the first axis of {list(given.shape)} normalises over the samples of the batch.",
            "Normalise over the classes, dim=-1.",
        )
    ]


def _exchanged(args: Any, kwargs: Any, result: Any) -> list[Finding]:
    """A view or reshape whose sizes are those of the tensor in another order."""
    given = args[0] if args else None
    if not isinstance(given, Tensor) or not isinstance(result, Tensor) or result.numel() < 4:
        return []
    old, new = ([size for size in one.shape if size > 1] for one in (given, result))
    if old == new or sorted(old) != sorted(new):
        return []
    return [
        _wrong(
            "calls of view or reshape that exchange axes",
            1.0,
            0.0,
            f"a view or reshape turns {list(given.shape)} into {list(result.shape)}: axes are mixed up, "
            "since it keeps the order of the numbers in memory.",
            "Exchange axes with transpose or permute.",
        )
    ]


_CHECKS: dict[str, Callable[[Any, Any, Any], list[Finding]]] = {
    "cross_entropy": _cross_entropy,
    "nll_loss": _nll,
    "kl_div": _divergence,
    "binary_cross_entropy_with_logits": _bce_logits,
    "mse_loss": _shapes,
    "l1_loss": _shapes,
    "smooth_l1_loss": _shapes,
    "huber_loss": _shapes,
    "sub": _difference,
    "__sub__": _difference,
    "rsub": _difference,
    "normalize": _normalise,
    "softmax": _softmax,
    "log_softmax": _softmax,
    "view": _exchanged,
    "reshape": _exchanged,
}
assert functional.cross_entropy.__name__ in _CHECKS
