"""What a changed convention is, and the ways in which one is changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from rismusic.io import Recording
from rismusic.sources import Sources

# Elements may be this far apart, in wavelengths (as when a recording is read); and mostly are this far apart.
POSSIBLE, USUAL = (0.01, 10.0), (0.2, 0.6)
# Changes of a length by less than this (relative) are none.
SAME = 0.02

Apply = Callable[[Recording], Recording | None]


@dataclass(frozen=True)
class Change:
    """One convention changed.

    Args:
        name: of the mistake that the change undoes.
        meaning: the mistake in words, with whatever else would look exactly alike.
        remedy: what to try.
        apply: the recording with the mistake undone; none where the change does not apply or changes nothing.
        family: changes of one family can look alike (where sources are far, for instance); the best of them
            is named, with those that fit as well.
        blind: the family where there is no truth; none for what cannot be seen without it.
    """

    name: str
    meaning: str
    remedy: str
    apply: Apply
    family: str
    blind: str | None = None


def conjugated(*parts: str) -> Apply:
    """Some of snapshots, channel and codes conjugated; none where one of them is missing or real."""

    def apply(recording: Recording) -> Recording | None:
        values = {name: getattr(recording, name) for name in parts}
        # What is real is its own conjugate, and the change without it is the same.
        if any(v is None or v.imag.abs().max() <= 1e-6 * v.abs().max() for v in values.values()):
            return None
        return replace(recording, **{name: value.conj().resolve_conj() for name, value in values.items()})

    return apply


def transposed(*, conjugate: bool) -> Apply:
    """The channel transposed, where it is square."""

    def apply(recording: Recording) -> Recording | None:
        H = recording.channel
        if H is None or H.shape[-1] != H.shape[-2] or H.shape[-1] == 1:
            return None
        changed = (H.mH if conjugate else H.mT).resolve_conj().contiguous()
        return None if torch.equal(changed, H) else replace(recording, channel=changed)

    return apply


def moved(change: Callable[[Sources, Recording], Sources | None]) -> Apply:
    """The truth changed."""

    def apply(recording: Recording) -> Recording | None:
        truth = None if recording.truth is None else change(recording.truth, recording)
        return None if truth is None else replace(recording, truth=truth)

    return apply


def scaled_angles(factor: float) -> Apply:
    """True angles times a factor, where they remain in front of the panel."""

    def change(truth: Sources, _: Recording) -> Sources | None:
        azimuth, elevation = truth.azimuth * factor, truth.elevation * factor
        beyond = (azimuth.abs() >= math.pi / 2) | (elevation.abs() >= math.pi / 2)  # NaN is not
        return None if beyond.any() else replace(truth, azimuth=azimuth, elevation=elevation)

    return moved(change)


def scaled_panel(
    elements: Callable[[float], float] | None = None, wavelength: Callable[[float], float] | None = None
) -> Apply:
    """Elements times a factor, which may depend on the wavelength, and another wavelength.

    Without truth only a panel of unusual spacing is changed, and to a usual one: how large it is cannot be
    told from sources that are farther to the side.
    """

    def apply(recording: Recording) -> Recording | None:
        recorded = recording.wavelength
        factor = 1.0 if elements is None else elements(recorded)
        other = recorded if wavelength is None else wavelength(recorded)
        if abs(factor - 1) < SAME and abs(other / recorded - 1) < SAME:
            return None
        before = recording.panel.spacing / recorded
        after = before * factor * recorded / other
        if math.isfinite(before) and not POSSIBLE[0] <= after <= POSSIBLE[1]:
            return None
        if recording.truth is None and (_usual(before) or not _usual(after)):
            return None
        return replace(recording, elements=recording.elements * factor, wavelength=other)

    return apply


def renumbered(recording: Recording) -> Recording | None:
    """The elements numbered by columns (x slowest), or by rows where that is what they are."""
    elements, spacing = recording.elements, recording.panel.spacing
    if len(elements) < 2:
        return None
    # Rounded, so that the elements of a row have one y.
    x, y = ((elements[:, axis] / spacing * 100).round() for axis in (0, 1))
    by_x, by_y = torch.argsort(x, stable=True), torch.argsort(y, stable=True)
    by_rows = by_x[torch.argsort(y[by_x], stable=True)]
    by_columns = by_y[torch.argsort(x[by_y], stable=True)]
    in_rows = torch.equal(by_rows, torch.arange(len(elements), device=elements.device))
    changed = elements[by_columns if in_rows else by_rows]
    # A square panel becomes its own mirror image, as sources do whose x and y are swapped.
    mirror_image = torch.allclose(changed, elements[:, [1, 0, 2]], atol=1e-3 * spacing)
    if torch.equal(changed, elements) or (mirror_image and recording.truth is None):
        return None
    return replace(recording, elements=changed)


def _usual(spacing: float) -> bool:
    return USUAL[0] <= spacing <= USUAL[1]
