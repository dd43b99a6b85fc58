"""Names, types and shapes of a recording, in a file or in memory: present, and consistent with each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rismusic.errors import InputError
from rismusic.recording.layout import AXES, FIELDS, TRUTH, Field


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
