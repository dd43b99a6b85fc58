"""Check the shapes and types of the package while the tests run, faster than jaxtyping's own decorator.

The import hook of jaxtyping puts ``jaxtyping.jaxtyped`` on every function. Its wrapper binds the arguments
and checks them twice, alone and with the return value, which takes half of the time of small numerical tests.
:func:`jaxtyped` lets beartype check the same hints once. It opens a context for the sizes of axes only where
a hint has axes. :func:`fits` compares a tensor with a hint; jaxtyping's own comparison copies all sizes that
it knows before each of them.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, NamedTuple, get_args, get_type_hints

import jaxtyping
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import _array_types as hints
from jaxtyping._storage import _shape_storage, pop_shape_memo, push_shape_memo

_original = jaxtyping.jaxtyped
_fits = hints._MetaAbstractArray.__instancecheck__
_DTYPES = {str(one).rpartition(".")[2]: one for one in vars(torch).values() if isinstance(one, torch.dtype)}


class _Hint(NamedTuple):
    """A hint for a tensor: its dtypes, and its axes as names, sizes or None (any size) around a variadic."""

    dtypes: frozenset[torch.dtype]
    axes: tuple[str | int | None, ...]
    variadic: int | None  # its place
    name: str | None  # of the variadic


def fits(hint: Any, value: Any) -> bool:
    """Replaces ``isinstance(value, hint)`` for hints of jaxtyping, which keeps what is no plain tensor."""
    known = _hint(hint)
    if known is None or not isinstance(value, torch.Tensor):
        return _fits(hint, value)
    dtypes, axes, variadic, name = known
    if value.dtype not in dtypes:
        return False
    try:
        sizes, groups, *_ = _shape_storage.memo_stack[-1]
    except (AttributeError, IndexError):  # no call is checked
        sizes, groups = {}, {}
    shape = value.shape
    if variadic is not None:
        end = len(shape) - len(axes) + variadic
        group = False, shape[variadic:end]
        if end < variadic or groups.get(name, group) != group:
            return end >= variadic and groups[name][0] and _fits(hint, value)  # one that may be broadcast
        shape = (*shape[:variadic], *shape[end:])
    elif len(shape) != len(axes):
        return False
    before = len(sizes)
    for axis, size in zip(axes, shape):  # noqa: B905 (as many)
        if size != (sizes.setdefault(axis, size) if type(axis) is str else axis) and axis is not None:
            while len(sizes) > before:  # a value that does not fit says nothing of the sizes
                sizes.popitem()
            return False
    if variadic is not None and name is not None:
        groups[name] = group
    return True


@functools.cache
def _hint(hint: Any) -> _Hint | None:
    """The hint taken apart; none if it is of a kind that is left to jaxtyping."""
    if hint.array_type is not torch.Tensor:
        return None
    named = _DTYPES if hint.dtypes is hints._any_dtype else hint.dtypes
    if not all(type(name) is str for name in named):
        return None
    dtypes = frozenset(_DTYPES[name] for name in named if name in _DTYPES)
    axes: list[str | int | None] = []
    group = None
    for place, axis in enumerate(hint.dims):
        if getattr(axis, "broadcastable", False) or getattr(axis, "treepath", False):
            return None
        if place == hint.index_variadic:
            group = getattr(axis, "name", None)
        elif axis is hints._anonymous_dim:
            axes.append(None)
        elif isinstance(axis, hints._NamedDim):
            axes.append(axis.name)
        elif isinstance(axis, hints._FixedDim):
            axes.append(axis.size)
        else:
            return None
    return _Hint(dtypes, tuple(axes), hint.index_variadic, group)


@functools.cache
def jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
    """Replaces ``jaxtyping.jaxtyped`` for what its import hook decorates."""
    return functools.partial(_decorated, original=_original(typechecker=typechecker))


def _decorated(target: Any, original: Callable[[Any], Any]) -> Any:
    if inspect.isclass(target):
        if "__dataclass_fields__" in vars(target) and "__init__" in vars(target):
            target.__init__ = _decorated(target.__init__, original)
        return target
    if isinstance(target, classmethod | staticmethod):
        return type(target)(_decorated(target.__func__, original))
    if not isinstance(target, FunctionType) or _runs_later(target):
        return original(target)
    return _checked(target)


def _runs_later(function: FunctionType) -> bool:
    """The body of a generator runs after the call, outside its context."""
    return inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function)


def _checked(function: FunctionType) -> Callable[..., Any]:
    """The check is made at the first call: most processes call a small part of the package.

    A function within another one is made at each call of that one, and its check only once: beartype takes
    the function to call as an argument.
    """
    key = id(function.__code__)  # methods that dataclasses write may be equal, with other hints

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        check, has_axes, _ = _checks.get(key) or _checks.setdefault(key, _check(function))
        if check is None:
            return function(*args, **kwargs)
        if has_axes:
            push_shape_memo({})
        try:
            return check(*args, __beartype_func=function, **kwargs)
        except BeartypeCallHintViolation as error:
            with contextlib.redirect_stdout(io.StringIO()) as sizes:
                jaxtyping.print_bindings()
            raise jaxtyping.TypeCheckError(f"{error}\n{sizes.getvalue()}") from error
        finally:
            if has_axes:
                pop_shape_memo()

    return wrapper


_checks: dict[int, tuple[Callable[..., Any] | None, bool, CodeType]] = {}


def _check(function: FunctionType) -> tuple[Callable[..., Any] | None, bool, CodeType]:
    """The function as beartype checks it, none without hints; whether a hint has axes; the code, to keep."""
    resolved = {name: _resolved(hint, function) for name, hint in function.__annotations__.items()}
    copy = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__, copy.__qualname__ = function.__kwdefaults__, function.__qualname__
    copy.__annotations__ = resolved
    checked = beartype(copy)
    has_axes = any(_has_axes(hint) for hint in resolved.values())
    return None if checked is copy else checked, has_axes, function.__code__


def _resolved(hint: Any, function: FunctionType) -> Any:
    """The hint as an object; as in jaxtyping, names that do not exist yet are not checked."""

    def holder(value: Any) -> None: ...

    holder.__annotations__ = {"value": hint}
    try:
        return get_type_hints(holder, function.__globals__, include_extras=True)["value"]
    except Exception:
        return Any


def _has_axes(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(_has_axes(part) for part in (hint if isinstance(hint, list) else get_args(hint)))
