"""Checks of the values of a recording: finite, non-zero, plausible units."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rismusic.array import Panel
from rismusic.errors import InputError
from rismusic.io.pose import check_pose
from rismusic.io.recording import Recording, structure_of, tensors
from rismusic.io.schema import AXES, FIELDS, Structure
from rismusic.sources import check_sources

_SPACING_WAVELENGTHS = (1 / 100, 10)


def validate(recording: Recording, *, first_scene: int = 0) -> Structure:
    """Check shapes, sizes and values of a recording.

    Args:
        recording: in memory.
        first_scene: number of its first scene in error messages.

    Returns:
        Its sizes.

    Raises:
        InputError: naming the field, and the scene where there is one.
    """
    structure = structure_of(recording)
    check_panel(recording.panel)
    check_values(recording, first_scene=first_scene)
    return structure


def check_panel(panel: Panel) -> None:
    """Refuse element spacings that suggest a wrong unit of the positions or of the wavelength.

    Raises:
        InputError: least spacing below 1/100 or above 10 wavelengths.
    """
    if panel.size < 2:
        return
    spacing, (low, high) = panel.spacing / panel.wavelength, _SPACING_WAVELENGTHS
    if not low <= spacing <= high:
        raise InputError(
            "wavelength",
            f"elements are {spacing:.3g} wavelengths apart (wavelength {panel.wavelength:g}, least spacing "
            f"{panel.spacing:.3g}; is one of them in another unit?{_likely_unit(panel)}). Wavelength and "
            f"elements must be in metres, and neighbouring elements {low:g} to {high:g} wavelengths apart",
        )


def _likely_unit(panel: Panel) -> str:
    """The mistake that would bring the elements closest to half a wavelength apart, if one does."""
    p, w, c = panel.spacing, panel.wavelength, 299792458.0
    spacings = {
        "elements in millimetres": p / 1e3 / w,
        "elements in centimetres": p / 1e2 / w,
        "elements in half wavelengths": p / 2,
        "a wavelength in millimetres": p / (w / 1e3),
        "a wavelength in centimetres": p / (w / 1e2),
        "2 pi / wavelength": p * w / (2 * math.pi),
        "a frequency in Hz": p * w / c,
        "a frequency in MHz": p * w * 1e6 / c,
        "a frequency in GHz": p * w * 1e9 / c,
    }
    name, spacing = min(spacings.items(), key=lambda item: abs(item[1] - 0.5))
    return f" {name} would be {spacing:.2g} apart" if abs(spacing - 0.5) < 0.25 else ""


def check_values(recording: Recording, *, first_scene: int = 0) -> None:
    """Check the values of a recording of sound structure; see :func:`validate`."""
    values = tensors(recording)
    for name in ("snapshots", "channel", "codes", "noise_variance"):
        if name in values:
            _check_finite(name, values[name], first_scene)
    for name in ("snapshots", "channel", "codes"):
        if name in values:
            _check_power(name, values[name], first_scene)
    noise = recording.noise_variance
    if noise is not None and (noise <= 0).any():
        scene = int((noise <= 0).nonzero()[0])
        raise InputError(
            "noise_variance", f"must be positive; got {float(noise[scene]):g} in scene {first_scene + scene}"
        )
    if recording.pose is not None:
        check_pose(recording.pose)
    if recording.truth is not None:
        check_sources(recording.truth)
        if recording.truth.symbols is not None:
            _check_symbols(recording.truth.symbols, recording.truth.active, first_scene)


def _check_finite(name: str, value: Tensor, first_scene: int) -> None:
    wrong = ~torch.isfinite(value)
    if wrong.any():
        place = wrong.nonzero()[0]
        raise InputError(
            name, f"must be finite; got {value[tuple(place)].item()} in {_where(name, place, first_scene)}"
        )


def _check_power(name: str, value: Tensor, first_scene: int) -> None:
    """Refuse scenes whose values are all 0, or whose squares under- or overflow."""
    magnitude = value.abs()
    peak = magnitude.amax(dim=(-2, -1))
    power = magnitude.square().sum(dim=(-2, -1))
    for wrong, found in (
        (peak == 0, "has zero power (every value is 0)"),
        (power == 0, "has values so small that their squares are 0"),
        (power.isinf(), "has values so large that their squares overflow"),
    ):
        if wrong.any():
            place = wrong.nonzero()[0]
            where = f" in {_where(name, place, first_scene)}" if len(place) else ""
            raise InputError(
                name,
                f"{found}{where}; needs a power above 0 that {value.dtype.to_real()} can hold".replace(
                    "torch.", ""
                ),
            )


def _check_symbols(symbols: Tensor, active: Tensor, first_scene: int) -> None:
    for wrong, found in (
        (~torch.isfinite(symbols) & active[..., None], "a NaN or an infinity"),
        (~symbols.isnan() & ~active[..., None], "a value in an unused slot"),
    ):
        if wrong.any():
            where = _where("truth/symbols", wrong.nonzero()[0], first_scene)
            raise InputError(
                "truth/symbols",
                f"must be finite for each source and NaN in unused slots; got {found} in {where}",
            )


def _where(name: str, place: Tensor, first_scene: int) -> str:
    """``scene 3, snapshot 2, antenna 5``; a ``place`` of fewer axes names the first of them."""
    axes = FIELDS[name].axes
    shared = FIELDS[name].shared and len(place) == 2
    named = zip(axes[1:] if shared else axes, place.tolist(), strict=False)
    return ", ".join(f"{AXES[axis]} {index + first_scene if axis == 'S' else index}" for axis, index in named)
