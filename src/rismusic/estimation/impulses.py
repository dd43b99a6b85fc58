r"""Impulsive noise: samples of larger variance are found and down-weighted.

The noise of every sample is one of two Gaussians (Huber's contaminated normal distribution, the two leading
terms of Middleton's class A noise),

.. math:: n_{lm} \sim (1 - \epsilon)\, CN(0, \sigma^2) + \epsilon\, CN(0, \tau), \qquad
    \tau \ge 10\, \sigma^2.

Given the sources, expectation maximisation (EM) estimates :math:`\sigma^2, \tau, \epsilon` of a scene, its
symbols, and the probability :math:`\gamma_{lm}` that a sample holds an impulse:

.. math:: \gamma_{lm} = \frac{\epsilon f_\tau}{\epsilon f_\tau + (1 - \epsilon) f_{\sigma^2}}, \qquad
    f_v = \frac1v \exp\left( -\frac{|y_{lm} - [G_l A \hat s_l]_m|^2 + h_{lm}}{v} \right),

where h is the variance of the fitted field, from the posterior covariance of the symbols. The weight of a
sample is :math:`w = 1 - \gamma + \gamma \sigma^2 / \tau`. The weighted recording has white noise again
(:attr:`~rismusic.Recording.sample_weights`): every fit, bound and p-value of it is that of the weighted
model. Fits and weights alternate until the weights settle.

A Student-t distribution would give weights of the same form. It needs a small number of degrees of freedom
for rare strong impulses, and then down-weights ordinary samples too, which costs accuracy without impulses.

Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm", J. R. Stat. Soc. B
39 (1977); Huber and Ronchetti, *Robust Statistics*, 2nd ed. (2009), section 7.8 (iterated weights).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from rismusic.array import steering
from rismusic.errors import InputError
from rismusic.estimation.estimate import Estimate, Estimator, NSources, join_estimates
from rismusic.estimation.maximum_likelihood import unpack
from rismusic.io import Recording
from rismusic.sources import Sources
from rismusic.spec import LocateSpec

# Least variance of an impulse over that of the noise, and largest and least share of impulses.
_RATIO, _MOST, _LEAST = 10.0, 0.3, 1e-3
# Steps of EM, the change of a probability at which it ends, and fits of a scene.
_STEPS, _SETTLED, _ROUNDS = 100, 1e-3, 8
_ROUNDING = 1e-16  # least noise variance over the mean power of the samples
# A scene is done when no weight changes by more than this share: a small weight counts with a large residual.
_SAME = 0.1


def locate_with_impulses(
    estimator: Estimator, recording: Recording, n_sources: NSources, spec: LocateSpec
) -> Estimate:
    """Locate the sources of scenes with impulsive noise by an estimator of weighted recordings.

    A recorded noise variance may include impulses, and is estimated instead.
    """
    check_no_calibration(spec)
    plain = replace(recording, noise_variance=None)
    S, device = len(plain), plain.snapshots.device
    most = 1 if plain.pilots is None else plain.pilots.shape[-1]
    none = torch.full((S, most), torch.nan, dtype=torch.float64, device=device)
    found = weigh_samples(plain, Sources(azimuth=none, elevation=none, range=none))
    left = torch.arange(S, device=device)
    done: dict[int, Estimate] = {}
    for number in range(_ROUNDS):
        count = n_sources[left] if isinstance(n_sources, Tensor) else n_sources
        estimate = estimator(replace(plain, sample_weights=found.weights), count)
        estimate = replace(estimate, impulses=found.count)
        new = weigh_samples(plain, estimate.sources)
        change = (new.weights / found.weights).log().abs().flatten(1).amax(1)
        settled = (change < _SAME) | (number == _ROUNDS - 1)
        for row in settled.nonzero()[:, 0].tolist():
            done[int(left[row])] = estimate[row]
        going = (~settled).nonzero()[:, 0]
        if len(going) == 0:
            break
        left, plain = left[going], plain[going]
        found = SampleWeights(new.weights[going], new.count[going])
    return join_estimates([done[scene] for scene in range(S)])


def check_no_calibration(spec: LocateSpec) -> None:
    """Check that the settings do not ask for a calibration of the panel, which takes no weights."""
    if spec.allowed_error:
        raise InputError("panel_error", f"must be 0 with impulsive noise; got {spec.allowed_error:g}")


@dataclass(frozen=True, eq=False)
class SampleWeights:
    """Weights of the samples of S scenes."""

    weights: Float[Tensor, "S ... L M"]  # above 0 and at most 1
    count: Int64[Tensor, "S"]  # how many samples are more probably an impulse than not


def weigh_samples(recording: Recording, sources: Sources) -> SampleWeights:
    """Weights of all samples, given the sources of each scene. Without powers the symbols have no prior."""
    shape = recording.snapshots.shape
    ones = torch.ones(shape, dtype=torch.float64, device=recording.snapshots.device)
    made = replace(recording, sample_weights=ones).stacked()
    positions, active = unpack(sources, made)
    y = made.snapshots.to(torch.complex128)
    azimuth, elevation, q = positions.unbind(-1)
    A = steering(made.panel, azimuth, elevation, 1 / q) * active[:, None]
    C = made.link.to(torch.complex128).matmul(A)
    power = torch.ones_like(azimuth) if sources.power is None else torch.where(active, sources.power, 1)
    # A prior 1000 times wider where only the size of the symbols is known.
    gamma, ratio = _impulses(y, C, power.double() * (1e3 if sources.power is None else 1.0))
    weights = 1 - gamma + gamma * ratio[:, None, None]
    return SampleWeights(weights.reshape(shape), (gamma > 0.5).flatten(1).sum(1))


def _impulses(
    y: Complex[Tensor, "S L M"], C: Complex[Tensor, "S _ M K"], power: Float[Tensor, "S K"]
) -> tuple[Float[Tensor, "S L M"], Float[Tensor, "S"]]:
    r"""Probability of an impulse in each sample, and :math:`\sigma^2 / \tau`."""
    size = y[0].numel()
    tiny = torch.finfo(torch.float64).tiny
    prior = torch.diag_embed(1 / power.clamp_min(tiny)).to(C.dtype)[:, None]
    energy = torch.view_as_real(y).square().sum(-1)
    mean = energy.mean((1, 2))
    floor = torch.where(mean > 0, _ROUNDING * mean, 1.0)
    noise = torch.maximum(energy.flatten(1).median(1).values, floor)
    impulse = (energy.flatten(1).amax(1)).clamp_min(_RATIO * noise)
    share = torch.full_like(noise, 0.1)
    gamma = torch.zeros_like(energy)
    weights = torch.ones_like(energy)
    for _ in range(_STEPS):
        weighted = weights[..., None] * C
        inner = weighted.mH @ C + noise[:, None, None, None] * prior
        inverse = torch.linalg.inv(inner)
        s = inverse @ (weighted.mH @ y[..., None])
        rest = y - (C @ s)[..., 0]
        spread = ((C @ inverse) * C.conj()).sum(-1).real * noise[:, None, None]
        energy = torch.view_as_real(rest).square().sum(-1) + spread
        a, b = noise[:, None, None], impulse[:, None, None]
        log_odds = (share / (1 - share))[:, None, None].log() + (a / b).log() + energy * (1 / a - 1 / b)
        old, gamma = gamma, log_odds.sigmoid()
        total = gamma.sum((1, 2))
        noise = torch.maximum(((1 - gamma) * energy).sum((1, 2)) / (size - total), floor)
        impulse = torch.maximum((gamma * energy).sum((1, 2)) / total.clamp_min(tiny), _RATIO * noise)
        share = (total / size).clamp(_LEAST, _MOST)
        weights = 1 - gamma + gamma * (noise / impulse)[:, None, None]
        if float((gamma - old).abs().amax()) < _SETTLED:
            break
    return gamma, noise / impulse
