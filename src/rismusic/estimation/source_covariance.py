r"""The unconditional likelihood of correlated Gaussian sources: a full source covariance P.

Paths of one signal over different walls, or repeaters of it, have symbols that are correlated between
sources: :math:`E[s_l s_l^H] = P`, Hermitian K x K, not diagonal. Then

.. math:: R_l = C_l P C_l^H + \sigma^2 I, \qquad
    -\log p = \sum_l \left[ \log\det R_l + y_l^H R_l^{-1} y_l \right] + \mathrm{const}.

Every derivative of :math:`R_l` has the form :math:`X_l E X_l^H` with :math:`E = u v^H + v u^H` and the
columns :math:`X_l = [C_l, B_l]` of the sufficient statistics. With :math:`F_l = X_l^H R_l^{-1} X_l`,
:math:`z_l = X_l^H R_l^{-1} y_l`, gradient and Fisher information are

.. math:: g_i = \sum_l 2\,\mathrm{Re}\left[ v_i^H F_l u_i - (z_l^H u_i)(v_i^H z_l) \right], \qquad
    J_{ij} = \sum_l 2\,\mathrm{Re}\left[ (v_i^H F_l u_j)(v_j^H F_l u_i) + (v_i^H F_l v_j)(u_j^H F_l u_i)
    \right].

The source covariance is fitted as :math:`P = T T^H`, T lower triangular. Searches take the sources for
independent: their positions are close enough to start from.

Jaffer, "Maximum likelihood direction finding of stochastic sources: a separable solution", ICASSP 1988;
Stoica and Nehorai, IEEE Trans. ASSP 38 (1990). With operators G_l that change with l there is no separable
solution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from rismusic.estimation.likelihood import SufficientStatistics


@dataclass(frozen=True, eq=False)
class Directions:
    """Derivatives of the source covariance and of the fields by n unknowns, as vectors u and v of length D.

    D is K, or K + 3K with the derivatives by the coordinates.
    """

    u: Complex[Tensor, "S n D"]
    v: Complex[Tensor, "S n D"]

    @classmethod
    def of_coordinates(cls, P: Complex[Tensor, "S K K"]) -> Directions:
        """Those of azimuth, elevation and inverse range of each source: n = 3K, D = 4K."""
        S, K, _ = P.shape
        u = torch.eye(4 * K, dtype=P.dtype, device=P.device)[K:].expand(S, -1, -1)
        v = torch.nn.functional.pad(P.mT.repeat_interleave(3, dim=1), (0, 3 * K))
        return cls(u, v)

    @classmethod
    def of_correlations(cls, P: Complex[Tensor, "S K K"]) -> Directions:
        r"""Those of log p_k, then of Re and Im of each correlation coefficient: n = K^2.

        :math:`P_{ij} = \rho_{ij} \sqrt{p_i p_j}`; the pairs are in the order of ``tril_indices``.
        """
        S, K, _ = P.shape
        one = torch.eye(K, dtype=P.dtype, device=P.device)
        power = P.diagonal(dim1=-2, dim2=-1).real
        i, j = torch.tril_indices(K, K, -1, device=P.device)
        size = (power[:, i] * power[:, j]).clamp_min(0).sqrt()[..., None]
        u = torch.cat((one, one[i], 1j * one[i])).expand(S, -1, -1)
        return cls(u, torch.cat((P.mT / 2, size * one[j], size * one[j]), dim=1))

    @classmethod
    def of_factor(cls, T: Complex[Tensor, "S K K"]) -> Directions:
        """Those of log T_kk, then of Re and Im of the entries of T below its diagonal: n = K^2."""
        S, K, _ = T.shape
        one = torch.eye(K, dtype=T.dtype, device=T.device)
        i, j = torch.tril_indices(K, K, -1, device=T.device)
        u = torch.cat((one, one[i], 1j * one[i])).expand(S, -1, -1)
        columns = T.mT
        diagonal = T.diagonal(dim1=-2, dim2=-1)[..., None] * columns
        return cls(u, torch.cat((diagonal, columns[:, j], columns[:, j]), dim=1))

    def wide(self, size: int) -> Directions:
        """The same with zeros up to a length of ``size``."""
        more = (0, size - self.u.shape[-1])
        return Directions(torch.nn.functional.pad(self.u, more), torch.nn.functional.pad(self.v, more))

    def then(self, other: Directions) -> Directions:
        """These unknowns, then others."""
        return Directions(torch.cat((self.u, other.u), dim=1), torch.cat((self.v, other.v), dim=1))


class _Inverse:
    r"""Products with :math:`R_l^{-1} = (I - C Z C^H) / \sigma^2`, :math:`P = T T^H`; P may be singular."""

    def __init__(self, gram: Tensor, T: Tensor, noise_variance: Tensor) -> None:
        K = T.shape[-1]
        self.gram, self.sigma2 = gram, noise_variance[:, None]
        self.XC = gram[..., :K]
        self.CC = gram[..., :K, :K]
        root = T[:, None] / noise_variance.sqrt()[:, None, None, None]
        inner = root.mH @ self.CC @ root
        inner = inner + torch.eye(K, dtype=T.dtype, device=T.device)
        self.factor = torch.linalg.cholesky_ex(inner).L
        half = torch.linalg.solve_triangular(self.factor, root.mH, upper=False)
        self.Z = half.mH @ half
        self.turn = self.Z @ self.CC

    def information(
        self, directions: Directions, antennas: int, repeats: int
    ) -> tuple[Float[Tensor, "S U U"], Float[Tensor, "S U"]]:
        """J with log sigma^2 last, and sum_l tr(R^-1 R'), with sigma^2 tr R^-1 last."""
        u, v = directions.u[:, None].mT, directions.v[:, None].mT  # [S, 1, D, n]
        sigma2 = self.sigma2[..., None, None]
        F = (self.gram - self.XC @ self.Z @ self.XC.mH) / sigma2
        F2 = self.gram - self.XC @ (2 * self.Z - self.turn @ self.Z) @ self.XC.mH  # times sigma^4
        Fu, Fv = F @ u, F @ v
        A, B, D = v.mH @ Fu, v.mH @ Fv, u.mH @ Fu
        J = 2 * (A * A.mT + B * D.mT).real.sum(1) * repeats
        by_noise = 2 * (v.conj() * (F2 @ u)).real.sum((1, 2)) * repeats / self.sigma2
        one = self.turn.diagonal(dim1=-2, dim2=-1).sum(-1).real
        two = (self.turn * self.turn.mT).sum((-2, -1)).real
        noise = (antennas - 2 * one + two).sum(1, keepdim=True) * repeats
        J = torch.cat((J, by_noise[:, None]), dim=1)
        J = torch.cat((J, torch.cat((by_noise, noise), dim=1)[..., None]), dim=2)
        trace = 2 * A.diagonal(dim1=-2, dim2=-1).real.sum(1) * repeats
        return J, torch.cat((trace, (antennas - one).sum(1, keepdim=True) * repeats), dim=1)


def correlated_information(
    gram: Complex[Tensor, "S _ C C"],
    P: Complex[Tensor, "S K K"],
    noise_variance: Float[Tensor, "S"],
    *,
    antennas: int,
    repeats: int = 1,
) -> Float[Tensor, "S U U"]:
    r"""Fisher information of Gaussian data with covariances :math:`R_l = C_l P C_l^H + \sigma^2 I`.

    As :func:`~rismusic.estimation.likelihood.fisher_information`, with derivatives. P is Hermitian and
    positive semidefinite, zero in rows and columns without a source.

    Returns:
        J for the 3K coordinates, the K log powers, real and imaginary parts of the K (K - 1) / 2 correlation
        coefficients, and log sigma^2.
    """
    directions = Directions.of_coordinates(P).then(Directions.of_correlations(P).wide(gram.shape[-1]))
    return _Inverse(gram, _root(P), noise_variance).information(directions, antennas, repeats)[0]


def correlated_unconditional(
    stats: SufficientStatistics, T: Complex[Tensor, "S K K"], noise_variance: Float[Tensor, "S"]
) -> tuple[Float[Tensor, "S"], Float[Tensor, "S U"], Float[Tensor, "S U U"]]:
    r"""Negative unconditional log-likelihood (nats) of correlated sources, its gradient and information.

    The unknowns are the 3K coordinates (where the statistics hold derivatives), :math:`\log T_{kk}`, real and
    imaginary parts of T below its diagonal, and :math:`\log\sigma^2`: U = 3K + K^2 + 1, or K^2 + 1.
    """
    L, K, D = stats.energy.shape[1], T.shape[-1], stats.gram.shape[-1]
    inverse = _Inverse(stats.gram, T, noise_variance)
    directions = Directions.of_factor(T)
    if D > K:
        directions = Directions.of_coordinates(T @ T.mH).then(directions.wide(D))
    repeats = L if stats.gram.shape[1] == 1 else 1
    J, trace = inverse.information(directions, stats.antennas, repeats)
    Xy = stats.cross[..., None]
    Cy = Xy[..., :K, :]
    weights = inverse.Z @ Cy
    explained = (Cy.mH @ weights).real[..., 0, 0]
    again = (weights.mH @ inverse.CC @ weights).real[..., 0, 0]
    z = (Xy - inverse.XC @ weights) / inverse.sigma2[..., None, None]  # [S, L, D, 1]
    left, right = directions.u[:, None].conj() @ z, directions.v[:, None].conj() @ z  # u^H z, v^H z
    pull = 2 * (left.conj() * right).real.sum((1, 3))
    pull_noise = (stats.energy - 2 * explained + again).sum(1, keepdim=True) / inverse.sigma2
    gradient = trace - torch.cat((pull, pull_noise), dim=1)
    determinant = 2 * inverse.factor.diagonal(dim1=-2, dim2=-1).real.log().sum((1, 2)) * repeats
    rest = (stats.energy - explained).sum(1) / noise_variance
    return determinant + stats.size * noise_variance.log() + rest, gradient, J


def log_volume(sources: Float[Tensor, "S"]) -> Float[Tensor, "S"]:
    r"""Logarithm of the volume of all correlation matrices of K complex sources.

    .. math:: V_K = \pi^{K (K - 1) / 2}\, \prod_{k=1}^K \Gamma(k) \,/\, \Gamma(K)^K,

    from the integrals of :math:`\det(P)^{\alpha - K} e^{-\mathrm{tr} P}` and of its diagonal.
    """
    most = int(sources.max()) if sources.numel() else 0
    k = torch.arange(1, most + 1, dtype=torch.float64, device=sources.device)
    each = torch.where(k <= sources[:, None], torch.lgamma(k), 0).sum(-1)
    half = sources * (sources - 1) / 2
    return (
        half * torch.log(torch.tensor(torch.pi, dtype=torch.float64))
        + each
        - sources * torch.lgamma(sources.clamp_min(1))
    )


def pair_active(active: Bool[Tensor, "S K"]) -> Bool[Tensor, "S n"]:
    """Which correlation coefficients exist: those of two sources, in the order of :class:`Directions`."""
    i, j = torch.tril_indices(active.shape[1], active.shape[1], -1, device=active.device)
    both = active[:, i] & active[:, j]
    return torch.cat((both, both), dim=1)


def _root(P: Tensor) -> Tensor:
    """A square root of P, which may be singular."""
    values, vectors = torch.linalg.eigh(P)
    return vectors * values.clamp_min(0).sqrt()[:, None]
