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
from rismusic.estimation.grid import Volume
from rismusic.estimation.likelihood import sufficient_statistics
from rismusic.estimation.maximum_likelihood import unpack
from rismusic.estimation.model_error import ModelError, can_err, model_error, whitened_by
from rismusic.estimation.model_order import log_evidence
from rismusic.io import Recording
from rismusic.sources import Sources
from rismusic.spec import LocateSpec

# Scenes with a smaller p-value are weighed anew.
_SUSPICIOUS = 0.01
# So are scenes in which fewer sources are less probable by no more than this (nats).
_MARGIN = 5.0
# Pseudo-counts of scenes with and without a model error, and iterations for their share.
_PRIOR, _ROUNDS = (0.03, 1.0), 20
# Log prior (nats) of a signal without any source.
_NO_SOURCE = -12.0
# Weaker diffuse noise, common to a recording, is left out.
_LEAST_DIFFUSE = 0.3
# Two sources of a smaller probability of being independent are coherent.
_COHERENT = 1e-4
# From this panel error on, a scene is doubtful.
_LARGE_ERROR = 0.15
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
    if not can_err(recording) or spec.allowed_error or not spec.polish or len(recording) == 0:
        return estimate
    recording = recording.stacked()
    if isinstance(n_sources, str):
        estimate, error = _weighed(recording, estimate, make, spec)
        share = float((error.gain > 0).double().mean())
        if share > 0.5 and recording.channel is not None:
            # Most scenes err: the diffuse noise is that of the recording.
            pooled = error.diffuse[(error.gain > 0) & (estimate.n_sources > 0)]
            if len(pooled) > 1 and (common := float(pooled.mean())) > _LEAST_DIFFUSE:
                white = whitened_by(recording, torch.full_like(error.diffuse, common))
                estimate, _ = _weighed(white, make(spec)(white, n_sources), make, spec)
                estimate = _with_sentence(estimate, _diffuse_sentence(common))
    else:
        error = model_error(recording, estimate.sources)
        probable = _share(torch.zeros_like(error.gain), error.gain)[1] > 0.5
        scenes = probable.nonzero()[:, 0]
        if len(scenes):
            fresh = _located_again(recording[scenes], estimate.n_sources[scenes], error[scenes], make, spec)
            estimate = _put(estimate, scenes, fresh)
    return _with_doubts(recording, estimate, n_sources, spec)


@dataclass(frozen=True, eq=False)
class _Evidence:
    """Log evidence (nats) of 0, 1, ... sources in S scenes; minus infinity where a number was not tried.

    Args:
        none: without a model error.
        error: with the most probable model error.
        panel_error: epsilon of that error.
        diffuse: tau of that error.
    """

    none: Float[Tensor, "S counts"]
    error: Float[Tensor, "S counts"]
    panel_error: Float[Tensor, "S counts"]
    diffuse: Float[Tensor, "S counts"]

    @classmethod
    def empty(cls, scenes: int, most: int, device: torch.device) -> _Evidence:
        """Nothing tried yet."""
        nothing = torch.full((4, scenes, most + 1), -math.inf, dtype=torch.float64, device=device)
        return cls(*nothing)

    def put(
        self, scenes: Tensor, count: Tensor, recording: Recording, sources: Sources, volume: Volume
    ) -> None:
        """Compute the evidence of these sources, ``count`` in each of the scenes."""
        recording = recording.stacked()
        none = log_evidence(recording, fit_at(recording, sources), volume)
        beside = model_error(recording, sources)
        # A signal without any source is the least probable of all departures.
        gain = beside.gain + torch.where(count == 0, _NO_SOURCE, 0.0)
        self.none[scenes, count], self.error[scenes, count] = none, none + gain
        self.panel_error[scenes, count], self.diffuse[scenes, count] = beside.panel_error, beside.diffuse


def _share(
    none: Float[Tensor, "S"], error: Float[Tensor, "S"]
) -> tuple[float, Float[Tensor, "S"]]:
    """Share of the scenes of a recording with a model error, and the probability of one in each scene.

    All scenes have the same panel, as a rule. The share is their common prior (empirical Bayes).
    """
    share, probable = _PRIOR[0] / sum(_PRIOR), torch.zeros_like(none)
    for _ in range(_ROUNDS):
        probable = torch.sigmoid(error - none + math.log(share / (1 - share)))
        share = (float(probable.sum()) + _PRIOR[0]) / (len(none) + sum(_PRIOR))
    return share, probable


