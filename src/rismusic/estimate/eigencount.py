r"""The number of sources by the eigenvalues of a sample covariance: MDL and AIC, for comparison.

With :math:`\lambda_1 \ge \ldots \ge \lambda_p` the eigenvalues of the sample covariance of n snapshots and k
the number of sources,

.. math:: \Lambda(k) = -n (p - k) \log \frac{\left( \prod_{i > k} \lambda_i \right)^{1 / (p - k)}}
    {\frac{1}{p - k} \sum_{i > k} \lambda_i}, \qquad
    \mathrm{MDL}(k) = \Lambda(k) + \tfrac12 k (2 p - k) \log n, \qquad
    \mathrm{AIC}(k) = 2 \Lambda(k) + 2 k (2 p - k);

the k of the least value is taken (Wax and Kailath, "Detection of signals by information theoretic criteria",
IEEE Trans. ASSP 33 (1985)).

They suppose a covariance of rank K plus white noise, which is what a panel that is sampled directly has.
Through a panel with codes neither covariance is one: that of y_l is
:math:`\frac1L \sum_l G_l A P A^H G_l^H + \sigma^2 I`, of another K dimensions in each snapshot, and that of
the back-projected snapshots holds in each of them the field's projection onto M of N dimensions, with the
noise coloured besides. The criterion of :mod:`rismusic.estimate.evidence` does not suppose it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.covariance import back_project
from rismusic.estimate.noise import noise_of
from rismusic.recording import Recording

# Eigenvalues below this share of the largest are rounding and count as this.
_ROUNDING = 1e-12


def mdl(recording: Recording, *, panel: bool = False) -> Int64[Tensor, "S"]:
    """The number of sources by the minimum description length; see the head of this module.

    Args:
        recording: S scenes.
        panel: of the snapshots carried back to the panel, rather than of those at the receiver.
    """
    values, snapshots = eigenvalues(recording, panel=panel)
    return _criterion(values, snapshots, 1.0, math.log(snapshots) / 2)


def aic(recording: Recording, *, panel: bool = False) -> Int64[Tensor, "S"]:
    """The number of sources by Akaike's criterion; see :func:`mdl`."""
    values, snapshots = eigenvalues(recording, panel=panel)
    return _criterion(values, snapshots, 2.0, 2.0)


def eigenvalues(recording: Recording, *, panel: bool = False) -> tuple[Float[Tensor, "S p"], int]:
    r"""Eigenvalues of :math:`\frac1L \sum_l x_l x_l^H`, descending, and L.

    Of fewer snapshots than dimensions only the L eigenvalues that are not zero are given; the criteria are
    used on them as if there were no others, which is what is left to do.

    Args:
        recording: S scenes.
        panel: x_l the back-projected snapshots (:func:`~rismusic.covariance.back_project`, with the noise
            variance guessed where it is not known) in place of y_l.
    """
    x = recording.snapshots.to(torch.complex128)
    if panel:
        x = back_project(recording.link.to(torch.complex128), x, noise_of(recording).double()).field
    L = x.shape[1]
    return torch.linalg.svdvals(x).square() / L, L


def _criterion(values: Float[Tensor, "S p"], n: int, fit: float, cost: float) -> Int64[Tensor, "S"]:
    """The k of the least ``fit`` Lambda(k) + ``cost`` k (2 p - k)."""
    p = values.shape[1]
    values = torch.maximum(values, _ROUNDING * values[:, :1])
    k = torch.arange(p, device=values.device)
    left = (p - k).double()
    # Sums over i > k, for all k at once.
    logs, sums = (each.flip(1).cumsum(1).flip(1) for each in (values.log(), values))
    badness = -n * (logs - left * (sums / left).log())
    return (fit * badness + cost * k * (2 * p - k)).argmin(1)
