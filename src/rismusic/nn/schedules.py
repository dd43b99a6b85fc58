r"""What changes while training, as pure functions of the epoch or of the optimizer step.

Nothing here has a state, so resuming at an epoch or step gives what an uninterrupted training would have had.
"""

from __future__ import annotations

import math

import torch

from rismusic.errors import InputError
from rismusic.nn.spec import LossSpec, ScheduleSpec, TermName
from rismusic.simulation.random_numbers import Draws, Stream

# From this beta on R_blend says next to nothing of R_pred, which then needs a loss of its own.
_BLEND_IS_SAMPLE = 0.999
_PREDICTED_LEAST = 0.2
# Share of the angles' loss that is kept while the range is learned: heads are matched by it.
_ANGLES_KEPT = 0.1


def beta_at(spec: ScheduleSpec, epoch: int, seed: int) -> float:
    r"""Share of R_samp in R_blend during an epoch.

    .. math:: \beta_e = \begin{cases} \beta\, e / (n - 1) & e < n \\ \beta + J (2 U_e - 1) & e \ge n
        \end{cases}, \qquad n = \max(2, \lceil 0.2\, E \rceil),

    J the jitter and :math:`U_e` uniform on (0, 1), a function of (seed, epoch) alone; the result is kept
    within 0 .. 1.

    Args:
        spec: beta, its ramp and jitter, and the E epochs.
        epoch: e, from 0.
        seed: of the training.
    """
    _check_epoch(spec, epoch)
    ramp = _ramp(spec)
    if epoch < ramp:
        return spec.beta * epoch / (ramp - 1)
    uniform = Draws(seed, "train", torch.tensor([epoch])).uniform(Stream.BETA, 1, dtype=torch.float64)
    return min(1.0, max(0.0, spec.beta + spec.beta_jitter * (2 * float(uniform) - 1)))


def learning_rate_factor(spec: ScheduleSpec, step: int, steps: int) -> float:
    r"""What the learning rate is multiplied with at an optimizer step.

    .. math:: f_i = \begin{cases} (i + 1) / w & i < w \\
        f_\infty + (1 - f_\infty) \frac{1 + \cos(\pi\, (i + 1 - w) / (n - w))}{2} & i \ge w \end{cases},

    with :math:`w = \max(1, \mathrm{round}(\mathrm{warm\_up} \cdot n))`. The first step, i = 0, is taken at
    1 / w, never at 0; the last, i = n - 1, at the floor :math:`f_\infty`. i counts the steps that the
    optimizer has taken, not batches or epochs, and for ``LambdaLR`` it is the argument of the function.

    Args:
        spec: warm-up and floor.
        step: i, from 0.
        steps: n, optimizer steps of the whole training.
    """
    if steps < 1 or step < 0:
        raise InputError("step", "0 or more, of at least 1 step", f"{step} of {steps}")
    warm = max(1, round(spec.warm_up * steps))
    if step < warm:
        return (step + 1) / warm
    progress = min(1.0, (step + 1 - warm) / (steps - warm)) if steps > warm else 1.0
    return spec.learning_rate_floor + (1 - spec.learning_rate_floor) * (1 + math.cos(math.pi * progress)) / 2


def weights_at(loss: LossSpec, spec: ScheduleSpec, epoch: int, beta: float) -> dict[TermName, float]:
    """The weight of each loss during an epoch.

    While beta rises, the subspace has its warm-up weight; in the last phase the weights of subspace and peak
    contrast rise in a straight line between the two values of the spec. Where beta reaches 0.999, the loss
    of R_pred alone counts at least a fifth of that of R_blend. With a curriculum, the loss of the range is
    off during the first stage, and that of the angles down to a tenth during the second.

    Args:
        loss: the weights.
        spec: the phases.
        epoch: from 0.
        beta: of the same epoch.
    """
    _check_epoch(spec, epoch)
    weights = dict(loss.weights)
    last = round(spec.last_phase * spec.epochs)
    begin = spec.epochs - last
    if epoch < _ramp(spec):
        weights["subspace"] = loss.subspace_warm_up
    elif epoch >= begin:
        progress = (epoch - begin) / max(1, last - 1)
        weights["subspace"] = _between(loss.subspace_last, progress)
        weights["peak_contrast"] = _between(loss.peak_contrast_last, progress)
    if beta >= _BLEND_IS_SAMPLE:
        least = _PREDICTED_LEAST * loss.covariance
        weights["covariance_predicted"] = max(weights["covariance_predicted"], least)
    if spec.curriculum:
        angles_end, range_end = (share * spec.epochs for share in spec.curriculum_ends)
        if epoch < angles_end:
            weights["log_range"] = 0.0
        elif epoch < range_end:
            weights["angle"] *= _ANGLES_KEPT
    return weights


def _ramp(spec: ScheduleSpec) -> int:
    """Epochs in which beta rises."""
    return max(2, math.ceil(spec.beta_ramp * spec.epochs))


def _between(ends: tuple[float, float], progress: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * progress


def _check_epoch(spec: ScheduleSpec, epoch: int) -> None:
    if not 0 <= epoch < spec.epochs:
        raise InputError("epoch", f"0 to {spec.epochs - 1}", str(epoch))
