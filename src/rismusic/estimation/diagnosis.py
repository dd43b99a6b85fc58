r"""Doubt: is a scene explained by its signal model, and if not, by which departure from it?

Estimators assume the model that a recording describes. This module tests each scene afterwards and, where a
test fails, weighs the numbers of sources anew with departures from the model as alternatives:

1. Tests of the scene as located: the p-value of the residual, a model error beside the sources
   (:mod:`rismusic.estimation.model_error`), sources whose symbols are coherent, and the largest number of
   sources allowed. Scenes that pass them all stay as they are.
2. For the others, fits with 0, 1, ... sources are made. Their evidence includes that of the most probable
   model error, so that a surplus source has to explain the data better than a panel that errs.
3. The half-space in front of the panel is searched at any range. A source outside the search volume is
   reported as such.
4. The scene is located again under the most probable explanation, and gets a status with reasons.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.estimation.classical import ClassicalEstimator
from rismusic.estimation.estimate import Estimate, Estimator, NSources, fit_at, join_estimates
from rismusic.estimation.goodness_of_fit import SIGNIFICANCE
from rismusic.estimation.grid import Volume
from rismusic.estimation.likelihood import sufficient_statistics
from rismusic.estimation.maximum_likelihood import unpack
from rismusic.estimation.model_error import ModelError, can_err, model_error, with_diffuse_noise
from rismusic.estimation.model_order import log_evidence
from rismusic.estimation.noise import most_sources
from rismusic.io import Recording
from rismusic.spec import LocateSpec

# Scenes with a smaller p-value, or two sources of smaller probability of being independent, are looked at.
_SUSPICIOUS, _COHERENT = 0.01, 1e-4
# Levels of the panel error with which scenes are located again.
_LEVELS = (0.03, 0.06, 0.12, 0.25, 0.5)
# Log prior (nats) of sources outside the search volume.
_OUTSIDE = -5.0
# Angles and oversampling of the search in front of the panel.
_WIDE_DEG, _COARSE = 85.0, 1.6


def diagnosed(
    recording: Recording,
    estimate: Estimate,
    n_sources: NSources,
    make: Callable[[LocateSpec], Estimator],
    spec: LocateSpec,
) -> Estimate:
    """Test the estimate of each scene, and locate the scenes again that depart from the signal model.

    Args:
        recording: S scenes.
        estimate: as located.
        n_sources: the number of sources, or ``auto``.
        make: makes the estimator from settings.
        spec: the settings.
    """
    if not can_err(recording) or spec.allowed_error or not spec.polish:
        return estimate
    error = model_error(recording, estimate.sources)
    coherent = coherence_p_value(recording, estimate)
    most = min(spec.sources_max, most_sources(*recording.snapshots.shape[1:]))
    count = estimate.n_sources
    suspicious = (error.gain > 0) | (estimate.p_value < _SUSPICIOUS)
    suspicious |= coherent.flatten(1).amin(-1) < _COHERENT if coherent.shape[1] else False
    suspicious |= count >= most
    scenes = suspicious.nonzero()[:, 0]
    if len(scenes) == 0:
        return estimate
    known = not isinstance(n_sources, str)
    part = recording[scenes]
    fresh = (_located_again if known else _weighed)(part, estimate[scenes], error[scenes], make, spec)
    rest = (~suspicious).nonzero()[:, 0]
    if len(rest) == 0:
        return fresh
    return join_estimates([estimate[rest], fresh])[torch.cat((rest, scenes)).argsort()]


def coherence_p_value(recording: Recording, estimate: Estimate) -> Float[Tensor, "S K K"]:
    r"""Probability of a correlation of two sources' symbols at least as large as this one, if independent.

    With :math:`v_l = C_l^H R_l^{-1} y_l`, whose covariance is :math:`V_l = C_l^H R_l^{-1} C_l`,

    .. math:: x_{ij} = \frac{|\sum_l (v_{il} v_{jl}^* - [V_l]_{ij})|^2}{\sum_l |v_{il}|^2 \sum_l |v_{jl}|^2},
        \qquad p_{ij} = (1 - x_{ij})^{L - 1}.

    Args:
        recording: S scenes.
        estimate: of these scenes.

    Returns:
        p_ij; 1 on the diagonal and without a source.
    """
    recording = recording.stacked()
    positions, active = unpack(estimate.sources, recording)
    S, K = active.shape
    if K == 0:
        return positions.new_ones(S, 0, 0)
    at = sufficient_statistics(recording, positions, active)
    assert estimate.sources.power is not None
    power = torch.where(active, estimate.sources.power.double(), 0).clamp_min(1e-300)
    noise = estimate.noise_variance.double()
    inner = at.gram + torch.diag_embed((noise[:, None] / power).to(at.gram.dtype))[:, None]
    solved = torch.linalg.solve(inner, torch.cat((at.gram.expand(-1, at.cross.shape[1], -1, -1), at.cross[..., None]), dim=-1))
    V = (at.gram - at.gram @ solved[..., :K]) / noise[:, None, None, None]
    v = (at.cross - (at.gram @ solved[..., K:])[..., 0]) / noise[:, None, None]
    excess = (v[..., :, None] * v[..., None, :].conj() - V).sum(1)
    energy = v.abs().square().sum(1)
    x = excess.abs().square() / (energy[:, :, None] * energy[:, None, :]).clamp_min(1e-300)
    p = (1 - x.clamp(0, 1)).pow(at.cross.shape[1] - 1)
    pair = active[:, :, None] & active[:, None, :] & ~torch.eye(K, dtype=torch.bool, device=active.device)
    return torch.where(pair, p, 1.0)


def _weighed(
    recording: Recording,
    estimate: Estimate,
    error: ModelError,
    make: Callable[[LocateSpec], Estimator],
    spec: LocateSpec,
) -> Estimate:
    """Weigh the numbers of sources anew, and locate the scenes under the most probable explanation."""
    quick = spec.replace(hybrid=spec.hybrid.replace(recheck_p_value=0.0))
    volume, count = Volume.from_spec(spec), estimate.n_sources
    S, most = len(recording), int(count.max())
    log_posterior = torch.full((S, most + 1), -math.inf, dtype=torch.float64, device=count.device)
    errors = log_posterior.new_zeros(S, most + 1), log_posterior.new_zeros(S, most + 1)
    estimator = make(quick)
    for k in range(most + 1):
        some = (count >= k).nonzero()[:, 0]
        part = recording[some]
        fit = estimator(part, torch.full_like(some, k))
        beside = model_error(part, fit.sources)
        log_posterior[some, k] = _evidence(part, fit, volume) + beside.gain
        errors[0][some, k], errors[1][some, k] = beside.panel_error, beside.diffuse
    best, chosen = log_posterior.max(1)
    scenes = torch.arange(S, device=count.device)
    picked = ModelError(best, errors[0][scenes, chosen], errors[1][scenes, chosen])
    result = _located_again(recording, None, picked, make, quick, chosen)
    probability = log_posterior.softmax(1)
    width = estimate.n_sources_probability.shape[1] if estimate.n_sources_probability is not None else most + 1
    probability = torch.nn.functional.pad(probability, (0, max(0, width - most - 1)))
    result = replace(result, n_sources_probability=probability)
    return _with_wide_search(recording, result, best, spec)


def _evidence(recording: Recording, estimate: Estimate, volume: Volume) -> Float[Tensor, "S"]:
    return log_evidence(recording.stacked(), fit_at(recording.stacked(), estimate.sources), volume)


def _located_again(
    recording: Recording,
    estimate: Estimate | None,
    error: ModelError,
    make: Callable[[LocateSpec], Estimator],
    spec: LocateSpec,
    count: Int64[Tensor, "S"] | None = None,
) -> Estimate:
    """Locate a known number of sources with the panel error and the diffuse noise of each scene."""
    if count is None:
        assert estimate is not None
        count = estimate.n_sources
    levels = error.panel_error.new_tensor(_LEVELS)
    level = (error.panel_error[:, None].clamp_min(1e-9).log() - levels.log()).abs().argmin(1)
    level = torch.where((error.panel_error > 0) & (count > 0), level, -1)
    parts, order = [], []
    for number in level.unique().tolist():
        for coloured in (False, True):
            some = ((level == number) & ((error.diffuse > 0) == coloured)).nonzero()[:, 0]
            if len(some) == 0:
                continue
            part = recording[some]
            if coloured:
                part = with_diffuse_noise(part, error.diffuse[some])
            allowed = 0.0 if number < 0 else _LEVELS[number]
            located = make(spec.replace(panel_error=allowed))(part, count[some])
            parts.append(replace(located, spec=spec))
            order.append(some)
    result = join_estimates(parts)[torch.cat(order).argsort()]
    sentences = [list(one) for one in result.warnings]
    for scene in range(len(result)):
        if float(error.panel_error[scene]) > 0:
            sentences[scene].append(
                f"the panel departs from its description by about {100 * float(error.panel_error[scene]):.2g} %"
            )
        if float(error.diffuse[scene]) > 0:
            sentences[scene].append(
                "noise that enters through the panel is about "
                f"{float(error.diffuse[scene]):.2g} times as strong as that of the receiver"
            )
    return replace(result, warnings=sentences)


def _with_wide_search(
    recording: Recording, estimate: Estimate, evidence: Float[Tensor, "S"], spec: LocateSpec
) -> Estimate:
    """Take sources outside the search volume where they explain the data better."""
    wide = spec.replace(
        method="omp",
        azimuth_max_deg=max(_WIDE_DEG, spec.azimuth_max_deg),
        elevation_max_deg=max(_WIDE_DEG, spec.elevation_max_deg),
        range_min_m=min(spec.range_min_m, recording.wavelength / 2),
        range_max_m=math.inf,
        oversampling=_COARSE,
    )
    other = ClassicalEstimator(wide)(recording, "auto")
    gain = _evidence(recording, other, Volume.from_spec(wide)) + _OUTSIDE - evidence
    take = (gain > 0).nonzero()[:, 0]
    if len(take) == 0:
        return estimate
    keep = (gain <= 0).nonzero()[:, 0]
    taken = replace(other[take], spec=spec)
    sentences = [[*one, "sources outside the search volume"] for one in taken.warnings]
    taken = replace(taken, warnings=sentences)
    if len(keep) == 0:
        return taken
    return join_estimates([estimate[keep], taken])[torch.cat((keep, take)).argsort()]
