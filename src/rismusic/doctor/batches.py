"""Batches of any make, and what a network answers to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def spread(answer: Callable[[nn.Module, Any], Tensor], module: nn.Module, batch: Any) -> float:
    """Root mean square distance of the answers from their mean, over that of the answers from 0."""
    module.eval()
    values = answer(module, batch)
    values = torch.view_as_real(values) if values.is_complex() else values
    flat = values.double().flatten(1)
    module.train()
    return float((flat - flat.mean(0)).square().mean().sqrt() / flat.square().mean().sqrt().clamp_min(1e-30))


def widened(batch: Any) -> Any:
    """All floating-point tensors of a batch in double precision."""
    if isinstance(batch, Tensor):
        if batch.is_complex():
            return batch.to(torch.complex128)
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, Mapping):
        return {name: widened(value) for name, value in batch.items()}
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return type(batch)(widened(value) for value in batch)  # type: ignore[call-arg]
    return batch
