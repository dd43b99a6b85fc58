"""``rismusic.locate`` and the hybrid estimator, in the order in which a recording passes through them.

1. :func:`locate` runs the estimator that the settings name on blocks of scenes.
2. :class:`HybridEstimator` checks that the weights apply to panel, link and volume, computes the network
   outputs (:class:`~rismusic.nn.inference.NetworkOutput`) and fits a given or the most probable number of
   sources. Where the weights do not apply, or the fit does not explain the data, SBL takes its place.
3. :func:`fit_most_probable` compares fits with 0, 1, 2, ... sources by evidence and the network's prior.
4. :func:`fit_n_sources` fits K sources: RAP-MUSIC on R_blend, the blend of the network's covariance with the
   sample covariance; Newton's method; near-field maximum likelihood; RELAX sweeps over the peaks of the
   network's heat map; and birth-death moves over the whole grid.
5. :func:`~rismusic.estimation.diagnosis.diagnosed` tests the fit for departures from the signal model. It
   locates scenes again that another model explains better, and gives each scene its status and reasons.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.devices import device_of, one_thread
from rismusic.errors import InputError, renamed_argument
from rismusic.estimation.calibration import whitened
from rismusic.estimation.classical import ClassicalEstimator, calibrated, counts_of, fit_nothing
from rismusic.estimation.diagnosis import Refit, diagnosed
from rismusic.estimation.estimate import (
    Estimate,
    Estimator,
    NSources,
    Reason,
    from_fit,
    join_estimates,
    join_scenes,
    received_db,
    whole_numbers,
)
from rismusic.estimation.grid import SearchGrid, Volume, searched_grid
from rismusic.estimation.impulses import check_no_calibration, locate_with_impulses
from rismusic.estimation.levenberg_marquardt import FitOptions
from rismusic.estimation.maximum_likelihood import (
    ROUGH,
    Fit,
    FitState,
    complete_fit,
    nfmle,
    pack,
    refine,
    unpack,
)
from rismusic.estimation.model_order import (
    EVIDENCE_WEIGHT,
    LOG_NORMALISATION,
    SelectedOrder,
    log_evidence,
    select_model_order,
)
from rismusic.estimation.noise import OTHER_SYMBOLS, check_fit, most_sources, noise_of, snr_db
from rismusic.estimation.relax import Prior, beside, birth_death, log_prior, relax_sweeps
from rismusic.estimation.search import CandidateSearch, Dictionary, GridSearch, received_fields
from rismusic.estimation.signal_model import for_geometry, with_output_noise, with_signal_model
from rismusic.estimation.spectra import TO_CONVERGENCE, NewtonOptions, music, rap_music_sources
from rismusic.io import Recording, check_recording
from rismusic.io.calibration import PanelCalibration
from rismusic.nn.inference import (
    LoadedNetwork,
    NetworkOutput,
    missing,
    scene_mismatches,
    system_mismatch,
)
from rismusic.parallel import MOST_THREADS, default_division, run_all
from rismusic.registry import ESTIMATORS, load_plugins, plugin_errors
from rismusic.sources import Sources
from rismusic.spec import LocateSpec, limits
from rismusic.text import counted

FALLBACK: Literal["sbl"] = "sbl"
"""The classical method for recordings that the weights were not trained for."""

FALLBACK_LARGE: Literal["relax"] = "relax"
"""The same for one long snapshot or many subcarriers, whose covariance matrices are large or many."""

BLOCK_SCENES = 64
"""Scenes located at a time, so that memory does not grow with the recording."""

# First fits start near the solution, where least squares gives good enough powers.
_FIRST = replace(ROUGH, powers_first=False)
# No birth-death search for numbers of sources whose log posterior is below the best by more than this (nats).
_BIRTH_DEATH_MARGIN_NATS = 3.0
# Up to this many scenes, fits with different numbers of sources make up one batch.
_JOINT_SCENES = 4
_LOG = logging.getLogger("rismusic.locate")
_NOT_APPLICABLE = "the weights {!r} do not know this case"


def locate(
    recording: Recording,
    *,
    n_sources: Int64[Tensor, "S"] | int | str | None = None,
    spec: LocateSpec | None = None,
    device: torch.device | str | None = None,
    calibration: PanelCalibration | None = None,
    workers: int = 1,
    cluster: str | None = None,
    **settings: object,
) -> Estimate:
    """Locate the sources of every scene, as ``rismusic locate`` does.

    Args:
        recording: S scenes.
        n_sources: number of sources K: one for all scenes, one per scene [S], or ``auto``. By default
            ``spec.sources``.
        spec: method, search volume and so on.
        device: where to compute, such as ``"cuda"``; the recording's device if none.
        calibration: calibration of the panel, from :func:`rismusic.calibrate_panel`. Unless the settings give
            a ``panel_error``, its remaining error is that if the number of sources is known. Otherwise the
            error is estimated, so that a panel that has changed since is recognised.
        workers: number of processes, each with one thread, among which blocks of scenes are divided. One
            process divides them among as many threads as torch uses, up to 8.
        cluster: address of a Dask scheduler, such as ``tcp://host:8786``, whose workers take the place of
            processes of this machine.
        settings: fields of :class:`~rismusic.spec.LocateSpec` to change, such as ``method="omp"``.

    Returns:
        Positions with error bars, in float64 and on the recording's device, whatever ``device`` is.

    Raises:
        InputError: the first argument is no recording, a setting is unknown, the device is not available,
            there are more sources than the data can identify, or the calibration is of another panel.

    Example:
        >>> estimate = locate(recording, method="omp")
        >>> estimate.azimuth_deg, estimate.elevation_deg, estimate.range_m, estimate.warnings
    """
    check_recording(recording)
    n_sources = whole_numbers(n_sources)
    chosen = chosen_settings(spec, n_sources, settings)
    home = recording.snapshots.device
    if device is not None:
        recording = recording.to(device_of(device))
    if calibration is not None:
        recording = calibration.apply(recording)
    recording = with_signal_model(replace(recording, truth=None), chosen)
    chosen = for_geometry(chosen, recording.panel)
    count: NSources = chosen.sources
    if isinstance(n_sources, Tensor):
        count = n_sources.to(recording.snapshots.device)
        check_fit(recording.stacked(), count, Volume.from_spec(chosen))
    chosen, remaining = with_remaining_error(chosen, recording, calibration, count)
    slices = [slice(start, start + BLOCK_SCENES) for start in range(0, len(recording), BLOCK_SCENES)]
    blocks = [(recording[part], count[part] if isinstance(count, Tensor) else count) for part in slices]
    several = cluster is not None or workers > 1
    work = (
        partial(_locate_in_worker, chosen, remaining)
        if several
        else partial(_locate_here, estimator_of(chosen), chosen, remaining)
    )
    # Blocks in several threads, each with the operations of one: operations of one block gain less.
    threads = 1
    if ESTIMATORS.is_builtin(chosen.method) and not several and recording.snapshots.device.type == "cpu":
        _, threads = default_division(len(blocks), min(torch.get_num_threads(), MOST_THREADS))
    workers = min(workers, max(1, len(blocks)))
    parts = run_all(work, blocks, workers=workers, threads=threads, cluster=cluster, ordered=True)
    estimate = join_estimates([estimate for _, estimate in parts]).detached()
    return estimate if device is None else estimate.to(home)


def chosen_settings(
    spec: LocateSpec | None,
    n_sources: Int64[Tensor, "S"] | int | str | None,
    settings: Mapping[str, object],
) -> LocateSpec:
    """The settings of a call: a specification, changed by the arguments.

    Args:
        spec: the settings to start from; the default ones if none.
        n_sources: number of sources, if it is one for all scenes or ``auto``.
        settings: fields to change.

    Raises:
        InputError: a field is unknown, was renamed, or has a wrong value.
    """
    for name in settings:
        if (changed := renamed_argument("locate", name)) is not None:
            raise InputError(name, changed)
    if isinstance(n_sources, (int, str)):
        settings = {**settings, "sources": n_sources}
    return (spec or LocateSpec()).replace(**settings)


def with_remaining_error(
    spec: LocateSpec, recording: Recording, calibration: PanelCalibration | None, n_sources: NSources
) -> tuple[LocateSpec, float]:
    """The settings for a calibrated panel, and the remaining error that is whitened.

    With an unknown number of sources, errors of the panel that exceed the remaining error of the calibration
    are estimated; the remaining error itself is noise. Otherwise it is the ``panel_error``. One that the
    settings give stays.

    Args:
        spec: the settings.
        recording: scenes, with the signal model that the settings ask for.
        calibration: calibration of the panel.
        n_sources: number of sources, or ``auto``.
    """
    if calibration is None or spec.panel_error != "auto":
        return spec, 0.0
    plain = not recording.has_coherent_symbols and recording.frequencies is None
    if isinstance(n_sources, str) and plain and spec.noise == "white":
        return spec, calibration.remaining_error
    return spec.replace(panel_error=calibration.remaining_error), 0.0


def estimator_of(spec: LocateSpec) -> Estimator:
    """The estimator that the settings name: a registered one, or that of a registered spectrum."""
    if spec.method not in ESTIMATORS:
        return ClassicalEstimator(spec)
    if not ESTIMATORS.is_builtin(spec.method):
        return _PluginEstimator(spec)
    estimator: Estimator = ESTIMATORS.get(spec.method)(spec)
    return estimator


class _PluginEstimator:
    """An estimator of a user's own. What is wrong with it is said as such."""

    def __init__(self, spec: LocateSpec) -> None:
        self.name = spec.method
        with plugin_errors("estimator", self.name):
            self.estimator = ESTIMATORS.get(self.name)(spec)

    def __call__(self, recording: Recording, n_sources: NSources) -> Estimate:
        """Call it, and check what it returns."""
        with plugin_errors("estimator", self.name):
            estimate: object = self.estimator(recording, n_sources)
        if isinstance(estimate, Estimate) and len(estimate) == len(recording):
            return estimate
        got = f"one of {counted(len(estimate), 'scene')}" if isinstance(estimate, Estimate) else ""
        raise InputError(
            "method",
            f"the estimator {self.name!r} must return an Estimate of {counted(len(recording), 'scene')}; got "
            f"{got or type(estimate).__name__}",
        )


