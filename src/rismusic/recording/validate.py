"""Values of a recording that no measurement can have."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rismusic.errors import InputError
from rismusic.panel import Panel
from rismusic.recording.data import Recording
from rismusic.recording.layout import AXES, FIELDS
from rismusic.recording.structure import Description, Structure, check_structure
from rismusic.scene import check_sources

_SPACING_WAVELENGTHS = (1 / 100, 10)


def validate(recording: Recording, *, first_scene: int = 0) -> Structure:
    """Refuse a recording that is mis-shaped, inconsistent, or holds values that no measurement can have.

    Args:
        recording: in memory.
        first_scene: the number that the sentences give its first scene.

    Returns:
        Its sizes.

    Raises:
        InputError: naming the field, and the scene where there is one.
    """
    structure = structure_of(recording)
    check_panel(recording.panel)
    check_values(recording, first_scene=first_scene)
    return structure


def structure_of(recording: Recording) -> Structure:
    """The sizes of a recording in memory.

    Raises:
        InputError: fields of another type or shape, or that disagree in size.
    """
    return check_structure(
        {
            name: Description(tuple(value.shape), str(value.dtype).removeprefix("torch."))
            for name, value in tensors(recording).items()
        }
    )


def tensors(recording: Recording) -> dict[str, Tensor]:
    """The fields that a recording has, by their name in a file."""
    found = {}
    for name in FIELDS:
        owner, _, attribute = name.rpartition("/")
        parent = recording.truth if owner else recording
        value = None if parent is None else getattr(parent, attribute)
        if value is not None:
            found[name] = value
    return found


def check_panel(panel: Panel) -> None:
    """Refuse a panel whose elements are absurdly near or far in wavelengths: one of the two has another unit.

    Raises:
        InputError: least spacing below 1/100 or above 10 wavelengths.
    """
    if panel.size < 2:
        return
    spacing, (low, high) = panel.spacing / panel.wavelength, _SPACING_WAVELENGTHS
    if not low <= spacing <= high:
        raise InputError(
            "wavelength",
            f"metres, and elements {low:g} to {high:g} wavelengths from their nearest neighbour",
            f"elements {spacing:.3g} wavelengths apart (wavelength {panel.wavelength:g}, least spacing "
            f"{panel.spacing:.3g}; is one of them in another unit?{_likely_unit(panel)})",
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
            "noise_variance", "positive values", f"{float(noise[scene]):g} in scene {first_scene + scene}"
        )
    if recording.truth is not None:
        check_sources(recording.truth)
        if recording.truth.symbols is not None:
            _check_symbols(recording.truth.symbols, recording.truth.active, first_scene)


def _check_finite(name: str, value: Tensor, first_scene: int) -> None:
    wrong = ~torch.isfinite(value)
    if wrong.any():
        place = wrong.nonzero()[0]
        raise InputError(
            name, "finite values", f"{value[tuple(place)].item()} in {_where(name, place, first_scene)}"
        )


def _check_power(name: str, value: Tensor, first_scene: int) -> None:
    """Each scene's values must not all be 0, and their squares must fit into the precision they come in."""
    magnitude = value.abs()
    peak = magnitude.amax(dim=(-2, -1))
    power = magnitude.square().sum(dim=(-2, -1))
    for wrong, found in (
        (peak == 0, "zero power (every value is 0)"),
        (power == 0, "values so small that their squares are 0"),
        (power.isinf(), "values so large that their squares overflow"),
    ):
        if wrong.any():
            place = wrong.nonzero()[0]
            where = f" in {_where(name, place, first_scene)}" if len(place) else ""
            raise InputError(
                name,
                f"a power above 0 that {value.dtype.to_real()} can hold".replace("torch.", ""),
                found + where,
            )


def _check_symbols(symbols: Tensor, active: Tensor, first_scene: int) -> None:
    expected = "finite values where there is a source, NaN elsewhere"
    for wrong, found in (
        (~torch.isfinite(symbols) & active[..., None], "a NaN or an infinity"),
        (~symbols.isnan() & ~active[..., None], "a value without a source"),
    ):
        if wrong.any():
            where = _where("truth/symbols", wrong.nonzero()[0], first_scene)
            raise InputError("truth/symbols", expected, f"{found} in {where}")


def _where(name: str, place: Tensor, first_scene: int) -> str:
    """``scene 3, snapshot 2, antenna 5``; a ``place`` of fewer axes names the first of them."""
    axes = FIELDS[name].axes
    shared = FIELDS[name].shared and len(place) == 2
    named = zip(axes[1:] if shared else axes, place.tolist(), strict=False)
    return ", ".join(f"{AXES[axis]} {index + first_scene if axis == 'S' else index}" for axis, index in named)
