"""What all locators share: the searched grid, blocks of scenes, error bars and warnings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.array import Panel
from rismusic.crb import unconditional_crb
from rismusic.estimation.calibration import calibrate, whitened
from rismusic.estimation.goodness_of_fit import at_search_limit, goodness_of_fit
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.estimation.locators import count_and_fit, fit_known
from rismusic.estimation.maximum_likelihood import Fit
from rismusic.estimation.noise import noise_of
from rismusic.estimation.sparse import source_count
from rismusic.io import Recording
from rismusic.sources import Sources
from rismusic.spec import LocateSpec
from rismusic.units import to_db

# Scenes located in one go, so that memory does not grow with the recording.
_BLOCK = 256


@dataclass(frozen=True, eq=False, kw_only=True)
class Located:
    """Sources found in S scenes, the strongest first, with error bars.

    Args:
        sources: azimuth (rad), elevation (rad), range (m) and power of up to K_max sources, [S, K_max]; NaN
            where there is none.
        covariance: [S, K_max, 3, 3] of the errors of azimuth (rad), elevation (rad) and range (m) of each
            source: the unconditional Cramer-Rao bound at the estimate, or that with the panel's errors
            unknown (:mod:`rismusic.estimation.calibration`). Infinite where the data cannot tell.
        snr_db: [S, K_max] received power of each source over the noise variance, dB.
        noise_variance: [S] as recorded, or estimated where it is not.
        likelihood: [S] minus the unconditional log-likelihood of the scene, nats.
        count_probability: [S, sources_max + 1] of 0, 1, ... sources, all equally probable beforehand; none
            where their number was given.
        p_value: [S] probability that sources which explain the data leave as much as these do (noise variance
            known), or something as far from white noise (not known); see
            :mod:`rismusic.estimation.goodness_of_fit`. NaN where the data cannot tell, and where the panel may err.
        warnings: what a user should know about each scene, sentences.
        spec: the settings that led here.
    """

    sources: Sources
    covariance: Float[Tensor, "S K 3 3"]
    snr_db: Float[Tensor, "S K"]
    noise_variance: Float[Tensor, "S"]
    likelihood: Float[Tensor, "S"]
    count_probability: Float[Tensor, "S counts"] | None
    p_value: Float[Tensor, "S"]
    warnings: list[list[str]]
    spec: LocateSpec

    @property
    def std(self) -> Float[Tensor, "S K 3"]:
        """Standard deviations of azimuth (rad), elevation (rad) and range (m)."""
        return self.covariance.diagonal(dim1=-2, dim2=-1).sqrt()

    def __getitem__(self, scenes: slice | Tensor) -> Located:
        """What was located in some of the scenes."""
        numbers = torch.arange(len(self.warnings))[scenes]
        return self._each(lambda value: value[scenes], [self.warnings[scene] for scene in numbers.tolist()])

    def cloned(self) -> Located:
        """A copy, of tensors that may take part in a computation of gradients."""
        return self._each(torch.clone, self.warnings)

    def _each(self, change: Callable[[Tensor], Tensor], warnings: list[list[str]]) -> Located:
        told = self.count_probability
        return replace(
            self,
            sources=self.sources.each(change),
            covariance=change(self.covariance),
            snr_db=change(self.snr_db),
            noise_variance=change(self.noise_variance),
            likelihood=change(self.likelihood),
            count_probability=None if told is None else change(told),
            p_value=change(self.p_value),
            warnings=warnings,
        )


def searched_volume(spec: LocateSpec) -> Volume:
    """The volume that the settings name."""
    return Volume(
        math.radians(spec.azimuth_max_deg),
        math.radians(spec.elevation_max_deg),
        spec.range_min_m,
        spec.range_max_m,
    )


def searched_grid(recording: Recording, spec: LocateSpec) -> SearchGrid:
    """The points that are searched, on the recording's device."""
    elements = recording.elements
    key = elements.cpu().contiguous().numpy().tobytes(), elements.dtype, recording.wavelength
    return _grid(*key, searched_volume(spec), spec.oversampling, recording.snapshots.device)


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
    recording: Recording,
    count: Int64[Tensor, "S"] | None,
    one: Callable[[Recording, Int64[Tensor, "_"] | None], Located],
) -> Located:
    """All scenes of a recording, some at a time, so that memory does not grow with their number.

    Args:
        recording: S scenes.
        count: K of each scene; none where the settings say it.
        one: locates the sources of a block of scenes.
    """
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(recording), _BLOCK)]
    return joined([one(recording[block], None if count is None else count[block]) for block in blocks])


def locate_classically(
    recording: Recording, count: Int64[Tensor, "S"] | None, *, grid: SearchGrid, spec: LocateSpec
) -> Located:
    """One block of scenes by a method that no network has a part in."""
    fitted = recording
    if spec.allowed_error:
        # How much the panel errs is roughly known at best: what is left is fitted as noise.
        fitted = replace(whitened(recording, spec.allowed_error), noise_variance=None)
    if count is None and spec.sources == "auto":
        chosen = count_and_fit(fitted, grid, spec)
        located = told(fitted, chosen.fit, chosen.probability, grid.volume, spec)
    else:
        count = source_count(fitted, int(spec.sources) if count is None else count)
        located = told(fitted, fit_known(fitted, count, grid, spec), None, grid.volume, spec)
    return calibrated(located, recording, grid.volume, spec) if spec.allowed_error else located


