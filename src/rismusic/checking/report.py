"""What is in a recording file, and what looks wrong with it, before anyone trusts a position from it.

What makes a file unusable is refused on reading, in one sentence. This module looks for what can be read and
is still suspicious: the usual ways in which a good measurement becomes a bad file.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rismusic.array import Panel
from rismusic.checking.blindfit import BlindFit
from rismusic.checking.truthfit import TruthFit
from rismusic.checking.verdict import MOST_LEFT, MixUp
from rismusic.io import Recording, RecordingFile, open_recording
from rismusic.units import to_db

# Scenes looked at in one go, how much of a scene is compared to find copies, scenes enough for conventions.
_BLOCK, _MARK, _ENOUGH = 64, 64, 256

# Name: threshold, what it means when the measured value is above it, what to try.
FINDINGS: dict[str, tuple[float, str, str]] = {
    "snapshots_real": (
        0.999999,
        "the snapshots have no imaginary part (share of the modulus that is real)",
        "export I and Q, not the modulus or the real part",
    ),
    "channel_real": (
        0.999999,
        "the channel has no imaginary part (share of the modulus that is real)",
        "export the complex channel",
    ),
    "noise_too_loud": (
        0.0,
        "scenes whose noise_variance exceeds their whole power",
        "give E|n|^2 of the complex noise at one receiver output",
    ),
    "snapshots_repeated": (
        0.0,
        "scenes whose snapshots are all the same",
        "check that the snapshots were neither averaged nor copied",
    ),
    "codes_repeated": (
        0.0,
        "codebooks whose codes are all the same",
        "let the panel change its code between snapshots; one code hardly tells sources apart",
    ),
    "codes_modulus": (
        0.5,
        "codes far from modulus 1 (largest | |c| - 1 |)",
        "store exp(j phase), not the phase or its index",
    ),
    "scenes_repeated": (0.0, "scenes that occur more than once", "check the loop that exported them"),
    "truth_unexplained": (
        MOST_LEFT,
        "the true sources do not explain the signal (share of its power that they leave)",
        "check truth, channel, codes and element order; no single mix-up of conventions mends it",
    ),
    "truth_far": (
        100.0,
        "true ranges far beyond the near field (median range / Fraunhofer distance)",
        "give ranges in metres; in the far field no panel tells the range",
    ),
    "elements_coarse": (
        0.6,
        "nearest elements lie far apart (wavelengths), so that one direction looks like another",
        "check the wavelength and the unit of the elements; or search a smaller volume",
    ),
    "elements_dense": (
        10.0,
        "nearest elements lie close together (elements per wavelength)",
        "check the wavelength and the unit of the elements",
    ),
    "elements_off_centre": (
        0.05,
        "the middle of the elements is not the origin (distance / aperture)",
        "shift the elements; angles and ranges are told from the origin",
    ),
    "elements_out_of_plane": (
        0.5,
        "elements leave the plane z = 0 (extent in wavelengths)",
        "turn the panel so that z is its normal, x horizontal and y vertical",
    ),
}


@dataclass(frozen=True)
class Finding:
    """Something suspicious: a measured value above its threshold, what that means, and what to try.

    ``alike`` names other mistakes that would look the same in this recording.
    """

    name: str
    value: float
    threshold: float
    meaning: str
    remedy: str
    alike: tuple[str, ...] = ()

    @classmethod
    def of(cls, mix_up: MixUp) -> Finding:
        """A mix-up of conventions."""
        change = mix_up.change
        meaning = f"{change.meaning}; log-likelihood ratio"
        return cls(change.name, mix_up.ratio, mix_up.threshold, meaning, change.remedy, mix_up.alike)


@dataclass(frozen=True)
class Check:
    """What :func:`check` saw: facts by name, and findings (none in a sound recording)."""

    facts: dict[str, str]
    findings: list[Finding]


def check(path: str | Path, *, fit: bool = True) -> Check:
    """Look through a recording file; the twin of ``rismusic check``.

    Every scene is read once, block by block, so that the file may be larger than memory. Mix-ups of
    conventions are looked for with the truth of the first 256 scenes, or, where there is none, by fits to a
    few scenes.

    Args:
        path: an ``.h5``, ``.npz`` or ``.mat`` file.
        fit: whether a file without truth is searched for mix-ups of conventions, which takes some seconds.

    Raises:
        InputError: the file cannot be read as a recording at all.
    """
    with open_recording(path) as file:
        panel = Panel(file.elements, file.wavelength)
        seen, conventions = _Scenes(), "not tried (no truth)"
        first: Recording | None = None
        for recording in file.batches(_BLOCK):
            seen.add(recording)
            first = recording if first is None else first
        mix_up = None
        if seen.truth.scenes:
            mix_up, conventions = seen.truth.verdict(), f"tried on the truth of {seen.truth.scenes} scenes"
        elif fit and first is not None:
            search = BlindFit(first)
            if search.feasible:
                mix_up, conventions = search.look(), f"tried by fits to {search.scenes} scenes"
            else:
                conventions = "not tried (no truth, and a panel too large for quick fits)"
        values = {**seen.values(), **_panel_values(panel)}
        if seen.range:
            values["truth_far"] = float(torch.cat(seen.range).median()) / panel.fraunhofer_distance
        if mix_up is None:
            values["truth_unexplained"] = seen.truth.residual_energy
        findings = [] if mix_up is None else [Finding.of(mix_up)]
        findings += [
            Finding(name, values[name], *row)
            for name, row in FINDINGS.items()
            if values.get(name, 0) > row[0]
        ]
        return Check({**_facts(file, panel, seen), "conventions": conventions}, findings)


class _Scenes:
    """What the scenes look like, gathered block by block."""

    def __init__(self) -> None:
        self.snr_db: list[Tensor] = []
        self.sources: Counter[int] = Counter()
        self.range: list[Tensor] = []
        self.truth = TruthFit()
        self._largest: dict[str, float] = {}
        self._count: Counter[str] = Counter()
        self._marks: set[bytes] = set()

    def add(self, recording: Recording) -> None:
        y, channel, codes = recording.snapshots, recording.channel, recording.codes
        for mark in (bytes(row) for row in torch.view_as_real(y).flatten(1)[:, :_MARK].numpy()):
            self._count["scenes_repeated"] += mark in self._marks
            self._marks.add(mark)
        self._raise("snapshots_real", 1 - y.imag.abs().max() / y.abs().max())
        if y.shape[1] > 1:
            self._count["snapshots_repeated"] += int((y == y[:, :1]).flatten(1).all(dim=1).sum())
        if channel is not None:
            self._raise("channel_real", 1 - channel.imag.abs().max() / channel.abs().max())
        if codes is not None:
            self._raise("codes_modulus", (codes.abs() - 1).abs().max())
            if codes.shape[-2] > 1:
                self._count["codes_repeated"] += int(
                    (codes == codes[..., :1, :]).flatten(-2).all(dim=-1).sum()
                )
        if recording.noise_variance is not None:
            power, noise = y.abs().square().double().mean(dim=(1, 2)), recording.noise_variance
            self.snr_db.append(to_db(((power - noise) / noise).clamp_min(1e-3)))
            # The power of few numbers scatters; four standard deviations below the noise are no chance.
            self._count["noise_too_loud"] += int((power < noise * (1 - 4 / math.sqrt(y[0].numel()))).sum())
        if recording.truth is not None:
            self.sources.update(recording.truth.active.sum(-1).tolist())
            self.range.append(recording.truth.range[recording.truth.active])
            if self.truth.scenes < _ENOUGH:
                self.truth.add(recording)

    def _raise(self, name: str, value: Tensor) -> None:
        self._largest[name] = max(self._largest.get(name, 0.0), float(value))

    def values(self) -> dict[str, float]:
        """The measured value of each finding."""
        return self._largest | {name: float(count) for name, count in self._count.items()}


def _panel_values(panel: Panel) -> dict[str, float]:
    spacing = panel.spacing / panel.wavelength
    extent = panel.elements.amax(0) - panel.elements.amin(0)
    values = {"elements_out_of_plane": float(extent[2]) / panel.wavelength}
    if panel.size > 1:
        values["elements_coarse"] = spacing
        values["elements_dense"] = 1 / spacing
        values["elements_off_centre"] = float(panel.elements.mean(0).norm()) / panel.aperture
    return values


def _facts(file: RecordingFile, panel: Panel, seen: _Scenes) -> dict[str, str]:
    link = "none (the panel is sampled directly)"
    if not file.direct:
        words = {True: "per scene", False: "for all scenes"}
        link = f"one channel {words[file.channel_per_scene]}, one codebook {words[file.codes_per_scene]}"
    facts = {
        "file": f"{file.path} ({file.format})",
        "scenes S": str(file.scenes),
        "snapshots L": str(file.snapshots),
        "receiver outputs M": str(file.antennas),
        "elements N": str(file.size),
        "wavelength": f"{file.wavelength:.6g} m ({299.792458 / file.wavelength:.6g} MHz)",
        "nearest elements": f"{panel.spacing / panel.wavelength:.3g} wavelengths apart",
        "aperture": f"{panel.aperture:.4g} m",
        "Fresnel distance": f"{panel.fresnel_distance:.3g} m",
        "Fraunhofer distance": f"{panel.fraunhofer_distance:.3g} m (range can be told well inside it)",
        "link": link,
        "noise variance": "given" if seen.snr_db else "not given",
    }
    if seen.snr_db:
        snr = torch.cat(seen.snr_db)
        facts["SNR"] = f"{float(snr.min()):.1f} to {float(snr.max()):.1f} dB (power over noise variance)"
    facts["truth"] = "not given"
    if seen.range:
        ranges = torch.cat(seen.range)
        counts = ", ".join(f"{n} x {K}" for K, n in sorted(seen.sources.items()))
        facts["truth"] = f"scenes x sources: {counts}"
        if len(ranges):
            facts["true ranges"] = f"{float(ranges.min()):.3g} to {float(ranges.max()):.3g} m"
    if file.ignored:
        facts["fields not used"] = ", ".join(file.ignored)
    return facts
