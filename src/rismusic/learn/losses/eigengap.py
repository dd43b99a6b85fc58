"""The gap between the eigenvalues of the sources and those of the rest."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.covariance import Covariance

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
