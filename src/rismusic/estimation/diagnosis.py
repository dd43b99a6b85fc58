r"""Tests of each scene against its signal model, and status, reasons and notes that follow from them.

Estimators assume the model that a recording describes. This module tests each scene afterwards. Where a test
fails, it compares the numbers of sources again, with departures from the model as alternatives:

1. Tests of the scene as located: the p-value of the residual, a model error beside the sources
   (:mod:`rismusic.estimation.model_error`), sources whose symbols are coherent, and the largest number of
   sources allowed. Scenes that pass them all stay as they are.
2. For the others, fits with 0, 1, ... sources are made. Their evidence includes that of the most probable
   model error, so that an additional source has to explain the data better than hardware impairments.
3. The half-space in front of the panel, or all directions if it is not planar, is searched at any range. A
   source outside the search volume is reported as such.
4. The scene is located again under the most probable explanation, and gets a status with reasons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int64
from scipy.special import expit
from torch import Tensor

from rismusic.array import WAVES, direction, steering
from rismusic.crb import POSITION
from rismusic.estimation.classical import ClassicalEstimator
from rismusic.estimation.estimate import (
    Estimate,
    Estimator,
    Finding,
    Note,
    NSources,
    Reason,
    fit_at,
    from_fit,
    join_scenes,
    noted,
)
from rismusic.estimation.goodness_of_fit import SIGNIFICANCE
from rismusic.estimation.grid import Volume, from_cosines, searched_grid
from rismusic.estimation.likelihood import (
    SufficientStatistics,
    sufficient_statistics,
    symbol_variances,
    symbols,
)
from rismusic.estimation.maximum_likelihood import (
    ROUGH,
    Fit,
    nfmle,
    pack,
    refine,
    unpack,
    values_without_each,
)
from rismusic.estimation.model_error import (
    MAX_ELEMENTS,
    ModelError,
    can_err,
    diffuse_evidence,
    fields_on_panel,
    model_error,
    motion,
    spread_gain,
    whitened_by,
    with_dense_operator,
)
from rismusic.estimation.model_order import EVIDENCE_WEIGHT, log_evidence
from rismusic.estimation.noise import most_sources
from rismusic.estimation.receiver import (
    MOST_DISTORTION,
    Distortion,
    clipped_share,
    distortions,
    without_image,
)
from rismusic.estimation.relax import MIN_GAIN_NATS, beside
from rismusic.estimation.search import CandidateSearch, Dictionary, GridSearch, project_out
from rismusic.estimation.signal_model import free_symbols_p_value, frequency_offset
from rismusic.io import Recording
from rismusic.sources import Sources
from rismusic.spec import LocateSpec
from rismusic.text import all_of, counted

UNCERTAIN = 0.9
"""A note names sources with a smaller existence probability."""

_MAYBE_MORE = 0.3  # a note names scenes with more sources than reported with at least this probability
_SUSPICIOUS = 0.01  # scenes with a smaller p-value are compared again with departures from the model
_MISFIT = 0.05  # with a known number of sources, those with a smaller one are tested for hardware impairments
_MARGIN = 5.0  # so are scenes where fewer sources are less probable by no more than this (nats)
# A number of sources that is less probable than another one by more than this (nats) takes no part.
_NEGLIGIBLE_NATS = 40.0
# Pseudo-counts of scenes with and without a model error, and iterations for their share.
_PRIOR, _ROUNDS = (0.03, 1.0), 20
_NO_SOURCE = -12.0  # log prior (nats) of a signal without any source
# A source with a greater log-likelihood ratio (nats) is where it is. Angle from which on elsewhere is.
_CERTAIN_NATS, _ELSEWHERE_DEG = 20.0, 5.0
_BLOCK_SEARCHES = 64  # searches for other positions that are made at a time
_LEAST_DIFFUSE = 0.3  # weaker diffuse noise, common to a recording, is left out
_ROUNDING = 1e-12  # smaller parts of a matrix, relative to its largest element, are rounding errors
_COHERENT = 1e-4  # two sources of a smaller probability of being independent are coherent
_LONE = 1e-6  # a source whose strongest symbol has a smaller probability sends in one snapshot only
# Log-likelihood ratio (nats) from which on a source is no point, it moves, and another wave (range) is named.
_SPREAD_NATS, _MOTION_NATS, _WAVE_NATS = 4.5, 8.0, 10.0
_WAVE_SCENES = 16  # scenes that are compared at a time with other forms of the wave
# From this one on, a note says that a source may be no point, which one in 200 points has too.
_SPREAD_NOTE_NATS = 3.0
_MOTION = -8.0  # log prior (nats) of a motion in place of a source, with the prior volume of its two unknowns
# Elements at most this far apart (wavelengths) have no grating lobes. Correlation of steering vectors from
# which on a direction counts as one, and how much less likely (nats) it may be.
_NO_GRATING, _LIKENESS, _AMBIGUOUS_NATS = 0.55, 0.7, 6.0
# Modes of the channel with at least this share of the strongest one's power count, however strong the noise.
_STRONG_MODE = 0.1
# Angle (wavelengths over the diagonal of the panel) below which two sources are not resolved.
_RESOLUTION = 0.8
# Correlation of steering vectors at that angle, above which the ranges of two sources do not resolve them.
_UNRESOLVED = 0.5
_LARGE_ERROR = 0.15  # from this panel error on, a scene is doubtful
_LEVELS = (0.03, 0.06, 0.12, 0.25, 0.5)  # levels of the panel error with which scenes are located again
# Log-likelihood (nats) gained by leaving the search volume from which on a scene is searched outside it, and
# doubtful if it stays as it is: three error bars. A scene that speaks against another wave by less is
# doubtful with the others of its recording.
_BEYOND_NATS = 4.5
_OUTSIDE = -5.0  # log prior (nats) of sources outside the search volume
_NEARLY_NATS = 5.0  # evidence (nats) that a rough fit may lack against the fit after a complete search
_NEARLY_ALL = 0.9  # share of the scenes of a recording from which on the others have what these show
# Log-likelihood ratio (nats) of an error of the receiver in all scenes from which on it is there, and
# repetitions of its removal.
_RECEIVER_NATS, _IMAGE_ROUNDS = 12.0, 3
_WIDE_DEG, _COARSE = 85.0, 1.6  # angles and oversampling of the search in front of the panel


Refit = Callable[[Int64[Tensor, "B"], Int64[Tensor, "B"]], Sources]
"""Fits of some of the scenes with given numbers of sources."""


@torch.inference_mode()
def diagnosed(
    recording: Recording,
    estimate: Estimate,
    n_sources: NSources,
    make: Callable[[LocateSpec], Estimator],
    spec: LocateSpec,
    refit: Refit | None = None,
) -> Estimate:
    """Test the estimate of each scene, and locate the scenes again that depart from the signal model."""
    if estimate.spec.allowed_error or not spec.polish or len(recording) == 0:
        return estimate
    as_recorded, recording, estimate = recording, recording.stacked(), estimate.detached()
    count_unknown = isinstance(n_sources, str)
    clipped = clipped_share(recording.snapshots)
    found = list(_clipped(clipped))
    compressed = torch.zeros(len(recording), dtype=torch.bool, device=estimate.p_value.device)
    if recording.frequencies is None:
        estimate, beta, compressed = _with_receiver(recording, estimate, n_sources, make, spec)
        if bool((beta != 0).any()):
            as_recorded, refit = without_image(as_recorded, beta), None
            recording = as_recorded.stacked()
            found += _image(beta)
        compressed &= clipped == 0
    if can_err(recording):
        if spec.panel_error == "auto" and count_unknown:
            estimate = _weighed_twice(recording, estimate, make, spec, refit)
        elif spec.panel_error == "auto":
            estimate = _with_suspected_error(recording, estimate, spec)
    elif count_unknown:
        outside = _gain_outside(recording, estimate, spec) > _BEYOND_NATS
        some = (outside | (estimate.p_value < _SUSPICIOUS)).nonzero()[:, 0]
        if len(some):
            part, located = recording[some], estimate[some]
            evidence = _evidence(part, located.sources, Volume.from_spec(spec))
            fresh, _ = _with_wide_search(part, located, evidence, outside[some], spec)
            estimate = _put(estimate, some, fresh)
    if recording.pilots is None and len(spec.unknowns) == len(POSITION):
        estimate = _with_pairs(recording, estimate, spec)
    found += _compressed(compressed, estimate)
    estimate = noted(_with_reasons(recording, estimate, n_sources, spec), found)
    return _with_free_symbols(as_recorded, estimate, spec) if as_recorded.has_coherent_symbols else estimate


def _with_receiver(
    recording: Recording,
    estimate: Estimate,
    n_sources: NSources,
    make: Callable[[LocateSpec], Estimator],
    spec: LocateSpec,
) -> tuple[Estimate, Complex[Tensor, "S"], Bool[Tensor, "S"]]:
    """Find an I/Q imbalance of the receiver and locate the scenes again without it; find compression.

    Returns:
        The estimates, the coefficient of the image in each scene, and the scenes that are compressed.
    """
    beta = torch.zeros(len(recording), dtype=torch.complex128, device=estimate.p_value.device)
    image, compression = distortions(recording, estimate.sources)
    for _ in range(_IMAGE_ROUNDS):
        change, shown = _common(image, estimate)
        if not bool(shown.any()) or abs(complex(beta.mean()) + change) > MOST_DISTORTION:
            break
        beta = torch.where(shown, beta + change, beta)
        balanced = without_image(recording, beta)
        estimate = make(spec)(balanced, n_sources)
        image, compression = distortions(balanced, estimate.sources)
    gamma, shown = _common(compression, estimate)
    shown &= _compresses(torch.tensor(gamma))
    return estimate, beta, shown | (compression.shown & _compresses(compression.z))


def _image(beta: Complex[Tensor, "S"]) -> Iterator[Finding]:
    """A note on the image that was removed from each scene."""
    for scene in (beta != 0).nonzero()[:, 0].tolist():
        value = complex(beta[scene])
        text = (
            f"an I/Q imbalance of the receiver, y = x + ({value:.2g}) x*, was removed: its image is "
            f"{-20 * math.log10(abs(value)):.0f} dB below the signal"
        )
        yield scene, Note(text, "iq_imbalance")


def _compressed(compressed: Bool[Tensor, "S"], estimate: Estimate) -> Iterator[Finding]:
    """Scenes that are compressed, unless the panel errs, whose residual depends on the samples, too."""
    sound = _without_panel_error(estimate)
    if bool(sound.double().mean() > 0.5):
        text = "strong samples are smaller than the sources explain: the receiver is not linear at this level"
        for scene in (compressed & sound).nonzero()[:, 0].tolist():
            yield scene, Reason(text, "receiver_compresses")


def _compresses(gamma: Complex[Tensor, "*S"]) -> Bool[Tensor, "*S"]:
    """Whether the coefficients take off from the signal, and hardly turn its phase."""
    return gamma.real < -gamma.imag.abs()


def _common(distortion: Distortion, estimate: Estimate) -> tuple[complex, Bool[Tensor, "S"]]:
    """The coefficient that all scenes have in common, and the scenes that do not speak against it.

    None if it is not significant, or if it does not fit most scenes with sources better.
    """
    coefficient, nats = distortion.common()
    gain, there = distortion.gain(coefficient), estimate.n_sources > 0
    if nats < _RECEIVER_NATS or 2 * int((gain > 0).sum()) <= int(there.sum()):
        return 0j, torch.zeros_like(there)
    return coefficient, there & (gain > -_BEYOND_NATS)


def _without_panel_error(estimate: Estimate) -> Bool[Tensor, "S"]:
    """Scenes whose likelihood and residual are those of the panel as described."""
    if estimate.panel_error is None:
        return torch.ones_like(estimate.p_value, dtype=torch.bool)
    return estimate.panel_error == 0


def _with_free_symbols(recording: Recording, estimate: Estimate, spec: LocateSpec) -> Estimate:
    """Add scenes that symbols free in every snapshot explain better than the recorded model of them."""
    if recording.panel.size > MAX_ELEMENTS or recording.frequencies is not None:
        return estimate
    unexplained = free_symbols_p_value(recording, estimate.sources, spec) < SIGNIFICANCE
    unexplained &= _without_panel_error(estimate)  # free symbols absorb some of it
    offset = torch.zeros_like(estimate.p_value)
    text = f"free symbols explain the data better than {recording.symbols} ones: try --symbols independent"
    if recording.pilots is not None:
        text += ", or check order, conjugation and frequency offset of the pilots"
    elif recording.snapshots.shape[-2] > 1:
        offset = frequency_offset(recording, estimate.sources, spec)
    found = []
    for scene in (unexplained | (offset != 0)).nonzero()[:, 0].tolist():
        omega = float(offset[scene])
        turn = (
            f"the symbols turn by about {math.degrees(omega):.2g} deg from snapshot to snapshot, as with a "
            f"carrier-frequency offset: multiply snapshot l by exp({-omega:.3g}j * l)"
        )
        found.append((scene, Reason(turn if omega else text, "symbols_free")))
    return noted(estimate, found)


def _with_pairs(recording: Recording, estimate: Estimate, spec: LocateSpec) -> Estimate:
    """Weigh the weakest source against two sources within a beam in place of another one.

    What one source leaves of an unresolved pair may be explained by a weak source anywhere. Without that one,
    another source is no point. The pair takes its place where its evidence is higher, and is named where the
    probability of a source that is no point is above 1 - :data:`UNCERTAIN`.
    """
    sound = torch.tensor([status == "ok" for status in estimate.status], device=estimate.p_value.device)
    some = (sound & _without_panel_error(estimate) & (estimate.n_sources > 1)).nonzero()[:, 0]
    if len(some) == 0:
        return estimate
    part, here, grid = recording[some], estimate[some], searched_grid(recording, spec)
    fewer = fit_at(part, _strongest(here, here.n_sources - 1), grid.volume)
    weak = (fewer.neg_log_likelihood - here.neg_log_likelihood < _NEGLIGIBLE_NATS).nonzero()[:, 0]
    if len(weak) == 0:
        return estimate
    some, part, here = some[weak], part[weak], here[weak]
    fit = partial(nfmle, volume=grid.volume, criterion=spec.criterion)
    fewer = fit(part, _strongest(here, here.n_sources - 1))
    no_point = spread_gain(part, fewer.sources)[0].amax(1)
    likely = (no_point > _SPREAD_NATS).nonzero()[:, 0]
    if len(likely) == 0:
        return estimate
    some, part, here = some[likely], part[likely], here[likely]
    fewer, no_point = fewer[likely], no_point[likely]
    others, kept = unpack(fewer.sources, part)
    active = here.sources.active
    places = beside(torch.where(kept[..., None], others, others[:, :1]), grid)
    rows = torch.arange(len(some), device=some.device)
    near = CandidateSearch(grid, part, places).place_beside(rows, others, kept, None)
    pair = fit(part, pack(torch.where((active & ~kept)[..., None], near[:, None], others), active))
    evidence = _evidence(part, here.sources, grid.volume)
    better = log_evidence(part, pair, grid.volume) - evidence > MIN_GAIN_NATS
    gain = log_evidence(part, fewer, grid.volume) + no_point - evidence
    least = -math.log(UNCERTAIN / (1 - UNCERTAIN)) / EVIDENCE_WEIGHT
    found = []
    for row in (~better & (gain > least)).nonzero()[:, 0].tolist():
        text = (
            f"source {int(here.n_sources[row]) - 1} may not be there: two sources within a beam in place "
            f"of another one explain the data too (log evidence {float(gain[row]):+.1f} nats)"
        )
        found.append((int(some[row]), Reason(text)))
    which = better.nonzero()[:, 0]
    return _with_fit(recording, noted(estimate, found), some[which], pair[which], spec)


def _weighed_twice(
    recording: Recording,
    estimate: Estimate,
    make: Callable[[LocateSpec], Estimator],
    spec: LocateSpec,
    refit: Refit | None,
) -> Estimate:
    """Weigh model errors, and once more in diffuse noise if most scenes of the recording have it."""
    estimate, error = _weighed(recording, estimate, make, spec, refit)
    share = float((error.gain > 0).double().mean())
    pooled = error.diffuse[(error.gain > 0) & (estimate.n_sources > 0)]
    if share <= 0.5 or recording.channel is None or len(pooled) < 2:
        return estimate
    common = float(pooled.mean())
    if common <= _LEAST_DIFFUSE:
        return estimate
    white = whitened_by(recording, torch.full_like(error.diffuse, common))
    again, _ = _weighed(white, make(spec)(white, "auto"), make, spec)
    # Scenes whose own snapshots speak against it stay as they are.
    positions, active = unpack(again.sources, recording)
    fields = fields_on_panel(recording, positions, active)
    evidence = diffuse_evidence(recording, fields, active, (common,))[:, 0]
    share = (share * len(recording) + _PRIOR[0]) / (len(recording) + sum(_PRIOR))
    some = _all_but_many(evidence > math.log(1 / share - 1)).nonzero()[:, 0]
    again = again[some]
    found = [(row, _diffuse_sentence(common, K)) for row, K in enumerate(again.n_sources.tolist())]
    return _put(estimate, some, noted(again, found))


def _all_but_many(shown: Bool[Tensor, "S"]) -> Bool[Tensor, "S"]:
    """All scenes where nearly all show what a recording has in common.

    In the others, sources may have absorbed it.
    """
    return shown | (shown.double().mean() >= _NEARLY_ALL)


def _with_suspected_error(recording: Recording, estimate: Estimate, spec: LocateSpec) -> Estimate:
    """Say where a known number of sources leaves a residual as an erring panel would.

    Sources that would fit better outside the search volume leave one too; see :func:`_beyond`.
    """
    # Additional sources cannot hide the misfit, so that the p-value shows it.
    gain = torch.full_like(estimate.neg_log_likelihood, -math.inf)
    size = torch.zeros_like(gain)
    misfit = (~(estimate.p_value >= _MISFIT)).nonzero()[:, 0]
    if len(misfit):
        misfit = misfit[_gain_outside(recording[misfit], estimate[misfit], spec) <= _BEYOND_NATS]
    if len(misfit):
        error = model_error(recording[misfit], estimate.sources[misfit])
        gain[misfit], size[misfit] = error.gain, error.panel_error
    size = torch.where(_common_prior(torch.zeros_like(gain), gain)[1] > 0.5, size, 0.0)
    text = (
        "there are more sources, or the panel departs from its description by about {:.2g} %: "
        "try --panel-error {:.1g}"
    )
    found = [
        (scene, Reason(text.format(100 * float(size[scene]), float(size[scene]))))
        for scene in size.nonzero()[:, 0].tolist()
    ]
    return noted(estimate, found, panel_error=size)


@dataclass(frozen=True, eq=False)
class _Evidence:
    """Log evidence (nats) of 0, 1, ... sources in S scenes; minus infinity where a number was not tried."""

    none: Float[Tensor, "S counts"]  # without a model error
    error: Float[Tensor, "S counts"]  # with the most probable model error
    panel_error: Float[Tensor, "S counts"]  # epsilon of that error
    diffuse: Float[Tensor, "S counts"]  # tau of that error

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
        none = _evidence(recording, sources, volume)
        self.none[scenes, count] = none
        # A number of sources that is this improbable takes no part.
        least = self.none.amax(1)[scenes] - none - _NEGLIGIBLE_NATS
        beside = model_error(recording, sources, least)
        # A signal without any source is the least probable of all departures.
        gain = beside.gain + torch.where(count == 0, _NO_SOURCE, 0.0)
        in_motion = torch.full_like(gain, -math.inf)
        if recording.frequencies is None:
            # A source that moves leaves a residual that a second one explains, but less well.
            path = motion(recording, sources, least - _MOTION)
            in_motion = torch.where(path.gain > _MOTION_NATS, path.gain_in_all, 0).amax(1) + _MOTION
        moves = in_motion > gain
        self.error[scenes, count] = none + torch.maximum(gain, in_motion)
        self.panel_error[scenes, count] = torch.where(moves, 0, beside.panel_error)
        self.diffuse[scenes, count] = torch.where(moves, 0, beside.diffuse)


def _common_prior(none: Float[Tensor, "S"], error: Float[Tensor, "S"]) -> tuple[float, Float[Tensor, "S"]]:
    """Share of the scenes of a recording with a model error, and the probability of one in each scene.

    All scenes have the same panel, as a rule. The share is their common prior (empirical Bayes).
    """
    share, gain = _PRIOR[0] / sum(_PRIOR), (error - none).cpu().numpy()
    probable = np.zeros_like(gain)
    for _ in range(_ROUNDS):
        probable = expit(gain + math.log(share / (1 - share)))
        share = (float(probable.sum()) + _PRIOR[0]) / (len(gain) + sum(_PRIOR))
    return share, torch.from_numpy(probable).to(none.device)


def _put(estimate: Estimate, scenes: Int64[Tensor, "B"], fresh: Estimate) -> Estimate:
    """The estimate with some scenes replaced."""
    keep = torch.ones(len(estimate), dtype=torch.bool, device=scenes.device)
    keep[scenes] = False
    kept = keep.nonzero()[:, 0]
    return join_scenes([estimate[kept], fresh], [kept, scenes])


def _coherence_p_value(
    at: SufficientStatistics, estimate: Estimate, subcarriers: int = 1
) -> Float[Tensor, "S K K"]:
    r"""Probability of a correlation of two sources' symbols at least as large as this one, if independent.

    With :math:`v_l = C_l^H R_l^{-1} y_l`, whose covariance is :math:`V_l = C_l^H R_l^{-1} C_l`,

    .. math:: x_{ij} = \frac{|\sum_l (v_{il} v_{jl}^* - [V_l]_{ij})|^2}{\sum_l |v_{il}|^2 \sum_l |v_{jl}|^2},
        \qquad p_{ij} = (1 - x_{ij})^{L - 1}.

    The delay of a path turns its symbols from subcarrier to subcarrier, so that those of each one are
    compared, and their p-values combined (Fisher).

    Returns:
        p_ij; 1 on the diagonal and without a source.
    """
    active, K = at.active, at.active.shape[1]
    assert estimate.sources.power is not None
    power = torch.where(active, estimate.sources.power.double(), 0).clamp_min(1e-300)
    noise = estimate.noise_variance.double()
    # Sources in one place leave a matrix that is singular to rounding where there is no noise.
    least = _ROUNDING * at.gram.diagonal(dim1=-2, dim2=-1).real.amax((1, 2))
    ratio = torch.maximum(noise[:, None] / power, least[:, None])
    inner = at.gram + torch.diag_embed(ratio.to(at.gram.dtype))[:, None]
    solved = torch.linalg.solve(
        inner, torch.cat((at.gram.expand(-1, at.cross.shape[1], -1, -1), at.cross[..., None]), dim=-1)
    )
    V = (at.gram - at.gram @ solved[..., :K]) / noise[:, None, None, None]
    v = (at.cross - (at.gram @ solved[..., K:])[..., 0]) / noise[:, None, None]
    product, V = (
        one.unflatten(1, (subcarriers, -1)).sum(2) for one in (v[..., :, None] * v[..., None, :].conj(), V)
    )
    energy = v.abs().square().unflatten(1, (subcarriers, -1)).sum(2)
    # Of few snapshots the difference may exceed the energies, which no product of their symbols does.
    excess = torch.minimum((product - V).abs(), product.abs()).square()
    x = excess / (energy[..., :, None] * energy[..., None, :]).clamp_min(1e-300)
    L = at.cross.shape[1] // subcarriers
    nats = -(L - 1) * (1 - x.clamp(0, 1 - 1e-15)).log().sum(1)
    p = torch.special.gammaincc(torch.full_like(nats, subcarriers), nats)
    pair = active[:, :, None] & active[:, None, :] & ~torch.eye(K, dtype=torch.bool, device=active.device)
    return torch.where(pair, p, 1.0)


def _weighed(
    recording: Recording,
    estimate: Estimate,
    make: Callable[[LocateSpec], Estimator],
    spec: LocateSpec,
    refit: Refit | None = None,
) -> tuple[Estimate, ModelError]:
    """Weigh numbers of sources and model errors, and locate the scenes again that have an error.

    The gain of the model error is positive where there probably is one.
    """
    quick = spec.replace(hybrid=spec.hybrid.replace(recheck_p_value=0.0))
    volume, count = Volume.from_spec(spec), estimate.n_sources
    S, most = len(recording), int(count.max())
    evidence = _Evidence.empty(S, most, count.device)
    numbers = torch.arange(most + 1, device=count.device)
    # First the strongest of the sources, which come in order of power, at the positions that they have. If
    # one less is negligible, so are fewer, whose fields are those of some of them.
    missing = count[:, None] - numbers
    for some in (missing == 0) | (missing == 1), missing > 1:
        one_less = torch.maximum(evidence.none, evidence.error).masked_fill(missing != 1, -math.inf).amax(1)
        negligible = evidence.none.amax(1) - one_less > _NEGLIGIBLE_NATS  # false before the first pass
        scenes, kept = (some & ~negligible[:, None]).nonzero().unbind(-1)
        if len(scenes):
            evidence.put(scenes, kept, recording[scenes], _strongest(estimate[scenes], kept), volume)
    plain = evidence.none.gather(1, count[:, None])[:, 0]
    share, _ = _common_prior(evidence.none.logsumexp(1), evidence.error.logsumexp(1))
    odds = math.log(share / (1 - share))
    rival = torch.maximum(evidence.none, evidence.error + odds)
    rival = torch.where(numbers == count[:, None], evidence.error + odds, rival)
    outside = _gain_outside(recording, estimate, spec) > _BEYOND_NATS
    if recording.link.coherent:
        # Of one long snapshot, the p-value hardly shows what the sources do not explain.
        outside = torch.ones_like(outside)
    suspicious = (rival.amax(1) > plain - _MARGIN) | (estimate.p_value < _SUSPICIOUS) | outside
    # Where fewer sources may do, they are fitted.
    fewer = suspicious[:, None] & (numbers > 0) & (numbers < count[:, None])
    scenes, kept = fewer.nonzero().unbind(-1)
    if len(scenes):
        if refit is None:
            located = make(quick)(recording[scenes], kept)
            fits = _likelier(recording[scenes], located, _strongest(estimate[scenes], kept), spec).sources
        else:
            fits = refit(scenes, kept)
        evidence.put(scenes, kept, recording[scenes], fits, volume)
    share, probable = _common_prior(evidence.none.logsumexp(1), evidence.error.logsumexp(1))
    odds = math.log(share / (1 - share))
    log_posterior = torch.logaddexp(evidence.none, evidence.error + odds)
    best, chosen = log_posterior.max(1)
    erring = (probable > 0.5).nonzero()[:, 0]
    result = estimate
    if len(erring):
        K = chosen[erring]
        picked = ModelError(best[erring], evidence.panel_error[erring, K], evidence.diffuse[erring, K])
        fresh = _located_again(recording[erring], _strongest(estimate[erring], K), K, picked, make, quick)
        probability = (EVIDENCE_WEIGHT * log_posterior[erring]).softmax(1)
        result = _put(result, erring, replace(fresh, n_sources_probability=probability))
    doubted = (suspicious & ((estimate.p_value < _SUSPICIOUS) | (probable > 0.5) | outside)).nonzero()[:, 0]
    scenes = torch.arange(S, device=count.device)
    found = ModelError(probable - 0.5, evidence.panel_error[scenes, chosen], evidence.diffuse[scenes, chosen])
    if len(doubted) == 0:
        return result, found
    certain = (outside | (probable > 0.5))[doubted]
    wide, taken = _with_wide_search(recording[doubted], result[doubted], best[doubted], certain, spec)
    # What sources outside the search volume explain is no error of the model.
    found.gain[doubted[taken]] = -0.5
    return _put(result, doubted, wide), found


def _evidence(recording: Recording, sources: Sources, volume: Volume) -> Float[Tensor, "S"]:
    recording = recording.stacked()
    return log_evidence(recording, fit_at(recording, sources, volume), volume)


def _strongest(estimate: Estimate, count: Int64[Tensor, "S"]) -> Sources:
    """The strongest of the sources of each scene, which come in order of power."""
    absent = torch.arange(estimate.sources.azimuth.shape[1], device=count.device) >= count[:, None]
    return replace(estimate.sources.each(lambda value: value.masked_fill(absent, math.nan)), symbols=None)


def _likelier(recording: Recording, located: Estimate, start: Sources, spec: LocateSpec) -> Estimate:
    """The estimate, or NF-MLE from another start where that is likelier."""
    volume = Volume.from_spec(spec)
    fit = nfmle(recording, start, volume, criterion=spec.criterion)
    better = (fit.neg_log_likelihood < located.neg_log_likelihood).nonzero()[:, 0]
    return _with_fit(recording, located, better, fit[better], spec)


def _with_fit(
    recording: Recording, estimate: Estimate, scenes: Int64[Tensor, "B"], fit: Fit, spec: LocateSpec
) -> Estimate:
    """The estimate with another fit, of the same number of sources, in some scenes."""
    if len(scenes) == 0:
        return estimate
    here, volume = estimate[scenes], Volume.from_spec(spec)
    fresh = from_fit(recording[scenes], fit, here.n_sources_probability, volume, spec)
    return _put(estimate, scenes, replace(fresh, method=here.method, panel_error=here.panel_error))


def _located_again(
    recording: Recording,
    strongest: Sources,
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
    for number, coloured in product(level.unique().tolist(), (False, True)):
        some = ((level == number) & ((error.diffuse > 0) == coloured)).nonzero()[:, 0]
        if len(some) == 0:
            continue
        part = recording[some]
        if coloured:
            part = whitened_by(part, error.diffuse[some])
        # Responses are not fitted on several subcarriers.
        allowed = 0.0 if number < 0 or part.frequencies is not None else _LEVELS[number]
        if allowed:
            part = with_dense_operator(part)
        located = make(spec.replace(panel_error=allowed))(part, count[some])
        if part.frequencies is not None:
            located = _likelier(part, located, strongest[some], spec)
        parts.append(replace(located, spec=spec))
        order.append(some)
    result = join_scenes(parts, order)
    found: list[Finding] = []
    for scene in range(len(result)):
        if (size := float(error.panel_error[scene])) > 0:
            text = f"the panel departs from its description by about {100 * size:.2g} %"
            if size > _LARGE_ERROR:
                text += "; so do conjugated data and other wrong conventions, which rismusic check looks for"
                text = Reason(text, "panel_error")
            found.append((scene, text))
        if (tau := float(error.diffuse[scene])) > 0:
            found.append((scene, _diffuse_sentence(tau, int(count[scene]))))
    return noted(result, found, panel_error=error.panel_error)


def _diffuse_sentence(diffuse: float, count: int) -> Reason:
    text = (
        f"noise through the panel is about {diffuse:.2g} times as strong as that of the receiver: "
        "RIS configurations or channel depart from the recorded ones"
    )
    if not count:
        text = (
            f"a signal {diffuse:.2g} times as strong as the noise comes through the panel, but no sources "
            "explain it: check that configurations and snapshots are in the same order"
        )
    return Reason(text, "noise_through_panel")


def wide_settings(recording: Recording, spec: LocateSpec) -> LocateSpec:
    """The settings with all directions that the array can tell apart: a half-space if it is planar.

    Waves of the Fresnel and paraxial approximations come from beyond half the aperture.
    """
    wide = spec.replace(
        azimuth_max_deg=max(_WIDE_DEG, spec.azimuth_max_deg) if recording.panel.is_planar else 180.0,
        elevation_max_deg=max(_WIDE_DEG, spec.elevation_max_deg),
    )
    if "range" not in spec.unknowns:  # it is held
        return wide
    panel = recording.panel
    nearest = panel.wavelength / 2
    if panel.wave in ("fresnel", "paraxial"):
        nearest = max(nearest, panel.aperture / 2)
    return wide.replace(range_min_m=min(spec.range_min_m, nearest), range_max_m=math.inf)


def _gain_outside(recording: Recording, estimate: Estimate, spec: LocateSpec) -> Float[Tensor, "S"]:
    """Log-likelihood (nats) that sources at the boundary of the search volume gain by leaving it."""
    gain = torch.zeros_like(estimate.neg_log_likelihood)
    at_boundary = Volume.from_spec(spec).at_boundary(unpack(estimate.sources, recording)[0])
    some = (at_boundary & estimate.sources.active[..., None]).flatten(1).any(1).nonzero()[:, 0]
    if len(some):
        wide = Volume.from_spec(wide_settings(recording, spec))
        part, start = recording[some], estimate[some].sources
        fit = nfmle(part, start, wide, criterion=spec.criterion)
        gain[some] = estimate.neg_log_likelihood[some] - fit.neg_log_likelihood
    return gain


def _with_wide_search(
    recording: Recording,
    estimate: Estimate,
    evidence: Float[Tensor, "S"],
    certain: Bool[Tensor, "S"],
    spec: LocateSpec,
) -> tuple[Estimate, Int64[Tensor, "B"]]:
    """Take sources outside the search volume where they explain the data better, and return these scenes.

    Scenes that are not ``certain`` to need it are searched if one source elsewhere may gain something.
    Pilots are those of a certain number of sources.
    """
    searched = certain.clone() if recording.pilots is None else torch.ones_like(certain)
    if len(rest := (~searched).nonzero()[:, 0]):
        searched[rest] = _may_gain_elsewhere(recording[rest], estimate[rest], evidence[rest], spec)
    some = searched.nonzero()[:, 0]
    if len(some) == 0:
        return estimate, some
    wide = wide_settings(recording, spec).replace(method="relax", oversampling=_COARSE)
    other = ClassicalEstimator(wide)(recording[some], "auto")
    gain = _evidence(recording[some], other.sources, Volume.from_spec(wide)) + _OUTSIDE - evidence[some]
    better = (gain > 0).nonzero()[:, 0]
    if len(better) == 0:
        return estimate, better
    take, taken = some[better], other[better]
    found = []
    for row, which in enumerate(_outside(taken.sources, Volume.from_spec(spec))):
        text = f"a search of all directions and ranges explains the data better than {spec.method}"
        if which.any():
            first, *more = map(str, which.nonzero()[:, 0].tolist())
            named = f"sources {all_of([first, *more])} are" if more else f"source {first} is"
            text = f"{named} outside the search volume, found by a search of all directions and ranges"
        found.append((row, Reason(text)))
    return _put(estimate, take, noted(taken, found, spec=spec)), take


def _may_gain_elsewhere(
    recording: Recording, estimate: Estimate, evidence: Float[Tensor, "S"], spec: LocateSpec
) -> Bool[Tensor, "S"]:
    """Whether one source more, or one of the sources elsewhere, may explain the data better.

    All directions and ranges are searched for that one source, and all sources are fitted roughly. What a
    complete search finds begins with such a step.
    """
    grid = searched_grid(recording, wide_settings(recording, spec).replace(oversampling=_COARSE))
    positions, active = unpack(estimate.sources, recording)
    K = active.shape[1]
    # Each source in turn is taken away; last, none is, if the data can identify one more.
    without = torch.eye(K + 1, K, dtype=torch.bool, device=active.device)
    one_more = active.sum(1, keepdim=True) < most_sources(recording, grid.volume)
    scenes, which = torch.cat((active, one_more), dim=1).nonzero().unbind(-1)
    if len(scenes) == 0:  # not even one source can be identified
        return torch.zeros_like(evidence, dtype=torch.bool)
    kept, others = active[scenes] & ~without[which], positions[scenes]
    assert estimate.sources.power is not None
    power = torch.where(active, estimate.sources.power, 0).double()[scenes]
    levels = power, estimate.noise_variance.double()[scenes]
    place = GridSearch(Dictionary.of(grid), recording).place_beside(scenes, others, kept, levels)
    start = pack(
        torch.cat((others, place[:, None]), dim=1), torch.cat((kept, kept.new_ones(len(kept), 1)), 1)
    )
    part = recording[scenes]
    fit = nfmle(part, start, grid.volume, criterion=spec.criterion, options=ROUGH)
    gain = log_evidence(part, fit, grid.volume) + _OUTSIDE - evidence[scenes]
    best = torch.full_like(evidence, -math.inf).scatter_reduce(0, scenes, gain, "amax")
    # Sources in one place, as at the boundary of the search volume, have no evidence.
    return (best > -_NEARLY_NATS) | (best == -math.inf)


def _outside(sources: Sources, volume: Volume) -> Bool[Tensor, "S K"]:
    """Sources outside the volume."""
    azimuth, elevation, range = volume.clamp(sources.azimuth, sources.elevation, sources.range)
    outside = (elevation != sources.elevation) | (range != sources.range)
    if not volume.all_round:
        outside |= azimuth != sources.azimuth
    return outside & sources.active


def _with_reasons(
    recording: Recording, estimate: Estimate, n_sources: NSources, spec: LocateSpec
) -> Estimate:
    """Add what the final estimate leaves doubtful."""
    found: list[Finding] = []
    positions, active = unpack(estimate.sources, recording)
    narrowband, count_unknown = recording.frequencies is None, isinstance(n_sources, str)
    if positions.shape[1] and recording.symbols == "independent":
        at = sufficient_statistics(recording, positions, active)
        if narrowband:
            found += [*_symbols(at, estimate), *_channel_rank(recording, estimate, spec)]
        else:
            found += _coherent(_coherence_p_value(at, estimate, recording.link.subcarriers) < _COHERENT)
    sources, moves = estimate.sources, torch.zeros_like(active)
    if narrowband:
        sources, moves, moving = _motion(recording, estimate)
        found += [*moving, *_grating_lobes(recording, estimate, spec)]
    if recording.pilots is None:
        estimate, extended = _with_extended(recording, estimate, moves, error_fitted=count_unknown)
        found += extended
    estimate = replace(estimate, position_probability=_position_probability(recording, estimate, spec))
    found += _unresolved(recording, estimate)
    found += _better_range(recording, estimate, spec) or _better_wave(recording, estimate, spec)
    if count_unknown and recording.pilots is None:
        found += _largest_number(recording, estimate, spec)
    elif recording.symbols == "constant":
        found += _more_than_told(recording, estimate, spec)
    found += _beyond(recording, noted(estimate, found), spec, only_sound=count_unknown)
    existence = estimate.existence_probability
    for scene, source in (existence < UNCERTAIN).nonzero().tolist():
        probable = float(existence[scene, source])
        text = f"source {source} exists with a probability of {probable:.2f}"
        found.append((scene, text if probable > 0.5 else Reason(text)))
    found += _maybe_more(estimate)
    errors = estimate.panel_error
    if errors is None:
        errors = torch.zeros_like(estimate.p_value)
    return noted(estimate, found, sources=sources, panel_error=errors)


def _maybe_more(estimate: Estimate) -> Iterator[Finding]:
    """Scenes that may have more sources than the most probable number."""
    probability = estimate.n_sources_probability
    if probability is None:
        return
    up_to = probability.cumsum(1).gather(1, estimate.n_sources[:, None])[:, 0]
    for scene in (up_to < 1 - _MAYBE_MORE).nonzero()[:, 0].tolist():
        named = counted(int(estimate.n_sources[scene]), "source")
        yield scene, f"there are more than {named} with a probability of {1 - float(up_to[scene]):.2f}"


def _clipped(share: Float[Tensor, "S"]) -> Iterator[Finding]:
    """Scenes in which the receiver was driven to its limit."""
    for scene in share.nonzero()[:, 0].tolist():
        text = f"{float(share[scene]):.1%} of the samples are at the largest value: the receiver clips"
        yield scene, Reason(text)


def _largest_number(recording: Recording, estimate: Estimate, spec: LocateSpec) -> Iterator[Finding]:
    """Scenes with as many sources as were tried."""
    identified = most_sources(recording, Volume.from_spec(spec))
    most = min(spec.sources_max, identified)
    scenes = ((estimate.n_sources >= most) & (estimate.n_sources > 0)).nonzero()[:, 0]
    if len(scenes) == 0:
        return
    limit = f"{most} is the largest number of sources that was tried (--sources-max)"
    if identified < spec.sources_max:
        limit = f"these snapshots identify at most {counted(most, 'source')}: more look like noise"
    more = Reason(f"there may be more than {most} sources: raise --sources-max", "sources_too_many")
    gain = _gain_of_one_more(recording[scenes], estimate[scenes], spec)
    for scene, likely in zip(scenes.tolist(), (gain > 0).tolist(), strict=True):
        yield scene, more if likely else limit


def _more_than_told(recording: Recording, estimate: Estimate, spec: LocateSpec) -> Iterator[Finding]:
    """Scenes of one long snapshot with more sources than told, which their p-value hardly shows."""
    gain = _gain_of_one_more(recording, estimate, spec)
    for scene in (gain > _BEYOND_NATS).nonzero()[:, 0].tolist():
        told = counted(int(estimate.n_sources[scene]), "source")
        text = f"one more than {told} explains the data better (log evidence {float(gain[scene]):+.3g} nats)"
        yield scene, Reason(text, "sources_too_many")


def _beyond(
    recording: Recording, estimate: Estimate, spec: LocateSpec, *, only_sound: bool
) -> Iterator[Finding]:
    """Scenes, without another doubt or all, whose sources at the boundary fit better outside it."""
    some = _without_panel_error(estimate)  # otherwise the likelihood is that of other data
    if only_sound:
        some &= torch.tensor([not one for one in estimate.reasons], device=some.device)
    some = some.nonzero()[:, 0]
    if len(some) == 0:
        return
    part, here = recording[some], estimate[some]
    gain, volume = _gain_outside(part, here, spec), Volume.from_spec(spec)
    positions = unpack(here.sources, part)[0]
    at = volume.at_boundary(positions) & here.sources.active[..., None]
    near = positions[..., 2] > (volume.lower[2] + volume.upper[2]) / 2
    limits = {
        "--azimuth-max-deg": at[..., 0],
        "--elevation-max-deg": at[..., 1],
        "--range-min-m": at[..., 2] & near,
        "--range-max-m": at[..., 2] & ~near,
    }
    for row in (gain > _BEYOND_NATS).nonzero()[:, 0].tolist():
        names = all_of([name for name, reached in limits.items() if bool(reached[row].any())])
        text = f"fit better outside it (by {float(gain[row]):.2g} nats): enlarge it with {names}"
        yield int(some[row]), Reason(f"sources at the boundary of the search volume {text}")


def _position_probability(recording: Recording, estimate: Estimate, spec: LocateSpec) -> Float[Tensor, "S K"]:
    r"""Probability that each source is where it is and not elsewhere, the others being where they are.

    .. math:: p_k = \frac{1}{1 + \exp\left(w (\ell'_k - \ell_k)\right)}

    :math:`\ell_k` is what the source raises the log-likelihood by, :math:`\ell'_k` what a source at the best
    grid point more than 5 degrees away would raise it by in its place, and w the weight of the evidence for a
    number of sources (:data:`~rismusic.estimation.model_order.EVIDENCE_WEIGHT`). The probability is 1 where
    the panel errs, without a source, and of sources that raise it by much.
    """
    positions, active = unpack(estimate.sources, recording)
    probability = torch.ones_like(active, dtype=torch.float64)
    if recording.symbols == "correlated" or not bool(active.any()):
        return probability
    gain = values_without_each(recording, positions, active, "unconditional")
    gain = gain - estimate.neg_log_likelihood[:, None]
    weak = active & (gain < _CERTAIN_NATS)
    if estimate.panel_error is not None:
        weak &= (estimate.panel_error == 0)[:, None]
    scenes, which = weak.nonzero().unbind(-1)
    if len(scenes) == 0:
        return probability
    assert estimate.sources.power is not None
    dictionary = Dictionary.of(searched_grid(recording, spec))
    # Sources with pilots of their own are searched one after the other.
    own = which if recording.link.pilots is not None else torch.zeros_like(which)
    for number in own.unique().tolist():
        some = (own == number).nonzero()[:, 0]
        searched, place = scenes[some].unique(return_inverse=True)
        part = recording[searched]
        search = GridSearch(dictionary, part, part.link.for_pilots(number))
        for start in range(0, len(some), _BLOCK_SEARCHES):
            block = slice(start, start + _BLOCK_SEARCHES)
            rows, k = scenes[some[block]], which[some[block]]
            others = active[rows].scatter(1, k[:, None], value=False)
            power = torch.where(others, estimate.sources.power[rows], 0).double()
            noise = estimate.noise_variance[rows].double()
            rest = project_out(recording[rows], positions[rows], others, (power, noise))
            elsewhere = search.best_gain_beyond(
                place[block], rest, positions[rows, k], math.radians(_ELSEWHERE_DEG)
            )
            probability[rows, k] = torch.sigmoid(EVIDENCE_WEIGHT * (gain[rows, k] - elsewhere))
    return probability


def _symbols(at: SufficientStatistics, estimate: Estimate) -> Iterator[Finding]:
    """Sources that send in one snapshot, coherent ones, and those with one symbol, as an offset has."""
    s = symbols(at)  # [S, L, K]
    L = s.shape[1]
    energy = s.abs().square()
    total = energy.sum(1).clamp_min(torch.finfo(energy.dtype).tiny)
    # The share of the strongest of L Gaussian symbols exceeds x with a probability of at most this.
    strongest, where = energy.max(1)
    lone = at.active & (L * (1 - strongest / total).clamp(0, 1).pow(L - 1) < _LONE) & (L > 2)
    if bool(lone.any()):
        # One that sends in several snapshots has energy beyond the noise of its symbols in others too.
        noise = (symbol_variances(at).expand(-1, L, -1) * estimate.noise_variance[:, None, None]).sum(1)
        lone &= total - strongest - noise < strongest / 2
    for scene in lone.any(1).nonzero()[:, 0].tolist():
        for snapshot in where[scene][lone[scene]].unique().tolist():
            members = (lone[scene] & (where[scene] == snapshot)).nonzero()[:, 0].tolist()
            send = "sources {} send" if len(members) > 1 else "source {} sends"
            text = f"{send.format(all_of(map(str, members)))} in snapshot {snapshot} only: interference there"
            yield scene, Reason(f"{text} (try --noise impulsive), or sources that take turns")
    coherent = _coherence_p_value(at, estimate) < _COHERENT
    yield from _coherent(coherent & ~(lone[:, :, None] | lone[:, None, :]))
    p = (1 - (s.sum(1).abs().square() / (L * total)).clamp(0, 1)).pow(L - 1)
    for scene, source in (at.active & (p < _COHERENT)).nonzero().tolist():
        text = f"source {source} sends the same symbol in all snapshots: a constant pilot (try --symbols "
        yield scene, Reason(f"{text}constant) or an offset of the receiver", "symbols_repeated")


def _coherent(pairs: Bool[Tensor, "S K K"]) -> Iterator[Finding]:
    """Sources that send the same signal, one sentence for each group of them."""
    for scene in pairs.flatten(1).any(1).nonzero()[:, 0].tolist():
        from scipy.sparse.csgraph import connected_components  # takes long to import

        _, label = connected_components(pairs[scene].numpy(force=True), directed=False)
        for group in np.unique(label[pairs[scene].any(1).numpy(force=True)]):
            first, *others = [str(one) for one in np.flatnonzero(label == group)]
            paths = "sources {} may be reflections" if len(others) > 1 else "source {} may be a reflection"
            text = f"sources {all_of([first, *others])} send the same signal: "
            text += f"{paths.format(all_of(others))} of source {first}"
            yield scene, Reason(text, "sources_coherent")


def _channel_rank(recording: Recording, estimate: Estimate, spec: LocateSpec) -> Iterator[Finding]:
    r"""Scenes whose channel carries too few signals for the sources.

    The received signal power is shared by the modes of the channel, the squared singular values of H. K
    sources with any symbols explain whatever K modes carry, wherever they are, so that only the energy of the
    others in all snapshots, over the noise variance, tells the true positions from others (nats). Where this
    is less than the logarithm of the number of grid points, one of these explains the data as well by chance.
    Modes within 10 dB of the strongest one count, however strong the noise.
    """
    if recording.channel is None:
        return
    H = recording.channel.to(torch.complex128)
    mode = torch.linalg.eigvalsh(H @ H.mH)
    noise = estimate.noise_variance.double()
    signal = recording.snapshots.abs().square().double().mean((1, 2)) - noise
    _, L, M = recording.snapshots.shape
    power = mode * (M * signal.clamp_min(0))[:, None] / mode.sum(-1, keepdim=True)
    left = (L * power / noise[:, None]).cumsum(-1)  # from the weakest mode on
    needed = math.log(len(searched_grid(recording, spec)))
    rank = ((left > needed) | (power > _STRONG_MODE * power.amax(-1, keepdim=True))).sum(-1)
    count = estimate.n_sources
    for scene in ((count > 0) & (rank < count + 1)).nonzero()[:, 0].tolist():
        text = (
            f"the channel carries {int(rank[scene])} independent signals above the noise, and "
            f"{int(count[scene])} sources with independent symbols need {int(count[scene]) + 1}: other "
            "positions may explain the data as well"
        )
        yield scene, Reason(text)


def _grating_lobes(recording: Recording, estimate: Estimate, spec: LocateSpec) -> Iterator[Finding]:
    """The grating lobes of each source that explain the data nearly as well as its place."""
    panel, wavelength = recording.panel, recording.wavelength
    apart = torch.cdist(panel.elements, panel.elements)
    spacing = float((apart + torch.diag_embed(apart.new_full((panel.size,), math.inf))).amin()) / wavelength
    if spacing <= _NO_GRATING or not bool(estimate.sources.active.any()):
        return
    extent = max(float(apart.amax()) / wavelength, 1.0)
    across = torch.linspace(-1, 1, 2 * math.ceil(2 * extent) + 1, dtype=torch.float64, device=apart.device)
    u_x, u_y = (value.flatten() for value in torch.meshgrid(across, across, indexing="ij"))
    inside = u_x.square() + u_y.square() < 0.99
    u_x, u_y = u_x[inside], u_y[inside]
    azimuth, elevation, _ = from_cosines(u_x, u_y, torch.ones_like(u_x))
    wide = Volume.from_spec(wide_settings(recording, spec))
    at, active = unpack(estimate.sources, recording)
    own_x, own_y, _ = direction(at[..., 0], at[..., 1])
    for source in range(at.shape[1]):
        phi, theta, q = at[:, source, :, None].unbind(1)
        distance = (1 / q).expand(-1, len(u_x))
        points = steering(panel, azimuth.expand_as(distance), elevation.expand_as(distance), distance)
        own = steering(panel, phi, theta, 1 / q)
        likeness = (own.mH @ points).abs()[:, 0] / (own.norm(dim=1) * points.norm(dim=1))
        lobe = torch.hypot(u_x - own_x[:, source, None], u_y - own_y[:, source, None])
        best, which = likeness.masked_fill(lobe < 1 / extent, 0).max(1)
        scenes = ((best > _LIKENESS) & active[:, source]).nonzero()[:, 0]
        if len(scenes) == 0:
            continue
        moved = at[scenes].clone()
        moved[:, source, 0], moved[:, source, 1] = azimuth[which[scenes]], elevation[which[scenes]]
        here, other = (
            nfmle(recording[scenes], pack(start, active[scenes]), wide, criterion=spec.criterion)
            for start in (at[scenes], moved)
        )
        gain = here.neg_log_likelihood - other.neg_log_likelihood
        for row in (gain > -_AMBIGUOUS_NATS).nonzero()[:, 0].tolist():
            place = (other.sources.azimuth_deg[row, source], other.sources.elevation_deg[row, source])
            text = (
                f"source {source} may as well lie in its grating lobe at {place[0]:.2f}, {place[1]:.2f} deg "
                f"(log-likelihood {float(gain[row]):+.1f} nats): the elements are {spacing:.2g} wavelengths "
                "apart"
            )
            yield int(scenes[row]), Reason(text)


def _motion(recording: Recording, estimate: Estimate) -> tuple[Sources, Bool[Tensor, "S K"], list[Finding]]:
    """The sources, with one that moves in the middle of its path; which of them move; sentences on these."""
    path = motion(recording, estimate.sources, torch.full_like(estimate.p_value, _MOTION_NATS))
    found: list[Finding] = []
    moves = path.gain > _MOTION_NATS
    angle = path.change.norm(dim=-1).rad2deg()
    for scene in moves.any(1).nonzero()[:, 0].tolist():
        which = moves[scene].nonzero()[:, 0].tolist()
        far = f"{float(angle[scene, which].amax()):.2g} deg from the first snapshot to the last"
        text = f"source {which[0]} moves by about {far}: its position is that in the middle"
        if len(which) > 1:
            named = ", ".join(map(str, which))
            text = f"sources {named} move by about {far}: they may be one source that moves"
        found.append((scene, Reason(text, "sources_moving")))
    alone = (moves & (moves.sum(1, keepdim=True) == 1))[..., None]
    shift = torch.where(alone, path.offset, 0).to(estimate.sources.azimuth.dtype)
    azimuth, elevation = estimate.sources.azimuth + shift[..., 0], estimate.sources.elevation + shift[..., 1]
    return replace(estimate.sources, azimuth=azimuth, elevation=elevation), moves, found


def _with_extended(
    recording: Recording, estimate: Estimate, moves: Bool[Tensor, "S K"], *, error_fitted: bool
) -> tuple[Estimate, list[Finding]]:
    """Find sources that are not one point, and add the sizes of all to the error bars of their directions.

    With a log-likelihood ratio g, a source is not one point with probability P = 1 / (1 + exp(4.5 - g)). The
    variance along its extent s grows by P s^2, so that error bars cover the parts of most pairs that are not
    recognised.
    """
    gain, size = spread_gain(recording, estimate.sources)
    extended = (gain > _SPREAD_NOTE_NATS) & ~moves
    # What a panel error leaves beside each source raises the ratio.
    possible = (gain > 0) & ~moves & _without_panel_error(estimate)[:, None]
    if recording.has_coherent_symbols:
        # Beside constant symbols a panel error is constant too, and may look the same.
        extended = extended & possible
    if not error_fitted:  # a panel error that is only suspected may be that size
        possible = possible | extended
    found: list[Finding] = []
    for scene, source in extended.nonzero().tolist():
        within = f"within about {2 * math.degrees(float(size[scene, source].norm())):.1g} deg"
        text = f"source {source} may be several sources {within}"
        if gain[scene, source] > _SPREAD_NATS:
            text = f"source {source} is not one point: it moves, is extended or consists of several sources"
            text = Reason(f"{text} {within}", "sources_extended")
        found.append((scene, text))
    several = torch.sigmoid(gain - _SPREAD_NATS).sqrt()
    extent = torch.nn.functional.pad(torch.where(possible[..., None], several[..., None] * size, 0), (0, 1))
    wider = extent[..., :, None] * extent[..., None, :]
    return replace(estimate, covariance=estimate.covariance + wider.to(estimate.covariance)), found


def _unresolved(recording: Recording, estimate: Estimate) -> Iterator[Finding]:
    """Sources closer to each other, in angle and range, than the panel resolves."""
    towards = torch.stack(direction(*(value.double() for value in estimate.sources.filled()[:2])), dim=-1)
    gap = torch.linalg.vector_norm(towards[:, :, None] - towards[:, None], dim=-1)
    elements = recording.panel.elements
    extent = (elements.amax(-2) - elements.amin(-2)).norm(dim=-1).amax()
    resolution = _RESOLUTION * recording.wavelength / float(extent.clamp_min(recording.wavelength))
    there = estimate.sources.active
    # In the near field, sources in one direction differ by their ranges.
    A = estimate.sources.steering(recording.panel)
    alike = (A.mH @ A).abs() > _UNRESOLVED
    near = (gap < resolution) & alike & there[:, :, None] & there[:, None]
    for scene, first, second in near.triu(1).nonzero().tolist():
        apart = math.degrees(float(gap[scene, first, second]))
        text = (
            f"sources {first} and {second} are {apart:.1f} deg apart, closer than the panel resolves: one "
            "source that moves or departs from the model looks the same"
        )
        yield scene, Reason(text)


def _better_range(recording: Recording, estimate: Estimate, spec: LocateSpec) -> list[Finding]:
    """A sentence for each scene that other ranges than the one that is held explain better."""
    if "range" in spec.unknowns:
        return []
    unknowns = (*spec.unknowns, "range")
    volumes = [Volume.from_spec(one) for one in (spec, spec.replace(unknowns=unknowns))]
    identified = most_sources(recording, volumes[1])  # fewer than with the range held
    some = ((estimate.n_sources > 0) & (estimate.n_sources <= identified)).nonzero()[:, 0]
    if len(some) == 0:
        return []
    part, sources = recording[some], estimate[some].sources
    held, free = (
        nfmle(part, sources, volume, criterion=spec.criterion).neg_log_likelihood for volume in volumes
    )
    text = (
        "other ranges than the one that is held explain the data better (by {:.0f} nats): estimate the "
        f"range, too (--unknowns {' '.join(unknowns)})"
    )
    gain = held - free
    better = (gain > _WAVE_NATS).nonzero()[:, 0].tolist()
    return [(int(some[row]), Reason(text.format(float(gain[row])))) for row in better]


def _better_wave(recording: Recording, estimate: Estimate, spec: LocateSpec) -> list[Finding]:
    """A sentence if another form of the wave explains the recording better, for scenes not against it."""
    some = (estimate.n_sources > 0).nonzero()[:, 0]
    if len(some) == 0:
        return []
    # Sources may lie outside the search volume.
    part, volume = recording[some], Volume.from_spec(wide_settings(recording, spec))
    positions, active = unpack(estimate[some].sources, part)
    fit = partial(refine, volume=volume, criterion=spec.criterion)
    # What the first scenes speak against, the others do not save.
    gains = {wave: 0.0 for wave in WAVES if wave != recording.wave}
    for start in range(0, len(some), _WAVE_SCENES):
        rows = slice(start, start + _WAVE_SCENES)
        rough = {
            wave: fit(replace(part[rows], wave=wave), positions[rows], active[rows], options=ROUGH).value
            for wave in (recording.wave, *gains)
        }
        for wave in list(gains):
            gains[wave] += float((rough[recording.wave] - rough[wave]).sum())
            if gains[wave] < -_WAVE_NATS:
                del gains[wave]
        if not gains:
            return []
    # Where a rough fit is worse, an exact one is not better by this much.
    likely = [wave for wave, gain in gains.items() if gain > 0]
    if not likely:
        return []
    here = fit(part, positions, active).value
    each = {wave: here - fit(replace(part, wave=wave), positions, active).value for wave in likely}
    name = max(each, key=lambda wave: float(each[wave].sum()))
    if (best := float(each[name].sum())) <= _WAVE_NATS:
        return []
    sentence = Reason(
        f"a {name} wave explains the data better than the {recording.wave} one (by {best:.0f} nats): "
        f"try --wave {name}"
    )
    return [(scene, sentence) for scene in some[_all_but_many(each[name] > -_BEYOND_NATS)].tolist()]


def _gain_of_one_more(recording: Recording, estimate: Estimate, spec: LocateSpec) -> Float[Tensor, "S"]:
    """Log evidence (nats) of another source, searched in what the others leave of the data."""
    S, grid = len(recording), searched_grid(recording, spec)
    positions, active = unpack(estimate.sources, recording)
    K = int(estimate.n_sources.max())
    if most_sources(recording, grid.volume) <= K:
        return torch.full((S,), -math.inf, dtype=torch.float64, device=active.device)
    search = GridSearch(Dictionary.of(grid), recording)
    scenes = torch.arange(S, device=active.device)
    positions, active = positions[:, :K], active[:, :K]
    assert estimate.sources.power is not None
    power = torch.where(active, estimate.sources.power[:, :K], 0).double()
    # Searched as the others were fitted: what they share with it is not lost.
    place = search.place_beside(scenes, positions, active, (power, estimate.noise_variance.double()))
    more = torch.cat((positions, place[:, None]), dim=1)
    there = torch.ones(S, K + 1, dtype=torch.bool, device=active.device)
    fit = nfmle(recording, pack(more, there), grid.volume, criterion=spec.criterion)
    return log_evidence(recording, fit, grid.volume) - _evidence(recording, estimate.sources, grid.volume)