def _locate_here(
    estimator: Estimator, spec: LocateSpec, remaining: float, block: tuple[Recording, NSources]
) -> Estimate:
    return locate_block(*block, estimator, spec, remaining)


def _locate_in_worker(spec: LocateSpec, remaining: float, block: tuple[Recording, NSources]) -> Estimate:
    load_plugins(spec.plugins)
    with one_thread():
        return locate_block(*block, estimator_of(spec), spec, remaining)


def locate_block(
    recording: Recording,
    n_sources: NSources,
    estimator: Estimator,
    spec: LocateSpec,
    remaining_error: float = 0.0,
    *,
    improve: Callable[[Recording, Estimate], Estimate] | None = None,
) -> Estimate:
    """Locate scenes that are processed together: estimator, noise model and diagnosis.

    Args:
        recording: S scenes, with the signal model that the settings ask for.
        n_sources: the number of sources, or ``auto``.
        estimator: the estimator of the settings.
        spec: the settings.
        remaining_error: error of the panel's responses that is whitened as noise.
        improve: changes the estimate before it is diagnosed; not called for impulsive noise.
    """
    if remaining_error:
        plain = recording.stacked()
        white = replace(whitened(plain, remaining_error), noise_variance=None)
        estimate = locate_block(white, n_sources, estimator, spec, improve=improve)
        # Powers over the noise of the receiver, without the error.
        noise = noise_of(plain).double()
        return replace(estimate, noise_variance=noise, snr_db=received_db(plain, estimate.sources, noise))
    if spec.noise == "impulsive":
        # The diagnosis takes no weights of samples.
        return locate_with_impulses(estimator, recording, n_sources, spec)
    if spec.noise == "per_output":
        recording = with_output_noise(recording, estimator(recording, n_sources).sources)
    if isinstance(estimator, HybridEstimator):
        estimate, refit = estimator.locate(recording, n_sources)
    else:
        estimate, refit = estimator(recording, n_sources), None
    if improve is not None:
        estimate = improve(recording, estimate)
    estimate = diagnosed(recording, estimate, n_sources, estimator_of, spec, refit)
    fitted = recording.stacked()
    if most_sources(fitted, Volume.from_spec(spec)) > 0:
        return estimate
    _, L, M = fitted.snapshots.shape
    none = Reason(
        f"{counted(L, 'snapshot')} of {counted(M, 'antenna')} cannot identify a source whose symbols are new "
        f"in every snapshot. {OTHER_SYMBOLS}"
    )
    return replace(estimate, warnings=[[none, *sentences] for sentences in estimate.warnings])


