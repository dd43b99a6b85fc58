"""The part of the doctor that knows nothing of radio: for any module, with a loss and a batch.

Torch alone is needed. Everything is done on copies: the module that is given stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rismusic.doctor.diagnose import Diagnosis
from rismusic.doctor.patient import Loss, MakeOptimizer, Patient
from rismusic.errors import InputError


def diagnose_module(
    module: nn.Module,
    loss: Loss,
    batch: Any,
    *,
    optimizer: MakeOptimizer | None = None,
    answer: Callable[[nn.Module, Any], Tensor] | None = None,
    validation: Callable[[nn.Module], Tensor] | None = None,
    clip_norm: float | None = None,
    steps: int = 20,
    say: Callable[[str], None] = lambda _: None,
) -> Diagnosis:
    """Look for the reason why a network of one's own would not learn.

    Args:
        module: the network, at its beginning.
        loss: from the module and the batch to a scalar with a gradient, as the training has it.
        batch: a tensor, or tensors in lists, tuples and dictionaries; of 8 samples or more.
        optimizer: what makes the optimizer of the training from parameters; AdamW at 1e-3 if none.
        answer: what the network says of a batch, [samples, ...]; none leaves out whether it is constant.
        validation: the validation loss of a module; none leaves out whether it moves with the weights.
        clip_norm: of the training's gradient, if it clips.
        steps: optimizer steps on the batch; at the end a fifth of the loss is to be gone.
        say: called with each line for the console, as it comes.

    Raises:
        InputError: a module without parameters, or a loss that is no scalar tensor.
    """
    if not list(module.parameters()):
        raise InputError("module", "a module with parameters", "none")
    make = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
    patient = Patient(module, loss, batch, make)
    reports = [patient.gradients(), patient.coverage(), patient.modes()]
    # A gradient that is not there, or not finite, leaves nothing to look at further on.
    if all(report.values.get("finite", 1.0) == 1.0 for report in reports):
        reports += [patient.precision(), patient.slope(clip_norm), patient.learns(steps, validation)]
        if answer is not None:
            reports.append(patient.constant(answer, steps))
    for report in reports:
        for line in report.lines:
            say(line)
    return Diagnosis(tuple(reports))
