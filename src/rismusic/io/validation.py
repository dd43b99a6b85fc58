"""Checks of the values of a recording: finite, non-zero, in plausible units, and a pose that is rigid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor

from rismusic.array import SPEED_OF_LIGHT, Panel, faces_forward
from rismusic.errors import InputError
from rismusic.io.schema import AXES, FIELDS, Field, fields_of
from rismusic.sources import Sources, check_sources
from rismusic.spec import SymbolModel

# Least and largest plausible distance between neighbouring elements.
_SPACING_WAVELENGTHS = (1 / 100, 10)
# Largest plausible extent of a panel.
_EXTENT_WAVELENGTHS = 1e6

# Largest deviation of a pose from a rigid transform.
_POSE_TOLERANCE = 1e-6


def check_panel(panel: Panel) -> None:
    """Refuse element spacings that suggest a wrong unit of the positions or of the wavelength.

    Raises:
        InputError: least spacing below 1/100 or above 10 wavelengths, or an extent above 10^6 wavelengths.
    """
    if panel.size < 2:
        return
    extent = float((panel.elements.amax(-2) - panel.elements.amin(-2)).max()) / panel.wavelength
    if extent > _EXTENT_WAVELENGTHS:
        raise InputError(
            "elements",
            f"extend over {extent:.3g} wavelengths; at most {_EXTENT_WAVELENGTHS:g} are possible. Is a "
            "position wrong?",
        )
    spacing, (low, high) = panel.spacing / panel.wavelength, _SPACING_WAVELENGTHS
    if not low <= spacing <= high:
        raise InputError(
            "wavelength",
            f"elements are {spacing:.3g} wavelengths apart (wavelength {panel.wavelength:g}, least spacing "
            f"{panel.spacing:.3g}; is one of them in another unit?{_likely_unit(panel)}). Wavelength and "
            f"elements must be in metres, and neighbouring elements {low:g} to {high:g} wavelengths apart",
        )


def check_values(values: Mapping[str, Tensor], truth: Sources | None, *, first_scene: int = 0) -> None:
    """Check that values are finite, of positive power and physically possible.

    Args:
        values: fields of a recording by name, of consistent shapes.
        truth: sources, if known.
        first_scene: number of the first scene in error messages.

    Raises:
        InputError: naming the field, and the scene where there is one.
    """
    fields = fields_of(values)
    for name in (
        *("snapshots", "channel", "codes", "noise_variance", "noise_covariance", "pilots", "times"),
        "frequencies",
    ):
        if name in values:
            _check_finite(fields[name], values[name], first_scene)
    for name in ("snapshots", "channel", "codes", "pilots"):
        if name in values:
            _check_power(fields[name], values[name], first_scene)
    noise = values.get("noise_variance")
    if noise is not None and (noise <= 0).any():
        scene = int((noise <= 0).nonzero()[0])
        raise InputError(
            "noise_variance", f"must be positive; got {float(noise[scene]):g} in scene {first_scene + scene}"
        )
    frequencies = values.get("frequencies")
    if frequencies is not None and (frequencies <= 0).any():
        raise InputError("frequencies", f"must be positive, in hertz; got {float(frequencies.min()):g}")
    if "noise_covariance" in values:
        _check_covariance(values["noise_covariance"], first_scene)
    if "pose" in values:
        check_pose(values["pose"])
    if truth is not None:
        check_sources(truth, behind="elements" in values and not faces_forward(values["elements"]))
        if truth.symbols is not None:
            _check_symbols(truth.symbols, truth.active, first_scene)


def check_frequencies(frequencies: Tensor, wavelength: float) -> None:
    """Check that subcarriers are near the frequency of the wavelength, and not offsets or in another unit.

    Raises:
        InputError: a positive frequency is more than ten times off.
    """
    ratio = frequencies.double() * wavelength / SPEED_OF_LIGHT
    if not ((ratio > 0) & ((ratio < 0.1) | (ratio > 10))).any():
        return
    low, high = float(ratio.min()), float(ratio.max())
    units = {"GHz": 1e9, "MHz": 1e6, "kHz": 1e3}
    near = [unit for unit, factor in units.items() if low * factor > 0.1 and high * factor < 10]
    raise InputError(
        "frequencies",
        f"must be those of the signal, in hertz; got {float(frequencies.min()):g} to "
        f"{float(frequencies.max()):g} Hz, while the wavelength {wavelength:g} m has "
        f"{SPEED_OF_LIGHT / wavelength:.4g} Hz. Are they {f'in {near[0]}' if near else 'offsets'}?",
    )


def check_symbols(symbols: SymbolModel, pilots: Tensor | None) -> None:
    """Check that the model of the symbols and the pilots go together.

    Raises:
        InputError: another model, known symbols without pilots, or pilots of symbols that are not known.
    """
    if symbols not in get_args(SymbolModel):
        raise InputError("symbols", f"must be one of {', '.join(get_args(SymbolModel))}; got {symbols!r}")
    if symbols == "known" and pilots is None:
        raise InputError("pilots", "missing; symbols = known needs the pilots, complex [L, K] or [S, L, K]")
    if symbols != "known" and pilots is not None:
        raise InputError("symbols", f"must be known where pilots are given; got {symbols!r}")


def _check_covariance(value: Tensor, first_scene: int) -> None:
    """Refuse a noise covariance that is not Hermitian and positive definite."""
    scale = value.diagonal(dim1=-2, dim2=-1).real.mean(-1)[..., None, None]
    wide = value.to(torch.complex128)
    skew = (wide - wide.mH).abs().amax(dim=(-2, -1)) > 1e-5 * scale[..., 0, 0].abs()
    _, failed = torch.linalg.cholesky_ex(torch.where(skew[..., None, None], 0, wide))
    for wrong, problem in ((skew, "Hermitian"), (failed > 0, "positive definite")):
        if wrong.any():
            place = wrong.nonzero()[0]
            where = f" in scene {int(place[0]) + first_scene}" if len(place) else ""
            raise InputError(
                "noise_covariance", f"must be Hermitian and positive definite; it is not {problem}{where}"
            )


def check_pose(pose: Tensor, *, field: str = "pose") -> None:
    """Check that a matrix is a rigid transform.

    Args:
        pose: [4, 4].
        field: name for error messages.

    Raises:
        InputError: another shape, values that are not finite, a last row other than 0 0 0 1, or a rotation
            block that is not orthonormal with determinant +1 (to 1e-6).
    """
    if tuple(pose.shape) != (4, 4):
        raise InputError(field, f"must be a homogeneous transform of shape [4, 4]; got {list(pose.shape)}")
    if not torch.isfinite(pose).all():
        raise InputError(field, "must be finite; got a NaN or an infinity")
    pose = pose.detach().to(torch.float64).cpu()
    last = pose.new_tensor([0, 0, 0, 1])
    if not torch.allclose(pose[3], last, rtol=0, atol=_POSE_TOLERANCE):
        hint = ""
        if torch.allclose(pose[:, 3], last, rtol=0, atol=_POSE_TOLERANCE):
            hint = ". The last column is 0 0 0 1: pass the transpose"
        row = " ".join(f"{value:g}" for value in pose[3].tolist())
        raise InputError(field, f"the last row must be 0 0 0 1; got {row}{hint}")
    R = pose[:3, :3]
    error = float((R.T @ R - torch.eye(3, dtype=R.dtype)).abs().max())
    if error > _POSE_TOLERANCE:
        raise InputError(
            field,
            f"the upper left 3 x 3 block must be a rotation (orthonormal columns); R^T R differs from the "
            f"identity by {error:.2g}",
        )
    if torch.linalg.det(R) < 0:
        raise InputError(
            field,
            "the upper left 3 x 3 block must be a rotation; its determinant is -1, a reflection. Is one axis "
            "flipped, or is the room frame left-handed?",
        )


def _likely_unit(panel: Panel) -> str:
    """The wrong unit that explains the spacing best, if one gives about half a wavelength."""
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


def _check_finite(field: Field, value: Tensor, first_scene: int) -> None:
    wrong = ~torch.isfinite(value)
    if wrong.any():
        place = wrong.nonzero()[0]
        raise InputError(
            field.name,
            f"must be finite; got {value[tuple(place)].item()} in {_where(field, value, place, first_scene)}",
        )


def _check_power(field: Field, value: Tensor, first_scene: int) -> None:
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
            where = f" in {_where(field, value, place, first_scene)}" if len(place) else ""
            raise InputError(
                field.name,
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
            where = _where(FIELDS["truth/symbols"], symbols, wrong.nonzero()[0], first_scene)
            raise InputError(
                "truth/symbols",
                f"must be finite for each source and NaN in unused slots; got {found} in {where}",
            )


def _where(field: Field, value: Tensor, place: Tensor, first_scene: int) -> str:
    """Text such as ``scene 3, snapshot 2, antenna 5``; ``place`` may have fewer axes than the field."""
    axes = field.axes if field.per_scene(value.ndim) else field.axes.removeprefix("S")
    named = zip(axes, place.tolist(), strict=False)
    return ", ".join(f"{AXES[axis]} {index + first_scene if axis == 'S' else index}" for axis, index in named)
