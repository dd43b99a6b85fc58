"""Saving and restoring the state of networks, optimizers and random generators around a check."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_TORCH, _HERE = str(Path(torch.__file__).parent), str(Path(__file__).parent)
ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a check that fails may raise in the code under test."""
Networks = nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module]


def as_one(networks: Networks) -> nn.Module:
    """One module with the parameters of all networks."""
    if isinstance(networks, nn.Module):
        return networks
    if isinstance(networks, Mapping):
        return nn.ModuleDict(networks)
    return nn.ModuleList(networks)


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Restore weights, buffers, gradients, modes and plain attributes of a module at the end.

    The module itself is used, not a copy, so that closures and modules that cannot be copied work too.
    """
    tensors = [*module.parameters(), *module.buffers()]
    values = [(tensor, tensor.data, tensor.data.clone()) for tensor in tensors]
    gradients = [
        (p, p.grad, None if p.grad is None else p.grad.clone(), p.requires_grad) for p in module.parameters()
    ]
    kept = ("_parameters", "_buffers", "_modules")
    attributes = [
        (part, {k: v for k, v in vars(part).items() if k not in kept}, dict(part._buffers))
        for part in module.modules()
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, data, value in values:
                tensor.data = data
                tensor.data.copy_(value)
        for weight, grad, old, trained in gradients:
            weight.requires_grad_(trained)
            weight.grad = grad
            if grad is not None and old is not None:
                grad.data.copy_(old)
        for part, before, buffers in attributes:
            for name in [name for name in vars(part) if name not in before and name not in kept]:
                del vars(part)[name]
            vars(part).update(before)
            part._buffers.update(buffers)


def in_double(value: Tensor) -> Tensor:
    """Numbers of any type in double precision."""
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def widened(value: Any) -> Any:
    """The value with all floating-point and complex tensors in double precision."""
    return mapped(value, lambda one: in_double(one) if one.is_floating_point() or one.is_complex() else one)


def mapped(value: Any, change: Callable[[Any], Any], leaf: type | tuple[type, ...] = Tensor) -> Any:
    """A nested value with a function applied to its leaves."""
    if isinstance(value, leaf):
        return change(value)
    if isinstance(value, Mapping):
        return {name: mapped(part, change, leaf) for name, part in value.items()}
    if isinstance(value, slice):
        return slice(*(mapped(part, change, leaf) for part in (value.start, value.stop, value.step)))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(part, change, leaf) for part in value))
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(part, change, leaf) for part in value)
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for part in value.values() for tensor in tensors_in(part)]
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors_in(part)]
    return []


@contextmanager
def seeded(module: nn.Module, seed: int = 0) -> Iterator[None]:
    """The same random numbers in each use, of torch, numpy, Python and generators held by the module."""
    device = next(module.parameters()).device
    held = (value for part in module.modules() for value in vars(part).values())
    own = [value for value in held if isinstance(value, torch.Generator)]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    # The default generators themselves: torch.manual_seed takes a stack trace for each kind of device.
    generators = [torch.default_generator, *own]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def groups_of(*optimizers: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """The options of each weight that optimizers hold, by its identity."""
    groups = (group for one in optimizers for group in one.param_groups)
    return {id(p): group for group in groups for p in group["params"]}


def weights_of(*optimizers: torch.optim.Optimizer) -> list[Any]:
    """All weights that optimizers hold, as often as they are held."""
    return [p for one in optimizers for group in one.param_groups for p in group["params"]]


class Hook:
    """A hook that copies and files of a module leave out: a copy made in a watched loop is not watched.

    Its own calls of torch functions are no part of the loop, and are not recorded.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        """Run the hook."""
        with torch._C.DisableTorchFunction():
            return self._call(*args)

    @staticmethod
    def of_a_copy(*_: Any) -> None:
        """The hook of a copy, which does nothing."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return self.of_a_copy

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[type[Hook], str]]:
        return getattr, (Hook, "of_a_copy")


def names(text: str) -> frozenset[str]:
    """Names of functions, separated by spaces."""
    return frozenset(text.split())


def real_view(value: Tensor) -> Tensor:
    """The numbers of a tensor as real ones, complex ones as pairs."""
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def row_codes(value: Tensor) -> Tensor:
    """A number for each row of the first axis, equal for equal rows."""
    rows = value.detach().reshape(len(value), -1)
    rows = torch.view_as_real(rows).flatten(1) if rows.is_complex() else rows
    # Some numbers of large rows, from everywhere in them, tell these apart.
    rows = rows[:, :: 1 + rows.shape[1] // 4096]
    vector = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (rows.double() * vector.to(rows.device)).sum(1)


def first_places(codes: Iterable[Hashable]) -> Tensor:
    """Places of the codes that differ from all before."""
    first: dict[Hashable, int] = {}
    for place, code in enumerate(codes):
        first.setdefault(code, place)
    return torch.tensor(list(first.values()))


def size_of(value: Tensor) -> float:
    """Root mean square of the modulus."""
    value = value.detach()
    value = value.abs() if value.is_complex() else value
    return float(value.double().square().mean().sqrt()) if value.numel() else 0.0


def calling_line() -> str:
    """File and line of the innermost caller outside torch and this package, such as ``train.py:12``.

    Installed packages count only if there is no caller outside them.
    """
    frame: Any = sys._getframe(1)
    installed = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, _HERE)) and "jaxtyping" not in name:
            line = f"{Path(name).name}:{frame.f_lineno}"
            if "site-packages" not in name:
                return line
            installed = installed or line
        frame = frame.f_back
    return installed
