r"""Estimators without a network: spectra of the sample covariance, OMP, RELAX and SBL.

All of them end in near-field maximum likelihood (NF-MLE) on the raw snapshots. They differ in its starts:

=================================  =========================================================================
method                             start of the fit
=================================  =========================================================================
``music``, ``soft_music``,         RAP-MUSIC on that spectrum of R_samp
``mvdr``, ``bartlett``
``omp``                            greedy search of the grid, with a joint re-fit after each source
``relax``                          the same; then each source is removed, searched again and re-fitted
``sbl``                            the likelier of OMP and the best peaks of a sparse Bayesian power map
``best``                           both starts of ``sbl`` as in ``relax``; the likelier with more places
=================================  =========================================================================

With an unknown number of sources, fits with 0, 1, 2, ... sources are compared by their evidence
(:mod:`rismusic.estimation.model_order`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.batch import choose, concatenate
from rismusic.covariance import Covariance, recording_covariance
from rismusic.devices import blocks
from rismusic.errors import InputError
from rismusic.estimation.calibration import calibrate, whitened
from rismusic.estimation.estimate import Estimate, NSources, from_fit, received_db, warnings_of, without_held
from rismusic.estimation.grid import SearchGrid, Volume, searched_grid
from rismusic.estimation.maximum_likelihood import (
    ROUGH,
    Criterion,
    Fit,
    FitState,
    better,
    complete_fit,
    neg_log_likelihood,
    nfmle,
    refine,
    refine_correlated,
    unpack,
)
from rismusic.estimation.model_order import SelectedOrder, log_evidence, select_model_order
from rismusic.estimation.noise import check_fit, most_sources, noise_of
from rismusic.estimation.pairs import can_search_pairs, pair_sweeps
from rismusic.estimation.relax import omp_path, relax_sweeps
from rismusic.estimation.sbl import sbl_peaks
from rismusic.estimation.search import Dictionary, GridSearch, project_out
from rismusic.estimation.spectra import (
    Spectrum,
    SpectrumMethod,
    bartlett,
    music,
    mvdr,
    rap_music_sources,
    soft_music,
)
from rismusic.io import Recording
from rismusic.registry import SPECTRA, plugin_errors
from rismusic.spec import LocateSpec

# Peaks of the SBL map beyond the number of sources, among which these are searched, and how many subsets of
# them are fitted.
_MORE_PEAKS, _REFINED_SUBSETS = 3, 3

_LARGEST_NORM = 1.001  # of V, beyond which |V^H a| exceeds 1 by more than rounding

MUSIC = SpectrumMethod(music)
SOFT_MUSIC = SpectrumMethod(soft_music)
MVDR = SpectrumMethod(lambda covariance, _: mvdr(covariance), subspace=False, shrink=True)
BARTLETT = SpectrumMethod(lambda covariance, _: bartlett(covariance), subspace=False)


@dataclass(frozen=True)
class Strategy:
    """How a search of the grid prepares the fit."""

    sbl: bool  # whether peaks of a sparse Bayesian power map are a second start beside OMP
    relax: bool  # whether RELAX sweeps improve each start before the last refinement
    criterion: Criterion = "conditional"  # of search, sweeps and refinement; starts compare unconditionally
    sweeps: int = 4  # of RELAX, at most
    places: int = 1  # of each source, that RELAX compares from the likelier of both ends
    iterations: int = 15  # of the SBL fixed point


STRATEGIES = {
    "omp": Strategy(sbl=False, relax=False),
    "relax": Strategy(sbl=False, relax=True),
    "sbl": Strategy(sbl=True, relax=False),
    "best": Strategy(sbl=True, relax=True, places=4),
}


class ClassicalEstimator:
    """One of the methods above, with its search volume and settings."""

    def __init__(self, spec: LocateSpec) -> None:
        self.spec = spec

    # Fits are many small operations, each a sixth cheaper when autograd records nothing.
    @torch.inference_mode()
    def __call__(self, recording: Recording, n_sources: NSources) -> Estimate:
        """Estimate the sources of every scene."""
        spec, grid = self.spec, searched_grid(recording, self.spec)
        fitted = recording = recording.stacked()
        if spec.allowed_error:
            if recording.is_stacked and (recording.link.coherent or recording.frequencies is not None):
                raise InputError(
                    "panel_error", "must be 0 for constant or known symbols and for wideband recordings"
                )
            # Only the size of the hardware errors is known: what the whitening leaves is fitted as noise.
            fitted = replace(whitened(recording, spec.allowed_error), noise_variance=None)
        if fitted.link.pilots is not None:
            return from_fit(fitted, fit_known_symbols(fitted, n_sources, grid, spec), None, grid.volume, spec)
        count = counts_of(fitted, n_sources, grid.volume)
        if count is None:
            selected = fit_unknown(fitted, grid, spec)
            if spec.polish:
                selected = with_fewer_sources(fitted, selected, grid.volume, spec.criterion)
            fit, probability = selected.fit, selected.probability
        else:
            fit, probability = fit_known(fitted, count, grid, spec), None
        estimate = from_fit(fitted, fit, probability, grid.volume, spec)
        return calibrated(estimate, recording, grid.volume, spec) if spec.allowed_error else estimate


def counts_of(recording: Recording, n_sources: NSources, volume: Volume) -> Int64[Tensor, "S"] | None:
    """The number of sources of each scene, as :func:`check_fit` accepts it; ``None`` for ``auto``."""
    if isinstance(n_sources, str):
        return None
    if isinstance(n_sources, int):
        n_sources = torch.full((len(recording),), n_sources, device=recording.snapshots.device)
    check_fit(recording, n_sources, volume)
    return n_sources


def fit_known(recording: Recording, count: Int64[Tensor, "S"], grid: SearchGrid, spec: LocateSpec) -> Fit:
    """Fit a given number of sources to each scene."""
    if int(count.max()) == 0:
        return fit_nothing(recording)
    if spec.method in STRATEGIES:
        return fit_from_search(recording, count, grid, strategy_of(spec))
    return fit_from_spectrum(recording, count, grid, spec)


def fit_unknown(recording: Recording, grid: SearchGrid, spec: LocateSpec) -> SelectedOrder:
    """Fit the most probable number of sources, at most ``spec.sources_max``, to each scene."""
    scenes = torch.arange(len(recording), device=recording.snapshots.device)
    check_fit(recording, torch.zeros_like(scenes), grid.volume)
    most = min(spec.sources_max, most_sources(recording, grid.volume))
    if spec.method in STRATEGIES:
        return _search_unknown(recording, grid, most, strategy_of(spec))
    most = min(most, recording.panel.size - 1)
    if spectrum_method(spec.method).subspace:
        # The rank of R_samp; that of coherent symbols is 1 beside a panel error.
        most = min(most, recording.snapshots.shape[1], recording.subcarrier().snapshots.shape[1])

    def fit(some: Int64[Tensor, "_"], count: int) -> tuple[Fit, Float[Tensor, "_"]]:
        part = recording[some]
        one = fit_known(part, torch.full_like(some, count), grid, spec)
        return one, log_evidence(part, one, grid.volume)

    return select_model_order(scenes, fit, most, samples=recording.snapshots.shape[1:].numel())


def with_fewer_sources(
    recording: Recording, selected: SelectedOrder, volume: Volume, criterion: Criterion
) -> SelectedOrder:
    """Leave out the weakest source, and fit the others, as long as that has more evidence.

    The search with fewer sources may have ended at another maximum of the likelihood, which one more source
    made up for.
    """
    fit, log_posterior = selected.fit, selected.log_posterior.clone()
    left = (fit.sources.active.sum(-1) > 1).nonzero()[:, 0]
    while len(left):
        part, found = recording[left], fit[left].sources
        assert found.power is not None
        strength = torch.where(found.active, found.power, torch.inf)
        weakest = torch.zeros_like(found.active).scatter(1, strength.argmin(-1, keepdim=True), True)
        start = replace(found, symbols=None).each(partial(torch.masked_fill, mask=weakest, value=math.nan))
        one = nfmle(part, start, volume, criterion=criterion)
        posterior = log_evidence(part, one, volume)
        more = found.active.sum(-1)
        before = log_posterior[left, more - 1]
        log_posterior[left, more - 1] = torch.maximum(before, posterior)
        wins = posterior > log_posterior[left, more]
        left = left[wins]
        fit = fit.replaced(left, one[wins])
        left = left[more[wins] > 2]
    return SelectedOrder(fit, log_posterior)


def fit_known_symbols(recording: Recording, n_sources: NSources, grid: SearchGrid, spec: LocateSpec) -> Fit:
    """Fit the sources whose pilots are known, one for each column of the pilots.

    The sources are searched in turn, each with its own pilots, in what the others leave of the data, and all
    are fitted together after each turn. Two rounds are made from each source as the first one, and the
    likeliest result is kept: the source that is searched first may be lost in the field of the others.
    """
    pilots = recording.link.pilots
    assert pilots is not None
    S, K = len(recording), pilots.shape[-1]
    given = None if isinstance(n_sources, str) else torch.as_tensor(n_sources)
    if given is not None and bool((given != K).any()):
        other = int(given[given != K].flatten()[0])
        raise InputError("sources", f"must be the number of pilots, {K}, or auto; got {other}")
    check_fit(recording, torch.full((S,), K, device=recording.snapshots.device), grid.volume)
    fits = []
    for block, dictionary in _search_blocks(recording, grid):
        part = recording[block]
        scenes = torch.arange(len(part), device=part.snapshots.device)
        searches = [GridSearch(dictionary, part, part.link.for_pilots(k)) for k in range(K)]
        best: FitState | None = None
        for first in range(K):
            positions = torch.ones(len(part), K, 3, dtype=torch.float64, device=scenes.device)
            active = torch.zeros(len(part), K, dtype=torch.bool, device=scenes.device)
            for turn in range(first, first + 2 * K if K > 1 else 1):
                k = turn % K
                others = active.clone()
                others[:, k] = False
                positions[:, k] = searches[k].place(scenes, project_out(part, positions, others))
                active[:, k] = True
                fit = refine(part, positions, active, grid.volume, criterion="conditional", options=ROUGH)
                positions = fit.positions
            best = fit if best is None else choose(fit.value < best.value, best, fit)
        assert best is not None  # there is a pilot
        positions = best.positions
        end = refine(part, positions, active, grid.volume, criterion=spec.criterion)
        fits.append(complete_fit(part, end.positions, active, end.converged, grid.volume))
    return concatenate(fits)


def fit_nothing(recording: Recording) -> Fit:
    """The fit without sources: all of the data is noise."""
    scenes, device = len(recording), recording.snapshots.device
    positions = torch.ones(scenes, 1, 3, dtype=torch.float64, device=device)
    absent = torch.zeros(scenes, 1, dtype=torch.bool, device=device)
    return complete_fit(recording, positions, absent, torch.ones_like(absent[:, 0]), None)


def calibrated(estimate: Estimate, recording: Recording, volume: Volume, spec: LocateSpec) -> Estimate:
    """Refine an estimate from whitened snapshots jointly with the responses of the panel's elements."""
    sources, noise = estimate.sources, noise_of(recording).double()
    covariance, converged = estimate.covariance, torch.ones_like(noise, dtype=torch.bool)
    inverse_range_std = estimate.inverse_range_std
    if spec.polish and sources.azimuth.shape[1]:
        fit = calibrate(recording, sources, volume, panel_error=spec.allowed_error)
        sources, converged = fit.sources, fit.converged
        covariance = without_held(fit.covariance, sources.active, spec)
        inverse_range_std = fit.inverse_range_std
    std = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    snr_db = received_db(recording, sources, noise)
    return replace(
        estimate,
        sources=sources,
        covariance=covariance,
        inverse_range_std=inverse_range_std,
        snr_db=snr_db,
        noise_variance=noise,
        warnings=warnings_of(sources, std, converged, volume, snr_db),
    )


