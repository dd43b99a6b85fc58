"""Losses of a covariance: error, subspace leakage, eigengap, peak contrast, and coherence of its factors."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from rismusic.covariance import Conditioning, Covariance, energy, load_and_shrink, predicted_covariance

# Share of off-diagonal energy below which the target counts as diagonal.
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
    r"""Squared relative error of R: mean of the errors of its diagonal and of its off-diagonal entries.

    .. math:: \frac12 \frac{|\mathrm{diag}(R - T)|^2}{|\mathrm{diag}(T)|^2}
        + \frac12 \frac{|\mathrm{off}(R - T)|_F^2}{|\mathrm{off}(T)|_F^2},
        \qquad \mathrm{tr} R = \mathrm{tr} T = 1.

    The diagonal entries of a steering covariance are nearly equal and easy to predict; the off-diagonal ones
    hold the positions, and a loading would dominate them in a common norm. Both covariances are scaled to
    trace 1. For a diagonal T, the off-diagonal error is relative to :math:`|T|_F^2`.
    With :math:`R = F F^H + \ldots`, :math:`T = G G^H + \ldots`,

    .. math:: |\mathrm{off}(R - T)|_F^2 = |F^H F|_F^2 - 2 |F^H G|_F^2 + |G^H G|_F^2
        - |\mathrm{diag}(F F^H - G G^H)|^2.

    Args:
        covariance: R, of N elements; with a gradient.
        target: T, conditioned like R.

    Returns:
        [...], 0 for R = T (up to rounding, about 1e-7 in float32), at least 1/2 for orthogonal ones.
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


# Keeps the Gram matrix of coincident or absent sources invertible; columns of A have unit norm.
_RIDGE = 1e-9


@torch.no_grad()
def steering_basis(steering: Complex[Tensor, "*batch N K"]) -> Complex[Tensor, "*batch N K"]:
    r"""Q with :math:`Q Q^H = P = A (A^H A + \epsilon I)^{-1} A^H`, the projector onto the true sources.

    :math:`Q = A C^{-H}`, C the Cholesky factor of :math:`A^H A + \epsilon I`, :math:`\epsilon` = 1e-9, in
    double precision. No gradient flows through it.

    Args:
        steering: A, columns of unit norm, zero where there is no source.

    Returns:
        Q, zero where there is no source.
    """
    A = steering.to(torch.complex128)
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    # ``cholesky_ex`` does not synchronise with the host.
    root, _ = torch.linalg.cholesky_ex(A.mH @ A + _RIDGE * identity)
    return torch.linalg.solve_triangular(root, A.mH, upper=False).mH.to(steering.dtype).resolve_conj()


def subspace_leakage(covariance: Covariance, basis: Complex[Tensor, "*batch N K"]) -> Float[Tensor, "*batch"]:
    r"""Share of the energy of R outside the subspace of the true sources.

    .. math:: \frac{|P_\perp R P_\perp|_F^2}{|R|_F^2}, \qquad P_\perp = I - Q Q^H,

    and with :math:`R = F F^H + \epsilon I`, :math:`F_\perp = P_\perp F`,

    .. math:: |P_\perp R P_\perp|_F^2 = |F_\perp^H F_\perp|_F^2 + 2 \epsilon |F_\perp|_F^2
        + \epsilon^2 (N - \mathrm{tr}\, Q Q^H).

    It projects onto true steering vectors, so no gradient passes through eigenvectors.

    Args:
        covariance: R, of N elements.
        basis: Q of :func:`steering_basis`.

    Returns:
        [...], 0 to 1; 0 if R lies in the subspace, which needs a loading of 0.
    """
    F, loading = covariance.factor, covariance.loading
    outside = F - basis @ (basis.mH @ F)
    dimensions = covariance.size - energy(basis).sum((-2, -1))
    leaked = energy(outside.mH @ outside).sum((-2, -1))
    leaked = leaked + 2 * loading * energy(outside).sum((-2, -1)) + loading.square() * dimensions
    return leaked / inner(covariance, covariance)


# Keeps the hinge finite if the true gap closes (coincident sources), relative to the trace.
_FLOOR = 1e-6