class HybridEstimator:
    """MUSIC on the blend of a network's covariance with the sample covariance, then maximum likelihood.

    Systems and scenes that the network was not trained for go to the classical method :data:`FALLBACK`, with
    a warning.

    Args:
        spec: weights, search volume and so on.
    """

    def __init__(self, spec: LocateSpec) -> None:
        self.spec = spec

    def __call__(self, recording: Recording, n_sources: NSources) -> Estimate:
        """Estimate the sources of every scene."""
        return self.locate(recording, n_sources)[0]

    @torch.inference_mode()
    def locate(self, recording: Recording, n_sources: NSources) -> tuple[Estimate, Refit | None]:
        """Estimate the sources of every scene.

        Returns:
            The estimate, and what fits other numbers of sources from the same network outputs; none where a
            classical method located a scene.
        """
        spec = self.spec
        if recording.sample_weights is not None or (
            recording.channel is not None
            and not recording.has_coherent_symbols
            and recording.frequencies is None
        ):
            recording = recording.stacked()  # coloured noise is whitened, which changes the channel only
        if missing(spec.weights):
            reason = f"the weights {spec.weights!r} are not installed"
            return _with_fallback(recording, n_sources, reason, spec), None
        network = LoadedNetwork.load(
            spec.weights,
            recording.snapshots.device,
            untrained=spec.hybrid.untrained,
            wave="uniform" if recording.wave == "uniform" else "spherical",
        )
        if spec.panel_error == "auto":
            spec = spec.replace(panel_error=network.card.system.hardware.response_error)
        if recording.sample_weights is not None:
            check_no_calibration(spec)
        mismatch = system_mismatch(network, recording, spec)
        if mismatch is not None:
            reason = f"{_NOT_APPLICABLE.format(spec.weights)}: {mismatch}"
            return _with_fallback(recording, n_sources, reason, spec), None
        return _locate_applicable(
            recording, counts_of(recording, n_sources, Volume.from_spec(spec)), network, spec
        )