# --- Spectra of the sample covariance ---


def spectrum_method(name: str) -> SpectrumMethod:
    """The registered spectrum of that name."""
    return SpectrumMethod.of(SPECTRA.get(name))


def spectrum_of(name: str, covariance: Covariance, n_sources: Int64[Tensor, "S"]) -> Spectrum:
    """The spectrum of that name. What is wrong with one of a user's own is said as such."""
    function = spectrum_method(name).function
    if SPECTRA.is_builtin(name):
        return function(covariance, n_sources)
    with plugin_errors("spectrum", name):
        spectrum = function(covariance, n_sources)
    vectors = getattr(spectrum, "vectors", None)
    if not isinstance(spectrum, Spectrum) or not isinstance(vectors, Tensor):
        got = type(spectrum).__name__
        raise InputError("method", f"the spectrum {name!r} must return a rismusic.Spectrum; got {got}")
    S, N = len(n_sources), covariance.size
    if vectors.ndim != 3 or vectors.shape[:2] != (S, N):
        raise InputError(
            "method",
            f"the spectrum {name!r} must have vectors V of shape [S, N, C], [{S}, {N}, C]; got "
            f"{list(vectors.shape)}",
        )
    largest = float(torch.linalg.matrix_norm(vectors.detach(), 2).max()) if vectors.numel() else 0.0
    if not spectrum.sharp or largest <= _LARGEST_NORM:
        return spectrum
    raise InputError(
        "method",
        f"the spectrum {name!r} has |V^H a|^2 up to {largest**2:.3g} for vectors a of unit norm, but a sharp "
        "spectrum needs at most 1: make the columns of V orthonormal, or divide V by its largest singular "
        "value",
    )


