"""What a wrong value is: the search for a mistake that turns a definition into the code under test.

A definition of the doctor is run again and again, each time with one change: an operation on tensors is
exchanged for a related one, a setting has another value, an input is replaced by another one or transformed,
or a step is left out. A change is named if its value is the one observed, to rounding, in all cases at once.
The changes are those of mutation testing and of published studies of faults (Humbatova et al. 2020, Islam et
al. 2019, UMLAUT): wrong reduction, axis, sign, unit, mask, order, conjugate, floor, constant, input.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rismusic.doctor.state import in_double

P = ParamSpec("P")
R = TypeVar("R")
Value = Tensor | float
Definition = Callable[[], Value]
_Operation = Callable[..., Any]
# A change of an operation: what stands in place of it, from the operation and its arguments.
_Change = Callable[..., Any]

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)
_PACKAGE = str(Path(__file__).parent.parent)
# Largest relative distance of a value from one that explains it.
TOLERANCE = 2e-4
# Most runs of a definition in a search.
_RUNS = 1500
# Relative distance of equal values.
_ROUNDING = 1e-5
# Kinds of sites, in the order in which their changes are tried.
_ORDER = ("setting", "step", "input", "operation")
# Errors that say that a change does not apply.
_INAPPLICABLE = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ZeroDivisionError)

# Operations by name: changes in words, with what stands in place of operation `f` of arguments `x`, `y`.
_OPERATIONS: dict[str, dict[str, _Change]] = {
    "sum": {"the mean": lambda _f, x, *a, **k: torch.mean(x * 1.0, *a, **k)},
    "mean": {"the sum": lambda _f, x, *a, **k: torch.sum(x, *a, **k)},
    "amax": {"the smallest": lambda _f, x, *a, **k: torch.amin(x, *a, **k)},
    "amin": {"the largest": lambda _f, x, *a, **k: torch.amax(x, *a, **k)},
    "log": {"log10": lambda _f, x: torch.log10(x), "log1p": lambda _f, x: torch.log1p(x)},
    "log10": {"the natural logarithm": lambda _f, x: torch.log(x)},
    "exp": {"1 + x": lambda _f, x: 1 + x, "2^x": lambda _f, x: torch.exp2(x)},
    "square": {"the modulus": lambda _f, x, *_: x.abs(), "the fourth power": lambda _f, x, *_: x.abs() ** 4},
    "sin": {"the cosine": lambda _f, x: torch.cos(x)},
    "cos": {"the sine": lambda _f, x: torch.sin(x)},
    "add": {"the difference": lambda _f, x, y, **_: x - y},
    "sub": {"the sum": lambda _f, x, y, **_: x + y, "the parts exchanged": lambda _f, x, y, **_: y - x},
    "mul": {"the quotient": lambda _f, x, y: x / y},
    "div": {"the product": lambda _f, x, y, **_: x * y, "the parts exchanged": lambda _f, x, y: y / x},
    "matmul": {
        "the second part conjugated": lambda _f, x, y: x @ y.conj(),
        "the first part conjugated": lambda _f, x, y: x.conj() @ y,
        "the second part transposed": lambda _f, x, y: x @ y.mT,
        "the first part transposed": lambda _f, x, y: x.mT @ y,
        "the parts exchanged": lambda _f, x, y: y @ x,
    },
    "gt": {">=": lambda _f, x, y: x >= y, "<=": lambda _f, x, y: x <= y},
    "ge": {">": lambda _f, x, y: x > y, "<": lambda _f, x, y: x < y},
    "lt": {"<=": lambda _f, x, y: x <= y, ">=": lambda _f, x, y: x >= y},
    "le": {"<": lambda _f, x, y: x < y, ">": lambda _f, x, y: x > y},
    "where": {
        "the branches exchanged (a mask inverted)": lambda f, m, x, y: f(m, y, x),
        "the first branch alone (no mask)": lambda f, m, x, y: f(m | ~m, x, y),
        "the second branch alone": lambda f, m, x, y: f(m & ~m, x, y),
    },
    "softmax": {
        "the sigmoid": lambda _f, x, *_, **__: x.sigmoid(),
        "a causal mask": lambda f, x, *a, **k: f(_causal(x), *a, **k),
    },
    "sort": {"the other order": lambda f, x, **k: f(x, **{**k, "descending": not k.get("descending")})},
    "gather": {
        "the one after it": lambda f, x, d, i: f(x, d, (i + 1).clamp_max(x.shape[d] - 1)),
        "the one before it": lambda f, x, d, i: f(x, d, (i - 1).clamp_min(0)),
    },
}
# Operations without which the first argument remains, with parts that may remain alone or be exchanged, and
# those over an axis.
_LEFT_OUT, _ONE_ALONE, _OVER_AXES = (
    frozenset(names.split())
    for names in (
        "sqrt square abs log log10 exp conj mH mT real relu clamp clamp_min clamp_max softmax log_softmax "
        "asin sigmoid tanh erf remainder round flip cumsum nan_to_num reciprocal rad2deg deg2rad neg sort",
        "add sub mul div matmul maximum minimum",
        "sum mean amax amin softmax log_softmax logsumexp norm cumsum std var flip",
    )
)
_KNOWN = _LEFT_OUT | _ONE_ALONE | _OVER_AXES | frozenset(_OPERATIONS)
# What a value may be in terms of the right one.
_WHOLE: dict[str, Callable[[Tensor], Tensor]] = {
    "0 in every case": torch.zeros_like,
    "of the wrong sign": torch.neg,
    "conjugated": torch.conj,
    "1 minus that of the definition": lambda x: 1 - x,
    "the root of that of the definition": lambda x: x.abs().sqrt(),
    "the square of that of the definition": torch.square,
    "that of the definition inverted": lambda x: 1 / x,
    "the logarithm of that of the definition": torch.log,
    "that of the definition, rounded to half precision": lambda x: _rounded(x, torch.float16),
    "that of the definition, rounded to bfloat16": lambda x: _rounded(x, torch.bfloat16),
    "that of the definition, sorted along the last axis alone": lambda x: x.sort(-1).values,
    "that of the definition in reverse order of the last axis": lambda x: x.flip(-1),
}
# The same along an axis.
_ALONG: dict[str, Callable[[Tensor, int], Tensor]] = {
    "that of the next {}": lambda x, a: x.roll(-1, a),
    "that of the {} before": lambda x, a: x.roll(1, a),
    "that of the first {} in every one": lambda x, a: x.narrow(a, 0, 1).expand_as(x),
    "the mean of that of the definition over every {}": lambda x, a: x.mean(a, keepdim=True).expand_as(x),
}
# Fewest values, of those that are 0 or 1 only, that tell changes apart.
_BITS = 16
# Another value of a number.
_NUMBERS: tuple[Callable[[float], float], ...] = (
    *(lambda _: 0.0, lambda _: 1.0, lambda c: -c, lambda c: 1 - c, lambda c: 1 / c, lambda c: c / 2),
    *(lambda c: 2 * c, lambda c: c * c, math.sqrt, lambda c: c + 1, lambda c: c - 1, lambda c: c / 10),
    *(lambda c: 10 * c, math.radians, math.degrees, lambda c: c / 1e3, lambda c: c * 1e3),
)
# Another form of an input [S, ...] of a definition.
_INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "with {} of opposite sign": torch.neg,
    "with {} conjugated": torch.conj,
    "with {} transposed": lambda x: x.mT,
    "with {} in degrees": torch.rad2deg,
    "with {} converted to radians twice": torch.deg2rad,
    "with {} inverted": torch.reciprocal,
    "with {} squared": torch.square,
    "with the root of {}": torch.sqrt,
    "with {} in decibels": lambda x: 10 * x.log10(),
    "with the sine of {}": torch.sin,
    "with {} of the scene before": lambda x: x.roll(1, 0),
    "with {} of the scene after": lambda x: x.roll(-1, 0),
    "with {} of the scenes in reverse order": lambda x: x.flip(0),
    "with the same {} for all scenes, that of the first": lambda x: x[:1].expand_as(x),
    "with the mean of {} over the batch": lambda x: x.mean(0, keepdim=True).expand_as(x),
    "with the sum of {} over the batch": lambda x: x.sum(0, keepdim=True).expand_as(x),
    "with {} less its mean over the last axis": lambda x: x - x.mean(-1, keepdim=True),
    "with {} less its mean over axis 1": lambda x: x - x.mean(1, keepdim=True),
    "with {} sorted along its last axis": lambda x: x.sort(-1).values,
    "with {} in reverse order of its last axis": lambda x: x.flip(-1),
    "with {} shifted by one along its last axis": lambda x: x.roll(1, -1),
    "with {} shifted back by one along its last axis": lambda x: x.roll(-1, -1),
    "with {} rounded to half precision": lambda x: _rounded(x, torch.float16),
    "with {} rounded to bfloat16": lambda x: _rounded(x, torch.bfloat16),
    "with {} off by one": lambda x: x + 1,
    "with {} less one": lambda x: x - 1,
    "without {}": torch.zeros_like,
    "with no gradient through {} (detached)": torch.detach,
}


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    if x.is_complex():
        return torch.view_as_complex(torch.view_as_real(x.resolve_conj()).to(dtype).double())
    return x.to(dtype).double()


def _finite(changed: Tensor, x: Tensor) -> Tensor:
    """A changed input, unless numbers become undefined, which may remove what is wrong."""
    if int(changed.isfinite().sum()) < int(x.isfinite().sum()):
        raise ValueError("a number without this form")
    return changed


def _causal(score: Tensor) -> Tensor:
    later = torch.ones(score.shape[-2:], dtype=torch.bool, device=score.device).triu(1)
    return score.masked_fill(later, -math.inf)


Site = tuple[Any, ...]


@dataclass
class _Run:
    """One run of a definition: with changes at some sites, or all noted; and the inputs without them."""

    changes: Mapping[Site, _Change] | None = None
    usual: Mapping[str, list[Tensor]] = field(default_factory=dict)
    # Each site: kind, name, and the arguments of its first call.
    seen: dict[Site, tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)

    def call(self, site: Site, name: str, function: _Operation, args: Any, kwargs: Any) -> Any:
        if self.changes is not None:
            changed = self.changes.get(site)
            return function(*args, **kwargs) if changed is None else changed(function, *args, **kwargs)
        self.seen.setdefault(site, (name, args, kwargs))
        return function(*args, **kwargs)


_run: ContextVar[_Run | None] = ContextVar("run", default=None)


def given(name: str, value: Tensor) -> Tensor:
    """Marks an input of a definition, which may be another one in the code under test."""
    run = _run.get()
    if run is None:
        return value
    run.inputs.setdefault(name, []).append(value)
    found: Tensor = run.call(("input", name), name, lambda x: x, (value,), {})
    return found


def setting(name: str, value: float) -> float:
    """Marks a number of a definition, which may be another one in the code under test."""
    run = _run.get()
    return value if run is None else float(run.call(("setting", name), name, lambda x: x, (value,), {}))


def step(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Marks a step of a definition, which the code under test may leave out: its first argument remains."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            run = _run.get()
            if run is None:
                return function(*args, **kwargs)
            found: R = run.call(("step", name), name, function, args, kwargs)
            return found

        return called

    return decorate


class _Operations(TorchFunctionMode):
    """Shows a run each operation on tensors in a definition."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self.run = run

    # Not a function, which the type checks of the tests would wrap: the caller is needed.
    __torch_function__ = lambda self, f, _, a=(), k=None: self.see(sys._getframe(1), f, a, k or {})  # type: ignore[attr-defined] # noqa: E731

    def see(self, frame: FrameType, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operation, called in a frame."""
        name = getattr(func, "__name__", "")
        name = getattr(func.__self__, "__name__", "") if name == "__get__" else name.strip("_")
        name = {"truediv": "div", "pow": "square", "rmul": "mul", "radd": "add"}.get(name, name)
        if name not in _KNOWN:
            return func(*args, **kwargs)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_TORCH):
            frame = frame.f_back
        file = frame.f_code.co_filename
        if file.startswith(_PACKAGE) and not file.startswith(_HERE):
            # A function of the package that a definition calls has a definition of its own.
            return func(*args, **kwargs)
        return self.run.call(("operation", frame.f_code, frame.f_lasti, name), name, func, args, kwargs)


@contextmanager
def _running(run: _Run) -> Iterator[None]:
    token = _run.set(run)
    try:
        with _Operations(run), torch.no_grad():
            yield
    finally:
        _run.reset(token)


def explanation(
    found: Sequence[Value],
    definitions: Sequence[Definition],
    tolerance: float = TOLERANCE,
    others: Sequence[tuple[Value, Definition]] = (),
) -> str:
    """The change of a definition that gives the observed values in all cases, or two that do, or ``""``.

    ``tolerance`` is the largest relative distance of equal values; ``others`` are further results of the same
    calls with their definitions, which the change must give too.
    """
    with torch.no_grad():
        right = [_wide(one()) for one in definitions]
    wrong = [_wide(value) for value in found]
    pairs = list(zip(wrong, right, strict=True))
    if any(w.dtype != r.dtype or w.shape != r.shape or not bool(w.isfinite().all()) for w, r in pairs):
        return ""
    # First the case that tells most. A case whose values agree only says which changes do too much.
    off = [float((w - r).norm() / r.norm().clamp_min(1e-30)) for w, r in pairs]
    order = sorted(range(len(off)), key=lambda case: -off[case])
    wrong, right = ([some[case] for case in order] for some in (wrong, right))
    definitions = [definitions[case] for case in order]
    limits = [
        tolerance * float(w.norm())
        if far < min(tolerance, max(off) / 10)
        else min(tolerance * float(w.norm()), float((w - r).norm()) / 100)
        for w, r, far in zip(wrong, right, sorted(off, reverse=True), strict=True)
    ]
    if max(off, default=0.0) < _ROUNDING:
        return ""
    if sum(one.numel() for one in right) < _BITS and all(bool(((r == 0) | (r == 1)).all()) for r in right):
        return ""
    for words, form in _forms(min(one.ndim for one in right)):
        with suppress(*_INAPPLICABLE):
            if all(_near(w, form(r), limit) for w, r, limit in zip(wrong, right, limits, strict=True)):
                return f": it is {words}"
    told = len(right)
    for own, define in others:
        wrong.append(_wide(own))
        # They only reject changes that do too much, whatever the rounding errors.
        limits.append(10 * tolerance * max(float(wrong[-1].norm()), 1e-2))
        definitions = [*definitions, define]
    notes = [_Run() for _ in definitions]
    for note, one in zip(notes, definitions, strict=True):
        with _running(note):
            one()
    inputs, seen, runs = notes[0].inputs, notes[0].seen, itertools.count()

    def value(case: int, site: Site, change: _Change) -> Tensor | None:
        if case < told and next(runs) > _RUNS:
            return None
        changed = {site: change}
        if site[0] == "exchange":
            changed = {one: _other(two[1]) for one, two in itertools.permutations(site[1:])}
        try:
            with _running(_Run(changed, notes[case].inputs)):
                one = _wide(definitions[case]())
        except _INAPPLICABLE:
            return None
        return one if one.shape == wrong[case].shape and one.dtype == wrong[case].dtype else None

    def explains(site: Site, change: _Change, first: Tensor | None) -> bool:
        cases = range(len(definitions))
        values = (first if case == 0 else value(case, site, change) for case in cases)
        return all(map(_near, values, wrong, limits))

    exchanges: list[tuple[Site, str, _Change]] = [
        (("exchange", ("input", one), ("input", two)), f"with {one} and {two} exchanged", lambda _f, x: x)
        for one, two in itertools.combinations(inputs, 2)
        if {value.shape for value in inputs[one]} & {value.shape for value in inputs[two]}
    ]
    changes = (
        (site, words, change)
        for site, (name, args, kwargs) in sorted(seen.items(), key=lambda pair: _ORDER.index(pair[0][0]))
        for words, change in _changes(site, name, args, kwargs, inputs)
    )
    tried = itertools.chain(exchanges, changes)
    fitting = (words for site, words, change in tried if explains(site, change, value(0, site, change)))
    fits = list(itertools.islice(fitting, 2))
    along = wrong[0] - right[0]
    for site, (name, args, _) in seen.items():
        for words, make, usual, numbers in () if fits else _numbers(site, name, args):

            def share(
                number: float, site: Site = site, make: Callable[[float], _Change] = make
            ) -> float | None:
                """How far the value with a number is beyond the observed one; -1 with the usual number."""
                one = value(0, site, make(number))
                if one is None:
                    return None
                far = float(((one - wrong[0]) * along.conj()).sum().real / along.abs().square().sum())
                return far if math.isfinite(far) else None

            for number in _fitting(usual, numbers, share):
                change = make(number)
                if not fits and explains(site, change, value(0, site, change)):
                    known = f" in place of {usual:.4g}" if site[0] != "input" else ""
                    fits = [f"{words}{number:.4g}{known}"]
    return (
        f": it is that of the definition {', or '.join(fits)}"
        if fits
        else _relation(wrong[:told], right, limits[:told])
    )


def _forms(axes: int) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """What a value may be in terms of the right one, which has at least so many axes."""
    yield from _WHOLE.items()
    for axis in range(axes):
        what = f"entry along axis {axis}" if axis else "scene (or row)"
        for words, form in _ALONG.items():
            yield words.format(what), partial(_along, form, axis)


def _along(form: Callable[[Tensor, int], Tensor], axis: int, x: Tensor) -> Tensor:
    return form(x, axis)


def difference(found: Tensor, right: Tensor) -> str:
    """What differs between a value and the right one: shape, axis, sign, limits, or the values themselves."""
    if found.shape != right.shape:
        return f"the shape is {list(found.shape)} in place of {list(right.shape)}"
    found, right = found.nan_to_num(), right.nan_to_num()
    wrong = (found - right).abs() > _ROUNDING * right.abs().max()
    places = f"{int(wrong.sum())} of {found.numel()} values differ"
    if not bool(wrong.any()):
        return "it is missing (NaN) in other places"
    if found.is_complex() and bool(right.imag.any()) and not bool(found.imag.any()):
        return f"it is real, {places}"
    for axis in range(found.ndim):
        apart = [float((x - x.narrow(axis, 0, 1)).abs().max()) for x in (found, right)]
        if apart[0] == 0 < apart[1] and found.shape[axis] > 1:
            return f"its {found.shape[axis]} entries along axis {axis} are all the same"
    for axis in range(found.ndim):
        lines = wrong.movedim(axis, 0).reshape(wrong.shape[axis], -1).any(1)
        if 0 < (number := int(lines.sum())) < len(lines):
            where = ", ".join(map(str, lines.nonzero()[:6, 0].tolist())) + (", ..." if number > 6 else "")
            return f"{places}, at {where} along axis {axis}"
    if found.is_complex():
        found, right, places = found.abs(), right.abs(), f"{places}, moduli"
    own, other = (f"{float(one.min()):.4g} to {float(one.max()):.4g}" for one in (found, right))
    return f"{places}: {own} in place of {other}"


def _wide(value: Value) -> Tensor:
    return in_double(torch.as_tensor(value).detach().cpu())


def _near(one: Tensor | None, other: Tensor, limit: float) -> bool:
    return one is not None and float((one - other).norm()) <= max(limit, 1e-12)


def _relation(wrong: Sequence[Tensor], right: Sequence[Tensor], limits: Sequence[float]) -> str:
    """A factor or a sum that is the same in all cases, where they are enough to tell."""
    w, r = (torch.cat([one.flatten() for one in some]) for some in (wrong, right))
    if len(w) < 3 or float((r - r.mean()).norm()) < 0.01 * float(r.norm()):
        return ""
    factor = (w * r.conj()).sum() / r.abs().square().sum()
    shift = (w - r).mean()
    if float((w - factor * r).norm()) <= sum(limits) / len(limits):
        return f": it is {float(factor.real):.4g} times that of the definition"
    if float((w - r - shift).norm()) <= 0.003 * float((r - r.mean()).norm()):
        if float(shift.real) < 0:
            return f": it is lower by {-float(shift.real):.3g} in every case"
        return f": it is higher by {float(shift.real):.3g} in every case (a floor above zero)"
    return ""


def _changes(
    site: Site,
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    inputs: Mapping[str, list[Tensor]],
) -> Iterator[tuple[str, _Change]]:
    """Words and change, for all changes of a site but those of numbers."""
    if site[0] == "input":
        for words, form in _INPUTS.items():
            yield words.format(name), lambda _, x, form=form: _finite(form(x), x)
        for other, values in inputs.items():
            if other != name and any(one.shape == args[0].shape for one in values):
                yield f"with {other} in place of {name}", _other(other)
    elif site[0] == "setting":
        yield f"with the square of {name}", lambda _, x: x * x
        if 0 <= args[0] <= 1:
            yield f"with 1 minus {name}", lambda _, x: 1 - x
    elif site[0] == "step":
        yield f"without {name}", lambda _, x, *__, **___: x
    else:
        text = f"`{_source(site)}`"
        for words, change in _OPERATIONS.get(name, {}).items():
            yield f"with {words} in {text}", change
        if name in _LEFT_OUT:
            yield f"without {name} in {text}", lambda _, x, *__, **___: x
        if name in _ONE_ALONE:
            yield f"with the first part alone in {text}", lambda _, x, y, **__: x + 0 * y
            yield f"with the second part alone in {text}", lambda _, x, y, **__: y + 0 * x
        if name in _OVER_AXES and isinstance(args[0], Tensor):
            for axis in range(-args[0].ndim, 0):
                rest = {**kwargs, "dim": axis}
                yield f"over axis {axis} in {text}", lambda f, x, *_, rest=rest, **__: f(x, **rest)
        yield f"with the opposite sign in {text}", lambda f, *a, **k: -f(*a, **k)
        # For definitions of gradients.
        yield f"with no gradient (detached) through {text}", lambda f, *a, **k: f(*a, **k).detach()


def _numbers(
    site: Site, name: str, args: tuple[Any, ...]
) -> Iterator[tuple[str, Callable[[float], _Change], float, list[float]]]:
    """Words, the change to a number, the usual number and others, of the numbers and limits of a site."""
    if site[0] == "setting":
        yield f"with {name} ", partial(_with, 0), float(args[0]), _other_numbers(float(args[0]))
    elif site[0] == "input" and not args[0].is_complex() and int(args[0].isfinite().sum()) > 1:
        x = args[0][args[0].isfinite()].double()
        low, *inner, high = x.quantile(torch.linspace(0, 1, 8, dtype=x.dtype)).tolist()
        yield f"with {name} clipped from below at ", _no_less, low, [*inner, high, high + 1, 2 * high]
        yield f"with {name} clipped from above at ", _no_more, high, [*inner, low, low - 1]
    elif site[0] not in ("input", "step") and name not in (*_OVER_AXES, "gather"):
        for index, one in enumerate(args):
            if isinstance(one, (int, float)) and not isinstance(one, bool):
                yield (
                    f"in `{_source(site)}` with ",
                    partial(_with, index),
                    float(one),
                    _other_numbers(float(one)),
                )


def _no_less(number: float) -> _Change:
    return lambda _, x: x.clamp_min(number)


def _no_more(number: float) -> _Change:
    return lambda _, x: x.clamp_max(number)


def _other(name: str) -> _Change:
    def change(_: object, x: Tensor) -> Tensor:
        values = () if (run := _run.get()) is None else run.usual[name]
        return next((one for one in values if one.shape == x.shape), x)

    return change


def _with(index: int, number: float) -> _Change:
    """The operation with another number among its arguments."""
    return lambda f, *a, **k: f(*a[:index], number, *a[index + 1 :], **k)


def _other_numbers(number: float) -> list[float]:
    found = []
    for form in _NUMBERS:
        with suppress(ValueError, ZeroDivisionError, OverflowError):
            found.append(form(float(number)))
    return [one for one in dict.fromkeys(found) if one != number and math.isfinite(one)]


def _fitting(
    usual: float, others: Sequence[float], share: Callable[[float], float | None]
) -> Iterator[float]:
    """Other numbers with the observed value: usual mistakes, or a root between two of them."""
    points = [(n, s) for n in others if (s := share(n)) is not None]
    right = [number for number, s in points if abs(s) < 1e-3]
    yield from right
    points = sorted([(usual, -1.0), *points])
    for (high, g), (low, f) in itertools.pairwise(points[::-1]) if not right else ():
        if f * g < 0:
            # brentq's RuntimeError: a jump has no root; ValueError: none once the ends are rounded.
            with suppress(_NoRootError, RuntimeError, ValueError):
                if low > 0:
                    yield math.exp(_root(lambda t: share(math.exp(t)), math.log(low), math.log(high)))
                else:
                    yield _root(share, low, high)


class _NoRootError(Exception):
    """A function has no value between two numbers."""


def _root(function: Callable[[float], float | None], low: float, high: float) -> float:
    def value(x: float) -> float:
        if (found := function(x)) is None:
            raise _NoRootError
        return found

    return float(brentq(value, low, high, xtol=1e-12, rtol=1e-10, maxiter=20))


def _source(site: Site) -> str:
    """The expression of a definition, as it is written."""
    _, code, last, _ = site
    first, last_line, start, end = next(itertools.islice(code.co_positions(), last // 2, None))
    lines = Path(code.co_filename).read_text().splitlines()[(first or 1) - 1 : last_line]
    lines[-1] = lines[-1].encode()[:end].decode()
    lines[0] = lines[0].encode()[start:].decode()
    return " ".join(" ".join(lines).split())