def _put(estimate: Estimate, scenes: Int64[Tensor, "B"], fresh: Estimate) -> Estimate:
    """The estimate with some scenes replaced."""
    keep = torch.ones(len(estimate), dtype=torch.bool, device=scenes.device)
    keep[scenes] = False
    kept = keep.nonzero()[:, 0]
    parts = [part for part in (estimate[kept], fresh) if len(part)]
    return join_estimates(parts)[torch.cat((kept, scenes)).argsort()]


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
    recording: Recording, estimate: Estimate, make: Callable[[LocateSpec], Estimator], spec: LocateSpec
) -> tuple[Estimate, ModelError]:
    """Weigh numbers of sources and model errors, and locate the scenes again that have an error.

    Returns:
        The estimate, and the model error, whose gain is positive where there probably is one.
    """
    quick = spec.replace(hybrid=spec.hybrid.replace(recheck_p_value=0.0))
    volume, count = Volume.from_spec(spec), estimate.n_sources
    S, most = len(recording), int(count.max())
    evidence = _Evidence.empty(S, most, count.device)
    numbers = torch.arange(most + 1, device=count.device)
    # First the strongest of the sources, which come in order of power, at the positions that they have.
    scenes, kept = (numbers <= count[:, None]).nonzero().unbind(-1)
    some = estimate.sources.each(lambda value: value[scenes])
    absent = torch.arange(some.azimuth.shape[1], device=count.device) >= kept[:, None]
    strongest = replace(some.each(lambda value: value.masked_fill(absent, math.nan)), symbols=None)
    evidence.put(scenes, kept, recording[scenes], strongest, volume)
    plain = evidence.none.gather(1, count[:, None])[:, 0]
    share, _ = _share(evidence.none.logsumexp(1), evidence.error.logsumexp(1))
    odds = math.log(share / (1 - share))
    rival = torch.maximum(evidence.none, evidence.error + odds)
    rival = torch.where(numbers == count[:, None], evidence.error + odds, rival)
    suspicious = (rival.amax(1) > plain - _MARGIN) | (estimate.p_value < _SUSPICIOUS)
    # Where fewer sources may do, they are fitted.
    estimator = make(quick)
    for k in range(most):
        again = (suspicious & (count > k)).nonzero()[:, 0]
        if len(again):
            fit = estimator(recording[again], torch.full_like(again, k))
            evidence.put(again, torch.full_like(again, k), recording[again], fit.sources, volume)
    share, probable = _share(evidence.none.logsumexp(1), evidence.error.logsumexp(1))
    odds = math.log(share / (1 - share))
    log_posterior = torch.logaddexp(evidence.none, evidence.error + odds)
    best, chosen = log_posterior.max(1)
    erring = (probable > 0.5).nonzero()[:, 0]
    result = estimate
    if len(erring):
        K = chosen[erring]
        picked = ModelError(
            best[erring], evidence.panel_error[erring, K], evidence.diffuse[erring, K]
        )
        fresh = _located_again(recording[erring], K, picked, make, quick)
        probability = log_posterior[erring].softmax(1)
        before = estimate.n_sources_probability
        if before is not None:
            probability = torch.nn.functional.pad(probability, (0, before.shape[1] - most - 1))
        result = _put(result, erring, replace(fresh, n_sources_probability=probability))
    doubted = (suspicious & ((estimate.p_value < _SUSPICIOUS) | (probable > 0.5))).nonzero()[:, 0]
    scenes = torch.arange(S, device=count.device)
    found = ModelError(
        probable - 0.5, evidence.panel_error[scenes, chosen], evidence.diffuse[scenes, chosen]
    )
    if len(doubted) == 0:
        return result, found
    wide = _with_wide_search(recording[doubted], result[doubted], best[doubted], spec)
    return _put(result, doubted, wide), found


def _evidence(recording: Recording, sources: Sources, volume: Volume) -> Float[Tensor, "S"]:
    recording = recording.stacked()
    return log_evidence(recording, fit_at(recording, sources), volume)


def _located_again(
    recording: Recording,
    count: Int64[Tensor, "S"],
    error: ModelError,
    make: Callable[[LocateSpec], Estimator],
    spec: LocateSpec,
) -> Estimate:
    """Locate a known number of sources with the panel error and the diffuse noise of each scene."""
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
                part = whitened_by(part, error.diffuse[some])
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
            sentences[scene].append(_diffuse_sentence(float(error.diffuse[scene])))
    return replace(result, warnings=sentences)


def _diffuse_sentence(diffuse: float) -> str:
    return f"noise that enters through the panel is about {diffuse:.2g} times as strong as that of the receiver"


def _with_sentence(estimate: Estimate, sentence: str) -> Estimate:
    return replace(estimate, warnings=[[*one, sentence] for one in estimate.warnings])


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
    gain = _evidence(recording, other.sources, Volume.from_spec(wide)) + _OUTSIDE - evidence
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


def _with_doubts(
    recording: Recording, estimate: Estimate, n_sources: NSources, spec: LocateSpec
) -> Estimate:
    """Add what the final estimate leaves doubtful: coherent sources, and the largest number of sources."""
    p = coherence_p_value(recording, estimate)
    sentences = [list(one) for one in estimate.warnings]
    for scene, first, second in (p < _COHERENT).nonzero().tolist():
        if first < second:
            sentences[scene].append(
                f"sources {first} and {second} send the same signal: source {second} may be a reflection of "
                f"source {first}"
            )
    if isinstance(n_sources, str):
        for scene in (estimate.n_sources >= spec.sources_max).nonzero()[:, 0].tolist():
            sentences[scene].append(f"{spec.sources_max} is the largest number tried; there may be more")
    return replace(estimate, warnings=sentences)
