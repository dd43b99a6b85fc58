r"""Model order: the number of sources by Bayesian evidence, and by MDL and AIC for comparison.

**Evidence.** Fits with K = 0, 1, 2, ... sources are compared by the Laplace approximation of the evidence for
K sources. Let :math:`\theta` hold the U unknowns (azimuth, elevation, 1/range and log power of each source,
and the log noise variance where it is unknown), with uniform priors of widths :math:`w_i`. That of the power
of a source falls by a factor of e for each :math:`w_x` = 10 dB of its level :math:`x_k` below the strongest
one: sources that are received together are seldom 30 dB apart, whereas a fit to noise is as weak as the
noise. (Over 30 dB, this prior adds up to 1/3: further sources are less probable than not. Where a network
gives the probability of their number, the evidence is multiplied by 3 for each of them.) At the best fit
:math:`\hat\theta`,

.. math:: \log p(Y | K) \approx \log p(Y | \hat\theta) + \log K! - \sum_k \frac{x_k}{w_x}
    - \tfrac12 \log\det\left( \mathrm{diag}(w)\, \frac{J + \Lambda}{2\pi}\, \mathrm{diag}(w) \right),

with the Fisher information J of the unconditional likelihood. :math:`\Lambda = \mathrm{diag}(2\pi / w_i^2)`
makes the factor of an unknown 1 if the data carry no information on it. K! counts the permutations of the
sources; only those whose power is identifiable are counted. With correlated symbols the correlation
coefficients are unknowns too, and all correlation matrices are equally probable. (BIC is the same with each
information replaced by 2 L M, and without the levels. Here, an uncertain range costs less than a
well-determined one.) Kass and Raftery, "Bayes factors", J. Am. Stat. Assoc. 90 (1995).

**MDL and AIC.** With the eigenvalues :math:`\lambda_1 \ge \ldots \ge \lambda_p` of the sample covariance of n
snapshots,

.. math:: \Lambda(k) = -n (p - k) \log \frac{\left( \prod_{i > k} \lambda_i \right)^{1 / (p - k)}}
    {\frac{1}{p - k} \sum_{i > k} \lambda_i}, \qquad
    \mathrm{MDL}(k) = \Lambda(k) + \tfrac12 k (2 p - k) \log n, \qquad
    \mathrm{AIC}(k) = 2 \Lambda(k) + 2 k (2 p - k),

and the k of the least value is taken. Wax and Kailath, "Detection of signals by information theoretic
criteria", IEEE Trans. ASSP 33 (1985). Both assume a covariance of rank K plus white noise, as a directly
sampled panel has. Through a RIS with changing configurations neither available covariance has this form: that
of y_l, :math:`\frac1L \sum_l G_l A P A^H G_l^H + \sigma^2 I`, has K other dimensions in each snapshot, and
that of the back-projected snapshots holds the projection of the field onto M of N dimensions, in coloured
noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.batch import Batch
from rismusic.covariance import back_project
from rismusic.estimation.grid import Volume
from rismusic.estimation.likelihood import (
    SufficientStatistics,
    scene_blocks,
    sufficient_statistics,
    unconditional,
)
from rismusic.estimation.maximum_likelihood import Fit, fit_source_covariance, kernel_for, unpack
from rismusic.estimation.noise import noise_of
from rismusic.estimation.source_covariance import correlated_information, log_volume, pair_active
from rismusic.io import Recording, check_recording

_ROUNDING = 1e-12  # smaller eigenvalues, relative to the largest, are rounding errors and count as this

# Prior width of log power and log noise variance: 30 dB, as a natural logarithm.
LOG_POWER_WIDTH = math.log(1e3)
# Level below the strongest source over which the prior falls by a factor of e: 10 dB.
_LEVEL = math.log(10)
# What the prior of the level of each further source lacks to add up to 1.
LOG_NORMALISATION = math.log(LOG_POWER_WIDTH / _LEVEL)

EVIDENCE_WEIGHT = 0.4
"""Weight of the log evidence beside the log prior that a network gives to the number of sources.

