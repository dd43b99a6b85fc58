"""How the spectrum of a covariance stands out at the true sources from what is around them."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.covariance import Conditioning, Covariance, finish
from rismusic.covariance.lowrank import energy

# Trace of the identity that a covariance is given before its spectrum is taken.
_LOADING = 0.05


def capon(covariance: Covariance, steering: Complex[Tensor, "*batch N Q"]) -> Float[Tensor, "*batch Q"]:
    r"""The minimum variance spectrum :math:`1 / (a^H R^{-1} a)` of a covariance with a loading.

    .. math:: a^H R^{-1} a = \frac{1}{\epsilon} \left( |a|^2 - |C^{-1} F^H a|^2 \right), \qquad
        C C^H = \epsilon I + F^H F

    (Woodbury; C a Cholesky factor, in double precision). The twin of
    :func:`rismusic.estimate.spectrum.mvdr` that does not make the host wait for the device.

    Args:
        covariance: R, its loading positive.
        steering: vectors a.
    """
    F, loading = covariance.factor.to(torch.complex128), covariance.loading.double()[..., None]
    identity = torch.eye(F.shape[-1], dtype=F.dtype, device=F.device)
    root, _ = torch.linalg.cholesky_ex(F.mH @ F + loading[..., None] * identity)
    across = (covariance.factor.mH @ steering).to(F.dtype)
    solved = torch.linalg.solve_triangular(root, across, upper=False)
    left = energy(steering).sum(-2).double() - energy(solved).sum(-2)
    return (loading / left).to(covariance.loading.dtype)


def peak_contrast(
    covariance: Covariance,
    target: Covariance,
    around: Complex[Tensor, "*batch N K C"],
    spectrum: Literal["capon", "bartlett"] = "capon",
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
        spectrum: ``capon``, :math:`1 / a^H R^{-1} a`, or ``bartlett``, :math:`a^H R a`.

    Returns:
        [..., K], not negative; meaningless where there is no source.
    """
    shape = around.shape[-2:]
    vectors = around.flatten(-2)

    def log_share(which: Covariance) -> Tensor:
        loading = torch.full_like(which.loading, _LOADING)
        loaded = finish(which, Conditioning(loading, torch.zeros_like(loading)))
        values = loaded.quadratic(vectors) if spectrum == "bartlett" else capon(loaded, vectors)
        return values.unflatten(-1, shape).log().log_softmax(-1)

    with torch.no_grad():
        t = log_share(target)
    return (t.exp() * (t - log_share(covariance))).sum(-1)
