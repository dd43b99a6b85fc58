"""Before the first step: does every output of the network learn anything at all?"""

from __future__ import annotations

import math
from dataclasses import fields

import torch

from rismusic.errors import InputError
from rismusic.learn.losses.total import Losses
from rismusic.learn.prediction import Prediction


def check_start(losses: Losses, prediction: Prediction) -> None:
    """Refuse a total that is not finite, or from which an output of the network learns nothing.

    To be called once, on the first batch, with the weights of the spec: it waits for the device.

    Args:
        losses: of ``prediction``, its graph still there (and kept).
        prediction: from the network.

    Raises:
        InputError: the output and what is wrong with its gradient.
    """
    if not torch.isfinite(losses.total):
        raise InputError("loss", "a finite total", f"{float(losses.total.detach()):g}")
    if not losses.total.requires_grad:
        raise InputError("loss", "a total with a gradient", "none: nothing can be learned")
    outputs = {
        field.name: value
        for field in fields(prediction)
        if (value := getattr(prediction, field.name)) is not None
    }
    for name, value in outputs.items():
        if not value.requires_grad:
            raise InputError(f"prediction.{name}", "an output that depends on the network", "a constant")
    gradients = torch.autograd.grad(
        losses.total, list(outputs.values()), retain_graph=True, allow_unused=True
    )
    sizes = {
        name: 0.0 if gradient is None else float(gradient.abs().max())
        for name, gradient in zip(outputs, gradients, strict=True)
    }
    for name, size in sizes.items():
        if not math.isfinite(size):
            raise InputError(f"prediction.{name}", "a finite gradient", "a NaN or an infinity")
        # A factor of zeros would never move; rounding gives it a gradient that is no gradient.
        factors = max(sizes["angle_factor"], sizes["range_factor"])
        if size <= (torch.finfo(losses.total.dtype).eps * factors if name.endswith("_factor") else 0):
            raise InputError(f"prediction.{name}", "a gradient from some loss of positive weight", "none")
