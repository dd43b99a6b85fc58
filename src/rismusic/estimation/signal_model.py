r"""Which signal model a recording follows: the form of the wave, and whether its symbols are constant.

Quick fits (conditional OMP with at most three sources on a coarse grid) are made under each model. The
models are compared by the log evidence of their fits
(:func:`~rismusic.estimation.model_order.log_evidence`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.array import WAVES, Panel, check_azimuth_limit, steering
from rismusic.errors import InputError
from rismusic.estimation.classical import fit_known, fit_known_symbols
from rismusic.estimation.goodness_of_fit import SIGNIFICANCE, Projection
from rismusic.estimation.grid import Volume, searched_grid
from rismusic.estimation.likelihood import sufficient_statistics, symbols
from rismusic.estimation.maximum_likelihood import unpack
from rismusic.estimation.model_order import log_evidence
from rismusic.estimation.noise import most_sources
from rismusic.io import Recording
from rismusic.sources import Sources
from rismusic.spec import LocateSpec, SymbolModel, Wave

_SCENES, _SOURCES = 8, 3  # scenes that are fitted, evenly spread over the recording, and sources in each
# Settings of these fits.
_QUICK: dict[str, Any] = {"method": "omp", "criterion": "conditional", "oversampling": 1.6}
_OVERSAMPLED = 4  # trial frequencies for each snapshot
_LEAST_NOISE = 0.01  # smallest noise variance of an output, over the median of all outputs


def with_signal_model(recording: Recording, spec: LocateSpec) -> Recording:
    """The recording with the wave and the symbols that the settings ask for."""
    if spec.symbols == "known" and recording.pilots is None:
        raise InputError("symbols", "known symbols need a recording with pilots; it has none")
    if spec.symbols == "independent" or spec.symbols == "correlated" or spec.symbols == "constant":
        recording = replace(recording, symbols=spec.symbols, pilots=None)
    if spec.wave != "recorded" and spec.wave != "auto":
        recording = replace(recording, wave=spec.wave)
    compared = spec.symbols == "auto" and recording.pilots is None
    if compared or spec.wave == "auto":
        searched_grid(recording, for_geometry(spec, recording.panel))  # refused before the fits if too large
    if compared:
        evidence = evidence_of_symbols(recording, spec)
        recording = replace(recording, symbols=max(evidence, key=lambda name: evidence[name]))
    if spec.wave == "auto":
        waves = evidence_of_waves(recording, spec)
        recording = replace(recording, wave=max(waves, key=lambda name: waves[name]))
    return recording


def check_elements(count: int) -> None:
    """Refuse a single element."""
    if count < 2:
        raise InputError(
            "elements",
            "a single element receives the same from every direction, so that it cannot locate sources; at "
            "least two are needed",
        )


def for_geometry(spec: LocateSpec, panel: Panel) -> LocateSpec:
    """The settings without an angle that a line of elements cannot tell; those with fewer unknowns stay.

    The data of a line depend on the angle to the line only. The elevation is held at 0, or the azimuth for a
    line nearer to the vertical.

    Raises:
        InputError: there is a single element, which has no direction, or the volume includes the mirror
            images of a planar array.
    """
    check_elements(panel.size)
    check_azimuth_limit(panel, "azimuth_max_deg", spec.azimuth_max_deg)
    axis = panel.axis
    if len(spec.unknowns) < 3 or axis is None:
        return spec
    vertical = abs(float(axis[1])) > abs(float(axis[0]))
    return spec.replace(unknowns=("elevation", "range") if vertical else ("azimuth", "range"))


def with_output_noise(recording: Recording, sources: Sources) -> Recording:
    r"""The recording with a noise variance for each receiver output, from the residual of a fit.

    .. math:: \hat\sigma_m^2 = \frac{1}{L - K} \sum_l |y_{lm} - [G_l A \hat s_l]_m|^2, limited to at least
    1/100 of the median of those that are not 0.
    """
    made = replace(recording, noise_covariance=None).stacked()
    positions, active = unpack(sources, made)
    y = made.snapshots.to(torch.complex128)
    link = made.link.to(torch.complex128)
    rest = y
    if positions.shape[1]:
        s = symbols(sufficient_statistics(made, positions, active))
        azimuth, elevation, q = positions.unbind(-1)
        fields = link.matmul(steering(made.panel, azimuth, elevation, 1 / q) * active[:, None])
        rest = y - (fields @ s[..., None])[..., 0]
    if link.coherent:
        rest = link.separate(rest)[0]
    freedom = (rest.shape[1] - active.sum(-1)).clamp_min(1) if not link.coherent else rest.shape[1]
    power = torch.view_as_real(rest).square().sum(-1).sum(1) / torch.as_tensor(freedom).reshape(-1, 1)
    median = power.masked_fill(power == 0, torch.nan).nanmedian(dim=1, keepdim=True).values
    power = torch.maximum(power, _LEAST_NOISE * torch.where(median.isnan(), 1.0, median))
    covariance = torch.diag_embed(power).to(torch.complex128)
    return replace(recording, noise_variance=None, noise_covariance=covariance)


def as_fitted(recording: Recording) -> Recording:
    """The stacked recording, with all of its data.

    For a directly sampled array with constant symbols, stacking would leave out what holds noise only;
    likelihoods of several models are comparable for the same data only.
    """
    if recording.symbols == "constant" and recording.codes is None and not recording.is_stacked:
        y = recording.snapshots
        recording = replace(recording, codes=y.new_ones(y.shape[-2], len(recording.elements)))
    return recording.stacked()


def evidence_of_waves(recording: Recording, spec: LocateSpec | None = None) -> dict[Wave, float]:
    """Log evidence (nats) of each form of the wave, summed over some scenes; larger is more probable."""
    some = _some_scenes(recording)
    return {
        wave: float(_evidence(replace(some, wave=wave).stacked(), spec or LocateSpec()).sum())
        for wave in WAVES
    }


def evidence_of_symbols(recording: Recording, spec: LocateSpec | None = None) -> dict[SymbolModel, float]:
    """Log evidence (nats) of independent and of constant symbols, summed over some scenes."""
    some = replace(_some_scenes(recording), pilots=None)
    models: tuple[SymbolModel, ...] = ("independent", "constant")
    return {
        model: float(_evidence(as_fitted(replace(some, symbols=model)), spec or LocateSpec()).sum())
        for model in models
    }


def free_symbols_p_value(recording: Recording, sources: Sources, spec: LocateSpec) -> Float[Tensor, "S"]:
    r"""p-value of constant or known symbols against symbols that are free in every snapshot.

    The models are nested. Their residuals r have :math:`\nu` real dimensions
    (:mod:`rismusic.estimation.goodness_of_fit`), fewer with free symbols. If the symbols are as recorded,

    .. math:: F = \frac{(|r|^2 - |r_\mathrm{free}|^2) / (\nu - \nu_\mathrm{free})}
        {|r_\mathrm{free}|^2 / \nu_\mathrm{free}}

    has an F distribution with :math:`\nu - \nu_\mathrm{free}` and :math:`\nu_\mathrm{free}` degrees of
    freedom. With free symbols the sources are searched anew; p is multiplied by the number of grid points for
    each of them.

    Returns:
        p; NaN where the free symbols of K sources explain any data.
    """
    from scipy.stats import f as f_distribution  # takes long to import

    as_recorded = as_fitted(recording)
    free = replace(recording, symbols="independent", pilots=None).stacked()
    count = sources.active.sum(-1).clamp_min(1)
    p_value = torch.full((len(recording),), torch.nan, dtype=torch.float64, device=count.device)
    some = (count <= most_sources(free, Volume.from_spec(spec))).nonzero()[:, 0]
    if len(some) == 0 or free.snapshots.shape[1] < 2:
        return p_value
    quick = spec.replace(**_QUICK)
    grid = searched_grid(free, quick)
    searched = fit_known(free[some], count[some], grid, quick).sources
    here = sources.each(lambda value: value[some])
    energy, freedom = _residual(as_recorded[some], here)
    least, fewer = _residual(free[some], searched)
    at_recorded, same = _residual(free[some], here)
    least = torch.where(same == fewer, torch.minimum(least, at_recorded), least)
    ratio = (energy - least) / (freedom - fewer) / (least / fewer)
    p = f_distribution.sf(*(x.numpy(force=True) for x in (ratio, freedom - fewer, fewer)))
    p_value[some] = torch.as_tensor(p, device=count.device) * len(grid) ** count[some]
    return p_value


def frequency_offset(recording: Recording, sources: Sources, spec: LocateSpec) -> Float[Tensor, "S"]:
    r"""Phase (rad) by which constant symbols turn from one snapshot to the next; 0 without a sign of it.

    A source on the search grid whose symbol turns by :math:`\omega` raises
    :math:`|\sum_l a^H G_l^H y_l e^{-j \omega l}|`. The snapshots are turned back by the :math:`\omega` of the
    largest of them, and as many sources, at least one, are searched anew. In noise, the log-likelihood ratio
    exceeds t with a probability of at most :math:`e^{-t}` for each point and each :math:`\omega`.
    """
    free = replace(recording, symbols="independent", pilots=None).stacked()
    quick = spec.replace(**_QUICK)
    grid, L = searched_grid(free, quick), free.snapshots.shape[1]
    field = free.link.adjoint(free.snapshots)
    turns = [torch.fft.fft(one.mH @ grid.steering(one.dtype), n=_OVERSAMPLED * L, dim=0) for one in field.mT]
    most = torch.stack([one.abs().amax(1).argmax() for one in turns])
    omega = -2 * torch.pi * torch.fft.fftfreq(_OVERSAMPLED * L, dtype=torch.float64, device=most.device)[most]
    phase = omega[:, None, None] * torch.arange(L, device=most.device)[:, None]
    back = torch.polar(torch.ones_like(phase), -phase).to(recording.snapshots.dtype)
    turned = as_fitted(replace(recording, snapshots=recording.snapshots * back))
    fit = fit_known(turned, sources.active.sum(-1).clamp_min(1), grid, quick)
    energy, _ = _residual(as_fitted(recording), sources)
    least, _ = _residual(turned, fit.sources)
    gain = recording.snapshots[0].numel() * (energy / least).log()
    return torch.where(gain > math.log(len(grid) * _OVERSAMPLED * L / SIGNIFICANCE), omega, 0.0)


def _residual(recording: Recording, sources: Sources) -> tuple[Float[Tensor, "S"], Float[Tensor, "S"]]:
    """Energy of the residual and its number of real dimensions."""
    positions, active = unpack(sources, recording)
    off = Projection.off(recording, positions, active, torch.ones_like(positions, dtype=torch.bool))
    rest = off.of(recording.snapshots.to(torch.complex128)[:, None])
    return torch.view_as_real(rest).square().sum((1, 2, 3, 4)), off.freedom(recording.snapshots.shape[1])


def _some_scenes(recording: Recording) -> Recording:
    step = max(1, len(recording) // _SCENES)
    return replace(recording[::step][:_SCENES], truth=None)


def _evidence(recording: Recording, spec: LocateSpec) -> Float[Tensor, "S"]:
    """Log evidence of the most probable number of sources, 0 to 3, or that of the pilots."""
    quick = spec.replace(**_QUICK)
    grid = searched_grid(recording, quick)
    if recording.link.pilots is not None:  # which tell the number
        fit = fit_known_symbols(recording, "auto", grid, quick)
        return log_evidence(recording, fit, grid.volume)
    values = []
    for count in range(min(_SOURCES, most_sources(recording, grid.volume), spec.sources_max) + 1):
        number = torch.full((len(recording),), count, device=recording.snapshots.device)
        values.append(log_evidence(recording, fit_known(recording, number, grid, quick), grid.volume))
    return torch.stack(values).amax(0)
