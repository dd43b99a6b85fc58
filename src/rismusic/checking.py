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

from rismusic.decibel import to_db
from rismusic.mixups import mix_ups
from rismusic.panel import Panel
from rismusic.recording import Recording, RecordingFile, open_recording

# Scenes looked at in one go, and how much of a scene is compared to find copies.
_BLOCK, _MARK = 64, 64
# Log-likelihood ratio from which a changed convention is taken for the right one: in 100 simulated recordings
# of each of six kinds, down to a single scene of five sources at -5 dB, chance reached 24.5.
_NATS = 30.0
_FRAME = (
    "x is horizontal, y vertical, z the normal; azimuth turns from z towards +x, elevation rises towards +y"
)

# Name: threshold, what it means when the measured value is above it, what to try.
FINDINGS: dict[str, tuple[float, str, str]] = {
    "snapshots_conjugated": (
        _NATS,
        "the truth fits the snapshots' complex conjugate (log-likelihood ratio)",
        "conjugate the snapshots; a wave's phase falls with distance, exp(-j k0 d)",
    ),
    "channel_conjugated": (
        _NATS,
        "the truth fits the channel's complex conjugate (log-likelihood ratio)",
        "conjugate the channel; y = H diag(c) x, not H^* or its Hermitian transpose",
    ),
    "codes_conjugated": (
        _NATS,
        "the truth fits the codes' complex conjugate (log-likelihood ratio)",
        "conjugate the codes; an element multiplies the field by c",
    ),
    "azimuth_mirrored": (_NATS, "the truth fits with azimuth reversed (log-likelihood ratio)", _FRAME),
    "elevation_mirrored": (_NATS, "the truth fits with elevation reversed (log-likelihood ratio)", _FRAME),
    "angles_swapped": (
        _NATS,
        "the truth fits with azimuth and elevation swapped (log-likelihood ratio)",
        _FRAME,
    ),
    "elements_renumbered": (
        _NATS,
        "the truth fits if the elements are numbered the other way (log-likelihood ratio)",
        "list the elements in the order in which channel and codes number them",
    ),
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
    """Something suspicious: a measured value above its threshold, what that means, and what to try."""

    name: str
    value: float
    threshold: float
    meaning: str
    remedy: str


@dataclass(frozen=True)
class Check:
    """What :func:`check` saw: facts by name, and findings (none in a sound recording)."""

    facts: dict[str, str]
    findings: list[Finding]


def check(path: str | Path) -> Check:
    """Look through a recording file; the twin of ``rismusic check``.

    Every scene is read once, block by block, so that the file may be larger than memory.

    Args:
        path: an ``.h5``, ``.npz`` or ``.mat`` file.

    Raises:
        InputError: the file cannot be read as a recording at all.
    """
    with open_recording(path) as file:
        panel = Panel(file.elements, file.wavelength)
        seen = _Scenes()
        for recording in file.batches(_BLOCK):
            seen.add(recording)
        values = {**seen.values(), **_panel_values(panel)}
        if seen.range:
            values["truth_far"] = float(torch.cat(seen.range).median()) / panel.fraunhofer_distance
        findings = [
            Finding(name, values[name], *row)
            for name, row in FINDINGS.items()
            if values.get(name, 0) > row[0]
        ]
        return Check(_facts(file, panel, seen), findings)


class _Scenes:
    """What the scenes look like, gathered block by block."""

    def __init__(self) -> None:
        self.snr_db: list[Tensor] = []
        self.sources: Counter[int] = Counter()
        self.range: list[Tensor] = []
        self._mix_ups: dict[str, float] = {}
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
            for name, ratio in mix_ups(recording).items():
                self._mix_ups[name] = self._mix_ups.get(name, 0.0) + float(ratio.sum())

    def _raise(self, name: str, value: Tensor) -> None:
        self._largest[name] = max(self._largest.get(name, 0.0), float(value))

    def values(self) -> dict[str, float]:
        """The measured value of each finding."""
        values = self._largest | {name: float(count) for name, count in self._count.items()}
        # One mistake can make several changes look better; the one that fits best is named.
        if self._mix_ups:
            name = max(self._mix_ups, key=lambda each: self._mix_ups[each])
            values[name] = self._mix_ups[name]
        return values


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
    if file.channel_per_scene is not None:
        words = {True: "per scene", False: "for all scenes"}
        link = (
            f"one channel {words[file.channel_per_scene]}, one codebook {words[bool(file.codes_per_scene)]}"
        )
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
