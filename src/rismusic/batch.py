"""Records of tensors for a batch of scenes: their scenes indexed, joined and replaced, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

B = TypeVar("B", bound="Batch")


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """A record of tensors whose first axis counts scenes, of such records, and of values for all scenes.

    Attributes:
        shared: names of the tensors that all scenes share.
    """

    shared: ClassVar[tuple[str, ...]] = ()

    def each(self: B, change: Callable[[Tensor], Tensor]) -> B:
        """A copy with a function applied to every tensor, those of its parts included."""
        return merged(change, self)

    def __getitem__(self: B, scenes: slice | Tensor | int) -> B:
        """Some of the scenes."""
        values = (getattr(self, field.name) for field in fields(self) if field.name not in self.shared)
        first = next((value for value in values if isinstance(value, Tensor)), None)
        if first is not None and takes_all(scenes, len(first)):
            return self
        return self.each(lambda value: value[scenes])

    def to(self: B, target: torch.device | str) -> B:
        """A copy on another device."""
        return self.each(lambda value: value.to(target))

    def detach(self: B) -> B:
        """A copy that is detached from the autograd graph."""
        return self.each(Tensor.detach)

    def replaced(self: B, scenes: Tensor, others: B) -> B:
        """A copy with some scenes taken from another batch, with any number of places for sources."""

        def put(old: Tensor, new: Tensor) -> Tensor:
            old, new = same_width(old, new)
            return new if takes_all(scenes, len(old)) else old.index_copy(0, scenes, new)

        return merged(put, self, others)


def takes_all(index: slice | Tensor | int, scenes: int) -> bool:
    """Whether an index takes all scenes in order; false if that would take long to find out."""
    if isinstance(index, slice):
        return index.indices(scenes) == (0, scenes, 1)
    return isinstance(index, Tensor) and index.dtype == torch.int64 and index.shape == (1,) and scenes == 1


def merged(change: Callable[..., Tensor], *batches: B) -> B:
    """One batch, its tensors made from those of several (None where one is), the rest that of the first."""

    def made(*values: Any) -> Any:
        if any(value is None for value in values):
            return None
        if isinstance(values[0], Tensor):
            return change(*values)
        if isinstance(values[0], Batch):
            return merged(change, *values)
        if isinstance(values[0], tuple):
            return tuple(made(*parts) for parts in zip(*values, strict=True))
        return values[0]

    first = batches[0]
    changed: dict[str, Any] = {
        field.name: getattr(first, field.name)
        if field.name in first.shared
        else made(*(getattr(batch, field.name) for batch in batches))
        for field in fields(first)
    }
    return type(first)(**changed)


def concatenate(batches: Sequence[B]) -> B:
    """Batches one after the other, with places for the largest number of sources."""
    return merged(lambda *values: torch.cat(same_width(*values)), *batches)


def choose(where: Tensor, one: B, other: B) -> B:
    """The scenes of one batch, of the other where ``where`` is true."""
    return merged(lambda a, b: torch.where(where.reshape(-1, *[1] * (a.ndim - 1)), b, a), one, other)


def same_width(*values: Tensor) -> list[Tensor]:
    """Tensors with a source axis, the second one, padded with NaN to the same number of sources."""
    width = max(value.shape[1] for value in values) if values[0].ndim > 1 else 0
    if values[0].ndim == 1 or all(value.shape[1] == width for value in values):
        return list(values)
    missing = [
        value.new_full((len(value), width - value.shape[1], *value.shape[2:]), torch.nan) for value in values
    ]
    return [torch.cat(pair, dim=1) for pair in zip(values, missing, strict=True)]