def fit_from_spectrum(
    recording: Recording, count: Int64[Tensor, "S"], grid: SearchGrid, spec: LocateSpec
) -> Fit:
    """RAP-MUSIC on a spectrum of R_samp, then NF-MLE unless ``spec.polish`` is off.

    For spectra that invert R_samp, it is shrunk towards the identity.
    """
    method = spectrum_method(spec.method)
    seen = recording.subcarrier()
    covariance = recording_covariance(seen, noise_of(recording), full_shrinkage=method.shrink)
    if seen.panel.subcarriers != recording.panel.subcarriers:
        grid = replace(grid, panel=seen.panel)
    start, converged = rap_music_sources(
        spectrum_of(spec.method, covariance, count.clamp_min(1)), grid, count
    )
    if spec.polish:
        return nfmle(recording, start, grid.volume, criterion=spec.criterion)
    return complete_fit(recording, *unpack(start, recording), converged, grid.volume)


# --- Searches of the grid with the likelihood: OMP, RELAX, SBL ---


def strategy_of(spec: LocateSpec) -> Strategy:
    """The strategy of the settings' method, with the settings' likelihood."""
    return replace(STRATEGIES[spec.method], criterion=spec.criterion)


def fit_from_search(
    recording: Recording, count: Int64[Tensor, "S"], grid: SearchGrid, strategy: Strategy
) -> Fit:
    """Fit a given number of sources to each scene, from starts that a search of the grid finds."""
    fits = []
    for block, dictionary in _search_blocks(recording, grid):
        starts = Starts.prepare(GridSearch(dictionary, recording[block]), count[block], strategy)
        fits.append(starts.fit(count[block], strategy))
    return concatenate(fits)


