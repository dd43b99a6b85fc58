r"""Levenberg-Marquardt minimisation in a box, for a batch of problems at once.

A step solves, over the unknowns that the box does not hold,

.. math:: (B + \mu\, \mathrm{diag}\, B)\, \Delta = -g,

with the gradient g and a curvature B. The caller supplies a positive semidefinite curvature F: the Fisher
information or a Gauss-Newton matrix of a negative log-likelihood. F leaves part of the Hessian out, so that
steps with it alone converge linearly, and slowly where the noise is strong. The changes y of the gradient
over the last steps s supply the rest: B is F with a BFGS update for each of them,

.. math:: B \leftarrow B - \frac{B s s^T B}{s^T B s} + \frac{y y^T}{y^T s}.

The damping :math:`\mu` shrinks after a good step and grows after a refused one.

A problem has converged when its **Newton decrement**

.. math:: \lambda = \sqrt{\Delta^T F \Delta}, \qquad \Delta = -B^{-1} g,

is at most the tolerance (with B and with F alone in its place). For a likelihood, :math:`F^{-1}` is the
covariance of the estimate, so no unknown is then predicted to move by more than :math:`\lambda` of its error
bar. The last step is taken without evaluating the function again. Unlike a small gain in likelihood, a small
decrement leaves no movement along flat directions, so the end does not depend on the start, the batch or
rounding.

Marquardt, "An algorithm for least-squares estimation of nonlinear parameters", SIAM J. Appl. Math. 11 (1963);
Bertsekas, "Projected Newton methods", SIAM J. Control Optim. 20 (1982); Nocedal and Wright, *Numerical
Optimization*, chapters 6 and 10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.batch import Batch, choose

# Value, gradient and a positive semidefinite curvature of some of the problems.
Evaluated = tuple[Float[Tensor, "B"], Float[Tensor, "B U"], Float[Tensor, "B U U"]]
Evaluate = Callable[[Int64[Tensor, "B"], Float[Tensor, "B U"]], Evaluated]  # the same at the given points

_FIRST_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-2, 1e-10, 1e9
_NO_DAMPING = 1e-4  # a smaller damping does not change a step
# Steps whose change of the gradient is remembered, and the least curvature along one, relative to B.
_MEMORY, _LEAST_CURVATURE = 2, 0.05
_ROUGH = 0.1  # from this tolerance on a fit is a rough one, without updates and with every step evaluated
_RIDGE = 1e-12  # relative to a unit diagonal, so that a singular curvature has an inverse
# Values are rounded to about this relative error, since fields are computed in single precision.
_ROUNDING = 1e-6
# Up to this many tolerances the decrement, which rounding hardly touches, decides whether a step is good.
_NEAR = 20.0


@dataclass(frozen=True)
class FitOptions:
    """When a fit stops, and where its powers start."""

    steps: int = 60  # maximum number of evaluations of the likelihood after the first
    tolerance: float = 5e-3  # largest Newton decrement at convergence, in units of the error bars
    powers_first: bool = True  # fit powers and noise first, not needed near the solution


@dataclass(frozen=True, eq=False)
class Minimum:
    """Result of :func:`levenberg_marquardt`."""

    point: Float[Tensor, "S U"]
    value: Float[Tensor, "S"]  # within rounding and the square of the tolerance
    converged: Bool[Tensor, "S"]  # whether the Newton decrement fell to the tolerance


@dataclass(frozen=True, eq=False)
class _Iterate(Batch):
    """B problems at their current points, with the scaled system that their next steps solve."""

    x: Tensor
    value: Tensor
    gradient: Tensor
    curvature: Tensor  # B
    free: Tensor  # unknowns that the box does not hold
    scale: Tensor  # diag(B)^-1/2, 0 where held
    newton: Tensor  # the undamped step
    decrement: Tensor

    @classmethod
    def at(
        cls,
        x: Tensor,
        evaluated: Evaluated,
        lower: Tensor,
        upper: Tensor,
        history: list[tuple[Tensor, Tensor]],
        tolerance: float,
    ) -> _Iterate:
        value, gradient, F = evaluated
        B = F
        for s, y in history:
            B = _bfgs(B, s, y)
        held = ((x <= lower) & (gradient >= 0)) | ((x >= upper) & (gradient <= 0))
        diagonal = B.diagonal(dim1=-2, dim2=-1)
        free = ~held & (diagonal > 0)
        scale = torch.where(free, diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny).rsqrt(), 0)
        ridge = torch.full_like(value, _RIDGE)
        step, failed = _solve(B, gradient, free, scale, ridge)
        decrement = (step * (F @ step[..., None])[..., 0]).sum(-1).clamp_min(0).sqrt()
        decrement = decrement.masked_fill(failed, torch.inf)
        if history and bool((decrement <= tolerance).any()):
            # A curvature met far from here may make B too large, and its decrement too small.
            plain = -(gradient * _solve(F, gradient, free, scale, ridge)[0]).sum(-1)
            decrement = torch.maximum(decrement, plain.clamp_min(0).sqrt())
        return cls(x, value, gradient, B, free, scale, step, decrement)

    def damped(self, damping: Tensor) -> Tensor:
        if bool((damping < _NO_DAMPING).all()):
            return self.newton
        return _solve(self.curvature, self.gradient, self.free, self.scale, damping)[0]


def levenberg_marquardt(
    evaluate: Evaluate,
    start: Float[Tensor, "S U"],
    lower: Float[Tensor, "*S U"],
    upper: Float[Tensor, "*S U"],
    *,
    steps: int = 60,
    tolerance: float = 5e-3,
    first: Evaluated | None = None,
) -> Minimum:
    """Minimise S functions of U unknowns within a box. Problems that have converged leave the batch.

    Args:
        evaluate: value, gradient g and curvature F, for the problems of the given numbers.
        start: moved into the box first.
        lower: lower limits; an unknown whose limits meet is held.
        upper: upper limits.
        steps: maximum number of evaluations after the one at the start.
        tolerance: largest Newton decrement at convergence.
        first: the result of ``evaluate`` for all problems at the start, inside the box, if it is known.
    """
    low, high = lower.expand_as(start), upper.expand_as(start)
    x = torch.minimum(torch.maximum(start, low), high)
    live = torch.arange(len(x), device=x.device)
    history: list[tuple[Tensor, Tensor]] = []
    now = _Iterate.at(x, evaluate(live, x) if first is None else first, low, high, history, tolerance)
    damping = torch.full_like(now.value, _FIRST_DAMPING)
    end = Minimum(x.clone(), now.value.clone(), torch.zeros_like(now.value, dtype=torch.bool))
    for evaluation in range(steps + 1):
        small = now.decrement <= tolerance
        done = small | (damping > _MOST_DAMPING)
        if evaluation == steps or done.any():
            # The last step counts as taken where the box does not cut it. After a rough fit it would be a
            # long one.
            last = now.x if tolerance >= _ROUGH else now.x + now.newton
            converged = small & ((last >= low) & (last <= high)).all(-1)
            done = converged | (damping > _MOST_DAMPING) if evaluation < steps else torch.ones_like(small)
            gone, reached, keep = live[done], converged[done], ~done
            end.point[gone] = torch.where(reached[:, None], last[done], now.x[done])
            gain = -(now.gradient * (last - now.x)).sum(-1)[done] / 2
            end.value[gone] = now.value[done] - torch.where(reached, gain, 0)
            end.converged[gone] = reached
            live, low, high, damping, now = live[keep], low[keep], high[keep], damping[keep], now[keep]
            history = [(s[keep], y[keep]) for s, y in history]
            if len(live) == 0:
                break
        trial = torch.minimum(torch.maximum(now.x + now.damped(damping), low), high)
        move = trial - now.x
        slope = torch.add(now.gradient, (now.curvature @ move[..., None])[..., 0], alpha=0.5)
        foreseen = -(slope * move).sum(-1)
        evaluated = evaluate(live, trial)
        if tolerance < _ROUGH:
            history = [*history, (move, evaluated[1] - now.gradient)][-_MEMORY:]
        new = _Iterate.at(trial, evaluated, low, high, history, tolerance)
        gain = now.value - new.value
        near = (now.decrement <= _NEAR * tolerance) & (new.decrement < now.decrement)
        near = near & (gain > -_ROUNDING * (1 + now.value.abs()))
        better = (gain > 0) | near  # false for NaN
        good = near | (better & (gain > 0.5 * foreseen))
        damping = torch.where(good, damping / 8, torch.where(better, damping, damping * 6))
        damping = damping.clamp_min(_LEAST_DAMPING)
        if better.all():
            now = new
            continue
        now = choose(better, now, new)
        if history:
            # A refused step tells of a place where the minimum is not.
            history[-1] = torch.where(better[:, None], history[-1][0], 0), history[-1][1]
    return end


def _bfgs(B: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """B updated so that B s = y, where the curvature y^T s along the step is clearly positive."""
    Bs = (B @ s[..., None])[..., 0]
    sBs, ys = (s * Bs).sum(-1), (y * s).sum(-1)
    use = ((sBs > 0) & (ys > _LEAST_CURVATURE * sBs))[:, None]
    plus = torch.where(use, y * ys[:, None].rsqrt(), 0)
    minus = torch.where(use, Bs * sBs[:, None].rsqrt(), 0)
    return torch.addcmul(
        torch.addcmul(B, plus[:, :, None], plus[:, None]), minus[:, :, None], minus[:, None], value=-1
    )


def _solve(
    B: Tensor, gradient: Tensor, free: Tensor, scale: Tensor, damping: Tensor
) -> tuple[Tensor, Tensor]:
    """The damped step over the free unknowns, 0 for the others; and where B is not positive definite."""
    unit = B * (scale[:, :, None] * scale[:, None])
    unit.diagonal(dim1=-2, dim2=-1).add_(torch.where(free, damping[:, None], 1))
    factor, info = torch.linalg.cholesky_ex(unit)
    failed = info > 0
    step = torch.cholesky_solve((scale * gradient)[..., None], factor)[..., 0] * -scale
    return step.masked_fill(failed[:, None], 0), failed
