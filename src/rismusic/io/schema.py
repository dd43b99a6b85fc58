"""What a recording file holds: the names, types and axes of its fields, whatever the format.

Names, types and shapes of a recording, in a file or in memory: present, and consistent with each other.

Values of a recording that no measurement can have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rismusic.array import Panel
from rismusic.errors import InputError
from rismusic.io.recording import Recording
from rismusic.sources import check_sources

FORMAT = "rismusic/1"
ATTRIBUTES = ("format", "wavelength")
SUFFIXES = (".h5", ".npz", ".mat")


@dataclass(frozen=True)
class Field:
    """One array of a recording.

    Args:
        name: as in ``.h5``; ``truth/x`` is ``truth_x`` in the flat formats.
        kind: ``real`` or ``complex``.
        axes: one letter for each axis: Scenes, snapshots L, antennas M, elements N, places for sources K, 3.
        shared: whether the scene axis may be absent, one value standing for all scenes.
    """

    name: str
    kind: Literal["real", "complex"]
    axes: str
    shared: bool = False

    def per_scene(self, rank: int) -> bool:
        """Whether an array of so many axes has one for the scenes."""
        return self.axes.startswith("S") and rank == len(self.axes)

    @property
    def flat_name(self) -> str:
        """The name in ``.npz`` and ``.mat``."""
        return self.name.replace("/", "_")


FIELDS = {
    field.name: field
    for field in (
        Field("elements", "real", "N3"),
        Field("snapshots", "complex", "SLM"),
        Field("channel", "complex", "SMN", shared=True),
        Field("codes", "complex", "SLN", shared=True),
        Field("noise_variance", "real", "S"),
        Field("truth/azimuth", "real", "SK"),
        Field("truth/elevation", "real", "SK"),
        Field("truth/range", "real", "SK"),
        Field("truth/power", "real", "SK"),
        Field("truth/symbols", "complex", "SKL"),
    )
}
TRUTH = ("truth/azimuth", "truth/elevation", "truth/range")
AXES = {
    "S": "scene",
    "L": "snapshot",
    "M": "antenna",
    "N": "element",
    "K": "source",
    "3": "coordinate",
}

_FROM_FLAT = {field.flat_name: field.name for field in FIELDS.values()}


def from_flat(name: str) -> str:
    """The name in ``.h5`` of a field called ``name`` in ``.npz`` or ``.mat``; unknown names stay."""
    return _FROM_FLAT.get(name, name)


def to_flat(name: str) -> str:
    """The name in ``.npz`` and ``.mat`` of a field or attribute."""
    return FIELDS[name].flat_name if name in FIELDS else name


class Description(NamedTuple):
    """Shape and type of an array that is there; the type by numpy's name, such as ``complex64``."""

    shape: tuple[int, ...]
    dtype: str


class Placement(NamedTuple):
    """Where an array's scenes are.

    Args:
        shape: with every axis of the layout, [S, ...] or without S where all scenes share it.
        scene_axis: the axis of the stored array along which scenes are counted; none where they share it.
    """

    shape: tuple[int, ...]
    scene_axis: int | None


@dataclass(frozen=True)
class Structure:
    """Sizes of a recording, and the placement of each field that is there.

    Args:
        scenes: S.
        snapshots: L.
        antennas: M.
        size: elements of the panel, N.
        sources_max: K_max; none without truth.
        placements: by field name.
    """

    scenes: int
    snapshots: int
    antennas: int
    size: int
    sources_max: int | None
    placements: Mapping[str, Placement]

    def per_scene(self, name: str) -> bool:
        """Whether a field is there and each scene has its own."""
        return name in self.placements and self.placements[name].scene_axis is not None


