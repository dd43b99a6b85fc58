"""The conventions that recordings get wrong, as changes that undo the mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations

from torch import Tensor

from rismusic.checking.changes import (
    SAME,
    Apply,
    Change,
    conjugated,
    moved,
    renumbered,
    scaled_angles,
    scaled_panel,
    transposed,
)
from rismusic.io import Recording
from rismusic.sources import Sources

_SPEED_OF_LIGHT = 299792458.0
_FRAME = (
    "x is horizontal, y vertical, z the normal; azimuth turns from z towards +x, elevation rises towards +y"
)
_WAVE = "a wave's phase falls with distance, exp(-j k0 d), and an element multiplies the field by c"
_ROWS = "store H with rows for antennas and columns for elements, [M, N]"
_METRES = "give all lengths in metres"


def applicable(recording: Recording, *, blind: bool = False) -> Iterator[tuple[Change, Recording]]:
    """Each change that applies, with the recording that it makes.

    Args:
        recording: as recorded; with its truth, unless ``blind``.
        blind: only what can be seen without truth.
    """
    for change in CHANGES:
        if not blind or change.blind is not None:
            changed = change.apply(recording)
            if changed is not None:
                yield change, changed


def _conjugations() -> Iterator[Change]:
    """Each set of snapshots, channel and codes: the same as the others and the wave."""
    whole = ("snapshots", "channel", "codes")
    for size in (1, 2, 3):
        for parts in combinations(whole, size):
            rest = tuple(name for name in whole if name not in parts)
            name = f"{'_and_'.join(parts)}_conjugated" if rest else "all_conjugated"
            words = ", ".join((*parts[:-2], " and ".join(parts[-2:])))
            others = ", ".join((*rest, "wave"))
            yield Change(
                name,
                f"{words} fit as their complex conjugates (the same as conjugates of: {others})",
                f"conjugate {words}; {_WAVE}",
                conjugated(*parts),
                # The conjugate of a far source's wave is that of one in the opposite direction.
                "directions" if parts in (whole, ("snapshots",)) else name,
                "conjugates of " + ", ".join(min((len(some), some) for some in (parts, rest))[1]),
            )


def _panels() -> Iterator[Change]:
    """Units of elements and wavelength; those of one ratio differ only in how they curve the wave.

    Mistakes that leave the elements absurdly near or far in wavelengths are refused when a file is read.
    """
    c = _SPEED_OF_LIGHT
    elements: dict[str, tuple[str, Callable[[float], float]]] = {
        "elements_in_centimetres": ("centimetres", lambda _: 1e-2),
        "elements_in_wavelengths": ("wavelengths", lambda wavelength: wavelength),
        "elements_in_half_wavelengths": ("half wavelengths", lambda wavelength: wavelength / 2),
        "elements_times_wavelength": ("metres times wavelength", lambda wavelength: 1 / wavelength),
    }
    for name, (unit, factor) in elements.items():
        words = f"the elements fit in {unit}"
        yield Change(name, words, _METRES, scaled_panel(elements=factor), "panel", "panel")
    wavelength: dict[str, tuple[str, Callable[[float], float]]] = {
        "wavelength_doubled": ("twice the wavelength", lambda value: value / 2),
        "wavelength_halved": ("half the wavelength", lambda value: value * 2),
        "frequency_in_ghz": ("a frequency in GHz", lambda value: c / (value * 1e9)),
        "frequency_in_mhz": ("a frequency in MHz", lambda value: c / (value * 1e6)),
        "wavenumber": ("2 pi / wavelength", lambda value: 2 * math.pi / value),
    }
    for name, (unit, other) in wavelength.items():
        words = f"the wavelength fits as {unit}"
        yield Change(name, words, _METRES, scaled_panel(wavelength=other), "panel", "panel")


def _ranges() -> Iterator[Change]:
    """Units of ranges against those of the panel."""
    for unit, size in (("millimetres", 1e-3), ("centimetres", 1e-2)):

        def shrunk(value: float, size: float = size) -> float:
            return value * size

        def factor(_: float, size: float = size) -> float:
            return size

        words = f"elements and wavelength fit in {unit} (the same as ranges too small by {1 / size:g})"
        apply = _with_truth(scaled_panel(elements=factor, wavelength=shrunk))
        yield Change(f"panel_in_{unit}", words, _METRES, apply, "range")
    ranges: dict[str, tuple[str, Callable[[Tensor, float], Tensor]]] = {
        "range_in_millimetres": ("in millimetres", lambda r, _: r * 1e-3),
        "range_in_centimetres": ("in centimetres", lambda r, _: r * 1e-2),
        "range_in_wavelengths": ("in wavelengths", lambda r, wavelength: r * wavelength),
        "range_inverse": ("as 1 / range", lambda r, _: 1 / r),
    }
    for name, (words, of) in ranges.items():

        def change(
            truth: Sources, recording: Recording, of: Callable[[Tensor, float], Tensor] = of
        ) -> Sources | None:
            distance = of(truth.range, recording.wavelength)
            same = ((distance / truth.range - 1).abs() < SAME) | truth.range.isnan()
            return None if same.all() else replace(truth, range=distance)

        yield Change(name, f"the true ranges fit {words}", "give ranges in metres", moved(change), "range")


def _with_truth(apply: Apply) -> Apply:
    return lambda recording: None if recording.truth is None else apply(recording)


CHANGES: tuple[Change, ...] = (
    *_conjugations(),
    Change(
        "channel_transposed",
        "the channel fits transposed",
        _ROWS,
        transposed(conjugate=False),
        "channel_transposed",
        "channel_transposed",
    ),
    Change(
        "channel_hermitian",
        "the channel fits as its Hermitian transpose",
        f"{_ROWS}; not H^H",
        transposed(conjugate=True),
        "channel_hermitian",
        "channel_hermitian",
    ),
    Change(
        "elements_renumbered",
        "the elements fit in another order, by rows or by columns (or x and y exchanged)",
        "list the elements in the order in which channel and codes number them",
        renumbered,
        "axes",
        "elements_renumbered",
    ),
    Change(
        "angles_swapped",
        "the truth fits with azimuth and elevation swapped",
        _FRAME,
        moved(lambda truth, _: replace(truth, azimuth=truth.elevation, elevation=truth.azimuth)),
        "axes",
    ),
    Change(
        "azimuth_mirrored",
        "the truth fits with azimuth reversed (the same as elements with x reversed)",
        _FRAME,
        moved(lambda truth, _: replace(truth, azimuth=-truth.azimuth)),
        "azimuth_mirrored",
    ),
    Change(
        "elevation_mirrored",
        "the truth fits with elevation reversed (the same as elements with y reversed)",
        _FRAME,
        moved(lambda truth, _: replace(truth, elevation=-truth.elevation)),
        "elevation_mirrored",
    ),
    Change(
        "directions_reversed",
        "the truth fits with azimuth and elevation reversed (the same as elements in reverse order)",
        _FRAME,
        moved(lambda truth, _: replace(truth, azimuth=-truth.azimuth, elevation=-truth.elevation)),
        "directions",
    ),
    Change(
        "angles_in_degrees",
        "the true angles fit in degrees",
        "give angles in radians",
        scaled_angles(math.pi / 180),
        "angles_in_degrees",
    ),
    Change(
        "angles_converted_twice",
        "the true angles fit as if turned from degrees to radians twice",
        "give angles in radians",
        scaled_angles(180 / math.pi),
        "angles_converted_twice",
    ),
    *_panels(),
    *_ranges(),
)