def told(
    recording: Recording,
    fit: Fit,
    count_probability: Float[Tensor, "S counts"] | None,
    volume: Volume,
    spec: LocateSpec,
) -> Located:
    """Order by power, add error bars and received power, and say what a user should know."""
    found = fit.sources
    assert found.power is not None
    order = torch.where(found.active, found.power, -torch.inf).argsort(dim=-1, descending=True)
    found = found.each(lambda value: value.take_along_dim(_like(order, value), dim=1))
    # With fitted symbols the conditional bound would be too small: they carry noise of their own.
    L = recording.snapshots.shape[-2]
    bound = unconditional_crb(recording.panel, recording.link, found, fit.noise_variance, snapshots=L)
    warnings = _warnings(found, bound.std, fit.converged, volume)
    p_value = torch.full_like(fit.likelihood, math.nan)
    if not spec.allowed_error:  # else what sources leave is meant to be more than noise
        fits = goodness_of_fit(recording, found, volume)
        p_value = fits.p_value
        for scene, said in enumerate(warnings):
            if (sentence := fits.sentence(scene)) is not None:
                said.append(sentence)
    return Located(
        sources=replace(found, symbols=None),
        covariance=bound.per_source,
        snr_db=_received_db(recording, found, fit.noise_variance),
        noise_variance=fit.noise_variance,
        likelihood=fit.likelihood,
        count_probability=count_probability,
        p_value=p_value,
        warnings=warnings,
        spec=spec,
    )


def calibrated(located: Located, recording: Recording, volume: Volume, spec: LocateSpec) -> Located:
    """Refine what was located in whitened snapshots along with the responses of the panel's elements.

    Args:
        located: in ``recording``, whitened.
        recording: as recorded.
        volume: that was searched.
        spec: the settings; ``panel_error`` a positive number.
    """
    found, noise = located.sources, noise_of(recording).double()
    covariance, converged = located.covariance, torch.ones_like(noise, dtype=torch.bool)
    if spec.polish and found.azimuth.shape[1]:
        fit = calibrate(recording, found, volume, panel_error=spec.allowed_error)
        found, covariance, converged = fit.sources, fit.covariance, fit.converged
    std = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    return replace(
        located,
        sources=found,
        covariance=covariance,
        snr_db=_received_db(recording, found, noise),
        noise_variance=noise,
        warnings=_warnings(found, std, converged, volume),
    )


def _received_db(
    recording: Recording, found: Sources, noise_variance: Float[Tensor, "S"]
) -> Float[Tensor, "S K"]:
    """Received power of each source over the noise variance, dB."""
    assert found.power is not None
    fields = recording.link.to(torch.complex128).matmul(found.steering(recording.panel).to(torch.complex128))
    gain = torch.view_as_real(fields).square().sum(-1).mean(dim=-2).mean(dim=-2)  # over m, then over l
    return torch.where(found.active, to_db(found.power * gain / noise_variance[:, None]), math.nan)


def _warnings(
    found: Sources, std: Float[Tensor, "S K 3"], converged: Bool[Tensor, "S"], volume: Volume
) -> list[list[str]]:
    said: list[list[str]] = [[] for _ in range(len(converged))]
    place = torch.stack((found.azimuth, found.elevation, 1 / found.range), dim=-1)
    border = at_search_limit(place, volume)
    for axis, name in enumerate(("azimuth", "elevation", "range")):
        for scene, source in border[..., axis].nonzero().tolist():
            said[scene].append(f"source {source} lies on the border of the searched volume in {name}")
    for scene, source in std.isinf().any(-1).nonzero().tolist():
        said[scene].append(f"source {source} has no error bar: the data cannot tell it from another one")
    vague = (std[..., 2] > found.range) & ~std[..., 2].isinf()
    for scene, source in vague.nonzero().tolist():
        said[scene].append(f"source {source}: range is vague, its error bar exceeds it")
    for scene in (~converged).nonzero()[:, 0].tolist():
        said[scene].append("the likelihood fit did not come to rest")
    return said


def joined(parts: list[Located]) -> Located:
    """Blocks of scenes put together, padded to the same K_max."""
    most = max(part.snr_db.shape[1] for part in parts)

    def joined(values: list[Tensor]) -> Tensor:
        padded = []
        for value in values:
            missing = (len(value), most - value.shape[1], *value.shape[2:])
            padded.append(torch.cat((value, value.new_full(missing, math.nan)), dim=1))
        return torch.cat(padded)

    names = ("azimuth", "elevation", "range", "power")
    told = [part.count_probability for part in parts]
    return Located(
        sources=Sources(**{name: joined([getattr(part.sources, name) for part in parts]) for name in names}),
        covariance=joined([part.covariance for part in parts]),
        snr_db=joined([part.snr_db for part in parts]),
        noise_variance=torch.cat([part.noise_variance for part in parts]),
        likelihood=torch.cat([part.likelihood for part in parts]),
        count_probability=None if told[0] is None else torch.cat([one for one in told if one is not None]),
        p_value=torch.cat([part.p_value for part in parts]),
        warnings=[said for part in parts for said in part.warnings],
        spec=parts[0].spec,
    )


def _like(order: Tensor, value: Tensor) -> Tensor:
    return order.reshape(order.shape + (1,) * (value.ndim - order.ndim))
