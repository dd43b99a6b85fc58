r"""Sparse Bayesian learning on the search grid, through the link: a map of source powers.

Every point p of the grid is a Gaussian source of unknown power :math:`\gamma_p`; snapshot l has covariance

.. math:: R_l = \sum_p \gamma_p\, g_{lp} g_{lp}^H + \sigma^2 I, \qquad g_{lp} = G_l a_p,

M x M whatever the size of the grid. The powers climb the marginal likelihood by the fixed point

.. math:: \gamma_p \leftarrow \gamma_p\,
    \frac{\sum_l |g_{lp}^H R_l^{-1} y_l|^2}{\sum_l g_{lp}^H R_l^{-1} g_{lp}},

at which its gradient vanishes (MacKay's form: Tipping, "Sparse Bayesian learning and the relevance vector
machine", JMLR 1 (2001); for arrays: Gerstoft et al., "Multisnapshot sparse Bayesian learning for DOA",
IEEE SPL 23 (2016)). It is several times faster than expectation maximisation; unlike for the square root of
the ratio (Sun, Babu and Palomar, 2016) it is not proven that every step climbs. The noise variance is held:
learned beside thousands of powers it falls to a third of what it is (measured).

All matrices are real, complex rows being written as two (see :mod:`rismusic.estimate.dictionary`).
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

# Bytes of the outer products of a dictionary that all scenes share.
_OUTER = 2**28
# A noise variance below this share of the power per output is raised to it: single precision has no more.
_LOADING = 1e-5
# Powers below this share of the greatest are none (and would be denormal numbers soon).
_NOTHING = 1e-12
# After so many steps only one in so many points goes on: those with the greatest powers.
_WARM, _SHRINK = 5, 4


def learn_powers(
    fields: Float[Tensor, "_ R M2 P"],
    snapshots: Complex[Tensor, "S L M"],
    noise_variance: Float[Tensor, "S"],
    *,
    shared: bool = False,
    iterations: int = 30,
) -> Float[Tensor, "S P"]:
    """Powers of all points of a dictionary after so many steps of the fixed point.

    Args:
        fields: G_l a_p of P points, rows Re and Im of each output in turn; one for each scene or one for all,
            one for each snapshot or (R = 1) one for all.
        snapshots: y.
        noise_variance: sigma^2.
        shared: use outer products made once for all scenes; see :func:`shares_outer`.
        iterations: steps.
    """
    y = snapshots.to(torch.complex64)
    _, L, M = y.shape
    energy = torch.view_as_real(y).square().sum(dim=(1, 2, 3))
    share = torch.where(energy > 0, energy, 1) / (L * M)
    noise = torch.maximum(noise_variance.float(), _LOADING * share)
    model = (_Shared if shared else _Own)(fields, y)
    # Evenly spread, with the energy that noise does not explain.
    spread = fields.square().sum(dim=(1, 2, 3)) * (L // fields.shape[1])
    level = torch.maximum(energy - L * M * noise, 0.1 * energy) / spread.clamp_min(1e-30)
    power = level[:, None].expand(-1, fields.shape[-1])
    identity = torch.eye(M, dtype=y.dtype, device=y.device)
    full, index = power, None
    for step in range(iterations):
        if step == _WARM and isinstance(model, _Own):
            index = power.topk(max(1, power.shape[1] // _SHRINK), dim=1).indices
            full, power = power, power.gather(1, index)
            model.keep(index)
        R = model.covariance(power) + noise[:, None, None, None] * identity
        half = torch.linalg.solve_triangular(torch.linalg.cholesky_ex(R).L, identity, upper=False)
        pull, own = model.match(half)
        power = power * torch.where(own > 0, pull / own, 0)
        power = torch.where(power > _NOTHING * power.amax(dim=1, keepdim=True), power, 0)
    return power if index is None else torch.zeros_like(full).scatter(1, index, power)


def shares_outer(fields: Float[Tensor, "_ R M2 P"]) -> bool:
    """Whether a dictionary that all scenes share is small enough for its outer products to be kept."""
    _, R, rows, P = fields.shape
    return R * rows * rows * P <= _OUTER


class _Own:
    """Products with a dictionary of each scene's own, through R = sum_p gamma_p g_p g_p^H."""

    def __init__(self, fields: Tensor, y: Tensor) -> None:
        self.y = y.unflatten(1, (fields.shape[1], -1)).mT  # [S, R, M, L / R]
        self.fields = fields.expand(len(y), -1, -1, -1)
        _, R, M2, _ = fields.shape
        more = 2 * self.y.shape[-1]
        # Sums over rows and snapshots as a matrix product: the first kind of rows, then the second.
        self.sums = torch.zeros(2, R, M2 + more, device=y.device)
        self.sums[0, :, :M2] = self.y.shape[-1]
        self.sums[1, :, M2:] = 1
        self._make_room()

    def _make_room(self) -> None:
        # New memory for each product costs more than the product.
        S, R, M2, P = self.fields.shape
        self.weighted = self.fields.new_empty(S, R, M2, P)
        self.squares = self.fields.new_empty(S * R, self.sums.shape[-1], P)

    def keep(self, index: Tensor) -> None:
        """Drop all points but these, [S, kept]."""
        self.fields = torch.stack([part[..., i] for part, i in zip(self.fields, index, strict=True)])
        self._make_room()

    def covariance(self, power: Tensor) -> Tensor:
        """[S, R, M, M]."""
        torch.mul(self.fields, power[:, None, None], out=self.weighted)
        outer = self.weighted @ self.fields.mT
        outer = outer.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))  # [S, R, M, 2, M, 2]
        return torch.complex(
            outer[..., 0, :, 0] + outer[..., 1, :, 1], outer[..., 1, :, 0] - outer[..., 0, :, 1]
        )

    def match(self, half: Tensor) -> tuple[Tensor, Tensor]:
        """sum_l |g^H R^-1 y|^2 and sum_l g^H R^-1 g for all points, [S, P], from half = L^-1, R = L L^H."""
        z = half.mH @ (half @ self.y)
        rows = torch.cat((_rows(half), _rows(z.mH)), dim=-2)
        torch.bmm(rows.flatten(0, 1), self.fields.flatten(0, 1), out=self.squares)
        squares = self.squares.square_().unflatten(0, rows.shape[:2]).flatten(1, 2)
        own, pull = (self.sums.flatten(1) @ squares).unbind(1)
        return pull, own


