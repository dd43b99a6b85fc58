"""``rismusic.Locator``: locate the scenes of one panel as they arrive, with what they share prepared once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Int64
from torch import Tensor

from rismusic.array import ArrayLike, Panel
from rismusic.devices import device_of
from rismusic.errors import InputError
from rismusic.estimation.estimate import (
    Estimate,
    NSources,
    from_fit,
    join_estimates,
    log_likelihood,
    whole_numbers,
)
from rismusic.estimation.grid import Volume
from rismusic.estimation.maximum_likelihood import nfmle
from rismusic.estimation.noise import check_fit
from rismusic.estimation.signal_model import for_geometry, with_signal_model
from rismusic.hybrid import chosen_settings, estimator_of, locate_block, with_remaining_error
from rismusic.io import Recording
from rismusic.io.calibration import PanelCalibration
from rismusic.operator import Link
from rismusic.simulation.simulator import Simulator
from rismusic.sources import Sources
from rismusic.spec import LocateSpec, SystemSpec

# A warm start must be likelier by this (nats) than the cold search; equal optima differ by rounding.
_GAIN_NATS = 1e-2
# The scene that is located for preparation.
_PREPARED = SystemSpec(sources=1, snr_db=20.0)


class Locator:
    """Locate the sources of scenes that arrive one by one, in a process that stays alive.

    Search grid, steering vectors, network and compiled code are loaded when the locator is made. A call then
    returns what :func:`rismusic.locate` returns for the same scenes.

    Args:
        panel: the panel; or a recording of it, which also gives the model of the symbols, pilots, noise
            covariance, subcarriers, pose and, where its scenes share them, channel and codes.
        spec: method, search volume and so on.
        device: where to compute, such as ``"cuda"``; the CPU if none.
        calibration: calibration of the panel, from :func:`rismusic.calibrate_panel`.
        track: start a second maximum-likelihood fit from the last positions, where as many sources are
            found as in the last scene. The search does not depend on the last scene. Its result is replaced
            only by a likelier one, so that an error in one scene does not persist in the next.
        settings: fields of :class:`~rismusic.spec.LocateSpec` to change, such as ``method="omp"``.

    Raises:
        InputError: a setting is unknown, the device is not available, the calibration is of another panel, or
            ``track`` is combined with settings that do not compare fits by likelihood: ``polish=False``,
            impulsive noise or hardware impairments.

    Example:
        >>> locator = Locator(Panel.uniform_planar(12, 12), n_sources=2)
        >>> estimate = locator(snapshots, channel, codes)
    """

    def __init__(
        self,
        panel: Panel | Recording,
        *,
        spec: LocateSpec | None = None,
        n_sources: int | str | None = None,
        device: torch.device | str | None = None,
        calibration: PanelCalibration | None = None,
        track: bool = False,
        **settings: object,
    ) -> None:
        chosen = chosen_settings(spec, whole_numbers(n_sources), settings)
        self._device = device_of(device or "cpu")
        self._calibration, self._track = calibration, track
        self._last: Sources | None = None
        if not isinstance(panel, (Panel, Recording)):
            raise InputError(
                "panel",
                f"must be Panel(elements, wavelength) or a recording; got {type(panel).__name__}",
            )
        recording = panel if isinstance(panel, Recording) else None
        self._panel = panel.panel if isinstance(panel, Recording) else panel
        self.spec = for_geometry(chosen, self._panel)
        self._link = Link() if recording is None else _shared(recording)
        names = ["wavelength", "elements", "wave", "pattern_exponent", "frequencies"]
        names += [] if recording is None else ["symbols", "pilots", "noise_covariance", "pose"]
        self._header = {name: getattr(panel, name) for name in names}
        if recording is None:
            self._header["frequencies"] = self._panel.frequencies or None
        self._estimator = estimator_of(self.spec)
        if track:
            _check_track(self.spec)
        self._prepare(recording)

    def __call__(
        self,
        snapshots: ArrayLike,
        channel: ArrayLike | None = None,
        codes: ArrayLike | None = None,
        *,
        n_sources: Int64[Tensor, "S"] | int | None = None,
        noise_variance: ArrayLike | None = None,
    ) -> Estimate:
        """Locate the sources of one scene or of several.

        Args:
            snapshots: complex, [L, M] of one scene or [S, L, M]; [F, L, M] or [S, F, L, M] with subcarriers.
            channel: H, [M, N] or [S, M, N]; that of the recording if none.
            codes: RIS configurations, [L, N] or [S, L, N]; those of the recording if none.
            n_sources: number of sources; that of the settings if none.
            noise_variance: sigma^2, one number or [S]; estimated if none.

        Returns:
            Positions with error bars, in float64 and on the CPU.

        Raises:
            InputError: the arrays do not fit each other or the panel; see
                :meth:`rismusic.Recording.from_arrays`.
        """
        recording = Recording.from_arrays(
            snapshots,
            channel=self._link.channel if channel is None else channel,
            codes=self._link.codes if codes is None else codes,
            noise_variance=noise_variance,
            **self._header,
        )
        return self.locate(recording, n_sources=n_sources)

    def locate(self, recording: Recording, *, n_sources: Int64[Tensor, "S"] | int | None = None) -> Estimate:
        """Locate the sources of the scenes of a recording of the panel, such as a block of a file.

        Args:
            recording: S scenes. With ``track`` they are taken in turn, as if they came one by one.
            n_sources: number of sources; that of the settings if none.

        Raises:
            InputError: the recording is of another panel, or has too few data for the number of sources.
        """
        if not recording.panel.same_model(self._panel) or not torch.equal(
            recording.elements.double().cpu(), self._panel.elements.double().cpu()
        ):
            raise InputError("recording", "is of another panel; make a Locator for each panel")
        recording = recording.to(self._device)
        if self._calibration is not None:
            recording = self._calibration.apply(recording)
        recording = with_signal_model(recording, self.spec)
        count: NSources = self.spec.sources
        if n_sources is not None:
            count = torch.as_tensor(whole_numbers(n_sources), device=self._device).expand(len(recording))
            check_fit(recording.stacked(), count, Volume.from_spec(self.spec))
        spec, remaining = with_remaining_error(self.spec, recording, self._calibration, count)
        estimator = self._estimator if spec == self.spec else estimator_of(spec)
        locate = partial(locate_block, estimator=estimator, spec=spec, remaining_error=remaining)
        if not self._track:
            return locate(recording, count).detached().to("cpu")
        _check_track(spec)
        parts = []
        for scene in range(len(recording)):
            K = count[scene : scene + 1] if isinstance(count, Tensor) else count
            part = locate(recording[scene], K, improve=self._from_last)
            self._last = part.sources
            parts.append(part)
        return join_estimates(parts).detached().to("cpu")

    def reset(self) -> None:
        """Forget the last positions, for example at the beginning of another series of scenes."""
        self._last = None

    def _from_last(self, recording: Recording, estimate: Estimate) -> Estimate:
        """The estimate, or that of a fit from the last positions where it is likelier."""
        # Only fits of equally many sources are comparable by likelihood.
        K = int(estimate.n_sources)
        if self._last is None or K == 0 or int(self._last.active.sum()) != K:
            return estimate
        spec, made, volume = estimate.spec, recording.stacked(), Volume.from_spec(estimate.spec)
        names = ("azimuth", "elevation", "range")
        start = Sources(**{name: getattr(self._last, name)[:, :K] for name in names})
        fit = nfmle(made, start, volume, criterion=spec.criterion)
        if spec.criterion == "unconditional":
            gain = estimate.neg_log_likelihood - fit.neg_log_likelihood
        else:
            gain = log_likelihood(made, fit.sources, criterion=spec.criterion)
            gain = gain - log_likelihood(made, estimate.sources, criterion=spec.criterion)
        if float(gain) <= _GAIN_NATS:
            return estimate
        warm = from_fit(made, fit, estimate.n_sources_probability, volume, spec)
        # The first sentence says why the network did not locate the scene.
        reasons = 0 if estimate.method == warm.method else 1
        sentences = [*estimate.warnings[0][:reasons], *warm.warnings[0]]
        return replace(warm, warnings=[sentences], method=estimate.method)

    def _prepare(self, recording: Recording | None) -> None:
        """Locate a scene, so that everything is loaded and compiled before the first call."""
        if recording is None:
            if self._panel.frequencies:
                return
            recording = Simulator(_PREPARED, panel=self._panel).scenes(0, 1)
        count = None if self.spec.sources == "auto" else min(self.spec.sources, 1)
        estimate = self.locate(replace(recording[:1], truth=None), n_sources=count)
        if self._track:
            _check_track(estimate.spec)  # with the panel_error of the weights
        self.reset()


def _shared(recording: Recording) -> Link:
    """Channel and codes, as far as all scenes share them."""
    channel, codes = recording.channel, recording.codes
    dimensions = 2 if recording.frequencies is None else 3
    return Link(
        None if channel is None or channel.ndim > dimensions else channel,
        None if codes is None or codes.ndim > 2 else codes,
    )


def _check_track(spec: LocateSpec) -> None:
    """Refuse to track where fits are not compared by their likelihood."""
    for name, wrong in (
        ("polish", not spec.polish),
        ("noise", spec.noise == "impulsive"),
        ("panel_error", spec.allowed_error > 0),
    ):
        if wrong:
            raise InputError("track", f"cannot be combined with {name} = {getattr(spec, name)!r}")
