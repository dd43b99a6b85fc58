r"""Detect wrong conventions in recordings: the sources fit better with the mistake undone.

**With truth** (:class:`TruthFit`). With :math:`C_l = G_l A` the fields of the true sources, the
log-likelihood ratio of a changed against the recorded form is, symbols and noise variance being unknown,
:math:`L (M - K) \log(U_0 / U_1)`, U the :func:`unexplained_share`.

Chance: two forms that are both wrong explain of white noise the energies in two K-dimensional subspaces of
each snapshot. Their difference has variance :math:`2 L K \sigma^4` in a scene, the log-likelihood ratio
therefore :math:`2 L K`, and :math:`5.5 \sqrt{2 L \sum K}` nats are reached once in 10^7 changes.

**Without truth** (:class:`BlindFit`). Under each form a quick search (conditional OMP on a coarse grid)
estimates three sources, whatever their number. The difference of their log-evidence
(:func:`~rismusic.estimation.model_order.log_evidence`) is the logarithm of the Bayes factor of a changed
against the recorded form. (Additional sources cost little evidence, and of more than three sources three are
enough.)

Chance: if the recorded form is right, a Bayes factor of B is reached with a probability of 1 / B at most,
however often one looks (Ville's inequality; Kass and Raftery, "Bayes factors", J. Am. Stat. Assoc. 90
(1995)); so :math:`\log(\text{number of changes} / 10^{-6})` nats are asked for. Scenes are looked at a few at
a time, until each change is named or as clearly refuted.

Some mistakes cannot be detected in this way, because other sources explain the same data just as well:

* reversed x or y, or x and y exchanged on a square panel (sources at mirrored directions);
* a panel that is too large or too small in wavelengths (sources farther to the side or nearer the axis, at
  other ranges); it is tried only where its spacing is unusual, and then stands for a search volume that is
  too small as well;
* conjugates of several parts together and of the rest with the wave: of far sources they are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.array import Panel
from rismusic.checks.conventions import (
    CHANGES,
    SETTINGS,
    SYMBOLS_CONSTANT,
    Change,
    Evidence,
    WrongConvention,
    applicable,
    best_change,
    scaled_to,
)
from rismusic.devices import memory_budget
from rismusic.estimation.classical import fit_known, fit_known_symbols
from rismusic.estimation.diagnosis import wide_settings
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.estimation.likelihood import conditional_cost, sufficient_statistics
from rismusic.estimation.maximum_likelihood import Fit, complete_fit, fit_powers, refine, unpack
from rismusic.estimation.model_order import log_evidence
from rismusic.estimation.noise import most_sources
from rismusic.estimation.signal_model import as_fitted
from rismusic.io import Recording
from rismusic.sources import Sources
from rismusic.spec import LocateSpec

_DEVIATIONS = 5.5


def unexplained_share(recording: Recording, sources: Sources) -> Float[Tensor, "S"]:
    r"""Share of each scene's energy outside the span of the sources, [S]; 1 / (1 + SNR) for the true ones.

    :math:`\frac{M}{M - K} \sum_l |P^\perp_{G_l A} y_l|^2 / \sum_l |y_l|^2`; 0 where K >= M leaves nothing. L
    and M are those of :func:`as_fitted`.
    """
    recording = as_fitted(recording)
    at = sufficient_statistics(recording, *unpack(sources, recording))
    M, K = recording.snapshots.shape[-1], sources.active.sum(-1)
    share = conditional_cost(at) / at.energy.sum(1) * M / (M - K).clamp_min(1)
    return torch.where(K < M, share, 0)


def compared(recording: Recording) -> Iterator[tuple[str, Float[Tensor, "S"], Float[Tensor, "S"]]]:
    """Name, log-likelihood ratio (nats) and unexplained share of each change that applies.

    The ratio against the recorded convention is large and negative for a correct recording.
    """
    truth = recording.truth
    assert truth is not None
    _, L, M = as_fitted(recording).snapshots.shape
    freedom = L * (M - truth.active.sum(-1)).clamp_min(0)
    recorded = unexplained_share(recording, truth)
    for change, changed in applicable(replace(recording, noise_variance=None)):
        assert changed.truth is not None
        other = unexplained_share(changed, changed.truth)
        if change.name == SYMBOLS_CONSTANT:
            # The numbers of unknown symbols differ, which the likelihood of Gaussian symbols accounts for.
            yield change.name, _gaussian(changed) - _gaussian(recording), other
            continue
        # With K >= M sources any data are explained, which is no evidence.
        usable = (recorded > 0) & (other > 0)
        share = torch.where(usable, recorded / torch.where(usable, other, 1), 1)
        yield change.name, freedom * share.log(), torch.where(usable, other, recorded)


def _gaussian(recording: Recording) -> Float[Tensor, "S"]:
    """Log-likelihood of the true positions with Gaussian symbols; powers and noise variance are fitted."""
    truth = recording.truth
    assert truth is not None
    recording = as_fitted(recording)
    at = sufficient_statistics(recording, *unpack(truth, recording))
    return -fit_powers(None, at)[2]


class TruthFit:
    """Evidence from the true sources, accumulated block by block."""

    def __init__(self) -> None:
        self.scenes = 0
        """Number of scenes so far."""
        self._ratio: dict[str, float] = {}
        self._improved: dict[str, int] = {}
        self._left: dict[str, float] = {}
        self._variance = 0.0
        self._signal = self._signal_variance = 0.0

    def add(self, recording: Recording) -> None:
        """Add scenes."""
        truth = recording.truth
        assert truth is not None
        fitted = as_fitted(recording)
        _, L, M = fitted.snapshots.shape
        count = truth.active.sum(-1)
        self.scenes += len(recording)
        self._variance += 2 * L * float(count.sum())
        share = unexplained_share(recording, truth)
        power = torch.view_as_real(fitted.snapshots).double().square().sum(-1).mean((1, 2))
        # Without a noise variance all power counts as noise, and nothing can be left of a signal.
        noise = power if recording.noise_variance is None else recording.noise_variance.double()
        self._signal += float((power - noise).sum())
        self._signal_variance += float(noise.square().sum()) / (L * M)
        self._add("", share * power - noise, torch.zeros_like(share))
        for name, ratio, left in compared(recording):
            self._add(name, left * power - noise, ratio)

    def _add(self, name: str, left: Float[Tensor, "S"], ratio: Float[Tensor, "S"]) -> None:
        self._left[name] = self._left.get(name, 0.0) + float(left.sum())
        self._ratio[name] = self._ratio.get(name, 0.0) + float(ratio.sum())
        self._improved[name] = self._improved.get(name, 0) + int((ratio > 0).sum())

    @property
    def residual_energy(self) -> float:
        """Share of the signal power that the true sources leave unexplained in the recorded form."""
        return self._share("") if self.scenes else 0.0

    def wrong_convention(self) -> WrongConvention | None:
        """The wrong convention for which the evidence is strong enough, or none."""
        evidence = [
            Evidence(change, self._ratio[name], self._improved[name] / self.scenes, self._share(name))
            for change in CHANGES
            if (name := change.name) in self._ratio
        ]
        return best_change(evidence, _DEVIATIONS * math.sqrt(self._variance))

    def _share(self, name: str) -> float:
        """Share of the signal power left unexplained; 0 if the signal does not stand out from the noise."""
        significant = self._signal > _DEVIATIONS * math.sqrt(self._signal_variance)
        return self._left[name] / self._signal if significant else 0.0


# Probability of a false detection in a correct recording.
_CHANCE = 1e-6
# Scenes at most, and together; numbers (L N times the points of the grid) in a scene at most, of the scenes
# together, and in all: some seconds for a panel of usual size, a minute or two at most.
_SCENES, _TOGETHER = 32, 4
_LARGEST, _BLOCK, _BUDGET = 4 * 10**8, 10**7, 2 * 10**9
# Share of the memory budget, as its inverse, up to which the steering vectors of a form are kept.
_FORMS_KEPT = 32


# Families of changes under which the sources stay about where they are.
_SAME_SOURCES = ("wave", "subcarriers")


class BlindFit:
    """Evidence of the scenes of a recording for each changed convention.

    Truth and noise variance of the recording are not used.
    """

    def __init__(self, recording: Recording) -> None:
        self._recorded = _Form(replace(recording[:_SCENES], truth=None, noise_variance=None))
        self._changed = {
            change: _Form(made) for change, made in applicable(self._recorded.recording, blind=True)
        }
        self._ratio = dict.fromkeys(self._changed, 0.0)
        self._improved = dict.fromkeys(self._changed, 0)
        self._scenes_used = dict.fromkeys(self._changed, 0)
        self._open = list(self._changed)
        self.scenes = 0
        """Number of scenes used so far."""

    @property
    def threshold(self) -> float:
        """Log-evidence in nats at which a change is accepted; at minus this value it is rejected."""
        return math.log(max(1, len(self._changed)) / _CHANCE)

    @property
    def obstacle(self) -> str | None:
        """Why there is no search; none if it is possible and fast enough under every form."""
        forms = (self._recorded, *self._changed.values())
        if any(form.size > _LARGEST for form in forms):
            return "a panel too large for quick fits"
        if not all(identify_pilots(form.recording, form.settings) for form in forms):
            return "too few samples for the sources of the pilots"
        return None

    def search(self) -> WrongConvention | None:
        """Use scenes until one change is accepted, all are rejected, or the budget is spent."""
        step, spent = _scenes_together(self._recorded, *self._changed.values()), 0
        named, most = None, len(self._recorded.recording)
        while self._open and self.scenes < most and spent < _BUDGET:
            spent += step * (self._recorded.size + sum(self._changed[change].size for change in self._open))
            self._search(slice(self.scenes, self.scenes + step))
            named = best_change(self.evidence(), self.threshold, blind=True)
            if named is not None and not named.alike:
                break
        return named if named is None or self._holds_anywhere(named.change) else None

    def _holds_anywhere(self, change: Change) -> bool:
        """Whether a change also fits better if the sources may be in any direction, at any range.

        The fit of a source outside the volume of the quick search ends at its boundary, where a wrong form
        can be more likely. True for panels that are too large for a search of all directions.
        """
        recorded, changed = (
            _Form(form.recording, wide_settings(form.recording, form.settings))
            for form in (self._recorded, self._changed[change])
        )
        if max(recorded.size, changed.size) > _LARGEST:
            return True
        step = _scenes_together(recorded, changed)
        gain, refit = 0.0, change.family in _SAME_SOURCES
        for start in range(0, self.scenes, step):
            scenes = slice(start, min(start + step, self.scenes))
            gain += float(_gain(_Fitted(recorded, scenes), changed, refit=refit).sum())
        return gain >= self.threshold

    def evidence(self) -> list[Evidence]:
        """Evidence for each change so far."""
        return [
            Evidence(change, self._ratio[change], self._improved[change] / max(1, self._scenes_used[change]))
            for change in self._changed
        ]

    def _search(self, scenes: slice) -> None:
        recorded = _Fitted(self._recorded, scenes)
        self.scenes += len(recorded.evidence)
        for change in list(self._open):
            refit = change.family in _SAME_SOURCES
            gain = _gain(recorded, self._changed[change], refit=refit)
            self._ratio[change] += float(gain.sum())
            self._improved[change] += int((gain > 0).sum())
            self._scenes_used[change] += len(gain)
            if self._ratio[change] < -self.threshold:
                self._open.remove(change)


def identify_pilots(recording: Recording, settings: LocateSpec) -> bool:
    """Whether the data identify the sources of the pilots; true without pilots."""
    if recording.pilots is None:
        return True
    part = as_fitted(recording[:1])
    pilots = part.link.pilots
    return pilots is None or pilots.shape[-1] <= most_sources(part, Volume.from_spec(settings))


class _Form:
    """One form of the recording, with the search grid of its panel."""

    def __init__(self, recording: Recording, settings: LocateSpec | None = None) -> None:
        self.recording = recording
        self.settings = settings or scaled_to(SETTINGS, recording.panel)
        self._volume = Volume.from_spec(self.settings)
        self._kept: SearchGrid | None = None
        # L, or F L.
        snapshots = recording.snapshots[0, ..., 0].numel()
        self.size = snapshots * len(recording.elements) * _points(recording.panel, self.settings)

    def fit(self, scenes: slice) -> Fit:
        """Sources that a quick search estimates."""
        part = as_fitted(self.recording[scenes])
        if part.link.pilots is not None:
            return fit_known_symbols(part, "auto", self._grid(), self.settings)
        most = most_sources(part, self._volume)
        count = torch.full((len(part),), min(int(self.settings.sources), most))
        return fit_known(part, count.to(part.snapshots.device), self._grid(), self.settings)

    def refit(self, scenes: slice, start: Fit) -> Fit:
        """The fit that starts at the sources of another one."""
        part = as_fitted(self.recording[scenes])
        positions, active = unpack(start.sources, part)
        end = refine(part, positions, active, self._volume, criterion=self.settings.criterion)
        return complete_fit(part, end.positions, active, end.converged, self._volume)

    def evidence(self, scenes: slice, fit: Fit) -> Float[Tensor, "S"]:
        """Log-evidence of the sources of a fit, nats."""
        part = as_fitted(self.recording[scenes])
        return log_evidence(part, fit, self._volume, identifiable=False)

    def _grid(self) -> SearchGrid:
        """Kept with its steering vectors, unless those of all forms would fill the memory."""
        if self._kept is not None:
            return self._kept
        grid = SearchGrid.cover(self.recording.panel, self._volume, self.settings.oversampling)
        if grid.bytes_per_point * len(grid) <= memory_budget(grid.inside.device) // _FORMS_KEPT:
            self._kept = grid
        return grid


def _scenes_together(*forms: _Form) -> int:
    """Number of scenes that are fitted at a time under each of the forms."""
    return max(1, min(_TOGETHER, _BLOCK // max(form.size for form in forms)))


class _Fitted:
    """The fit of some scenes under one form, and its log-evidence."""

    def __init__(self, form: _Form, scenes: slice) -> None:
        self.form, self.scenes = form, scenes
        self.fit = form.fit(scenes)
        self.evidence = form.evidence(scenes, self.fit)


def _gain(recorded: _Fitted, changed: _Form, *, refit: bool) -> Float[Tensor, "S"]:
    """Log-evidence that a change gains over the recorded form.

    With ``refit``, each fit is a start for the other form, so that the luck of a search is no evidence.
    """
    scenes, fit = recorded.scenes, changed.fit(recorded.scenes)
    one, other = recorded.evidence, changed.evidence(scenes, fit)
    if refit:
        one = torch.maximum(one, recorded.form.evidence(scenes, recorded.form.refit(scenes, fit)))
        other = torch.maximum(other, changed.evidence(scenes, changed.refit(scenes, recorded.fit)))
    return other - one


def _points(panel: Panel, settings: LocateSpec) -> int:
    """Approximate size of the grid for this panel, without building it, which may need too much memory."""
    volume, p = Volume.from_spec(settings), panel.elements
    spread = torch.stack((p[:, 0], p[:, 1], p.square().sum(-1) / 2)).std(dim=1, correction=0)
    extent = p.new_tensor([high - low for low, high in zip(volume.lower, volume.upper, strict=True)])
    # Widths as in SearchGrid.cover, on the axis, where the focus is sharpest.
    steps = extent * settings.oversampling * panel.wavenumber * spread * math.sqrt(12) / (2 * math.pi)
    return int(steps.clamp_min(1).prod())
