"""How far one covariance is from another, from products of their factors."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.covariance import Covariance
from rismusic.covariance.lowrank import energy

# Share of the target's energy below which it counts as diagonal.
_DIAGONAL = 1e-6


def inner(first: Covariance, second: Covariance) -> Float[Tensor, "*batch"]:
    r"""The Frobenius inner product tr(R T).

    With :math:`R = F F^H + \epsilon I` and :math:`T = G G^H + \eta I`,

    .. math:: \mathrm{tr}(R T) = |F^H G|_F^2 + \eta |F|_F^2 + \epsilon |G|_F^2 + N \epsilon \eta.

    Args:
        first: R, of N elements.
        second: T, of N elements.
    """
    both = _overlap(first.factor, second.factor)
    mixed = second.loading * _total(first.factor) + first.loading * _total(second.factor)
    return both + mixed + first.size * first.loading * second.loading


def covariance_error(covariance: Covariance, target: Covariance) -> Float[Tensor, "*batch"]:
    r"""Squared relative error of R, its diagonal and its other entries each measured on their own scale.

    .. math:: \frac12 \frac{|\mathrm{diag}(R - T)|^2}{|\mathrm{diag}(T)|^2}
        + \frac12 \frac{|\mathrm{off}(R - T)|_F^2}{|\mathrm{off}(T)|_F^2},
        \qquad \mathrm{tr} R = \mathrm{tr} T = 1.

    The N diagonal entries of a steering covariance are all 1 / N and easily met; the others hold where the
    sources are, and would drown in a loading if the two were measured together. Both covariances are brought
    to trace 1 first, so the scale of neither matters. Where T has no entries off the diagonal, these are
    measured by :math:`|T|_F^2`. With :math:`R = F F^H + \ldots`, :math:`T = G G^H + \ldots`,

    .. math:: |\mathrm{off}(R - T)|_F^2 = |F^H F|_F^2 - 2 |F^H G|_F^2 + |G^H G|_F^2
        - |\mathrm{diag}(F F^H - G G^H)|^2.

    Args:
        covariance: R, of N elements; the gradient flows into it.
        target: T, finished as R is.

    Returns:
        [...], 0 where R = T (to rounding: about 1e-7 in float32), 1/2 and more where they have nothing in
        common.
    """
    R, T = covariance.normalised(), target.normalised()
    F, G = R.factor, T.factor
    ours, theirs = energy(F).sum(-1), energy(G).sum(-1)
    level = theirs + T.loading[..., None]
    on_diagonal = (ours + R.loading[..., None] - level).square().sum(-1) / level.square().sum(-1)
    overlap = _overlap(F, F) - 2 * _overlap(F, G) + _overlap(G, G)
    off = overlap - (ours - theirs).square().sum(-1)
    scale = _overlap(G, G) - theirs.square().sum(-1)
    whole = inner(T, T)
    return (on_diagonal + off / torch.where(scale > _DIAGONAL * whole, scale, whole)) / 2


def _overlap(F: Complex[Tensor, "*batch N R"], G: Complex[Tensor, "*batch N C"]) -> Float[Tensor, "*batch"]:
    """|F^H G|_F^2."""
    return _total(F.mH @ G)


def _total(values: Complex[Tensor, "*batch R C"]) -> Float[Tensor, "*batch"]:
    return energy(values).sum((-2, -1))
