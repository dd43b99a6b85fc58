"""The unconditional bound: the symbols are Gaussian, their powers unknown."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.bounds.problem import POSITION, ROUNDING, Bound, Problem, Unknown, chosen
from rismusic.errors import InputError
from rismusic.link import Link
from rismusic.panel import Panel
from rismusic.scene import Sources
from rismusic.wave import Wave


def unconditional_crb(
    panel: Panel,
    link: Link,
    sources: Sources,
    noise_variance: Float[Tensor, "*batch"],
    *,
    snapshots: int | None = None,
    unknowns: Sequence[Unknown] = POSITION,
    wave: Wave = "spherical",
) -> Bound:
    r"""Bound for Gaussian symbols of unknown power.

    Unknowns: the coordinates in ``unknowns`` and the power of every source, and the noise variance.

    .. math:: J_{ij} = \sum_l \mathrm{tr}\left( R_l^{-1} \frac{\partial R_l}{\partial i}
        R_l^{-1} \frac{\partial R_l}{\partial j} \right), \qquad R_l = G_l A P A^H G_l^H + \sigma^2 I

    Everything follows from the Gram matrix of :math:`G_l [A, \partial A]` by Woodbury's identity, so that no
    M x M matrix is inverted.

    Args:
        panel: N elements.
        link: G_l.
        sources: positions and powers [..., K]; empty places (NaN) come last.
        noise_variance: sigma^2, [...].
        snapshots: L, needed only where the link has no codes and the sources have no symbols.
        unknowns: the coordinates that are estimated.
        wave: the form of the wave.

    Raises:
        InputError: no powers, or no way to know L; otherwise as :func:`conditional_crb`.
    """
    if sources.power is None:
        raise InputError("power", "the powers of the sources (the unconditional bound needs them)", "none")
    which = chosen(unknowns)
    problem = Problem(panel, link, sources, noise_variance, wave)
    if link.codes is not None and link.codes.shape[-2] > 1:
        repeats = 1
    elif snapshots is not None:
        repeats = snapshots
    elif sources.symbols is not None:
        repeats = sources.symbols.shape[-1]
    else:
        raise InputError("snapshots", "the number of snapshots L (the link does not tell it)", "none")
    power = problem.flat(torch.where(sources.active, sources.power, 0).double(), 1)

    def information(block: slice, link: Link, A: Tensor, D: Tensor, active: Tensor) -> Tensor:
        K = A.shape[-1]
        noise, p = problem.noise_variance[block], power[block]
        fields = link.matmul(torch.cat((A, D[..., which].flatten(-2)), dim=-1))
        M = fields.shape[-2]
        gram = fields.mH @ fields  # [S, L, C, C] with C = K + 3K columns
        # W = R^-1 = (I - C T C^H) / sigma^2 with T = (sigma^2 P^-1 + C^H C)^-1, written so that p may be 0.
        root = p.sqrt()[:, None, :, None]
        inner = root * gram[..., :K, :K] * root.mT
        identity = torch.eye(K, dtype=inner.dtype, device=inner.device)
        inverse, failed = torch.linalg.inv_ex(inner + noise[:, None, None, None] * identity)
        T = root * torch.where(failed[..., None, None] > 0, torch.nan, inverse) * root.mT
        half = gram[..., :, :K] @ T  # X^H C T for all columns X
        F = (gram - half @ gram[..., :K, :]) / noise[:, None, None, None]  # X^H W X
        middle = half @ gram[..., :K, :K] @ half.mH
        F2 = (gram - 2 * half @ gram[..., :K, :] + middle) / noise[:, None, None, None].square()  # X^H W W X
        turn = T @ gram[..., :K, :K]
        trace = (M - 2 * _trace(turn) + _trace(turn @ turn)).real / noise[:, None].square()  # tr W W

        # dR = x y^H + y x^H for a coordinate, with x = p_k g_k and y = d_k; half of it twice for a power.
        coordinates = torch.arange(K * len(which), device=p.device)
        x = torch.cat((coordinates // len(which), torch.arange(K, device=p.device)))
        y = torch.cat((K + coordinates, torch.arange(K, device=p.device)))
        weight = torch.cat((p[:, coordinates // len(which)], p.new_full((len(p), K), 0.5)), dim=1)
        # tr(W (x y^H + y x^H) W (u v^H + v u^H)) = 2 Re[(y^H W u)(v^H W x) + (y^H W v)(u^H W x)]
        Fyx, Fyy, Fxx = (F[..., rows[:, None], columns] for rows, columns in ((y, x), (y, y), (x, x)))
        cross = Fyx * Fyx.mT + Fyy * Fxx.mT
        J = 2 * cross.real * (weight[:, None, :, None] * weight[:, None, None, :])
        by_noise = 2 * F2[..., y, x].real * weight[:, None]
        J = torch.cat((J, by_noise[..., None]), dim=-1)
        last = torch.cat((by_noise, trace[..., None]), dim=-1)
        J = torch.cat((J, last[..., None, :]), dim=-2)
        nuisance_active = torch.cat((active, active.new_ones(len(active), 1)), dim=1)
        J = J.sum(dim=1) * (repeats if fields.shape[1] == 1 else 1)
        return _marginal(J, K * len(which), nuisance_active)

    return problem.bound(information, which)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def _marginal(J: Tensor, keep: int, active: Tensor) -> Tensor:
    """Information about the first ``keep`` unknowns when the others (``active`` of them) are unknown too.

    NaN where the others cannot be told apart, as the powers of sources at one place.
    """
    nuisance = torch.where(active[:, :, None] & active[:, None, :], J[:, keep:, keep:], 0)
    nuisance = nuisance + torch.diag_embed((~active).to(J.dtype))
    cross = J[:, :keep, keep:] * active[:, None]
    scale = nuisance.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    factor, failed = torch.linalg.cholesky_ex(nuisance / (scale[:, :, None] * scale[:, None, :]))
    half = torch.linalg.solve_triangular(factor, (cross / scale[:, None]).mT, upper=False)
    singular = (failed > 0) | (factor.diagonal(dim1=-2, dim2=-1).amin(-1) < ROUNDING)
    return torch.where(singular[:, None, None], torch.nan, J[:, :keep, :keep] - half.mT @ half)
