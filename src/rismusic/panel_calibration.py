r"""``rismusic.calibrate_panel``: calibrate one panel from all scenes of a recording.

1. The sources of every scene are located with hardware impairments allowed for (``panel_error``), unless
   their positions are known.
2. :func:`~rismusic.estimation.panel_fit.fit_panel` fits responses and offsets to all scenes together.
3. The sources are located again under the calibrated panel, which corrects scenes that were located wrongly,
   and the fit is repeated. Scenes whose residual is much larger than that of the others are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from rismusic.errors import InputError
from rismusic.estimation.estimate import whole_numbers
from rismusic.estimation.grid import Volume
from rismusic.estimation.maximum_likelihood import nfmle
from rismusic.estimation.noise import check_fit, noise_of
from rismusic.estimation.panel_fit import MAX_ELEMENTS, PanelFit, error_in_new_scenes, fit_panel
from rismusic.estimation.signal_model import check_elements
from rismusic.hybrid import locate
from rismusic.io import Recording, check_recording
from rismusic.io.calibration import PanelCalibration
from rismusic.sources import Sources, check_sources
from rismusic.spec import CalibrateSpec, LocateSpec

# A scene is left out if its residual variance over the noise variance exceeds that of the median scene by
# this.
_BAD_FIT = 2.0
# Errors that change from snapshot to snapshot, as a share of panel_error, before they are estimated.
_FIRST_REMAINING = 0.3
# Number of scenes from which the remaining error is measured in one of so many scenes, held out.
_LEAST_SCENES, _HELD_OUT = 10, 5
# Remaining error from which a calibration is doubted.
_LARGE_ERROR = 0.4
_LOG = logging.getLogger("rismusic.calibrate")


def calibrate_panel(
    recording: Recording,
    known_positions: Sources | None = None,
    *,
    n_sources: Int64[Tensor, "S"] | int | str | None = None,
    spec: CalibrateSpec | None = None,
    workers: int = 1,
    cluster: str | None = None,
    **settings: object,
) -> PanelCalibration:
    """Estimate responses and positions of a panel's elements, as ``rismusic calibrate`` does.

    The common factor of the responses is not identifiable; the mean response is set to 1. With unknown
    positions (blind calibration) a phase gradient and a curvature of the phase over the panel are not
    identifiable either: they shift all directions and ranges alike. The smallest errors that explain the data
    are returned.

    Args:
        recording: S scenes of one panel, with independent symbols. More scenes, at different positions, give
            a better calibration.
        known_positions: true positions, [S, K] or [K] for all scenes; none for blind calibration.
        n_sources: number of sources of each scene, as in :func:`rismusic.locate`. By default
            ``spec.sources``.
        spec: prior errors and number of rounds, and the method that locates the sources.
        workers: number of processes that locate the sources, as in :func:`rismusic.locate`.
        cluster: address of a Dask scheduler whose workers locate them.
        settings: fields of :class:`~rismusic.spec.CalibrateSpec` to change, such as ``panel_error=0.1``.

    Raises:
        InputError: the symbols are constant or known, the recording is wideband, the panel has more than 1024
            elements, no scene can be used, or a setting is unknown.

    Example:
        >>> calibration = calibrate_panel(recording, n_sources=2)
        >>> estimate = locate(other_recording, calibration=calibration)
    """
    n_sources = whole_numbers(n_sources)
    if isinstance(n_sources, (int, str)):
        settings["sources"] = n_sources
    chosen = (spec or CalibrateSpec()).replace(**settings)
    check_recording(recording)
    check_calibratable(recording)
    count = n_sources if isinstance(n_sources, Tensor) else None
    recording, found = recording.to("cpu"), None
    if known_positions is not None:
        found = _given(known_positions, recording)
    common = CalibrateSpec.model_fields.keys() & LocateSpec.model_fields.keys()
    located_by = LocateSpec(**{name: getattr(chosen, name) for name in common})
    volume = Volume.from_spec(located_by)
    used = torch.ones(len(recording), dtype=torch.bool) if found is None else found.active.any(-1)
    remaining = _FIRST_REMAINING * chosen.panel_error
    calibration: PanelCalibration | None = None
    first: PanelFit | None = None
    fit_to = partial(
        fit_panel,
        volume=volume,
        panel_error=chosen.panel_error,
        position_error=chosen.position_error_wavelengths * recording.wavelength,
        known_positions=found is not None,
    )
    for number in range(chosen.rounds):
        sources = found
        if sources is None:
            sources = locate(
                recording,
                n_sources=count,
                spec=located_by,
                calibration=calibration,
                workers=workers,
                cluster=cluster,
            ).sources
            # A scene that was left out may have been located correctly now.
            used = sources.active.any(-1)
        elif number == 2:
            break
        fit, used = _fit(recording, sources, used, first, partial(fit_to, remaining_error=remaining))
        first, remaining = fit, fit.remaining_error
        calibration = _as_calibration(recording, fit, used)
        located_by = located_by.replace(panel_error=remaining)
        _LOG.info("round %d: %d of %d scenes, remaining error %.3g", number, used.sum(), len(used), remaining)
    assert calibration is not None
    assert first is not None
    if int(used.sum()) >= _LEAST_SCENES:
        again = partial(fit_to, remaining_error=remaining)
        measured = _measured_error(recording, first, used, volume, again, found)
        calibration = replace(calibration, remaining_error=measured)
    if calibration.remaining_error >= _LARGE_ERROR:
        _LOG.warning(
            "the calibrated panel still departs by about %.0f %%; are positions, channel and conventions "
            "right? 'rismusic check' compares them",
            100 * calibration.remaining_error,
        )
    return calibration


def _measured_error(
    recording: Recording,
    fit: PanelFit,
    used: Bool[Tensor, "S"],
    volume: Volume,
    fit_again: Callable[..., PanelFit],
    known: Sources | None,
) -> float:
    """The remaining error, measured in every fifth scene with a panel that is fitted to the others."""
    held = torch.arange(int(used.sum())) % _HELD_OUT == 0
    part, sources = recording[used.nonzero()[:, 0]], fit.sources
    other = fit_again(part[~held], sources[~held])
    test, there = part[held], sources[held]
    if known is None:
        made = replace(_as_calibration(recording, other, used), remaining_error=0.0).apply(test)
        there = nfmle(replace(made, noise_variance=None), there, volume, criterion="unconditional").sources
    return error_in_new_scenes(test, replace(there, power=None, symbols=None), other)


def _fit(
    recording: Recording,
    sources: Sources,
    used: Bool[Tensor, "S"],
    first: PanelFit | None,
    fit_to: Callable[..., PanelFit],
) -> tuple[PanelFit, Bool[Tensor, "S"]]:
    """Fit the panel; fit again without the scenes that it does not explain."""
    for last in (False, True):
        numbers = used.nonzero()[:, 0]
        if len(numbers) == 0:
            raise InputError("recording", "no scene has a source; the panel cannot be calibrated")
        part = recording[numbers]
        fit = fit_to(part, sources[numbers], first=first)
        ratio = fit.noise / noise_of(part).double()
        bad = ratio > _BAD_FIT * ratio.median()
        if last or not bool(bad.any()):
            break
        used = used.clone()
        used[numbers[bad]] = False
        first = None if first is None else fit
    return fit, used


def _as_calibration(recording: Recording, fit: PanelFit, used: Bool[Tensor, "S"]) -> PanelCalibration:
    return PanelCalibration(
        wavelength=recording.wavelength,
        elements=recording.elements,
        response=fit.response,
        response_std=fit.response_std,
        offsets=fit.offsets,
        remaining_error=fit.remaining_error,
        used=used,
    )


def check_calibratable(recording: Recording) -> None:
    """Check that a recording is of a kind that can calibrate a panel."""
    if recording.symbols != "independent":
        raise InputError("symbols", f"must be independent for a calibration; they are {recording.symbols}")
    if recording.frequencies is not None:
        raise InputError(
            "frequencies", "a wideband recording cannot calibrate a panel; select one subcarrier"
        )
    N = len(recording.elements)
    check_elements(N)
    if N > MAX_ELEMENTS:
        raise InputError("elements", f"panels of up to {MAX_ELEMENTS} elements can be calibrated; got {N}")


def _given(positions: Sources, recording: Recording) -> Sources:
    """Known positions of every scene."""
    check_sources(positions, field="known_positions")
    positions = replace(positions, power=None, symbols=None)
    if positions.azimuth.ndim == 1:
        positions = positions.each(lambda value: value.expand(len(recording), *value.shape))
    if len(positions.azimuth) != len(recording):
        raise InputError(
            "known_positions",
            f"must have the {len(recording)} scenes of the recording; got {len(positions.azimuth)}",
        )
    check_fit(recording, positions.active.sum(-1), None)
    return positions.each(lambda value: value.double().cpu())