def _locate_applicable(
    recording: Recording, count: Int64[Tensor, "S"] | None, network: LoadedNetwork, spec: LocateSpec
) -> tuple[Estimate, Refit | None]:
    """Locate scenes of a system that the weights apply to; single scenes may still need the fallback."""
    grid = searched_grid(recording, spec)
    noise = noise_of(recording)
    mismatch = scene_mismatches(network, snr_db(replace(recording, noise_variance=noise)), count)
    if not mismatch:
        return _fit_and_check(recording, noise, count, network, grid, spec)
    device = recording.snapshots.device
    mismatched = torch.tensor([scene in mismatch for scene in range(len(recording))], device=device)
    applicable, others = (~mismatched).nonzero()[:, 0], mismatched.nonzero()[:, 0]
    parts = []
    if len(applicable):
        known = None if count is None else count[applicable]
        parts.append(_fit_and_check(recording[applicable], noise[applicable], known, network, grid, spec)[0])
    by_fallback = _classical(recording[others], None if count is None else count[others], spec)
    reasons = [f"{_NOT_APPLICABLE.format(spec.weights)}: {mismatch[scene]}" for scene in others.tolist()]
    parts.append(_warned(by_fallback, reasons))
    return join_scenes(parts, [applicable, others]), None


def _fit_and_check(
    recording: Recording,
    noise: Float[Tensor, "S"],
    count: Int64[Tensor, "S"] | None,
    network: LoadedNetwork,
    grid: SearchGrid,
    spec: LocateSpec,
) -> tuple[Estimate, Refit | None]:
    output = NetworkOutput.compute(network, recording, noise, spec)
    if count is None:
        chosen = fit_most_probable(output, grid, spec)
        estimate = from_fit(output.recording, chosen.fit, chosen.probability, grid.volume, spec)
    else:
        estimate = from_fit(
            output.recording, fit_n_sources(output, count, grid, spec), None, grid.volume, spec
        )
    if spec.allowed_error:
        return calibrated(estimate, recording, grid.volume, spec), None

    def refit(scenes: Int64[Tensor, "B"], numbers: Int64[Tensor, "B"]) -> Sources:
        return fit_n_sources(output[scenes], numbers, grid, spec).sources

    return _recheck(estimate, output, count, spec) if spec.polish else estimate, refit


