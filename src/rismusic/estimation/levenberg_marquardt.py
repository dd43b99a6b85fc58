"""Damped descent (Levenberg and Marquardt) in a box, for a batch of problems at once.

Marquardt, "An algorithm for least-squares estimation of nonlinear parameters", SIAM J. Appl. Math. 11 (1963);
bounds by projection, Bertsekas, "Projected Newton methods", SIAM J. Control Optim. 20 (1982).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

# Value, gradient and a positive semidefinite curvature of some of the problems.
Evaluated = tuple[Float[Tensor, "B"], Float[Tensor, "B U"], Float[Tensor, "B U U"]]
# The same at the given points.
Evaluate = Callable[[Int64[Tensor, "B"], Float[Tensor, "B U"]], Evaluated]

_FIRST_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-2, 1e-10, 1e9


@dataclass(frozen=True)
class FitOptions:
    """How far a descent goes, and from which powers.

    Args:
        steps: most evaluations of the likelihood after the first.
        tolerance: gain of log-likelihood (nats) that is worth no further step.
        levels_first: whether powers come to rest before positions move. Where these are nearly right, powers
            of least squares will do to begin with.
    """

    steps: int = 60
    tolerance: float = 1e-4
    powers_first: bool = True


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where a descent ended.

    Args:
        point: [S, U].
        value: [S].
        converged: where no step would gain as much as the tolerance, [S].
    """

    point: Float[Tensor, "S U"]
    value: Float[Tensor, "S"]
    converged: Bool[Tensor, "S"]


def levenberg_marquardt(
    evaluate: Evaluate,
    start: Float[Tensor, "S U"],
    lower: Float[Tensor, "*S U"],
    upper: Float[Tensor, "*S U"],
    *,
    steps: int = 40,
    tolerance: float = 1e-4,
    length: float = 1.0,
    first: Evaluated | None = None,
) -> Minimum:
    r"""Minimise S functions of U unknowns within a box; each value only ever falls.

    A step solves, over the unknowns that the box does not hold back,

    .. math:: (F + \mu\, \mathrm{diag}\, F)\, \Delta = -g,

    is cut to the box and taken only where the value falls; :math:`\mu` shrinks after a good step and grows
    after a refused one. Problems that have converged leave the batch.

    Args:
        evaluate: value, gradient g and curvature F, for the problems of the given numbers.
        start: moved into the box first.
        lower: an unknown whose limits meet is held there.
        upper: see ``lower``.
        steps: evaluations at most, one after the start for each.
        tolerance: a problem has converged when a step is foreseen to gain, or gained, no more than this.
        length: what each step is multiplied with, above 0 and below 2, where a step gains nothing. The
            curvature of a model that leaves something out may ask for more or less than 1.
        first: what ``evaluate`` says of all problems at the start, inside the box, if that is known.
    """
    low, high = lower.expand_as(start), upper.expand_as(start)
    x = torch.minimum(torch.maximum(start, low), high)
    live = torch.arange(len(x), device=x.device)
    value, gradient, curvature = evaluate(live, x) if first is None else first
    end = Minimum(x.clone(), value.clone(), torch.zeros_like(value, dtype=torch.bool))
    damping = torch.full_like(value, _FIRST_DAMPING)
    for _ in range(steps):
        step = _step(x, gradient, curvature, low, high, damping)
        trial = torch.minimum(torch.maximum(torch.add(x, step, alpha=length), low), high)
        move = trial - x
        slope = (gradient * move).sum(-1)
        foreseen = -slope - (move * (curvature @ move[..., None])[..., 0]).sum(-1) / 2
        new = evaluate(live, trial)
        gain = value - new[0]
        better = gain > 0  # false for NaN
        good = better & (gain > 0.5 * foreseen)
        damping = torch.where(good, damping / 8, torch.where(better, damping, damping * 6))
        damping = damping.clamp_min(_LEAST_DAMPING)
        x = torch.where(better[:, None], trial, x)
        value = torch.where(better, new[0], value)
        gradient = torch.where(better[:, None], new[1], gradient)
        curvature = torch.where(better[:, None, None], new[2], curvature)
        # A small gain counts only from a step that was hardly damped.
        small = torch.where(better, gain, foreseen) <= tolerance
        done = (small & (damping < 1)) | (move == 0).all(-1) | (damping > _MOST_DAMPING)
        if not done.any():
            continue
        gone, keep = live[done], ~done
        end.point[gone], end.value[gone], end.converged[gone] = x[done], value[done], True
        live, x, low, high = live[keep], x[keep], low[keep], high[keep]
        value, gradient, curvature, damping = value[keep], gradient[keep], curvature[keep], damping[keep]
        if len(live) == 0:
            return end
    end.point[live], end.value[live] = x, value
    return end


def _step(
    x: Tensor, gradient: Tensor, curvature: Tensor, lower: Tensor, upper: Tensor, damping: Tensor
) -> Tensor:
    """The damped step over the free unknowns; 0 for the others."""
    held = ((x <= lower) & (gradient >= 0)) | ((x >= upper) & (gradient <= 0))
    diagonal = curvature.diagonal(dim1=-2, dim2=-1)
    free = ~held & (diagonal > 0)
    scale = torch.where(free, diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny).rsqrt(), 0)
    unit = curvature * scale[:, :, None] * scale[:, None, :]
    ones = torch.where(free, damping[:, None], 1)
    factor = torch.linalg.cholesky_ex(unit + torch.diag_embed(ones)).L
    return -scale * torch.cholesky_solve((scale * gradient)[..., None], factor)[..., 0]
