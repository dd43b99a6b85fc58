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

from rismusic.doctor.report import Findings
from rismusic.doctor.state import calling_line, names
from rismusic.doctor.tape import TapeRecorder
from rismusic.nn.monitors import Finding, at_most

# Loss at the start over that of equal probabilities, from which the logits are far too large.
_FIRST_LOSS = 4.0
# Nodes of the graph that only change the shape.
_SHAPES = names("View UnsafeView Squeeze Unsqueeze Reshape Transpose Permute Select Slice Clone T")
# Lines that cut the gradient, of which a few are shown.
_MOST_LINES = 8
_ROUNDING = names("round sign floor ceil trunc argmax argmin heaviside topk searchsorted")
# Calls that read a property of a tensor other than its values, of which there are many.
_PLAIN = names("size dim numel item tolist numpy __len__ __bool__ __float__ __int__ __repr__ __format__")
Observer = Callable[[Any, Sequence[Any], Any], None]


class CallRecorder(TorchFunctionMode):
    """Records suspicious calls while it is active; observers get function, arguments and result of each.

    ``numbers_cut``: whether ``item()`` and the like cut the gradient; in a whole loop they serve the log.
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
        name, tape, kwargs = getattr(func, "__name__", ""), self.tape, kwargs or {}
        if tape is None or not tape.active or name in _PLAIN:
            if tape is not None and tape.active and name in ("item", "tolist", "numpy") and args:
                tape.touch(args[0])
            result = func(*args, **kwargs)
        else:
            with torch._C.DisableTorchFunction():
                found = tape.before(name, args, kwargs)
                state = torch.get_rng_state() if tape.draws(name, args, kwargs) else None
            result = func(*args, **kwargs)
            with torch._C.DisableTorchFunction():
                tape.after(func, name, args, kwargs, result, found, state)
        with torch._C.DisableTorchFunction():
            check = _CHECKS.get(name)
            if check is not None:
                for one in check(args, kwargs, result):
                    # Later losses of a training are not those of an untrained network.
                    late = name in self._seen and one.name.startswith("first")
                    if not (one.fine or late or one.name in self._found):
                        self._found[one.name] = replace(one, where=calling_line())
                self._seen.add(name)
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
        if name not in _SHAPES:
            return name
        node = node.next_functions[0][0] if node.next_functions else None
    return ""


def _argument(args: Sequence[Any], kwargs: dict[str, Any], number: int, name: str) -> Any:
    return args[number] if len(args) > number else kwargs.get(name)


def _once(name: str, meaning: str, advice: str) -> list[Finding]:
    """A call that is wrong whatever its numbers."""
    return [at_most(name, 1.0, 0.0, meaning, advice)]


def _cross_entropy(args: Any, kwargs: Any, result: Any) -> list[Finding]:
    logits, target = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "target")
    found = Findings()
    made = made_by(logits)
    if made in ("Softmax", "Sigmoid"):
        found += _once(
            "calls of cross_entropy with probabilities",
            f"cross_entropy gets the output of a {made.lower()}, and applies a softmax itself (double "
            "softmax), so its gradient is weak, and it cannot fall to 0.",
            f"Pass the logits, without {made.lower()}.",
        )
    elif made == "Relu":
        found += _once(
            "calls of cross_entropy with logits cut at 0",
            "the last layer ends with a ReLU, which cuts the logits of cross_entropy at 0.",
            "Remove the activation of the last layer.",
        )
    if not isinstance(result, Tensor) or not isinstance(target, Tensor) or logits.ndim < 2:
        return found
    even = math.log(max(logits.shape[1], 2))
    value = float(result.detach().mean())
    if not target.is_floating_point() and math.isfinite(value) and kwargs.get("reduction", "mean") != "sum":
        found.at_most(
            "first cross entropy over that of equal probabilities",
            value / even,
            _FIRST_LOSS,
            f"the first cross entropy is {value:.3g}, but an untrained network should have about "
            f"ln({logits.shape[1]}) = {even:.3g}: the logits are too large.",
            "Scale the inputs, and initialise the last layer with small weights.",
        )
    return found


def _logarithms(args: Any, kwargs: Any, result: Any) -> list[Finding]:
    """Input of kl_div (an exponential is at most 1) and nll_loss (exponentials of classes add up to 1)."""
    given = _argument(args, kwargs, 0, "input")
    if not isinstance(given, Tensor) or not given.is_floating_point() or not given.numel():
        return []
    given, target = given.detach(), _argument(args, kwargs, 1, "target")
    off = float(given.max())
    if given.ndim > 1 and isinstance(target, Tensor) and not target.is_floating_point():
        off = float(given.exp().sum(1).sub(1).abs().max())
    meaning = "nll_loss or kl_div gets numbers that are not logarithms of probabilities."
    advice = "Apply log_softmax first, or use cross_entropy on the logits."
    return [at_most("largest error of the probabilities in nll_loss or kl_div", off, 1e-2, meaning, advice)]


def _bce_logits(args: Any, kwargs: Any, result: Any) -> list[Finding]:
    found = _shapes(args, kwargs, result)
    made = made_by(_argument(args, kwargs, 0, "input"))
    if made in ("Sigmoid", "Softmax"):
        found += _once(
            "calls of binary_cross_entropy_with_logits with probabilities",
            f"binary_cross_entropy_with_logits gets the output of a {made.lower()}, and applies a sigmoid "
            "itself (double sigmoid).",
            f"Pass the logits, without {made.lower()}.",
        )
    elif made in ("Relu", "Softplus"):
        found += _once(
            "calls of binary_cross_entropy_with_logits with logits cut at 0",
            f"the logits of binary_cross_entropy_with_logits are the output of a {made.lower()} and never "
            "negative, so no probability is below 0.5.",
            "Remove the activation of the last layer.",
        )
    return found


def _shapes(args: Any, kwargs: Any, result: Any) -> list[Finding]:
    """Losses of two tensors whose shapes differ, so that they are broadcast."""
    one, two = (_argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "target"))
    if not (isinstance(one, Tensor) and isinstance(two, Tensor)) or one.shape == two.shape:
        return []
    return _once(
        "losses of tensors whose shapes differ",
        f"prediction {list(one.shape)} and target {list(two.shape)} are broadcast against each other, so "
        "every prediction is compared with every target.",
        "Give both the same shape, such as with squeeze(1).",
    )


def _difference(args: Any, kwargs: Any, result: Any) -> list[Finding]:
    """The difference of [N, 1] and [N], one of them a target without a gradient."""
    if len(args) < 2 or not (isinstance(args[0], Tensor) and isinstance(args[1], Tensor)):
        return []
    one, two = args[0], args[1]
    flat, wide = sorted((one, two), key=lambda value: value.ndim)
    same = one.requires_grad == two.requires_grad or (flat.ndim, wide.ndim) != (1, 2) or len(flat) < 2
    return [] if same or tuple(wide.shape) != (len(flat), 1) else _shapes(args, {}, result)


def _over_samples(place: int) -> Callable[[Any, Any, Any], list[Finding]]:
    """A softmax or a normalisation over the first axis of several; the place of ``dim`` in its arguments."""

    def check(args: Any, kwargs: Any, result: Any) -> list[Finding]:
        given, dim = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, place, "dim")
        made = isinstance(given, Tensor) and given.ndim > 1 and given.requires_grad and not given.is_leaf
        if not made or dim not in (0, -given.ndim):
            return []
        return _once(
            "calls of softmax or normalize over the first axis",
            f"a softmax over the first axis of {list(given.shape)}, or a normalisation, normalises over "
            "the samples of the batch.",
            "Normalise over classes or features, dim=-1.",
        )

    return check


def _exchanged(args: Any, kwargs: Any, result: Any) -> list[Finding]:
    """A view or reshape whose sizes are those of the tensor in another order."""
    given = args[0] if args else None
    if not isinstance(given, Tensor) or not isinstance(result, Tensor) or result.numel() < 4:
        return []
    old, new = ([size for size in one.shape if size > 1] for one in (given, result))
    if old == new or sorted(old) != sorted(new):
        return []
    return _once(
        "calls of view or reshape that exchange axes",
        f"a view or reshape turns {list(given.shape)} into {list(result.shape)}: axes are mixed up, since it "
        "keeps the order of the numbers in memory.",
        "Exchange axes with transpose or permute.",
    )


_CHECKS: dict[str, Callable[[Any, Any, Any], list[Finding]]] = {
    "cross_entropy": _cross_entropy,
    "binary_cross_entropy_with_logits": _bce_logits,
    **dict.fromkeys(("nll_loss", "kl_div"), _logarithms),
    **dict.fromkeys(("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"), _shapes),
    **dict.fromkeys(("sub", "__sub__", "rsub"), _difference),
    **dict.fromkeys(("softmax", "log_softmax"), _over_samples(1)),
    "normalize": _over_samples(2),
    **dict.fromkeys(("view", "reshape"), _exchanged),
}
assert functional.cross_entropy.__name__ in _CHECKS
