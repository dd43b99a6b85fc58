"""All locators: how each finds so many sources, and how their number is found with it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.covariance import recording_covariance
from rismusic.estimation.grid import SearchGrid
from rismusic.estimation.maximum_likelihood import Fit, finish, nfmle, unpack
from rismusic.estimation.model_order import SelectedOrder, log_evidence, select_model_order
from rismusic.estimation.noise import check_fit, most_sources, noise_of
from rismusic.estimation.search import GridSearch
from rismusic.estimation.sparse import Starts, Strategy, by_blocks, locate_sparse
from rismusic.estimation.spectra import (
    TO_CONVERGENCE,
    NewtonOptions,
    Spectrum,
    SpectrumMethod,
    bartlett,
    music,
    mvdr,
    rap_music,
    soft_music,
)
from rismusic.io import Recording
from rismusic.registry import SPECTRA
from rismusic.sources import Sources
from rismusic.spec import LocateSpec

MUSIC = SpectrumMethod(music)
SOFT_MUSIC = SpectrumMethod(soft_music)
MVDR = SpectrumMethod(lambda covariance, _: mvdr(covariance), subspace=False, shrink=True)
BARTLETT = SpectrumMethod(lambda covariance, _: bartlett(covariance), subspace=False)

# (peaks of a map as a second start, exchanges)
SPARSE: dict[str, tuple[bool, bool]] = {
    "omp": (False, False),
    "relax": (False, True),
    "sbl": (True, False),
    "best": (True, True),
}
LOCATORS = ("music", "soft_music", "mvdr", "bartlett", *SPARSE)
"""The built-in methods that need no network."""


def spectrum_method(name: str) -> SpectrumMethod:
    """The spectrum of that name.

    Raises:
        InputError: no spectrum has this name.
    """
    return SpectrumMethod.of(SPECTRA.get(name))


def fit_known(recording: Recording, count: Int64[Tensor, "S"], grid: SearchGrid, spec: LocateSpec) -> Fit:
    """Fit so many sources to each scene by the method of the settings.

    Args:
        recording: S scenes.
        count: K of each scene, within what the data can carry.
        grid: the points that are searched.
        spec: method, criterion, polish.
    """
    if int(count.max()) == 0:
        return nothing(recording)
    if spec.method in SPARSE:
        return locate_sparse(recording, count, grid, _strategy(spec))
    return _fit_spectral(recording, count, grid, spec)


def count_and_fit(recording: Recording, grid: SearchGrid, spec: LocateSpec) -> SelectedOrder:
    """Fit the most probable number of sources, at most ``spec.sources_max``, to each scene."""
    _, L, M = recording.snapshots.shape
    scenes = torch.arange(len(recording), device=recording.snapshots.device)
    check_fit(recording, torch.zeros_like(scenes))
    most = min(spec.sources_max, most_sources(L, M))
    if spec.method not in SPARSE and spectrum_method(spec.method).subspace:
        most = min(most, L)  # the rank of R_samp, and so of the subspaces that there are

    def told(part: Recording, fit: Fit) -> tuple[Fit, Float[Tensor, "_"]]:
        return fit, log_evidence(part, fit, grid.volume)

    if spec.method not in SPARSE:

        def one(scenes: Int64[Tensor, "_"], count: int) -> tuple[Fit, Float[Tensor, "_"]]:
            part = recording[scenes]
            return told(part, fit_known(part, torch.full_like(scenes, count), grid, spec))

        return select_model_order(scenes, one, most)

    strategy, evidence = _strategy(spec), []

    def block(search: GridSearch, place: slice) -> Fit:
        here = scenes[: len(scenes[place])]
        starts = Starts.prepare(search, torch.full_like(here, most), strategy)

        def one(scenes: Int64[Tensor, "_"], count: int) -> tuple[Fit, Float[Tensor, "_"]]:
            if count == 0:
                return told(search.recording, nothing(search.recording))
            some = starts[scenes]
            return told(some.search.recording, some.fit(torch.full_like(scenes, count), strategy))

        chosen = select_model_order(here, one, most)
        evidence.append(chosen.log_evidence)
        return chosen.fit

    fit = by_blocks(recording, grid, block)
    return SelectedOrder(fit, torch.cat(evidence))


def _strategy(spec: LocateSpec) -> Strategy:
    maps, exchanges = SPARSE[spec.method]
    return Strategy(maps=maps, exchanges=exchanges, criterion=spec.criterion)


def nothing(recording: Recording) -> Fit:
    """The fit of no source at all: everything is noise."""
    scenes, device = len(recording), recording.snapshots.device
    positions = torch.ones(scenes, 1, 3, dtype=torch.float64, device=device)
    absent = torch.zeros(scenes, 1, dtype=torch.bool, device=device)
    return finish(recording, positions, absent, torch.ones_like(absent[:, 0]))


def _fit_spectral(recording: Recording, count: Int64[Tensor, "S"], grid: SearchGrid, spec: LocateSpec) -> Fit:
    """Sources in turn from a spectrum of R_samp, Newton, and NF-MLE if that is wanted.

    For spectra that invert R_samp it is shrunk towards the identity.
    """
    method = spectrum_method(spec.method)
    covariance = recording_covariance(recording, noise_of(recording), oracle=method.shrink)
    start, converged = rap_music_sources(method.function(covariance, count.clamp_min(1)), grid, count)
    if spec.polish:
        return nfmle(recording, start, grid.volume, criterion=spec.criterion)
    return finish(recording, *unpack(start, recording), converged)


def rap_music_sources(
    spectrum: Spectrum, grid: SearchGrid, count: Int64[Tensor, "S"], *, climb: NewtonOptions = TO_CONVERGENCE
) -> tuple[Sources, Bool[Tensor, "S"]]:
    """So many peaks of each scene's spectrum, found in turn and climbed by Newton.

    Args:
        spectrum: of each scene.
        grid: the points that are searched.
        count: K of each scene.
        climb: how far each climb goes.

    Returns:
        Positions [S, K_max] in float64, NaN in empty places, and where Newton came to rest.
    """
    most = max(1, int(count.max()))
    # Visiting sources again pays on exact covariances only (measured).
    found = rap_music(spectrum, grid, most, visits=0, climb=climb)
    absent = torch.arange(most, device=count.device) >= count[:, None]
    places = Sources(azimuth=found.azimuth, elevation=found.elevation, range=found.range)
    places = places.each(lambda value: value.double().masked_fill(absent, math.nan))
    return places, (found.converged | absent).all(-1)
