r"""Likelihoods of source positions through any link, from sufficient statistics of the data.

With :math:`y_l = G_l A s_l + n_l`, :math:`C_l = G_l A` [M, K] and noise of variance :math:`\sigma^2`, the two
likelihoods are

* *conditional* (deterministic symbols), concentrated over symbols and noise variance:

  .. math:: f = \sum_l |P^\perp_{C_l} y_l|^2, \qquad -\log p = L M \log f + \mathrm{const};

* *unconditional* (Gaussian symbols of power :math:`p_k`), with :math:`R_l = C_l P C_l^H + \sigma^2 I`:

  .. math:: -\log p = \sum_l \left[ \log\det R_l + y_l^H R_l^{-1} y_l \right] + \mathrm{const}.

Both depend on the data only through the inner products of :math:`X_l = [C_l, B_l]` (B_l [M, 3K] the
derivatives of C_l with respect to the coordinates) with each other and with y_l: the sufficient statistics.
All later computations are on K x K matrices in float64. (Inner products of complex64 fields are exact in
float64, so the cost does not suffer from cancellation: it is the exact cost of slightly rounded fields.)

Stoica and Nehorai, "Performance study of conditional and unconditional direction-of-arrival estimation", IEEE
Trans. ASSP 38 (1990); Golub and Pereyra, "Separable nonlinear least squares", Inverse Problems 19 (2003).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor

from rismusic.array import steering, steering_with_log_derivatives
from rismusic.batch import Batch
from rismusic.devices import blocks
from rismusic.io import Recording
from rismusic.operator import Link

_RIDGE = 1e-13  # ridge relative to a unit diagonal: two columns closer than this (squared) count as one
# Smallest cost. It has a logarithm, and the square of its inverse is finite, also for snapshots of zeros.
_SMALLEST_COST = 1e-140
COINCIDENT = 1e-10  # what columns of unit norm leave of each other, squared, below which they count as one


@dataclass(frozen=True, eq=False)
class SufficientStatistics(Batch):
    r"""Sufficient statistics of S scenes for given positions: inner products in float64.

    The C = K columns :math:`G_l a_k` of X_l, or K + 3K with their derivatives appended (source slow,
    coordinate fast), are zero without a source. L = 1 in the Gram matrices where the link is the same in
    every snapshot.
    """

    gram: Complex[Tensor, "S _ C C"]  # X_l^H X_l
    cross: Complex[Tensor, "S L C"]  # X_l^H y_l
    energy: Float[Tensor, "S L"]  # |y_l|^2
    active: Bool[Tensor, "S K"]
    antennas: int  # M, the length of y_l

    @property
    def size(self) -> int:
        """Number of complex samples of a scene, L M."""
        return self.energy.shape[1] * self.antennas

    def without_derivatives(self) -> SufficientStatistics:
        """The statistics without the derivatives."""
        K = self.active.shape[1]
        return SufficientStatistics(
            self.gram[..., :K, :K], self.cross[..., :K], self.energy, self.active, self.antennas
        )

    def without_each(self) -> SufficientStatistics:
        """S K problems, each with one source left out (source fast), without derivatives."""
        K = self.active.shape[1]
        stay = ~torch.eye(K, dtype=torch.bool, device=self.active.device)  # [left out, K]
        pair = stay[:, :, None] & stay[:, None, :]
        return SufficientStatistics(
            (self.gram[:, None, :, :K, :K] * pair[:, None]).flatten(0, 1),
            (self.cross[:, None, :, :K] * stay[:, None]).flatten(0, 1),
            self.energy.repeat_interleave(K, dim=0),
            (self.active[:, None] & stay).flatten(0, 1),
            self.antennas,
        )


def sufficient_statistics(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    *,
    derivatives: bool = False,
    link: Link | None = None,
) -> SufficientStatistics:
    """Compute the sufficient statistics at given source positions.

    ``link`` is that of the recording as one matrix for all snapshots (:func:`as_one_matrix`), which is faster
    where many positions are tried.
    """
    data = recording.snapshots
    azimuth, elevation, q = positions.to(data.real.dtype).unbind(-1)
    panel, present = recording.panel, active[:, None]
    if derivatives:
        A, slopes = steering_with_log_derivatives(panel, azimuth, elevation, 1 / q)
        D = slopes * A[..., None]
        columns = torch.cat((A * present, (D * active[:, None, :, None]).flatten(-2)), dim=-1)
    else:
        columns = steering(panel, azimuth, elevation, 1 / q) * present
    fields = (link or recording.link).matmul(columns).to(torch.complex128)
    if link is not None:
        fields = fields.unflatten(-2, (-1, data.shape[-1])).flatten(1, 2)
    fields = fields.contiguous()
    received = data.to(torch.complex128)
    adjoint = fields.mH
    cross = (adjoint @ received[..., None])[..., 0]
    energy = torch.view_as_real(received).square().sum(dim=(-2, -1))
    return SufficientStatistics(adjoint @ fields, cross, energy, active, data.shape[-1])


def as_one_matrix(link: Link) -> Link:
    """The G_l of all snapshots below one another, [L M, N], as a link without RIS configurations."""
    if link.channel is None or link.codes is None or link.coherent or link.subcarriers > 1:
        return link
    return Link(link.dense().flatten(-3, -2))


def orthonormal(columns: Tensor) -> Tensor:
    """Orthonormal basis of the columns; dependent columns are zero."""
    norm = columns.norm(dim=-2, keepdim=True)
    unit = columns / torch.where(norm > 0, norm, 1)
    values, vectors = torch.linalg.eigh(unit.mH @ unit)
    scale = torch.where(values > COINCIDENT, values, torch.inf).rsqrt()
    return unit @ (vectors * scale[..., None, :])


def scene_blocks(recording: Recording, columns: int) -> list[slice]:
    """Blocks of scenes whose fields (``columns`` per scene) fit the memory budget."""
    _, L, M = recording.snapshots.shape
    N = recording.elements.shape[0]
    link = recording.link
    coded = link.subcarriers * (1 if link.codes is None else link.codes.shape[-2])
    # Columns on the panel after the RIS configuration, fields at the receiver, their float64 copies, and G_l.
    received = 40 * link.matrices * M
    each = (
        columns * (8 * N * coded + received) + 8 * N * (L + M + coded * M) + 64 * link.matrices * columns**2
    )
    return blocks(len(recording), each, recording.snapshots.device)


def symbols(stats: SufficientStatistics) -> Complex[Tensor, "S L K"]:
    r"""Least-squares symbols :math:`\hat s_l = (C_l^H C_l)^{-1} C_l^H y_l`; 0 where there is no source."""
    K = stats.active.shape[1]
    return _solve(stats, stats.cross[..., :K, None])[..., 0]


def symbol_variances(stats: SufficientStatistics) -> Float[Tensor, "S _ K"]:
    r"""Variances of :func:`symbols` for unit noise, the diagonal of :math:`(C_l^H C_l)^{-1}`."""
    K = stats.active.shape[1]
    identity = torch.eye(K, dtype=stats.gram.dtype, device=stats.gram.device).expand_as(
        stats.gram[..., :K, :K]
    )
    return _solve(stats, identity).diagonal(dim1=-2, dim2=-1).real


def conditional_cost(stats: SufficientStatistics) -> Float[Tensor, "S"]:
    r"""The concentrated cost :math:`f = \sum_l |P^\perp_{C_l} y_l|^2`, which is never 0."""
    return residual_energy(stats, symbols(stats))


def conditional(
    stats: SufficientStatistics,
) -> tuple[Float[Tensor, "S"], Float[Tensor, "S U"], Float[Tensor, "S U U"]]:
    r"""Negative conditional log-likelihood, its exact gradient, and its Gauss-Newton curvature.

    The symbols are eliminated by variable projection (Kaufman's form). With :math:`r_l = P^\perp_{C_l} y_l`,

    .. math:: \frac{\partial f}{\partial x_i} = -2 \sum_l \mathrm{Re}\left[ s_{k(i)l}^* \, b_{il}^H r_l
        \right], \qquad F_{ij} = 2 \sum_l \mathrm{Re}\left[ s_{k(i)l}^* \, b_{il}^H P^\perp_{C_l} b_{jl} \,
        s_{k(j)l} \right],

    where b_il [M] is the derivative of the field of source k(i) with respect to coordinate i.

    Returns:
        :math:`L M \log f` in nats, and :math:`L M / f` times gradient and curvature of f.
    """
    K = stats.active.shape[1]
    s = symbols(stats)
    cost = residual_energy(stats, s)
    gram = stats.gram
    across = gram[..., K:, :K]
    weight = s.repeat_interleave(3, dim=-1)
    rest = stats.cross[..., K:] - (across @ s[..., None])[..., 0]
    gradient = -2 * (weight.conj() * rest).real.sum(dim=1)
    projected = gram[..., K:, K:] - across @ _solve(stats, across.mH)
    if projected.shape[1] == 1:
        powers = weight.mH @ weight  # [S, U, U], sum_l s_il^* s_jl
        curvature = 2 * (projected[:, 0] * powers).real
    else:
        outer = weight.conj()[..., :, None] * weight[..., None, :]
        curvature = 2 * (projected * outer).real.sum(dim=1)
    scale = stats.size / cost
    return stats.size * cost.log(), scale[:, None] * gradient, scale[:, None, None] * curvature


def unconditional(
    stats: SufficientStatistics, power: Float[Tensor, "S K"], noise_variance: Float[Tensor, "S"]
) -> tuple[Float[Tensor, "S"], Float[Tensor, "S U"], Float[Tensor, "S U U"]]:
    r"""Negative unconditional log-likelihood (nats) with its exact gradient and Fisher information.

    .. math:: g_i = \sum_l \left[ \mathrm{tr}(W_l R'_{il}) - y_l^H W_l R'_{il} W_l y_l \right], \qquad
        J_{ij} = \sum_l \mathrm{tr}(W_l R'_{il} W_l R'_{jl}), \qquad W_l = R_l^{-1}.

    The unknowns are the coordinates (where the statistics hold derivatives), then :math:`\log p_k`, then
    :math:`\log\sigma^2`: U = 3K + K + 1, or K + 1. Powers are ignored where there is no source.
    """
    p = torch.where(stats.active, power, 0)
    inverse = _InverseCovariance(stats.gram, p, noise_variance)
    K, sigma2 = inverse.K, noise_variance
    C_y = stats.cross[..., :K, None]
    weights = inverse.T @ C_y  # T C^H y
    J, Fyx, weight, trace = inverse.information(stats.antennas, stats.energy.shape[1])

    v = stats.cross - (inverse.gram_t @ C_y)[..., 0]  # sigma^2 X^H W y
    vx = v.index_select(-1, inverse.order.owner)
    explained = (C_y.mH @ weights).real[..., 0, 0]
    again = (weights.mH @ inverse.CC @ weights).real[..., 0, 0]
    energy2 = stats.energy - 2 * explained + again  # sigma^4 |W y|^2
    pull = _coordinates_first(_real_dot(v, vx), K)
    gradient = 2 * weight * (Fyx - pull / sigma2.square()[:, None])
    noise_gradient = sigma2 * trace - energy2.sum(1) / sigma2
    gradient = torch.cat((gradient, noise_gradient[:, None]), dim=1)
    L = stats.energy.shape[1]
    pivots = (inverse.factor.diagonal(dim1=-2, dim2=-1).real / inverse.scale[..., 0]).log().sum(-1)
    determinant = (2 * pivots).sum(-1) * (L if pivots.shape[1] == 1 else 1)
    rest = (stats.energy - explained).sum(-1)
    value = determinant + stats.size * sigma2.log() + rest / sigma2
    return value, gradient, J


def fisher_information(
    gram: Complex[Tensor, "S _ C C"],
    power: Float[Tensor, "S K"],
    noise_variance: Float[Tensor, "S"],
    *,
    antennas: int,
    repeats: int = 1,
) -> Float[Tensor, "S U U"]:
    r"""Fisher information of Gaussian data with covariances :math:`R_l = C_l P C_l^H + \sigma^2 I`.

    .. math:: J_{ij} = \sum_l \mathrm{tr}\left( R_l^{-1} \frac{\partial R_l}{\partial i}
        R_l^{-1} \frac{\partial R_l}{\partial j} \right).

    Everything follows from Gram matrices (:class:`SufficientStatistics`) by Woodbury's identity, so that no M
    x M matrix is inverted. Each of the L matrices stands for ``repeats`` snapshots. The unknowns are those of
    :func:`unconditional`.
    """
    inverse = _InverseCovariance(gram, power, noise_variance, ridge=0.0)
    return inverse.information(antennas, repeats * gram.shape[1])[0]


@dataclass(frozen=True, eq=False)
class _Order:
    """Indices by which the Fisher information is put together, and constants, for K sources.

    Columns of X: K fields and behind them 3K derivatives. Unknowns: 3K coordinates and behind them K powers.
    """

    owner: Int64[Tensor, "C"]  # source of each column
    owners: Int64[Tensor, "C2"]  # K owner[i] + owner[j] for each pair of columns
    unknown_owner: Int64[Tensor, "C"]  # source of each unknown
    weight: Float[Tensor, "C"]  # 1 for a coordinate, 1/2 for a power
    from_parts: Int64[Tensor, "C"]  # place of each unknown among those of its source, power last
    own: Int64[Tensor, "C"]  # K i + owner[i] of the column i of each unknown
    conjugate: Float[Tensor, "2"]  # (1, -1)

    @staticmethod
    @lru_cache(maxsize=64)
    def of(K: int, derivatives: bool, device: torch.device) -> _Order:
        """The indices, made once. They also serve computations with gradients."""
        with torch.inference_mode(False):
            source = torch.arange(K, device=device)
            one = torch.ones(K, dtype=torch.float64, device=device)
            owner, weight, from_parts = source, one / 2, source
            if derivatives:
                owner = torch.cat((source, source.repeat_interleave(3)))
                weight = torch.cat((one.repeat_interleave(3), one / 2))
                parts = torch.arange(4 * K, device=device).view(K, 4)
                from_parts = torch.cat((parts[:, :3].flatten(), parts[:, 3]))
            own = torch.arange(len(owner), device=device) * K + owner
            return _Order(
                owner,
                (owner[:, None] * K + owner).flatten(),
                _coordinates_first(owner, K),
                weight,
                from_parts,
                _coordinates_first(own, K),
                torch.tensor((1.0, -1.0), dtype=torch.float64, device=device),
            )


class _InverseCovariance:
    """W = R^-1 = (I - C T C^H) / sigma^2 by Woodbury's identity, which also holds at p = 0.

    The ridge is for estimates with two sources in the same place. The bound of true positions does without,
    since it would bias it at very high SNR.
    """

    def __init__(self, gram: Tensor, power: Tensor, noise_variance: Tensor, ridge: float = _RIDGE) -> None:
        K = power.shape[1]
        self.gram, self.K, self.power = gram, K, power
        self.sigma2, self.order = noise_variance, _Order.of(K, gram.shape[-1] > K, power.device)
        root = (power / noise_variance[:, None]).sqrt()[:, None, :, None]
        self.XC = gram.narrow(-1, 0, K).contiguous()
        self.CC = self.XC.narrow(-2, 0, K)
        inner = root * self.CC * root.mT
        inner.diagonal(dim1=-2, dim2=-1).add_(1)
        # With a unit diagonal and the ridge, for sources that coincide high above the noise.
        self.scale = inner.diagonal(dim1=-2, dim2=-1).real.rsqrt()[..., None]
        inner = self.scale * inner * self.scale.mT
        inner.diagonal(dim1=-2, dim2=-1).add_(ridge)
        self.factor, failed = torch.linalg.cholesky_ex(inner)
        self.factor = torch.where(failed[..., None, None] > 0, torch.nan, self.factor)
        root = root * self.scale
        self.T = root * torch.cholesky_inverse(self.factor) * root.mT  # [S, L, K, K]

    @cached_property
    def gram_t(self) -> Tensor:
        """X^H C T."""
        return self.XC @ self.T

    def information(self, antennas: int, snapshots: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """J, and what the gradient shares with it: diag(Y^H W X), the weights of R', and tr W."""
        K, p, gram, sigma2 = self.K, self.power, self.gram, self.sigma2
        # Columns of a source: its field, and its derivatives where there are any.
        kinds = 4 if gram.shape[-1] > K else 1
        repeats = snapshots if gram.shape[1] == 1 else 1
        # All products with W are in units of 1 / sigma^2, those with W W of 1 / sigma^4.
        half = self.gram_t
        FC = self.XC - half @ self.CC  # X^H W C
        FCC = FC.narrow(-2, 0, K)  # C^H W C
        F = gram - half @ gram.narrow(-2, 0, K) if kinds > 1 else FC  # X^H W X
        F2 = FC - half @ FCC  # X^H W W C
        turn = half.narrow(-2, 0, K)
        one, two = _trace(turn).real, (turn * turn.mT).sum((-2, -1)).real
        trace = (antennas - one).sum(1) * repeats / sigma2  # tr W, over all snapshots
        trace2 = (antennas - 2 * one + two).sum(1) * repeats

        # R' = weight (x y^H + y x^H): x = y = c_k, p_k / 2 for the logarithm of a power; x = c_k, y = b_i,
        # weight p_k for a coordinate. Coordinates come first here, powers last.
        order = self.order
        weight = p.index_select(1, order.unknown_owner) * order.weight
        Fxx = FCC.flatten(-2).index_select(-1, order.owners)
        J = _real_dot(F.flatten(-2), Fxx).unflatten(-1, F.shape[-2:])
        J = _coordinates_first(_coordinates_first(J, K, dim=1), K, dim=2)
        # Products of Y^H W X with its transpose: for each pair of sources one of matrices [kinds, L].
        parts = FCC[..., None, :]
        if kinds > 1:
            parts = torch.cat((FC[..., K:, :].unflatten(-2, (K, kinds - 1)), parts), dim=-2)
        parts = parts.permute(0, 2, 4, 3, 1)  # [S, source, other source, kinds, L]
        left = torch.view_as_real(parts.contiguous())
        right = (left * order.conjugate).transpose(1, 2)
        cross = (left.flatten(-2) @ right.flatten(-2).mT).transpose(2, 3).flatten(3).flatten(1, 2)
        scaled = weight / sigma2[:, None]
        J = (
            (J + cross[:, order.from_parts[:, None], order.from_parts])
            * (2 * repeats * scaled[:, :, None])
            * scaled[:, None]
        )
        # Entries (i, source of i) of Y^H W X and Y^H W W X.
        Fyx, Fyx2 = (
            torch.view_as_real(value).sum(1)[..., 0].flatten(1).index_select(1, order.own) * repeats
            for value in (FC, F2)
        )
        by_noise = 2 * Fyx2 * scaled
        J = torch.cat((J, by_noise[:, None]), dim=1)
        J = torch.cat((J, torch.cat((by_noise, trace2[:, None]), dim=1)[..., None]), dim=2)
        return J, Fyx / sigma2[:, None], weight, trace


def _real_dot(one: Complex[Tensor, "S L X"], other: Complex[Tensor, "S L X"]) -> Float[Tensor, "S X"]:
    """Re(one^* other), summed over the snapshots."""
    product = (torch.view_as_real(one) * torch.view_as_real(other)).sum(1)
    return product.sum(-1)


def _coordinates_first(value: Tensor, sources: int, dim: int = -1) -> Tensor:
    """Move the first K entries behind the 3K that may follow them."""
    return value.roll(-sources, dim)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def _solve(stats: SufficientStatistics, right: Tensor) -> Tensor:
    """(C^H C)^-1 times ``right``, [S, L, K, *]; coinciding columns share, columns of zeros give 0."""
    K = stats.active.shape[1]
    gram = stats.gram[..., :K, :K]
    norm = gram.diagonal(dim1=-2, dim2=-1).real.sqrt()
    scale = torch.where(norm > 0, 1 / norm, 0)[..., None]
    unit = scale * gram * scale.mT + torch.diag_embed(torch.where(norm > 0, _RIDGE, 1.0))
    factor = torch.linalg.cholesky_ex(unit).L
    if factor.shape[1] != right.shape[1]:
        factor = factor.expand(-1, right.shape[1], -1, -1)
    return scale * torch.cholesky_solve(scale * right, factor)


def residual_energy(stats: SufficientStatistics, s: Complex[Tensor, "S L K"]) -> Float[Tensor, "S"]:
    """Energy that the symbols s leave unexplained, at least the rounding error of the total energy."""
    explained = (stats.cross[..., : s.shape[-1]].conj() * s).real.sum(dim=(1, 2))
    energy = stats.energy.sum(dim=1)
    return torch.maximum(energy - explained, energy * 1e-15).clamp_min(_SMALLEST_COST)