def _search_unknown(recording: Recording, grid: SearchGrid, most: int, strategy: Strategy) -> SelectedOrder:
    """The most probable number of sources of each scene, up to ``most``."""
    selected = []
    for block, dictionary in _search_blocks(recording, grid):
        part = recording[block]
        scenes = torch.arange(len(part), device=part.snapshots.device)
        starts = Starts.prepare(GridSearch(dictionary, part), torch.full_like(scenes, most), strategy)

        def fit(
            some: Int64[Tensor, "_"], count: int, starts: Starts = starts
        ) -> tuple[Fit, Float[Tensor, "_"]]:
            here = starts[some]
            data = here.search.recording
            one = here.fit(torch.full_like(some, count), strategy) if count else fit_nothing(data)
            return one, log_evidence(data, one, grid.volume)

        samples = part.snapshots.shape[1:].numel()
        selected.append(select_model_order(scenes, fit, most, samples=samples))
    return concatenate(selected)


@dataclass(frozen=True, eq=False)
class Starts:
    """Starts of the fits of S scenes, for any number of sources up to a largest one."""

    search: GridSearch
    path: Float[Tensor, "S K K 3"]  # OMP after each source: row K - 1 holds K of them
    peaks: Float[Tensor, "S C 3"]  # highest first, of the SBL map; none where there is none

    @classmethod
    def prepare(cls, search: GridSearch, count: Int64[Tensor, "S"], strategy: Strategy) -> Starts:
        """Compute the starts for up to ``count`` sources in each scene."""
        path = omp_path(search, count, strategy.criterion)
        peaks = path[:, 0, :0]
        if strategy.sbl:
            positions, active = _step_of(path, count)
            converged = torch.ones_like(active[:, 0])
            first = complete_fit(search.recording, positions, active, converged, search.grid.volume)
            number = min(path.shape[1] + _MORE_PEAKS, len(search.dictionary))
            if number >= path.shape[1]:
                peaks = sbl_peaks(search, first.noise_variance, number, iterations=strategy.iterations)
        return cls(search, path, peaks)

    def __getitem__(self, scenes: Int64[Tensor, "_"]) -> Starts:
        """The starts of some scenes."""
        return Starts(self.search[scenes], self.path[scenes], self.peaks[scenes])

    def fit(self, count: Int64[Tensor, "S"], strategy: Strategy) -> Fit:
        """The likelier of the fits from all starts, with ``count`` sources in each scene."""
        positions, active = _step_of(self.path, count)
        thorough = strategy.sbl or strategy.relax
        fit = self._fit(positions, active, strategy, pairs=thorough and can_search_pairs(self.search))
        if self.peaks.shape[1]:
            best = positions.clone()
            for K in count[(count > 0) & (count <= self.peaks.shape[1])].unique().tolist():
                scenes = (count == K).nonzero()[:, 0]
                best[scenes, :K] = self._best_peaks(scenes, K, strategy.criterion)
            fit = better(fit, self._fit(best, active, strategy))
        if strategy.places > 1:
            at = unpack(fit.sources, self.search.recording)[0]
            fit = better(fit, self._fit(at, active, strategy, places=strategy.places))
        return fit

    def _best_peaks(self, scenes: Int64[Tensor, "B"], K: int, criterion: Criterion) -> Float[Tensor, "B K 3"]:
        """The likeliest subset of K of the K + 3 highest peaks, after rough fits of three of them.

        The K highest peaks need not be those of the sources: with few snapshots, or a channel of low rank, a
        source has several.
        """
        recording = self.search.recording
        candidates = self.peaks[scenes, : K + _MORE_PEAKS]
        # torch.combinations makes a table of all index tuples, 12^9 for nine sources.
        subsets = torch.tensor(
            list(itertools.combinations(range(candidates.shape[1]), K)), device=scenes.device
        )
        trials = candidates[:, subsets].flatten(0, 1)  # [B, K, 3]
        many = scenes.repeat_interleave(len(subsets))
        there = torch.ones(trials.shape[:2], dtype=torch.bool, device=scenes.device)
        value = neg_log_likelihood(recording[many], trials, there, criterion).view(len(scenes), -1)
        value[:, 0] = -math.inf  # the highest peaks, however unlikely beside their maxima off the grid
        few = value.topk(min(_REFINED_SUBSETS, len(subsets)), dim=1, largest=False).indices
        rows = (torch.arange(len(scenes), device=scenes.device)[:, None] * len(subsets) + few).flatten()
        fit = refine(
            recording[many[rows]],
            trials[rows],
            there[rows],
            self.search.grid.volume,
            criterion=criterion,
            options=ROUGH,
        )
        least = fit.value.view(len(scenes), -1).argmin(1)
        return fit.positions.unflatten(0, (len(scenes), -1))[range(len(scenes)), least]

    def _fit(
        self,
        positions: Float[Tensor, "S C 3"],
        active: Bool[Tensor, "S C"],
        strategy: Strategy,
        pairs: bool = False,
        places: int = 1,
    ) -> Fit:
        recording, volume = self.search.recording, self.search.dictionary.grid.volume
        fit = refine(recording, positions, active, volume, criterion=strategy.criterion)
        if strategy.relax:
            fit = relax_sweeps(
                self.search,
                fit,
                active,
                criterion=strategy.criterion,
                sweeps=strategy.sweeps,
                places=places,
            )
        if pairs:
            fit = pair_sweeps(self.search, fit, active, criterion=strategy.criterion, sweeps=strategy.sweeps)
        if strategy.relax or pairs:
            fit = refine(recording, fit.positions, active, volume, criterion=strategy.criterion)
        if recording.symbols == "correlated" and strategy.criterion == "unconditional":
            fit = refine_correlated(recording, fit, active, volume)
        return complete_fit(recording, fit.positions, active, fit.converged, volume)


def _step_of(
    path: Float[Tensor, "S K K 3"], count: Int64[Tensor, "S"]
) -> tuple[Float[Tensor, "S C 3"], Bool[Tensor, "S C"]]:
    """The step of the OMP path with ``count`` sources, and a mask of them (C, the largest number)."""
    most = max(1, int(count.max()))
    step = path[torch.arange(len(path), device=path.device), (count - 1).clamp_min(0), :most]
    return step, torch.arange(most, device=path.device) < count[:, None]


def _search_blocks(recording: Recording, grid: SearchGrid) -> Iterator[tuple[slice, Dictionary]]:
    """Blocks of scenes. A search keeps the energies of all points, and the snapshots twice in float64."""
    panel = recording.panel
    same = grid.panel.size == panel.size and grid.panel.wavelength == panel.wavelength
    if not (same and grid.panel.same_model(panel)):
        raise InputError("grid", f"covers {grid.panel}, but the recording's panel is {panel}")
    dictionary, (_, L, M) = Dictionary.of(grid), recording.snapshots.shape
    each = 4 * L * len(dictionary) + 32 * L * M
    for block in blocks(len(recording), each, recording.snapshots.device):
        yield block, dictionary
