r"""Schedules of beta, the learning rate and the loss weights.

All are pure functions of the epoch or the optimizer step, so a resumed training continues exactly.
"""

from __future__ import annotations

import math

import torch

from rismusic.errors import InputError
from rismusic.nn.spec import LossSpec, ScheduleSpec, TermName
from rismusic.simulation.random_numbers import Draws, Stream

# From this beta on R_blend hardly depends on R_pred, which then needs a loss of its own.
_BETA_ALL_SAMPLE = 0.999
_MIN_PREDICTED_WEIGHT = 0.2
# Factor of the angle weight in the range stage of the curriculum; heads are matched by the angles too.
_ANGLE_FACTOR = 0.1


def beta_at(spec: ScheduleSpec, epoch: int, seed: int) -> float:
    r"""Share of R_samp in R_blend during an epoch.

    .. math:: \beta_e = \begin{cases} \beta\, e / (n - 1) & e < n \\ \beta + J (2 U_e - 1) & e \ge n
        \end{cases}, \qquad n = \max(2, \lceil 0.2\, E \rceil),

    with the jitter J and :math:`U_e` uniform on (0, 1), a function of seed and epoch. The result is clipped
    to [0, 1].

    Args:
        spec: beta, its ramp and jitter, and the number of epochs E.
        epoch: e, from 0.
        seed: seed of the training.
    """
    _check_epoch(spec, epoch)
    ramp = _ramp(spec)
    if epoch < ramp:
        return spec.beta * epoch / (ramp - 1)
    uniform = Draws(seed, "train", torch.tensor([epoch])).uniform(Stream.BETA, 1, dtype=torch.float64)
    return min(1.0, max(0.0, spec.beta + spec.beta_jitter * (2 * float(uniform) - 1)))


def learning_rate_factor(spec: ScheduleSpec, step: int, steps: int) -> float:
    r"""Factor of the learning rate at an optimizer step: linear warm-up, then cosine decay.

    .. math:: f_i = \begin{cases} (i + 1) / w & i < w \\
        f_\infty + (1 - f_\infty) \frac{1 + \cos(\pi\, (i + 1 - w) / (n - w))}{2} & i \ge w \end{cases},

    with :math:`w = \max(1, \mathrm{round}(\mathrm{warm\_up} \cdot n))`. The first step, i = 0, has the factor
    1 / w, not 0; the last, i = n - 1, the floor :math:`f_\infty`. i counts optimizer steps, not batches or
    epochs, like the argument of the function of ``LambdaLR``.

    Args:
        spec: warm-up and floor.
        step: i, from 0.
        steps: n, number of optimizer steps of the whole training.
    """
    if steps < 1 or step < 0:
        raise InputError("step", f"must be at least 0, of at least 1 step; got step {step} of {steps}")
    warm = max(1, round(spec.warm_up * steps))
    if step < warm:
        return (step + 1) / warm
    progress = min(1.0, (step + 1 - warm) / (steps - warm)) if steps > warm else 1.0
    return spec.learning_rate_floor + (1 - spec.learning_rate_floor) * (1 + math.cos(math.pi * progress)) / 2


def weights_at(loss: LossSpec, spec: ScheduleSpec, epoch: int, beta: float) -> dict[TermName, float]:
    """The weight of each loss during an epoch.

    While beta rises, the subspace loss has its warm-up weight. In the last phase the weights of subspace and
    peak contrast rise linearly between the two values of the spec. If beta is at least 0.999, the loss of
    R_pred has at least a fifth of the weight of that of R_blend. With a curriculum, the range loss is off in
    the first stage, and the angle loss has a tenth of its weight in the second.

    Args:
        loss: the base weights.
        spec: the phases.
        epoch: from 0.
        beta: value in the same epoch.
    """
    _check_epoch(spec, epoch)
    weights = dict(loss.weights)
    last = round(spec.last_phase * spec.epochs)
    begin = spec.epochs - last
    if epoch < _ramp(spec):
        weights["subspace"] = loss.subspace_warm_up
    elif epoch >= begin:
        progress = (epoch - begin) / max(1, last - 1)
        weights["subspace"] = _interpolate(loss.subspace_last, progress)
        weights["peak_contrast"] = _interpolate(loss.peak_contrast_last, progress)
    if beta >= _BETA_ALL_SAMPLE:
        least = _MIN_PREDICTED_WEIGHT * loss.covariance
        weights["covariance_predicted"] = max(weights["covariance_predicted"], least)
    if spec.curriculum:
        angles_end, range_end = (share * spec.epochs for share in spec.curriculum_ends)
        if epoch < angles_end:
            weights["log_range"] = 0.0
        elif epoch < range_end:
            weights["angle"] *= _ANGLE_FACTOR
    return weights


def _ramp(spec: ScheduleSpec) -> int:
    """Number of epochs in which beta rises."""
    return max(2, math.ceil(spec.beta_ramp * spec.epochs))


def _interpolate(ends: tuple[float, float], progress: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * progress


def _check_epoch(spec: ScheduleSpec, epoch: int) -> None:
    if not 0 <= epoch < spec.epochs:
        raise InputError("epoch", f"must be 0 to {spec.epochs - 1}; got {epoch}")