The network has seen the same snapshots. With a weight of 1 the probabilities are too close to 0 and 1. This
weight makes them reliable on simulated scenes, without a loss in accuracy. It also scales the evidence of
fits with a model error (:mod:`~rismusic.estimation.diagnosis`) and of several panels (:mod:`rismusic.room`).
Other fits without a network have the weight 1.
"""

# The search stops after this many additional sources in a row without a gain, unless there are few samples: a
# part of several strong sources then explains too little to pay for its unknowns.
_PATIENCE, _FEW_SAMPLES = 2, 128


@dataclass(frozen=True, eq=False)
class SelectedOrder(Batch):
    """The most probable number of sources of S scenes."""

    fit: Fit  # with that number, padded to the largest number of any scene (at least one)
    log_posterior: Float[Tensor, "S counts"]  # log evidence, weighted, plus log prior (nats); -inf: not tried

    @property
    def probability(self) -> Float[Tensor, "S counts"]:
        """[S, most + 1] posterior probability of each number of sources."""
        return self.log_posterior.softmax(dim=1)


def select_model_order(
    scenes: Int64[Tensor, "S"],
    fit: Callable[[Int64[Tensor, "_"], int], tuple[Fit, Float[Tensor, "_"]]],
    most: int,
    prior: Float[Tensor, "S counts"] | None = None,
    *,
    samples: int,
) -> SelectedOrder:
    """Select the number of sources with the greatest posterior probability, scene by scene.

    Numbers are tried in increasing order. A scene for which two more sources in a row bring no gain is done;
    with few samples all numbers are tried.

    Args:
        scenes: 0 to S - 1.
        fit: fits a given number of sources to some scenes and returns the fit and its log evidence (nats).
        most: largest number of sources.
        prior: [S, most + 1] log prior of each number, beside which the evidence has the weight
            :data:`EVIDENCE_WEIGHT`; uniform if ``None``. Numbers with minus infinity are not tried, except 0.
        samples: complex numbers in the data of a scene.
    """
    patience = _PATIENCE if samples > _FEW_SAMPLES else most
    best, evidence = fit(scenes, 0)
    weight = EVIDENCE_WEIGHT
    if prior is None:
        weight, prior = 1.0, evidence.new_zeros(len(scenes), most + 1)
    log_posterior = torch.full_like(prior, -math.inf)
    # The prior is added here and below; `fit` returns the evidence alone.
    log_posterior[:, 0] = weight * evidence + prior[:, 0]
    highest, since = log_posterior[:, 0].clone(), torch.zeros_like(scenes)
    for count in range(1, most + 1):
        left = scenes[(since < patience) & (prior[:, count] > -math.inf)]
        if len(left) == 0:
            continue
        tried, evidence = fit(left, count)
        posterior = weight * evidence + prior[left, count]
        log_posterior[left, count] = posterior
        better = posterior > highest[left]
        highest[left] = torch.where(better, posterior, highest[left])
        since[left] = torch.where(better, 0, since[left] + 1)
        best = best.replaced(left[better], tried[better])
    return SelectedOrder(best, log_posterior)


def log_prior_of_number(count: Int64[Tensor, "S"]) -> Float[Tensor, "S"]:
    """Log prior of numbers of sources (nats), up to a constant: uniform. Every evidence contains it."""
    return torch.zeros_like(count, dtype=torch.float64)


def log_evidence(
    recording: Recording, fit: Fit, volume: Volume, *, identifiable: bool = True
) -> Float[Tensor, "S"]:
    """Laplace approximation of the log evidence for K sources (nats), up to a constant of the scene.

    Args:
        recording: S scenes.
        fit: fit with K sources, at the maximum of the unconditional likelihood.
        volume: the search volume, over which azimuth, elevation and 1/range have a uniform prior.
        identifiable: whether all powers have to be identifiable. Otherwise the evidence is minus infinity: a
            source without identifiable power costs nothing, and would tie with no source.
    """
    positions, active = unpack(fit.sources, recording)
    assert fit.sources.power is not None
    power = torch.where(active, fit.sources.power, 0)
    S, K = active.shape
    extent = (high - low for low, high in zip(volume.lower, volume.upper, strict=True))
    width = torch.tensor(
        [*extent] * K + [LOG_POWER_WIDTH] * (K + 1), dtype=torch.float64, device=power.device
    )
    # Absent or known unknowns have no width.
    free = torch.cat((active.repeat_interleave(3, dim=1), active, active.new_ones(S, 1)), dim=1)
    if recording.noise_variance is not None:
        free[:, -1] = False
    width = torch.where(free, width, 0)
    volumes, powers = [], torch.arange(3 * K, 4 * K, device=power.device)[None]
    kernel = None if recording.symbols == "correlated" else kernel_for(recording)
    for block in scene_blocks(recording, 4 * K):
        part, x, there, w = recording[block], positions[block], active[block], width[block]
        noise = fit.noise_variance[block]
        if kernel is not None:
            J, _ = kernel.information(part, x, there, power[block], noise)
        else:
            at = sufficient_statistics(part, x, there, derivatives=True)
            if recording.symbols == "correlated":
                J, w = _with_correlations(part, at, w, noise)
            else:
                _, _, J = unconditional(at, power[block], noise)
        level = power[block].clamp_min(1e-300).log().masked_fill(~there, -math.inf)[:, None]
        volumes.append(log_occam_factor(J, w, powers, level, identifiable=identifiable))
    # Steering vectors that overflow leave no likelihood; such a fit is no evidence.
    evidence = torch.cat(volumes) - fit.neg_log_likelihood
    return evidence.where(~fit.neg_log_likelihood.isnan(), -math.inf)


def log_occam_factor(
    J: Float[Tensor, "S U U"],
    width: Float[Tensor, "S U"],
    powers: Int64[Tensor, "P K"],
    level: Float[Tensor, "S P K"],
    *,
    identifiable: bool = True,
) -> Float[Tensor, "S"]:
    """Log evidence less the log-likelihood: what the prior of the unknowns and of their number costs.

    The prior widths are 0 for unknowns that are absent or known. ``powers`` are the places of the log powers
    of the K sources among the unknowns, and ``level`` these log powers, minus infinity for absent sources,
    one row for each panel. For ``identifiable`` see :func:`log_evidence`.
    """
    # Sources at one place have no Fisher information; such a fit is no evidence for their number.
    defined = J.isfinite().flatten(1).all(1)
    J = torch.where(defined[:, None, None], J, 0)
    scaled = width[:, :, None] * J * width[:, None, :] / (2 * math.pi)
    found = scaled.diagonal(dim1=-2, dim2=-1)[:, powers] > 1
    count = found.any(1).sum(-1)
    scaled = scaled + torch.eye(J.shape[-1], dtype=J.dtype, device=J.device)
    factor = torch.lgamma(count.double() + 1) - 0.5 * torch.linalg.slogdet(scaled).logabsdet
    factor = factor + log_prior_of_number(count)
    if level.shape[-1]:
        below = level.amax(-1, keepdim=True) - level
        factor = factor - torch.where(found, below, 0).sum((1, 2)) / _LEVEL
    factor = factor.where(defined, -math.inf)
    if not identifiable:
        return factor
    return factor.where(count == (width[:, powers] > 0).any(1).sum(-1), -math.inf)


def _with_correlations(
    recording: Recording, at: SufficientStatistics, width: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Fisher information and prior widths with the correlation coefficients of the sources as unknowns too.

    All correlation matrices have the same prior probability.
    """
    K, L = at.active.shape[1], at.energy.shape[1]
    P = fit_source_covariance(recording.noise_variance, at.without_derivatives())[0]
    repeats = L if at.gram.shape[1] == 1 else 1
    J = correlated_information(at.gram, P, noise, antennas=at.antennas, repeats=repeats)
    count = at.active.sum(-1).double()
    each = (log_volume(count) / (count * (count - 1)).clamp_min(1)).exp()
    pairs = torch.where(pair_active(at.active), each[:, None], 0)
    return J, torch.cat((width[:, : 4 * K], pairs, width[:, 4 * K :]), dim=1)


def mdl(recording: Recording, *, panel: bool = False) -> Int64[Tensor, "S"]:
    """The number of sources by the minimum description length (MDL)."""
    values, snapshots = eigenvalues(recording, panel=panel)
    return _criterion(values, snapshots, 1.0, math.log(snapshots) / 2)


def aic(recording: Recording, *, panel: bool = False) -> Int64[Tensor, "S"]:
    """The number of sources by Akaike's information criterion (AIC); see :func:`mdl`."""
    values, snapshots = eigenvalues(recording, panel=panel)
    return _criterion(values, snapshots, 2.0, 2.0)


def eigenvalues(recording: Recording, *, panel: bool = False) -> tuple[Float[Tensor, "S p"], int]:
    r"""Eigenvalues of :math:`\frac1L \sum_l x_l x_l^H`, descending, and L.

    With fewer snapshots than dimensions, only the L non-zero eigenvalues are returned, and the criteria are
    applied to these. With ``panel``, x_l are the back-projected snapshots
    (:func:`~rismusic.covariance.back_project`, with the noise variance guessed where it is not known), not
    y_l.
    """
    check_recording(recording)
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
