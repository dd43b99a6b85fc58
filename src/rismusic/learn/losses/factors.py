"""How far the columns of the predicted factors say the same thing twice."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.covariance import predicted_covariance
from rismusic.covariance.lowrank import energy


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
