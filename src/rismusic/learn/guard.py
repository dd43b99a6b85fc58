"""What is not finite in a batch: found without waiting for the device, and put aside.

A NaN that reaches an eigenvalue solver ends the training with an error of the solver. So the numbers of such
a batch are set to 1 before the losses see them, and the losses to NaN after: the step is skipped and counted.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from rismusic.learn.losses import Losses
from rismusic.learn.prediction import Prediction
from rismusic.recording import Recording

Held = TypeVar("Held", Recording, Prediction)


def finite(held: Recording | Prediction) -> dict[str, Bool[Tensor, ""]]:
    """Of each tensor of a recording (but for its truth) or prediction: whether all numbers are finite."""
    return {name: value.isfinite().all() for name, value in _tensors(held).items()}


def all_finite(*held: Recording | Prediction) -> Bool[Tensor, ""]:
    """Whether all numbers of all of them are finite."""
    return torch.stack([flag for each in held for flag in finite(each).values()]).all()


def put_aside(held: Held, whole: Bool[Tensor, ""]) -> Held:
    """The same where ``whole``, else with 1 for every number."""
    changed: dict[str, Any] = {
        name: torch.where(whole, value, torch.ones_like(value)) for name, value in _tensors(held).items()
    }
    return replace(held, **changed)


def marked(losses: Losses, whole: Bool[Tensor, ""]) -> Losses:
    """The same where ``whole``, else with NaN for every loss."""

    def mark(value: Tensor) -> Tensor:
        return torch.where(whole, value, torch.nan)

    return replace(
        losses,
        total=mark(losses.total),
        terms={name: mark(value) for name, value in losses.terms.items()},
        oracle={name: mark(value) for name, value in losses.oracle.items()},
    )


def _tensors(held: Recording | Prediction) -> dict[str, Tensor]:
    named = {field.name: getattr(held, field.name) for field in fields(held) if field.name != "elements"}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}