class _Shared:
    """The same with one dictionary for all scenes: its outer products make R a plain matrix product.

    A Hermitian matrix is M^2 real numbers (real parts, then imaginary ones below the diagonal), and
    tr(W g g^H) the inner product of two such, those off the diagonal counted twice.
    """

    def __init__(self, fields: Tensor, y: Tensor) -> None:
        R, M = fields.shape[1], fields.shape[2] // 2
        self.fields = fields[0]
        self.y = y.unflatten(1, (R, -1)).mT
        self.lower = torch.tril_indices(M, M, -1, device=y.device)
        real, imaginary = self.fields.unflatten(1, (M, 2)).unbind(2)  # [R, M, P]
        i, j = self.lower
        on = real.square() + imaginary.square()
        off = real[:, i] * real[:, j] + imaginary[:, i] * imaginary[:, j]
        turn = imaginary[:, i] * real[:, j] - real[:, i] * imaginary[:, j]
        self.outer = torch.cat((on, off, turn), dim=1).flatten(0, 1)  # [R M^2, P]

    def covariance(self, power: Tensor) -> Tensor:
        M, (i, j) = self.y.shape[-2], self.lower
        packed = (power @ self.outer.mT).unflatten(1, (-1, M * M))
        on, off, turn = packed.split((M, len(i), len(i)), dim=-1)
        R = torch.diag_embed(on).to(self.y.dtype)
        R[..., i, j] = torch.complex(off, turn)
        R[..., j, i] = torch.complex(off, -turn)
        return R

    def match(self, half: Tensor) -> tuple[Tensor, Tensor]:
        W = half.mH @ half
        i, j = self.lower
        below = W[..., i, j]
        packed = torch.cat((W.diagonal(dim1=-2, dim2=-1).real, 2 * below.real, 2 * below.imag), dim=-1)
        own = packed.flatten(1) @ self.outer * self.y.shape[-1]
        rows = _rows((W @ self.y).mH).movedim(0, 1)  # [R, S, 2 L / R, 2M]
        pull = (rows.flatten(1, 2) @ self.fields).square_().unflatten(1, rows.shape[1:3])
        return pull.sum(dim=(0, 2)), own


def _rows(matrix: Tensor) -> Tensor:
    """Complex rows [.., n, M] as real ones for columns Re, Im in turn: [.., 2n, 2M]."""
    real = torch.stack((matrix.real, -matrix.imag), dim=-1).flatten(-2)
    imaginary = torch.stack((matrix.imag, matrix.real), dim=-1).flatten(-2)
    return torch.cat((real, imaginary), dim=-2)
