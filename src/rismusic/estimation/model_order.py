r"""How many sources: fits with 0, 1, 2, ... of them, and how probable each number is.

How well so many sources explain a scene, whatever exactly their positions and powers: the evidence.

With :math:`\theta` the U unknowns of K sources (azimuth, elevation, 1/range and log power of each, the log
noise variance where it is not known), spread evenly beforehand over widths :math:`w_i`, Laplace's integral at
the best fit :math:`\hat\theta` gives

.. math:: \log p(Y | K) \approx \log p(Y | \hat\theta) + \log K!
    - \tfrac12 \log\det\left( \mathrm{diag}(w)\, \frac{J + \Lambda}{2\pi}\, \mathrm{diag}(w) \right),

J the Fisher information of the unconditional likelihood there. An unknown of which the data say nothing must
not cost anything: :math:`\Lambda = \mathrm{diag}(2\pi / w_i^2)` makes its factor 1. K! counts the orders in
which one set of sources can be written: of those whose power the data tell at all, since one that may be
anything is spread over all orders already.

Schwarz's criterion is the same with every information replaced by 2 L M; here a source that is hardly seen,
or a range that is hardly known, costs less than one that is known well.

Kass and Raftery, "Bayes factors", J. Am. Stat. Assoc. 90 (1995).

The number of sources by the eigenvalues of a sample covariance: MDL and AIC, for comparison.

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
noise coloured besides. The criterion of :mod:`rismusic.estimation.model_order` does not suppose it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.covariance import back_project
from rismusic.estimation.grid import Volume
from rismusic.estimation.likelihood import scene_blocks, sufficient_statistics, unconditional
from rismusic.estimation.maximum_likelihood import Fit, unpack
from rismusic.estimation.noise import noise_of
from rismusic.io import Recording

# A scene is done when so many further sources in a row have not paid.
_PATIENCE = 2


@dataclass(frozen=True, eq=False)
class SelectedOrder:
    """The most probable number of sources of S scenes.

    Args:
        fit: with that number, padded to the largest of any scene (one place at least).
        log_evidence: [S, most + 1] of 0, 1, ... sources, in nats, with what was known beforehand; minus
            infinity where it was not tried.
    """

    fit: Fit
    log_evidence: Float[Tensor, "S counts"]

    @property
    def probability(self) -> Float[Tensor, "S counts"]:
        """[S, most + 1] probability of each number, equally probable beforehand if nothing else was said."""
        return self.log_evidence.softmax(dim=1)


def select_model_order(
    scenes: Int64[Tensor, "S"],
    fit: Callable[[Int64[Tensor, "_"], int], tuple[Fit, Float[Tensor, "_"]]],
    most: int,
    prior: Float[Tensor, "S counts"] | None = None,
) -> SelectedOrder:
    """The fits whose number of sources has the greatest evidence, scene by scene.

    Numbers are tried upwards; a scene that two more sources have not improved is not tried with a third.

    Args:
        scenes: 0 to S - 1.
        fit: fits so many sources to each of some scenes, and says how evident that number is (nats).
        most: largest number that is tried.
        prior: [S, most + 1] logarithm of how probable each number is beforehand; where it is minus infinity
            the number is not tried (but 0, which costs nothing). Equal if none is given.
    """
    best, evidence = fit(scenes, 0)
    if prior is None:
        prior = evidence.new_zeros(len(scenes), most + 1)
    all_evidence = torch.full_like(prior, -math.inf)
    value, since = evidence + prior[:, 0], torch.zeros_like(scenes)
    all_evidence[:, 0] = value
    for count in range(1, most + 1):
        left = scenes[(since < _PATIENCE) & (prior[:, count] > -math.inf)]
        if len(left) == 0:
            continue
        tried, evidence = fit(left, count)
        evidence = evidence + prior[left, count]
        all_evidence[left, count] = evidence
        better = evidence > value[left]
        value[left] = torch.where(better, evidence, value[left])
        since[left] = torch.where(better, 0, since[left] + 1)
        best = best.replaced(left[better], tried[better])
    return SelectedOrder(best, all_evidence)


# Powers are spread over 30 dB beforehand, the noise variance likewise: natural logarithm.
_LEVELS = math.log(1e3)


def log_evidence(recording: Recording, fit: Fit, volume: Volume) -> Float[Tensor, "S"]:
    """Logarithm of the evidence of each scene's number of sources, nats, up to a constant of the scene.

    Args:
        recording: S scenes.
        fit: of the number of sources in question, at the best of the unconditional likelihood.
        volume: where sources were looked for; azimuth, elevation and 1/range are spread over it evenly.
    """
    positions, active = unpack(fit.sources, recording)
    assert fit.sources.power is not None
    power = torch.where(active, fit.sources.power, 0)
    S, K = active.shape
    extent = (high - low for low, high in zip(volume.lower, volume.upper, strict=True))
    width = torch.tensor([*extent] * K + [_LEVELS] * (K + 1), dtype=torch.float64, device=power.device)
    # What is not there, or is known, has no width.
    free = torch.cat((active.repeat_interleave(3, dim=1), active, active.new_ones(S, 1)), dim=1)
    if recording.noise_variance is not None:
        free[:, -1] = False
    width = torch.where(free, width, 0)
    volumes = []
    for block in scene_blocks(recording, 4 * K):
        at = sufficient_statistics(recording[block], positions[block], active[block], derivatives=True)
        _, _, J = unconditional(at, power[block], fit.noise_variance[block])
        w = width[block]
        scaled = w[:, :, None] * J * w[:, None, :] / (2 * math.pi)
        seen = (scaled.diagonal(dim1=-2, dim2=-1)[:, 3 * K : -1] > 1).sum(-1)
        scaled = scaled + torch.eye(J.shape[-1], dtype=J.dtype, device=J.device)
        volumes.append(torch.lgamma(seen.double() + 1) - 0.5 * torch.linalg.slogdet(scaled).logabsdet)
    return torch.cat(volumes) - fit.neg_log_likelihood


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