def _recheck(
    estimate: Estimate, output: NetworkOutput, count: Int64[Tensor, "S"] | None, spec: LocateSpec
) -> Estimate:
    """Run SBL too where the p-value rejects the fit, and keep the better fit. NaN rejects nothing."""
    rejected = (estimate.p_value < spec.hybrid.recheck_p_value).nonzero()[:, 0]
    if len(rejected) == 0:
        return estimate
    by_network = estimate[rejected]
    by_sbl = _classical(output.recording[rejected], None if count is None else count[rejected], spec)
    # Likelihoods are comparable for the same number of sources only.
    if count is None:
        better = by_sbl.p_value > by_network.p_value
    else:
        better = by_sbl.neg_log_likelihood < by_network.neg_log_likelihood
    keep = torch.ones_like(estimate.p_value, dtype=torch.bool)
    keep[rejected] = ~better
    kept, replaced = keep.nonzero()[:, 0], rejected[better]
    return join_scenes([estimate[kept], by_sbl[better.nonzero()[:, 0]]], [kept, replaced])


def _with_fallback(recording: Recording, n_sources: NSources, reason: str, spec: LocateSpec) -> Estimate:
    count = counts_of(recording.stacked(), n_sources, Volume.from_spec(spec))
    return _warned(_classical(recording, count, spec), [reason] * len(recording))


def _classical(recording: Recording, count: Int64[Tensor, "S"] | None, spec: LocateSpec) -> Estimate:
    large = recording.has_coherent_symbols or recording.frequencies is not None
    estimator = ClassicalEstimator(spec.replace(method=FALLBACK_LARGE if large else FALLBACK))
    return replace(estimator(recording, "auto" if count is None else count), spec=spec)


def _warned(estimate: Estimate, reasons: list[str]) -> Estimate:
    """The estimate with a warning in each scene that says why the network did not locate it."""
    for reason in dict.fromkeys(reasons):
        _LOG.info("%d scenes not located by the network: %s", reasons.count(reason), reason)
    warnings = [
        [f"located by {method}, not by the network: {reason}", *sentences]
        for method, reason, sentences in zip(estimate.method, reasons, estimate.warnings, strict=True)
    ]
    return replace(estimate, warnings=warnings)


