"""What a recording file holds: the names, types and axes of its fields, whatever the format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
