"""How far one covariance is from another, from products of their factors.

How much of a covariance lies outside what the true sources can send.

The gap between the eigenvalues of the sources and those of the rest.

How the spectrum of a covariance stands out at the true sources from what is around them.

How far the columns of the predicted factors say the same thing twice.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from rismusic.covariance import Conditioning, Covariance, energy, finish, predicted_covariance

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


# Keeps the Gram matrix of coincident or absent sources invertible (columns of A have unit norm).
_RIDGE = 1e-9


@torch.no_grad()
def steering_basis(steering: Complex[Tensor, "*batch N K"]) -> Complex[Tensor, "*batch N K"]:
    r"""Q with :math:`Q Q^H = P = A (A^H A + \epsilon I)^{-1} A^H`, the projector on the true sources.

    :math:`Q = A C^{-H}`, C the Cholesky factor of :math:`A^H A + \epsilon I`, :math:`\epsilon` = 1e-9, in
    double precision. No gradient flows through it.

    Args:
        steering: A, columns of unit norm, zero where there is no source.

    Returns:
        Q, zero where there is no source.
    """
    A = steering.to(torch.complex128)
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    # A positive definite matrix: unlike ``cholesky``, this one does not make the host wait for the answer.
    root, _ = torch.linalg.cholesky_ex(A.mH @ A + _RIDGE * identity)
    return torch.linalg.solve_triangular(root, A.mH, upper=False).mH.to(steering.dtype).resolve_conj()


def subspace_leakage(covariance: Covariance, basis: Complex[Tensor, "*batch N K"]) -> Float[Tensor, "*batch"]:
    r"""Share of the energy of R that lies outside the true sources' subspace.

    .. math:: \frac{|P_\perp R P_\perp|_F^2}{|R|_F^2}, \qquad P_\perp = I - Q Q^H,

    and with :math:`R = F F^H + \epsilon I`, :math:`F_\perp = P_\perp F`,

    .. math:: |P_\perp R P_\perp|_F^2 = |F_\perp^H F_\perp|_F^2 + 2 \epsilon |F_\perp|_F^2
        + \epsilon^2 (N - \mathrm{tr}\, Q Q^H).

    It projects on ground-truth steering vectors, so that nothing is differentiated through eigenvectors.

    Args:
        covariance: R, of N elements.
        basis: Q of :func:`steering_basis`.

    Returns:
        [...], 0 to 1; 0 where all of R lies in the subspace, which no loading does.
    """
    F, loading = covariance.factor, covariance.loading
    outside = F - basis @ (basis.mH @ F)
    dimensions = covariance.size - energy(basis).sum((-2, -1))
    leaked = energy(outside.mH @ outside).sum((-2, -1))
    leaked = leaked + 2 * loading * energy(outside).sum((-2, -1)) + loading.square() * dimensions
    return leaked / inner(covariance, covariance)


# Keeps the hinge finite where the true gap closes (coincident sources), in units of the trace.
_FLOOR = 1e-6


def eigenvalue_gap(covariance: Covariance, count: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    r"""The gap :math:`\lambda_K - \lambda_{K+1}`, eigenvalues descending, of a covariance of trace 1.

    The eigenvalues of :math:`F F^H` are those of the small Hermitian matrix :math:`F^H F` and zeros; the
    loading lifts all alike and drops out. The gradient is that of eigenvalues, :math:`u^H\,dR\,u`, which
    exists where eigenvalues meet, unlike that of eigenvectors, of which there is none here.

    Args:
        covariance: R.
        count: K, at least 1 (0 is read as 1).
    """
    F = covariance.normalised().factor
    gram = F.mH @ F if F.shape[-1] <= F.shape[-2] else F @ F.mH
    ascending = torch.linalg.eigvalsh((gram + gram.mH) / 2)
    # Beyond the rank of F all are zero.
    descending = torch.nn.functional.pad(ascending.flip(-1), (0, 1))
    last = (count.clamp(1, descending.shape[-1] - 1) - 1)[..., None]
    return (descending.gather(-1, last) - descending.gather(-1, last + 1))[..., 0]


def eigengap_hinge(
    covariance: Covariance, target: Covariance, count: Int64[Tensor, "*batch"], margin: float
) -> Float[Tensor, "*batch"]:
    r"""What the gap of R lacks of the margin, relative to the margin.

    .. math:: \frac{\max(0, \gamma - (\lambda_K(R) - \lambda_{K+1}(R)))}{\gamma + 10^{-6}}, \qquad
        \gamma = \min(m,\; \lambda_K(T) - \lambda_{K+1}(T)),

    so that no more is asked for than the truth has: sources that are close, or many, leave a small gap.

    Args:
        covariance: R.
        target: T, finished as R is.
        count: K.
        margin: m, in units of the trace.

    Returns:
        [...], 0 where the gap is wide enough, more than 1 where eigenvalues are out of reach.
    """
    with torch.no_grad():
        wanted = eigenvalue_gap(target, count).clamp_max(margin)
    return (wanted - eigenvalue_gap(covariance, count)).relu() / (wanted + _FLOOR)


# Trace of the identity that a covariance is given before its spectrum is taken.
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
    r"""How much less a true source stands out of its neighbourhood in R than it does in T.

    The spectrum at the source and at the C - 1 = 24 cells around it, divided by its sum over the C cells, is
    a distribution, s for R and t for T. The loss is what s lacks to be t,

    .. math:: \sum_c t_c \log \frac{t_c}{s_c},

    the cross-entropy of the true cell against its neighbours, softened by what the truth itself shows, less
    its entropy: no more contrast is asked for than the truth has, and at T it is exactly 0. The spectra are
    those of R and T with a further loading of 5 % of the trace, without which R may have no inverse, and s
    no logarithm.

    Args:
        covariance: R.
        target: T, finished as R is.
        around: steering vectors of the C cells around each of the K sources, the source among them.

    Returns:
        [..., K], not negative; meaningless where there is no source.
    """
    shape = around.shape[-2:]
    vectors = around.flatten(-2)

    def log_share(which: Covariance) -> Tensor:
        loading = torch.full_like(which.loading, _LOADING)
        loaded = finish(which, Conditioning(loading, torch.zeros_like(loading)))
        return mvdr_value(loaded, vectors).unflatten(-1, shape).log().log_softmax(-1)

    with torch.no_grad():
        t = log_share(target)
    return (t.exp() * (t - log_share(covariance))).sum(-1)


def factor_coherence(
    angle_factor: Complex[Tensor, "*batch N K"], range_factor: Complex[Tensor, "*batch N K"]
) -> Float[Tensor, "*batch"]:
    r"""Energy of the inner products of different columns of one factor.

    .. math:: \frac{1}{(\mathrm{tr} R_{pred})^2} \sum_{i \ne j}
        \left( |a_i^H a_j|^2 + 0.3^2 |b_i^H b_j|^2 \right)

    a and b the columns of A_ang and A_rng. Any covariance has a factor with orthogonal columns (its scaled
    eigenvectors), so this never stands against the covariance: it picks one of the many factors of the same
    R_pred, and keeps columns from collapsing onto each other.

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

    0 where the range factor adds directions that the angle factor does not have.

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
