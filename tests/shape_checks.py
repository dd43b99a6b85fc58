"""Check the shapes and types of the package while the tests run, faster than jaxtyping's own decorator.

The import hook of jaxtyping puts ``jaxtyping.jaxtyped`` on every function. Its wrapper binds the arguments
and checks them twice, alone and with the return value, which takes half of the time of small numerical tests.
:func:`jaxtyped` lets beartype check the same hints once. It opens a context for the sizes of axes only where
a hint has axes.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
from collections.abc import Callable
from types import FunctionType
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation

_context = jaxtyping.jaxtyped("context")
_no_context = contextlib.nullcontext()
_original = jaxtyping.jaxtyped


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
    """The check is made at the first call: most processes call a small part of the package."""

    @functools.cache
    def check() -> tuple[Callable[..., Any], contextlib.AbstractContextManager[Any]]:
        hints = {name: _resolved(hint, function) for name, hint in function.__annotations__.items()}
        copy = FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        copy.__kwdefaults__, copy.__qualname__ = function.__kwdefaults__, function.__qualname__
        copy.__annotations__ = hints
        return beartype(copy), _context if any(_has_axes(hint) for hint in hints.values()) else _no_context

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        typed, context = check()
        with context:
            try:
                return typed(*args, **kwargs)
            except BeartypeCallHintViolation as error:
                with contextlib.redirect_stdout(io.StringIO()) as sizes:
                    jaxtyping.print_bindings()
                raise jaxtyping.TypeCheckError(f"{error}\n{sizes.getvalue()}") from error

    return wrapper


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
