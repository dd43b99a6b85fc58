"""How much of a covariance lies outside what the true sources can send."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.covariance import Covariance
from rismusic.covariance.lowrank import energy
from rismusic.learn.losses.frobenius import inner

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