def fit_most_probable(output: NetworkOutput, grid: SearchGrid, spec: LocateSpec) -> SelectedOrder:
    """Select the most probable number of sources, at most ``spec.sources_max``, and fit it.

    The network's probabilities are the prior of the number of sources. They are combined with the evidence of
    each number (:mod:`rismusic.estimation.model_order`). Numbers whose prior is below ``model_order_floor``
    times the highest one are not tried.

    Args:
        output: S scenes.
        grid: the points that are searched.
        spec: the settings.
    """
    scenes = torch.arange(len(output.recording), device=output.log_count.device)
    check_fit(output.recording, torch.zeros_like(scenes), grid.volume)
    identified = most_sources(output.recording, grid.volume)
    most = min(spec.sources_max, identified, output.log_count.shape[1] - 1)
    log_prior_count = output.log_count[:, : most + 1].clone()
    # Numbers below the smallest one of the training get the highest probability of the others.
    not_trained = torch.arange(most + 1, device=scenes.device) < limits(output.card.system.sources)[0]
    highest = log_prior_count.masked_fill(not_trained, -math.inf).amax(-1, keepdim=True)
    log_prior_count = torch.where(not_trained, highest, log_prior_count)
    # With hardware impairments the evidence counts their residual as sources; the network alone decides.
    impaired = spec.hybrid.model_order == "both" and spec.allowed_error > 0
    if spec.hybrid.model_order == "network" or impaired:
        log_prior_count = log_prior_count.masked_fill(not_trained, -math.inf)
        # Without the evidence, the prior is the posterior.
        return SelectedOrder(fit_n_sources(output, log_prior_count.argmax(-1), grid, spec), log_prior_count)
    if spec.hybrid.model_order == "likelihood":
        log_prior_count = torch.zeros_like(log_prior_count)
    else:
        floor = spec.hybrid.model_order_floor
        too_low = log_prior_count < highest + (math.log(floor) if floor else -math.inf)
        log_prior_count = log_prior_count.masked_fill(too_low, -math.inf)
        # The network knows how probable further sources are; the prior of their levels has to add up to 1.
        further = torch.arange(most + 1, device=scenes.device).sub(1).clamp_min(0)
        log_prior_count = log_prior_count + EVIDENCE_WEIGHT * LOG_NORMALISATION * further
    best_posterior = torch.full_like(highest[:, 0], -math.inf)
    # Small tensors cost their operations, not their size: few scenes are fitted with all numbers at once.
    wanted = log_prior_count > -math.inf
    joint = None
    if len(scenes) <= _JOINT_SCENES and bool(wanted[:, 1:].any()):
        joint = _JointFits.compute(output, wanted, grid, spec)

    def fit_count(some: Int64[Tensor, "_"], count: int) -> tuple[Fit, Float[Tensor, "_"]]:
        part = output[some]
        if joint is not None and count > 0:
            fit, evidence = joint.of_count(some, count)
        else:
            fit = _fit_near_network(part, torch.full_like(some, count), grid, spec)
            evidence = log_evidence(part.recording, fit, grid.volume)
        prior, best = log_prior_count[some, count], best_posterior[some]
        # The grid is searched for numbers that can still become the most probable.
        posterior = EVIDENCE_WEIGHT * evidence + prior
        competitive = (posterior > best - _BIRTH_DEATH_MARGIN_NATS).nonzero()[:, 0]
        if len(competitive) and count >= (spec.hybrid.birth_death_min_sources or math.inf):
            improved = _birth_death(part[competitive], fit[competitive], grid, spec)
            fit = fit.replaced(competitive, improved)
            evidence[competitive] = log_evidence(part.recording[competitive], improved, grid.volume)
            posterior = EVIDENCE_WEIGHT * evidence + prior
        best_posterior[some] = torch.maximum(best, posterior)
        return fit, evidence

    samples = output.recording.snapshots.shape[1:].numel()
    selected = select_model_order(scenes, fit_count, most, log_prior_count, samples=samples)
    if spec.hybrid.model_order == "both" and bool(not_trained[0]):
        log_posterior = _with_evidence_of_none(selected.log_posterior, log_prior_count)
        selected = SelectedOrder(selected.fit, log_posterior)
    # Fits of many sources were searched for their evidence already; those of few are if improbable.
    fewer = selected.fit.sources.active.sum(-1) < spec.hybrid.birth_death_min_sources
    to_search = (fewer & _improbable(output, selected.fit, spec)).nonzero()[:, 0]
    if len(to_search) == 0:
        return selected
    improved = _birth_death(output[to_search], selected.fit[to_search], grid, spec)
    return SelectedOrder(selected.fit.replaced(to_search, improved), selected.log_posterior)


def _with_evidence_of_none(
    log_posterior: Float[Tensor, "S counts"], log_prior: Float[Tensor, "S counts"]
) -> Float[Tensor, "S counts"]:
    """The posterior if the network was not trained on scenes without sources, and knows nothing about them.

    Whether there are any sources is then decided by the evidence alone, with the weight 1. The probabilities
    of 1, 2, ... sources keep their ratios.
    """
    some, prior = log_posterior[:, 1:], log_prior[:, 1:].log_softmax(-1)
    evidence = (log_posterior - log_prior) / EVIDENCE_WEIGHT
    of_some = torch.where(some > -math.inf, evidence[:, 1:] + prior, -math.inf).logsumexp(-1)
    none = some.logsumexp(-1) + evidence[:, 0] - of_some
    # Where no source has any evidence, there is none.
    none = torch.where(of_some > -math.inf, none, log_posterior[:, 0])
    return torch.cat((none[:, None], some), dim=-1)


@dataclass(frozen=True, eq=False)
class _JointFits:
    """Fits of S scenes with different numbers of sources, made as one batch.

    Args:
        fit: all of them, padded to the largest number of sources.
        evidence: of each.
        index: number of the fit of each scene with 0, 1, ... sources.
    """

    fit: Fit
    evidence: Float[Tensor, "B"]
    index: Int64[Tensor, "S counts"]

    @classmethod
    def compute(
        cls, output: NetworkOutput, wanted: Bool[Tensor, "S counts"], grid: SearchGrid, spec: LocateSpec
    ) -> _JointFits:
        """Fit the wanted numbers of sources, except 0."""
        wanted = wanted.clone()
        wanted[:, 0] = False
        scenes, count = wanted.nonzero().unbind(-1)
        part = replace(output, recording=_with_shared_link(output.recording))[scenes]
        fit = _fit_near_network(part, count, grid, spec)
        index = wanted.flatten().cumsum(0).view_as(wanted) - 1
        return cls(fit, log_evidence(part.recording, fit, grid.volume), index)

    def of_count(self, scenes: Int64[Tensor, "B"], count: int) -> tuple[Fit, Float[Tensor, "B"]]:
        """Fits and evidence of some scenes with one number of sources."""
        which = self.index[scenes, count]
        fit = self.fit[which]
        return replace(fit, sources=fit.sources.each(lambda value: value[:, :count])), self.evidence[which]


