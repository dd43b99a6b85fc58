"""Every mix-up of conventions, made in a sound recording: the opposite of what undoes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from rismusic.io import Recording
from rismusic.simulation.scene import quantise

C = 299792458.0


def truth(recording: Recording, **changes: Callable) -> Recording:
    """True coordinates changed by functions of themselves."""
    sources = recording.truth
    values = {name: change(getattr(sources, name)) for name, change in changes.items()}
    return replace(recording, truth=replace(sources, **values))


def lengths(recording: Recording, elements: float = 1.0, wavelength: float = 1.0) -> Recording:
    """Elements and wavelength times factors."""
    return replace(
        recording, elements=recording.elements * elements, wavelength=recording.wavelength * wavelength
    )


def angles(recording: Recording, factor: float) -> Recording:
    return truth(recording, azimuth=lambda a: a * factor, elevation=lambda e: e * factor)


def becomes(recording: Recording, wavelength: float) -> Recording:
    return replace(recording, wavelength=wavelength)


def by_columns(recording: Recording) -> Recording:
    """What a program that numbers x slowest would write for these channel and codes."""
    e = recording.elements
    columns = len(e[:, 0].unique())
    turned = e.reshape(-1, columns, 3).transpose(0, 1).reshape(-1, 3)
    return replace(recording, elements=turned)


def conjugated(*parts: str) -> Callable[[Recording], Recording | None]:
    def mistake(recording: Recording) -> Recording | None:
        if any(getattr(recording, part) is None for part in parts):
            return None
        return replace(recording, **{part: getattr(recording, part).conj().resolve_conj() for part in parts})

    return mistake


def swapped(recording: Recording) -> Recording:
    sources = recording.truth
    return replace(recording, truth=replace(sources, azimuth=sources.elevation, elevation=sources.azimuth))


def reordered(part: str, change: Callable) -> Callable[[Recording], Recording | None]:
    def mistake(recording: Recording) -> Recording | None:
        value = getattr(recording, part)
        return None if value is None else replace(recording, **{part: change(value).contiguous()})

    return mistake


def finer(recording: Recording, bits: int) -> Recording | None:
    """Phases as if they were not rounded, where they are to this number of bits and to no fewer."""
    codes = recording.codes
    if codes is None or not torch.allclose(quantise(codes, bits), codes, atol=1e-4):
        return None
    if bits > 1 and torch.allclose(quantise(codes, bits - 1), codes, atol=1e-4):
        return None
    L, N = codes.shape[-2:]
    wave = torch.sin(1.7 * torch.arange(N) + 0.9 * torch.arange(L)[:, None])
    lost = 0.8 * math.pi / 2**bits * wave
    return replace(recording, codes=codes * torch.polar(torch.ones_like(lost), lost))


def turned(recording: Recording, *, conjugate: bool) -> Recording | None:
    H = recording.channel
    if H is None or H.shape[-1] != H.shape[-2]:
        return None
    return replace(recording, channel=(H.mH if conjugate else H.mT).resolve_conj().contiguous())


MISTAKES: dict[str, Callable[[Recording], Recording | None]] = {
    "snapshots_conjugated": conjugated("snapshots"),
    "channel_conjugated": conjugated("channel"),
    "codes_conjugated": conjugated("codes"),
    "snapshots_and_channel_conjugated": conjugated("snapshots", "channel"),
    "snapshots_and_codes_conjugated": conjugated("snapshots", "codes"),
    "channel_and_codes_conjugated": conjugated("channel", "codes"),
    "all_conjugated": conjugated("snapshots", "channel", "codes"),
    "channel_transposed": lambda r: turned(r, conjugate=False),
    "channel_hermitian": lambda r: turned(r, conjugate=True),
    "codes_late": reordered("codes", lambda codes: codes.roll(-1, dims=-2)),
    "codes_early": reordered("codes", lambda codes: codes.roll(1, dims=-2)),
    "codes_reversed": reordered("codes", lambda codes: codes.flip(-2)),
    "pilots_late": reordered("pilots", lambda pilots: pilots.roll(-1, dims=-2)),
    "pilots_early": reordered("pilots", lambda pilots: pilots.roll(1, dims=-2)),
    "pilots_reversed": reordered("pilots", lambda pilots: pilots.flip(-2)),
    "pilots_conjugated": conjugated("pilots"),
    "codes_1_bit": lambda r: finer(r, 1),
    "codes_2_bit": lambda r: finer(r, 2),
    "angles_swapped": swapped,
    "azimuth_mirrored": lambda r: truth(r, azimuth=lambda a: -a),
    "elevation_mirrored": lambda r: truth(r, elevation=lambda e: -e),
    "directions_reversed": lambda r: truth(r, azimuth=lambda a: -a, elevation=lambda e: -e),
    "range_inverse": lambda r: truth(r, range=lambda d: 1 / d),
    "elements_renumbered": by_columns,
    "angles_in_degrees": lambda r: angles(r, 180 / math.pi),
    "angles_converted_twice": lambda r: angles(r, math.pi / 180),
    "elements_in_centimetres": lambda r: lengths(r, elements=100),
    "elements_in_wavelengths": lambda r: lengths(r, elements=1 / r.wavelength),
    "elements_in_half_wavelengths": lambda r: lengths(r, elements=2 / r.wavelength),
    "elements_times_wavelength": lambda r: lengths(r, elements=r.wavelength),
    "wavelength_doubled": lambda r: lengths(r, wavelength=2),
    "wavelength_halved": lambda r: lengths(r, wavelength=0.5),
    "frequency_in_ghz": lambda r: becomes(r, C / r.wavelength / 1e9),
    "frequency_in_mhz": lambda r: becomes(r, C / r.wavelength / 1e6),
    "wavenumber": lambda r: becomes(r, 2 * math.pi / r.wavelength),
    "panel_in_millimetres": lambda r: lengths(r, 1e3, 1e3),
    "panel_in_centimetres": lambda r: lengths(r, 1e2, 1e2),
    "range_in_millimetres": lambda r: truth(r, range=lambda d: d * 1e3),
    "range_in_centimetres": lambda r: truth(r, range=lambda d: d * 1e2),
    "range_in_wavelengths": lambda r: truth(r, range=lambda d: d / r.wavelength),
}


def made(name: str, sound: Recording) -> Recording | None:
    """A sound recording with a mistake; none where it cannot be made."""
    return MISTAKES[name](sound)