def eigenvalue_gap(covariance: Covariance, count: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    r"""The gap :math:`\lambda_K - \lambda_{K+1}`, eigenvalues descending, of a covariance of trace 1.

    They are the eigenvalues of the small matrix :math:`F^H F`; the loading shifts all equally and cancels.
    Unlike that of eigenvectors, the gradient of eigenvalues, :math:`u^H\,dR\,u`, is finite for repeated ones.

    Args:
        covariance: R.
        count: K; 0 counts as 1.
    """
    F = covariance.normalised().factor
    gram = F.mH @ F if F.shape[-1] <= F.shape[-2] else F @ F.mH
    ascending = torch.linalg.eigvalsh((gram + gram.mH) / 2)
    # Eigenvalues beyond the rank of F are zero.
    descending = torch.nn.functional.pad(ascending.flip(-1), (0, 1))
    last = (count.clamp(1, descending.shape[-1] - 1) - 1)[..., None]
    return (descending.gather(-1, last) - descending.gather(-1, last + 1))[..., 0]


def eigengap_hinge(
    covariance: Covariance, target: Covariance, count: Int64[Tensor, "*batch"], margin: float
) -> Float[Tensor, "*batch"]:
    r"""Hinge loss of the eigengap of R, relative to its margin.

    .. math:: \frac{\max(0, \gamma - (\lambda_K(R) - \lambda_{K+1}(R)))}{\gamma + 10^{-6}}, \qquad
        \gamma = \min(m,\; \lambda_K(T) - \lambda_{K+1}(T)),

    so that the margin does not exceed the true gap, which is small for close or many sources.

    Args:
        covariance: R.
        target: T, conditioned like R.
        count: K.
        margin: m, relative to the trace.

    Returns:
        [...], 0 if the gap reaches the margin.
    """
    with torch.no_grad():
        gap = eigenvalue_gap(target, count).clamp_max(margin)
    return (gap - eigenvalue_gap(covariance, count)).relu() / (gap + _FLOOR)


# Diagonal loading for the MVDR spectrum, relative to the trace.
_LOADING = 0.05


def mvdr_value(covariance: Covariance, steering: Complex[Tensor, "*batch N Q"]) -> Float[Tensor, "*batch Q"]:
    r"""The MVDR spectrum :math:`1 / (a^H R^{-1} a) = \epsilon / (|a|^2 - |V^H a|^2)`, in double precision.

    V is that of :func:`rismusic.estimation.spectra.mvdr`,
    :meth:`Covariance.inverse_root <rismusic.covariance.Covariance.inverse_root>`. Its positive loading is not
    checked here, so that a GPU is not synchronised.

    Args:
        covariance: R, with a positive loading.
        steering: vectors a.
    """
    projected = covariance.inverse_root().mH @ steering.to(torch.complex128)
    remainder = energy(steering).sum(-2).double() - energy(projected).sum(-2)
    return (covariance.loading.double()[..., None] / remainder).to(covariance.loading.dtype)


def peak_contrast(
    covariance: Covariance,
    target: Covariance,
    around: Complex[Tensor, "*batch N K C"],
) -> Float[Tensor, "*batch K"]:
    r"""Divergence of the MVDR spectra of R and T around the true sources.

    The spectrum at the C = 25 cells around a source, itself included, divided by its sum over them, is a
    distribution: s for R and t for T. The loss is the Kullback-Leibler divergence

    .. math:: \sum_c t_c \log \frac{t_c}{s_c},

    so that no more contrast is required than the true covariance has. Both covariances get a further loading
    of 5 % of the trace, since R may be singular.

    Args:
        covariance: R.
        target: T, conditioned like R.
        around: steering vectors of the C cells around each of the K sources.

    Returns:
        [..., K], not negative; undefined where there is no source.
    """
    shape = around.shape[-2:]
    vectors = around.flatten(-2)

    def log_share(which: Covariance) -> Tensor:
        loading = torch.full_like(which.loading, _LOADING)
        loaded = load_and_shrink(which, Conditioning(loading, torch.zeros_like(loading)))
        return mvdr_value(loaded, vectors).unflatten(-1, shape).log().log_softmax(-1)

    with torch.no_grad():
        t = log_share(target)
    return (t.exp() * (t - log_share(covariance))).sum(-1)


def factor_coherence(
    angle_factor: Complex[Tensor, "*batch N K"], range_factor: Complex[Tensor, "*batch N K"]
) -> Float[Tensor, "*batch"]:
    r"""Energy of the inner products of different columns within each factor.

    .. math:: \frac{1}{(\mathrm{tr} R_{pred})^2} \sum_{i \ne j}
        \left( |a_i^H a_j|^2 + 0.3^2 |b_i^H b_j|^2 \right)

    with the columns a of A_ang and b of A_rng. Every covariance has a factor with orthogonal columns, its
    scaled eigenvectors, so this loss does not conflict with the covariance loss; it prevents the columns from
    collapsing onto each other.

    Args:
        angle_factor: A_ang.
        range_factor: A_rng.

    Returns:
        [...], 0 to 1.
    """
    gram = _unit_gram(angle_factor, range_factor)
    half = angle_factor.shape[-1]
    within = energy(gram[..., :half, :half]).sum((-2, -1)) + energy(gram[..., half:, half:]).sum((-2, -1))
    return within - energy(gram.diagonal(dim1=-2, dim2=-1)).sum(-1)


def cross_coherence(
    angle_factor: Complex[Tensor, "*batch N K"], range_factor: Complex[Tensor, "*batch N K"]
) -> Float[Tensor, "*batch"]:
    r"""Energy of the inner products between the columns of the two factors.

    .. math:: \frac{2 \cdot 0.3\, |A_{ang}^H A_{rng}|_F^2}{(\mathrm{tr} R_{pred})^2},

    0 if the range factor is orthogonal to the angle factor.

    Args:
        angle_factor: A_ang.
        range_factor: A_rng.

    Returns:
        [...], 0 to 1.
    """
    half = angle_factor.shape[-1]
    return 2 * energy(_unit_gram(angle_factor, range_factor)[..., :half, half:]).sum((-2, -1))


def _unit_gram(angle_factor: Tensor, range_factor: Tensor) -> Tensor:
    """F^H F of R_pred = F F^H of trace 1."""
    F: torch.Tensor = predicted_covariance(angle_factor, range_factor).normalised().factor
    return F.mH @ F