def _with_shared_link(recording: Recording) -> Recording:
    """One scene with a link that its repetitions share; several scenes as they are."""
    if len(recording) > 1:
        return recording
    channel, codes = (
        part if part is None or part.ndim == 2 else part[0] for part in (recording.channel, recording.codes)
    )
    return replace(recording, channel=channel, codes=codes)


def fit_n_sources(
    output: NetworkOutput, count: Int64[Tensor, "S"], grid: SearchGrid, spec: LocateSpec
) -> Fit:
    """Fit K sources to each scene: from the network's outputs, then by birth-death moves over the whole grid.

    Args:
        output: S scenes.
        count: K of each, at most K_max.
        grid: the points that are searched.
        spec: the settings.
    """
    return _birth_death(output, _fit_near_network(output, count, grid, spec), grid, spec)


def _fit_near_network(
    output: NetworkOutput, count: Int64[Tensor, "S"], grid: SearchGrid, spec: LocateSpec
) -> Fit:
    """Fit K sources from the network's outputs: RAP-MUSIC on R_blend, then maximum likelihood."""
    recording = output.recording
    if int(count.max()) == 0:
        return fit_nothing(recording)
    options = _newton_options(spec) if spec.polish else TO_CONVERGENCE
    start, converged = rap_music_sources(
        music(output.blend, count.clamp_min(1)), grid, count, options=options
    )
    if spec.polish:
        return _fit_from_peaks(output, start, grid, spec)
    return complete_fit(recording, *unpack(start, recording), converged, grid.volume)


def _fit_from_peaks(output: NetworkOutput, start: Sources, grid: SearchGrid, spec: LocateSpec) -> Fit:
    """NF-MLE from the likelier of two starts (the MUSIC peaks, the network's sources) and RELAX sweeps.

    Starts are compared after a rough refinement; the better one is refined until convergence.
    """
    recording, volume = output.recording, grid.volume
    positions, active = unpack(start, recording)
    spatial_prior = _weighted_prior(output, spec)
    rough_fit = partial(refine, volume=volume, criterion=spec.criterion, options=_FIRST)
    fit = rough_fit(recording, positions, active)
    if spec.hybrid.network_sources:
        listed = output.network_sources.each(
            lambda value: value[:, : active.shape[1]].masked_fill(~active, math.nan)
        )
        same_number = (listed.active == active).all(-1)
        differs = ~same_positions(pack(fit.positions, active), listed, grid)
        scenes = (same_number & differs).nonzero()[:, 0]
        if len(scenes):
            from_music, there = fit[scenes], active[scenes]
            from_list = rough_fit(recording[scenes], unpack(listed, recording)[0][scenes], there)
            gain = from_music.value - from_list.value
            gain = gain + log_prior(spatial_prior, scenes, from_list.positions, there)
            gain = gain - log_prior(spatial_prior, scenes, from_music.positions, there)
            fit = fit.replaced(scenes[gain > 0], from_list[gain > 0])
    if spec.hybrid.relax_sweeps:
        peaks, fields = output.candidates, output.candidate_fields
        if not spec.hybrid.network_sources:
            peaks = _peaks_of_blend(output, grid, spec)
            fields = received_fields(recording, peaks)
        # Candidates beside the first source again, in place of those beside sources that are not there.
        around = beside(torch.where(active[..., None], fit.positions, fit.positions[:, :1]), grid)
        fields = torch.cat((fields, received_fields(recording, around)), dim=-1)
        fit = relax_sweeps(
            CandidateSearch(grid, recording, torch.cat((peaks, around), dim=1), fields),
            fit,
            active,
            criterion=spec.criterion,
            sweeps=spec.hybrid.relax_sweeps,
            prior=spatial_prior,
        )
    return _converge(output, fit, active, grid, spec)


