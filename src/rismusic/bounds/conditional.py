"""The conditional bound: the symbols are what they were, and unknown."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.bounds.problem import POSITION, Bound, Problem, Unknown, chosen
from rismusic.errors import InputError
from rismusic.link import Link
from rismusic.panel import Panel
from rismusic.scene import Sources
from rismusic.wave import Wave

_ROUNDING = 1e-11


def conditional_crb(
    panel: Panel,
    link: Link,
    sources: Sources,
    noise_variance: Float[Tensor, "*batch"],
    *,
    unknowns: Sequence[Unknown] = POSITION,
    wave: Wave = "spherical",
) -> Bound:
    r"""Bound for deterministic symbols: those that were really sent.

    Unknowns: the coordinates in ``unknowns`` of all K sources, and every symbol :math:`s_{kl}`. (The noise
    variance decouples from them; whether it is known makes no difference.)

    .. math:: J = \frac{2}{\sigma^2} \sum_l \mathrm{Re}\left[ B_l^H P^\perp_{G_l A} B_l \right],
        \qquad B_l = \left[ G_l \frac{\partial a_k}{\partial p}\, s_{kl} \right]_{k,p}

    Stoica and Nehorai, "MUSIC, maximum likelihood, and Cramer-Rao bound", IEEE Trans. ASSP 37 (1989), here
    through G_l.

    Args:
        panel: N elements.
        link: G_l; its scene axes, if any, are those of the sources.
        sources: positions [..., K] and realised symbols [..., K, L]; empty places (NaN) come last.
        noise_variance: sigma^2, [...].
        unknowns: the coordinates that are estimated; the others count as known.
        wave: the form of the wave.

    Raises:
        InputError: no symbols; a noise variance that is not positive; an unknown coordinate; a gap before a
            source.
    """
    if sources.symbols is None:
        raise InputError("symbols", "the realised symbols (the conditional bound needs them)", "none")
    which = chosen(unknowns)
    problem = Problem(panel, link, sources, noise_variance, wave)
    symbols = torch.where(sources.active[..., None], sources.symbols, 0).to(torch.complex128)
    symbols = problem.flat(symbols, 2)

    def information(block: slice, link: Link, A: Tensor, D: Tensor, active: Tensor) -> Tensor:
        K = A.shape[-1]
        columns = link.matmul(torch.cat((A, D.flatten(-2)), dim=-1))  # [S, L, M, 4K]
        C, B = columns[..., :K], columns[..., K:].unflatten(-1, (K, 3))
        B = (B[..., which] * symbols[block].mT[..., None, :, None]).flatten(-2)
        # The orthonormal basis of G_l A; empty places (last) and columns in the span of others add nothing.
        Q, R = torch.linalg.qr(C)
        depth = R.diagonal(dim1=-2, dim2=-1).abs()
        Q = Q * (depth > _ROUNDING * C.norm(dim=-2)[..., : depth.shape[-1]])[..., None, :]
        rest = B - Q @ (Q.mH @ B)
        # What rounding leaves of a column that lies in the span is no information.
        rest = rest * (rest.norm(dim=-2) > _ROUNDING * B.norm(dim=-2))[..., None, :]
        if rest.shape[1] == 1:  # a link that is the same in every snapshot; the symbols still changed
            rest = rest.expand(-1, symbols.shape[-1], -1, -1)
        flat = rest.flatten(1, 2)
        return 2 * (flat.mH @ flat).real / problem.noise_variance[block, None, None]

    return problem.bound(information, which)
