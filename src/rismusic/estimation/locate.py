"""What all estimators share: the search grid, blocks of scenes, and the classical estimators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from jaxtyping import Int64
from torch import Tensor

from rismusic.array import Panel
from rismusic.estimation.calibration import calibrate, whitened
from rismusic.estimation.estimate import (
    Estimate,
    NSources,
    from_fit,
    join_estimates,
    received_db,
    volume_of,
    warnings_of,
)
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.estimation.locators import count_and_fit, fit_known
from rismusic.estimation.noise import check_fit, noise_of
from rismusic.estimation.sparse import source_count
from rismusic.io import Recording
from rismusic.spec import LocateSpec

# Scenes located in one go, so that memory does not grow with the recording.
_BLOCK = 256


def searched_grid(recording: Recording, spec: LocateSpec) -> SearchGrid:
    """The points that are searched, on the recording's device."""
    elements = recording.elements
    key = elements.cpu().contiguous().numpy().tobytes(), elements.dtype, recording.wavelength
    return _grid(*key, volume_of(spec), spec.oversampling, recording.snapshots.device)


@lru_cache(maxsize=4)
def _grid(
    elements: bytes,
    dtype: torch.dtype,
    wavelength: float,
    volume: Volume,
    oversampling: float,
    device: torch.device,
) -> SearchGrid:
    """Kept with its steering vectors: for a single scene they would take as long as the search."""
    panel = Panel(torch.frombuffer(bytearray(elements), dtype=dtype).view(-1, 3), wavelength)
    return SearchGrid.cover(panel, volume, oversampling).to(device)


def by_blocks(
    recording: Recording, n_sources: NSources, estimator: Callable[[Recording, NSources], Estimate]
) -> Estimate:
    """Run an estimator on some scenes at a time, so that memory does not grow with their number.

    Args:
        recording: S scenes.
        n_sources: one number, one for each scene [S], or ``auto``.
        estimator: called with each block.
    """
    if isinstance(n_sources, Tensor):
        check_fit(recording, n_sources)
    parts = []
    for start in range(0, len(recording), _BLOCK):
        block = slice(start, start + _BLOCK)
        count = n_sources[block] if isinstance(n_sources, Tensor) else n_sources
        parts.append(estimator(recording[block] if len(recording) > _BLOCK else recording, count))
    return join_estimates(parts)


def counts_of(recording: Recording, n_sources: NSources) -> Int64[Tensor, "S"] | None:
    """The number of sources of each scene, checked against what the data can carry; none with ``auto``.

    Raises:
        InputError: see :func:`~rismusic.estimation.noise.check_fit`.
    """
    return None if isinstance(n_sources, str) else source_count(recording, n_sources)


class ClassicalEstimator:
    """The estimators without a network: spectra of the sample covariance, OMP, RELAX and SBL.

    Args:
        spec: method, searched volume and so on.
    """

    def __init__(self, spec: LocateSpec) -> None:
        self.spec = spec

    # The fits are many small operations, each a sixth cheaper without a record for gradients.
    @torch.inference_mode()
    def __call__(self, recording: Recording, n_sources: NSources) -> Estimate:
        """Estimate the sources of every scene."""
        spec, grid = self.spec, searched_grid(recording, self.spec)
        fitted = recording
        if spec.allowed_error:
            # The panel's errors are known by their size at best: what is left of them is fitted as noise.
            fitted = replace(whitened(recording, spec.allowed_error), noise_variance=None)
        count = counts_of(fitted, n_sources)
        if count is None:
            chosen = count_and_fit(fitted, grid, spec)
            fit, probability = chosen.fit, chosen.probability
        else:
            fit, probability = fit_known(fitted, count, grid, spec), None
        estimate = from_fit(fitted, fit, probability, grid.volume, spec)
        return calibrated(estimate, recording, grid.volume, spec) if spec.allowed_error else estimate


def calibrated(estimate: Estimate, recording: Recording, volume: Volume, spec: LocateSpec) -> Estimate:
    """Refine what was located in whitened snapshots along with the responses of the panel's elements.

    Args:
        estimate: in ``recording``, whitened.
        recording: as recorded.
        volume: that was searched.
        spec: the settings; ``panel_error`` a positive number.
    """
    found, noise = estimate.sources, noise_of(recording).double()
    covariance, converged = estimate.covariance, torch.ones_like(noise, dtype=torch.bool)
    if spec.polish and found.azimuth.shape[1]:
        fit = calibrate(recording, found, volume, panel_error=spec.allowed_error)
        found, covariance, converged = fit.sources, fit.covariance, fit.converged
    std = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    return replace(
        estimate,
        sources=found,
        covariance=covariance,
        snr_db=received_db(recording, found, noise),
        noise_variance=noise,
        warnings=warnings_of(found, std, converged, volume),
    )