def _converge(
    output: NetworkOutput, fit: FitState, active: Bool[Tensor, "S K"], grid: SearchGrid, spec: LocateSpec
) -> Fit:
    """NF-MLE until convergence."""
    return nfmle(
        output.recording,
        pack(fit.positions, active),
        grid.volume,
        criterion=spec.criterion,
        options=FitOptions(spec.hybrid.max_evaluations, spec.hybrid.tolerance),
        power_noise=fit.power_noise,
    )


def _birth_death(output: NetworkOutput, fit: Fit, grid: SearchGrid, spec: LocateSpec) -> Fit:
    """Birth-death moves for scenes with many sources, and for those whose sources are improbable."""
    if not spec.polish:
        return fit
    _, L, M = output.recording.snapshots.shape
    count = fit.sources.active.sum(-1)
    wanted = (count >= (spec.hybrid.birth_death_min_sources or math.inf)) | _improbable(output, fit, spec)
    scenes = (wanted & (count < most_sources(output.recording, grid.volume))).nonzero()[:, 0]
    if len(scenes) == 0:
        return fit
    part, old = output[scenes], fit[scenes]
    positions, active = unpack(old.sources, part.recording)
    assert old.sources.power is not None
    power_noise, value = None, L * M * old.cost.log()
    if spec.criterion == "unconditional":
        power_noise = torch.where(active, old.sources.power, 0), old.noise_variance
        value = old.neg_log_likelihood
    new = birth_death(
        GridSearch(Dictionary.of(grid), part.recording),
        FitState(positions, value, old.converged, power_noise),
        active,
        criterion=spec.criterion,
        prior=_weighted_prior(part, spec),
    )
    changed = (new.positions != positions).flatten(1).any(-1).nonzero()[:, 0]
    if len(changed) == 0:
        return fit
    converged = _converge(part[changed], new[changed], active[changed], grid, spec)
    return fit.replaced(scenes[changed], converged)


def _improbable(output: NetworkOutput, fit: Fit, spec: LocateSpec) -> Bool[Tensor, "S"]:
    """Where the spatial prior gives the fitted positions a low probability."""
    if not (
        spec.hybrid.birth_death_min_sources
        and spec.hybrid.birth_death_prior_below
        and spec.hybrid.network_sources
    ):
        return torch.zeros_like(fit.converged)
    positions, active = unpack(fit.sources, output.recording)
    scenes = torch.arange(len(positions), device=active.device)
    return output.spatial_prior(scenes, positions, active) < math.log(spec.hybrid.birth_death_prior_below)


def _weighted_prior(output: NetworkOutput, spec: LocateSpec) -> Prior | None:
    """The spatial prior with its weight; ``None`` if it is not used."""
    weight = spec.hybrid.spatial_prior if spec.hybrid.network_sources else 0.0
    if not weight:
        return None
    return lambda scenes, positions, active: weight * output.spatial_prior(scenes, positions, active)


def _peaks_of_blend(output: NetworkOutput, grid: SearchGrid, spec: LocateSpec) -> Float[Tensor, "S C 3"]:
    """Candidates without the heat map: more peaks of MUSIC on R_blend than there are sources."""
    most = min(spec.hybrid.candidates, output.blend.rank, grid.panel.size - 1)
    count = torch.full((len(output.recording),), most, device=output.log_count.device)
    peaks, _ = rap_music_sources(music(output.blend, count), grid, count, options=_newton_options(spec))
    return unpack(peaks, output.recording)[0]


def _newton_options(spec: LocateSpec) -> NewtonOptions:
    return NewtonOptions(spec.hybrid.newton_steps, each=False)


def same_positions(one: Sources, other: Sources, grid: SearchGrid) -> Bool[Tensor, "S"]:
    """Whether two lists with the same number of sources agree within a grid step, in any order.

    Args:
        one: [S, K], NaN where there is no source.
        other: [S, K], NaN in the same entries.
        grid: defines the step.
    """
    first, second = (
        torch.stack(grid.to_axes(*(value.double() for value in sources.filled())), dim=-1)
        for sources in (one, other)
    )
    near = ((first[:, :, None] - second[:, None]).abs() < first.new_tensor(grid.step)).all(-1)
    there = one.active
    near = near & there[:, :, None] & there[:, None, :]
    return ((near.any(2) & near.any(1)) | ~there).all(-1)