def check_structure(found: Mapping[str, Description], *, matlab: bool = False) -> Structure:
    """The structure that these fields make.

    Args:
        found: the fields that are there.
        matlab: accept what MATLAB makes of shapes: trailing axes of length 1 cut, vectors as rows or columns.

    Raises:
        InputError: a field is missing, of another type or shape, or disagrees with the others in size.
    """
    for name in ("elements", "snapshots"):
        if name not in found:
            raise InputError(name, _axes(FIELDS[name]), "no such field")
    for name, other in (("channel", "codes"), ("codes", "channel")):
        if name in found and other not in found:
            raise InputError(
                other, f"{_axes(FIELDS[other])} to go with {name} (or neither of them)", "no such field"
            )
    truth = [name for name in found if name.startswith("truth/")]
    for name in TRUTH:
        if truth and name not in found:
            raise InputError(name, f"{_axes(FIELDS[name])} to go with {truth[0]}", "no such field")
    for name, description in found.items():
        _check_type(FIELDS[name], description)

    sizes = {"3": 3}
    _measure("elements", found["elements"], sizes, matlab=matlab)
    _measure("snapshots", found["snapshots"], sizes, matlab=matlab)
    if "channel" not in found and sizes["M"] != sizes["N"]:
        raise InputError(
            "snapshots",
            f"M = N = {sizes['N']} antennas where the panel is sampled directly (no channel and no codes)",
            f"M = {sizes['M']}",
        )
    if truth:
        # A row [1, S] of MATLAB's is one source in each of S scenes.
        row = matlab and sizes["S"] > 1 and found["truth/azimuth"].shape == (1, sizes["S"])
        shape = (sizes["S"], 1) if row else found["truth/azimuth"].shape
        _measure("truth/azimuth", Description(shape, found["truth/azimuth"].dtype), sizes, matlab=matlab)
    return Structure(
        scenes=sizes["S"],
        snapshots=sizes["L"],
        antennas=sizes["M"],
        size=sizes["N"],
        sources_max=sizes.get("K"),
        placements={
            name: _place(FIELDS[name], description.shape, sizes, matlab=matlab)
            for name, description in found.items()
        },
    )


def _check_type(field: Field, description: Description) -> None:
    prefix = {"real": "float", "complex": "complex"}[field.kind]
    if description.dtype.startswith(prefix):
        return
    hint = ""
    if field.kind == "complex" and description.dtype.startswith("float"):
        hint = " (real numbers; where the imaginary part is truly 0, store it as complex all the same)"
    if description.dtype == "object":
        hint = " (text or Python objects; nothing is ever unpickled)"
    raise InputError(field.name, f"{field.kind} floating-point numbers", f"{description.dtype}{hint}")


def _measure(name: str, description: Description, sizes: dict[str, int], *, matlab: bool) -> None:
    """Take the sizes that are not known yet from the shape of this field."""
    axes, shape = FIELDS[name].axes, description.shape
    if matlab and len(shape) == 2:
        shape = shape + (1,) * (len(axes) - 2)
    if len(shape) != len(axes):
        raise InputError(name, _axes(FIELDS[name]), f"shape {list(description.shape)}")
    for axis, length in zip(axes, shape, strict=True):
        if axis == "3" and length != 3:
            hint = " (transposed?)" if shape[0] == 3 else ""
            raise InputError(name, _axes(FIELDS[name]), f"shape {list(description.shape)}{hint}")
        if length < 1:
            raise InputError(name, f"at least one {AXES[axis]}", f"none (shape {list(description.shape)})")
        sizes.setdefault(axis, length)


def _place(field: Field, shape: tuple[int, ...], sizes: Mapping[str, int], *, matlab: bool) -> Placement:
    options = [field.axes[1:], field.axes] if field.shared else [field.axes]
    for axes in options:
        target = tuple(sizes[axis] for axis in axes)
        scene_axis = 0 if axes.startswith("S") else None
        if shape == target or (matlab and _stripped(shape) == _stripped(target)):
            return Placement(target, scene_axis)
        if matlab and scene_axis == 0 and shape == (1, sizes["S"]) and _stripped(target) == (sizes["S"],):
            return Placement(target, 1)
    targets = [tuple(sizes[axis] for axis in axes) for axes in options]
    shapes = " or ".join(str(list(target)) for target in targets)
    turned = len(shape) > 1 and (*shape[:-2], shape[-1], shape[-2]) in targets
    hint = " (transposed?)" if turned else ""
    raise InputError(
        field.name, f"shape {shapes} ({_axes(field)} as in the other fields)", f"{list(shape)}{hint}"
    )


def _stripped(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _axes(field: Field) -> str:
    options = [field.axes[1:], field.axes] if field.shared else [field.axes]
    letters = " or ".join(f"[{', '.join(axes)}]".replace("K", "K_max") for axes in options)
    return f"{field.kind} {letters}"


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
